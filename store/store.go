// Package store decides: it keeps, for every limited key, a log of the units
// granted in the last window, and grants more only while they fit.
//
// The package holds the contract of a store ([Store], and [Shared] for one that
// several processes use), the arithmetic that every store shares ([Window]), and
// the store that needs no server ([Memory]). Layers over a store have packages of
// their own: lease spares a shared store most of its calls, and fallback decides
// while one is away. It knows nothing of HTTP or of any particular server.
//
// # What it promises
//
// In every interval of one window, the units granted for a key total at most
// its limit, by the store's clock. A refused call is charged nowhere. What is
// granted can be refunded.
//
// # What it does not promise
//
// A store forgets what it loses: a server that loses acknowledged writes may
// grant up to one limit more, once for each loss. [Memory] counts for one
// process only, and states at its type what it does when it is full.
package store

import (
	"errors"
	"fmt"
	"time"
)

// Bounds on what a store is asked for. Both stores pack numbers into 48 or 56
// bits and compute in 53 (a Lua number's integers), which these bounds leave
// ample room for.
const (
	MinWindow = time.Second
	MaxWindow = 30 * 24 * time.Hour
	// MaxEvents is the largest limit, and the largest number of units in one
	// request.
	MaxEvents = 1_000_000_000_000
	// MaxClientBytes bounds Key.Client, and so what a stranger can make a store
	// remember for one key. Callers hash what is longer.
	MaxClientBytes = 64
	// MaxUnreported is how many entries Request.Unreported has at most.
	MaxUnreported = 16
	// MaxLeaseSpan is how far ahead of the store's clock a charge may be stamped.
	MaxLeaseSpan = 10 * time.Second
)

// Store decides calls. All methods are safe for concurrent use.
//
// Take decides all requests of one call together: either every request that is
// not Shadow is granted and charged, or none is. It fills decisions, which must
// be as long as requests; no two requests of one call may have the same Key.
// When one is refused the others are decided too, unless they are Skipped: then
// Granted tells whether this one would have been granted, and nothing was
// charged.
//
// now is a reading of the clock that the caller has just made, which spares a
// store that needs one another reading. An old one would let a lease be spent
// after its end.
//
// Take returns at the latest after wait (give or take the scheduler), with an
// error if there is no decision by then. With a wait of 0 it decides what it
// can without asking anybody, and else fails with [KindBudget]. An error is an
// *[Error] unless the requests are senseless, and means that no decision is
// valid but what its Fates name. The call may have been executed all the same,
// so it must never be repeated on account of an error.
//
// There is no context: a client that goes away while its request is being
// decided is counted all the same, so the context of an HTTP request must not
// reach a store.
//
// Refund gives units back, each to the charge they came from, at most once and
// on a best-effort basis: an error, or a silent loss, leaves the units spent
// until their window has passed. It waits at most wait. Refunding what has
// expired meanwhile does nothing.
//
// String names the data behind the store, without secrets, for logs and
// metrics: two stores of one name share their counts.
type Store interface {
	Take(now time.Time, wait time.Duration, requests []Request, decisions []Decision) error
	Refund(wait time.Duration, refunds []Refund) error
	String() string
}

// Key names a log within a store: a limit, a client, and a window, since logs
// of different windows never mix.
type Key struct {
	// Zone is the name of the limit: letters, digits and punctuation chosen
	// by the operator.
	Zone string
	// Client is whatever tells one client from another: any bytes, possibly
	// a stranger's, of any length up to [MaxClientBytes].
	Client string
	// Window is the limit's, MinWindow to MaxWindow in whole microseconds.
	Window time.Duration
}

