package distributedratelimit

import (
	"context"
	"slices"
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
	charged []chargedLog
	told    placeholders
	headers *headerWriter // set by the first handler that sends headers always

	key string        // the last one, see text
	few [2]chargedLog // room for what most requests are charged for
}

// chargedLog is a log that the request was charged to, or may have been.
type chargedLog struct {
	limit  *Zone // that stands for the zones of one limit, see App.registerZone
	client string
}

const chargesVar = "distributed_ratelimit.charges"

// chargesOf returns the charges of the request, which begin at the first
// handler. They live in the request's variables, which error routes see too.
func chargesOf(ctx context.Context, vars map[string]any) *charges {
	if c, ok := vars[chargesVar].(*charges); ok {
		return c
	}
	c := &charges{repl: ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)}
	c.charged = c.few[:0]
	vars[chargesVar] = c
	c.repl.Map(c.placeholder)
	return c
}

// add records that the request was charged to a log, or may have been.
func (c *charges) add(limit *Zone, client string) {
	c.charged = append(c.charged, chargedLog{limit, client})
}

// has reports whether an earlier handler has charged the request to a log: a
// limit that is met twice counts once.
func (c *charges) has(limit *Zone, client string) bool {
	return slices.Contains(c.charged, chargedLog{limit, client})
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
