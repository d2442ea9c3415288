// Package store decides: it keeps, for every limited key, a log of the units
// granted in the last window, and grants more only while they fit.
//
// The package holds the contract of a store ([Store]), the arithmetic that
// every store shares ([Window]), a layer that spares a shared store most of
// its calls ([Leases]), what decides while a shared store is away
// ([Standby]), and the store that needs no server ([Memory]). It knows nothing
// of HTTP or of any particular server.
//
// # What it promises
//
// In every interval of one window, the units granted for a key total at most
// its limit, by the store's clock. A refused call is charged nowhere. What is
// granted can be given back.
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
	// ask.
	MaxEvents = 1_000_000_000_000
)

// Store decides calls. All methods are safe for concurrent use.
//
// Take decides all asks of one call together: either every ask that is not
// Advisory is granted and charged, or none is. It fills answers, which must
// be as long as asks; no two asks of one call may have the same Key and
// Window. When one refuses the others are answered too, unless they are
// Undecided: then Granted tells whether this one would have been granted, and
// nothing was charged.
//
// Take returns at the latest after wait (give or take the scheduler), with an
// error if there is no decision by then. With a wait of 0 it decides what it
// can without asking anybody, and else fails with [KindBudget]. An error means
// that no answer is valid; it is an *[Error] unless the asks are senseless. The
// call may have been executed all the same, so it must never be repeated on
// account of an error; [Error.Unexecuted] tells when it was certainly not.
//
// There is no context: a client that goes away while its request is being
// decided is counted all the same, so its request's context must not reach a
// store.
//
// Return gives units back, each to the grant they came from, at most once and
// on a best-effort basis: an error, or a silent loss, leaves the units spent
// until their window has passed. It waits at most wait. Returning what has
// expired meanwhile does nothing. A charge remembers which server's data it is
// in; when that has changed, by a failover or a restart, it is not given back:
// the data that is there now may lack the charge, and the units in its place be
// somebody else's.
//
// String names the data behind the store, without secrets, for logs and
// metrics: two stores of one name share their counts.
type Store interface {
	Take(wait time.Duration, asks []Ask, answers []Answer) error
	Return(wait time.Duration, grants []Grant) error
	String() string
}

// Key names a log within a store. Logs of different windows are different
// logs even under one key.
type Key struct {
	// Zone is the name of the limit: letters, digits and punctuation chosen
	// by the operator.
	Zone string
	// Client is whatever tells one client from another: any bytes, possibly
	// a stranger's, of any length up to [MaxClientBytes].
	Client string
}

// MaxClientBytes bounds Key.Client, and so what a stranger can make a store
// remember for one key. Callers hash what is longer.
const MaxClientBytes = 64

// Ask is one limit's part of a call.
//
// Need is all or nothing, and what a refusal is about. Extra asks for up to
// that many units more, from none to what fits; it is never a reason to
// refuse. Need 0 with Extra above 0 is a refill; both 0 is a look that
// changes nothing.
type Ask struct {
	Key    Key
	Window time.Duration // MinWindow to MaxWindow, whole microseconds
	Limit  int64         // 0 to MaxEvents
	Need   int64         // 0 to MaxEvents
	Extra  int64         // 0 to MaxEvents
	// Ahead is how long after the decision the units of a grant with extra
	// units may be spent: they all count as if spent at its end. 0 to
	// MaxAhead; it has no effect when no extra units are granted.
	Ahead time.Duration
	// Advisory asks are decided and charged like others, but their refusal
	// does not refuse the call. They are charged only if the call is granted.
	Advisory bool
	// Owed is what was spent of the limit while the store was away, and is
	// counted now: before the ask is decided, and whether or not the call is
	// granted. At most MaxOwed.
	Owed []Spent
}

// Spent is units that were spent an age ago, without the store. They count
// from when they were spent, so not at all if that is a window ago; if there
// are younger units in the log, until the next younger ones expire.
type Spent struct {
	Age   time.Duration // not negative, whole microseconds
	Units int64         // 1 to MaxEvents
}

// MaxOwed is how many entries Ask.Owed has at most.
const MaxOwed = 16

// MaxAhead is how far ahead of the store's clock a grant may be stamped.
const MaxAhead = time.Second

