// Package fallback answers one question: what if the store fails? A [Guard]
// stands around a store and always decides: by what the store says, by what this
// process knows ([Local]), or by the operator's policy.
//
// # What it promises
//
// A call is granted and charged as a whole, or refused and charged nowhere,
// whoever decides. Units that were granted without the store are reported to it,
// once, unless it may know of them. What a call of unknown fate turns out to
// have charged stands if the call was granted here, and is refunded if not.
//
// # What it does not promise
//
// While a store is away nobody knows what other processes grant. Local states
// the bound of what they can grant together; a policy that allows has none.
package fallback

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Policy is what is done about a request that the store does not decide.
type Policy uint8

const (
	Decide Policy = iota // decide it here, by this process's share of the limit
	Allow                // grant it, and count it nowhere
	Deny                 // deny the whole call
)

// refundTime is how long a refund of what nobody waits for may take.
const refundTime = 100 * time.Millisecond

// Call is what a guard decides at once. It may be decided again; the zero Call is
// ready. A Call is not safe for concurrent use.
type Call struct {
	// Requests are the requests of a call to a store, with a policy for each.
	Requests []store.Request
	Policies []Policy

	// Decisions are set by Decide. If one is FromPolicy, it holds no numbers.
	Decisions []store.Decision
	// Denied: a policy denies the call, because the store is away. Then no
	// decision but that of such a policy is of any account.
	Denied bool
	// Waited is how long the store was waited for, 0 if it was not asked.
	Waited time.Duration

	fates []store.Fate   // of the requests, if the store failed
	held  []store.Refund // what Local charged before the store was asked
	here  []store.Charge // what each request was charged in the local counts
	told  []*told        // what the store will have been told of each of them, if anything is unreported
	late  *late          // how the call ends at the store, if that may become known
	// What is decided apart from the rest, see apart.
	index []int
	few   []store.Request
	said  []store.Decision
}

// Reset makes the call one of no requests.
func (c *Call) Reset() {
	// They hold clients' names, some of them behind the present end.
	clear(c.Requests[:cap(c.Requests)])
	clear(c.held[:cap(c.held)])
	clear(c.few[:cap(c.few)])
	c.Requests, c.Policies = c.Requests[:0], c.Policies[:0]
	c.begin()
}

// begin forgets what became of the call, and makes room for decisions.
func (c *Call) begin() {
	c.Decisions = room(c.Decisions, len(c.Requests))
	c.here = slices.Grow(c.here[:0], len(c.Requests))[:len(c.Requests)]
	clear(c.here)
	clear(c.told)
	c.fates, c.held, c.told, c.late, c.Denied, c.Waited = c.fates[:0], c.held[:0], c.told[:0], nil, false, 0
}

// room returns so many zero decisions, in the memory of others.
func room(decisions []store.Decision, n int) []store.Decision {
	decisions = slices.Grow(decisions[:0], n)[:n]
	clear(decisions)
	return decisions
}

// Granted reports whether the call is granted.
func (c *Call) Granted() bool { return !c.Denied && store.Granted(c.Requests, c.Decisions) }

// Charged reports whether the request with an index was charged, or may have
// been.
func (c *Call) Charged(i int) bool {
	return c.Decisions[i].Charged() || len(c.fates) > 0 && c.fates[i] == store.FateUnknown
}

// Guard decides calls by a store, and without it. It is safe for concurrent use,
// and made by [State.Guard].
type Guard struct {
	*State
	store    store.Store
	shared   store.Shared // nil if the store does not tell how it fares
	settings Settings
	observer Observer
	unwatch  func()
	inTouch  atomic.Bool // a server of the store has answered

	// Guarded by the mutex of the state.
	started bool
	reports map[string]store.Report // the last one of each server
}

// BeCautious is [Settings.Cautious], for what is not known yet when the guard is made.
// It must be called before the first Decide.
func (g *Guard) BeCautious() { g.settings.Cautious = true }

