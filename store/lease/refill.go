package lease

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// leastRoundTrips is how many round trips a span must be worth for a key to
	// begin with leases, and fewestRoundTrips for it to go on. Under a load that
	// the store can hardly bear, keys that give their leases up make all round
	// trips longer, so that others give theirs up.
	leastRoundTrips  = 4
	fewestRoundTrips = 2
	// driftParts: a lease ends here a hundredth of its span before it ends at
	// the store.
	driftParts = 100
	// leastLease is the smallest lease worth a call of its own.
	leastLease = 2
)

// leaseLocked is the size of the lease that may be asked for, 0 if none may, and how
// long it is to last.
func (l *Store) leaseLocked(k *leaseKey, request *store.Request, now moment) (units int64, span time.Duration) {
	if request.Limit < leaseParts || k.limit != request.Limit || k.refilling || !k.second.empty() || now.mono < k.refillAt || l.closed.Load() {
		return 0, 0
	}
	span = k.span(request, now)
	worth := time.Duration(leastRoundTrips)
	if k.leases {
		worth = fewestRoundTrips
	}
	if k.leases = span >= worth*time.Duration(l.roundTrip.Load()); !k.leases {
		return 0, 0
	}
	return k.size(request, span, now), span
}

// refillLocked returns how many units are to be asked for ahead of need, and for how
// long; 0 if there are enough. It marks the key as being refilled. end is that of the
// lease that was just spent from.
//
// A lease is asked for late, when what is left is what will be spent during two
// round trips and a little more, so that little of it is left at its end; and what
// is left counts towards it. If the end is as near as that, nothing of what is left
// counts; and a lease is worth it only if the key is in use.
func (l *Store) refillLocked(k *leaseKey, request *store.Request, now moment) (units int64, span time.Duration) {
	size, span := l.leaseLocked(k, request, now)
	if size < leastLease {
		return 0, 0
	}
	const parts = 64
	roundTrip := time.Duration(l.roundTrip.Load())
	reserve := int64(parts/8) + 2*int64(roundTrip/(span/parts))
	switch {
	case k.first.units <= size*reserve/parts:
		units = size - k.first.units
	case k.first.end.mono-now.mono < 2*roundTrip+span/(parts/2) && k.demand.last(request.Window, span/4, now) > 0:
		units = size
	}
	if units < leastLease || !l.goBackground() {
		return 0, 0
	}
	k.refilling = true
	return units, span
}

// refill asks for a lease ahead of need.
func (l *Store) refill(request store.Request, units int64, span time.Duration) {
	defer l.background.Add(-1)
	request.Units, request.Lease, request.LeaseSpan = 0, units, span
	sent := l.clock()
	replies := [1]store.Decision{}
	// What comes after the lease's end is of no use; and while a call is under way no
	// other one is made.
	err := l.call(min(span, maxShort), []store.Request{request}, replies[:], sent)
	now := l.clock()

	hash := l.hash(&request.Key)
	s := l.shard(hash)
	s.mu.Lock()
	k := s.keyLocked(hash, &request.Key)
	k.refilling = false
	var useless holding
	if err != nil {
		k.refillAt = now.mono + shortest(request.Window)/4
	} else {
		useless = l.learnLocked(k, &request, &replies[0], span, sent, now)
	}
	s.mu.Unlock()
	l.refundSoon(request.Key, &useless)
	if err != nil {
		l.refilledPending(err, request, sent)
	}
}

// learnLocked takes in what the store granted for a request: the state of the log,
// and the lease, which lasts for span. It returns a lease that is of no use here. k may be nil.
func (l *Store) learnLocked(k *leaseKey, request *store.Request, reply *store.Decision, span time.Duration, sent, now moment) (useless holding) {
	ours := k != nil && k.follow(request.Limit)
	if ours {
		k.remaining, k.resetAt = reply.Remaining, now.mono+reply.Reset
		if request.Units >= k.refusal.need {
			k.refusal = refusal{} // there was room after all, perhaps since
		}
	}
	if reply.Lease == 0 {
		return useless
	}
	l.leased.Add(reply.Lease)
	b := batch{units: reply.Lease, Charge: reply.Charge, end: sent.add(span - span/driftParts)}
	if !ours || l.closed.Load() || sent.mono < k.amendedAt || !k.restore(&b, now) {
		useless.add(&b, b.units)
		l.unspent.Add(reply.Lease)
		return useless
	}
	l.watchLocked(k, now)
	return useless
}

// watchLocked sees to it that what is left of a key's leases is refunded when they
// end.
func (l *Store) watchLocked(k *leaseKey, now moment) {
	if k.first.empty() {
		return
	}
	if k.timer != nil {
		// A lease that was asked for later may end sooner. If the timer does not
		// stop, it has gone off, and end is about to come here.
		if k.first.end.mono >= k.watched || !k.timer.Stop() {
			return
		}
	}
	k.watched = k.first.end.mono
	k.timer = time.AfterFunc(k.first.end.mono-now.mono, func() { l.end(k) })
}

// end is called by the timer of a key, which has its place until that is nil.
func (l *Store) end(k *leaseKey) {
	s := l.shard(k.hash)
	s.mu.Lock()
	now := l.clock()
	key, left := k.key, k.takeEnded(now)
	// The wait must be short beside what leases hold units for anyhow. What the store
	// told last may be old: of a burst, for example, that has used up the limit since.
	hurry := k.remaining < k.limit/2 || leaveTime > shortest(key.Window) || l.closed.Load()
	k.timer = nil
	l.watchLocked(k, now)
	s.mu.Unlock()
	l.unspent.Add(left.units())
	if hurry {
		l.refundSoon(key, &left)
	} else {
		l.leave(key, &left)
	}
}
