package llm

import (
	"bytes"
	"mime"
	"net/http"
	"strings"
)

// Outcome says how sure a settlement is.
type Outcome int

const (
	// Missing: no usage, or not all of it, because the stream broke off, the
	// client went away, or the server sends none. The reservation stands.
	Missing Outcome = iota

	// Counted: the usage was read in full. Nothing that happens to the
	// connection afterwards changes it.
	Counted

	// Failed: an error status without usage, and without anything that a model has
	// said: that is Missing. Nothing was spent if the upstream
	// wrote it. Who did is for the caller to know: a proxy's own 502 or 504
	// tells nothing of what the upstream did, and the reservation stands.
	Failed
)

// Settlement is what a response cost.
type Settlement struct {
	// Units that were spent: micro-dollars with prices, tokens without. For
	// Missing it is what was reserved, or what was seen of the usage if that is
	// more; for Failed it is 0.
	Units int64

	Outcome Outcome

	// Usage is what was read, in tokens. For Missing it may be a part.
	Usage Usage

	// Price is the pattern of the price that counted, empty without prices.
	Price string
}

// Response reads a response as it passes. It belongs to one response; its
// methods are not safe for concurrent use.
type Response struct {
	rsv      *Reservation
	status   int
	readable bool
	stream   bool
	ended    bool

	scan    scanner
	now     reading // the event or body that is read
	usage   counted // of all that were read
	bad     bool
	over    bool // the last event, or the end of the body, was read
	errored bool
	spoke   bool   // an error came with what a model has said
	prices  []bool // by the models that were named
	events  events
	head    [len(doneText)]byte // the beginning of an event's data
	headLen int
}

// doneText ends a stream of chat completions. The SDKs look at the beginning of
// the data only, too.
const doneText = "[DONE]"

// Response begins to read the response to a request, once its header has come.
// A 1xx is not the response. It is read as a stream or as one JSON text by its
// Content-Type. With a Content-Encoding it cannot be read, and the reservation
// stands: take Accept-Encoding out of the request to the upstream.
func (r *Reservation) Response(status int, header http.Header) *Response {
	resp := &Response{rsv: r, status: status}
	resp.readable = len(header.Values("Content-Encoding")) == 0
	kind, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	resp.stream = kind == "text/event-stream"
	resp.now.model = resp.named
	resp.prices = make([]bool, len(r.meter.prices))
	resp.scan.reset(r.endpoint.root(resp.stream), &resp.now)
	resp.events.init()
	resp.events.data = resp.data
	resp.events.end = resp.endEvent
	resp.events.sure = resp.sure
	resp.events.hold = resp.stream && r.stripUsage && resp.readable
	return resp
}

// Filters says whether [Response.Pass] may return fewer bytes than it is given.
// A Content-Length must then be removed before the header is sent.
func (r *Response) Filters() bool { return r.events.hold }

// Pass reads bytes of the body, split anywhere, and returns what to send on: p
// itself or, where [Response.Filters], bytes that are valid until the next call.
// Send them at once; what is whole is never held back.
func (r *Response) Pass(p []byte) []byte {
	switch {
	case r.ended || !r.readable:
		return p
	case r.stream:
		return r.events.pass(p)
	}
	r.scan.write(p)
	r.over = r.over || r.scan.complete()
	return p
}

// End tells that the body has ended or broken off, and returns what is still to
// be sent on.
func (r *Response) End() []byte {
	if r.ended || !r.readable {
		return nil
	}
	r.ended = true
	if r.stream {
		return r.events.finish()
	}
	r.scan.end()
	if r.over = r.scan.complete(); r.over {
		r.commit()
	}
	return nil
}

// Complete says whether the usage is known in full already. What happens to the
// connection afterwards does not matter: clients hang up once they have the last
// event, and nothing is spent after it.
func (r *Response) Complete() bool {
	usage, bad := r.usage, r.bad
	if !r.stream && !r.ended && r.over {
		usage.merge(&r.now)
		bad = bad || r.now.bad
	}
	return r.over && !bad && usage.whole()
}

// Errored says whether the body or an event held an error object.
func (r *Response) Errored() bool { return r.errored }

// Settle says what the response cost. Call it after [Response.End], or before if
// [Response.Complete].
func (r *Response) Settle() Settlement {
	if !r.ended && !r.stream {
		r.End()
	}
	meter := r.rsv.meter
	spoke := r.spoke || r.now.spoke()
	s := Settlement{Usage: r.usage.total(meter.cfg.API, r.rsv.hourWrites), Price: r.rsv.Price}
	spent := r.cost(&s)
	switch {
	case r.Complete():
		s.Outcome, s.Units = Counted, spent
	case r.status >= 400 && r.readable && !r.usage.seen[inputField] && !r.usage.seen[outputField] && !r.bad && !spoke:
		s.Outcome = Failed
	default:
		s.Units = max(spent, r.rsv.Units)
	}
	return s
}

// cost takes the dearest of the models that were asked for or answered.
func (r *Response) cost(s *Settlement) int64 {
	meter := r.rsv.meter
	if !meter.Priced() {
		return s.Usage.Tokens()
	}
	spent := meter.prices[r.rsv.price].cost(s.Usage)
	for i, named := range r.prices {
		if !named {
			continue
		}
		if c := meter.prices[i].cost(s.Usage); c > spent {
			spent, s.Price = c, meter.prices[i].Match
		}
	}
	return spent
}

// named notes a model. One whose name is too long to be read has the default
// price.
func (r *Response) named(name []byte) {
	if i, ok := r.rsv.meter.price(string(name)); ok {
		r.prices[i] = true
	}
}

// commit takes in what was read to its end.
func (r *Response) commit() {
	r.errored = r.errored || r.now.failed || r.now.kind == "error"
	if r.now.usage {
		r.usage.merge(&r.now)
		r.bad = r.bad || r.now.bad
	}
}

// data takes bytes of an event's data.
func (r *Response) data(p []byte) {
	r.headLen += copy(r.head[r.headLen:], p)
	r.scan.write(p)
}

// sure says that the event is not the one that is taken out.
func (r *Response) sure() bool {
	return r.now.choice || r.now.moderation || r.now.failed || r.scan.state == failed
}

// endEvent takes in an event, and says whether it is there only because we asked
// for the usage: one without choices that holds it. Some servers send the usage
// with the last choice, and events without choices or usage: they stay.
func (r *Response) endEvent() (drop bool) {
	r.scan.end()
	whole := r.scan.complete()
	if whole {
		r.commit()
		drop = r.now.usage && r.now.choices && !r.sure()
	}
	switch r.rsv.endpoint {
	case chat:
		r.over = r.over || bytes.Equal(r.head[:r.headLen], []byte(doneText))
	case responses:
		r.over = r.over || whole && r.now.usage && strings.HasPrefix(r.now.kind, "response.")
	case messages:
		r.over = r.over || whole && r.now.kind == "message_stop"
	}
	r.headLen = 0
	r.spoke = r.spoke || r.now.spoke()
	r.now.reset()
	r.scan.reset(r.rsv.endpoint.root(true), &r.now)
	return drop
}
