package lease

import (
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// How a call is decided that needs the store, or has several requests. For each
// request of it, units are held: taken out of leases. When the store has decided,
// they are spent with what it grants; or else released: restored into their
// lease, or refunded if that has ended.

// part is what this process has for one request of a call.
type part struct {
	hash    uint64        // of the key
	held    holding       // units taken out of leases
	refused bool          // by a remembered refusal
	short   int64         // units to ask the store for
	lease   int64         // units of a lease to ask for with them
	span    time.Duration // and how long it is to last
	index   int           // of the request to inner, if short > 0
}

// desk is where a call is worked on. Desks are reused.
type desk struct {
	parts    []part
	requests []store.Request  // to inner
	replies  []store.Decision // of inner
}

var desks = sync.Pool{New: func() any { return new(desk) }}

func (w *desk) clear() {
	clear(w.requests) // they hold clients' names
	w.parts, w.requests, w.replies = w.parts[:0], w.requests[:0], w.replies[:0]
	desks.Put(w)
}

// takeBelow decides a call for which the store is needed, or that has several
// requests. hash is that of the first one's key.
func (l *Store) takeBelow(wait time.Duration, requests []store.Request, decisions []store.Decision, hash uint64, now moment, reporting bool) error {
	w := desks.Get().(*desk)
	defer w.clear()
	if l.prepare(w, requests, decisions, hash, now, reporting) {
		// The store need not be asked to know that nothing is charged; so
		// nobody knows what it would have said to the others.
		for i := range requests {
			if !w.parts[i].refused {
				l.release(&requests[i], &w.parts[i], now)
				decisions[i] = store.Decision{Skipped: true}
			}
		}
		return nil
	}

	w.replies = append(w.replies, make([]store.Decision, len(w.requests))...)
	after := now
	if len(w.requests) > 0 {
		err := l.call(wait, w.requests, w.replies, now)
		after = l.clock()
		if err != nil {
			for i := range requests {
				l.release(&requests[i], &w.parts[i], after)
			}
			return l.failed(err, requests, decisions, w.parts, w.replies, now)
		}
	}
	l.conclude(w, requests, decisions, now, after)
	return nil
}

// prepare holds what there is for the requests of a call, and writes down what the
// store is to be asked for. It reports whether the call is known to be refused.
// If something is reported the store must hear of it, so that nothing is decided
// here; leases in hand stay what they are, since they were counted before.
func (l *Store) prepare(w *desk, requests []store.Request, decisions []store.Decision, hash uint64, now moment, reporting bool) (refused bool) {
	w.parts = append(w.parts, make([]part, len(requests))...)
	for i := range requests {
		p := &w.parts[i]
		if p.hash = hash; i > 0 {
			p.hash = l.hash(&requests[i].Key)
		}
		if reporting {
			p.short = requests[i].Units
		} else {
			l.hold(&requests[i], p, &decisions[i], now)
		}
		if p.refused {
			refused = refused || !requests[i].Shadow
		} else if p.short > 0 {
			p.index = len(w.requests)
			request := requests[i]
			request.Units, request.Lease, request.LeaseSpan = p.short, p.lease, p.span
			w.requests = append(w.requests, request)
		}
	}
	return refused
}

// conclude decides the requests of a call by what the store has decided.
func (l *Store) conclude(w *desk, requests []store.Request, decisions []store.Decision, sent, now moment) {
	charged := store.Granted(w.requests, w.replies)
	for i := range requests {
		request, p, decision := &requests[i], &w.parts[i], &decisions[i]
		var reply *store.Decision
		if p.short > 0 && !p.refused {
			reply = &w.replies[p.index]
		}
		switch {
		case p.refused:
			// hold has decided.
		case reply != nil && reply.Skipped:
			l.release(request, p, now)
			*decision = *reply
		case reply != nil && !reply.Granted:
			l.refuse(request, p, decision, reply, sent, now)
		case charged:
			l.spend(request, p, decision, reply, sent, now)
		case reply != nil:
			l.release(request, p, now)
			*decision = *reply
		default:
			l.release(request, p, now)
			*decision = store.Decision{Skipped: true}
		}
	}
}

// call asks the store below, and learns how long that usually takes.
func (l *Store) call(wait time.Duration, requests []store.Request, decisions []store.Decision, sent moment) error {
	err := l.inner.Take(time.Now(), wait, requests, decisions)
	took := int64(l.clock().mono - sent.mono)
	usual := l.roundTrip.Load()
	if err != nil && (took < usual || store.ErrorKind(err) != store.KindTimeout) {
		// A reply takes at least as long as was waited for it in vain. Other
		// failures, some of them at once, tell nothing.
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

// hold takes what the process has for a request out of its leases, and tells what
// is missing. If the request is known to be refused it says so, and decides it.
func (l *Store) hold(request *store.Request, p *part, decision *store.Decision, now moment) {
	s := l.shard(p.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.short = request.Units
	k := s.keyLocked(p.hash, &request.Key)
	if k == nil || k.limit != request.Limit || request.Units > request.Limit {
		return
	}
	if p.refused = k.refuses(request, decision, now); p.refused {
		return
	}
	if r := &k.refusal; now.mono >= r.renewAt {
		r.renewAt = r.until.mono // this call does it
	}
	if request.Exact {
		return
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
		p.lease, p.span = l.leaseLocked(k, request, now)
		if p.lease < p.short || k.stranger(request.Window, now) && k.demand.last(request.Window, p.span, now) < strangerParts*p.short {
			// It would be gone with the next such request, or perhaps never be
			// used; and all units of the call would be held until its end.
			p.lease, p.span = 0, 0
		}
		k.refilling = k.refilling || p.lease > 0
	}
}

// returned notes that the call with which a lease was asked for has come back, or
// was not made.
func (p *part) returned(k *leaseKey) {
	if p.lease > 0 {
		k.refilling = false
	}
}

// release undoes hold: units are restored into the lease that they came from. If
// it has ended meanwhile they are refunded.
func (l *Store) release(request *store.Request, p *part, now moment) {
	s := l.shard(p.hash)
	s.mu.Lock()
	if k := s.keyLocked(p.hash, &request.Key); k != nil {
		p.returned(k)
		for i := range p.held {
			b := &p.held[i]
			if !b.empty() && k.limit == request.Limit && !l.closed.Load() && k.restore(b, now) {
				*b = batch{}
			}
		}
		l.watchLocked(k, now)
	}
	s.mu.Unlock()
	l.unspent.Add(p.held.units())
	l.refundSoon(request.Key, &p.held)
}

// spend decides a request that is granted, from what was held and, if reply is not
// nil, from what the store granted.
func (l *Store) spend(request *store.Request, p *part, decision *store.Decision, reply *store.Decision, sent, now moment) {
	*decision = store.Decision{Granted: true, Source: store.FromLease}
	if reply != nil {
		*decision = *reply
		decision.Lease = 0
	}
	s := l.shard(p.hash)
	s.mu.Lock()
	k := s.keyLocked(p.hash, &request.Key)
	if request.Exact {
		// Nothing is held of it, and all there is to learn is that no ban goes on.
		if k != nil {
			k.refusal = refusal{}
		}
		s.mu.Unlock()
		return
	}
	if k == nil && s.cameBeforeLocked(p.hash) {
		k = s.addLocked(p.hash, &request.Key, l.max, now)
	}
	var useless holding
	if k != nil {
		p.returned(k)
		if reply != nil {
			useless = l.learnLocked(k, request, reply, p.span, sent, now)
		}
		if k.limit == request.Limit {
			k.used = now.mono
			k.demand.add(request.Window, request.Units, now)
			known := k.granted(request, now)
			decision.Remaining, decision.Reset = known.Remaining, known.Reset
		}
	}
	s.mu.Unlock()
	l.refundSoon(request.Key, &useless)

	// Units of several charges are refunded as of the earliest: what is taken
	// from an entry before the right one leaves other units held for longer,
	// never shorter.
	for i := range p.held {
		b := &p.held[i]
		switch {
		case b.empty():
		case decision.Mark == 0:
			decision.Charge = b.Charge
		case decision.Mark != b.Mark || decision.Origin != b.Origin:
			decision.Mark = notRefundable
		default:
			decision.Stamp = min(decision.Stamp, b.Stamp)
		}
	}
}

// notRefundable is the mark of units from two lives of a log, or from the data of
// two servers.
const notRefundable = -1

// refuse decides a request that the store refused, and remembers it. Units that
// were held for it are released.
func (l *Store) refuse(request *store.Request, p *part, decision *store.Decision, reply *store.Decision, sent, now moment) {
	held := p.short < request.Units
	l.release(request, p, now)
	*decision = *reply
	if held {
		// It was the difference that did not fit. The wait is true for that,
		// but less may be asked for, with the units that were released.
		return
	}
	l.remember(request, p.hash, reply, sent, now)
}

// remember takes in that the store refused a request, all of it. hash is that of its key.
func (l *Store) remember(request *store.Request, hash uint64, reply *store.Decision, sent, now moment) {
	if request.Exact && !reply.Blocked {
		return
	}
	s := l.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keyLocked(hash, &request.Key)
	if k == nil {
		k = s.addLocked(hash, &request.Key, l.max, now)
	}
	if k == nil || !k.follow(request.Limit) {
		return
	}
	k.used = now.mono
	k.remaining, k.resetAt = reply.Remaining, now.mono+reply.Reset
	k.calmSince = max(k.calmSince, now.mono+min(reply.RetryAfter, request.Window))
	if sent.mono > k.roomAt {
		k.remember(request, reply, sent, now)
	}
}
