package store

import (
	"sync/atomic"
	"time"
)

// Standby decides in this process while a shared store is away. It is kept
// warm before, by what the store grants ([Standby.Feed]), and what it granted
// itself is told to the store afterwards: with the next call for the key
// ([Standby.Attach]), or by [Standby.Settle].
//
// # What it promises
//
// Each of A processes grants up to a share of a limit L, max(1, L/A) rounded
// down, and counts against it what it granted in the last window in any way,
// as far as it was fed. So in any interval of one window all of them together
// grant at most max(L, A) units by themselves, and with what the store
// granted in it at most L + max(L, A), while A is right.
//
// What it grants for a call that was certainly not executed is owed to the
// store. It is reported at most once: what a call of unknown fate was to
// report is not reported again. Units are owed as of a moment that is never
// earlier than when they were spent, so that the store never forgets them
// early, and later by a 15th of the window at most (more if reports fail again
// and again, when there is no room to keep entries apart).
//
// # Bounds
//
// Two tables of at most 65,536 keys each, one of logs and one of what is
// owed. A stranger who invents clients can fill them. A key that is new to
// the logs then takes the place of the one of which the smallest share is
// used, as in [Memory], whose client gets that much back; what a key that is
// new to the other table spends is not reported, unless something there has
// expired. A key takes what it takes in Memory, and while it owes something
// about 300 bytes more, a kilobyte at most.
//
// # Time
//
// Times are read from the monotonic clock. Where it stops while the machine
// sleeps, units are held longer by the sleep, here and then by the store.
//
// A Standby is safe for concurrent use, has no goroutine, and never waits for
// anything but its own short locks.
type Standby struct {
	memory *Memory

	// What is owed, see standby_owed.go.
	owing    atomic.Int64 // keys in all of debts; never above standbyKeys
	debts    [maxShards]debts
	settling atomic.Bool
}

// standbyKeys bounds each table of a Standby.
const standbyKeys = 65_536

// owedMark is set in the marks of grants that were noted as owed when they
// were made. Marks are microseconds and far from this bit.
const owedMark = 1 << 62

// NewStandby returns a Standby that knows of nothing granted.
func NewStandby() *Standby {
	return &Standby{memory: NewMemory(standbyKeys)}
}

// Feed takes in what the store, or a lease of it, granted to a call: the Need
// of each ask that was charged counts here too, as of now. Extra units are
// not spent yet, and count when they are. It is meant for every call that is
// granted. A key for which there is no room is passed over.
func (s *Standby) Feed(asks []Ask, answers []Answer) {
	s.memory.feed(asks, answers)
}

// Take decides asks as [Store] says, but with a share of each limit, that of
// one of so many instances: a limit above 0 is divided by them, and is 1 at
// least. Answers are about the share. No extra units are granted, and what the
// asks owe is of no account: it was counted here when it was spent.
//
// If owe is set, what is charged is owed to the store: it may be set only if
// the store has certainly not executed the call. Take fails only for asks that
// make no sense.
func (s *Standby) Take(asks []Ask, answers []Answer, instances int, owe bool) error {
	var few [4]Ask
	shares := append(few[:0], asks...)
	for i := range shares {
		a := &shares[i]
		if a.Limit > 0 {
			a.Limit = max(1, a.Limit/int64(max(1, instances)))
		}
		a.Extra, a.Owed = 0, nil
	}
	if err := s.memory.Take(0, shares, answers); err != nil {
		return err
	}
	if !owe {
		return nil
	}
	for i := range asks {
		if answers[i].Charged() {
			s.owe(&asks[i], answers[i].Stamp)
			answers[i].Mark |= owedMark
		}
	}
	return nil
}

// Return gives back what Take charged, as [Store] says. What of it is owed
// still is so no longer; if it is just being reported, the store counts it
// unless that call turns out not to have been executed. It never waits and
// never fails.
func (s *Standby) Return(_ time.Duration, grants []Grant) error {
	for _, g := range grants {
		if g.Mark&owedMark != 0 {
			g.Mark &^= owedMark
			s.forgive(&g)
		}
		s.memory.giveBack(&g)
	}
	return nil
}
