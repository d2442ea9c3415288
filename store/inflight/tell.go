package inflight

import (
	"math/rand/v2"
	"time"
)

const (
	// tellBatch is how many claims the teller puts to the store at a time, and
	// tellTime how long it waits for the outcomes: an eighth of the queue of a
	// store as it is by default, so that requests find room there.
	tellBatch = 512
	tellTime  = 300 * time.Millisecond
	// The pauses after a failure grow from the first to the last, each up to half
	// as long again.
	firstPause = 100 * time.Millisecond
	lastPause  = time.Second
)

// tellLocked sees to it that somebody tells the store of what is pending.
func (t *Table) tellLocked() {
	if !t.telling {
		t.telling = true
		go t.tell()
		return
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// tell tells the store how many slots are held of the keys that are pending, until it
// has heard all. It is what makes claims that nobody waits for: for slots that were
// released, for what was decided without the store, and for calls of unknown fate.
func (t *Table) tell() {
	pause := firstPause
	var until time.Time // what has failed is tried again then
	for {
		due := !time.Now().Before(until)
		entries, claims, shared, more := t.batch(due)
		switch {
		case !more:
			return
		case len(claims) == 0:
			rest(until, t.wake)
			continue
		}
		outcomes := make([]Outcome, len(claims))
		shared.Claim(tellTime, claims, outcomes)
		failures := t.finish(entries, claims, outcomes)
		switch {
		case failures > 0 && due:
			until = time.Now().Add(pause + rand.N(pause/2))
			pause = min(2*pause, lastPause)
		case due:
			pause = firstPause
		}
		if failures == len(claims) {
			rest(until, nil) // no server of the store answers
		}
	}
}

// rest sleeps until a moment, or until it is woken.
func rest(until time.Time, wake <-chan struct{}) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	}
}

// batch returns claims for what is pending, with what has failed if it is due. If more
// is false there is nothing of either.
func (t *Table) batch(due bool) (entries []*entry, claims []Claim, shared Shared, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for due && t.failed.Len() > 0 {
		e := t.failed.Front().Value.(*entry)
		t.dequeueLocked(e)
		t.enqueueLocked(e, &t.pending)
	}
	for t.pending.Len() > 0 && len(claims) < tellBatch {
		e := t.pending.Front().Value.(*entry)
		t.dequeueLocked(e)
		if e.calling || !t.dirtyLocked(e) {
			t.touchLocked(e)
			continue
		}
		e.calling = true
		entries, claims = append(entries, e), append(claims, t.claimLocked(e, 0))
	}
	if len(claims) == 0 && t.failed.Len() == 0 {
		t.telling = false
		return nil, nil, nil, false
	}
	return entries, claims, t.last, true
}

// finish ends the calls of a batch, and returns how many failed.
func (t *Table) finish(entries []*entry, claims []Claim, outcomes []Outcome) (failures int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, e := range entries {
		if outcomes[i].Err != nil {
			failures++
			t.enqueueLocked(e, &t.failed)
		}
		t.finishLocked(e, &claims[i], &outcomes[i])
	}
	return failures
}

// Leave is for a process that is about to end: it tells the store that nothing is held
// any more, for at most a while. The store drops the rest when it hears no more
// of the process. Limits are then no longer kept by the store.
func (t *Table) Leave(wait time.Duration) {
	t.mu.Lock()
	t.leaving = true
	for _, e := range t.entries {
		t.touchLocked(e)
	}
	t.mu.Unlock()
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if t.Settled() {
			return
		}
	}
}

// Settled reports whether the store has heard everything.
func (t *Table) Settled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.telling {
		return false
	}
	for _, e := range t.entries {
		if e.calling || t.dirtyLocked(e) {
			return false
		}
	}
	return true
}
