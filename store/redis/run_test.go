package redis

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// callOf is a call of so many requests of a slot.
func callOf(slot uint16, requests int) *call {
	c := newCall(kindTake, brief, requests)
	for i := range c.items {
		c.items[i].key = fmt.Sprintf("%d:{%d}", i, slot)
	}
	return c
}

// TestRuns: which calls of a batch the script decides in one run.
func TestRuns(t *testing.T) {
	sizes := func(n *node, calls ...*call) (sizes []int) {
		for _, run := range n.runs(calls) {
			size := 0
			for _, c := range run {
				size += len(c.items)
			}
			sizes = append(sizes, size)
		}
		return sizes
	}
	one, several := &node{env: &environment{}}, &node{env: &environment{redirect: func(string, *call, error) {}}}
	many := func(n int) (calls []*call) {
		for i := range n {
			calls = append(calls, callOf(uint16(i), 1))
		}
		return calls
	}
	reports := func() *call {
		c := callOf(1, 1)
		c.items[0].spent = make([]byte, store.MaxUnreported*spentSize)
		return c
	}
	asking := callOf(1, 1)
	asking.asking = true
	for _, c := range []struct {
		name  string
		node  *node
		calls []*call
		want  []int
	}{
		{"one server", one, many(3), []int{3}},
		{"as many as a run holds", one, many(maxRun), []int{maxRun}},
		{"more than a run holds", one, many(2*maxRun + 1), []int{maxRun, maxRun, 1}},
		{"a large call among small ones", one, []*call{callOf(1, 1), callOf(1, 2*maxRun), callOf(1, 1)}, []int{1, 2 * maxRun, 1}},
		{"calls of several requests", one, []*call{callOf(1, 30), callOf(2, 30), callOf(3, 30)}, []int{60, 30}},
		{"calls that report much", one, []*call{reports(), reports(), reports(), reports()}, []int{3, 1}},
		{"a cluster", several, []*call{callOf(1, 1), callOf(2, 1), callOf(1, 1)}, []int{2, 1}},
		{"a call that was sent on", several, []*call{callOf(1, 1), asking, callOf(1, 1)}, []int{2, 1}},
	} {
		if got := sizes(c.node, c.calls...); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: runs of %v requests, want %v", c.name, got, c.want)
		}
	}
}

// TestLeftOutOfARun: a call that nobody waits for any more is not in the run, and
// the others get what is theirs.
func TestLeftOutOfARun(t *testing.T) {
	calls := []*call{callOf(1, 1), callOf(2, 1), callOf(3, 2)}
	calls[1].state.Store(left)
	c := newCommand(calls, &client{})
	if n := c.Args()[2]; n != 3 {
		t.Errorf("%v keys, want those of two calls", n)
	}
	a, b := make([]byte, takeReply), make([]byte, 2*takeReply)
	a[0], b[takeReply] = 1, 1
	if err := c.divide(string(a) + string(b)); err != nil {
		t.Fatal(err)
	}
	if calls[0].reply != string(a) || calls[2].reply != string(b) {
		t.Errorf("replies %x and %x", calls[0].reply, calls[2].reply)
	}
	select {
	case <-calls[1].done:
		t.Error("a call that was left out has a reply")
	default:
	}
	if err := c.divide(string(a)); !errors.Is(err, errReply) {
		t.Errorf("a reply that is too short: %v", err)
	}
}

