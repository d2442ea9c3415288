package distributedratelimit

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// passage is a request's way through the handlers of this module: what they
// have charged it for, and what placeholders say about it. It belongs to the
// goroutine of the request.
type charges struct {
	repl    *caddy.Replacer
	client  ipident.Result
	refused bool          // by a limit; no handler charges it any more
	budget  time.Duration // the largest of the handlers that it met
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

// chargesOf returns the passage of the request, and begins it at the first
// handler. It lives in the request's variables, which error routes see too.
func chargesOf(r *http.Request) *charges {
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if p, ok := vars[chargesVar].(*charges); ok {
		return p
	}
	p := &charges{repl: r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)}
	vars[chargesVar] = p
	p.repl.Map(p.placeholder)
	return p
}

// note takes note that the request was charged to a log, or may have been.
func (p *charges) note(data string, key *store.Key) {
	p.charged = append(p.charged, chargedLog{data, *key})
}

// has reports whether the request was charged to a log already, by a handler that
// it passed before: a limit that is met twice counts once.
func (p *charges) has(data string, key *store.Key) bool {
	return slices.Contains(p.charged, chargedLog{data, *key})
}

// rest is how long the request may still wait for a store, in a handler with
// this budget: however many handlers there are, they hold it up for one budget
// together, the largest. What is less than half of the handler's is not worth a
// call: the call would most likely be late, and the store would be blamed for it.
func (p *charges) rest(budget time.Duration) time.Duration {
	p.budget = max(p.budget, budget)
	if rest := min(budget, p.budget-p.waited); rest >= budget/2 {
		return rest
	}
	return 0
}

// placeholders is what the last handler has to tell about the request.
type placeholders struct {
	outcome    outcome
	zone       string
	counted    bool
	limit      int64
	remaining  int64
	reset      int64 // s
	retryAfter int64 // s, 0 if not refused
	source     store.Source
}

const placeholderPrefix = "http.distributed_ratelimit."

// publish takes over what placeholders tell from a decision. They are about
// the request, not about the handler that it met last: one that has nothing
// to say leaves what an earlier one said, and one that grants leaves a
// refusal, a dry run's, or a zone that is nearer to its limit.
func (p *charges) publish(d *evaluation) {
	shown := d.shown()
	if shown == nil {
		if len(d.exempt) > 0 && p.told.outcome == outcomeNone {
			p.told = placeholders{outcome: outcomeExempt, zone: d.exempt[0].Name, source: store.FromPolicy}
		}
		return
	}
	told := placeholders{
		outcome: outcomeGranted, zone: shown.zone.Name, source: shown.Source,
		counted: shown.counted, limit: shown.zone.limit, remaining: shown.Remaining, reset: wholeSeconds(shown.Reset),
	}
	switch {
	case !d.passes():
		told.outcome = outcomeRefused
		told.retryAfter = wholeSeconds(shown.RetryAfter)
	case !shown.Granted:
		told.outcome = outcomeDryRun
	}
	switch p.told.outcome {
	case outcomeRefused:
		if told.outcome != outcomeRefused {
			return
		}
	case outcomeDryRun:
		if told.outcome == outcomeGranted {
			return
		}
	case outcomeGranted:
		if told.outcome == outcomeGranted && p.told.share() <= told.share() {
			return
		}
	}
	p.told = told
}

// tooEarly is what is told of a request that a zone refuses for its early data,
// whatever earlier handlers granted.
func (p *charges) tooEarly(zone *Zone) {
	p.told = placeholders{outcome: outcomeRefused, zone: zone.Name, source: store.FromPolicy}
	p.forgetHeaders()
}

// share is what is left of the limit, as that of a verdict.
func (t *placeholders) share() float64 { return share(t.counted, t.remaining, t.limit) }

// placeholder is the replacer's view of the passage.
func (p *charges) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, placeholderPrefix)
	if !ok {
		return nil, false
	}
	told := &p.told
	none := told.outcome == outcomeNone
	switch name {
	case "client_ip":
		return p.client.String(), true
	case "outcome":
		return told.outcome.String(), true
	case "zone":
		return told.zone, true
	case "limit":
		return numberIf(told.counted, told.limit), true
	case "remaining":
		return numberIf(told.counted, told.remaining), true
	case "reset":
		return numberIf(told.counted, told.reset), true
	case "retry_after":
		return numberIf(told.retryAfter > 0, told.retryAfter), true
	case "source":
		if none {
			return "", true
		}
		return told.source.String(), true
	}
	return nil, false
}

func numberIf(known bool, n int64) any {
	if !known {
		return ""
	}
	return n
}

// wholeSeconds rounds up to seconds.
func wholeSeconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}
