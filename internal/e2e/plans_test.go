package e2e

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// A plan changes while its user asks for as much as there is, from two instances:
// the new limit holds at once, for what was granted under the old one too.
func TestPlanChanges(t *testing.T) {
	const (
		window    = 2 * time.Second
		free, pro = 70, 700
		client    = "192.0.2.1"
	)
	redis := redistest.Start(t)
	config := strings.Replace(strictConfig(redis, 1, window), "distributed_ratelimit 1 2s", `distributed_ratelimit {
		zone plans {
			tier {header.X-Plan} {
				free 70
				pro 700
				default free
			}
			window 2s
		}
	}`, 1)
	instances := newInstances(t, 2, config)
	var plan [2]atomic.Value // as each instance knows it
	know := func(p string, instances ...int) {
		for _, i := range instances {
			plan[i].Store(p)
		}
	}
	know("pro", 0, 1)

	var rec record
	done := make(chan struct{})
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		crowd(6, func(i int) {
			for {
				select {
				case <-done:
					return
				default:
				}
				in := i % 2
				rec.add(instances[in].get(client, "X-Plan", plan[in].Load().(string)))
				time.Sleep(time.Millisecond)
			}
		})
	}()
	one := func(in int, p string) reply {
		r := instances[in].get(client, "X-Plan", p)
		rec.add(r)
		return r
	}

	time.Sleep(window + window/2)
	// Down: one instance knows it half a second before the other.
	know("free", 0)
	if r := one(0, "free"); r.granted() {
		t.Error("the first request of the smaller plan was granted: what the larger one granted is forgotten")
	}
	time.Sleep(window / 4)
	know("free", 1)
	time.Sleep(50 * time.Millisecond) // requests of the old plan end
	down := time.Now()
	if one(0, "free").granted() || one(1, "free").granted() {
		t.Error("granted where the larger plan has just granted ten times the smaller limit")
	}
	time.Sleep(2*window + window/2)
	// Up: the refusals that are remembered are the smaller plan's, and go on for a
	// second and more.
	for until := time.Now().Add(3 * window); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if one(0, "free").retryAfter == window && one(1, "free").retryAfter == window {
			break
		}
	}
	up := time.Now()
	know("pro", 0, 1)
	for in := range instances {
		if !one(in, "pro").granted() {
			t.Errorf("the first request of the larger plan was refused on instance %d", in)
		}
	}
	time.Sleep(window)
	close(done)
	<-asked

	rec.strict(t, pro, window)
	var after, later []storetest.Span
	for _, s := range rec.spans {
		switch {
		case s.From.After(down) && s.To.Before(up):
			after = append(after, s)
		case s.From.After(up):
			later = append(later, s)
		}
	}
	if most, at := storetest.Most(after, window); most > free {
		t.Errorf("%d granted within the %v from %v, all of them under the plan of %d", most, window, at, free)
	}
	if len(after) < free {
		t.Errorf("%d granted in the 5 s after the change, want at least the plan of %d", len(after), free)
	}
	if len(later) < 3*free {
		t.Errorf("%d granted in the window after the change to the plan of %d", len(later), pro)
	}
}