// Request is one limit's part of a call. Callers set the fields up to Block; layers
// set the others for the store below them.
//
// Units are granted all or none. No Units with a Lease is a refill of the
// caller's lease; neither is a look that changes nothing. A ban refuses all of them.
type Request struct {
	Key
	Limit int64 // 0 to MaxEvents
	Units int64 // 0 to MaxEvents
	// Shadow requests are decided and charged like others, but their refusal
	// does not refuse the call. They are charged only if the call is granted.
	Shadow bool
	// Exact requests are decided by the store alone: layers neither spend nor ask
	// for a lease for them, and remember no refusal. It is for limits whose units
	// are often refunded, so that the next decision, on whatever instance, knows.
	Exact bool
	// Block bans the key for so long once the request is refused because its Units do
	// not fit; 0 does not, MaxWindow is the most, in whole microseconds. See "Bans" at
	// [Window].
	Block time.Duration

	// Lease asks for up to that many units more, from none to what fits, 0 to
	// MaxEvents; it is never a reason to refuse. A caller may spend them during
	// LeaseSpan after it sent the call, 0 to MaxLeaseSpan: all units of the
	// charge count as if spent at its end. Package lease sets both.
	Lease     int64
	LeaseSpan time.Duration
	// Unreported is what was spent of the limit without the store, and is
	// counted now: before the request is decided, and whether or not the call
	// is granted. At most MaxUnreported entries. Package fallback sets it.
	Unreported []Spent
}

// Spent is units that were spent an age ago, without the store. They count
// from when they were spent, so not at all if that is a window ago.
type Spent struct {
	Age   time.Duration // not negative, whole microseconds
	Units int64         // 1 to MaxEvents
}

// Decision is what becomes of one request.
type Decision struct {
	// Granted: the Units fit. If it is true for every request of the call that
	// is not Shadow, the units have been charged, else nothing has.
	Granted bool
	// Lease is how many units of a lease were granted and charged.
	Lease int64
	// Remaining is what is left of the limit after the call, never negative.
	Remaining int64
	// Reset is how long it takes until the whole limit is free again if
	// nobody asks meanwhile.
	Reset time.Duration
	// RetryAfter is set if Granted is false: how long it takes until the Units
	// fit if nobody asks meanwhile; the window if they exceed the limit; and until
	// a ban ends if that is later.
	RetryAfter time.Duration
	// Charge is what was charged; zero if nothing was.
	Charge
	// Reported is set if the request reported anything, whether or not it is
	// granted: units that were spent an age ago count from Stamp less that age, or
	// later. They can be refunded as of then. It is zero if nothing counts.
	Reported Charge
	// Source is who decided.
	Source Source
	// Blocked: a ban refuses the request, which may have begun with it. Granted is
	// false, whatever fits.
	Blocked bool
	// Skipped: another request of the call is refused for sure, so that nobody
	// was asked about this one. The other fields are zero.
	Skipped bool
}

// Source tells who decided a request.
type Source uint8

const (
	FromStore  Source = iota // the store
	FromLease                // this process, with units that the store had granted it before
	FromCache                // this process, which remembers that the store refused
	FromLocal                // this process, while the store was away
	FromPolicy               // nobody counted anything
	Sources                  // how many there are
)

var sourceNames = [Sources]string{"store", "lease", "cache", "local", "policy"}

func (s Source) String() string { return sourceNames[s] }

// Charge identifies units that were charged, so that they can be refunded. Only
// the store that made it can tell what it says; layers carry it along.
type Charge struct {
	// Stamp is the moment from which the units count, in microseconds of the
	// store's clock.
	Stamp int64
	// Mark names the life of the log that they are in. It is 0 if nothing was
	// charged.
	Mark int64
	// Origin tells which server's data the log is in, 0 if that is not known.
	Origin int64
}

// Charged reports whether there is anything to be refunded.
func (c Charge) Charged() bool { return c.Mark != 0 }

// Refund names units that were charged and are refunded.
type Refund struct {
	Key
	Charge        // of the decision
	Units  int64  // 1 to what was charged
	Source Source // of the decision
}

