package distributedratelimit

import (
	"context"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// charges is what the handlers of this module have charged one HTTP request
// for, and what placeholders and headers tell about it. It belongs to the
// goroutine of the request.
//
// Charges are not used again for another request: placeholders and variables
// refer to them, and may be read long after the handlers, such as by the access
// log.
type charges struct {
	repl    *caddy.Replacer
	client  ipident.Result
	refused bool          // by a limit; later handlers charge nothing
	budget  time.Duration // the largest of the handlers so far
	waited  time.Duration // for stores
	at      int64         // when a store was first to decide, in microseconds since the epoch; 0 for never
	zones   []zoneRecord
	told    placeholders
	headers *headerWriter // set by the first handler that sends headers always

	key string        // the last one, see text
	few [2]zoneRecord // room for the zones of most requests
}

// zoneRecord is what one zone has decided about the request.
type zoneRecord struct {
	zone             *Zone
	client           string // that the log is of
	limit, remaining int64
	reset            int32 // s
	reason           reason
	counted          bool // there are numbers
	charged          bool // or may have been
}

const chargesVar = "distributed_ratelimit.charges"

// chargesOf returns the charges of the request, which begin at the first
// handler. They live in the request's variables, which error routes see too.
func chargesOf(ctx context.Context, vars map[string]any) *charges {
	if c, ok := vars[chargesVar].(*charges); ok {
		return c
	}
	c := &charges{repl: ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)}
	c.zones = c.few[:0]
	vars[chargesVar] = c
	c.repl.Map(c.placeholder)
	c.annotate(ctx)
	return c
}

// record adds what a zone has decided.
func (c *charges) record(v *verdict) {
	c.zones = append(c.zones, zoneRecord{
		zone: v.zone, client: v.client, limit: v.limit, remaining: v.Remaining,
		reset: int32(wholeSeconds(v.Reset)), reason: v.reason, counted: v.counted, charged: v.charged,
	})
}

// has reports whether an earlier handler has charged the request to a log, or may
// have: a limit that is met twice counts once. limit stands for the zones of one
// limit, see App.registerZone.
func (c *charges) has(limit *Zone, client string) bool {
	for i := range c.zones {
		if z := &c.zones[i]; z.charged && z.zone.same == limit && z.client == client {
			return true
		}
	}
	return false
}

// of returns what a zone of this name has decided, nil if none did: the last
// decision, but a zone in force comes before a dry run, and a refusal before a grant.
func (c *charges) of(name string) *zoneRecord {
	var found *zoneRecord
	for i := range c.zones {
		z := &c.zones[i]
		switch {
		case z.zone.Name != name:
		case found == nil,
			!z.zone.DryRun && found.zone.DryRun,
			z.zone.DryRun == found.zone.DryRun && (z.reason != reasonNone || found.reason == reasonNone):
			found = z
		}
	}
	return found
}

// text returns a key as a string. Several zones often have the same key. The
// string has memory of its own: layers of a store keep it, for a hot client as long
// as its leases go on, and as a part of the charges it would hold the whole request.
func (c *charges) text(key []byte) string {
	if string(key) != c.key {
		c.key = string(key)
	}
	return c.key
}

// rest is how long the request may still wait for a store, in a handler with
// this budget. All handlers together may hold it up for one budget, the largest.
// Less than half of the handler's budget is not worth a call: the call would
// most likely be late, and the store would be blamed for it.
func (c *charges) rest(budget time.Duration) time.Duration {
	c.budget = max(c.budget, budget)
	if rest := min(budget, c.budget-c.waited); rest >= budget/2 {
		return rest
	}
	return 0
}
