package llmtest

import (
	"net/http"
	"strings"
)

// openAIFailure is the shape of an error. The official client takes its type,
// code and param over into its exception.
func openAIFailure(status int, message string) any {
	kind, code := "server_error", any(nil)
	switch status {
	case http.StatusBadRequest:
		kind = "invalid_request_error"
	case http.StatusUnauthorized:
		kind, code = "invalid_request_error", "invalid_api_key"
	case http.StatusTooManyRequests:
		kind, code = "tokens", "rate_limit_exceeded"
	}
	return map[string]any{"error": map[string]any{"message": message, "type": kind, "param": nil, "code": code}}
}

// chat is POST /v1/chat/completions.
type chat struct{}

func (chat) failure(status int, message string) any { return openAIFailure(status, message) }

func (chat) broken() event {
	return event{data: openAIFailure(http.StatusInternalServerError, "The server had an error while processing your request")}
}

func (chat) bill(failure any, p *plan) any {
	failure.(map[string]any)["usage"] = p.chatUsage()
	return failure
}

// check knows what the API refuses: the old name of the bound for models that
// think, both names at once, and options of a stream where there is none.
func (chat) check(_ *exchange, p *plan) error {
	old, err := positive(p.request, "max_tokens")
	if err != nil {
		return err
	}
	bound, err := positive(p.request, "max_completion_tokens")
	if err != nil {
		return err
	}
	n, err := positive(p.request, "n")
	switch {
	case err != nil:
		return err
	case old > 0 && bound > 0:
		return complaint("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
	case old > 0 && strings.HasPrefix(p.model, "gpt-5"):
		return complaint("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")
	case p.request["stream_options"] != nil && p.request["stream"] != true:
		return complaint("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
	}
	if old+bound > 0 {
		p.bound = old + bound
	}
	p.n = max(1, n)
	options, _ := p.request["stream_options"].(map[string]any)
	p.asked = options["include_usage"] == true
	return nil
}

type chatUsage struct {
	Prompt       int `json:"prompt_tokens"`
	Completion   int `json:"completion_tokens"`
	Total        int `json:"total_tokens"`
	PromptDetail struct {
		Cached  int `json:"cached_tokens"`
		Written int `json:"cache_write_tokens"`
		Audio   int `json:"audio_tokens"`
	} `json:"prompt_tokens_details"`
	CompletionDetail struct {
		Reasoning int `json:"reasoning_tokens"`
		Audio     int `json:"audio_tokens"`
		Accepted  int `json:"accepted_prediction_tokens"`
		Rejected  int `json:"rejected_prediction_tokens"`
	} `json:"completion_tokens_details"`
}

// chatUsage counts what was cached into the prompt, and what was thought into
// the completion.
func (p *plan) chatUsage() any {
	if !p.tell {
		return nil
	}
	u := chatUsage{Prompt: p.tokens.prompt(), Completion: p.tokens.Output, Total: p.tokens.Total()}
	u.PromptDetail.Cached, u.PromptDetail.Written = p.tokens.Cached, p.tokens.Written+p.tokens.Written1h
	u.CompletionDetail.Reasoning = p.tokens.Reasoning
	return u
}

func (p *plan) finish() string {
	if p.cut {
		return "length"
	}
	return "stop"
}

type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
	Refusal any    `json:"refusal"`
}

type chatChoice struct {
	Index   int         `json:"index"`
	Message chatMessage `json:"message"`
	Finish  string      `json:"finish_reason"`
}

func (chat) whole(p *plan) any {
	var choices []chatChoice
	for i := range p.n {
		choices = append(choices, chatChoice{i, chatMessage{"assistant", p.text(), nil}, p.finish()})
	}
	return struct {
		ID      string       `json:"id"`
		Object  string       `json:"object"`
		Created int          `json:"created"`
		Model   string       `json:"model"`
		Choices []chatChoice `json:"choices"`
		Usage   any          `json:"usage,omitempty"`
		Tier    string       `json:"service_tier"`
	}{"chatcmpl-" + p.id, "chat.completion", created, p.model, choices, p.chatUsage(), "default"}
}

type chatChunk struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int    `json:"created"`
	Model   string `json:"model"`
	Tier    string `json:"service_tier"`
	Choices []any  `json:"choices"`
}

// chatChunkUsage is a chunk of a stream whose client asked for the usage: the
// field is in every one, and null in all but the last.
type chatChunkUsage struct {
	chatChunk
	Usage any `json:"usage"`
}

func (chat) events(p *plan) []event {
	var events []event
	chunk := func(tokens int, usage any, choices ...any) {
		data := chatChunk{"chatcmpl-" + p.id, "chat.completion.chunk", created, p.model, "default", append([]any{}, choices...)}
		e := event{data: data, tokens: tokens, usage: usage != nil}
		if p.asked && p.tell {
			e.data = chatChunkUsage{data, usage}
		}
		events = append(events, e)
	}
	choice := func(i int, finish any, delta any) any {
		return struct {
			Index  int `json:"index"`
			Delta  any `json:"delta"`
			Log    any `json:"logprobs"`
			Finish any `json:"finish_reason"`
		}{i, delta, nil, finish}
	}
	for i := range p.n {
		chunk(0, nil, choice(i, nil, chatMessage{Role: "assistant"}))
	}
	for i, piece := range p.pieces {
		for c := range p.n {
			tokens := 0
			if c == 0 {
				tokens = p.share(i)
			}
			chunk(tokens, nil, choice(c, nil, map[string]any{"content": piece}))
		}
	}
	for i := range p.n {
		chunk(0, nil, choice(i, p.finish(), map[string]any{}))
	}
	if p.asked && p.tell {
		chunk(0, p.chatUsage())
	}
	return append(events, event{data: "[DONE]"})
}