// Decide decides a call. now is a reading of the clock that was just made, and
// wait how long the store may be waited for, 0 not at all.
func (g *Guard) Decide(now time.Time, wait time.Duration, c *Call) {
	c.begin()
	if g.settings.Cautious && !g.consents(now, c) {
		return
	}
	// Without time to wait only this process can decide; a lease does so only
	// for requests that report nothing.
	reporting := wait > 0 && g.local.BeginReport(c.Requests)
	err := g.store.Take(now, wait, c.Requests, c.Decisions)
	if reporting {
		g.local.EndReport(c.Requests, c.Decisions, err)
		if g.local.owed.count.Load() > 0 {
			g.payLater(0) // it was given back meanwhile
		}
	}
	if err != nil || c.fromStore() {
		c.Waited = time.Since(now)
		g.called(c.Waited, err)
	} // else it was decided in this process, which says nothing about the store
	if len(c.held) > 0 && (err != nil || !c.Granted()) {
		g.local.Refund(c.held)
		c.held = c.held[:0]
		clear(c.here)
	}
	switch {
	case err != nil:
		g.withoutStore(c, err)
	case !g.settings.Infallible:
		g.observe(c)
	}
}

// fromStore reports whether the store decided something.
func (c *Call) fromStore() bool {
	for i := range c.Decisions {
		if d := &c.Decisions[i]; d.Source == store.FromStore && !d.Skipped {
			return true
		}
	}
	return false
}

// observe keeps the local counts warm with what the store granted, but for what
// they have charged already.
func (g *Guard) observe(c *Call) {
	if len(c.held) == 0 {
		g.local.observe(c.Requests, c.Decisions, c.here)
		return
	}
	for i := range c.Requests {
		if !c.here[i].Charged() {
			g.local.observe(c.Requests[i:i+1], c.Decisions[i:i+1], c.here[i:i+1])
		}
	}
}

// apart collects some of the requests, to be decided by themselves.
func (c *Call) apart(which func(i int) bool) []store.Request {
	c.index, c.few = c.index[:0], c.few[:0]
	for i := range c.Requests {
		if which(i) {
			c.index, c.few = append(c.index, i), append(c.few, c.Requests[i])
		}
	}
	c.said = room(c.said, len(c.few))
	return c.few
}

// adopt makes what was decided apart the decisions of the call.
func (c *Call) adopt() {
	for i, at := range c.index {
		c.Decisions[at] = c.said[i]
	}
}

// consents asks the local counts before the store is asked, about the limits of
// which the store may have lost counts in their present window: each instance then
// holds its clients to its share of them. It reports whether the store is to be
// asked at all; if not, this is the decision. Shadow requests are left to the
// store: they refuse nobody. So is everything while the store is away: the
// policies decide then, and one that denies says so.
func (g *Guard) consents(now time.Time, c *Call) bool {
	lost := g.lost.Load()
	if lost == nil || g.away.Load() {
		return true
	}
	few := c.apart(func(i int) bool { return now.Sub(*lost) < c.Requests[i].Window && !c.Requests[i].Shadow })
	if len(few) == 0 {
		return true
	}
	g.takeHere(few, c.said, nil, nil)
	if !store.Granted(few, c.said) {
		for i := range c.Decisions {
			c.Decisions[i].Skipped = true
		}
		c.adopt()
		return false
	}
	for i, at := range c.index {
		c.held = append(c.held, refundOf(&few[i], &c.said[i]))
		c.here[at] = c.said[i].Charge
	}
	return true
}

// takeHere lets this process decide.
func (g *Guard) takeHere(requests []store.Request, decisions []store.Decision, fates []store.Fate, noted func(i int, t *told)) {
	if err := g.local.take(requests, decisions, g.Instances(), fates, noted); err != nil {
		panic(err) // no store would take such requests
	}
}

