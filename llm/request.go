package llm

import (
	"bytes"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// Reason says in one word why a request is refused. The words are the project's
// own, except Malformed and Encoded, which are no matter of budgets.
type Reason string

const (
	ReasonUnmetered Reason = "unmetered"  // nothing says what it costs, or the response does not
	ReasonUnbounded Reason = "unbounded"  // something in it is not bounded by its bytes
	ReasonTooCostly Reason = "too_costly" // above MaxRequest
	ReasonMalformed Reason = "malformed"  // no JSON, read in two ways, a bound that is none
	ReasonEncoded   Reason = "encoded"    // Content-Encoding, or no JSON by its Content-Type
)

// Refusal says why a request must not be sent on. Waiting never helps.
type Refusal struct {
	Status  int // 400 or 415
	Reason  Reason
	Message string // for the client; it names the remedy, and holds no text of the request but names of fields and types
}

func (r *Refusal) Error() string { return r.Message }

func refuse(reason Reason, format string, args ...any) *Refusal {
	status := http.StatusBadRequest
	if reason == ReasonEncoded {
		status = http.StatusUnsupportedMediaType
	}
	return &Refusal{Status: status, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Reservation is what a request may cost. It belongs to one request; its
// methods are not safe for concurrent use.
type Reservation struct {
	// Units to reserve: micro-dollars with prices, tokens without.
	Units int64

	// Input and Output are the bounds in tokens.
	Input, Output int64

	// Body is what to send on: the request's own slice if nothing had to be
	// written, otherwise a new one.
	Body []byte

	// Written says that Body is not the request's own, so that Content-Length
	// must be set anew.
	Written bool

	// Stream says that the client asked for a stream.
	Stream bool

	// Model is the name that the client wrote: a stranger's text of at most 256
	// bytes, never to be a label of a metric.
	Model string

	// Price is the pattern of the price that counts, empty without prices. It
	// comes from the configuration.
	Price string

	// Unbounded names what the bytes of the request do not bound, where
	// MaxInput accepted it.
	Unbounded string

	meter      *Meter
	endpoint   endpoint
	price      int
	hourWrites bool
	stripUsage bool // take the usage event out again: the client did not ask for it
}

// Reserve reads a metered request's body and says what to reserve. The path is
// that of [Meter.Route], which must have returned [Metered]; any other is
// refused. It reads the body once, by itself: what it does not understand in
// exactly one way it refuses. It keeps the body.
func (m *Meter) Reserve(method, escapedPath string, header http.Header, body []byte) (*Reservation, *Refusal) {
	row := m.find(method, escapedPath)
	if row == nil || row.endpoint == none || method == "OPTIONS" {
		return nil, refuse(ReasonUnmetered, "the cost of %s requests to this path is not known here", m.cfg.API)
	}
	if refusal := checkHeader(header); refusal != nil {
		return nil, refusal
	}
	facts, refusal := read(row.endpoint, body, m.cfg.Accept)
	if refusal != nil {
		return nil, refusal
	}
	if refusal := m.checkBounded(facts); refusal != nil {
		return nil, refusal
	}
	rsv := &Reservation{
		Body: body, Stream: facts.stream, Model: facts.model, Unbounded: facts.unbounded,
		meter: m, endpoint: row.endpoint, Input: m.input(facts, len(body)),
	}
	var edits []edit
	rsv.Output, edits = m.output(row.endpoint, facts)
	if row.endpoint == chat && facts.stream && !facts.usageAsked && !m.cfg.EnforceOff {
		edits = append(edits, facts.askUsage())
		rsv.stripUsage = true
	}
	if total := rsv.Input + rsv.Output; m.cfg.MaxRequest > 0 && total > m.cfg.MaxRequest {
		return nil, refuse(ReasonTooCostly,
			"this request may take %d tokens (%d of input, %d of output), more than the %d that one request may take: send less, or lower %s",
			total, rsv.Input, rsv.Output, m.cfg.MaxRequest, m.field(row.endpoint))
	}
	m.reserve(rsv, body)
	if len(edits) > 0 {
		rsv.Body, rsv.Written = apply(body, edits), true
	}
	return rsv, nil
}

// checkHeader refuses what makes the upstream read another body than we do.
func checkHeader(header http.Header) *Refusal {
	if len(header.Values("Content-Encoding")) > 0 {
		return refuse(ReasonEncoded, "the request has a Content-Encoding: send the body as it is")
	}
	types := header.Values("Content-Type")
	if len(types) == 0 {
		return nil
	}
	kind, params, err := mime.ParseMediaType(types[0])
	charset := strings.ToLower(params["charset"])
	if len(types) > 1 || err != nil || kind != "application/json" || charset != "" && charset != "utf-8" {
		return refuse(ReasonEncoded, "the request is no JSON by its Content-Type: send application/json")
	}
	return nil
}

// checkBounded refuses what the bounds below do not hold for.
func (m *Meter) checkBounded(f *facts) *Refusal {
	if f.background {
		return refuse(ReasonUnmetered, "background is not accepted: what it costs is not in the response")
	}
	if f.unknown != "" {
		return refuse(ReasonUnbounded, "%s is not accepted: what it costs is not known here", f.unknown)
	}
	if f.unbounded != "" && m.cfg.MaxInput == 0 {
		return refuse(ReasonUnbounded, "%s is not accepted: its cost is not bounded by the size of the request", f.unbounded)
	}
	for _, tier := range f.tiers {
		if !m.cfg.acceptsTier(tier.value) {
			return refuse(ReasonUnbounded, "the value of %s is not accepted: it may cost more than the prices known here", tier.field)
		}
	}
	if !f.bounded && m.cfg.MaxOutput == 0 {
		return refuse(ReasonUnbounded, "the request does not bound its output: write %s", m.field(f.endpoint))
	}
	return nil
}

// input is the bound of the input in tokens.
//
// The bytes of images and files in base64 are not tokens; where MaxInput stands
// in for them they do not count. All other bytes do, so that a client cannot
// reserve less for a long text by adding a small image.
func (m *Meter) input(f *facts, size int) int64 {
	text := int64(size)
	if f.unbounded != "" {
		text -= f.mediaBytes
	}
	per := m.cfg.InputBytesPerToken
	tokens := (text + per - 1) / per
	if f.unbounded != "" {
		tokens = max(tokens, m.cfg.MaxInput)
	}
	return tokens + Overhead + f.describedTools*OverheadTools
}

// output is the bound of the output in tokens, and what must be written into
// the request so that the upstream keeps it.
func (m *Meter) output(e endpoint, f *facts) (int64, []edit) {
	tokens := f.maxOutput
	var edits []edit
	if !f.bounded {
		tokens = m.cfg.MaxOutput
		if !m.cfg.EnforceOff {
			edits = append(edits, f.set(m.field(e), tokens))
		}
	} else if e == chat && m.cfg.MaxOutputField == "max_tokens" && m.cfg.MaxOutput > 0 && !m.cfg.EnforceOff && !slices.Contains(f.boundNames, "max_tokens") {
		// A server that obeys only max_tokens would take no notice of the bound that
		// the client has chosen. (OpenAI refuses both fields in one request.)
		edits = append(edits, f.set("max_tokens", tokens))
	}
	// With interleaved thinking the budget for thinking may exceed max_tokens
	// and is spent beside it. Below max_tokens it is a part of it.
	if f.thinking > tokens {
		tokens += f.thinking
	}
	// Rejected tokens of a prediction are billed as output.
	tokens = min(tokens+f.predictionBytes, maxTokens)
	if f.choices > 1 {
		if tokens > maxTokens/f.choices {
			return maxTokens, edits
		}
		tokens *= f.choices
	}
	return tokens, edits
}

// field is where an endpoint takes its bound.
func (m *Meter) field(e endpoint) string {
	switch e {
	case chat:
		return m.cfg.MaxOutputField
	case responses:
		return "max_output_tokens"
	}
	return "max_tokens"
}

// reserve prices the bounds.
func (m *Meter) reserve(rsv *Reservation, body []byte) {
	// OpenAI writes caches by itself. Anthropic writes them where the request
	// says so; whether it does is read from the bytes, since its places are
	// many. An escape could hide the word.
	escaped := bytes.Contains(body, []byte(`\u00`))
	writes := m.cfg.API == OpenAI || escaped || bytes.Contains(body, []byte(`cache_control`))
	rsv.hourWrites = m.cfg.API == Anthropic && writes && (escaped || bytes.Contains(body, []byte(`"1h"`)))
	if !m.Priced() {
		rsv.Units = rsv.Input + rsv.Output
		return
	}
	rsv.price, _ = m.price(rsv.Model)
	price := &m.prices[rsv.price]
	rsv.Price = price.Match
	var s sum
	s.add(rsv.Input, price.dearestInput(writes, rsv.hourWrites))
	s.add(rsv.Output, price.Output)
	rsv.Units = s.microDollars()
}
