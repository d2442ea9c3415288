package redis

import (
	"errors"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// The pauses between attempts to reach a server that is away grow from
	// the first to the last, each up to half as long again. A pause that has
	// just begun when the server is back, and the failed attempt before it,
	// are over within 2 s unless the timeouts are long.
	firstPause = 100 * time.Millisecond
	lastPause  = 700 * time.Millisecond
	// hiccupTime is for how long a server counts as in trouble after its
	// breaker opened again, see hiccups: else there would be two reports for
	// each time.
	hiccupTime = 10 * time.Second
)

// beat is what a heartbeat brought.
type beat struct {
	now     time.Time
	took    time.Duration // how long the server took to answer
	lost    string        // how it shows that the server has lost data, "" if it has not
	replied bool          // the server answered, perhaps with an error
	err     error         // errMoved if the list of instances is on another server
	breaker standing      // after the heartbeat
	overdue time.Duration // how long the latest overdue round trip took
}

// failure is why the server is in trouble, nil if it is not: a server whose
// list is elsewhere is there all the same.
func (b *beat) failure() error {
	if errors.Is(b.err, errMoved) {
		return nil
	}
	return b.err
}

// verdict is what follows from a heartbeat.
type verdict struct {
	reports []store.Report // in their order
	silent  bool           // contact with the server is lost
	hangUp  bool           // nobody answers on these connections
	moved   bool           // the Cluster's slots may have moved
	// well: the next heartbeat comes in its usual time, unless the breaker
	// opens before. Else it comes after a pause.
	well bool
}

// keeper judges heartbeats, one after the other. It does nothing itself, which
// leaves it to [node.keep].
type keeper struct {
	last    store.Report // what was reported
	hiccups hiccups
	pause   time.Duration // the next one
}

// loss is the report of a loss.
func (k *keeper) loss(lost string) store.Report {
	return store.Report{Condition: k.last.Condition, Lost: lost}
}

// judge says what follows from a heartbeat.
func (k *keeper) judge(b *beat) verdict {
	failure := b.failure()
	v := verdict{moved: b.err != nil, silent: failure != nil, well: failure == nil && !b.breaker.slow}
	next := store.Report{Condition: store.Up}
	switch {
	case failure != nil && !b.breaker.away:
		next = k.last // it is too early to tell
	case failure != nil:
		next = store.Report{Condition: store.Away, Err: failure}
		v.hangUp = !b.replied
	case b.breaker.slow:
		k.hiccups.held = false
		next = store.Report{Condition: store.Slow, Took: b.took, Wait: b.breaker.wait}
	case b.breaker.opened:
		if k.last.Condition != store.Up && !k.hiccups.held {
			break // it is back
		}
		// It answers when it is tried. It was away for a moment, or it
		// is late under load, or refuses what calls need.
		trouble := store.Report{Condition: store.Away, Err: b.breaker.reason}
		if wait := b.breaker.wait; wait > 0 {
			trouble = store.Report{Condition: store.Slow, Took: max(wait, b.overdue), Wait: wait}
		}
		if k.hiccups.again(b.now) {
			next = trouble
		} else {
			v.reports = append(v.reports, trouble)
		}
	case k.hiccups.holds(b.now):
		next = k.last
	}
	v.reports = append(v.reports, next)
	k.last = next
	if v.well {
		k.pause = firstPause
	}
	return v
}

// nextPause is how long the pause before the next attempt is at least. It
// grows until all is well.
func (k *keeper) nextPause() time.Duration {
	pause := max(k.pause, firstPause)
	k.pause = min(2*pause, lastPause)
	return pause
}

// hiccups are times when the breaker opened though the server answers whenever
// it is tried. If they come again soon, it is in trouble until they have not
// for hiccupTime.
type hiccups struct {
	last time.Time
	held bool // a report of trouble
}

// again notes a hiccup, and reports whether it came soon after the last one.
func (h *hiccups) again(now time.Time) bool {
	h.held = now.Sub(h.last) < hiccupTime
	h.last = now
	return h.held
}

// holds reports whether it is too early to report that all is well.
func (h *hiccups) holds(now time.Time) bool {
	h.held = h.held && now.Sub(h.last) < hiccupTime
	return h.held
}
