// Package inflight limits how many requests of a key are in flight at the same
// time, in all processes that share a store. What a request holds meanwhile is a
// slot.
//
// A [Table] is what one process knows: how many requests of each key it has in
// flight. By itself that is an exact limit for one process. Several processes
// share a limit through a [Shared] store, which keeps for each key how many slots
// each process holds, and decides by the sum.
//
// # What it promises
//
// At any moment, all processes together hold at most the limit of a key. A slot is
// released once, and then it is free for the next request within a call or two to
// the store, whatever was lost or late on the way: a process tells the store how
// many slots it holds in all, and goes on until the store has heard it.
//
// # What it does not promise
//
// A store that loses data forgets slots, and so grants up to one limit more until
// the processes have told it again what they hold. The slots of a process that
// was paused or cut off from the store for longer than the store waits for a sign
// of life go to others, though its requests go on. While the store does not decide,
// each request says how many its process may hold by itself.
package inflight

import (
	"fmt"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// MaxLimit is the largest limit.
const MaxLimit = 1_000_000_000

// LifeSize is the size of the name of a process's life, in bytes.
const LifeSize = 8

// MaxFormer is the most former names that a claim carries.
const MaxFormer = 4

// Key names a limit and a client, as in [store.Key].
type Key struct {
	Zone   string
	Client string
}

// Request asks for a slot.
type Request struct {
	Key
	Limit int64 // 1 to MaxLimit
	// Alone is how many requests of the key this process may have in flight while
	// the store does not decide, this one included. Unlimited grants the
	// request, and a negative number denies it: both by policy, whatever is in
	// flight.
	Alone int64
}

// Unlimited as Request.Alone grants every request that the store does not decide.
const Unlimited = 1 << 62

// Decision is what becomes of a request.
type Decision struct {
	Granted bool
	// InFlight is how many requests of the key are in flight after the decision,
	// as far as whoever decided knows.
	InFlight int64
	// Source is who decided: the store, or this process because it holds the whole
	// limit itself (FromCache), because the store did not decide (FromLocal), or
	// by policy.
	Source store.Source
	// Waited is how long the store was waited for.
	Waited time.Duration
}

// Shared is a store that several processes use. It is safe for concurrent use.
//
// Claim puts claims to the store, each by itself, and fills outcomes, which are as
// many. It waits no longer than wait. No two claims of a call have one Key. A
// claim whose outcome is an error may have been executed, or may be yet, unless the
// error is a [store.Error] that says that it was not.
//
// Attend has the store hear, again and again, that a life goes on, which the
// function tells each time. Else the store takes the process for dead after about
// 15 s, and may drop what it holds. doubt is called with the name of a life when
// the store may not have everything any more that was claimed under it. It must not
// block. Attend returns a function that ends this; doubt may still be called once
// while that runs.
type Shared interface {
	Claim(wait time.Duration, claims []Claim, outcomes []Outcome)
	Attend(life func() string, doubt func(life string)) (stop func())
}

// Claim is what a process tells a store about one key. The store replaces by it
// what it knew of this process and the key, unless it has heard a later one.
type Claim struct {
	Key
	Limit int64
	// Life names the process since its start, or since it was in doubt: LifeSize
	// bytes. Former are its earlier names, of which nothing counts any more, at
	// most MaxFormer.
	Life   string
	Former []string
	// Seq is larger than that of every earlier claim of this life.
	Seq int64
	// Held is how many slots the process holds. They count whatever the limit is.
	Held int64
	// Want is how many slots more it wants: it is granted what fits.
	Want int64
	// Keep: an earlier claim may still arrive. Else a store that is told that
	// nothing is held need not remember that it was told.
	Keep bool
}

// Outcome is what became of a claim.
type Outcome struct {
	Granted  int64 // of the Want, 0 to Want
	InFlight int64 // of all processes, after the claim
	Err      error // an *[store.Error]; then the rest is of no account
}

// Validate reports what is wrong with a claim.
func (c *Claim) Validate() error {
	switch {
	case c.Limit < 1 || c.Limit > MaxLimit:
		return fmt.Errorf("inflight: limit %d of zone %q is not between 1 and %d", c.Limit, c.Zone, int64(MaxLimit))
	case c.Held < 0 || c.Held > MaxLimit || c.Want < 0 || c.Want > MaxLimit:
		return fmt.Errorf("inflight: %d slots held or %d wanted in zone %q are not between 0 and %d", c.Held, c.Want, c.Zone, int64(MaxLimit))
	case len(c.Client) > store.MaxClientBytes:
		return fmt.Errorf("inflight: key of %d bytes in zone %q is longer than %d; hash it first", len(c.Client), c.Zone, store.MaxClientBytes)
	case len(c.Life) != LifeSize || c.Seq < 1 || len(c.Former) > MaxFormer:
		return fmt.Errorf("inflight: life %q, claim %d or %d former names make no sense", c.Life, c.Seq, len(c.Former))
	}
	return nil
}
