package distributedratelimit

import (
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// charges is what the handlers of this module have charged one HTTP request
// for, and what placeholders and headers tell about it. It belongs to the
// goroutine of the request.
type charges struct {
	repl    *caddy.Replacer
	client  ipident.Result
	refused bool          // by a limit; later handlers charge nothing
	budget  time.Duration // the largest of the handlers so far
	waited  time.Duration // for stores
	charged []chargedLog
	told    placeholders
	headers *headerWriter // set by the first handler that sends headers always
}

// chargedLog is a log that the request was charged to, or may have been.
type chargedLog struct {
	data string // name of the store's data, which outlives a store's failure
	key  store.Key
}

const chargesVar = "distributed_ratelimit.charges"

// chargesOf returns the charges of the request, which begin at the first
// handler. They live in the request's variables, which error routes see too.
func chargesOf(r *http.Request) *charges {
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if c, ok := vars[chargesVar].(*charges); ok {
		return c
	}
	c := &charges{repl: r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)}
	vars[chargesVar] = c
	c.repl.Map(c.placeholder)
	return c
}

// add records that the request was charged to a log, or may have been.
func (c *charges) add(data string, key *store.Key) {
	c.charged = append(c.charged, chargedLog{data, *key})
}

// has reports whether an earlier handler has charged the request to a log: a
// limit that is met twice counts once.
func (c *charges) has(data string, key *store.Key) bool {
	return slices.Contains(c.charged, chargedLog{data, *key})
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
