package redis

import (
	"errors"
	"testing"
	"time"
)

var errTrouble = errors.New("trouble")

// seenBreaker is the breaker of a server that has answered.
func seenBreaker() *breaker {
	b := &breaker{}
	b.answered(began)
	return b
}

// began is when servers were heard last, and much later when they fail.
var (
	began     = time.Now()
	muchLater = began.Add(time.Hour)
)

// fail lets round trips fail, overdue for calls that wait this long if it is not
// 0, and returns how many of them opened the breaker.
func fail(b *breaker, failures int, wait time.Duration) (opened int) {
	for range failures {
		if b.failed(muchLater, errTrouble, wait) {
			opened++
		}
	}
	return opened
}

// admitted wants calls of a wait to be sent, or not to be.
func admitted(t *testing.T, b *breaker, wait time.Duration, want bool) {
	t.Helper()
	if got := b.admits(wait); got != want {
		t.Errorf("admits(%v) = %v, want %v; it is shut for waits up to %v after %d failures",
			wait, got, want, time.Duration(b.shut.Load()), b.run.Load())
	}
}

const (
	brief = 100 * time.Millisecond
	long  = 5 * time.Second
)

func TestBreakerOpens(t *testing.T) {
	b := seenBreaker()
	if fail(b, failuresToOpen-1, 0) != 0 {
		t.Error("opened too soon")
	}
	admitted(t, b, brief, true)
	if fail(b, 1, 0) != 1 {
		t.Error("not opened by the last failure of a run")
	}
	admitted(t, b, time.Hour, false)
	if open, err := b.isOpen(); !open || !b.isAway() || err != errTrouble {
		t.Errorf("isOpen() = %v, %v; isAway() = %v", open, err, b.isAway())
	}
	// It opens once, and an answer that was under way does not close it.
	if fail(b, 10, brief) != 0 {
		t.Error("opened again while it was open")
	}
	b.answered(began)
	admitted(t, b, time.Hour, false)
	// It has been overdue, too.
	if got := b.close(10 * time.Millisecond); got != 0 {
		t.Errorf("closed but for calls that wait %v", got)
	}
	admitted(t, b, 0, false) // there is no time to answer these
	admitted(t, b, 1, true)
	if open, err := b.isOpen(); open || err != nil || b.isAway() || b.disappointed() != 0 {
		t.Errorf("closed, but isOpen() = %v, %v; disappointed() = %v", open, err, b.disappointed())
	}
	if fail(b, failuresToOpen-1, 0) != 0 {
		t.Error("earlier failures still count")
	}
}

func TestBreakerSuccessResets(t *testing.T) {
	b := seenBreaker()
	for range 10 {
		if fail(b, failuresToOpen-1, brief) != 0 {
			t.Fatal("opened although there was a reply in between")
		}
		b.answered(began)
		if b.disappointed() != 0 {
			t.Fatalf("after a reply, %v is still too short a wait", b.disappointed())
		}
	}
}

// TestBreakerSilence: a server that was heard of is not away, however many
// failures there are.
func TestBreakerSilence(t *testing.T) {
	for _, test := range []struct{ wait, quiet time.Duration }{{0, silence}, {brief / 2, silence}, {long, long}} {
		b := seenBreaker()
		for range 3 * failuresToOpen {
			if b.failed(began.Add(test.quiet-1), errTrouble, test.wait) {
				t.Fatalf("late for calls that wait %v: opened before %v of silence", test.wait, test.quiet)
			}
		}
		if !b.failed(began.Add(test.quiet), errTrouble, test.wait) {
			t.Errorf("late for calls that wait %v: not opened after %v of silence", test.wait, test.quiet)
		}
	}
}

// TestBreakerNeverSeen: a server that was never there need not fail often.
func TestBreakerNeverSeen(t *testing.T) {
	b := &breaker{}
	if fail(b, 1, 0) != 1 {
		t.Error("not opened by the first failure")
	}
	b.close(0)
	if fail(b, failuresToOpen-1, 0) != 0 {
		t.Error("opened too soon once the server was seen")
	}
}