// Answer is the outcome of one ask.
type Answer struct {
	// Granted: Need fits. If it is true for every ask of the call that is
	// not Advisory, the units have been charged, else nothing has.
	Granted bool
	// Extra is how many of the extra units were granted and charged.
	Extra int64
	// Remaining is what is left of the limit after the call, never negative.
	Remaining int64
	// Reset is how long it takes until the whole limit is free again if
	// nobody asks meanwhile.
	Reset time.Duration
	// RetryAfter is set if Granted is false: how long it takes until Need
	// fits if nobody asks meanwhile; the window if Need exceeds the limit.
	RetryAfter time.Duration
	// Stamp, Mark and Origin identify what was charged, for giving it back.
	// They are zero if nothing was charged. Origin tells which server's data
	// the charge is in, to the store that made it; 0 if it does not know.
	Stamp, Mark, Origin int64
	// Source is who decided.
	Source Source
	// Undecided: another ask of the call is refused for sure, so that nobody
	// was asked about this one. The other fields are zero.
	Undecided bool
}

// Source tells who decided an ask.
type Source uint8

const (
	FromStore Source = iota // the store
	FromLease               // this process, with units it had been granted before
	FromCache               // this process, which remembers a refusal
)

// Charged reports whether the call charged units for this ask.
func (a *Answer) Charged() bool { return a.Mark != 0 }

// Grant names units that were charged and are given back.
type Grant struct {
	Key    Key
	Window time.Duration
	Stamp  int64 // of the answer
	Mark   int64 // of the answer
	Origin int64 // of the answer
	Units  int64 // 1 to what was charged
	Source Source
}

// Validate reports the first thing about a call that no store can serve: a
// mistake of the caller, since configurations are checked before.
func Validate(asks []Ask, answers []Answer) error {
	if len(asks) != len(answers) {
		return fmt.Errorf("store: %d asks with room for %d answers", len(asks), len(answers))
	}
	for i := range asks {
		a := &asks[i]
		switch {
		case a.Window < MinWindow || a.Window > MaxWindow || a.Window%time.Microsecond != 0:
			return fmt.Errorf("store: window %v of zone %q is not between %v and %v", a.Window, a.Key.Zone, MinWindow, MaxWindow)
		case a.Limit < 0 || a.Limit > MaxEvents || a.Need < 0 || a.Need > MaxEvents || a.Extra < 0 || a.Extra > MaxEvents:
			return fmt.Errorf("store: limit %d, need %d or extra %d of zone %q is not between 0 and %d", a.Limit, a.Need, a.Extra, a.Key.Zone, int64(MaxEvents))
		case a.Ahead < 0 || a.Ahead > MaxAhead:
			return fmt.Errorf("store: ahead %v of zone %q is not between 0 and %v", a.Ahead, a.Key.Zone, MaxAhead)
		case len(a.Owed) > MaxOwed:
			return fmt.Errorf("store: %d entries are owed in zone %q; %d is the most", len(a.Owed), a.Key.Zone, MaxOwed)
		case len(a.Key.Client) > MaxClientBytes:
			return fmt.Errorf("store: key of %d bytes in zone %q is longer than %d; hash it first", len(a.Key.Client), a.Key.Zone, MaxClientBytes)
		}
		for _, spent := range a.Owed {
			if spent.Age < 0 || spent.Age%time.Microsecond != 0 || spent.Units < 1 || spent.Units > MaxEvents {
				return fmt.Errorf("store: %d units of %v ago in zone %q cannot be owed", spent.Units, spent.Age, a.Key.Zone)
			}
		}
		for j := range i {
			if asks[j].Key == a.Key && asks[j].Window == a.Window {
				return fmt.Errorf("store: zone %q asked twice for one key in one call", a.Key.Zone)
			}
		}
	}
	return nil
}

// Granted reports whether a call is granted: every ask that is not advisory.
func Granted(asks []Ask, answers []Answer) bool {
	for i := range asks {
		if !answers[i].Granted && !asks[i].Advisory {
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
	// KindBudget: there was no time to wait for an answer; the server was not
	// asked.
	KindBudget Kind = "budget"
	// KindAway: the server is known to be away, or to answer too late; it was
	// not asked.
	KindAway Kind = "away"
)

// Kinds lists every Kind.
var Kinds = []Kind{KindTimeout, KindUnavailable, KindBroken, KindOverload, KindReply, KindBudget, KindAway}

// Error is the failure of a store, as opposed to its refusal.
type Error struct {
	Kind Kind
	// Unexecuted is true only if the call was certainly not executed and
	// never will be.
	Unexecuted bool
	// Late is set if the call may have been executed and its answers may
	// still come, nil otherwise. Whoever lets the request pass leaves it
	// alone: what is granted then stands.
	Late *Late
	// Known, if it is not nil, are the answers to the asks that were decided
	// though others were not, which are Undecided. None of them refuses, but
	// Advisory ones. What they charged stands, unless the caller returns it:
	// it is among the answers of Late.
	Known []Answer
	// Counted tells of each ask whether what it owes has been counted, or may
	// have been. It is nil if that is the same for all: unless Unexecuted.
	Counted []bool
	Err     error // never holds a secret
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
