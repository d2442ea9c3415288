package redis

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// failuresToOpen is how many round trips in a row must fail, or be overdue,
	// until a server counts as away.
	failuresToOpen = 3
	// silence is for how long nothing must have been heard of it then, and for
	// at least as long as the failed calls waited: a server that is late with
	// one reply in twenty, or closes all connections at once, is not away.
	silence = 100 * time.Millisecond
)

// epoch is the zero of times, on the monotonic clock.
var epoch = time.Now()

// breaker keeps calls from a server that would not answer them in time. It
// opens after a run of failures, and heartbeats close it, which go on by
// themselves: no HTTP request has to find out at its own cost that the server is
// back.
//
// A server that answers, but slowly, is away for calls that wait less than it
// takes, and is there for others. It counts as slow only if the most patient of
// the failed calls would fail again: an outage is too long for every call, also
// for one that waits for the little that is left of a budget, and says nothing
// about how long the server takes when it is back. Calls that wait less are then
// sent, as before the outage. If the server takes too long for them, they fail
// when their wait is over, and if no other calls are answered, a run of such
// failures shuts the breaker for calls with as short a wait.
type breaker struct {
	// shut is the longest wait of calls that are not sent: 0 if all are,
	// MaxInt64 if none is.
	shut atomic.Int64
	run  atomic.Int32 // failures in a row, of calls that were sent
	seen atomic.Bool  // the server has answered once
	// heard is when a round trip was last in time, since epoch in ns.
	heard atomic.Int64

	mu sync.Mutex
	// longest is the longest wait that was too short in this run, 0 if the
	// failures were of another kind.
	longest time.Duration
	// patience is the longest of the run for which the breaker is shut for short
	// waits only, 0 if it is not. Later runs leave it alone: they are of calls
	// that wait longer.
	patience time.Duration
	err      error // of the latest failure
	retired  bool  // there are no more heartbeats to close it
}

const never = math.MaxInt64

// admits reports whether a call that waits this long is to be sent.
func (b *breaker) admits(wait time.Duration) bool { return int64(wait) > b.shut.Load() }

// answered notes a round trip that was in time.
func (b *breaker) answered(at time.Time) {
	b.heard.Store(int64(at.Sub(epoch)))
	if !b.seen.Load() {
		b.seen.Store(true)
	}
	if b.run.Load() == 0 || b.shut.Load() == never {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut.Load() != never { // a failure since may have opened it
		b.run.Store(0)
		b.longest = 0
	}
}

// failed notes a round trip that failed or, if wait is not 0, was not over
// when a call had waited that long. It reports whether that opened the
// breaker: for a server that has never been there, one failure is enough.
func (b *breaker) failed(at time.Time, err error, wait time.Duration) (opened bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	b.longest = max(b.longest, wait)
	quiet := at.Sub(epoch) - time.Duration(b.heard.Load())
	run := b.run.Add(1)
	if b.seen.Load() && (run < failuresToOpen || quiet < max(wait, silence)) || b.retired || b.shut.Load() == never {
		return false
	}
	b.shut.Store(never)
	return true
}

// close lets calls pass again. took is how long the server took to answer: if
// that would have been too late for all calls that failed, the breaker stays shut
// for waits as short as theirs, and close reports the longest of them.
func (b *breaker) close(took time.Duration) (tooLateFor time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen.Store(true)
	b.run.Store(0)
	if b.patience == 0 {
		b.patience = b.longest
	}
	b.longest = 0
	// What takes nearly all of the wait would fail again at once.
	if b.patience > 0 && took > b.patience*3/4 && !b.retired {
		b.shut.Store(int64(max(b.patience, took*5/4)))
		return b.patience
	}
	b.patience, b.err = 0, nil
	b.shut.Store(0)
	return 0
}

// standing is how a breaker stands after a heartbeat.
type standing struct {
	away bool // no call is sent at all
	// opened: the breaker was open, for a reason, and the heartbeat has closed
	// it. wait is the longest wait that was not long enough then, 0 if the
	// failures were of another kind.
	opened bool
	reason error
	wait   time.Duration
	slow   bool // it stays shut for calls that wait no longer than that
}

// tried takes in a heartbeat, which the server took so long to answer
// unless it failed.
func (b *breaker) tried(at time.Time, took time.Duration, err error) standing {
	if err != nil {
		b.failed(at, err, 0)
		return standing{away: b.isAway()}
	}
	s := standing{}
	if s.opened, s.reason = b.isOpen(); s.opened {
		s.wait = b.disappointed()
		s.slow = b.close(took) > 0
	}
	return s
}

// retire closes the breaker for good.
func (b *breaker) retire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retired = true
	b.shut.Store(0)
}

// isAway reports whether no call is sent at all.
func (b *breaker) isAway() bool { return b.shut.Load() == never }

// isOpen reports whether there are calls that are not sent, and why.
func (b *breaker) isOpen() (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shut.Load() != 0, b.err
}

// disappointed is the longest wait that was too short, in this run or in the one
// for which the breaker is shut; 0 if none was.
func (b *breaker) disappointed() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.patience > 0 {
		return b.patience
	}
	return b.longest
}
