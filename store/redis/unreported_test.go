package redis

import (
	"errors"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// TestUnreportedOnceOverShards: what one shard has counted is not reported again
// because another shard did not execute its subcall.
func TestUnreportedOnceOverShards(t *testing.T) {
	r := &clusterRig{Cluster: redistest.StartCluster(t, masters, 0), keys: newKeys(DefaultKeyPrefix, nil)}
	s := warmed(t, r.options())
	a, b := one(r.client(0), 100), one(r.client(1), 100)
	granted(t, s, a)
	granted(t, s, b)

	local := fallback.NewLocal()
	requests := []store.Request{a, b}
	if err := local.Take(requests, make([]store.Decision, 2), 1, []store.Fate{store.FateUnexecuted, store.FateUnexecuted}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond) // not quiet
	r.Nodes[1].Do(t, "CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction")
	flush := func() (err error) {
		local.Flush(func(requests []store.Request, decisions []store.Decision) error {
			err = s.Take(time.Now(), time.Second, requests, decisions)
			return err
		})
		return err
	}
	err := flush()
	e, ok := errors.AsType[*store.Error](err)
	t.Logf("first report: %v; unexecuted %v", err, ok && e.Unexecuted)
	r.Nodes[1].Do(t, "CONFIG", "SET", "maxmemory", "0")
	eventually(t, "everything is reported", func() bool {
		_ = flush()
		return local.Unreported() == 0
	})
	if got := used(t, s, a.Key.Client, 100); got != 2 {
		t.Errorf("a: %d units in use, want 2", got)
	}
	if got := used(t, s, b.Key.Client, 100); got != 2 {
		t.Errorf("b: %d units in use, want 2", got)
	}
}

// TestBackgroundCallsAreNoRequests: a call that no HTTP request waits for says
// nothing about the budget.
func TestBackgroundCallsAreNoRequests(t *testing.T) {
	proxy := redistest.NewProxy(t, redistest.Start(t).Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	granted(t, s, one("x", 100))
	w := watch(t, s)
	time.Sleep(200 * time.Millisecond)
	proxy.Delay(20 * time.Millisecond)
	refill := one("x", 100)
	refill.Units, refill.Lease = 0, 2
	for range 3 {
		_ = s.Take(time.Now(), 8*time.Millisecond, []store.Request{refill}, make([]store.Decision, 1))
		time.Sleep(60 * time.Millisecond)
	}
	time.Sleep(3 * time.Second)
	for range 20 {
		if err := s.Take(time.Now(), 100*time.Millisecond, []store.Request{one("x", 100)}, make([]store.Decision, 1)); err != nil {
			t.Errorf("request: %v", err)
		}
	}
	t.Logf("%+v", w.all())
	for _, c := range w.conditions() {
		if c == store.Slow || c == store.Away {
			t.Errorf("reported %v though every request is answered in time", c)
		}
	}
}
