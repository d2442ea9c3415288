// Package llm prices requests to LLM APIs before they are sent, and finds in
// the responses what they cost. It knows two APIs, OpenAI's (chat completions
// and responses) and Anthropic's (messages), and nothing of limits, stores or
// servers: whoever uses it reserves and settles.
//
//	meter, err := llm.New(config)                 // once
//
//	switch meter.Route(method, escapedPath) {     // before the body is read
//	case llm.Unmetered:                           // refuse, reason unmetered
//	case llm.Free:                                // let it pass, charge nothing
//	case llm.Metered:
//		rsv, refusal := meter.Reserve(method, escapedPath, header, body)
//		// refusal: answer refusal.Status with llm.ErrorBody
//		// reserve rsv.Units, send rsv.Body on without Accept-Encoding
//
//		resp := rsv.Response(status, header)  // when the header has come
//		// resp.Filters(): remove Content-Length before the header is sent
//		w.Write(resp.Pass(chunk))             // as the bytes pass
//		w.Write(resp.End())                   // when the body has ended
//		settlement := resp.Settle()           // settle to settlement.Units
//	}
//
// # What a reservation covers
//
// A response costs at most its reservation as long as the API keeps the bounds
// that the request names, and:
//
//   - a token is at least one byte of the request's text. This holds for
//     tokenizers that work on bytes as they come. One that normalizes text
//     first (NFKC) can make more bytes of it: U+FDFA becomes eleven times as
//     long. The APIs do not say that they do.
//   - what an API adds to a prompt by itself (the framing of messages, the
//     instructions that come with tools) stays below [Overhead] and
//     [OverheadTools].
//   - the model that answers is not dearer than the model that was asked for.
//   - prices have no steps. Both APIs charge more for some models once the
//     input exceeds 200,000 or 272,000 tokens: write the higher price, or keep
//     requests below the step with MaxRequest.
//   - no setting of the account makes requests dearer that do not say so: a
//     default service_tier of an OpenAI project, a default_inference_geo of an
//     Anthropic workspace.
//   - the price is a price for tokens. Fees for each call of a hosted tool are
//     not known here.
//
// Where that fails, the settlement says what was spent, which is then more than
// what was reserved.
//
// # What is known of the APIs
//
// The facts below were read from the types and sources of the npm packages
// openai 6.49.0 and @anthropic-ai/sdk 1.12.0.
//
// Usage in chat completions: usage.prompt_tokens includes
// prompt_tokens_details.cached_tokens and .cache_write_tokens (which cost 1.25
// times the input from gpt-5.6 on); usage.completion_tokens includes reasoning, audio and rejected predictions. A
// stream has usage only with stream_options.include_usage, in one chunk with an
// empty list of choices before "data: [DONE]"; in all other chunks it is null.
// Usage in responses: usage.input_tokens (input_tokens_details.cached_tokens,
// .cache_write_tokens) and usage.output_tokens; in streams response.usage of
// the last event (response.completed, response.incomplete or response.failed).
// These streams have neither include_usage nor [DONE].
//
// Usage in messages: input_tokens, cache_creation_input_tokens and
// cache_read_input_tokens add up to the input. cache_creation says how much was
// written for five minutes and how much for an hour, which costs 1.25 and 2
// times the input. In streams message.usage of message_start has a first state
// and usage of each message_delta a cumulative one. usage.iterations (beta) has
// a row for each sampling; rows of compactions are not in the sums above them.
// The stream ends with message_stop. max_tokens 0 is allowed: it writes the
// prompt cache and generates nothing.
//
// Retries: the SDKs retry 408, 409, 429 and 5xx, twice by default, unless
// x-should-retry is "false" (or "true", which makes them retry anything). They
// wait retry-after-ms milliseconds or Retry-After seconds. What they do with
// long ones differs: openai for Node sleeps for hours, and with more than
// 2^31-1 ms (25 days) not at all; openai for Python gives up above 120 s; older
// ones ignored more than 60 s and retried within seconds.
package llm
