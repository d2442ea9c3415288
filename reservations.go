package distributedratelimit

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/response"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// reservations are what one handler has charged a request for until it is known
// whether the response counts. They are settled once, before the header of the
// response goes out: a client that has seen it finds the units back, on whatever
// instance.
//
// What is never settled stands. So a client that goes away, or a panic, gives
// nothing back: else a guess would be free for everybody who hangs up in time.
type reservations struct {
	response.Writer
	handler *Handler
	charges *charges
	ctx     context.Context // of the request
	body    *response.RequestBody
	sent    *response.Connections
	settled atomic.Bool
	held    []reservation
	few     [1]reservation // room for most requests
	spend   *spending      // of budgets, or nil
}

type reservation struct {
	zone *Zone
	fallback.Reservation
}

// reserve notes what a request of the call was charged, if it depends on the response.
func (e *evaluation) reserve(zone *Zone, i int) {
	if len(zone.CountIf) == 0 {
		return
	}
	if held := e.call.Reservation(i); held.Units() > 0 {
		e.reserved = append(e.reserved, reservation{zone, held})
	}
}

// await makes the response settle what depends on it. It returns nil if nothing does.
func (e *evaluation) await(w http.ResponseWriter) *reservations {
	if len(e.reserved) == 0 && len(e.metered) == 0 {
		return nil
	}
	rs := &reservations{handler: e.h, charges: e.charges, ctx: e.r.Context()}
	if e.keys.Body == nil || !e.keys.Body.Complete() {
		rs.body = response.WatchBody(e.r) // else there is nothing left to break off
	}
	rs.sent = response.WatchConnections(e.r)
	rs.held = append(rs.few[:0], e.reserved...)
	if len(e.metered) > 0 {
		rs.spend = new(spending)
		rs.spend.await(e)
	}
	rs.Reset(w, rs)
	return rs
}

// statusClientGone is what reverse_proxy writes for a client that has gone away.
const statusClientGone = 499

// Begin implements response.Observer.
func (rs *reservations) Begin(status int, header http.Header) {
	rs.settleCounted(status, header, true)
	if rs.spend != nil {
		rs.spend.begin(rs, status, header)
	}
}

// WantsBody implements response.BodyObserver.
func (rs *reservations) WantsBody() bool { return rs.spend != nil }

// Pass implements response.BodyObserver.
func (rs *reservations) Pass(p []byte) []byte { return rs.spend.pass(rs, p) }

// Rest implements response.BodyObserver.
func (rs *reservations) Rest() []byte { return rs.spend.rest() }

// settleCounted settles what depends on the header of the response. asked is false if
// nobody was asked for one.
func (rs *reservations) settleCounted(status int, header http.Header, asked bool) {
	if rs.settled.Swap(true) {
		return
	}
	if rs.gone(status) {
		for i := range rs.held {
			rs.held[i].zone.counters.settle(settledGone)
		}
		return
	}
	var back []fallback.Settlement
	for i := range rs.held {
		held := &rs.held[i]
		if asked && held.zone.counts(status, header) {
			held.zone.counters.settle(settledCounted)
			continue
		}
		held.zone.counters.settle(settledGivenBack)
		rs.charges.giveBack(held.zone, held.Units())
		rs.charges.chargeAnew(held.zone)
		back = append(back, fallback.Settlement{Reservation: held.Reservation})
	}
	if len(back) > 0 {
		began := time.Now()
		rs.handler.backend.Settle(rs.charges.left(), back)
		rs.charges.waited += time.Since(began)
	}
}

// gone reports whether the client has gone away, or broken its request off, so that
// the response tells nothing about what was done for it.
func (rs *reservations) gone(status int) bool {
	return status == statusClientGone || rs.ctx.Err() != nil || rs.body.Broken()
}

// unsent reports whether the request was certainly sent to nobody: no upstream could be
// reached, or reverse_proxy knows that all of them are down.
func (rs *reservations) unsent() bool {
	if rs.sent.Used() {
		return false
	}
	_, proxied := rs.charges.repl.Get("http.reverse_proxy.duration")
	_, chosen := rs.charges.repl.Get("http.reverse_proxy.upstream.address")
	return rs.sent.Asked() || proxied && !chosen
}

// end is called with what the next handler returned.
func (rs *reservations) end(err error) {
	if rs == nil {
		return
	}
	if err == nil {
		rs.End()
	} else {
		// The error routes, or the server, write the response. An error of the proxy
		// that has sent the request to nobody is not the client's: a backend that is
		// down would ban everybody who tries.
		status := statusOf(err)
		down := status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
		rs.settleCounted(status, rs.Header(), !down || !rs.unsent())
	}
	if rs.spend != nil {
		rs.spend.settle(rs, &ended{err: err})
	}
}

// broken is deferred: it settles budgets after a panic of the next handler.
func (rs *reservations) broken() {
	if rs != nil && rs.spend != nil {
		rs.spend.rest()
		rs.spend.settle(rs, &ended{broken: true})
	}
}

// statusOf is the status of the response to a request that ended with an error.
func statusOf(err error) int {
	var failed caddyhttp.HandlerError
	if errors.As(err, &failed) && failed.StatusCode != 0 {
		return failed.StatusCode
	}
	return http.StatusInternalServerError
}

// left is how long the request may still wait for stores. There is no least time,
// as there is for a decision: what is not settled in time is settled a little later.
func (c *charges) left() time.Duration { return max(c.budget-c.waited, 0) }

// chargeAnew lets an error route that has the same limit charge the request again: what
// came back must not stand for what is done there.
func (c *charges) chargeAnew(zone *Zone) {
	for i := range c.zones {
		if z := &c.zones[i]; z.zone == zone {
			z.charged = false
		}
	}
}

// giveBack corrects what placeholders and headers tell of a zone.
func (c *charges) giveBack(zone *Zone, units int64) {
	if c.told.counted && c.told.zone == zone && c.told.outcome == outcomeGranted {
		c.told.remaining += units
	}
	for i := range c.zones {
		if z := &c.zones[i]; z.zone == zone && z.charged && z.counted {
			z.remaining += units
		}
	}
	if c.headers == nil {
		return
	}
	for i := range c.headers.zones {
		if z := &c.headers.zones[i]; z.name == zone.Name {
			z.remaining += units
		}
	}
}
