package inflight

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Slot is held by one request in flight. It is safe for concurrent use.
type Slot struct {
	table *Table
	entry *entry
	over  bool // guarded by the table's mutex
}

// Release gives a slot back, without waiting for the store. Only the first call
// counts. A nil Slot is none.
func (s *Slot) Release() {
	if s == nil {
		return
	}
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.over {
		return
	}
	s.over = true
	s.entry.held--
	t.held--
	t.touchLocked(s.entry)
}

// Acquire decides whether a request may pass. If so it returns a slot, to be
// released when the request is over. It waits for the store, but no longer than
// wait; with a wait of 0 the store is not asked.
func (l *Limiter) Acquire(wait time.Duration, request Request) (*Slot, Decision) {
	t := l.table
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entryLocked(request.Key)
	e.limit = request.Limit
	switch {
	case l.shared == nil:
		return t.decideLocked(e, request.Limit, store.FromStore)
	case e.held >= request.Limit && !t.trouble:
		return t.decideLocked(e, request.Limit, store.FromCache) // the store would refuse, too
	case wait <= 0 || t.leaving:
		return t.aloneLocked(e, &request)
	}
	began := time.Now()
	w := &waiter{request: &request, wait: wait, deadline: began.Add(wait), told: make(chan struct{})}
	e.line.push(w)
	if !e.calling {
		e.calling = true
		t.nextLocked(e)
	}
	l.awaitLocked(e, w)
	w.decision.Waited = time.Since(began)
	return w.slot, w.decision
}

// awaitLocked returns when a waiter has a decision. It lets go of the mutex
// meanwhile.
func (l *Limiter) awaitLocked(e *entry, w *waiter) {
	t := l.table
	var timer *time.Timer
	for !w.decided {
		if e.leader == w {
			l.leadLocked(e, w)
			continue
		}
		if timer == nil {
			timer = time.NewTimer(time.Until(w.deadline))
			defer timer.Stop()
		}
		t.mu.Unlock()
		late := false
		select {
		case <-w.told:
		case <-timer.C:
			late = true
		}
		t.mu.Lock()
		if late && !w.decided {
			t.failLocked(e, w)
			if e.leader == w {
				t.nextLocked(e)
			}
		}
	}
}

// leadLocked makes a call for all that wait. Afterwards the leader has a decision.
func (l *Limiter) leadLocked(e *entry, w *waiter) {
	t := l.table
	claims := [1]Claim{t.claimLocked(e, e.line.size)}
	for other := e.line.first; other != nil; other = other.next {
		other.in = claims[0].Seq
	}
	rest := time.Until(w.deadline)
	t.mu.Unlock()
	var outcomes [1]Outcome
	l.shared.Claim(rest, claims[:], outcomes[:])
	t.mu.Lock()
	t.finishLocked(e, &claims[0], &outcomes[0])
}

// finishLocked ends a call, and decides about those for whom it asked.
func (t *Table) finishLocked(e *entry, c *Claim, o *Outcome) {
	switch {
	case o.Err == nil:
		// What was released meanwhile is still counted by the store, and so is
		// free for whoever waits here.
		free := max(0, c.Held+o.Granted-e.held)
		d := Decision{Granted: true, Source: store.FromStore, InFlight: o.InFlight - max(0, free-e.line.size)}
		for ; free > 0 && e.line.first != nil; free-- {
			t.decidedLocked(e, e.line.first, t.grantLocked(e), d)
		}
		d.Granted = false
		for w := e.line.first; w != nil && w.in == c.Seq; w = e.line.first {
			t.decidedLocked(e, w, nil, d)
		}
	case store.ErrorKind(o.Err) == store.KindTimeout:
		// Others may have time for another try. With little, they would soon give
		// up a call that is not late.
		for w := e.line.first; w != nil; {
			next := w.next
			if w == e.leader || time.Until(w.deadline) < w.wait/2 {
				t.failLocked(e, w)
			}
			w = next
		}
	default:
		for e.line.first != nil {
			t.failLocked(e, e.line.first)
		}
	}
	e.lookedLocked(e.inFlightBy(c, o), o.Err)
	t.learnLocked(e, c, o)
	t.nextLocked(e)
}

// nextLocked hands the next call of a key to the first that waits, or ends the
// calls.
func (t *Table) nextLocked(e *entry) {
	e.leader = e.line.first
	if e.leader != nil {
		close(e.leader.told)
		return
	}
	e.calling = false
	t.touchLocked(e)
}

// decidedLocked gives a waiter its decision.
func (t *Table) decidedLocked(e *entry, w *waiter, slot *Slot, d Decision) {
	w.decided, w.slot, w.decision = true, slot, d
	e.line.remove(w)
	if e.leader != w {
		close(w.told)
	}
}

// failLocked decides about a waiter without the store.
func (t *Table) failLocked(e *entry, w *waiter) {
	slot, d := t.aloneLocked(e, w.request)
	t.decidedLocked(e, w, slot, d)
}

// aloneLocked decides without the store.
func (t *Table) aloneLocked(e *entry, r *Request) (*Slot, Decision) {
	source := store.FromLocal
	if r.Alone < 0 || r.Alone >= Unlimited {
		source = store.FromPolicy
	}
	return t.decideLocked(e, r.Alone, source)
}

// decideLocked decides by what this process has in flight.
func (t *Table) decideLocked(e *entry, limit int64, source store.Source) (*Slot, Decision) {
	var slot *Slot
	if e.held < limit {
		slot = t.grantLocked(e)
	}
	t.touchLocked(e)
	return slot, Decision{Granted: slot != nil, InFlight: e.held, Source: source}
}

func (t *Table) grantLocked(e *entry) *Slot {
	e.held++
	t.held++
	return &Slot{table: t, entry: e}
}
