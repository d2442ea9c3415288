package store

import (
	"hash/maphash"
	"strings"
	"time"
)

// How leases are filled, spent for calls that need the store, and given back.

// hold takes what the process has for an ask out of its leases, and tells
// what is missing. If the ask is known to be refused it says so, and answers.
func (l *Leases) hold(a *Ask, p *part, answer *Answer, now moment) {
	s := l.shard(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.short = a.Need
	k := s.keys[logKey{a.Key, a.Window}]
	if k == nil || k.limit != a.Limit || a.Need > a.Limit {
		return
	}
	if p.refused = k.refuses(a, answer, now); p.refused {
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
func (l *Leases) putBack(a *Ask, p *part, now moment) {
	s := l.shard(a)
	s.mu.Lock()
	key := logKey{a.Key, a.Window}
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
	l.giveBack(a.Key, a.Window, &p.held)
}

// giveBack returns units to the store, in the background.
func (l *Leases) giveBack(key Key, window time.Duration, left *holding) {
	var grants []Grant
	for i := range left {
		if b := &left[i]; !b.empty() {
			grants = append(grants, b.grant(key, window))
		}
	}
	if len(grants) == 0 || !l.goBackground() {
		return
	}
	go func() {
		defer l.background.Add(-1)
		// A failure leaves the units spent, and is not sent again: it may
		// have been executed, and would then take units of somebody else.
		_ = l.giveBackNow(returnTime, grants)
	}()
}

// giveBackNow returns units to the store below.
func (l *Leases) giveBackNow(wait time.Duration, grants []Grant) error {
	err := l.inner.Return(wait, grants)
	// There is room again, also if it is not known for sure: refusals of
	// before, and those that are still on their way, are outdated.
	now := l.clock()
	for i := range grants {
		key := logKey{grants[i].Key, grants[i].Window}
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
func (l *Leases) goBackground() bool {
	if l.background.Add(1) <= maxBackground {
		return true
	}
	l.background.Add(-1)
	return false
}

// spend answers an ask that is granted, from what was held and, if reply is
// not nil, from what the store granted.
func (l *Leases) spend(a *Ask, p *part, answer *Answer, reply *Answer, sent, now moment) {
	*answer = Answer{Granted: true, Source: FromLease}
	if reply != nil {
		*answer = *reply
		answer.Extra = 0
	}
	key := logKey{a.Key, a.Window}
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
			k.demand.add(a.Window, a.Need, now)
			known := k.granted(a, now)
			answer.Remaining, answer.Reset = known.Remaining, known.Reset
		}
	}
	s.mu.Unlock()
	l.giveBack(a.Key, a.Window, &useless)

	// Units of several grants are given back as of the earliest: what is
	// taken from an entry before the right one leaves other units held for
	// longer, never shorter.
	for i := range p.held {
		b := &p.held[i]
		switch {
		case b.empty():
		case answer.Mark == 0:
			answer.Stamp, answer.Mark, answer.Origin = b.stamp, b.mark, b.origin
		case answer.Mark != b.mark || answer.Origin != b.origin:
			answer.Mark = unreturnable
		default:
			answer.Stamp = min(answer.Stamp, b.stamp)
		}
	}
}

// unreturnable is the mark of units from two lives of a log, or from the data of
// two servers.
const unreturnable = -1

// refuse answers an ask that the store refused, and remembers it. Units that
// were held for it return to their lease.
func (l *Leases) refuse(a *Ask, p *part, answer *Answer, reply *Answer, sent, now moment) {
	held := p.short < a.Need
	l.putBack(a, p, now)
	*answer = *reply
	if held {
		// It was the difference that did not fit. The wait is true for that,
		// but less may be asked for, with the units that went back.
		return
	}
	l.remember(a, reply, sent, now)
}

// remember takes in that the store refused a, all of it.
func (l *Leases) remember(a *Ask, reply *Answer, sent, now moment) {
	key := logKey{a.Key, a.Window}
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
func (l *Leases) learnLocked(k *leaseKey, a *Ask, reply *Answer, sent, now moment) (useless holding) {
	ours := k != nil && k.is(a.Limit)
	if ours {
		k.remaining, k.resetAt = reply.Remaining, now.mono+reply.Reset
		if a.Need >= k.refusal.need {
			k.refusal = refusal{} // there was room after all, perhaps since
		}
	}
	if reply.Extra == 0 {
		return useless
	}
	span := leaseSpan(a.Window)
	b := batch{units: reply.Extra, stamp: reply.Stamp, mark: reply.Mark, origin: reply.Origin, end: sent.add(span - span/driftParts)}
	if !ours || l.closed.Load() || !k.restore(&b, now) {
		useless.add(&b, b.units)
		return useless
	}
	l.watchLocked(logKey{a.Key, a.Window}, k, now)
	return useless
}

// watchLocked sees to it that what is left of a key's leases is given back
// when they end.
func (l *Leases) watchLocked(key logKey, k *leaseKey, now moment) {
	if k.watched || k.first.empty() {
		return
	}
	k.watched = true
	time.AfterFunc(k.first.end.mono-now.mono, func() { l.end(key, k) })
}

func (l *Leases) end(key logKey, k *leaseKey) {
	s := l.shardOf(key)
	s.mu.Lock()
	now := l.clock()
	left := k.ended(now)
	k.watched = false
	l.watchLocked(key, k, now)
	s.mu.Unlock()
	l.giveBack(key.Key, key.window, &left)
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
func (s *leaseShard) addLocked(key logKey, most int, now moment) *leaseKey {
	looked := sweepKeys
	if len(s.keys) >= most {
		looked = sampleKeys
	}
	var oldest logKey
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
