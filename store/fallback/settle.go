package fallback

import (
	"slices"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Reservation is what one request of a granted call was charged, wherever: at the
// store, in this process, or perhaps at the store if nobody knows that yet. It is
// kept until it is known how many of its units were spent, see [Guard.Settle]. The
// zero Reservation is nothing.
type Reservation struct {
	key    store.Key
	limit  int64
	units  int64
	exact  bool
	source store.Source
	charge store.Charge // at the store; zero if there is none, or it is not known yet
	late   *late        // how it becomes known
	index  int          // of the request in that call
	here   store.Charge // in the local counts
	told   *told        // what the store has been told of it
}

// Units is how many units were reserved; 0 of the zero Reservation.
func (r *Reservation) Units() int64 { return r.units }

// Settlement says how many of a reservation's units were spent after all.
type Settlement struct {
	Reservation Reservation
	// Spent is 0, to give everything back, to store.MaxEvents. What it exceeds the
	// reservation by is charged too.
	Spent int64
}

// Reservation is what the request with an index was charged when the call was
// decided. It does not depend on the call any more, which may be used again. It is
// zero if the call was not granted, and if nobody counted anything: by a policy that
// allows, unless the store may have counted it all the same.
func (c *Call) Reservation(i int) Reservation {
	request, d := &c.Requests[i], &c.Decisions[i]
	if request.Units == 0 || !c.Charged(i) || !c.Granted() {
		return Reservation{}
	}
	r := Reservation{
		key: request.Key, limit: request.Limit, units: request.Units, exact: request.Exact,
		source: d.Source, here: c.here[i],
	}
	r.here.Mark &^= unreportedMark
	if d.Source == store.FromStore || d.Source == store.FromLease {
		r.charge = d.Charge
	}
	if len(c.told) > 0 {
		r.told = c.told[i]
	}
	if len(c.fates) > 0 && c.fates[i] == store.FateUnknown {
		r.late, r.index = c.late, i
	}
	return r
}

// Settle settles reservations: units that were not spent are given back, each to the
// log that they came from, in the store and in this process; units beyond the
// reservation are charged at once, even beyond the limit. Zero reservations are
// passed over, whatever was spent of them.
//
// A reservation must be settled once at most, with the guard that decided its call or
// another one of its [State]: whoever settles twice gives other clients' units back.
// One that is never settled stands.
//
// It waits at most wait for the store, so that a client's next request finds the units
// back, on whatever instance. With a wait of 0 or less it only begins. What the store
// has certainly not heard by then it hears later: refunds and reports are repeated
// about a second later, and when a server is back. Nothing else is: what may have
// been executed is never sent again, so that units may stay spent until their window
// has passed. Nothing is given back after the store has lost data, or another server
// has taken over.
//
// It is safe for concurrent use.
func (g *Guard) Settle(wait time.Duration, settlements []Settlement) {
	var refunds []store.Refund
	var beyond []store.Request
	for i := range settlements {
		s := &settlements[i]
		switch r := &s.Reservation; {
		case r.units == 0 || s.Spent == r.units:
		case s.Spent < r.units:
			if refund, ok := g.giveBack(r, r.units-max(s.Spent, 0)); ok {
				refunds = append(refunds, refund)
			}
		case r.source != store.FromPolicy:
			beyond = addBeyond(beyond, r, s.Spent-r.units)
		}
	}
	if len(refunds) == 0 && len(beyond) == 0 {
		return
	}
	if !g.settings.Infallible {
		g.local.Observe(beyond, slices.Repeat(charged, len(beyond)))
	}
	if wait <= 0 {
		go g.settle(refundTime, refunds, beyond)
		return
	}
	g.settle(wait, refunds, beyond)
}

// charged is a decision about what is to be observed.
var charged = []store.Decision{{Granted: true, Charge: store.Charge{Mark: 1}}}

// addBeyond adds units to what is to be charged, where no key may occur twice.
func addBeyond(beyond []store.Request, r *Reservation, units int64) []store.Request {
	for i := range beyond {
		if b := &beyond[i]; b.Key == r.key {
			b.Units = min(b.Units+units, store.MaxEvents)
			return beyond
		}
	}
	return append(beyond, store.Request{Key: r.key, Limit: r.limit, Units: min(units, store.MaxEvents), Exact: r.exact})
}

// giveBack gives units back in this process, and returns the refund to be made at the
// store, if any is.
func (g *Guard) giveBack(r *Reservation, units int64) (refund store.Refund, ok bool) {
	if r.here.Charged() {
		g.local.Refund([]store.Refund{{Key: r.key, Charge: r.here, Units: units}})
	}
	switch {
	case r.charge.Charged():
		return store.Refund{Key: r.key, Charge: r.charge, Units: units, Source: r.source}, true
	case r.told != nil:
		return g.local.forget(r.key, r.told, units)
	case r.late != nil:
		return r.late.giveBack(r, units)
	}
	return store.Refund{}, false
}

// settle asks the store for what is to be settled there.
func (g *Guard) settle(wait time.Duration, refunds []store.Refund, beyond []store.Request) {
	began := time.Now()
	if len(beyond) > 0 {
		g.charge(wait, beyond)
	}
	if len(refunds) == 0 {
		return
	}
	now := time.Now()
	err := g.store.Refund(max(wait-now.Sub(began), 0), refunds)
	if err == nil || !asError(err).Unexecuted {
		return
	}
	for _, r := range refunds {
		// A lease in hand may have taken its units back.
		if r.Source == store.FromStore {
			g.local.owed.add(owedRefund{r, now.Add(r.Window)})
		}
	}
	g.payLater(payAgain)
}

// charge counts units at the store, whatever the limit: as spent without it a moment
// ago. If it certainly has not heard of them, they are unreported.
func (g *Guard) charge(wait time.Duration, requests []store.Request) {
	looks, decisions := slices.Clone(requests), make([]store.Decision, len(requests))
	for i := range looks {
		looks[i].Unreported = []store.Spent{{Units: looks[i].Units}}
		looks[i].Units = 0
	}
	stamp := g.local.now()
	err := g.store.Take(time.Now(), wait, looks, decisions)
	if err == nil {
		return
	}
	failure := asError(err)
	for i := range requests {
		if failure.Fate(i) == store.FateUnexecuted {
			g.local.add(&requests[i], stamp)
		}
	}
	g.payLater(payAgain)
}

// payAgain is how long it takes until the store is told again what it has certainly
// not heard.
const payAgain = time.Second

// payLater makes the refunds that wait for it, and reports what is unreported, after a
// while and in the background. While the store is away nothing is done: that is for
// when it is back.
func (s *State) payLater(after time.Duration) {
	if s.local.owed.count.Load() == 0 && s.local.Unreported() == 0 || s.paying.Swap(true) {
		return
	}
	time.AfterFunc(after, func() {
		s.paying.Store(false)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.away.Load() {
			s.flushLocked()
		}
	})
}

// pay makes the refunds that wait for it, until one of them fails.
func (u *unreported) pay(refund func(refunds []store.Refund) error) {
	for some := u.owed.take(); len(some) > 0; some = u.owed.take() {
		refunds := make([]store.Refund, len(some))
		for i := range some {
			refunds[i] = some[i].Refund
		}
		if err := refund(refunds); err != nil {
			if asError(err).Unexecuted {
				u.owed.add(some...)
			}
			return
		}
	}
}

// late is a call that was granted here, and of which nobody knows yet how it ends at
// the store. It is safe for concurrent use.
type late struct {
	mu        sync.Mutex
	known     bool
	decisions []store.Decision
	back      []lateRefund // what was given back before
}

type lateRefund struct {
	key   store.Key
	index int
	units int64
}

// await returns what will become of a call. Nothing is kept of it unless units are
// given back.
func (g *Guard) await(pending *store.Pending) *late {
	l := new(late)
	pending.Then(func(decisions []store.Decision) {
		l.mu.Lock()
		l.known, l.decisions = true, decisions
		back := l.back
		l.back = nil
		l.mu.Unlock()
		var refunds []store.Refund
		for i := range back {
			if refund, ok := back[i].refund(decisions); ok {
				refunds = append(refunds, refund)
			}
		}
		if len(refunds) > 0 {
			go g.settle(refundTime, refunds, nil) // others wait for this goroutine
		}
	})
	return l
}

// giveBack returns the refund of units, if the store turned out to have charged them,
// or sees to it that they are refunded when it does.
func (l *late) giveBack(r *Reservation, units int64) (store.Refund, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	back := lateRefund{r.key, r.index, units}
	if l.known {
		return back.refund(l.decisions)
	}
	l.back = append(l.back, back)
	return store.Refund{}, false
}

func (b *lateRefund) refund(decisions []store.Decision) (store.Refund, bool) {
	if b.index >= len(decisions) || !decisions[b.index].Charged() {
		return store.Refund{}, false
	}
	return store.Refund{Key: b.key, Charge: decisions[b.index].Charge, Units: b.units}, true
}
