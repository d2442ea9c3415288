package inflight

import (
	"container/list"
	"crypto/rand"
	"slices"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Table is what a process holds. It outlives the configurations that use it, each
// through a [Limiter], so that a reload forgets nothing. It is safe for concurrent
// use.
//
// # Calls
//
// A key has one call to the store under way at most. Whoever comes meanwhile waits,
// and the next call asks for all of them together, in the name and in the goroutine
// of the first, the leader: so a client that sends a thousand requests at once
// costs a few calls, and requests are served in the order in which they came.
//
// A claim is absolute, see [Claim]. So a call whose fate is unknown does no lasting
// harm: the next one puts it right, and the table makes it even if nobody asks
// again, as for every release (see [Table.tell]).
//
// # Bounds
//
// There is an entry for each key that has requests in flight or waiting, or of
// which the store must still be told, of the latter as many as pendingKeys. With
// more, the table forgets some, and when the store is back it takes a new name
// instead of telling it one by one, see [Table.renewLocked].
type Table struct {
	mu       sync.Mutex
	entries  map[Key]*entry
	held     int64      // by all of them
	limiters []*Limiter // the last one leads: its store is told what is released
	last     Shared     // the store that was last used
	trouble  bool       // the last call failed

	life   string
	former []string
	seq    int64

	// The entries of which the store must be told, and those for which that has
	// failed, see tell.
	pending, failed list.List
	bound           int  // of both
	forgot          bool // some were dropped
	telling         bool
	wake            chan struct{} // of the teller, holds one
	sweep           *time.Timer   // nil if there is none under way
	leaving         bool
}

// entry is what is known of one key. The table's mutex guards it.
type entry struct {
	key   Key
	limit int64 // of the latest request
	held  int64 // requests in flight here

	line    line // the requests that wait
	calling bool // a call is under way, or leader is about to make one
	leader  *waiter
	look    *look         // those who look at the call that is under way, nil if nobody does
	queue   *list.List    // Table.pending, Table.failed or nil
	place   *list.Element // in it

	// The store counts told slots for this process, under its present name; if it
	// is not sure, it may be another number.
	told int64
	sure bool
	// doubtful: a call of unknown fate may still be executed, see Claim.Keep.
	doubtful bool
	again    bool      // it is to be told even if nothing has changed
	heard    time.Time // when it was last told
}

const (
	// pendingKeys bounds the entries without a request of which the store must
	// still be told.
	pendingKeys = 65_536
	// sweepEvery is how often the table looks for entries of which the store was
	// last told renewAfter ago. It keeps them for longer than both.
	sweepEvery = 10 * time.Minute
	renewAfter = time.Hour
)

// NewTable returns a table of a process that holds nothing.
func NewTable() *Table {
	return &Table{entries: make(map[Key]*entry), bound: pendingKeys, life: newLife(), wake: make(chan struct{}, 1)}
}

func newLife() string {
	var name [LifeSize]byte
	_, _ = rand.Read(name[:]) // never fails
	return string(name[:])
}

// Limiter is a table as one configuration uses it.
type Limiter struct {
	table   *Table
	shared  Shared // nil if the table decides alone
	started bool
	stop    func()
}

// Limiter returns a limiter, to be closed. Without a shared store the limits are
// this process's. What nobody waits for is told to the store of the limiter that
// was started last, or else opened last: a configuration may only be validated.
func (t *Table) Limiter(shared Shared) *Limiter {
	l := &Limiter{table: t, shared: shared, stop: func() {}}
	if shared == nil {
		return l
	}
	l.stop = shared.Attend(t.Life, t.doubt)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.limiters); n > 0 && t.limiters[n-1].started {
		t.limiters = slices.Insert(t.limiters, n-1, l)
	} else {
		t.limiters = append(t.limiters, l)
	}
	t.followLocked()
	return l
}

// Start makes the limiter the one whose store is told what nobody waits for.
func (l *Limiter) Start() {
	t := l.table
	t.mu.Lock()
	defer t.mu.Unlock()
	l.started = true
	if i := slices.Index(t.limiters, l); i >= 0 {
		t.limiters = append(slices.Delete(t.limiters, i, i+1), l)
	}
	t.followLocked()
}

// Close ends a limiter. Requests that are in flight keep their slots.
func (l *Limiter) Close() {
	l.stop()
	t := l.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limiters = slices.DeleteFunc(t.limiters, func(other *Limiter) bool { return other == l })
	t.followLocked()
}

