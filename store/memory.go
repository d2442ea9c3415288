package store

import (
	"hash/maphash"
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultMaxKeys is how many keys a [Memory] holds unless told otherwise.
const DefaultMaxKeys = 100_000

// Memory is the store that needs no server: it counts in this process only.
// N processes with a Memory each grant up to N times the limit together, and
// a restart forgets everything. Within the process it is as strict as any
// store while its keys fit.
//
// A key takes about 200 bytes with one unit counted, and at most 2000 however
// high its limit is. A key for which nothing counts any more takes none, once
// a new key has come across it.
//
// # At the bound
//
// A stranger can invent clients without end, so there is a largest number of
// keys. When it is reached, a key that is charged for the first time takes
// the place of another one of its shard. Of a random sample of them these are
// tried in turn:
//
//   - Logs that have expired.
//   - The log of which the smallest share of its limit is used: its client
//     gets that much back. A log that is used up is never taken: inventing
//     clients does not free a client that is being refused, and a flood of
//     clients with a unit each pushes out its like, not who has used more.
//     (A client that is refused several units while fewer are left is
//     protected by its share only.) Neither is the log of a client that is banned:
//     with long bans, a stranger with enough addresses can fill the table for as long.
//   - If every log of the sample is used up, none is taken. The newcomer then
//     counts in an overflow log that it shares with a sixteenth of the
//     newcomers to its shard and limit. That is stricter than its limit,
//     never laxer; but nobody is banned for what others may have used. When there is room again, newcomers begin with a copy of
//     the overflow log that they may have counted in.
//
// Overflow logs are held on top of the keys: none until they are needed, and
// at most 1024 for each limit, of which there are as many as the operator has
// configured.
//
// There is no goroutine: a new key drops what it finds expired in a small
// sample, so that the table shrinks again as long as new clients come.
//
// A key is banned by hand in a log of its own, and emptied only if it has one: for a
// key that has none while there is no room, Amend fails.
//
// # Time
//
// The clock is the process's monotonic one, so it never steps back, and
// setting the machine's time changes nothing. Where the monotonic clock stops
// while the machine sleeps, units are held longer by the sleep.
type Memory struct {
	seed   maphash.Seed
	base   time.Time    // when the store was made; its clock is read against it
	clock  func() int64 // instead of that; or nil
	max    atomic.Int64
	held   atomic.Int64 // keys in all shards; never raised above max
	shards []shard      // a power of two, at most maxShards
	board  Board
}

const (
	// maxShards is how many shards a large Memory has; the set of those that
	// a call locks fits a word.
	maxShards = 64
	// keysPerShard is the least number of keys a shard is made for: there
	// must be something to sample in each.
	keysPerShard = 16
	// slots is how many overflow logs a shard has for each limit.
	slots = 16
)

// shard holds the logs of the keys with its hash. What it holds, the logs
// included, is guarded by mu.
type shard struct {
	mu       sync.Mutex
	logs     map[Key]*memoryLog
	peak     int // the most logs since the map was made
	overflow map[overflowKey]*memoryLog
	_        [32]byte // shards next to each other share no cache line
}

type overflowKey struct {
	zone   string
	window time.Duration
	slot   uint8
}

type memoryLog struct {
	Window
	limit int64 // of the latest request; tells which share of it is used
}

// NewMemory returns a store of at most maxKeys keys, DefaultMaxKeys if that is
// not positive.
func NewMemory(maxKeys int) *Memory {
	if maxKeys <= 0 {
		maxKeys = DefaultMaxKeys
	}
	n := 1
	for n < maxShards && 2*n*keysPerShard <= maxKeys {
		n *= 2
	}
	m := &Memory{seed: maphash.MakeSeed(), base: time.Now(), shards: make([]shard, n)}
	for i := range m.shards {
		m.shards[i].logs = make(map[Key]*memoryLog)
	}
	m.max.Store(int64(maxKeys))
	m.board.Replace(nil)
	return m
}

// NewMemoryAt is [NewMemory] with a clock of the caller's, in microseconds, which must
// not step back. It is for what was requested at another time.
func NewMemoryAt(maxKeys int, clock func() int64) *Memory {
	m := NewMemory(maxKeys)
	m.clock = clock
	return m
}

// SetMaxKeys changes the bound, to DefaultMaxKeys if n is not positive. A
// lower bound takes effect little by little: each new key takes the place of
// two until it is met. The number of shards stays as it was made, so a small
// store that is told to grow large is slower than one that was made large.
func (m *Memory) SetMaxKeys(n int) {
	if n <= 0 {
		n = DefaultMaxKeys
	}
	m.max.Store(int64(n))
}

// Len is the number of keys held, those included that have expired but were
// not dropped yet. Overflow logs are not counted.
func (m *Memory) Len() int { return int(m.held.Load()) }

// MaxKeys is the most keys that are held.
func (m *Memory) MaxKeys() int { return int(m.max.Load()) }

// String returns "memory".
func (m *Memory) String() string { return "memory" }

// Now is the store's clock, in microseconds: that of [Charge.Stamp].
func (m *Memory) Now() int64 {
	if m.clock != nil {
		return m.clock()
	}
	return m.base.UnixMicro() + time.Since(m.base).Microseconds()
}

// place is where one request of a call is counted.
type place struct {
	key   Key
	shard int
	slot  uint8
	// log is nil for a key that has none; then overflow, if that is not nil
	// either, is what the key may have been counted in before.
	log, overflow *memoryLog
	admitted      bool // log was made by this call
}

// Take decides as [Store] says. It never waits, and fails only for requests that
// make no sense.
func (m *Memory) Take(_ time.Time, _ time.Duration, requests []Request, decisions []Decision) error {
	if err := Validate(requests, decisions); err != nil {
		return err
	}
	var few [4]place
	places := few[:]
	if len(requests) > len(few) {
		places = make([]place, len(requests))
	}
	places = places[:len(requests)]
	shards, unreported := uint64(0), 0
	for i := range requests {
		p := &places[i]
		p.key = requests[i].Key
		p.shard, p.slot = m.locate(p.key)
		shards |= 1 << p.shard
		unreported += len(requests[i].Unreported)
	}
	m.lock(shards)
	defer m.unlock(shards)

	// Read under the locks, so that no log sees time step back.
	now := m.Now()
	if unreported > 0 {
		m.countUnreported(places, requests, now)
	}
	for i := range requests {
		p, request := &places[i], &requests[i]
		m.shards[p.shard].find(p, now)
		switch {
		case p.log != nil:
			p.log.limit = request.Limit
			decisions[i] = p.log.Check(now, request)
		case p.overflow != nil:
			decisions[i] = p.overflow.Check(now, request)
		default:
			var empty Window
			decisions[i] = empty.Check(now, request)
		}
		if p.log != nil && request.Block > 0 {
			p.log.Ban(now, request, &decisions[i])
		}
	}
	if !Granted(requests, decisions) {
		return nil
	}
	for i := range requests {
		if decisions[i].Granted && (requests[i].Units > 0 || requests[i].Lease > 0 && decisions[i].Remaining > 0) {
			m.provide(i, places, requests, decisions, now)
		}
	}
	if !Granted(requests, decisions) {
		m.withdraw(places)
		return nil
	}
	for i := range requests {
		if l := places[i].log; l != nil && decisions[i].Granted {
			l.grow()
			l.Charge(now, &requests[i], &decisions[i])
		}
	}
	return nil
}

// countUnreported counts what the requests report. A key that has no log is
// admitted for it, and stays when the call is refused; if there is no room, its
// overflow log counts what it reports, at the expense of the others that share it.
func (m *Memory) countUnreported(places []place, requests []Request, now int64) {
	for i := range requests {
		p, request := &places[i], &requests[i]
		var l *memoryLog
		for j := range request.Unreported {
			if request.Unreported[j].Age >= request.Window {
				continue
			}
			if l == nil {
				l = m.open(p, request, now, places)
			}
			l.grow()
			l.countUnreported(now, request, &request.Unreported[j])
		}
	}
}

// Observe counts the units of requests that another store has charged, as of
// now and whether or not they fit here. Units of a lease are not spent yet, and
// do not count. A key for which there is no room is passed over.
// If charges is not nil it is as long as requests, and tells what was charged here.
//
// A ban of the other store holds here too, until the moment when the other store
// would have granted the request, or is seen to grant one.
func (m *Memory) Observe(requests []Request, decisions []Decision, charges []Charge) {
	for i := range requests {
		d := &decisions[i]
		banned := d.Blocked && d.Source == FromStore
		if banned || requests[i].Units > 0 && d.Charged() {
			if charge := m.observe(&requests[i], d); charges != nil {
				charges[i] = charge
			}
		}
	}
}

func (m *Memory) observe(request *Request, decision *Decision) (charge Charge) {
	p := place{key: request.Key}
	p.shard, p.slot = m.locate(p.key)
	s := &m.shards[p.shard]
	s.mu.Lock()
	defer s.mu.Unlock()

	now := m.Now()
	s.find(&p, now)
	if p.log == nil {
		if !m.admit(s, now, nil) {
			return charge
		}
		p.log = s.begin(&p, request.Limit)
	}
	l := p.log
	l.limit = request.Limit
	if decision.Blocked {
		l.banned, l.byHand = now+decision.RetryAfter.Microseconds(), false
		return charge
	}
	l.banned, l.byHand = 0, false
	if units := min(request.Units, maxTotal-l.total); units > 0 {
		l.grow()
		charge.Stamp = l.add(now, now, units, request)
		charge.Mark = l.mark
	}
	return charge
}

// Refund gives units back as [Store] says. It never waits and never fails.
func (m *Memory) Refund(_ time.Duration, refunds []Refund) error {
	for i := range refunds {
		m.refund(&refunds[i])
	}
	return nil
}

func (m *Memory) refund(g *Refund) {
	if g.Units <= 0 {
		return
	}
	p := place{key: g.Key}
	p.shard, p.slot = m.locate(p.key)
	s := &m.shards[p.shard]
	s.mu.Lock()
	defer s.mu.Unlock()

	now := m.Now()
	s.find(&p, now)
	switch {
	case p.log != nil:
		p.log.Refund(now, g)
		if p.log.Empty() {
			m.remove(s, p.key)
		}
	case p.overflow != nil:
		p.overflow.Refund(now, g)
	}
}

// locate tells where a key belongs. The hash is seeded at random, so that
// nobody can invent clients for one shard.
func (m *Memory) locate(key Key) (shard int, slot uint8) {
	h := maphash.Comparable(m.seed, key)
	return int(h & uint64(len(m.shards)-1)), uint8(h>>32) % slots
}

// lock locks the shards of a set, lowest first: calls that lock several
// cannot wait for each other in a circle.
func (m *Memory) lock(set uint64) {
	for ; set != 0; set &= set - 1 {
		m.shards[bits.TrailingZeros64(set)].mu.Lock()
	}
}

func (m *Memory) unlock(set uint64) {
	for ; set != 0; set &= set - 1 {
		m.shards[bits.TrailingZeros64(set)].mu.Unlock()
	}
}

// find looks up the log of p, or else the overflow log that it may have been
// counted in, as of now.
func (s *shard) find(p *place, now int64) {
	if p.log = s.logs[p.key]; p.log != nil {
		p.log.Advance(now, p.key.Window)
		return
	}
	if len(s.overflow) == 0 {
		return
	}
	key := p.overflowKey()
	l := s.overflow[key]
	if l == nil {
		return
	}
	if l.Advance(now, key.window); l.Empty() {
		delete(s.overflow, key)
		return
	}
	p.overflow = l
}

func (p *place) overflowKey() overflowKey {
	return overflowKey{p.key.Zone, p.key.Window, p.slot}
}

// add holds a log for the key of p.
func (s *shard) add(p *place, l *memoryLog) {
	key := p.key
	// The caller's string may be a small part of a large one, a header for
	// example, which would be held as a whole.
	key.Client = strings.Clone(key.Client)
	s.logs[key] = l
	s.peak = max(s.peak, len(s.logs))
}

// grow makes room for an entry. A log with 64 entries has nearly all it can
// ever have; append would double it.
func (l *memoryLog) grow() {
	if n := len(l.entries); n == cap(l.entries) && n <= maxEntries && 2*n > maxEntries {
		// One more than it keeps, see compact.
		l.entries = append(make([]entry, 0, maxEntries+1), l.entries...)
	}
}
