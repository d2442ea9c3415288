package lease

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// leaseKey is what a process knows of a key: its leases, its demand, and what
// the store said last.
type leaseKey struct {
	limit     int64 // that the rest is about
	first     batch // ends first, and is spent first
	second    batch
	refilling bool          // a lease has been asked for; the key stays
	watched   bool          // a timer waits for the end of a lease; the key stays
	refillAt  time.Duration // mono; no lease is asked for before: the last call for one failed
	leases    bool          // the store was near enough when one was asked for last
	demand    demand

	// As of the store's last answer:
	remaining int64         // of the limit, with leases counted as spent
	resetAt   time.Duration // mono, when all of the limit is free again

	refusal refusal
	roomAt  time.Duration // mono, when units were given back last
	used    time.Duration // mono, when it was last asked of the store
}

// batch is the units of one lease. They leave it to be spent, or to be given
// back; each once. An empty batch is the zero batch.
type batch struct {
	units int64
	store.Charge
	end moment
}

func (b *batch) empty() bool { return b.units == 0 }

// is reports whether two batches are of one lease.
func (b *batch) is(of *batch) bool {
	return b.Charge == of.Charge && b.end == of.end
}

func (b *batch) refund(key store.Key) store.Refund {
	return store.Refund{Key: key, Charge: b.Charge, Units: b.units}
}

// holding is units that were taken out of leases, for a request or to be
// given back, of each lease of a key at most once.
type holding [2]batch

// add moves units of a lease into the holding.
func (h *holding) add(b *batch, units int64) {
	part := &h[0]
	if !part.empty() {
		part = &h[1]
	}
	*part = *b
	part.units = units
	b.units -= units
}

// decide answers an ask from a lease or from a remembered refusal, if it can.
func (k *leaseKey) decide(a *store.Request, decision *store.Decision, now moment) bool {
	if k.limit != a.Limit {
		return false
	}
	b := &k.first
	if b.units < a.Units || !now.before(b.end) {
		return k.refuses(a, decision, now)
	}
	charge := b.Charge
	b.units -= a.Units
	k.tidy()
	k.demand.add(a.Window, a.Units, now)
	*decision = k.granted(a, now)
	decision.Source, decision.Charge = store.FromLease, charge
	return true
}

// granted is the answer to an ask that is granted, as far as the key knows.
// What is left of its leases remains for its clients too.
func (k *leaseKey) granted(a *store.Request, now moment) store.Decision {
	return store.Decision{
		Granted:   true,
		Remaining: min(k.remaining+k.first.units+k.second.units, a.Limit),
		Reset:     max(k.resetAt-now.mono, 0),
	}
}

// tidy keeps the leases in order.
func (k *leaseKey) tidy() {
	if k.second.empty() {
		k.second = batch{}
	}
	if k.first.empty() || !k.second.empty() && k.second.end.mono < k.first.end.mono {
		k.first, k.second = k.second, k.first
	}
	if k.second.empty() {
		k.second = batch{}
	}
}

// restore puts units into the lease that they are of, which may have been
// used up meanwhile. It reports false if the lease has ended, or there is no
// room for it.
func (k *leaseKey) restore(b *batch, now moment) bool {
	if !now.before(b.end) {
		return false
	}
	for _, lease := range [...]*batch{&k.first, &k.second} {
		if !lease.empty() && lease.is(b) {
			lease.units += b.units
			return true
		}
	}
	if !k.second.empty() {
		return false
	}
	k.second = *b
	k.tidy()
	return true
}

// takeBack puts units of a grant from a lease back into it, if it has not
// ended. A lease is known by its stamp here. The store may have given two the
// same one: then it does not matter which of them gets the units, since they
// count until the same moment.
func (k *leaseKey) rejoin(g *store.Refund, now moment) bool {
	for _, b := range [...]*batch{&k.first, &k.second} {
		if !b.empty() && b.Charge == g.Charge && now.before(b.end) {
			b.units += g.Units
			return true
		}
	}
	return false
}

