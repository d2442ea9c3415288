package lease

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// leaseKey is what a process knows of a key: its leases, its demand, and what
// the store said last.
type leaseKey struct {
	key       store.Key
	hash      uint64 // of key
	at        int    // in the shard's ring
	limit     int64  // that the rest is about
	first     batch  // ends first, and is spent first
	second    batch
	refilling bool          // a lease has been asked for; the key stays
	timer     *time.Timer   // waits for the end of a lease, if not nil; the key stays
	watched   time.Duration // mono; the end that it waits for
	refillAt  time.Duration // mono; no lease is asked for before: the last call for one failed
	metAt     time.Duration // mono
	calmSince time.Duration // mono, when the key was met, or fitted again after its last refusal
	leases    bool          // the store was near enough when one was asked for last
	demand    demand

	// As of the store's last decision:
	remaining int64         // of the limit, with leases counted as spent
	resetAt   time.Duration // mono, when all of the limit is free again

	refusal   refusal
	roomAt    time.Duration // mono, when units were refunded last
	amendedAt time.Duration // mono, when the key was last changed by hand here
	used      time.Duration // mono, when it was last asked of the store
}

// batch is the units of one lease. They leave it to be spent, or to be refunded;
// each once. An empty batch is the zero batch.
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
// refunded, of each lease of a key at most once.
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

func (h *holding) units() int64 { return h[0].units + h[1].units }

// decide decides a request from a lease or from a remembered refusal, if it can.
func (k *leaseKey) decide(request *store.Request, decision *store.Decision, now moment) bool {
	if k.limit != request.Limit {
		return false
	}
	b := &k.first
	if request.Exact || b.units < request.Units || !now.before(b.end) {
		return k.refuses(request, decision, now)
	}
	charge := b.Charge
	b.units -= request.Units
	k.tidy()
	k.demand.add(request.Window, request.Units, now)
	*decision = k.granted(request, now)
	decision.Source, decision.Charge = store.FromLease, charge
	return true
}

// granted is the decision on a request that is granted, as far as the key knows.
// What is left of its leases remains for its clients too.
func (k *leaseKey) granted(request *store.Request, now moment) store.Decision {
	return store.Decision{
		Granted:   true,
		Remaining: min(k.remaining+k.first.units+k.second.units, request.Limit),
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

// restore puts units into the lease that they belong to, which may have been used
// up meanwhile. It reports false if the lease has ended, or there is no room for
// it.
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

// restoreRefund restores units that were spent from a lease, if it has not ended.
// A lease is known by its charge here. The store may have given two the same one:
// then it does not matter which of them gets the units, since they count until the
// same moment.
func (k *leaseKey) restoreRefund(refund *store.Refund, now moment) bool {
	for _, b := range [...]*batch{&k.first, &k.second} {
		if !b.empty() && b.Charge == refund.Charge && now.before(b.end) {
			b.units += refund.Units
			return true
		}
	}
	return false
}

// takeEnded takes leases that have ended out of the key.
func (k *leaseKey) takeEnded(now moment) (left holding) {
	for _, b := range [...]*batch{&k.first, &k.second} {
		if !b.empty() && !now.before(b.end) {
			left.add(b, b.units)
		}
	}
	k.tidy()
	return left
}

// takeAll takes all leases out of the key.
func (k *leaseKey) takeAll() (left holding) {
	for _, b := range [...]*batch{&k.first, &k.second} {
		if !b.empty() {
			left.add(b, b.units)
		}
	}
	k.tidy()
	return left
}

// idle reports whether the key may be given up.
func (k *leaseKey) idle(now moment) bool {
	return k.first.empty() && k.second.empty() && !k.refilling && k.timer == nil && !now.before(k.refusal.until)
}

// follow makes the key be about a limit, and reports whether it is: a lease under
// another limit must end first.
func (k *leaseKey) follow(limit int64) bool {
	if k.limit != limit && k.first.empty() && k.second.empty() {
		k.limit, k.remaining, k.refusal = limit, 0, refusal{}
	}
	return k.limit == limit
}
