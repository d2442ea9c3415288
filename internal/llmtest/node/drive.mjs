// Sends requests with the official client of a provider, as its users do, and
// prints what they see of it: a line of JSON for each attempt, chunk, end and
// error. It reads a list of scenarios, in JSON, and plays them all at once; sdk.go
// says what is in one.
//
// The client is the real one, with its own retries and its own reading of
// streams. Only fetch is looked at, to tell the attempts apart.
import { readFileSync, writeSync } from "node:fs";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const began = performance.now();
const print = (line) => writeSync(1, JSON.stringify({ at: Math.round(performance.now() - began), ...line }) + "\n");

const clients = {
  openai: (url, options) => new OpenAI({ apiKey: "sk-llmtest", baseURL: url + "/v1", ...options }),
  anthropic: (url, options) => new Anthropic({ apiKey: "sk-llmtest", baseURL: url, ...options }),
};

// How each endpoint is called, and what its chunks add to the sum.
const endpoints = {
  chat: {
    client: "openai",
    call: (c, request, options) => c.chat.completions.create(request, options),
    helper: (c, request, options) => c.chat.completions.stream(request, options),
    final: (stream) => stream.finalChatCompletion(),
    whole: (r) => ({ text: r.choices[0].message.content, choices: r.choices.length, usage: r.usage ?? null, finish: r.choices[0].finish_reason }),
    add: (sum, chunk, scenario) => {
      // Many users write exactly this, which an event without choices breaks.
      const choice = scenario.careless || chunk.choices.length ? chunk.choices[0] : undefined;
      if (scenario.careless || choice?.index === 0) sum.text += choice.delta.content ?? "";
      sum.finish = choice?.finish_reason ?? sum.finish;
      sum.usage = chunk.usage ?? sum.usage;
    },
  },
  responses: {
    client: "openai",
    call: (c, request, options) => c.responses.create(request, options),
    helper: (c, request, options) => c.responses.stream(request, options),
    final: (stream) => stream.finalResponse(),
    whole: (r) => ({ text: r.output_text, usage: r.usage, finish: r.status }),
    add: (sum, chunk) => {
      if (chunk.type === "response.output_text.delta") sum.text += chunk.delta;
      sum.usage = chunk.response?.usage ?? sum.usage;
      sum.finish = chunk.response?.status ?? sum.finish;
    },
  },
  messages: {
    client: "anthropic",
    call: (c, request, options) => c.messages.create(request, options),
    helper: (c, request, options) => c.messages.stream(request, options),
    final: (stream) => stream.finalMessage(),
    whole: (r) => ({ text: r.content[0].text, usage: r.usage, finish: r.stop_reason }),
    add: (sum, chunk) => {
      if (chunk.type === "content_block_delta") sum.text += chunk.delta.text;
      const usage = chunk.message?.usage ?? chunk.usage;
      if (usage) sum.usage = { ...sum.usage, ...usage };
      sum.finish = chunk.delta?.stop_reason ?? sum.finish;
    },
  },
  openaiModels: { client: "openai", call: (c, _, options) => c.models.list(options), whole: (r) => ({ text: r.data.map((m) => m.id).join(" ") }) },
  anthropicModels: { client: "anthropic", call: (c, _, options) => c.models.list({}, options), whole: (r) => ({ text: r.data.map((m) => m.id).join(" ") }) },
  countTokens: { client: "anthropic", call: (c, request, options) => c.messages.countTokens(request, options), whole: (r) => ({ text: String(r.input_tokens) }) },
  embeddings: { client: "openai", call: (c, request, options) => c.embeddings.create(request, options), whole: () => ({ text: "" }) },
};

// consume reads a stream to its end, or until the user has enough of it.
async function consume(stream, scenario, endpoint, abort, result, say) {
  const { at, n } = scenario.abort ?? {};
  for await (const chunk of stream) {
    result.chunks++;
    if (!scenario.times) say("chunk", { data: chunk });
    endpoint.add(result, chunk, scenario);
    if (result.chunks === n && at === "chunk") abort.abort();
    if (result.chunks === n && at === "break") break;
  }
}

function connect(scenario, client, abort, say) {
  const { at, n } = scenario.abort ?? {};
  const looked = async (url, init) => {
    if (at === "sent") setTimeout(() => abort.abort(), n);
    const retry = new Headers(init.headers).get("x-stainless-retry-count");
    try {
      const response = await fetch(url, init);
      say("attempt", { status: response.status, retry });
      if (at === "attempt") setTimeout(() => abort.abort(), n);
      return response;
    } catch (error) {
      say("attempt", { status: 0, retry });
      throw error;
    }
  };
  return clients[client](scenario.url, {
    defaultHeaders: scenario.header,
    logLevel: "off",
    fetch: looked,
    ...(scenario.retries == null ? {} : { maxRetries: scenario.retries }),
    ...(scenario.timeout ? { timeout: scenario.timeout } : {}),
  });
}

async function run(scenario, say) {
  const endpoint = endpoints[scenario.endpoint];
  const abort = new AbortController();
  const client = connect(scenario, endpoint.client, abort, say);
  const at = scenario.abort?.at;
  if (at === "before") abort.abort();
  const result = { text: "", chunks: 0, usage: null, finish: null };
  const options = { signal: abort.signal };
  try {
    if (scenario.helper) {
      const stream = endpoint.helper(client, scenario.request, options);
      const seen = { ...result };
      await consume(stream, scenario, endpoint, abort, seen, say);
      Object.assign(result, endpoint.whole(await endpoint.final(stream)), { chunks: seen.chunks });
    } else {
      const answer = await endpoint.call(client, scenario.request, options);
      if (scenario.request?.stream) await consume(answer, scenario, endpoint, abort, result, say);
      else Object.assign(result, endpoint.whole(answer));
    }
    if (at === "after") abort.abort();
    say("end", { ...result, aborted: abort.signal.aborted });
  } catch (error) {
    say("error", {
      ...result,
      class: error.constructor.name,
      status: error.status ?? 0,
      code: error.code ?? "",
      type: error.type ?? "",
      message: error.message,
      retryAfter: error.headers?.get?.("retry-after") ?? "",
    });
  }
}

const scenarios = JSON.parse(readFileSync(0, "utf8"));
const runs = scenarios.flatMap((scenario, s) =>
  Array.from({ length: scenario.times || 1 }, (_, r) => run(scenario, (is, more) => print({ is, scenario: s, run: r, ...more }))),
);
await Promise.all(runs);
process.exit(0); // connections that are kept, and timers, would hold it up