// followLocked finds the store to tell. When no limiter is left it stays the one
// that it was: slots are still being released.
func (t *Table) followLocked() {
	if n := len(t.limiters); n > 0 {
		t.last = t.limiters[n-1].shared
	}
}

// Life is the present name of the process.
func (t *Table) Life() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.life
}

// doubt is told by the store that it may lack what was claimed under a name.
func (t *Table) doubt(life string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if life == t.life && !t.leaving {
		t.renewLocked(false)
	}
}

// renewLocked gives the process a new name, under which it claims again what it
// holds. Under the old one the store may count what was released long ago, of
// which nobody here knows any more, such as when a replica took over that lacks
// the last second. Nobody tells the store that the old name is alive, so that it is
// dropped; for keys that are claimed again, at once.
//
// With forget, nothing is claimed for what is no longer held.
func (t *Table) renewLocked(forget bool) {
	t.former = append(slices.Clone(t.former), t.life) // claims under way use the old slice
	if n := len(t.former); n > MaxFormer {
		t.former = t.former[n-MaxFormer:]
	}
	t.life, t.forgot = newLife(), false
	for _, e := range t.entries {
		e.sure = e.sure && e.told == 0 || forget && e.held == 0
		e.told = 0
		t.touchLocked(e)
	}
}

func (t *Table) entryLocked(key Key) *entry {
	e := t.entries[key]
	if e == nil {
		e = &entry{key: key, sure: true, heard: time.Now()}
		t.entries[key] = e
		if t.sweep == nil {
			t.sweep = time.AfterFunc(sweepEvery, t.sweepNow)
		}
	}
	return e
}

// dirtyLocked reports whether the store must be told of an entry.
func (t *Table) dirtyLocked(e *entry) bool {
	return t.last != nil && (!e.sure || e.again || e.told != t.heldLocked(e))
}

// heldLocked is how many slots the store shall count for an entry.
func (t *Table) heldLocked(e *entry) int64 {
	if t.leaving {
		return 0
	}
	return e.held
}

// touchLocked does what follows from a change of an entry: it is told to the store,
// or forgotten. Nothing follows while a call is under way.
func (t *Table) touchLocked(e *entry) {
	if e.calling {
		return
	}
	unused := e.held == 0 && e.line.first == nil
	dirty := t.dirtyLocked(e)
	if unused && dirty && t.pending.Len()+t.failed.Len() >= t.bound {
		t.forgot, dirty = true, false
	}
	switch {
	case dirty && e.queue == nil:
		t.enqueueLocked(e, &t.pending)
		t.tellLocked()
	case unused && !dirty:
		t.dequeueLocked(e)
		delete(t.entries, e.key)
	}
}

func (t *Table) enqueueLocked(e *entry, in *list.List) {
	e.queue, e.place = in, in.PushBack(e)
}

func (t *Table) dequeueLocked(e *entry) {
	if e.queue != nil {
		e.queue.Remove(e.place)
		e.queue, e.place = nil, nil
	}
}

// claimLocked is the next claim for an entry.
func (t *Table) claimLocked(e *entry, want int64) Claim {
	t.seq++
	return Claim{
		Key: e.key, Limit: max(e.limit, 1), Life: t.life, Former: t.former, Seq: t.seq,
		Held: t.heldLocked(e), Want: want, Keep: e.doubtful,
	}
}

// learnLocked takes in what became of a claim.
func (t *Table) learnLocked(e *entry, c *Claim, o *Outcome) {
	t.trouble = o.Err != nil
	switch {
	case c.Life != t.life:
		// Whatever it did, it did under the old name.
		e.sure, e.again = false, false
		e.doubtful = e.doubtful || o.Err != nil
	case o.Err == nil:
		e.told, e.sure, e.again, e.heard = c.Held+o.Granted, true, false, time.Now()
	case !unexecuted(o.Err):
		e.sure, e.doubtful = false, true
	}
	if o.Err == nil && t.forgot {
		t.renewLocked(true)
	}
}

func unexecuted(err error) bool {
	e, ok := err.(*store.Error)
	return ok && e.Unexecuted
}

// sweepNow has the store told again of what it was told long ago: it forgets what
// it has not heard of for a few hours.
func (t *Table) sweepNow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep = nil
	if len(t.entries) > 0 {
		t.sweep = time.AfterFunc(sweepEvery, t.sweepNow)
	}
	for _, e := range t.entries {
		if e.held > 0 && time.Since(e.heard) >= renewAfter {
			e.again = true
			t.touchLocked(e)
		}
	}
}
