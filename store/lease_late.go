package store

import (
	"errors"
	"slices"
)

// What becomes of calls whose answers come when nobody waits for them any
// more. All that was held for such a call has been put back by then, and
// another lease may have been asked for.

// later returns the error of a call for its caller. If the answers to it may
// still come, they are learned here, and then handed on: what was needed
// belongs to requests whose fate the caller knows. It copies what it keeps,
// since asks and parts are not its own.
func (l *Leases) later(err error, asks []Ask, parts []part, sent moment) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Late == nil {
		return err
	}
	mine, kept := slices.Clone(asks), slices.Clone(parts)
	for i := range mine {
		mine[i].Owed = nil
	}
	late := new(Late)
	e.Late.Then(func(replies []Answer) { late.Deliver(l.learnLate(mine, kept, replies, sent)) })
	failed := *e
	failed.Late = late
	failed.Known, failed.Counted = outer(e, parts, asks)
	return &failed
}

// outer turns what an error tells of the asks to the store into what it tells of
// those to this layer. Nothing is known of an ask for which units were held: they
// have been put back.
func outer(e *Error, parts []part, asks []Ask) (known []Answer, counted []bool) {
	for i := range parts {
		p := &parts[i]
		sent := !p.refused && p.short > 0
		if e.Known != nil {
			answer := Answer{Undecided: true}
			if sent && p.short == asks[i].Need {
				answer = e.Known[p.index]
				answer.Extra = 0 // that is kept here
			}
			known = append(known, answer)
		}
		if e.Counted != nil {
			counted = append(counted, sent && e.Counted[p.index])
		}
	}
	return known, counted
}

// learnLate takes in what the store has answered late, and returns what the
// caller is told. That is nothing about an ask for which units were held:
// they have been put back, so that the store's answer is not about all of it.
func (l *Leases) learnLate(asks []Ask, parts []part, replies []Answer, sent moment) []Answer {
	now := l.clock()
	answers := make([]Answer, len(asks))
	for i := range asks {
		a, p := &asks[i], &parts[i]
		if p.refused || p.short == 0 {
			continue // the store was not asked
		}
		reply, whole := &replies[p.index], p.short == a.Need
		if whole {
			answers[i] = *reply
			answers[i].Extra = 0 // that is kept here
		}
		switch {
		case reply.Charged():
			l.grantedLate(a, p.short, reply, sent, now)
		case whole && !reply.Granted && !reply.Undecided:
			l.remember(a, reply, sent, now)
		}
	}
	return answers
}

// refilledLate does the same for a refill, of which nobody need be told.
func (l *Leases) refilledLate(err error, a Ask, sent moment) {
	if e, ok := errors.AsType[*Error](err); ok && e.Late != nil {
		a.Owed = nil
		e.Late.Then(func(replies []Answer) { l.grantedLate(&a, 0, &replies[0], sent, l.clock()) })
	}
}

// grantedLate takes in that short units were granted for a, and a lease,
// which is good until the same moment as if it had come in time. A part of
// what a needs is of no use to anybody, and is given back.
func (l *Leases) grantedLate(a *Ask, short int64, reply *Answer, sent, now moment) {
	key := logKey{a.Key, a.Window}
	s := l.shardOf(key)
	s.mu.Lock()
	k := s.keys[key] // it may have been given up meanwhile
	useless := l.learnLocked(k, a, reply, sent, now)
	if short == a.Need && k != nil && k.limit == a.Limit {
		k.demand.add(a.Window, short, now) // Return subtracts it
	}
	s.mu.Unlock()
	if short < a.Need {
		b := batch{units: short, stamp: reply.Stamp, mark: reply.Mark, origin: reply.Origin}
		useless.add(&b, b.units)
	}
	l.giveBack(a.Key, a.Window, &useless)
}
