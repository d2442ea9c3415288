package lease

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// refusalTime is how long a refusal is remembered at most.
const refusalTime = time.Second

// refusal is what the store said to requests that did not fit. Requests for
// more do not fit either, but have to wait longer.
type refusal struct {
	need    int64         // least that was refused, 0 if nothing is remembered
	until   moment        // need is refused for sure
	retryAt time.Duration // mono, when need fits if nobody asks meanwhile
	most    int64         // most that was refused
	mostAt  time.Duration // mono, when that fits
	// renewAt is when one request asks the store again, while others are
	// still refused from memory: else all that come at its end would ask.
	// It is for a memory that ends though the wait goes on.
	renewAt time.Duration // mono
	blocked bool          // by a ban, which refuses Exact requests too
}

// refuses decides by a remembered refusal. Units of a lease come first: a key that
// has some has not been refused since.
func (k *leaseKey) refuses(request *store.Request, decision *store.Decision, now moment) bool {
	r := &k.refusal
	if r.need == 0 || request.Exact && !r.blocked || request.Units < r.need || request.Units > r.most || k.limit != request.Limit || !now.before(r.until) ||
		!k.first.empty() || !k.second.empty() || now.mono >= r.renewAt {
		return false
	}
	*decision = store.Decision{Remaining: k.remaining, Reset: max(k.resetAt-now.mono, 0), Source: store.FromCache, Blocked: r.blocked}
	switch {
	case request.Units > request.Limit:
		decision.RetryAfter = request.Window
	case request.Units > r.need:
		// Long enough, if perhaps longer than it need be.
		decision.RetryAfter = r.mostAt - now.mono
	default:
		decision.RetryAfter = r.retryAt - now.mono
	}
	return true
}

// remember takes in a refusal by the store, which decided at some moment
// between sent and now: what is remembered ends early rather than late, and
// the wait that clients are told is long enough rather than too short.
func (k *leaseKey) remember(request *store.Request, reply *store.Decision, sent, now moment) {
	r := &k.refusal
	retryAt, until := now.mono+reply.RetryAfter, sent.add(min(reply.RetryAfter, refusalTime))
	if !now.before(until) {
		return // too late to be of use, and perhaps older than what is remembered
	}
	if r.need > 0 && request.Units > r.need && now.before(r.until) {
		if request.Units > r.most {
			r.most, r.mostAt = request.Units, retryAt
		}
		return
	}
	*r = refusal{
		need: request.Units, until: until, retryAt: retryAt,
		most: request.Units, mostAt: retryAt,
		blocked: reply.Blocked,
	}
	r.renewAt = r.until.mono
	if reply.RetryAfter > refusalTime {
		r.renewAt -= refusalTime / 8
	}
}
