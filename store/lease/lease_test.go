package lease

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// The reply to a call that was granted never comes. What it granted is not
// spent: nobody knows when it would end.
func TestLeaseReplyLost(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		n := r.inHand(r.request)
		before := r.total(r.request)
		r.wire.set(func(w *wire) { w.mute = true })
		a := r.request
		a.Units = n + 1
		if err := r.Take(time.Now(), budget, []store.Request{a}, make([]store.Decision, 1)); store.ErrorKind(err) != store.KindBroken {
			t.Errorf("%v, want a broken connection", err)
		}
		r.want("in hand afterwards", r.inHand(r.request), n)
		if r.total(r.request) <= before {
			t.Error("the store did not execute the call")
		}
		// Nor a lost refill's.
		for !r.key(r.request).refilling {
			r.granted(r.request, 1)
		}
		n = r.inHand(r.request)
		time.Sleep(5 * time.Millisecond)
		r.want("in hand after a lost refill", r.inHand(r.request), n)
		if r.key(r.request).refilling {
			t.Error("still waits for the refill")
		}
	})
}

// The reply comes when its lease has ended: the units go back at once.
func TestLeaseReplyLate(t *testing.T) {
	inBubble(t, func(r *rig) {
		used := r.heat(r.request) + r.inHand(r.request)
		k := r.key(r.request)
		span := k.span(&r.request, r.clock())
		r.wire.set(func(w *wire) { w.back = span - 3*time.Millisecond }) // the store's own time of it is not over
		r.granted(r.request, r.inHand(r.request)+1)
		used++
		if a, _ := r.wire.last(); a.Lease == 0 {
			t.Fatalf("asked %+v, want a lease asked for", a)
		} else if a.LeaseSpan != span {
			t.Fatalf("asked %+v, want it for %v", a, span)
		}
		r.want("in hand", r.inHand(r.request), 0)
		time.Sleep(time.Second)
		r.want("units that count", r.total(r.request), used)
	})
}

// Giving back fails: the units stay spent until their window has passed, and
// are not sent again.
func TestLeaseRefundLost(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.wire.set(func(w *wire) { w.deaf = true })
		n, before := r.inHand(r.request), r.total(r.request)
		time.Sleep(30 * time.Second)
		r.want("refunded", int64(len(r.wire.refunded())), 1)
		r.want("units of it", r.wire.refunded()[0].Units, n)
		r.want("units that count", r.total(r.request), before)
		time.Sleep(30*time.Second + store.MaxLeaseSpan)
		r.want("units that count after a window", r.total(r.request), 0)
	})
}

// What was refunded is executed long afterwards, when its units have expired
// and others count: it must not take theirs. Nor may it if the store's clock
// was set back meanwhile: then its stamp is another one's.
func TestLeaseRefundLate(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.wire.set(func(w *wire) { w.tardy = 61 * time.Second })
		time.Sleep(time.Minute)
		r.granted(r.request, 50)
		r.want("refunded", int64(len(r.wire.refunded())), 1)
		time.Sleep(10 * time.Second)
		r.want("units that count", r.total(r.request), 50)
	})
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.wire.set(func(w *wire) { w.tardy = 16 * time.Second })
		time.Sleep(time.Second)
		r.want("refunded", int64(len(r.wire.refunded())), 1)
		r.wire.step(15 * time.Second)
		before := r.total(r.request)
		time.Sleep(15 * time.Second)
		r.granted(r.request, 50)
		time.Sleep(time.Second)
		r.want("units that count", r.total(r.request), before+50)
	})
}

// A process dies with units in hand: they count until their window has passed,
// and its successor does not have them.
func TestLeaseCrash(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.wire.set(func(w *wire) { w.deaf = true }) // nothing leaves a dead process
		before := r.total(r.request)
		r.Store = newStore(r.wire, Options{}, r.machine.clock)
		r.granted(r.request, 6400-before)
		r.refused(r.request, 1)
		time.Sleep(time.Minute + store.MaxLeaseSpan)
		r.granted(r.request, 6400)
	})
}

// While a lease is out the limit is lowered: its units are no room under the
// new limit. When it is raised again they are.
func TestLeaseLimitChanges(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		n := r.inHand(r.request)
		lower := r.request
		lower.Limit = r.total(r.request) - 1
		if a := r.refused(lower, 1); a.Source != store.FromStore {
			t.Errorf("%+v, want it refused by the store", a)
		}
		if a := r.granted(r.request, 1); a.Source != store.FromLease {
			t.Errorf("%+v, want it from the lease", a)
		}
		lower.Limit += 5
		r.granted(lower, 1)
		r.want("in hand", r.inHand(r.request), n-1)
		time.Sleep(time.Second)
		r.granted(lower, 1) // the lease is over, and the key is about the new limit
		r.want("limit", r.key(lower).limit, lower.Limit)
	})
}

