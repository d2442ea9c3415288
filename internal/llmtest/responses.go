package llmtest

import "strings"

// stored is how many tokens everything that the provider keeps has.
const stored = 3000

// responses is POST /v1/responses.
type responses struct{}

func (responses) failure(status int, message string) any { return openAIFailure(status, message) }

func (responses) broken() event {
	return event{name: "error", data: map[string]any{
		"type": "error", "code": "server_error", "message": "The server had an error while processing your request",
		"param": nil, "sequence_number": 99,
	}}
}

func (responses) bill(failure any, p *plan) any {
	failure.(map[string]any)["usage"] = p.responseUsage()
	return failure
}

func (responses) check(_ *exchange, p *plan) error {
	bound, err := positive(p.request, "max_output_tokens")
	if err != nil {
		return err
	}
	if bound > 0 {
		p.bound = bound
	}
	for _, name := range []string{"previous_response_id", "conversation", "prompt"} {
		if p.request[name] != nil {
			p.previous += stored
		}
	}
	return nil
}

type responseUsage struct {
	Input       int `json:"input_tokens"`
	InputDetail struct {
		Cached  int `json:"cached_tokens"`
		Written int `json:"cache_write_tokens"`
	} `json:"input_tokens_details"`
	Output       int `json:"output_tokens"`
	OutputDetail struct {
		Reasoning int `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	Total int `json:"total_tokens"`
}

func (p *plan) responseUsage() any {
	if !p.tell {
		return nil
	}
	u := responseUsage{Input: p.tokens.prompt(), Output: p.tokens.Output, Total: p.tokens.Total()}
	u.InputDetail.Cached, u.InputDetail.Written = p.tokens.Cached, p.tokens.Written+p.tokens.Written1h
	u.OutputDetail.Reasoning = p.tokens.Reasoning
	return u
}

// response is the object that the last event of a stream repeats as a whole,
// with the instructions of the request in front of the usage and metadata behind.
// A proxy that writes a bound into the request is seen in it.
type response struct {
	ID           string `json:"id"`
	Object       string `json:"object"`
	Created      int    `json:"created_at"`
	Status       string `json:"status"`
	Error        any    `json:"error"`
	Incomplete   any    `json:"incomplete_details"`
	Instructions any    `json:"instructions"`
	Bound        any    `json:"max_output_tokens"`
	Model        string `json:"model"`
	Output       []any  `json:"output"`
	Parallel     bool   `json:"parallel_tool_calls"`
	Previous     any    `json:"previous_response_id"`
	Tier         string `json:"service_tier"`
	Store        bool   `json:"store"`
	Tools        any    `json:"tools"`
	Usage        any    `json:"usage"`
	User         any    `json:"user"`
	Metadata     any    `json:"metadata"`
}

func (p *plan) response(status string, usage any, output ...any) response {
	r := response{
		ID: "resp_" + p.id, Object: "response", Created: created, Status: status, Instructions: p.request["instructions"],
		Bound: p.request["max_output_tokens"], Model: p.model, Output: append([]any{}, output...), Parallel: true,
		Previous: p.request["previous_response_id"], Tier: "default", Store: true, Tools: []any{}, Usage: usage,
		Metadata: map[string]any{},
	}
	if status == "incomplete" {
		r.Incomplete = map[string]any{"reason": "max_output_tokens"}
	}
	if p.behaved.Huge > 0 {
		r.Instructions = strings.Repeat(`"usage":{"output_tokens":0}, `, p.behaved.Huge/29+1)[:p.behaved.Huge]
	}
	if p.behaved.Tricky {
		r.Tools = []any{map[string]any{"type": "function", "name": "usage", "usage": map[string]any{"input_tokens": 0, "output_tokens": 0}}}
		r.Metadata = map[string]any{"usage": `{"input_tokens":0}`, `usage":{"output_tokens":0}`: "x"}
	}
	return r
}

func (p *plan) status() string {
	if p.cut {
		return "incomplete"
	}
	return "completed"
}

// item is what was said.
func (p *plan) item(status, text string) any {
	content := []any{}
	if text != "" {
		content = append(content, p.part(text))
	}
	return struct {
		ID      string `json:"id"`
		Type    string `json:"type"`
		Status  string `json:"status"`
		Content []any  `json:"content"`
		Role    string `json:"role"`
	}{"msg_" + p.id, "message", status, content, "assistant"}
}

func (p *plan) part(text string) any {
	return struct {
		Type        string `json:"type"`
		Annotations []any  `json:"annotations"`
		Text        string `json:"text"`
	}{"output_text", []any{}, text}
}

func (responses) whole(p *plan) any {
	return p.response(p.status(), p.responseUsage(), p.item("completed", p.text()))
}

func (responses) events(p *plan) []event {
	var events []event
	add := func(tokens int, name string, fields map[string]any) {
		fields["type"], fields["sequence_number"] = name, len(events)
		events = append(events, event{name: name, data: fields, tokens: tokens})
	}
	at := func(more map[string]any) map[string]any {
		fields := map[string]any{"item_id": "msg_" + p.id, "output_index": 0, "content_index": 0}
		for name, value := range more {
			fields[name] = value
		}
		return fields
	}
	add(0, "response.created", map[string]any{"response": p.response("in_progress", nil)})
	add(0, "response.in_progress", map[string]any{"response": p.response("in_progress", nil)})
	add(0, "response.output_item.added", map[string]any{"output_index": 0, "item": p.item("in_progress", "")})
	add(0, "response.content_part.added", at(map[string]any{"part": p.part("")}))
	for i, piece := range p.pieces {
		add(p.share(i), "response.output_text.delta", at(map[string]any{"delta": piece, "logprobs": []any{}}))
	}
	add(0, "response.output_text.done", at(map[string]any{"text": p.text(), "logprobs": []any{}}))
	add(0, "response.content_part.done", at(map[string]any{"part": p.part(p.text())}))
	add(0, "response.output_item.done", map[string]any{"output_index": 0, "item": p.item("completed", p.text())})
	add(0, "response."+p.status(), map[string]any{"response": p.response(p.status(), p.responseUsage(), p.item("completed", p.text()))})
	events[len(events)-1].usage = p.tell
	return events
}