// withoutStore decides by the policies what the store has not decided.
func (g *Guard) withoutStore(c *Call, err error) {
	failure := asError(err)
	c.fates = c.fates[:0]
	refused := false
	for i := range c.Requests {
		fate, d := failure.Fate(i), &c.Decisions[i]
		c.fates = append(c.fates, fate)
		switch policy := c.Policies[i]; {
		case fate == store.FateDecided:
			// One server of the store has decided this, and others are away.
			refused = refused || !d.Granted && !c.Requests[i].Shadow
		case policy == Allow:
			g.allowed.Store(time.Now().UnixNano())
			*d = store.Decision{Granted: true, Source: store.FromPolicy}
		case policy == Deny:
			*d = store.Decision{Source: store.FromPolicy}
			c.Denied = c.Denied || !c.Requests[i].Shadow
		default:
			*d = store.Decision{Skipped: true}
		}
	}
	if refused {
		// The store refunds what it has charged, and nothing is charged here.
		c.Denied = false
		g.observeDecided(c)
		c.skip(func(i int) bool { return c.fates[i] != store.FateDecided })
		return
	}
	if !c.Denied {
		g.decideHere(c)
	} else {
		c.skip(func(i int) bool { return c.Decisions[i].Source != store.FromPolicy || c.Policies[i] == Allow })
	}
	if !c.Granted() {
		g.refundPending(c, failure.Pending)
		c.uncharge()
		return
	}
	g.observeDecided(c)
	if failure.Pending != nil {
		c.late = g.await(failure.Pending)
	}
}

// observeDecided keeps the local counts warm with what the store has decided of a call
// that failed.
func (g *Guard) observeDecided(c *Call) {
	for i := range c.Requests {
		if c.fates[i] == store.FateDecided {
			g.local.observe(c.Requests[i:i+1], c.Decisions[i:i+1], c.here[i:i+1])
		}
	}
}

// skip makes some of the decisions Skipped.
func (c *Call) skip(which func(i int) bool) {
	for i := range c.Decisions {
		if which(i) {
			c.Decisions[i] = store.Decision{Skipped: true}
		}
	}
}

// decideHere decides what policies leave to this process. What the store has
// certainly not executed is reported to it later.
func (g *Guard) decideHere(c *Call) {
	few := c.apart(func(i int) bool { return c.fates[i] != store.FateDecided && c.Policies[i] == Decide })
	if len(few) == 0 {
		return
	}
	g.decided.Store(time.Now().UnixNano())
	fates := make([]store.Fate, len(few))
	for i, at := range c.index {
		fates[i] = c.fates[at]
	}
	c.told = append(c.told, make([]*told, len(c.Requests))...)
	g.takeHere(few, c.said, fates, func(i int, t *told) { c.told[c.index[i]] = t })
	c.adopt()
	for _, at := range c.index {
		c.here[at] = c.Decisions[at].Charge
	}
}

// refundPending refunds what the call has charged, when that is known: the call was
// refused.
func (g *Guard) refundPending(c *Call, pending *store.Pending) {
	if pending == nil {
		return
	}
	requests := slices.Clone(c.Requests) // the call is used again
	pending.Then(func(decisions []store.Decision) {
		var refunds []store.Refund
		for i := range min(len(requests), len(decisions)) {
			if decisions[i].Charged() {
				refunds = append(refunds, refundOf(&requests[i], &decisions[i]))
			}
		}
		if len(refunds) > 0 {
			// Others wait for this goroutine. A failure leaves the units
			// spent until their window has passed.
			go func() { _ = g.store.Refund(refundTime, refunds) }()
		}
	})
}

// uncharge makes decisions of the store what they are after their refund.
func (c *Call) uncharge() {
	for i := range c.Decisions {
		if d := &c.Decisions[i]; d.Charged() {
			d.Remaining += c.Requests[i].Units + d.Lease
			d.Lease, d.Charge = 0, store.Charge{}
		}
	}
}

func refundOf(request *store.Request, decision *store.Decision) store.Refund {
	return store.Refund{
		Key: request.Key, Charge: decision.Charge, Units: request.Units + decision.Lease, Source: decision.Source,
	}
}

// Instances is how many processes share the limits, as far as is known: at least
// 1.
func (g *Guard) Instances() int {
	if g.shared == nil {
		return 1
	}
	n := g.shared.Instances()
	if !g.inTouch.Load() {
		// The store before a reload or a restart knew better.
		n = max(n, int(g.instances.Load()))
	}
	return max(1, n)
}