// Validate reports the first thing about a call that no store can serve: a
// mistake of the caller, since configurations are checked before.
func Validate(requests []Request, decisions []Decision) error {
	if len(requests) != len(decisions) {
		return fmt.Errorf("store: %d requests with room for %d decisions", len(requests), len(decisions))
	}
	for i := range requests {
		request := &requests[i]
		switch {
		case request.Window < MinWindow || request.Window > MaxWindow || request.Window%time.Microsecond != 0:
			return fmt.Errorf("store: window %v of zone %q is not between %v and %v", request.Window, request.Zone, MinWindow, MaxWindow)
		case request.Limit < 0 || request.Limit > MaxEvents || request.Units < 0 || request.Units > MaxEvents || request.Lease < 0 || request.Lease > MaxEvents:
			return fmt.Errorf("store: limit %d, %d units or lease of %d in zone %q is not between 0 and %d", request.Limit, request.Units, request.Lease, request.Zone, int64(MaxEvents))
		case request.LeaseSpan < 0 || request.LeaseSpan > MaxLeaseSpan:
			return fmt.Errorf("store: lease span %v of zone %q is not between 0 and %v", request.LeaseSpan, request.Zone, MaxLeaseSpan)
		case request.Block < 0 || request.Block > MaxWindow || request.Block%time.Microsecond != 0:
			return fmt.Errorf("store: ban of %v in zone %q is not between 0 and %v", request.Block, request.Zone, MaxWindow)
		case len(request.Unreported) > MaxUnreported:
			return fmt.Errorf("store: %d entries are unreported in zone %q; %d is the most", len(request.Unreported), request.Zone, MaxUnreported)
		case len(request.Client) > MaxClientBytes:
			return fmt.Errorf("store: key of %d bytes in zone %q is longer than %d; hash it first", len(request.Client), request.Zone, MaxClientBytes)
		}
		for _, spent := range request.Unreported {
			if spent.Age < 0 || spent.Age%time.Microsecond != 0 || spent.Units < 1 || spent.Units > MaxEvents {
				return fmt.Errorf("store: %d units of %v ago in zone %q cannot be unreported", spent.Units, spent.Age, request.Zone)
			}
		}
		for j := range i {
			if requests[j].Key == request.Key {
				return fmt.Errorf("store: two requests for one key of zone %q in one call", request.Zone)
			}
		}
	}
	return nil
}

// Granted reports whether a call is granted: every request that is not Shadow.
func Granted(requests []Request, decisions []Decision) bool {
	for i := range requests {
		if !decisions[i].Granted && !requests[i].Shadow {
			return false
		}
	}
	return true
}

// Kind says in which way a store failed. There are few of them and they are
// fixed, so that they can label metrics.
type Kind string

const (
	// KindTimeout: no answer in time; the call may still be executed.
	KindTimeout Kind = "timeout"
	// KindUnavailable: no connection could be made.
	KindUnavailable Kind = "unavailable"
	// KindBroken: a connection broke; the call may have been executed.
	KindBroken Kind = "broken"
	// KindOverload: more calls are waiting than the store's queue holds.
	KindOverload Kind = "overload"
	// KindReply: the server answered with an error, or with nonsense.
	KindReply Kind = "reply"
	// KindBudget: there was no time to wait for a decision; the server was not
	// asked.
	KindBudget Kind = "budget"
	// KindAway: the server is known to be away, or to answer too late; it was
	// not asked.
	KindAway Kind = "away"
)

// Kinds lists every Kind.
var Kinds = []Kind{KindTimeout, KindUnavailable, KindBroken, KindOverload, KindReply, KindBudget, KindAway}

// Error is the failure of a store, as opposed to its refusal. A store with one
// server sets Kind, Unexecuted, Err and perhaps Pending.
type Error struct {
	Kind Kind
	// Unexecuted is true only if the call was certainly not executed and
	// never will be.
	Unexecuted bool
	// Fates tells what became of each request, if that is not the same for all.
	// The decisions of requests that are FateDecided are valid. If one of these is
	// refused, the call is: what it has charged is refunded by the store. Else
	// what they charged is among the decisions of Pending.
	Fates []Fate
	// Pending is set if the call may have charged something, and it can still
	// be found out what; nil otherwise. If whatever the call was for comes to
	// pass all the same, the charges stand; else they are to be refunded.
	Pending *Pending
	Err     error // never holds a secret
}

// Fate is what is known of one request of a call that failed.
type Fate uint8

const (
	FateUnknown    Fate = iota // it may have been executed, or may be yet
	FateUnexecuted             // it was certainly not executed, and never will be
	FateDecided                // it was executed, and the decision is known
)

// Fate is what became of the request with an index.
func (e *Error) Fate(i int) Fate {
	switch {
	case e.Fates != nil:
		return e.Fates[i]
	case e.Unexecuted:
		return FateUnexecuted
	}
	return FateUnknown
}

func (e *Error) Error() string { return fmt.Sprintf("store %s: %v", e.Kind, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrorKind returns the kind of a store's error, KindReply if it has none.
func ErrorKind(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindReply
}
