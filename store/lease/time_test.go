package lease

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// The clocks of a machine are set, its process is stopped, or it sleeps. By
// whichever clock a lease has ended, it is not spent.
func TestLeaseClocks(t *testing.T) {
	tests := []struct {
		name       string
		mono, wall time.Duration // steps of the clocks
		ended      bool
	}{
		{"wall clock set forward", 0, time.Hour, true},
		{"wall clock set back", 0, -time.Hour, false},
		{"stopped", time.Minute, time.Minute, true},
		{"stopped for as long as the lease lasts", 469 * time.Millisecond, 469 * time.Millisecond, true},
		{"asleep", 0, 10 * time.Second, true},
		{"stopped, and the wall clock set back", time.Minute, -time.Hour, true},
		{"nothing", 0, 0, false},
	}
	for _, test := range tests {
		inBubble(t, func(r *rig) {
			r.heat(r.request)
			before := r.sent()
			r.machine.mu.Lock()
			r.machine.stopped -= test.mono
			r.machine.wall += test.wall
			r.machine.mu.Unlock()
			source := store.FromLease
			if test.ended {
				source = store.FromStore
			}
			if a := r.granted(r.request, 1); a.Source != source {
				t.Errorf("%s: %+v, want source %d", test.name, a, source)
			}
			if asked := r.sent() > before; asked != test.ended {
				t.Errorf("%s: asked the store: %v", test.name, asked)
			}
			time.Sleep(2 * time.Second)
			r.want("in hand at last", r.inHand(r.request), 0)
			r.heat(r.request) // leases work as before
		})
	}
}

// A lease ends before it does at the store, reckoned from when the call was
// sent, however long the reply takes. Here the request is fast and the reply
// slow: reckoned from the reply, a unit would be spent when it counts no more.
func TestLeaseEndsInTime(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		time.Sleep(2 * time.Second)
		r.heat(r.request)
		r.wire.set(func(w *wire) { w.there, w.back = 0, 50*time.Millisecond })
		r.granted(r.request, r.inHand(r.request)+1)
		executed := time.Now().Add(-50 * time.Millisecond)
		asked, reply := r.wire.last()
		stamp, span := reply.Stamp, asked.LeaseSpan
		if r.inHand(r.request) == 0 {
			t.Fatal("no lease")
		}
		for r.inHand(r.request) > 0 && r.granted(r.request, 1).Source == store.FromLease {
			if now := r.wire.now(); now > stamp || time.Since(executed) > span {
				t.Fatalf("a unit is spent %dµs after its lease's end", now-stamp)
			}
			r.wire.set(func(w *wire) { w.there = time.Hour }) // no refills
			time.Sleep(20 * time.Millisecond)
			if now := r.wire.now(); now > stamp {
				break
			}
		}
		r.wire.set(func(w *wire) { w.there = 0 })
		time.Sleep(time.Until(executed.Add(span)))
		if a := r.granted(r.request, 1); a.Source == store.FromLease && a.Stamp == stamp {
			t.Errorf("spent after the end: %+v", a)
		}
		time.Sleep(2 * time.Hour)
	})
}

// A request for more than the lease has asks for the difference. If that is
// refused, everything stays as it was.
func TestLeaseDifference(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		n, before := r.inHand(r.request), r.total(r.request)
		r.refused(r.request, 6400-before+n+1)
		asked, _ := r.wire.last()
		r.want("asked", asked.Units, 6400-before+1)
		r.want("in hand", r.inHand(r.request), n)

		a := r.granted(r.request, n+5)
		asked, reply := r.wire.last()
		r.want("asked", asked.Units, 5)
		r.want("in hand", r.inHand(r.request), reply.Lease)

		// All of it is refunded as one charge.
		if err := r.Refund(budget, []store.Refund{{Key: r.request.Key, Charge: a.Charge, Units: n + 5, Source: a.Source}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := r.total(r.request); got < before-n || got > before {
			t.Errorf("%d units count, want about %d", got, before-n)
		}
		// What can never be granted does not ask for a difference that might.
		if a := r.refused(r.request, 6401); a.RetryAfter != r.request.Window {
			t.Errorf("more than the limit: %+v, want a retry after the window", a)
		}
	})
}

