package lease

import (
	"hash/maphash"
	"strings"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// How leases are filled, spent for calls that need the store, and given back.

// hold takes what the process has for an ask out of its leases, and tells
// what is missing. If the ask is known to be refused it says so, and answers.
func (l *Store) hold(a *store.Request, p *part, decision *store.Decision, now moment) {
	s := l.shard(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.short = a.Units
	k := s.keys[a.Key]
	if k == nil || k.limit != a.Limit || a.Units > a.Limit {
		return
	}
	if p.refused = k.refuses(a, decision, now); p.refused {
		return
	}
	if r := &k.refusal; now.mono >= r.renewAt {
		r.renewAt = r.until.mono // this call does it
	}
	for _, b := range [...]*batch{&k.first, &k.second} {
		// What has ended waits for its timer.
		if units := min(b.units, p.short); units > 0 && now.before(b.end) {
			p.held.add(b, units)
			p.short -= units
		}
	}
	k.tidy()
	if p.short > 0 {
		p.extra = l.leaseLocked(k, a, now)
		k.refilling = k.refilling || p.extra > 0
	}
}

// asked notes that the call with which a lease was asked for has come back,
// or was not made.
func (p *part) asked(k *leaseKey) {
	if p.extra > 0 {
		k.refilling = false
	}
}

// putBack undoes hold: units return to the lease that they came from. If it
// has ended meanwhile they are given back to the store.
func (l *Store) unhold(a *store.Request, p *part, now moment) {
	s := l.shard(a)
	s.mu.Lock()
	key := a.Key
	if k := s.keys[key]; k != nil {
		p.asked(k)
		for i := range p.held {
			b := &p.held[i]
			if !b.empty() && k.limit == a.Limit && !l.closed.Load() && k.restore(b, now) {
				*b = batch{}
			}
		}
		l.watchLocked(key, k, now)
	}
	s.mu.Unlock()
	l.refund(a.Key, &p.held)
}

// giveBack returns units to the store, in the background.
func (l *Store) refund(key store.Key, left *holding) {
	var refunds []store.Refund
	for i := range left {
		if b := &left[i]; !b.empty() {
			refunds = append(refunds, b.refund(key))
		}
	}
	if len(refunds) == 0 || !l.goBackground() {
		return
	}
	go func() {
		defer l.background.Add(-1)
		// A failure leaves the units spent, and is not sent again: it may
		// have been executed, and would then take units of somebody else.
		_ = l.refundNow(returnTime, refunds)
	}()
}

// giveBackNow returns units to the store below.
func (l *Store) refundNow(wait time.Duration, refunds []store.Refund) error {
	err := l.inner.Refund(wait, refunds)
	// There is room again, also if it is not known for sure: refusals of
	// before, and those that are still on their way, are outdated.
	now := l.clock()
	for i := range refunds {
		key := refunds[i].Key
		s := l.shardOf(key)
		s.mu.Lock()
		if k := s.keys[key]; k != nil {
			k.roomAt = now.mono
			k.refusal = refusal{}
		}
		s.mu.Unlock()
	}
	return err
}

// goBackground reports whether one more goroutine may be started. If so it is
// counted, and must end by subtracting itself.
func (l *Store) goBackground() bool {
	if l.background.Add(1) <= maxBackground {
		return true
	}
	l.background.Add(-1)
	return false
}

// spend answers an ask that is granted, from what was held and, if reply is
// not nil, from what the store granted.
func (l *Store) spend(a *store.Request, p *part, decision *store.Decision, reply *store.Decision, sent, now moment) {
	*decision = store.Decision{Granted: true, Source: store.FromLease}
	if reply != nil {
		*decision = *reply
		decision.Lease = 0
	}
	key := a.Key
	s := l.shard(a)
	s.mu.Lock()
	k := s.keys[key]
	if k == nil && s.cameBeforeLocked(maphash.Comparable(l.seed, key)) {
		k = s.addLocked(key, l.max, now)
	}
	var useless holding
	if k != nil {
		p.asked(k)
		if reply != nil {
			useless = l.learnLocked(k, a, reply, sent, now)
		}
		if k.limit == a.Limit {
			k.used = now.mono
			k.demand.add(a.Window, a.Units, now)
			known := k.granted(a, now)
			decision.Remaining, decision.Reset = known.Remaining, known.Reset
		}
	}
	s.mu.Unlock()
	l.refund(a.Key, &useless)

	// Units of several grants are given back as of the earliest: what is
	// taken from an entry before the right one leaves other units held for
	// longer, never shorter.
	for i := range p.held {
		b := &p.held[i]
		switch {
		case b.empty():
		case decision.Mark == 0:
			decision.Charge = b.Charge
		case decision.Mark != b.Mark || decision.Origin != b.Origin:
			decision.Mark = unreturnable
		default:
			decision.Stamp = min(decision.Stamp, b.Stamp)
		}
	}
}

// unreturnable is the mark of units from two lives of a log, or from the data of
// two servers.
const unreturnable = -1

// refuse answers an ask that the store refused, and remembers it. Units that
// were held for it return to their lease.
func (l *Store) refuse(a *store.Request, p *part, decision *store.Decision, reply *store.Decision, sent, now moment) {
	held := p.short < a.Units
	l.unhold(a, p, now)
	*decision = *reply
	if held {
		// It was the difference that did not fit. The wait is true for that,
		// but less may be asked for, with the units that went back.
		return
	}
	l.remember(a, reply, sent, now)
}

// remember takes in that the store refused a, all of it.
func (l *Store) remember(a *store.Request, reply *store.Decision, sent, now moment) {
	key := a.Key
	s := l.shard(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[key]
	if k == nil {
		k = s.addLocked(key, l.max, now)
	}
	if k == nil || !k.is(a.Limit) {
		return
	}
	k.used = now.mono
	k.remaining, k.resetAt = reply.Remaining, now.mono+reply.Reset
	if sent.mono > k.roomAt {
		k.remember(a, reply, sent, now)
	}
}

// learnLocked takes in what the store granted for a: the state of the log,
// and the lease. It returns a lease that is of no use here. k may be nil.
func (l *Store) learnLocked(k *leaseKey, a *store.Request, reply *store.Decision, sent, now moment) (useless holding) {
	ours := k != nil && k.is(a.Limit)
	if ours {
		k.remaining, k.resetAt = reply.Remaining, now.mono+reply.Reset
		if a.Units >= k.refusal.need {
			k.refusal = refusal{} // there was room after all, perhaps since
		}
	}
	if reply.Lease == 0 {
		return useless
	}
	span := leaseSpan(a.Window)
	b := batch{units: reply.Lease, Charge: reply.Charge, end: sent.add(span - span/driftParts)}
	if !ours || l.closed.Load() || !k.restore(&b, now) {
		useless.add(&b, b.units)
		return useless
	}
	l.watchLocked(a.Key, k, now)
	return useless
}

// watchLocked sees to it that what is left of a key's leases is given back
// when they end.
func (l *Store) watchLocked(key store.Key, k *leaseKey, now moment) {
	if k.watched || k.first.empty() {
		return
	}
	k.watched = true
	time.AfterFunc(k.first.end.mono-now.mono, func() { l.end(key, k) })
}

func (l *Store) end(key store.Key, k *leaseKey) {
	s := l.shardOf(key)
	s.mu.Lock()
	now := l.clock()
	left := k.ended(now)
	k.watched = false
	l.watchLocked(key, k, now)
	s.mu.Unlock()
	l.refund(key, &left)
}

const (
	// sampleKeys is how many keys are looked at when there is no room, and
	// sweepKeys when there is. Those that were not asked for in idleKey are
	// given up, so that the table shrinks again.
	sampleKeys = 4
	sweepKeys  = 2
	idleKey    = 10 * time.Second
)

// cameBeforeLocked notes that a key was granted, and reports whether it was
// granted before, as far as that is known: the first time it is not worth a
// place in the table, which most keys would never use again.
func (s *leaseShard) cameBeforeLocked(hash uint64) bool {
	slot, rest := &s.seen[hash/leaseShards%seenKeys], uint32(hash>>32)
	if *slot == rest {
		return true
	}
	*slot = rest
	return false
}

// addLocked makes room for a key. It returns nil if there is none: keys that
// hold a lease, or are being refused, are not given up for a stranger's
// inventions.
func (s *leaseShard) addLocked(key store.Key, most int, now moment) *leaseKey {
	looked := sweepKeys
	if len(s.keys) >= most {
		looked = sampleKeys
	}
	var oldest store.Key
	var victim *leaseKey
	for other, k := range s.keys { // begins at a random place
		if looked--; looked < 0 {
			break
		}
		switch {
		case !k.idle(now):
		case now.mono-k.used > idleKey:
			delete(s.keys, other)
		case victim == nil || k.used < victim.used:
			oldest, victim = other, k
		}
	}
	if len(s.keys) >= most {
		if victim == nil {
			return nil
		}
		delete(s.keys, oldest)
	}
	// The caller's string may be a small part of a large one, a header for
	// example, which would be held as a whole.
	key.Client = strings.Clone(key.Client)
	k := &leaseKey{used: now.mono}
	s.keys[key] = k
	return k
}