// TestBreakerSlow: a server that answers too late for some calls is there for
// calls that wait longer.
func TestBreakerSlow(t *testing.T) {
	b := seenBreaker()
	fail(b, failuresToOpen-1, brief)
	fail(b, 1, brief/2)
	if got := b.close(150 * time.Millisecond); got != brief {
		t.Errorf("close tells of calls that wait %v, want %v, the longest", got, brief)
	}
	admitted(t, b, brief/2, false)
	admitted(t, b, brief, false)
	admitted(t, b, 160*time.Millisecond, false) // for this, 150 ms is too near
	admitted(t, b, 200*time.Millisecond, true)
	if b.isAway() {
		t.Error("a server that answers is away")
	}

	// Still slow, slower, and fast again.
	b.close(600 * time.Millisecond)
	admitted(t, b, 700*time.Millisecond, false)
	admitted(t, b, time.Second, true)
	b.close(80 * time.Millisecond) // nearly as long as the wait
	admitted(t, b, brief, false)
	admitted(t, b, brief+time.Millisecond, true)
	if got := b.close(70 * time.Millisecond); got != 0 {
		t.Errorf("a server that is fast again is too late for calls that wait %v", got)
	}
	admitted(t, b, brief, true)
}

// TestBreakerShortWaits: in an outage everything fails, also calls that wait for a
// moment only. That does not make the server slow when it is back.
func TestBreakerShortWaits(t *testing.T) {
	const far = brief * 45 / 100
	b := seenBreaker()
	fail(b, failuresToOpen-1, brief)
	fail(b, 1, brief/2) // nearly too short for a server that is far
	if got := b.close(far); got != 0 {
		t.Errorf("a server that takes %v is too late for calls that wait %v", far, got)
	}
	admitted(t, b, brief, true)
	admitted(t, b, brief/2, true)
	admitted(t, b, brief/10, true)

	// Some were under way when it opened.
	fail(b, failuresToOpen, brief/2)
	fail(b, 1, brief)
	if got := b.close(far); got != 0 {
		t.Errorf("with the last failure the longest: too late for calls that wait %v", got)
	}

	// An earlier outage says nothing.
	fail(b, failuresToOpen-1, brief)
	b.answered(began)
	// If only calls with too short a wait fail, no more of them are sent.
	fail(b, failuresToOpen, brief/2)
	if got := b.close(far); got != brief/2 {
		t.Errorf("close tells of calls that wait %v, want %v", got, brief/2)
	}
	admitted(t, b, brief/2, false)
	admitted(t, b, brief, true)

	// That stays so when calls that wait longer fail, a few or all of them.
	fail(b, failuresToOpen-1, long)
	b.close(far)
	admitted(t, b, brief/2, false)
	fail(b, failuresToOpen, long)
	admitted(t, b, long, false)
	b.close(far)
	admitted(t, b, brief/2, false)
	admitted(t, b, brief, true)
	// Until it is as near as it need be.
	b.close(brief / 10)
	admitted(t, b, brief/2, true)
}

// TestBreakerSlowThenAway: a server that was slow goes away. Calls that wait
// for long must not each find out.
func TestBreakerSlowThenAway(t *testing.T) {
	b := seenBreaker()
	fail(b, failuresToOpen, brief)
	b.close(150 * time.Millisecond)
	for range 10 {
		if fail(b, failuresToOpen-1, 0) != 0 {
			t.Fatal("opened for all too soon")
		}
		b.answered(began)
	}
	if b.disappointed() != brief {
		t.Error("a reply to calls with a long wait says nothing about short ones")
	}
	if fail(b, failuresToOpen, 0) != 1 {
		t.Error("a slow server that fails again and again is not away")
	}
	admitted(t, b, time.Hour, false)
	b.close(150 * time.Millisecond)
	admitted(t, b, brief, false)
	admitted(t, b, long, true)
}

// TestBreakerRetired: there are no more heartbeats to close it.
func TestBreakerRetired(t *testing.T) {
	b := seenBreaker()
	fail(b, failuresToOpen, brief)
	b.retire()
	admitted(t, b, brief, true)
	if fail(b, 2*failuresToOpen, 0) != 0 {
		t.Error("opened when it was retired")
	}
	b.close(time.Second)
	admitted(t, b, brief, true)
}