// Units held by a call must not get into a lease of another limit that has
// come in between.
func TestLeaseLimitChangesMeanwhile(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		a := r.request
		a.Units = 6400
		var wg sync.WaitGroup
		wg.Go(func() { r.take(a) }) // holds everything, and is refused
		synctest.Wait()
		r.want("in hand", r.inHand(r.request), 0)
		r.wire.set(func(w *wire) { w.there, w.back = 0, 0 })
		other := r.request
		other.Limit = 5000
		r.granted(other, 1)
		wg.Wait()
		r.want("in hand under the new limit", r.inHand(r.request), 0)
		time.Sleep(time.Second)
		r.want("refunded", int64(len(r.wire.refunded())), 1)
	})
}

// A limit of one, and one that is smaller than the number of processes.
func TestLeaseSmallLimits(t *testing.T) {
	for _, limit := range []int64{1, 3} {
		inBubble(t, func(r *rig) {
			r.request.Limit = limit
			granted := int64(0)
			for range 8 {
				r.Store = newStore(r.wire, Options{}, r.machine.clock)
				for range 5 {
					if r.take(r.request)[0].Granted {
						granted++
					}
				}
			}
			r.want("granted", granted, limit)
			asked, _ := r.wire.requests()
			for _, a := range asked {
				r.want("asked for", a.Lease, 0)
			}
			time.Sleep(r.refused(r.request, 1).RetryAfter)
			r.granted(r.request, 1)
		})
	}
}

// The shortest window, the longest one, and a limit that could be spent in no
// time: leases work, and no interval has too many units.
func TestLeaseExtremes(t *testing.T) {
	tests := []struct {
		window time.Duration
		limit  int64
		trip   time.Duration
	}{
		{time.Second, 640, 100 * time.Microsecond},
		{store.MaxWindow, 6400, time.Millisecond},
		{time.Minute, 1_000_000_000, time.Millisecond},
		{time.Minute, store.MaxEvents, time.Millisecond},
	}
	for _, test := range tests {
		inBubble(t, func(r *rig) {
			r.wire.set(func(w *wire) { w.there, w.back = test.trip, test.trip })
			r.request.Window, r.request.Limit = test.window, test.limit
			r.heat(r.request)
			var spent []entry
			before := r.sent()
			for range 5000 {
				if r.take(r.request)[0].Granted {
					spent = append(spent, entry{passed(), 1})
				}
				time.Sleep(shortest(test.window) / 100)
			}
			if units, _ := mostIn(spent, test.window); units > test.limit || units == 0 {
				t.Errorf("%+v: %d units in a window", test, units)
			}
			calls := r.sent() - before
			t.Logf("%+v: %d granted, %d calls", test, len(spent), calls)
			if test.limit > 100_000 && calls > 200 {
				t.Errorf("%+v: %d calls for %d units", test, calls, len(spent))
			}
		})
	}
}

// Two zones, one of them used up: the other one's lease keeps its units, be
// the refusal the store's or a remembered one.
func TestLeaseZonesTogether(t *testing.T) {
	inBubble(t, func(r *rig) {
		full := r.request
		full.Key.Zone, full.Limit = "full", 3
		r.wire.central.Take(time.Now(), 0, []store.Request{{Key: full.Key, Limit: 3, Units: 3}}, make([]store.Decision, 1))
		r.heat(r.request)
		n, before := r.inHand(r.request), r.sent()
		for i, source := range []store.Source{store.FromStore, store.FromCache} {
			decisions := r.take(r.request, full)
			if decisions[0].Charged() || decisions[1].Granted || decisions[1].Source != source || !decisions[0].Skipped {
				t.Errorf("call %d: %+v", i, decisions)
			}
			r.want("in hand", r.inHand(r.request), n)
		}
		r.want("asked", int64(r.sent()-before), 1)

		// A refusal that does not count leaves the other one to decide.
		full.Shadow = true
		if decisions := r.take(r.request, full); !decisions[0].Granted || decisions[1].Granted {
			t.Errorf("shadow: %+v", decisions)
		}
		r.want("in hand", r.inHand(r.request), n-1)

		// A call that only leases decide.
		third := r.request
		third.Key.Zone = "third"
		r.heat(third)
		r.heat(r.request)
		before = r.sent()
		for i, a := range r.take(r.request, third) {
			if !a.Granted || a.Source != store.FromLease || !a.Charged() {
				t.Errorf("request %d: %+v, want it from a lease", i, a)
			}
		}
		r.want("asked", int64(r.sent()-before), 0)
	})
}
