package fallback_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// The state tells how servers fare, why and since when, and what was spent without them;
// and the guard by how much limits may be exceeded, until a window has passed.
func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(4)
		g, _ := guardOf(t, r)
		excess := func(limit int64, policy fallback.Policy, want float64) {
			t.Helper()
			stats := g.Stats()
			if got := g.Excess(&stats, time.Now(), limit, time.Hour, policy); got != want {
				t.Errorf("excess of a limit of %d with policy %d: %v, want %v", limit, policy, got, want)
			}
		}
		r.do(store.Report{Server: "b", Condition: store.Up, Instances: 4})
		r.do(store.Report{Server: "a", Condition: store.Up, Instances: 4})
		up := time.Now()
		time.Sleep(time.Minute)
		excess(10, fallback.Decide, 0)
		excess(10, fallback.Allow, 0)

		r.err = errAway
		r.do(store.Report{Server: "b", Condition: store.Away, Err: errAway, Instances: 4})
		decide(g, time.Second, []store.Request{zone("a", 10), zone("b", 10)})
		stats := g.Stats()
		if n := len(stats.Servers); n != 2 {
			t.Fatalf("%d servers, want 2: %+v", n, stats)
		}
		a, b := stats.Servers[0], stats.Servers[1]
		if a.Server != "a" || a.Condition != store.Up || !a.Since.Equal(up) || a.Err != nil {
			t.Errorf("the server that is there: %+v", a)
		}
		if b.Server != "b" || b.Condition != store.Away || b.Since.Sub(up) != time.Minute || b.Err == nil {
			t.Errorf("the server that is away: %+v", b)
		}
		if stats.Unreported != 2 || stats.UnreportedUnits != 2 || stats.Keys != 2 || !stats.Local.Equal(time.Now()) || !stats.Allowed.IsZero() {
			t.Errorf("after two decisions without the store: %+v", stats)
		}
		excess(10, fallback.Decide, 1)
		excess(2, fallback.Decide, 2) // each of four instances grants one
		excess(0, fallback.Decide, 0)
		excess(10, fallback.Deny, 0)
		excess(10, fallback.Allow, math.Inf(1))

		// It is back, but has lost counts. What was granted meanwhile counts for a window.
		r.err = nil
		time.Sleep(time.Minute)
		r.do(store.Report{Server: "b", Condition: store.Up, Lost: "the data is gone", Instances: 4})
		synctest.Wait()
		stats = g.Stats()
		if b := stats.Servers[1]; b.Losses != 1 || b.How != "the data is gone" || !b.Lost.Equal(time.Now()) || stats.Unreported != 0 || stats.UnreportedUnits != 0 {
			t.Errorf("after a loss: %+v, want all reported", stats)
		}
		excess(10, fallback.Decide, 2)
		excess(10, fallback.Deny, 1)
		time.Sleep(time.Hour)
		excess(10, fallback.Decide, 0)
	})
}

// A look is at the store, and while that is away at the local counts. It charges nothing,
// bans nobody, and is no call that anybody is told of.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(2)
		r.settings.Cautious = true
		g, n := guardOf(t, r)
		look := func(remaining int64, source store.Source, fails bool) {
			t.Helper()
			request := zone("a", 10)
			request.Units, request.Block = 100, time.Minute
			decisions := make([]store.Decision, 1)
			err := g.Look(time.Second, []store.Request{request}, decisions)
			if d := decisions[0]; d.Remaining != remaining || d.Source != source || d.Charged() || (err != nil) != fails {
				t.Errorf("look: %+v, %v; want %d left, from %v", d, err, remaining, source)
			}
		}
		r.do(store.Report{Server: "a", Condition: store.Up, Instances: 2})
		for range 3 {
			decide(g, time.Second, []store.Request{zone("a", 10)})
		}
		n.read()
		look(7, store.FromStore, false)
		look(7, store.FromStore, false)

		r.err = errAway
		look(2, store.FromLocal, true) // of the share of two instances
		look(2, store.FromLocal, true)
		if stats := g.Stats(); !stats.Local.IsZero() || stats.Unreported != 0 {
			t.Errorf("a look is taken for a decision: %+v", stats)
		}
		if lines := n.read(); len(lines) > 0 {
			t.Errorf("a look is told: %q", lines)
		}

		// A guard that is cautious holds clients to their share after a loss.
		r.err, r.memory = nil, store.NewMemory(0)
		r.do(store.Report{Server: "a", Condition: store.Up, Lost: "gone", Instances: 2})
		look(2, store.FromLocal, false)
		time.Sleep(time.Hour)
		look(10, store.FromStore, false)
	})
}
