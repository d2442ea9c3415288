package lease

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Leases makes a shared store fast without making it less strict. A key that
// is used much here is granted several units at once, a lease, which this
// process then spends without asking; and a refusal is remembered until the
// moment that the store named. Everything else is asked of the store below.
//
// # Why it is strict
//
// The units of a lease are stamped with its end, at most a second ahead. If
// at every grant the units whose stamp + window lies in the future, the new
// ones included, total at most the limit, then so do the units spent in any
// interval of one window: take, of the units spent in it, the one granted
// last. Every other one has a stamp after the interval's start, since it was
// spent before its stamp, so that it was counted when that one was granted.
//
// It follows that no unit may be spent after its lease's end, by the store's
// clock. The end is reckoned from the moment before the call was sent, on the
// monotonic clock, so that it comes earlier than the store's end however the
// clocks are set; a hundredth earlier, so that they may also run at different
// speeds; and on the wall clock too, because the monotonic one stops while a
// machine sleeps. A reply that does not come is no grant; one that comes when
// its caller has given up is one until the same end.
//
// # Why it wastes little
//
// Units of a lease that nobody spends are held until they are given back, and
// then they are as if never granted. A lease has at most as many units as
// were spent here in the last span of a lease, a 16th of what remains of the
// limit, and a 64th of the limit: near the limit each unit is asked for by
// itself. A key that is seen once never has a lease. A span is a 128th of the
// window, at most a second, and there are no leases if it is less than four
// round trips to the store, or two for a key that has leases.
//
// # What it does not promise
//
// A host that stops a virtual machine with both of its clocks makes it spend
// after the end what it had in hand: two leases at most, for each stop.
// A process that dies takes its leases with it: their units count as spent
// until their window has passed. Units that other processes give back while a
// refusal is remembered are not noticed, for at most a second. If the store's
// clock leaps forward, leases that are out reach into a time for which they
// do not count; they are over within a second.
//
// Leases is safe for concurrent use. Its table is bounded, see
// [LeasesOptions].
type Store struct {
	inner store.Store
	timed timed // inner, if it is
	// reading is a caller's reading of the clock, and clock one that is made
	// now. Simulations have clocks of their own.
	reading func(now time.Time) moment
	clock   func() moment
	max     int // keys in a shard

	seed   maphash.Seed
	shards [leaseShards]leaseShard

	roundTrip  atomic.Int64 // usual time of a call to inner, ns; 0 if none was made
	closed     atomic.Bool
	background atomic.Int64 // goroutines that ask for leases or give them back
}

// LeasesOptions bounds what [Leases] holds.
type Options struct {
	// MaxKeys is how many keys are observed at most, DefaultLeaseKeys if it
	// is 0; fewer than 64 are taken as 64. Keys with a lease or a remembered
	// refusal are not given up for others; a key for which there is no room
	// is asked of the store.
	MaxKeys int
}

// DefaultLeaseKeys is the default of LeasesOptions.MaxKeys. A key takes about
// half a kilobyte.
const DefaultMaxKeys = 65536

const (
	leaseShards = 64
	// leaseParts is how many leases the limit is divided into at least, and
	// remainingParts what remains of it.
	leaseParts     = 64
	remainingParts = 16
	// spanParts is how many spans of a lease there are in a window.
	spanParts = 128
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
	// seenKeys is how many keys that were granted once a shard recognizes
	// when they come again. A stranger who invents one key after the other
	// costs no more than this.
	seenKeys = 512
	// refusalTime is how long a refusal is remembered at most.
	refusalTime = time.Second
	// maxBackground bounds the goroutines. Beyond it no leases are asked for
	// ahead of need, and what is left of those that end stays spent.
	maxBackground = 1024
	// returnTime is how long giving back in the background may wait.
	returnTime = time.Second
	// closeGrants is how many leases are given back in one call on closing.
	closeGrants = 256
)

// moment is a reading of both clocks, from any origin.
type moment struct{ mono, wall time.Duration }

func (m moment) add(d time.Duration) moment { return moment{m.mono + d, m.wall + d} }

// before reports whether m is certainly before the end of a span that ends at
// e by both clocks.
func (m moment) before(e moment) bool { return m.mono < e.mono && m.wall < e.wall }

// timed is a store that knows how long its round trips usually take by
// themselves. Calls also wait in its queue, which is long as long as there are no
// leases.
type timed interface {
	// RoundTrip returns 0 if there was none yet. It is safe for concurrent use.
	RoundTrip() time.Duration
}

// NewLeases returns a store that decides what it can by itself, and asks
// inner for the rest. Its String is that of inner.
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
	l := &Store{inner: inner, reading: func(time.Time) moment { return clock() }, clock: clock, seed: maphash.MakeSeed(), max: max(1, o.MaxKeys/leaseShards)}
	l.timed, _ = inner.(timed)
	for i := range l.shards {
		l.shards[i].keys = make(map[store.Key]*leaseKey)
	}
	return l
}

// String names the data behind the store, see [Store].
func (l *Store) String() string { return l.inner.String() }

