package distributedratelimit

import (
	"errors"
	"slices"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// What is decided in this process, because the store is away or because it
// has lost counts.

// withoutStore decides by the zones' policies, after a call that failed.
func (d *decision) withoutStore(err error) {
	b := d.h.backend
	failure, ok := errors.AsType[*store.Error](err)
	if ok && failure.Late != nil {
		// Nobody knows yet whether the call was executed. What it charges
		// stands if the request passes, and is given back if it is refused.
		for i := range d.asks {
			if failure.Counted == nil || failure.Counted[i] {
				d.p.note(b.name, &d.asks[i])
			}
		}
		d.late = lateCall{late: failure.Late, asks: slices.Clone(d.asks)}
	}
	asks, index := d.asks[:0], d.index[:0]
	owe := ok && (failure.Unexecuted || failure.Counted != nil)
	for i := range d.asks {
		v := &d.verdicts[d.index[i]]
		if ok && failure.Known != nil && !failure.Known[i].Undecided {
			// A server of the store has decided this one, and others are away.
			d.adopt(v, &failure.Known[i], sourceOf(failure.Known[i].Source))
			b.feed(d.asks[i:i+1], failure.Known[i:i+1])
			continue
		}
		switch v.zone.policy {
		case policyLocal:
			owe = owe && (failure.Counted == nil || !failure.Counted[i])
			asks, index = append(asks, d.asks[i]), append(index, d.index[i])
		case policyAllow:
			v.source, v.granted = sourcePolicy, true
		case policyDeny:
			v.source = sourcePolicy
			if !v.zone.DryRun {
				d.problem = problemStore
			}
		}
	}
	d.asks, d.index = asks, index
	if d.problem != problemNone {
		d.dropAsks()
		return
	}
	if len(asks) == 0 {
		return
	}
	d.answers = d.answers[:len(asks)]
	d.takeHere(d.asks, d.answers, owe)
	d.settle(true)
}

// takeHere lets the standby decide. What it charges is reported to the store
// later if owe is set.
func (d *decision) takeHere(asks []store.Ask, answers []store.Answer, owe bool) {
	b := d.h.backend
	if err := b.standby.Take(asks, answers, b.instances(), owe); err != nil {
		// It fails only on asks that no store would take.
		panic(err)
	}
}

// consents asks the standby before the store is asked, about the limits of
// which the store may have lost counts in their present window: each instance
// then holds its clients to its share of them. It reports whether the store is
// to be asked at all; if not, this is the decision. Zones in dry run are left
// to the store: they refuse nobody. If the store is away, its zones' policies
// decide: one that denies does so with a 503, never with a 429.
func (d *decision) consents(now time.Time) bool {
	lost := d.h.backend.lost.Load()
	if lost == nil || d.h.backend.away.Load() {
		return true
	}
	var asks []store.Ask
	var index []int
	for i := range d.asks {
		if a := &d.asks[i]; now.Sub(*lost) < a.Window && !a.Advisory {
			asks, index = append(asks, *a), append(index, d.index[i])
		}
	}
	if len(asks) == 0 {
		return true
	}
	answers := make([]store.Answer, len(asks))
	d.takeHere(asks, answers, false)
	if slices.ContainsFunc(answers, func(a store.Answer) bool { return !a.Granted }) {
		d.asks, d.index, d.answers = asks, index, answers
		d.settle(true)
		return false
	}
	for i := range asks {
		d.held = append(d.held, grantOf(&asks[i], &answers[i]))
	}
	return true
}

// feed keeps the standby warm with what the store granted, but for what it
// has charged by itself already.
func (d *decision) feed() {
	b := d.h.backend
	if len(d.held) == 0 {
		b.feed(d.asks, d.answers)
		return
	}
	for i := range d.asks {
		a := &d.asks[i]
		if !slices.ContainsFunc(d.held, func(g store.Grant) bool { return g.Key == a.Key && g.Window == a.Window }) {
			b.feed(d.asks[i:i+1], d.answers[i:i+1])
		}
	}
}

func grantOf(ask *store.Ask, answer *store.Answer) store.Grant {
	return store.Grant{
		Key: ask.Key, Window: ask.Window,
		Stamp: answer.Stamp, Mark: answer.Mark, Origin: answer.Origin, Units: ask.Need + answer.Extra,
		Source: answer.Source,
	}
}

// giveBack returns what was charged before another zone of the handler refused.
func (d *decision) giveBack() {
	d.giveBackHeld()
	d.late.giveBack(d.h.backend.store)
}

// giveBackHeld returns what the standby has charged.
func (d *decision) giveBackHeld() {
	if len(d.held) > 0 {
		_ = d.h.backend.standby.Return(0, d.held) // never fails
		d.held = d.held[:0]
	}
}

// lateCall is a call of which nobody knew, when the request was decided,
// whether it was executed. The zero lateCall is none.
type lateCall struct {
	late *store.Late
	asks []store.Ask // a copy: decisions are reused
}

// giveBack returns what the call has charged, when that is known.
func (c lateCall) giveBack(to store.Store) {
	if c.late == nil {
		return
	}
	c.late.Then(func(answers []store.Answer) {
		var grants []store.Grant
		for i := range min(len(c.asks), len(answers)) {
			if ask, answer := &c.asks[i], &answers[i]; answer.Charged() {
				grants = append(grants, grantOf(ask, answer))
			}
		}
		if len(grants) > 0 {
			// Others wait for this goroutine. A failure leaves the units
			// spent until their window has passed.
			go func() { _ = to.Return(defaultBudget, grants) }()
		}
	})
}
