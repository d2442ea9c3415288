package redis

import (
	"errors"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// tells is a report, without its error.
type tells struct {
	condition  store.Condition
	took, wait time.Duration
	err        error
}

// beatJudged is a heartbeat, so long after the one before, and what is to follow.
type beatJudged struct {
	after time.Duration
	beat  beat

	reports []tells
	flags   string // of silent, hang up, moved, well: their first letters
}

// What heartbeats bring. errTrouble is what calls failed with.
var (
	errDown = errors.New("down")

	well     = beat{replied: true, took: 1}
	wellSlow = beat{replied: true, took: 2 * brief, breaker: standing{opened: true, reason: errTrouble, wait: brief, slow: true}}
	opened   = beat{replied: true, took: 1, breaker: standing{opened: true, reason: errTrouble}}
	overdue  = beat{replied: true, took: 1, overdue: long, breaker: standing{opened: true, reason: errTrouble, wait: brief}}
	early    = beat{replied: true, took: 1, overdue: 1, breaker: standing{opened: true, reason: errTrouble, wait: brief}}
	failing  = beat{err: errDown}
	down     = beat{err: errDown, breaker: standing{away: true}}
	refusing = beat{err: errDown, replied: true, breaker: standing{away: true}}
	moved    = beat{err: errMoved, replied: true}
)

var (
	isUp      = tells{condition: store.Up}
	isDown    = tells{condition: store.Away, err: errDown}
	isTrouble = tells{condition: store.Away, err: errTrouble}
	isSlow    = tells{condition: store.Slow, took: 2 * brief, wait: brief}
	isOverdue = tells{condition: store.Slow, took: long, wait: brief}
	isUnknown = tells{}
)

// TestKeeper: what follows from heartbeats, one after the other.
func TestKeeper(t *testing.T) {
	reports := func(r ...tells) []tells { return r }
	const second = time.Second
	for what, beats := range map[string][]beatJudged{
		"all is well": {
			{second, well, reports(isUp), "w"},
			{second, well, reports(isUp), "w"},
		},
		"away from the start": {
			{second, down, reports(isDown), "shm"},
			{second, well, reports(isUp), "w"},
		},
		"the first failure is too early to tell": {
			{second, failing, reports(isUnknown), "sm"},
			{second, well, reports(isUp), "w"},
			{second, failing, reports(isUp), "sm"},
			{second, down, reports(isDown), "shm"},
			{second, failing, reports(isDown), "sm"},
		},
		"the connections of a server that refuses stay": {
			{second, well, reports(isUp), "w"},
			{second, refusing, reports(isDown), "sm"},
		},
		"the list is elsewhere": {
			{second, moved, reports(isUp), "mw"},
			{second, down, reports(isDown), "shm"},
			{second, moved, reports(isUp), "mw"},
		},
		"away and back": {
			{second, well, reports(isUp), "w"},
			{second, down, reports(isDown), "shm"},
			{second, opened, reports(isUp), "w"}, // no hiccup
			{second, overdue, reports(isOverdue, isUp), "w"},
		},
		"slow": {
			{second, well, reports(isUp), "w"},
			{second, wellSlow, reports(isSlow), ""},
			{second, wellSlow, reports(isSlow), ""},
			{second, opened, reports(isUp), "w"},
		},
		"one hiccup": {
			{second, well, reports(isUp), "w"},
			{second, opened, reports(isTrouble, isUp), "w"},
			{second, well, reports(isUp), "w"},
			{hiccupTime, opened, reports(isTrouble, isUp), "w"},
		},
		"hiccups": {
			{second, well, reports(isUp), "w"},
			{second, early, reports(tells{store.Slow, brief, brief, nil}, isUp), "w"},
			{second, overdue, reports(isOverdue), "w"}, // it stays reported
			{hiccupTime / 2, well, reports(isOverdue), "w"},
			{hiccupTime/2 - 1, well, reports(isOverdue), "w"},
			{1, well, reports(isUp), "w"},
			{second, well, reports(isUp), "w"},
		},
		"hiccups again and again": {
			{second, well, reports(isUp), "w"},
			{second, opened, reports(isTrouble, isUp), "w"},
			{second, overdue, reports(isOverdue), "w"},
			{second, opened, reports(isTrouble), "w"},
			{hiccupTime - 1, opened, reports(isTrouble), "w"},
			{hiccupTime - 1, well, reports(isTrouble), "w"},
			{1, well, reports(isUp), "w"},
		},
		"hiccups of a server that is slow then": {
			{second, well, reports(isUp), "w"},
			{second, opened, reports(isTrouble, isUp), "w"},
			{second, opened, reports(isTrouble), "w"},
			{second, wellSlow, reports(isSlow), ""},
			{second, opened, reports(isUp), "w"}, // it is as fast as it need be
			{second, well, reports(isUp), "w"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			var k keeper
			now := began
			for i, step := range beats {
				now = now.Add(step.after)
				b := step.beat
				b.now = now
				judged(t, i, k.judge(&b), step)
			}
		})
	}
}

// judged wants a verdict to be that of a step.
func judged(t *testing.T, i int, v verdict, want beatJudged) {
	t.Helper()
	flags := ""
	for _, f := range []struct {
		set    bool
		letter string
	}{{v.silent, "s"}, {v.hangUp, "h"}, {v.moved, "m"}, {v.well, "w"}} {
		if f.set {
			flags += f.letter
		}
	}
	if flags != want.flags {
		t.Errorf("beat %d: flags %q, want %q", i, flags, want.flags)
	}
	if len(v.reports) != len(want.reports) {
		t.Fatalf("beat %d: reports %+v, want %+v", i, v.reports, want.reports)
	}
	for j, r := range v.reports {
		if got := (tells{r.Condition, r.Took, r.Wait, r.Err}); got != want.reports[j] || r.Lost != "" {
			t.Errorf("beat %d: report %+v, want %+v", i, r, want.reports[j])
		}
	}
}

// TestKeeperLoss: a loss changes nothing about how the server fares.
func TestKeeperLoss(t *testing.T) {
	var k keeper
	for _, b := range []beat{well, down, well} {
		b.now = began
		k.judge(&b)
		if r := k.loss("data"); r.Lost != "data" || r.Condition != k.last.Condition || r.Err != nil || k.last.Lost != "" {
			t.Errorf("report %+v of a loss after %+v", r, k.last)
		}
	}
}

// TestKeeperPauses: pauses grow to a bound until all is well.
func TestKeeperPauses(t *testing.T) {
	var k keeper
	for range 2 {
		for i, want := range []time.Duration{firstPause, 2 * firstPause, 4 * firstPause, lastPause, lastPause} {
			b := down
			k.judge(&b)
			if got := k.nextPause(); got != want {
				t.Errorf("pause %d is %v, want %v", i, got, want)
			}
		}
		b := wellSlow // this is not well
		k.judge(&b)
		if got := k.nextPause(); got != lastPause {
			t.Errorf("the pause is %v for a slow server, want %v still", got, lastPause)
		}
		b = well
		k.judge(&b)
	}
	// The breaker opens right after a heartbeat.
	if first, second := k.nextPause(), k.nextPause(); first != firstPause || second != 2*firstPause {
		t.Errorf("pauses %v and %v after all was well", first, second)
	}
}

// TestBreakerHeartbeat: what a heartbeat finds, and how it leaves the breaker.
func TestBreakerHeartbeat(t *testing.T) {
	b := seenBreaker()
	if got := b.tried(muchLater, 1, nil); got != (standing{}) {
		t.Errorf("of a closed breaker: %+v", got)
	}
	for i := range failuresToOpen {
		if got, want := b.tried(muchLater, 0, errTrouble), (standing{away: i == failuresToOpen-1}); got != want {
			t.Errorf("failure %d: %+v, want %+v", i, got, want)
		}
	}
	if got, want := b.tried(muchLater, long, nil), (standing{opened: true, reason: errTrouble}); got != want {
		t.Errorf("the server is back: %+v, want %+v", got, want)
	}
	admitted(t, b, 1, true)
	fail(b, failuresToOpen, brief)
	if got, want := b.tried(muchLater, 2*brief, nil), (standing{opened: true, reason: errTrouble, wait: brief, slow: true}); got != want {
		t.Errorf("the server is slow: %+v, want %+v", got, want)
	}
	admitted(t, b, brief, false)
	admitted(t, b, long, true)
	if got, want := b.tried(muchLater, brief/2, nil), (standing{opened: true, reason: errTrouble, wait: brief}); got != want {
		t.Errorf("it is fast again: %+v, want %+v", got, want)
	}
	admitted(t, b, 1, true)
}
