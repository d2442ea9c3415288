package redis

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// pendingTake makes a call while replies are held, which is pending then.
func pendingTake(t *testing.T, s *Store, requests ...store.Request) *store.Pending {
	t.Helper()
	err := s.Take(time.Now(), 50*time.Millisecond, requests, make([]store.Decision, len(requests)))
	var e *store.Error
	if !errors.As(err, &e) || e.Kind != store.KindTimeout || e.Unexecuted || e.Pending == nil {
		t.Fatalf("Take: %+v; want a timeout that is pending", err)
	}
	return e.Pending
}

// heard collects the decisions of pending calls.
type heard chan []store.Decision

func (h heard) then(decisions []store.Decision) { h <- decisions }

// none wants no decisions to have come.
func (h heard) none(t *testing.T) {
	t.Helper()
	select {
	case decisions := <-h:
		t.Errorf("decisions %+v", decisions)
	default:
	}
}

// TestPendingDecisions: decisions that come after their call was given up are
// delivered to a function that is set before or after, and are the call's.
func TestPendingDecisions(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr, Timeout: 10 * time.Second})
	a, b := one("client", 10), one("client", 2)
	a.Units, b.Key.Zone = 3, "other"

	// A connection that is made while replies are held never comes about, so
	// there are some before, with one for a heartbeat.
	proxy.Delay(100 * time.Millisecond)
	var group sync.WaitGroup
	for proxy.Accepted() < 4 {
		group.Go(func() { take(t, s, one("warm", plenty)) })
		time.Sleep(10 * time.Millisecond)
	}
	group.Wait()
	proxy.Delay(0)
	proxy.HoldReplies()
	pending := pendingTake(t, s, a, b)
	refused := a
	refused.Units = 8
	never := pendingTake(t, s, refused)
	before, after := make(heard, 2), make(heard, 2)
	pending.Then(before.then)
	before.none(t)
	proxy.ReleaseReplies()

	var decisions []store.Decision
	select {
	case decisions = <-before:
	case <-time.After(patience):
		t.Fatal("no decisions came")
	}
	if len(decisions) != 2 || !decisions[0].Granted || decisions[0].Remaining != 7 || !decisions[1].Granted || decisions[1].Remaining != 1 {
		t.Fatalf("decisions %+v; want 7 and 1 remaining", decisions)
	}
	idle(t, s)
	never.Then(after.then)
	if len(after) != 1 {
		t.Fatal("decisions that have come already are not delivered at once")
	}
	if got := (<-after)[0]; got.Granted || got.Charged() || got.RetryAfter == 0 || got.Remaining != 7 {
		t.Errorf("decision %+v; want a refusal with 7 remaining", got)
	}

	// The charge can be refunded like any other.
	err := s.Refund(patience, []store.Refund{{Key: a.Key, Charge: decisions[0].Charge, Units: 3}})
	if err != nil {
		t.Error(err)
	}
	if got := used(t, s, "client", 10); got != 0 {
		t.Errorf("%d units used after all were refunded", got)
	}
	before.none(t)
	after.none(t)
}

// TestPendingFailure: there are no decisions if the connection breaks after all.
func TestPendingFailure(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr, Timeout: 10 * time.Second})
	proxy.HoldReplies()
	pending := pendingTake(t, s, one("client", 10))
	before, after := make(heard, 1), make(heard, 1)
	pending.Then(before.then)
	proxy.Cut()
	idle(t, s)
	proxy.ReleaseReplies()
	pending.Then(after.then)
	before.none(t)
	after.none(t)

	// A reply that is not the script's.
	c := newCall(kindTake, brief, 1)
	pendingCall(c, 1).Then(before.then)
	c.finish("nonsense", nil)
	before.none(t)
}

// TestPendingAtOnce: the reply comes at the moment at which the call is given up.
func TestPendingAtOnce(t *testing.T) {
	c := newCall(kindTake, brief, 1)
	c.finish("\x01"+strings.Repeat("\x00", takeReply-1), nil)
	got := make(heard, 1)
	pendingCall(c, 1).Then(got.then)
	if len(got) != 1 || !(<-got)[0].Granted {
		t.Error("no decision, or another one than the call's")
	}
}

// TestPendingWhenRefused: a reply comes when the call is being refused on account of
// another server. The caller is not told its decision, since the units are
// refunded.
func TestPendingWhenRefused(t *testing.T) {
	s := &servers{one: lateNode(), keys: newKeys(DefaultKeyPrefix, nil), timeout: brief}
	requests := []store.Request{one("full", 0), one("free", 10)}
	timeout := &store.Error{Kind: store.KindTimeout, Err: errTrouble}
	subcalls := []*subcall{
		{index: []int{0}, call: newCall(kindTake, brief, 1), reply: strings.Repeat("\x00", takeReply)},
		{index: []int{1}, call: newCall(kindTake, brief, 1), err: timeout},
	}
	subcalls[1].call.finish("\x01"+strings.Repeat("\x01", takeReply-1), nil)
	decisions := make([]store.Decision, 2)
	err := s.conclude(subcalls, requests, decisions)
	if err != nil || decisions[0].Granted || !decisions[1].Skipped || decisions[1].Charged() {
		t.Errorf("%+v, %v; want a refusal, and no decision of the server that was late", decisions, err)
	}
	if s.one.queue.size == 0 {
		t.Error("nothing is refunded")
	}
}
