// Package lease makes a shared store fast without making it less strict: a [Store]
// stands before it, which decides most requests in this process. A key that is
// used much here is granted several units at once, a lease, which this process
// then spends without asking; and a refusal is remembered until the moment that
// the store named. Everything else is asked of the store below.
//
// # Why it is strict
//
// The units of a lease are stamped with its end, at most ten seconds ahead. If at
// every grant the units whose stamp + window lies in the future, the new ones
// included, total at most the limit, then so do the units spent in any interval
// of one window: of the units spent in it, take the one granted last. Every other
// one has a stamp after the interval's start, since it was spent before its
// stamp, so that it was counted when that one was granted.
//
// It follows that no unit may be spent after its lease's end, by the store's
// clock. The end is reckoned from the moment before the call was sent, on the
// monotonic clock, so that it comes earlier than the store's end however the
// clocks are set; a hundredth earlier, so that they may also run at different
// speeds; and on the wall clock too, because the monotonic one stops while a
// machine sleeps. A reply that does not come grants nothing; one that comes when
// its caller has given up grants a lease until the same end.
//
// # Why it wastes little
//
// Units of a lease that nobody spends are held until they are refunded, and then
// they are as if never granted. A lease has about as many units as were spent here
// in as long a time, at most a 16th of what remains of the limit and a 64th of the
// limit: near the limit each unit is asked for by itself. A key that is seen once
// never has a lease. The more of the limit is used, the shorter leases are: from a
// sixth of the window, at most ten seconds, to a 128th, at most one. There are no
// leases if their span is less than four round trips to the store, or two for a key
// that has leases.
//
// # What it does not promise
//
// A host that stops a virtual machine with both of its clocks makes it spend
// after the end what it had in hand: two leases at most, for each stop. A process
// that dies takes its leases with it: their units count as spent until their
// window has passed. Units that other processes refund while a refusal is
// remembered are not noticed, for at most a second. If the store's clock leaps
// forward, leases that are out reach into a time for which they do not count;
// they are over within ten seconds.
package lease

import (
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Store decides what it can from leases and remembered refusals, and asks the
// store below for the rest. It is safe for concurrent use. Its table is bounded,
// see [Options].
type Store struct {
	inner store.Store
	timed timed // inner, if it is
	// reading is a caller's reading of the clock, and clock one that is made
	// now. Simulations have clocks of their own.
	reading func(now time.Time) moment
	clock   func() moment
	max     int // keys in a shard

	seed   maphash.Seed
	shards [shardCount]shard

	roundTrip  atomic.Int64 // usual time of a call to inner, ns; 0 if none was made
	leftovers  leftovers
	closed     atomic.Bool
	background atomic.Int64 // goroutines that ask for leases or refund them
	leased     atomic.Int64 // units of all leases that were granted
	unspent    atomic.Int64 // and of them, units that nobody spent
}

// Options bounds what a [Store] holds.
type Options struct {
	// MaxKeys is how many keys are observed at most, DefaultMaxKeys if it is
	// 0; fewer than 64 are taken as 64. Keys with a lease or a remembered
	// refusal are not given up for others; a key for which there is no room
	// is asked of the store.
	MaxKeys int
}

// DefaultMaxKeys is the default of Options.MaxKeys. A key takes about half a
// kilobyte.
const DefaultMaxKeys = 65536

// maxBackground bounds the goroutines. Beyond it no leases are asked for ahead of
// need, and what is left of a lease that ends stays spent.
const maxBackground = 1024

// timed is what a store below may offer besides: how long its round trips usually
// take by themselves. Calls also wait in its queue, which is long as long as there
// are no leases.
type timed interface {
	// RoundTrip returns 0 if there was none yet. It is safe for concurrent use.
	RoundTrip() time.Duration
}

// moment is a reading of both clocks, from any origin.
type moment struct{ mono, wall time.Duration }

func (m moment) add(d time.Duration) moment { return moment{m.mono + d, m.wall + d} }

// before reports whether m is certainly before the end of a span that ends at
// e by both clocks.
func (m moment) before(e moment) bool { return m.mono < e.mono && m.wall < e.wall }

// New returns a store that decides what it can by itself, and asks inner for the
// rest. Its String is that of inner. If inner has a method RoundTrip() time.Duration
// with its usual round trip, 0 if there was none yet, without the time in a queue of
// its own, that tells whether leases are worth it.
func New(inner store.Store, o Options) *Store {
	base := time.Now()
	reading := func(now time.Time) moment {
		return moment{mono: now.Sub(base), wall: time.Duration(now.UnixNano())}
	}
	l := newStore(inner, o, func() moment { return reading(time.Now()) })
	l.reading = reading
	return l
}

func newStore(inner store.Store, o Options, clock func() moment) *Store {
	if o.MaxKeys <= 0 {
		o.MaxKeys = DefaultMaxKeys
	}
	l := &Store{inner: inner, reading: func(time.Time) moment { return clock() }, clock: clock, seed: maphash.MakeSeed(), max: max(1, o.MaxKeys/shardCount)}
	l.timed, _ = inner.(timed)
	for i := range l.shards {
		l.shards[i].keys = make(map[uint64]*leaseKey)
	}
	return l
}

// String names the data behind the store, see [store.Store].
func (l *Store) String() string { return l.inner.String() }

// Take decides as [store.Store] says. When it returns an error with a Pending, the
// decisions that this delivers are about requests that the store was asked for as
// a whole. A request for which units in hand would have been used gets a zero
// decision: nothing is charged for it then.
func (l *Store) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	return l.take(l.reading(now), wait, requests, decisions)
}

func (l *Store) take(now moment, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	if err := store.Validate(requests, decisions); err != nil {
		return err
	}
	reporting := false
	for i := range requests {
		if requests[i].Units == 0 || requests[i].Lease > 0 {
			// The caller does without this layer.
			return l.inner.Take(time.Now(), wait, requests, decisions)
		}
		reporting = reporting || len(requests[i].Unreported) > 0
	}
	if len(requests) == 0 {
		return nil
	}
	hash := l.hash(&requests[0].Key)
	if len(requests) == 1 && !reporting {
		request := &requests[0]
		s := l.shard(hash)
		s.mu.Lock()
		k := s.keyLocked(hash, &request.Key)
		if k != nil && k.decide(request, &decisions[0], now) {
			units, span := l.refillLocked(k, request, now)
			s.mu.Unlock()
			if units > 0 {
				go l.refill(*request, units, span)
			}
			return nil
		}
		s.mu.Unlock()
	}
	return l.takeBelow(wait, requests, decisions, hash, now, reporting)
}

// Close refunds all leases, and waits at most about wait in all, also for what is
// being asked for or refunded already. Calls that come later are asked of the
// store below.
func (l *Store) Close(wait time.Duration) error {
	l.closed.Store(true)
	end := time.Now().Add(wait)
	left := func() time.Duration { return time.Until(end) }
	err := l.refundAll(left)
	for l.background.Load() > 0 && left() > 0 {
		time.Sleep(time.Millisecond)
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
