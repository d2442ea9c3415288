package distributedratelimit

import (
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// metered is what one zone has reserved for a request, until its response tells what
// it cost.
type metered struct {
	reservation
	price    *llm.Reservation
	response *llm.Response // nil until its header has come
}

// spending is the budgets that wait for one response. They are settled once: when the
// response has told its usage in full, before its last bytes are sent on, so that a
// client that has seen them finds the units back; or else when it has ended.
//
// Nothing is free by accident: a client that hangs up, a stream that breaks off, a
// response without usage leave the reservation as it is. Only an error that costs
// nothing for certain gives it back.
type spending struct {
	meters  []metered
	body    *body.Body // of the request
	settled bool
	status  int   // of the response, 0 until its header has come
	gone    bool  // the client had gone away by then
	length  int64 // of the response as announced, -1 if it is not
	passed  int64 // bytes of it
	filters bool  // some bytes are taken out of it
}

// await prepares the request for its response to be read.
func (s *spending) await(e *evaluation) {
	s.meters = append(s.meters, e.metered...)
	s.body, s.length = e.keys.Body, -1
	// A response that is encoded cannot be read.
	e.r.Header.Del("Accept-Encoding")
}

// begin is told the header of the response.
func (s *spending) begin(rs *reservations, status int, header http.Header) {
	s.status, s.gone = status, rs.ctx.Err() != nil || status == statusClientGone
	if n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64); err == nil {
		s.length = n
	}
	for i := range s.meters {
		m := &s.meters[i]
		m.response = m.price.Response(status, header)
		s.filters = s.filters || m.response.Filters()
	}
	if s.filters {
		header.Del("Content-Length")
	}
}

// pass is given bytes of the response, and returns what is to be sent on.
func (s *spending) pass(rs *reservations, p []byte) []byte {
	s.passed += int64(len(p))
	out, complete := p, true
	for i := range s.meters {
		response := s.meters[i].response
		kept := response.Pass(p)
		if response.Filters() {
			out = kept
		}
		complete = complete && response.Complete()
	}
	if complete {
		s.settle(rs, nil)
	}
	return out
}

// rest is what is still to be sent when the response has ended.
func (s *spending) rest() (out []byte) {
	for i := range s.meters {
		m := &s.meters[i]
		if m.response == nil {
			continue
		}
		if kept := m.response.End(); m.response.Filters() {
			out = kept
		}
	}
	return out
}

// ended is how the next handler has ended.
type ended struct {
	err    error
	broken bool // by a panic, as when reverse_proxy loses its upstream
}

// settle settles what is not settled yet. how is nil while the response goes on.
func (s *spending) settle(rs *reservations, how *ended) {
	if s.settled {
		return
	}
	s.settled = true
	if how != nil {
		s.rest() // nobody wants it any more
	}
	free := how != nil && s.costsNothing(rs, how)
	var settlements []fallback.Settlement
	for i := range s.meters {
		m := &s.meters[i]
		said := llm.Settlement{Outcome: llm.Failed, Price: m.price.Price}
		if m.response != nil {
			said = m.response.Settle()
		}
		if said.Outcome == llm.Failed && !free {
			said.Outcome, said.Units = llm.Missing, m.price.Units
		}
		if reserved := m.Units(); reserved > 0 {
			spent := min(said.Units, store.MaxEvents)
			if said.Outcome == llm.Missing {
				spent = max(spent, reserved)
			}
			settlements = append(settlements, fallback.Settlement{Reservation: m.Reservation, Spent: spent})
			rs.charges.giveBack(m.zone, max(reserved-spent, 0))
		}
		rs.charges.chargeAnew(m.zone) // each upstream bills what it does
		s.tell(rs, m, said, how)
	}
	if len(settlements) > 0 {
		began := time.Now()
		rs.handler.backend.Settle(rs.charges.left(), settlements)
		rs.charges.waited += time.Since(began)
	}
}

// statusTimeoutOfCDN is what Cloudflare answers when its upstream takes too long.
const statusTimeoutOfCDN = 524

// costsNothing reports whether a request that ended with an error status has certainly
// cost nothing.
func (s *spending) costsNothing(rs *reservations, how *ended) bool {
	switch {
	case how.broken, s.gone, s.status == 0 && rs.gone(statusOf(how.err)):
		return false
	case rs.ctx.Err() != nil && (s.length < 0 || s.passed < s.length):
		return false // what is left of the response may have told of usage
	case !s.body.Begun(), rs.unsent():
		return true // as when the upstream cannot be reached
	case how.err != nil:
		return false // nobody knows what the upstream has done
	case s.status == http.StatusRequestTimeout, s.status == http.StatusGatewayTimeout, s.status == statusTimeoutOfCDN:
		return false // somebody on the way has lost patience, and what was asked may go on
	}
	// reverse_proxy says what its upstream has said. Where it says nothing another handler
	// has written the response: if the request was sent, or with a 5xx, that may be about
	// what was done elsewhere.
	if status, ok := rs.charges.repl.Get("http.reverse_proxy.status_code"); ok {
		retries, _ := rs.charges.repl.Get("http.reverse_proxy.retries")
		again, _ := retries.(int)
		return status == s.status && (again == 0 || rs.sent.Sent() == 1)
	}
	return s.status < http.StatusInternalServerError && !rs.sent.Used()
}

// tell shows a settlement in metrics, and what is wrong with it in the log.
func (s *spending) tell(rs *reservations, m *metered, said llm.Settlement, how *ended) {
	zone := m.zone
	zone.counters.spend(zone, m.price, said)
	if said.Units > m.price.Units {
		if suppressed, ok := zone.overrunLog.Allow(1, time.Minute); ok {
			rs.handler.logger.Warn("a response cost more than its request had reserved; what it exceeds the budget by was charged all the same",
				zap.String("zone", zone.Name), zap.Int64("reserved", m.price.Units), zap.Int64("spent", said.Units), zap.String("unit", zone.unit()),
				zap.String("price", said.Price), zap.Int64("suppressed", suppressed))
		}
	}
	if said.Outcome == llm.Missing && how != nil && how.err == nil && !how.broken && !s.gone && rs.ctx.Err() == nil && s.status < 400 {
		if suppressed, ok := zone.missingLog.Allow(1, time.Minute); ok {
			rs.handler.logger.Warn("a response did not tell its usage, so that all that its request had reserved stays charged; see that the upstream tells it, and that nothing between here and there encodes responses",
				zap.String("zone", zone.Name), zap.Int64("reserved", m.price.Units), zap.String("unit", zone.unit()), zap.Int64("suppressed", suppressed))
		}
	}
}
