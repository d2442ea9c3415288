package fallback_test

import (
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
)

// hot is a guard of a store with leases, and a call of one request that it decides
// from them.
func hot(tb testing.TB) (*fallback.Guard, *fallback.Call) {
	tb.Helper()
	leases := lease.New(store.NewMemory(0), lease.Options{})
	g := fallback.NewState().Guard(leases, new(notes))
	g.Start()
	tb.Cleanup(func() {
		g.Close()
		if err := leases.Close(time.Second); err != nil {
			tb.Error(err)
		}
	})
	c := new(fallback.Call)
	for inRow := 0; inRow < 2000; inRow++ { // until leases are as large as they must be
		if ask(g, c) != store.FromLease {
			inRow = 0
		}
	}
	return g, c
}

// ask uses a call once more, and reports who decided it.
func ask(g *fallback.Guard, c *fallback.Call) store.Source {
	c.Reset()
	c.Requests = append(c.Requests, zone("hot", store.MaxEvents))
	c.Policies = append(c.Policies, fallback.Decide)
	g.Decide(time.Now(), time.Second, c)
	return c.Decisions[0].Source
}

func TestDecideDoesNotAllocate(t *testing.T) {
	g, c := hot(t)
	const runs = 1000
	var allocs float64
	var fromLease int
	// A machine that stops for a moment lets the leases end.
	for range 50 {
		fromLease = 0
		allocs = testing.AllocsPerRun(runs, func() {
			if ask(g, c) == store.FromLease {
				fromLease++
			}
		})
		if allocs == 0 && fromLease >= runs/2 {
			return
		}
	}
	t.Errorf("%v allocations, %d of %d calls decided from a lease; want none, and most of them", allocs, fromLease, runs)
}

func BenchmarkDecide(b *testing.B) {
	g, c := hot(b)
	b.ReportAllocs()
	for b.Loop() {
		ask(g, c)
	}
}
