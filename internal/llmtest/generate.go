package llmtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// created is the time of everything that is generated: equal requests have
// responses that are equal byte for byte.
const created = 1754524800

// api is how one endpoint writes.
type api interface {
	// check reads what the endpoint's own fields say, or what is wrong with it.
	check(x *exchange, p *plan) error
	whole(p *plan) any
	events(p *plan) []event
	failure(status int, message string) any
	// broken is the event that tells of an error midway.
	broken() event
	// bill puts the usage of a failed request into its error.
	bill(failure any, p *plan) any
}

// complaint is what an API says of a request that it does not take.
type complaint string

func (c complaint) Error() string { return string(c) }

// plan is what will be generated for a request.
type plan struct {
	request  map[string]any // names are case-sensitive, and the last of several counts
	id       string
	model    string // that answers
	n        int    // choices
	bound    int    // of the output of one choice
	tell     bool   // the usage
	asked    bool   // for the usage in a stream
	cut      bool   // the bound ended it
	tokens   Tokens
	pieces   []string // the text, by events
	behaved  Behaviour
	previous int // tokens of what the provider keeps, and the request refers to
}

// generate serves a request for text.
func (x *exchange) generate(a api) {
	p, err := x.plan(a)
	if err != nil {
		x.json(http.StatusBadRequest, a.failure(http.StatusBadRequest, err.Error()))
		return
	}
	b := x.behaviour
	stream := p.request["stream"] == true
	x.note(func(e *Entry) { e.Answered, e.Stream = p.model, stream })
	if attempt, _ := strconv.Atoi(x.entry.Attempt()); b.Status != 0 && (b.Times == 0 || attempt < b.Times) {
		x.fail(a, p)
		return
	}
	// From here on it works, and bills, whether anybody waits for it or not.
	x.note(func(e *Entry) { e.Tokens = p.tokens })
	if b.Break == breakHang {
		x.pause(hangTime)
		panic(http.ErrAbortHandler)
	}
	if b.Wait > 0 && !x.pause(b.Wait) {
		return
	}
	switch {
	case b.Break == breakHead:
		panic(http.ErrAbortHandler)
	case stream:
		x.stream(a.events(p), a.broken())
	default:
		x.whole(encode(a.whole(p)))
		x.note(func(e *Entry) { e.Told = p.tell })
	}
}

// whole answers a request that wants no stream.
func (x *exchange) whole(text []byte) {
	if x.behaviour.Break == "" || x.behaviour.Break == breakError {
		x.json(http.StatusOK, json.RawMessage(text))
		return
	}
	x.w.Header().Set("Content-Type", "application/json")
	x.w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	x.note(func(e *Entry) { e.Status = http.StatusOK })
	out := x.open(http.StatusOK)
	_, _ = out.Write(text[:len(text)/2])
	out.flush()
	x.broke(out, event{})
}

// fail answers with an error, which costs nothing unless it says so.
func (x *exchange) fail(a api, p *plan) {
	b := x.behaviour
	for name, value := range map[string]string{
		"Retry-After": b.RetryAfter, "Retry-After-Ms": b.RetryAfterMs, "X-Should-Retry": b.ShouldRetry,
	} {
		if value != "" {
			x.w.Header().Set(name, value)
		}
	}
	if b.Wait > 0 && !x.pause(b.Wait) {
		return
	}
	failure := a.failure(b.Status, "the test wants it")
	if b.Usage == "error" {
		x.note(func(e *Entry) { e.Tokens, e.Told = p.tokens, true })
		failure = a.bill(failure, p)
	}
	x.json(b.Status, failure)
}

// plan reads a request.
func (x *exchange) plan(a api) (*plan, error) {
	p := &plan{n: 1, bound: math.MaxInt32}
	if err := json.Unmarshal(x.body, &p.request); err != nil {
		return nil, complaint("We could not parse the JSON body of your request: " + err.Error())
	}
	model, _ := p.request["model"].(string)
	model, list, _ := strings.Cut(model, ":")
	if model == "" {
		return nil, complaint("you must provide a model parameter")
	}
	if err := x.behaviour.parse(list); err != nil {
		return nil, err
	}
	x.note(func(e *Entry) { e.Model = model })
	b := x.behaviour
	p.model, p.tell, p.behaved = model, b.Usage != "none", b
	if b.Answered != "" {
		p.model = b.Answered
	}
	if err := a.check(x, p); err != nil {
		return nil, err
	}

	text := said(p.request)
	sum := sha256.Sum256([]byte(model + text))
	p.id = hex.EncodeToString(sum[:12])
	p.tokens = Tokens{Input: b.Input, Cached: b.Cached, Written: b.Written, Written1h: b.Written1h, Reasoning: b.Reasoning}
	if b.Input < 0 {
		p.tokens.Input = len(text)/4 + 1
	}
	p.tokens.Input += p.previous
	each := min(b.Output, p.bound)
	p.cut = b.Output >= p.bound
	p.tokens.Output = p.n * each
	p.tokens.Reasoning = min(b.Reasoning, p.tokens.Output)
	for i := range max(1, b.Events) {
		p.pieces = append(p.pieces, p.piece(i))
	}
	return p, nil
}

// said is the text of a request that costs tokens, which a proxy leaves as it
// is.
func said(request map[string]any) string {
	parts := make([]any, 0, 5)
	for _, name := range []string{"system", "instructions", "messages", "input", "tools"} {
		parts = append(parts, request[name])
	}
	return string(encode(parts))
}

// piece is the text of one event.
func (p *plan) piece(i int) string {
	text := fmt.Sprintf("word %d, ", i)
	if p.behaved.Tricky {
		text += tricks[i%len(tricks)]
	}
	if i == 0 && p.behaved.Huge > 0 {
		text += strings.Repeat("filler \"quoted\" \\ ", p.behaved.Huge/18+1)[:p.behaved.Huge]
	}
	return text
}

// tricks are texts that a reader of the stream might take for more than text.
var tricks = []string{
	`{"usage":{"prompt_tokens":0,"completion_tokens":0,"input_tokens":0,"output_tokens":0}}`,
	"\n\ndata: {\"usage\":{\"completion_tokens\":0}}\n\ndata: [DONE]\n\n",
	"event: message_delta\r\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":0}}\r\n\r\n",
	"\\\"usage\\\": \u2028 \u00e9 \U0001f389 \\",
}

// share is how much of the output the event i of a stream stands for.
func (p *plan) share(i int) int {
	of := len(p.pieces)
	return p.tokens.Output*(i+1)/of - p.tokens.Output*i/of
}

func (p *plan) text() string { return strings.Join(p.pieces, "") }

// positive reads a bound as the APIs do.
func positive(request map[string]any, name string) (int, error) {
	value, there := request[name]
	if !there || value == nil {
		return 0, nil
	}
	number, ok := value.(float64)
	if !ok || number != math.Trunc(number) || number < 1 || number > math.MaxInt32 {
		return 0, complaint("Invalid value for '" + name + "': expected a positive integer.")
	}
	return int(number), nil
}