// A call holds the whole lease while it is asked about; meanwhile the next
// lease comes. When the call is refused its units go back beside it, and what
// nobody needs is refunded to the store: nothing is lost.
func TestLeaseHeldMeanwhile(t *testing.T) {
	inBubble(t, func(r *rig) {
		used := r.heat(r.request)
		n := r.inHand(r.request)
		r.wire.set(func(w *wire) { w.there, w.back = 30*time.Millisecond, 30*time.Millisecond })
		a := r.request
		a.Units = 6400
		var wg sync.WaitGroup
		wg.Go(func() { r.take(a) })
		synctest.Wait()
		r.want("in hand", r.inHand(r.request), 0)
		r.wire.set(func(w *wire) { w.there, w.back = 0, 0 })
		r.granted(r.request, 1)
		used++
		wg.Wait()
		if got := r.inHand(r.request); got < n {
			t.Errorf("%d in hand, want the %d that were held", got, n)
		}
		time.Sleep(time.Second)
		r.want("in hand at last", r.inHand(r.request), 0)
		r.want("units that count", r.total(r.request), used)

		// The same, but the refusal comes when the lease has ended.
		used += r.heat(r.request)
		r.wire.set(func(w *wire) { w.there, w.back = 2*time.Second, 2*time.Second })
		wg.Go(func() { r.take(a) })
		wg.Wait()
		r.want("in hand", r.inHand(r.request), 0)
		time.Sleep(3 * time.Second)
		r.want("units that count", r.total(r.request), used)
	})
}

// Clients that come once get no lease, however many there are.
func TestLeaseSeenOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		for i := range 1000 {
			r.request.Key.Client = fmt.Sprint(i)
			r.granted(r.request, 1)
		}
		asked, _ := r.wire.requests()
		for _, a := range asked {
			if a.Lease > 0 {
				t.Fatalf("a lease was asked for: %+v", a)
			}
		}
	})
}

// A hundred clients at once, again and again, and one lease is asked for at a
// time, whether ahead of need or with a unit that is needed.
func TestLeaseAskedForOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.wire.set(func(w *wire) { w.there = 20 * time.Millisecond })
		var wg sync.WaitGroup
		for range 50 {
			for range 40 {
				wg.Go(func() { r.take(r.request) })
			}
			time.Sleep(5 * time.Millisecond)
		}
		wg.Wait()
		r.wire.set(func(w *wire) { r.want("leases asked for at once", int64(w.mostAtOnce), 1) })
		time.Sleep(time.Second)
		r.want("units that count", r.total(r.request), 2000)
	})
}

// Near the limit leases shrink, down to one unit at a time: no unit is in
// another one's hand when it is needed.
func TestLeaseNearTheLimit(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		for r.take(r.request)[0].Granted {
			time.Sleep(100 * time.Microsecond)
			synctest.Wait()
		}
		used, seen := int64(0), false
		asked, replies := r.wire.requests()
		for i := range asked {
			a, reply := asked[i], replies[i]
			left := r.request.Limit - used
			if a.Lease > r.request.Limit/leaseParts || a.Lease > 1 && a.Lease > (left+a.Units+reply.Lease)/remainingParts {
				t.Fatalf("%+v with %d left", a, left)
			}
			seen = seen || a.Lease > 50
			used = r.request.Limit - reply.Remaining
		}
		if !seen {
			t.Error("no large lease")
		}
		if n := len(asked); asked[n-1].Lease+asked[n-2].Lease > 0 {
			t.Error("the last units were asked for with others")
		}
	})
}

// Round trips that are long for the window, or a limit that is too small:
// then leases would waste more than they save.
func TestLeaseNotWorthIt(t *testing.T) {
	tests := []struct {
		limit int64
		trip  time.Duration
	}{{63, time.Millisecond}, {6400, 2 * time.Second}}
	for _, test := range tests {
		inBubble(t, func(r *rig) {
			r.request.Limit = test.limit
			r.wire.set(func(w *wire) { w.there, w.back = test.trip, test.trip })
			for range 50 {
				r.granted(r.request, 1)
			}
			asked, _ := r.wire.requests()
			for _, a := range asked {
				r.want("asked for", a.Lease, 0)
			}
		})
	}
}

// The time that a caller gives is what a lease is judged by: one that has
// ended by then is not spent.
func TestLeaseTakeAtTheCallersTime(t *testing.T) {
	l, requests := New(plenty{}, Options{}), []store.Request{{Key: store.Key{Zone: "zone", Client: "203.0.113.7", Window: time.Minute}, Limit: store.MaxEvents, Units: 1}}
	now, decisions := time.Now(), make([]store.Decision, 1)
	source := func(at time.Time) store.Source {
		t.Helper()
		if err := l.Take(at, 0, requests, decisions); err != nil {
			t.Fatal(err)
		}
		return decisions[0].Source
	}
	source(now)
	source(now) // a key has a place when it comes again
	key := requests[0].Key
	_, known := l.of(key)
	known().first = batch{units: 10, Charge: store.Charge{Stamp: 1, Mark: 1}, end: l.reading(now.Add(time.Second))}
	if got := source(now.Add(time.Second - time.Nanosecond)); got != store.FromLease {
		t.Errorf("right before its end: source %v, want the lease", got)
	}
	if got := source(now.Add(time.Second)); got != store.FromStore {
		t.Errorf("at its end: source %v, want the store", got)
	}
}
