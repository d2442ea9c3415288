package inflight

import (
	"errors"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Stats is what a process holds at some moment, for people.
type Stats struct {
	Held int64 // slots of this process, which as many requests in flight hold
	Keys int   // of which there are slots, or something to be told to the store
	// Untold is how many keys the store is still to be told of.
	Untold int
}

// Stats counts what the process holds. It takes the same time however much that is.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{Held: t.held, Keys: len(t.entries), Untold: t.pending.Len() + t.failed.Len()}
}

// look waits for what the call that is under way finds out about a key. The table's mutex
// guards it until done is closed; then it does not change any more.
type look struct {
	done     chan struct{}
	inFlight int64
	err      error // of the call
}

// Look tells how many requests of a key are in flight, in all processes if the store
// says so within wait, to this call or to one of the key that is under way: then the
// source is FromStore. If it does not, it is what this process knows by itself, FromLocal,
// and err is why. Nothing changes by it. The decision says whether a request under this
// limit would be granted now.
func (l *Limiter) Look(wait time.Duration, request Request) (d Decision, err error) {
	t := l.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if l.shared == nil {
		held := t.heldOf(request.Key)
		return Decision{Granted: held < request.Limit, InFlight: held, Source: store.FromStore}, nil
	}
	n, err := l.lookLocked(time.Now().Add(wait), &request)
	if err != nil {
		held := t.heldOf(request.Key)
		return Decision{Granted: held < request.Alone, InFlight: held, Source: store.FromLocal}, err
	}
	return Decision{Granted: n < request.Limit, InFlight: n, Source: store.FromStore}, nil
}

// heldOf is how many slots of a key this process holds.
func (t *Table) heldOf(key Key) int64 {
	if e := t.entries[key]; e != nil {
		return e.held
	}
	return 0
}

// errNotLooked is why the store is not asked.
var errNotLooked = &store.Error{Kind: store.KindBudget, Unexecuted: true, Err: errors.New("not asked, since there is no time to wait for a reply, or this process is about to end")}

// lookLocked asks the store, which must have answered by the deadline. Of a key that others
// are just asking about, it is their call that tells; if that fails, as it may for want of
// time, there is one of its own. It lets go of the mutex meanwhile.
func (l *Limiter) lookLocked(deadline time.Time, request *Request) (inFlight int64, err error) {
	t := l.table
	err = errNotLooked
	for {
		rest := time.Until(deadline)
		if rest <= 0 || t.leaving {
			return 0, err
		}
		e := t.entryLocked(request.Key)
		if !e.calling {
			return l.claimNothingLocked(e, rest, request.Limit)
		}
		if e.look == nil {
			e.look = &look{done: make(chan struct{})}
		}
		of := e.look
		t.mu.Unlock()
		timer := time.NewTimer(rest)
		select {
		case <-of.done:
		case <-timer.C:
		}
		timer.Stop()
		t.mu.Lock()
		select {
		case <-of.done:
			if err = of.err; err == nil {
				return of.inFlight, nil
			}
		default:
		}
	}
}

// claimNothingLocked makes a claim like all others, for what is held anyway.
func (l *Limiter) claimNothingLocked(e *entry, wait time.Duration, limit int64) (inFlight int64, err error) {
	t := l.table
	if e.limit == 0 {
		e.limit = limit
	}
	e.calling = true
	claims := [1]Claim{t.claimLocked(e, 0)}
	t.mu.Unlock()
	var outcomes [1]Outcome
	l.shared.Claim(wait, claims[:], outcomes[:])
	t.mu.Lock()
	t.finishLocked(e, &claims[0], &outcomes[0])
	return e.inFlightBy(&claims[0], &outcomes[0]), outcomes[0].Err
}

// inFlightBy is how many requests of a key are in flight by what a call has found out: the
// store still counts what was released meanwhile.
func (e *entry) inFlightBy(c *Claim, o *Outcome) int64 {
	return o.InFlight - max(0, c.Held+o.Granted-e.held)
}

// lookedLocked tells what a call has found out to those who look.
func (e *entry) lookedLocked(inFlight int64, err error) {
	if e.look != nil {
		e.look.inFlight, e.look.err = inFlight, err
		close(e.look.done)
		e.look = nil
	}
}
