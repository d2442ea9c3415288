package lease

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// leaseParts is how many leases the limit is divided into at least, and
	// remainingParts what remains of it.
	leaseParts     = 64
	remainingParts = 16
	// spanParts is how many spans of a lease there are in a window.
	spanParts = 128
	// maxSpan is the longest lease.
	maxSpan = time.Second
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

// leaseSpan is how long leases of a window last.
func leaseSpan(window time.Duration) time.Duration {
	return min(window/spanParts, maxSpan).Truncate(time.Microsecond)
}

// leaseLocked is the size of the lease that may be asked for, 0 if none may.
func (l *Store) leaseLocked(k *leaseKey, request *store.Request, now moment) int64 {
	if request.Limit < leaseParts || k.limit != request.Limit || k.refilling || !k.second.empty() || now.mono < k.refillAt || l.closed.Load() {
		return 0
	}
	span := leaseSpan(request.Window)
	worth := time.Duration(leastRoundTrips)
	if k.leases {
		worth = fewestRoundTrips
	}
	if k.leases = span >= worth*time.Duration(l.roundTrip.Load()); !k.leases {
		return 0
	}
	return max(0, min(k.demand.last(span, now), k.remaining/remainingParts, request.Limit/leaseParts))
}

// refillLocked returns how many units are to be asked for ahead of need, and 0 if
// there are enough. It marks the key as being refilled.
//
// A lease is asked for late, when what is left is what will be spent during two
// round trips and a little more, so that little of it is left at its end; and what
// is left counts towards it.
func (l *Store) refillLocked(k *leaseKey, request *store.Request, now moment) int64 {
	size := l.leaseLocked(k, request, now)
	if size == 0 {
		return 0
	}
	const parts = 64
	reserve := int64(parts/8) + 2*l.roundTrip.Load()/int64(leaseSpan(request.Window)/parts)
	if k.first.units > size*reserve/parts || size-k.first.units < leastLease || !l.goBackground() {
		return 0
	}
	k.refilling = true
	return size - k.first.units
}

// refill asks for a lease ahead of need.
func (l *Store) refill(request store.Request, units int64) {
	defer l.background.Add(-1)
	request.Units, request.Lease, request.LeaseSpan = 0, units, leaseSpan(request.Window)
	sent := l.clock()
	replies := [1]store.Decision{}
	// What comes after the lease's end is of no use.
	err := l.call(request.LeaseSpan, []store.Request{request}, replies[:], sent)
	now := l.clock()

	s := l.shard(request.Key)
	s.mu.Lock()
	k := s.keys[request.Key]
	k.refilling = false
	var useless holding
	if err != nil {
		k.refillAt = now.mono + request.LeaseSpan/4
	} else {
		useless = l.learnLocked(k, &request, &replies[0], sent, now)
	}
	s.mu.Unlock()
	l.refundSoon(request.Key, &useless)
	if err != nil {
		l.refilledPending(err, request, sent)
	}
}

// learnLocked takes in what the store granted for a request: the state of the log,
// and the lease. It returns a lease that is of no use here. k may be nil.
func (l *Store) learnLocked(k *leaseKey, request *store.Request, reply *store.Decision, sent, now moment) (useless holding) {
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
	span := leaseSpan(request.Window)
	b := batch{units: reply.Lease, Charge: reply.Charge, end: sent.add(span - span/driftParts)}
	if !ours || l.closed.Load() || !k.restore(&b, now) {
		useless.add(&b, b.units)
		return useless
	}
	l.watchLocked(request.Key, k, now)
	return useless
}

// watchLocked sees to it that what is left of a key's leases is refunded when they
// end.
func (l *Store) watchLocked(key store.Key, k *leaseKey, now moment) {
	if k.watched || k.first.empty() {
		return
	}
	k.watched = true
	time.AfterFunc(k.first.end.mono-now.mono, func() { l.end(key, k) })
}

func (l *Store) end(key store.Key, k *leaseKey) {
	s := l.shard(key)
	s.mu.Lock()
	now := l.clock()
	left := k.takeEnded(now)
	k.watched = false
	l.watchLocked(key, k, now)
	s.mu.Unlock()
	l.refundSoon(key, &left)
}