// leaseSpan is how long leases of a window last.
func leaseSpan(window time.Duration) time.Duration {
	return min(window/spanParts, store.MaxLeaseSpan).Truncate(time.Microsecond)
}

// Take decides as [Store] says. When it returns an error whose answers come
// late, those are about asks that the store was asked for as a whole. An ask
// for which it would have used units that it had gets a zero answer: nothing
// is charged for it then.
func (l *Store) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	return l.take(l.reading(now), wait, requests, decisions)
}

func (l *Store) take(now moment, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	if err := store.Validate(requests, decisions); err != nil {
		return err
	}
	owed := false
	for i := range requests {
		if requests[i].Units == 0 || requests[i].Lease > 0 {
			// Somebody who does without this layer.
			return l.inner.Take(time.Now(), wait, requests, decisions)
		}
		owed = owed || len(requests[i].Unreported) > 0
	}
	if len(requests) == 1 && !owed {
		a := &requests[0]
		s := l.shard(a)
		s.mu.Lock()
		k := s.keys[a.Key]
		if k != nil && k.decide(a, &decisions[0], now) {
			units := l.refillLocked(k, a, now)
			s.mu.Unlock()
			if units > 0 {
				go l.refill(*a, units)
			}
			return nil
		}
		s.mu.Unlock()
	}
	return l.request(wait, requests, decisions, now, owed)
}

func (l *Store) shard(a *store.Request) *leaseShard {
	return l.shardOf(a.Key)
}

func (l *Store) shardOf(key store.Key) *leaseShard {
	return &l.shards[maphash.Comparable(l.seed, key)%leaseShards]
}

// part is what this process has for one ask of a call.
type part struct {
	held    holding // units taken out of leases
	refused bool    // by a remembered refusal
	short   int64   // units to ask the store for
	extra   int64   // units of a lease to ask for with them
	index   int     // of the ask to inner, if short > 0
}

// desk is where a call is worked on. Desks are reused.
type desk struct {
	parts     []part
	requests  []store.Request
	decisions []store.Decision
}

var desks = sync.Pool{New: func() any { return new(desk) }}

func (w *desk) clear() {
	clear(w.requests) // they hold clients' names
	w.parts, w.requests, w.decisions = w.parts[:0], w.requests[:0], w.decisions[:0]
	desks.Put(w)
}

// ask decides a call for which the store is needed, or that has several asks.
// If something is owed the store must hear of it, so that nothing is decided
// here; leases in hand stay what they are, since they were counted before.
func (l *Store) request(wait time.Duration, requests []store.Request, decisions []store.Decision, now moment, owed bool) error {
	w := desks.Get().(*desk)
	defer w.clear()
	parts := append(w.parts, make([]part, len(requests))...)
	inner := w.requests
	refused := false
	for i := range requests {
		p := &parts[i]
		if owed {
			p.short = requests[i].Units
		} else {
			l.hold(&requests[i], p, &decisions[i], now)
		}
		if p.refused {
			refused = refused || !requests[i].Shadow
		} else if p.short > 0 {
			p.index = len(inner)
			request := requests[i]
			request.Units, request.Lease, request.LeaseSpan = p.short, p.extra, leaseSpan(request.Window)
			inner = append(inner, request)
		}
	}
	w.parts, w.requests = parts, inner
	if refused {
		// The store need not be asked to know that nothing is charged; so
		// nobody knows what it would have said to the others.
		for i := range requests {
			if !parts[i].refused {
				l.unhold(&requests[i], &parts[i], now)
				decisions[i] = store.Decision{Skipped: true}
			}
		}
		return nil
	}

	replies := append(w.decisions, make([]store.Decision, len(inner))...)
	w.decisions = replies
	after := now
	if len(inner) > 0 {
		err := l.call(wait, inner, replies, now)
		after = l.clock()
		if err != nil {
			for i := range requests {
				l.unhold(&requests[i], &parts[i], after)
			}
			return l.failed(err, requests, decisions, parts, replies, now)
		}
	}
	charged := store.Granted(inner, replies)
	for i := range requests {
		a, p, decision := &requests[i], &parts[i], &decisions[i]
		var reply *store.Decision
		if p.short > 0 && !p.refused {
			reply = &replies[p.index]
		}
		switch {
		case p.refused:
			// hold has answered.
		case reply != nil && reply.Skipped:
			l.unhold(a, p, after)
			*decision = *reply
		case reply != nil && !reply.Granted:
			l.refuse(a, p, decision, reply, now, after)
		case charged:
			l.spend(a, p, decision, reply, now, after)
		case reply != nil:
			l.unhold(a, p, after)
			*decision = *reply
		default:
			l.unhold(a, p, after)
			*decision = store.Decision{Skipped: true}
		}
	}
	return nil
}

