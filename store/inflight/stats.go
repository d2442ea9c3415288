package inflight

import (
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

// Look tells how many requests of a key are in flight, in all processes if the store
// says so within wait: then the source is FromStore. If it does not, or other requests
// of the key are just asking it, it is what this process knows by itself, FromLocal.
// Nothing changes by it. The decision says whether a request under this limit would be
// granted now.
func (l *Limiter) Look(wait time.Duration, request Request) Decision {
	t := l.table
	t.mu.Lock()
	defer t.mu.Unlock()
	held := int64(0)
	e := t.entries[request.Key]
	if e != nil {
		held = e.held
	}
	switch {
	case l.shared == nil:
		return Decision{Granted: held < request.Limit, InFlight: held, Source: store.FromStore}
	case wait <= 0 || t.leaving || e != nil && e.calling:
		return Decision{Granted: held < request.Alone, InFlight: held, Source: store.FromLocal}
	}
	e = t.entryLocked(request.Key)
	if e.limit == 0 {
		e.limit = request.Limit
	}
	// This is a claim like all others, for what is held anyway.
	e.calling = true
	claims := [1]Claim{t.claimLocked(e, 0)}
	t.mu.Unlock()
	var outcomes [1]Outcome
	l.shared.Claim(wait, claims[:], outcomes[:])
	t.mu.Lock()
	t.finishLocked(e, &claims[0], &outcomes[0])
	if outcomes[0].Err != nil {
		return Decision{Granted: e.held < request.Alone, InFlight: e.held, Source: store.FromLocal}
	}
	n := outcomes[0].InFlight
	return Decision{Granted: n < request.Limit, InFlight: n, Source: store.FromStore}
}
