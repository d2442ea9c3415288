package store

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// What a Standby granted while the store was away, until it is reported.

const (
	// owedParts is the part of a window within which units that are owed are
	// reported as one entry, with the latest of their times. MaxOwed of these
	// parts cover a window and the last of them, in which the first entry is
	// still kept for its latest units: there is always room for the next.
	owedParts = MaxOwed - 1
	// settleKeys is how many keys a call of Settle reports.
	settleKeys = 64
)

// debts is what the keys of one shard owe. It is guarded by mu.
type debts struct {
	mu   sync.Mutex
	keys map[logKey]*debt // nil if there are none
	_    [48]byte         // shards next to each other share no cache line
}

type debt struct {
	limit   int64  // of the latest ask
	entries []owed // the oldest first, at most MaxOwed
	// sent is what a call is just reporting, nil if none is: there is never
	// more than one for a key. It stays here because it may come back.
	sent []owed
}

// owed is units that were spent between two moments of the memory's clock.
type owed struct{ first, last, units int64 }

// shard returns where a key owes what it does.
func (s *Standby) shard(key logKey) *debts {
	i, _ := s.memory.locate(key)
	return &s.debts[i]
}

// owe notes what was charged for an ask.
func (s *Standby) owe(a *Ask, stamp int64) {
	key := logKey{a.Key, a.Window}
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	d := sh.keys[key]
	if d == nil {
		if !s.admit(sh, stamp) {
			return
		}
		key.Client = strings.Clone(key.Client) // see shard.add
		d = new(debt)
		if sh.keys == nil {
			sh.keys = make(map[logKey]*debt)
		}
		sh.keys[key] = d
	}
	d.limit = a.Limit
	d.expire(stamp, a.Window)
	d.add(owed{stamp, stamp, a.Need}, a.Window)
}

// admit reports whether one more key may owe something, and counts it. At the
// bound it looks for one of the shard that owes nothing any more.
func (s *Standby) admit(sh *debts, now int64) bool {
	for {
		n := s.owing.Load()
		if n >= standbyKeys {
			break
		}
		if s.owing.CompareAndSwap(n, n+1) {
			return true
		}
	}
	seen := 0
	for key, d := range sh.keys {
		if seen == sampleSize {
			break
		}
		seen++
		if d.expire(now, key.window); d.nothing() {
			delete(sh.keys, key)
			return true
		}
	}
	return false
}

// drop forgets a key that owes nothing any more.
func (s *Standby) drop(sh *debts, key logKey) {
	delete(sh.keys, key)
	if len(sh.keys) == 0 {
		sh.keys = nil // maps do not give memory back
	}
	s.owing.Add(-1)
}

func (d *debt) nothing() bool { return len(d.entries) == 0 && d.sent == nil }

// expire drops what the store would not count any more.
func (d *debt) expire(now int64, window time.Duration) {
	n := 0
	for n < len(d.entries) && d.entries[n].last+window.Microseconds() <= now {
		n++
	}
	d.entries = slices.Delete(d.entries, 0, n)
}

// add appends units, or joins them to the last entry if they are near its
// beginning or there is no room for more.
func (d *debt) add(o owed, window time.Duration) {
	if n := len(d.entries); n > 0 {
		last := &d.entries[n-1]
		if n == MaxOwed || (o.last-last.first)*owedParts < window.Microseconds() {
			last.first = min(last.first, o.first)
			last.last = max(last.last, o.last)
			last.units = min(last.units+o.units, MaxEvents)
			return
		}
	}
	d.entries = append(d.entries, o)
}

// forgive takes what is given back out of what is owed.
func (s *Standby) forgive(g *Grant) {
	key := logKey{g.Key, g.Window}
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	d := sh.keys[key]
	if d == nil {
		return
	}
	units := d.forgive(d.entries, g.Stamp, g.Units)
	d.forgive(d.sent, g.Stamp, units)
	d.entries = slices.DeleteFunc(d.entries, func(o owed) bool { return o.units == 0 })
	if d.nothing() {
		s.drop(sh, key)
	}
}

// forgive takes units from the entries that may have those of a stamp, and
// returns how many are left to take. What was reported is in none of them:
// other units than those given back must stay.
func (*debt) forgive(entries []owed, stamp, units int64) int64 {
	for i := range entries {
		if o := &entries[i]; o.first <= stamp && stamp <= o.last {
			n := min(units, o.units)
			o.units -= n
			units -= n
		}
	}
	return units
}