// call asks the store below, and learns how long that usually takes.
func (l *Store) call(wait time.Duration, requests []store.Request, decisions []store.Decision, sent moment) error {
	err := l.inner.Take(time.Now(), wait, requests, decisions)
	took := int64(l.clock().mono - sent.mono)
	usual := l.roundTrip.Load()
	if err != nil && (took < usual || store.ErrorKind(err) != store.KindTimeout) {
		// An answer takes at least as long as was waited for it in vain.
		// Other failures, some of them at once, tell nothing.
		return err
	}
	if err == nil && l.timed != nil {
		if alone := l.timed.RoundTrip(); alone > 0 {
			took = min(took, int64(alone))
		}
	}
	if usual == 0 {
		usual = took
	}
	// A racing call's sample may be lost: there are many.
	l.roundTrip.Store(usual + (took-usual)/8)
	return err
}

// leaseLocked is the size of the lease that may be asked for, 0 if none may.
func (l *Store) leaseLocked(k *leaseKey, a *store.Request, now moment) int64 {
	if a.Limit < leaseParts || k.limit != a.Limit || k.refilling || !k.second.empty() || now.mono < k.refillAt || l.closed.Load() {
		return 0
	}
	span := leaseSpan(a.Window)
	worth := time.Duration(leastRoundTrips)
	if k.leases {
		worth = fewestRoundTrips
	}
	if k.leases = span >= worth*time.Duration(l.roundTrip.Load()); !k.leases {
		return 0
	}
	return max(0, min(k.demand.last(span, now), k.remaining/remainingParts, a.Limit/leaseParts))
}

// refillLocked returns how many units are to be asked for ahead of need, and
// 0 if there are enough. It marks the key as being refilled.
//
// A lease is asked for late, when what is left is what will be spent during
// two round trips and a little more, so that little of it is left at its end;
// and what is left counts towards it.
func (l *Store) refillLocked(k *leaseKey, a *store.Request, now moment) int64 {
	size := l.leaseLocked(k, a, now)
	if size == 0 {
		return 0
	}
	const parts = 64
	reserve := int64(parts/8) + 2*l.roundTrip.Load()/int64(leaseSpan(a.Window)/parts)
	if k.first.units > size*reserve/parts || size-k.first.units < leastLease || !l.goBackground() {
		return 0
	}
	k.refilling = true
	return size - k.first.units
}

// refill asks for a lease ahead of need.
func (l *Store) refill(a store.Request, units int64) {
	defer l.background.Add(-1)
	a.Units, a.Lease, a.LeaseSpan = 0, units, leaseSpan(a.Window)
	sent := l.clock()
	replies := [1]store.Decision{}
	// What comes after the lease's end is of no use.
	err := l.call(a.LeaseSpan, []store.Request{a}, replies[:], sent)
	now := l.clock()

	s := l.shard(&a)
	s.mu.Lock()
	k := s.keys[a.Key]
	k.refilling = false
	var useless holding
	if err != nil {
		k.refillAt = now.mono + a.LeaseSpan/4
	} else {
		useless = l.learnLocked(k, &a, &replies[0], sent, now)
	}
	s.mu.Unlock()
	l.refund(a.Key, &useless)
	if err != nil {
		l.refilledPending(err, a, sent)
	}
}

// Return gives units back as [Store] says: those of a lease to the lease, if
// it has not ended, all others to the store below.
func (l *Store) Refund(wait time.Duration, refunds []store.Refund) error {
	now := l.clock()
	var rest []store.Refund
	for i := range refunds {
		g := &refunds[i]
		key := g.Key
		s := l.shardOf(key)
		s.mu.Lock()
		k := s.keys[key]
		home := false
		if k != nil {
			k.demand.add(key.Window, -g.Units, now)
			home = g.Source == store.FromLease && !l.closed.Load() && k.rejoin(g, now)
		}
		s.mu.Unlock()
		if !home && g.Mark > 0 {
			rest = append(rest, *g)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return l.refundNow(wait, rest)
}

// Close gives all leases back, and waits at most about wait in all, also for
// what is being asked for or given back already. Calls that come later are
// asked of the store below.
func (l *Store) Close(wait time.Duration) error {
	l.closed.Store(true)
	end := time.Now().Add(wait)
	left := func() time.Duration { return time.Until(end) }
	var refunds []store.Refund
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for key, k := range s.keys {
			for _, b := range [...]*batch{&k.first, &k.second} {
				if !b.empty() {
					refunds = append(refunds, b.refund(key))
					*b = batch{}
				}
			}
		}
		s.mu.Unlock()
	}
	var err error
	for some := range slices.Chunk(refunds, closeGrants) {
		// A store that is away loses the rest too.
		if err == nil && left() > 0 {
			err = l.refundNow(left(), some)
		}
	}
	for l.background.Load() > 0 && left() > 0 {
		time.Sleep(time.Millisecond)
	}
	return err
}

// leaseShard holds the keys with its hash. mu guards all that it holds, and
// is never held during a call to the store below.
type leaseShard struct {
	mu   sync.Mutex
	keys map[store.Key]*leaseKey
	seen [seenKeys]uint32 // what is left of the hashes of keys that were granted once
	_    [40]byte
}
