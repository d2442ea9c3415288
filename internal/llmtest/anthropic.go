package llmtest

import "net/http"

// messages is POST /v1/messages.
type messages struct{}

func (messages) failure(status int, message string) any {
	kind := map[int]string{
		http.StatusBadRequest: "invalid_request_error", http.StatusUnauthorized: "authentication_error",
		http.StatusTooManyRequests: "rate_limit_error", 529: "overloaded_error",
	}[status]
	if kind == "" {
		kind = "api_error"
	}
	return map[string]any{
		"type": "error", "error": map[string]any{"type": kind, "message": message}, "request_id": "req_llmtest",
	}
}

func (m messages) broken() event { return event{name: "error", data: m.failure(529, "Overloaded")} }

func (messages) bill(failure any, p *plan) any {
	failure.(map[string]any)["usage"] = p.messageUsage(p.tokens.Output)
	return failure
}

func (messages) check(x *exchange, p *plan) error {
	if x.r.Header.Get("Anthropic-Version") == "" {
		return complaint("anthropic-version: header is required")
	}
	bound, err := positive(p.request, "max_tokens")
	if err != nil {
		return err
	}
	if bound == 0 {
		return complaint("max_tokens: Field required")
	}
	p.bound = bound
	return nil
}

type messageUsage struct {
	Input    int `json:"input_tokens"`
	Written  int `json:"cache_creation_input_tokens"`
	Cached   int `json:"cache_read_input_tokens"`
	Creation struct {
		Minutes int `json:"ephemeral_5m_input_tokens"`
		Hour    int `json:"ephemeral_1h_input_tokens"`
	} `json:"cache_creation"`
	Output int            `json:"output_tokens"`
	Detail map[string]int `json:"output_tokens_details"`
	Tier   string         `json:"service_tier"`
}

// messageUsage counts what was cached beside the input, and what was thought
// into the output.
func (p *plan) messageUsage(output int) any {
	if !p.tell {
		return nil
	}
	t := p.tokens
	u := messageUsage{Input: t.Input, Written: t.Written + t.Written1h, Cached: t.Cached, Output: output, Tier: "standard"}
	u.Creation.Minutes, u.Creation.Hour = t.Written, t.Written1h
	if t.Reasoning > 0 && output == t.Output {
		u.Detail = map[string]int{"thinking_tokens": t.Reasoning}
	}
	return u
}

type message struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Role     string `json:"role"`
	Model    string `json:"model"`
	Content  []any  `json:"content"`
	Reason   any    `json:"stop_reason"`
	Sequence any    `json:"stop_sequence"`
	Usage    any    `json:"usage,omitempty"`
}

func (p *plan) message(reason any, usage any, content ...any) message {
	return message{"msg_" + p.id, "message", "assistant", p.model, append([]any{}, content...), reason, nil, usage}
}

func (p *plan) reason() string {
	if p.cut {
		return "max_tokens"
	}
	return "end_turn"
}

// whole has the call of a tool among its content, if it is to be tricky: its
// input is an object that the model writes.
func (messages) whole(p *plan) any {
	content := []any{map[string]any{"type": "text", "text": p.text()}}
	if p.behaved.Tricky {
		content = append(content, map[string]any{
			"type": "tool_use", "id": "toolu_" + p.id, "name": "usage",
			"input": map[string]any{"usage": map[string]any{"input_tokens": 0, "output_tokens": 0}, "model": "cheap"},
		})
	}
	return p.message(p.reason(), p.messageUsage(p.tokens.Output), content...)
}

// events tell the usage twice: of the input at the start, and all of it, summed
// up, at the end.
func (messages) events(p *plan) []event {
	var events []event
	add := func(tokens int, name string, fields map[string]any) {
		fields["type"] = name
		events = append(events, event{name: name, data: fields, tokens: tokens})
	}
	add(0, "message_start", map[string]any{"message": p.message(nil, p.messageUsage(min(1, p.tokens.Output)))})
	add(0, "content_block_start", map[string]any{"index": 0, "content_block": map[string]any{"type": "text", "text": ""}})
	add(0, "ping", map[string]any{})
	for i, piece := range p.pieces {
		add(p.share(i), "content_block_delta", map[string]any{"index": 0, "delta": map[string]any{"type": "text_delta", "text": piece}})
	}
	add(0, "content_block_stop", map[string]any{"index": 0})
	last := map[string]any{"delta": map[string]any{"stop_reason": p.reason(), "stop_sequence": nil}}
	if p.tell {
		last["usage"] = p.messageUsage(p.tokens.Output)
	}
	add(0, "message_delta", last)
	events[len(events)-1].usage = p.tell
	add(0, "message_stop", map[string]any{})
	return events
}
