package e2e

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// A plan changes while its user asks for as much as there is, from three instances:
// the new limit holds at once, for what was granted under the old one too, and all of a
// larger one is there at once.
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
	instances := newInstances(t, 3, config)
	var plan [3]atomic.Value // as each instance knows it
	know := func(p string, instances ...int) {
		for _, i := range instances {
			plan[i].Store(p)
		}
	}
	know("pro", 0, 1, 2)

	var rec record
	var mu sync.Mutex
	var refused []storetest.Span // by the larger plan
	ask := func(in int, p string) reply {
		r := instances[in].get(client, "X-Plan", p)
		rec.add(r)
		if p == "pro" && !r.granted() {
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, r.span)
		}
		return r
	}
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
				in := i % len(instances)
				ask(in, plan[in].Load().(string))
				time.Sleep(time.Millisecond)
			}
		})
	}()

	time.Sleep(window + window/2)
	// Down: one instance knows it half a second before the other.
	know("free", 0)
	if r := ask(0, "free"); r.granted() {
		t.Error("the first request of the smaller plan was granted: what the larger one granted is forgotten")
	}
	time.Sleep(window / 4)
	know("free", 1, 2)
	time.Sleep(50 * time.Millisecond) // requests of the old plan end
	down := time.Now()
	if ask(0, "free").granted() || ask(1, "free").granted() || ask(2, "free").granted() {
		t.Error("granted where the larger plan has just granted ten times the smaller limit")
	}
	time.Sleep(2*window + window/2)
	// Up: the refusals that are remembered are the smaller plan's, and go on for a
	// second and more.
	for until := time.Now().Add(3 * window); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if ask(0, "free").retryAfter == window && ask(1, "free").retryAfter == window && ask(2, "free").retryAfter == window {
			break
		}
	}
	up := time.Now()
	know("pro", 0, 1, 2)
	for in := range instances {
		if !ask(in, "pro").granted() {
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
	// What leases hold is missing to others: a 64th of the limit each, two an instance.
	const leased = 2 * 3 * (pro/64 + 1)
	for _, r := range refused {
		spent := 0
		for _, s := range rec.spans {
			if s.From.Before(r.To) && s.To.After(r.From.Add(-window*33/32)) {
				spent++
			}
		}
		if spent < pro-leased {
			t.Errorf("refused %v after the larger plan began, with %d of %d spent", r.From.Sub(up), spent, pro)
			break
		}
	}
}
