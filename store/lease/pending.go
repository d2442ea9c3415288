package lease

import (
	"errors"
	"slices"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// What becomes of calls whose decisions come when nobody waits for them any more.
// All that was held for such a call has been released by then, and another lease
// may have been asked for.

// failed returns the error of a call for its caller. What it tells of the
// requests to the store becomes what it tells of the requests to this layer. If
// decisions may still come, they are learned here and then handed on: what was
// needed belongs to the caller. It copies what it keeps, since the requests, the
// parts and the replies are used again.
func (l *Store) failed(err error, requests []store.Request, decisions []store.Decision, parts []part, replies []store.Decision, sent moment) error {
	e, ok := errors.AsType[*store.Error](err)
	if !ok {
		return err
	}
	apart := e.Fates != nil || !e.Unexecuted && slices.ContainsFunc(parts, part.here)
	if !apart && e.Pending == nil {
		return err
	}
	failed := *e
	if apart {
		failed.Fates = make([]store.Fate, len(parts))
		for i := range parts {
			failed.Fates[i] = parts[i].fate(e, &requests[i], replies, &decisions[i])
		}
	}
	if e.Pending != nil {
		mine, kept := slices.Clone(requests), slices.Clone(parts)
		for i := range mine {
			mine[i].Unreported = nil
		}
		failed.Pending = new(store.Pending)
		e.Pending.Then(func(replies []store.Decision) {
			failed.Pending.Deliver(l.learnPending(mine, kept, replies, sent))
		})
	}
	return &failed
}

// here reports whether the store was not asked about the request.
func (p part) here() bool { return p.refused || p.short == 0 }

// fate is what became of a request to this layer, by what became of the one to
// the store that it led to, if any. Where units were held for it, a grant by the
// store is not about all of it: those units have been released, and what
// the store has charged is refunded here.
func (p *part) fate(e *store.Error, request *store.Request, replies []store.Decision, decision *store.Decision) store.Fate {
	if p.refused {
		return store.FateDecided // by what is remembered
	}
	*decision = store.Decision{Skipped: true}
	if p.short == 0 {
		return store.FateUnexecuted
	}
	fate := e.Fate(p.index)
	if fate != store.FateDecided {
		return fate
	}
	if reply := &replies[p.index]; p.short == request.Units || !reply.Granted {
		*decision = *reply
		decision.Lease = 0 // that is kept here
		return store.FateDecided
	}
	return store.FateUnknown
}

// learnPending takes in what the store has decided in the end, and returns what
// the caller is told. That is nothing about a request for which units were held,
// see fate.
func (l *Store) learnPending(requests []store.Request, parts []part, replies []store.Decision, sent moment) []store.Decision {
	now := l.clock()
	decisions := make([]store.Decision, len(requests))
	for i := range requests {
		request, p := &requests[i], &parts[i]
		if p.here() {
			continue
		}
		reply, whole := &replies[p.index], p.short == request.Units
		if whole {
			decisions[i] = *reply
			decisions[i].Lease = 0 // that is kept here
		}
		switch {
		case reply.Charged():
			l.grantedPending(request, p.hash, p.short, reply, p.span, sent, now)
		case whole && !reply.Granted && !reply.Skipped:
			l.remember(request, p.hash, reply, sent, now)
		}
	}
	return decisions
}

// refilledPending does the same for a refill, of which nobody need be told.
func (l *Store) refilledPending(err error, request store.Request, sent moment) {
	if e, ok := errors.AsType[*store.Error](err); ok && e.Pending != nil {
		request.Unreported = nil
		e.Pending.Then(func(replies []store.Decision) {
			l.grantedPending(&request, l.hash(&request.Key), 0, &replies[0], request.LeaseSpan, sent, l.clock())
		})
	}
}

// grantedPending takes in that short units were granted for a request, and a
// lease, which is good until the same moment as if it had come in time. A part of
// what the request needs is of no use to anybody, and is refunded.
func (l *Store) grantedPending(request *store.Request, hash uint64, short int64, reply *store.Decision, span time.Duration, sent, now moment) {
	s := l.shard(hash)
	s.mu.Lock()
	k := s.keyLocked(hash, &request.Key) // it may have been given up meanwhile
	useless := l.learnLocked(k, request, reply, span, sent, now)
	if short == request.Units && k != nil && k.limit == request.Limit {
		k.demand.add(request.Window, short, now) // Refund subtracts it
	}
	s.mu.Unlock()
	if short < request.Units {
		b := batch{units: short, Charge: reply.Charge}
		useless.add(&b, b.units)
	}
	l.refundSoon(request.Key, &useless)
}