// TestRunsThatFail: calls that share a run, which the server refuses, were each
// certainly not executed, and are counted nowhere; when it takes them again, each
// is counted once.
func TestRunsThatFail(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	const callers, each = 50, 20
	burst := func() (granted, unexecuted int) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for range each {
					decisions := make([]store.Decision, 1)
					err := s.Take(time.Now(), patience, []store.Request{one(fmt.Sprint("client", i%10), plenty)}, decisions)
					e, failed := errors.AsType[*store.Error](err)
					mu.Lock()
					switch {
					case err == nil && decisions[0].Granted:
						granted++
					case failed && e.Unexecuted:
						unexecuted++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		return granted, unexecuted
	}
	server.Do(t, "CONFIG", "SET", "maxmemory-policy", "noeviction")
	server.Do(t, "CONFIG", "SET", "maxmemory", "1")
	if granted, unexecuted := burst(); granted != 0 || unexecuted != callers*each {
		t.Errorf("a server that is full: %d granted and %d not executed, want 0 and %d", granted, unexecuted, callers*each)
	}
	server.Do(t, "CONFIG", "SET", "maxmemory", "0")
	eventually(t, "the server is asked again", func() bool {
		return s.Take(time.Now(), patience, []store.Request{one("other", plenty)}, make([]store.Decision, 1)) == nil
	})
	before := int64(0)
	for i := range 10 {
		before += used(t, s, fmt.Sprint("client", i), plenty)
	}
	if before != 0 {
		t.Errorf("%d units counted of calls that failed", before)
	}
	server.Do(t, "CONFIG", "RESETSTAT")
	if granted, _ := burst(); granted != callers*each {
		t.Errorf("%d granted, want %d", granted, callers*each)
	}
	after := int64(0)
	for i := range 10 {
		after += used(t, s, fmt.Sprint("client", i), plenty)
	}
	if after != callers*each {
		t.Errorf("%d units counted, want %d", after, callers*each)
	}
}

// TestGivenUpBetween: a call that is given up between the reply that the server does
// not have the script and the second time that it would be sent ends all the same:
// what other servers have charged for it is refunded only then.
func TestGivenUpBetween(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr, Timeout: 10 * time.Second})
	proxy.HoldReplies()
	server.Do(t, "SCRIPT", "FLUSH")
	c := s.keys.takeCall(brief, []store.Request{one("client", 10)})
	_, err := s.one.run(c, brief)
	if err == nil || err.Kind != store.KindTimeout || err.Unexecuted {
		t.Fatalf("%v; want a timeout of a call that was sent", err)
	}
	proxy.ReleaseReplies()
	select {
	case <-c.done:
		if c.err == nil || !c.err.Unexecuted {
			t.Errorf("it ended with %v; want that it was not executed", c.err)
		}
	case <-time.After(patience):
		t.Error("it never ends")
	}
	if got := used(t, s, "client", 10); got != 0 {
		t.Errorf("%d units used", got)
	}
}

// TestSplitRun: calls share a run while their slot moves, and some of their keys are
// here and others are not. Each is decided where its keys are, also if the server
// has no script: it says so only when it has all keys.
func TestSplitRun(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 2, 0)
	s := warmed(t, Options{Cluster: []string{cluster.Nodes[0].Addr}})
	var clients []string // of one slot
	for i := 0; len(clients) < 6; i++ {
		if client := fmt.Sprint("client", i); len(clients) == 0 || s.keys.slot(client) == s.keys.slot(clients[0]) {
			clients = append(clients, client)
		}
	}
	slot := int(s.keys.slot(clients[0]))
	here := cluster.Owner(t, slot)
	there := cluster.Nodes[0]
	if there == here {
		there = cluster.Nodes[1]
	}
	granted(t, s, one(clients[0], plenty))
	granted(t, s, one(clients[1], plenty))
	cluster.StartMigration(t, slot, here, there)
	here.Do(t, "SCRIPT", "FLUSH")
	there.Do(t, "SCRIPT", "FLUSH")

	var calls []*call
	for _, client := range clients {
		calls = append(calls, s.keys.takeCall(patience, []store.Request{one(client, plenty)}))
	}
	n := s.cluster.table.Load()[slot]
	for _, c := range calls {
		c.moveTo(&n.queue)
	}
	client := n.use()
	defer n.release(client)
	if err := n.send(client, patience, calls); err != nil {
		t.Error(err)
	}
	for i, c := range calls {
		up := time.NewTimer(patience)
		if _, err := c.await(up.C); err != nil {
			t.Errorf("call %d: %v", i, err)
		}
		up.Stop()
	}
	for i, client := range clients {
		want := int64(1)
		if i < 2 {
			want = 2
		}
		if got := used(t, s, client, plenty); got != want {
			t.Errorf("%d units of client %d are used, want %d", got, i, want)
		}
	}
}

// TestOneServerOfSlots: a Redis Cluster of one server may be used like a single
// server, since the keys of one client are in one slot. So calls that share a
// round trip must not meet in one run there.
func TestOneServerOfSlots(t *testing.T) {
	t.Parallel()
	server := redistest.StartCluster(t, 1, 0).Nodes[0]
	s := warmed(t, Options{Address: server.Addr})
	const callers, each = 40, 10
	var wg sync.WaitGroup
	var failures, granted atomic.Int64
	for i := range callers {
		wg.Go(func() {
			for range each {
				decisions := make([]store.Decision, 1)
				err := s.Take(time.Now(), patience, []store.Request{one(fmt.Sprint("client", i), plenty)}, decisions)
				if err != nil {
					failures.Add(1)
				} else if decisions[0].Granted {
					granted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if failures.Load() > 0 || granted.Load() != callers*each {
		t.Errorf("%d calls failed and %d were granted, want 0 and %d", failures.Load(), granted.Load(), callers*each)
	}
	if !s.one.bySlot.Load() {
		t.Error("nothing was refused, or what was is tried again and again")
	}
}