// lateNode is a node whose server answers nothing, without a keeper and with a
// worker that does nothing.
func lateNode() *node {
	n := bareNode(newEnvironment(Options{PoolSize: 1}.withDefaults()), "", "", nil)
	n.client = &client{workers: 1, users: 1}
	n.breaker.answered(began.Add(-time.Hour))
	return n
}

// onTrip puts calls on one round trip of a node.
func onTrip(n *node, count int) []*call {
	calls := make([]*call, count)
	trip := &trip{failed: n.failed}
	for i := range calls {
		calls[i] = newCall(kindTake, brief, 1)
		calls[i].awaited = true
		calls[i].at.Store(&n.queue)
		calls[i].trip = trip
		calls[i].state.Store(sent)
	}
	return calls
}

// TestBreakerCountsTrips: a round trip is one failure however many calls share
// it. A call that is given up before it was sent is none.
func TestBreakerCountsTrips(t *testing.T) {
	n := lateNode()
	for i := range failuresToOpen {
		if len(n.wake) != 0 || n.breaker.isAway() {
			t.Fatalf("away after %d round trips", i)
		}
		for _, c := range onTrip(n, maxBatch) {
			if _, err := c.giveUp(); err == nil || err.Unexecuted {
				t.Fatalf("giveUp: %+v", err)
			}
		}
	}
	if !n.breaker.isAway() || len(n.wake) != 1 {
		t.Errorf("not away after %d round trips, %d failures; or the keeper sleeps", failuresToOpen, n.breaker.run.Load())
	}
	if got := n.breaker.disappointed(); got != brief {
		t.Errorf("%v was too short a wait, want %v", got, brief)
	}

	n = lateNode()
	for range 100 {
		c := newCall(kindTake, brief, 1)
		if err := n.submit(c); err != nil {
			t.Fatal(err)
		}
		if _, err := c.giveUp(); err == nil || !err.Unexecuted {
			t.Fatalf("giveUp of a call that was not sent: %+v", err)
		}
	}
	if got := n.breaker.run.Load(); got != 0 || n.queue.size != 0 {
		t.Errorf("%d failures of a server that was not asked; %d calls in the queue", got, n.queue.size)
	}
}

// TestGiveUpElsewhere: a call that was sent on to another server is given up
// there, and blamed on that one.
func TestGiveUpElsewhere(t *testing.T) {
	first, second := lateNode(), lateNode()
	stay, other := newCall(kindTake, brief, 1), newCall(kindTake, brief, 1)
	for n, c := range map[*node]*call{first: stay, second: other} {
		if err := n.submit(c); err != nil {
			t.Fatal(err)
		}
	}
	c := onTrip(first, 1)[0]
	c.state.Store(waiting)
	if err := second.submit(c); err != nil {
		t.Fatal(err)
	}
	if _, err := c.giveUp(); err == nil || !err.Unexecuted {
		t.Errorf("giveUp: %+v", err)
	}
	if first.queue.size != 1 || second.queue.size != 1 || first.queue.first != stay || second.queue.first != other {
		t.Errorf("%d and %d calls in the queues, want the one that was there in each", first.queue.size, second.queue.size)
	}

	c = onTrip(first, 1)[0]
	c.state.Store(waiting)
	if err := second.submit(c); err != nil {
		t.Fatal(err)
	}
	for _, c := range second.begin(second.client, nil) {
		c.state.Store(sent)
	}
	_, _ = c.giveUp()
	if first.breaker.run.Load() != 0 || second.breaker.run.Load() != 1 {
		t.Errorf("%d failures of the first server and %d of the second, want 0 and 1", first.breaker.run.Load(), second.breaker.run.Load())
	}
}

// TestOldWorkerStops: a worker on connections that were hung up takes no more
// calls.
func TestOldWorkerStops(t *testing.T) {
	n := lateNode()
	if err := n.submit(newCall(kindTake, brief, 1)); err != nil {
		t.Fatal(err)
	}
	old := n.client
	old.users++
	n.client = &client{}
	if batch := n.begin(old, nil); len(batch) != 0 || n.queue.size != 1 || old.workers != 0 || old.users != 1 {
		t.Errorf("%d calls are sent on the old connections by %d workers", len(batch), old.workers)
	}
}
