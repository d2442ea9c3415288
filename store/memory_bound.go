package store

// What happens when a key is new: it makes room, and at the bound it replaces
// another one or shares an overflow log. See [Memory].

const (
	// sweepSize is how many logs a new key examines for expired ones while
	// there is room. At equilibrium one of them has expired, so that about a
	// quarter of what is held may be dead.
	sweepSize = 4
	// sampleSize is how many logs a new key examines at the bound, and
	// sampleMost how many if all of these are used up.
	sampleSize = 16
	sampleMost = 128
	// shrinkPart is the part of its peak below which a map is made anew:
	// maps do not give memory back.
	shrinkPart = 8
)

// provide gives places[i], if it has none, a log to be charged: its own if
// there is room, else the one it shares.
func (m *Memory) provide(i int, places []place, requests []Request, decisions []Decision, now int64) {
	p := &places[i]
	if p.log != nil {
		return
	}
	s := &m.shards[p.shard]
	if m.admit(s, now, places) {
		p.log, p.admitted = s.begin(p, requests[i].Limit), true
		return
	}
	l := s.shared(p, now, places)
	if inUse(l, places) {
		// Two new clients of one zone in one call were each promised the
		// units of the log that they now turn out to share.
		decisions[i].Granted = false
		decisions[i].RetryAfter = requests[i].Window
		return
	}
	p.log = l
}

// withdraw forgets the keys that a call admitted before it was refused.
func (m *Memory) withdraw(places []place) {
	for i := range places {
		if p := &places[i]; p.admitted {
			m.remove(&m.shards[p.shard], p.key)
		}
	}
}

// open returns a log to count in what is not asked for: the key's own, which
// it admits if there is room, else the one it shares.
func (m *Memory) open(p *place, request *Request, now int64, places []place) *memoryLog {
	s := &m.shards[p.shard]
	s.find(p, now)
	if p.log == nil {
		if !m.admit(s, now, places) {
			return s.shared(p, now, places)
		}
		p.log = s.begin(p, request.Limit)
	}
	return p.log
}

// begin holds a log for the key of p, which has been admitted.
func (s *shard) begin(p *place, limit int64) *memoryLog {
	l := &memoryLog{limit: limit}
	if p.overflow != nil {
		l.Window = p.overflow.Window
		l.entries = append([]entry(nil), l.entries...)
	}
	s.add(p, l)
	return l
}

// shared returns the overflow log of p.
func (s *shard) shared(p *place, now int64, places []place) *memoryLog {
	key := p.overflowKey()
	if l := s.overflow[key]; l != nil {
		return l
	}
	return s.addOverflow(key, now, places)
}

// inUse reports whether l is about to be charged by the call, and so must be
// neither replaced nor dropped, though it may be empty as yet.
func inUse(l *memoryLog, places []place) bool {
	for i := range places {
		if places[i].log == l {
			return true
		}
	}
	return false
}

// admit reports whether s may hold one more log, and counts it. It makes room
// if there is none.
func (m *Memory) admit(s *shard, now int64, places []place) bool {
	for {
		held, bound := m.held.Load(), m.max.Load()
		if held >= bound {
			return m.replace(s, now, places, held > bound)
		}
		if m.held.CompareAndSwap(held, held+1) {
			m.held.Add(-int64(s.sweep(now, places)))
			return true
		}
	}
}

// replace drops a log of s in favour of a new one, two if there are more keys
// than there should be, and reports whether there were any to drop.
func (m *Memory) replace(s *shard, now int64, places []place, shrink bool) bool {
	wanted := 1
	if shrink {
		wanted = 2
	}
	freed := 0
	for freed < wanted {
		n := s.evict(now, places)
		if n == 0 {
			m.held.Add(-int64(freed))
			return false
		}
		freed += n
	}
	m.held.Add(1 - int64(freed))
	s.shrink()
	return true
}

// sweep drops what has expired in a small sample, and returns how many.
// Ranging over a map begins at a random place.
func (s *shard) sweep(now int64, places []place) (dropped int) {
	seen := 0
	for key, l := range s.logs {
		if seen == sweepSize {
			break
		}
		seen++
		if l.Advance(now, key.Window); l.Empty() && !inUse(l, places) {
			delete(s.logs, key)
			dropped++
		}
	}
	s.shrink()
	return dropped
}

// evict drops what has expired in a sample, else the log of which the least
// is used, and returns how many it dropped: none if all are used up.
func (s *shard) evict(now int64, places []place) (dropped int) {
	var victim Key
	least := 1.0
	seen := 0
	for key, l := range s.logs {
		if seen >= sampleMost || seen >= sampleSize && (dropped > 0 || least < 1) {
			break
		}
		seen++
		if inUse(l, places) {
			continue
		}
		l.Advance(now, key.Window)
		if l.Empty() {
			delete(s.logs, key)
			dropped++
		} else if used := l.used(now); used < least {
			victim, least = key, used
		}
	}
	if dropped == 0 && least < 1 {
		delete(s.logs, victim)
		dropped = 1
	}
	return dropped
}

// used is the share of its limit that a log has used, 1 or more if there is
// nothing left, or the key is banned.
func (l *memoryLog) used(now int64) float64 {
	if l.total >= l.limit || l.banned > now {
		return 1
	}
	return float64(l.total) / float64(l.limit)
}

// addOverflow makes an overflow log, and drops expired ones that it meets.
func (s *shard) addOverflow(key overflowKey, now int64, places []place) *memoryLog {
	if s.overflow == nil {
		s.overflow = make(map[overflowKey]*memoryLog)
	}
	seen := 0
	for k, l := range s.overflow {
		if seen == sampleSize {
			break
		}
		seen++
		if l.Advance(now, k.window); l.Empty() && !inUse(l, places) {
			delete(s.overflow, k)
		}
	}
	l := new(memoryLog)
	s.overflow[key] = l
	return l
}

// remove forgets a key of s.
func (m *Memory) remove(s *shard, key Key) {
	delete(s.logs, key)
	m.held.Add(-1)
	s.shrink()
}

// shrink makes the map of s anew if a small part of it is left in use.
func (s *shard) shrink() {
	if s.peak < sampleMost || len(s.logs)*shrinkPart > s.peak {
		return
	}
	logs := make(map[Key]*memoryLog, len(s.logs))
	for key, l := range s.logs {
		logs[key] = l
	}
	s.logs, s.peak = logs, len(logs)
}