// Attach sets Owed of those asks whose keys owe something, and reports whether
// there are any. The same asks must be given to Detach after their call;
// until then nobody else reports what they owe, or what their keys come to
// owe meanwhile. While no key owes anything it costs one atomic load.
func (s *Standby) Attach(asks []Ask) bool {
	if s.owing.Load() == 0 {
		return false
	}
	attached := false
	for i := range asks {
		attached = s.attach(&asks[i]) || attached
	}
	return attached
}

func (s *Standby) attach(a *Ask) bool {
	key := logKey{a.Key, a.Window}
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	d := sh.keys[key]
	if d == nil || d.sent != nil {
		return false
	}
	now := s.memory.now()
	d.expire(now, a.Window)
	if d.nothing() {
		s.drop(sh, key)
		return false
	}
	d.sent, d.entries = d.entries, nil
	a.Owed = make([]Spent, len(d.sent))
	for i, o := range d.sent {
		// Both times are rounded down to a microsecond. One less makes sure
		// that the age is not above the true one: what is owed counts for too
		// long rather than not long enough.
		age := max(now-o.last-1, 0)
		a.Owed[i] = Spent{Age: time.Duration(age) * time.Microsecond, Units: o.units}
	}
	return true
}

// Detach is called after the call whose asks were attached to, and clears
// their Owed. If the call was certainly not executed, they owe it again, with
// the ages of then; else they never do.
func (s *Standby) Detach(asks []Ask, unexecuted bool) {
	for i := range asks {
		if a := &asks[i]; len(a.Owed) > 0 {
			a.Owed = nil
			s.detach(a, unexecuted)
		}
	}
}

func (s *Standby) detach(a *Ask, unexecuted bool) {
	key := logKey{a.Key, a.Window}
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	d := sh.keys[key]
	if d == nil {
		return // it was not attached to
	}
	sent, since := d.sent, d.entries
	d.sent = nil
	if unexecuted {
		d.entries = slices.DeleteFunc(sent, func(o owed) bool { return o.units == 0 })
		d.expire(s.memory.now(), a.Window)
		for _, o := range since {
			d.add(o, a.Window)
		}
	}
	if d.nothing() {
		s.drop(sh, key)
	}
}

// DetachFailed is Detach after a call that failed.
func (s *Standby) DetachFailed(asks []Ask, err error) {
	e, ok := errors.AsType[*Error](err)
	for i := range asks {
		unexecuted := ok && e.Unexecuted
		if ok && len(e.Counted) == len(asks) {
			unexecuted = !e.Counted[i]
		}
		s.Detach(asks[i:i+1], unexecuted)
	}
}

// Settle reports everything that is owed, some keys at a time, through take,
// which asks the store. It is meant for when the store is back, because
// clients move between instances. It stops at the first error, but for keys
// whose server is still away. Only one runs at a time: another returns at
// once.
func (s *Standby) Settle(take func(asks []Ask, answers []Answer) error) {
	if !s.settling.CompareAndSwap(false, true) {
		return
	}
	defer s.settling.Store(false)
	var asks []Ask
	for i := range s.debts {
		asks = s.debts[i].looks(asks)
		for len(asks) >= settleKeys {
			if s.settle(asks[:settleKeys], take) != nil {
				return
			}
			asks = asks[settleKeys:]
		}
	}
	_ = s.settle(asks, take)
}

// looks appends an ask for nothing for each key that owes something.
func (sh *debts) looks(asks []Ask) []Ask {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for key, d := range sh.keys {
		asks = append(asks, Ask{Key: key.Key, Window: key.window, Limit: d.limit})
	}
	return asks
}

// settle reports what the keys of asks owe, in one call; or each by itself, if
// a server of some of them is away. It fails if all of them do.
func (s *Standby) settle(asks []Ask, take func(asks []Ask, answers []Answer) error) error {
	owing := make([]Ask, 0, len(asks))
	for _, a := range asks {
		if s.attach(&a) {
			owing = append(owing, a)
		}
	}
	if len(owing) == 0 {
		return nil
	}
	err := take(owing, make([]Answer, len(owing)))
	if err == nil {
		s.Detach(owing, false)
		return nil
	}
	s.DetachFailed(owing, err)
	if ErrorKind(err) != KindAway || len(owing) == 1 {
		return err
	}
	for i := range owing {
		switch one := s.settle(owing[i:i+1], take); {
		case one == nil:
			err = nil
		case ErrorKind(one) != KindAway:
			return one
		}
	}
	return err
}

// Owing is how many keys owe something, of which some may have expired.
func (s *Standby) Owing() int { return int(s.owing.Load()) }