// ended takes leases that have ended out of the key.
func (k *leaseKey) ended(now moment) (left holding) {
	for _, b := range [...]*batch{&k.first, &k.second} {
		if !b.empty() && !now.before(b.end) {
			left.add(b, b.units)
		}
	}
	k.tidy()
	return left
}

// idle reports whether the key may be given up.
func (k *leaseKey) idle(now moment) bool {
	return k.first.empty() && k.second.empty() && !k.refilling && !k.watched && !now.before(k.refusal.until)
}

// is makes the key be about a limit, and reports whether it is: a lease under
// another limit must end first.
func (k *leaseKey) is(limit int64) bool {
	if k.limit != limit && k.first.empty() && k.second.empty() {
		k.limit, k.remaining, k.refusal = limit, 0, refusal{}
	}
	return k.limit == limit
}

// refusal is what the store said to requests that did not fit. Requests for
// more do not fit either, but have to wait longer.
type refusal struct {
	need    int64         // least that was refused, 0 if nothing is remembered
	until   moment        // need is refused for sure
	retryAt time.Duration // mono, when need fits if nobody asks meanwhile
	most    int64         // most that was refused
	mostAt  time.Duration // mono, when that fits
	// renewAt is when one request asks the store again, while others are
	// still answered from memory: else all that come at its end would ask.
	// That is for a memory which ends though the wait goes on.
	renewAt time.Duration // mono
}

// refuses answers from a remembered refusal. Units of a lease come first: a
// key that has some has not been refused since.
func (k *leaseKey) refuses(a *store.Request, decision *store.Decision, now moment) bool {
	r := &k.refusal
	if r.need == 0 || a.Units < r.need || a.Units > r.most || k.limit != a.Limit || !now.before(r.until) ||
		!k.first.empty() || !k.second.empty() || now.mono >= r.renewAt {
		return false
	}
	*decision = store.Decision{Remaining: k.remaining, Reset: max(k.resetAt-now.mono, 0), Source: store.FromCache}
	switch {
	case a.Units > a.Limit:
		decision.RetryAfter = a.Window
	case a.Units > r.need:
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
func (k *leaseKey) remember(a *store.Request, reply *store.Decision, sent, now moment) {
	r := &k.refusal
	retryAt, until := now.mono+reply.RetryAfter, sent.add(min(reply.RetryAfter, refusalTime))
	if !now.before(until) {
		return // too late to be of use, and perhaps older than what is remembered
	}
	if r.need > 0 && a.Units > r.need && now.before(r.until) {
		if a.Units > r.most {
			r.most, r.mostAt = a.Units, retryAt
		}
		return
	}
	*r = refusal{
		need: a.Units, until: until, retryAt: retryAt,
		most: a.Units, mostAt: retryAt,
	}
	r.renewAt = r.until.mono
	if reply.RetryAfter > refusalTime {
		r.renewAt -= refusalTime / 8
	}
}

// demandParts is into how many parts the last span of a lease is divided to
// count what was spent in it: never more than was, and less by at most one
// part's share.
const demandParts = 8

// demand counts the units spent here in the last span of a lease.
type demand struct {
	now   int64 // number of the current part
	spent [demandParts]int64
}

// add counts units; given back ones are negative.
func (d *demand) add(window time.Duration, units int64, now moment) {
	d.advance(leaseSpan(window), now)
	d.spent[d.now%demandParts] += units
}

func (d *demand) advance(span time.Duration, now moment) {
	part := int64(now.mono / (span / demandParts))
	if part-d.now >= demandParts {
		clear(d.spent[:])
		d.now = part
		return
	}
	// A caller that has waited for the lock may be a little behind.
	for d.now < part {
		d.now++
		d.spent[d.now%demandParts] = 0
	}
}

// last is how many units were spent in the last span.
func (d *demand) last(span time.Duration, now moment) int64 {
	d.advance(span, now)
	sum := int64(0)
	for _, n := range d.spent {
		sum += n
	}
	return sum
}
