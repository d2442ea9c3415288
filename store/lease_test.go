package store

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The reply to a call that was granted never comes. What it granted is not
// spent: nobody knows when it would end.
func TestLeaseReplyLost(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		n := r.inHand(r.ask)
		before := r.total(r.ask)
		r.wire.set(func(w *wire) { w.mute = true })
		a := r.ask
		a.Need = n + 1
		if err := r.Take(budget, []Ask{a}, make([]Answer, 1)); ErrorKind(err) != KindBroken {
			t.Errorf("%v, want a broken connection", err)
		}
		r.want("in hand afterwards", r.inHand(r.ask), n)
		if r.total(r.ask) <= before {
			t.Error("the store did not execute the call")
		}
		// Nor a lost refill's.
		for !r.key(r.ask).refilling {
			r.granted(r.ask, 1)
		}
		n = r.inHand(r.ask)
		time.Sleep(5 * time.Millisecond)
		r.want("in hand after a lost refill", r.inHand(r.ask), n)
		if r.key(r.ask).refilling {
			t.Error("still waits for the refill")
		}
	})
}

// The reply comes when its lease has ended: the units go back at once.
func TestLeaseReplyLate(t *testing.T) {
	inBubble(t, func(r *rig) {
		used := r.heat(r.ask) + r.inHand(r.ask)
		r.wire.set(func(w *wire) { w.back = 465 * time.Millisecond }) // the store's own time of it is not over
		r.granted(r.ask, r.inHand(r.ask)+1)
		used++
		if a, _ := r.wire.last(); a.Extra == 0 {
			t.Fatalf("asked %+v, want a lease asked for", a)
		}
		r.want("in hand", r.inHand(r.ask), 0)
		time.Sleep(time.Second)
		r.want("units that count", r.total(r.ask), used)
	})
}

// Giving back fails: the units stay spent until their window has passed, and
// are not sent again.
func TestLeaseGiveBackLost(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.wire.set(func(w *wire) { w.deaf = true })
		n, before := r.inHand(r.ask), r.total(r.ask)
		time.Sleep(30 * time.Second)
		r.want("given back", int64(len(r.wire.given())), 1)
		r.want("units of it", r.wire.given()[0].Units, n)
		r.want("units that count", r.total(r.ask), before)
		time.Sleep(32 * time.Second)
		r.want("units that count after a window", r.total(r.ask), 0)
	})
}

// What was given back is executed long afterwards, when its units have expired
// and others count: it must not take theirs. Nor may it if the store's clock
// was set back meanwhile: then its stamp is another one's.
func TestLeaseGiveBackLate(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.wire.set(func(w *wire) { w.tardy = 61 * time.Second })
		time.Sleep(time.Minute)
		r.granted(r.ask, 50)
		r.want("given back", int64(len(r.wire.given())), 1)
		time.Sleep(10 * time.Second)
		r.want("units that count", r.total(r.ask), 50)
	})
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.wire.set(func(w *wire) { w.tardy = 5 * time.Second })
		time.Sleep(time.Second)
		r.want("given back", int64(len(r.wire.given())), 1)
		r.wire.step(4 * time.Second)
		before := r.total(r.ask)
		time.Sleep(4 * time.Second)
		r.granted(r.ask, 50)
		time.Sleep(time.Second)
		r.want("units that count", r.total(r.ask), before+50)
	})
}

// A process dies with units in hand: they count until their window has passed,
// and its successor does not have them.
func TestLeaseCrash(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.wire.set(func(w *wire) { w.deaf = true }) // nothing leaves a dead process
		before := r.total(r.ask)
		r.Leases = newLeases(r.wire, LeasesOptions{}, r.machine.clock)
		r.granted(r.ask, 6400-before)
		r.refused(r.ask, 1)
		time.Sleep(time.Minute + time.Second)
		r.granted(r.ask, 6400)
	})
}

// While a lease is out the limit is lowered: its units are no room under the
// new limit. When it is raised again they are.
func TestLeaseLimitChanges(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		n := r.inHand(r.ask)
		lower := r.ask
		lower.Limit = r.total(r.ask) - 1
		if a := r.refused(lower, 1); a.Source != FromStore {
			t.Errorf("%+v, want it refused by the store", a)
		}
		if a := r.granted(r.ask, 1); a.Source != FromLease {
			t.Errorf("%+v, want it from the lease", a)
		}
		lower.Limit += 5
		r.granted(lower, 1)
		r.want("in hand", r.inHand(r.ask), n-1)
		time.Sleep(time.Second)
		r.granted(lower, 1) // the lease is over, and the key is about the new limit
		r.want("limit", r.key(lower).limit, lower.Limit)
	})
}

// Units held by a call must not get into a lease of another limit that has
// come in between.
func TestLeaseLimitChangesMeanwhile(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		a := r.ask
		a.Need = 6400
		var wg sync.WaitGroup
		wg.Go(func() { r.take(a) }) // holds everything, and is refused
		synctest.Wait()
		r.want("in hand", r.inHand(r.ask), 0)
		r.wire.set(func(w *wire) { w.there, w.back = 0, 0 })
		other := r.ask
		other.Limit = 5000
		r.granted(other, 1)
		wg.Wait()
		r.want("in hand under the new limit", r.inHand(r.ask), 0)
		time.Sleep(time.Second)
		r.want("given back", int64(len(r.wire.given())), 1)
	})
}

// A limit of one, and one that is smaller than the number of processes.
func TestLeaseSmallLimits(t *testing.T) {
	for _, limit := range []int64{1, 3} {
		inBubble(t, func(r *rig) {
			r.ask.Limit = limit
			granted := int64(0)
			for range 8 {
				r.Leases = newLeases(r.wire, LeasesOptions{}, r.machine.clock)
				for range 5 {
					if r.take(r.ask)[0].Granted {
						granted++
					}
				}
			}
			r.want("granted", granted, limit)
			asked, _ := r.wire.asks()
			for _, a := range asked {
				r.want("asked for", a.Extra, 0)
			}
			time.Sleep(r.refused(r.ask, 1).RetryAfter)
			r.granted(r.ask, 1)
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
		{MaxWindow, 6400, time.Millisecond},
		{time.Minute, 1_000_000_000, time.Millisecond},
		{time.Minute, MaxEvents, time.Millisecond},
	}
	for _, test := range tests {
		inBubble(t, func(r *rig) {
			r.wire.set(func(w *wire) { w.there, w.back = test.trip, test.trip })
			r.ask.Window, r.ask.Limit = test.window, test.limit
			r.heat(r.ask)
			var spent []entry
			before := r.sent()
			for range 5000 {
				if r.take(r.ask)[0].Granted {
					spent = append(spent, entry{passed(), 1})
				}
				time.Sleep(leaseSpan(test.window) / 100)
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
		full := r.ask
		full.Key.Zone, full.Limit = "full", 3
		r.wire.central.Take(0, []Ask{{Key: full.Key, Window: full.Window, Limit: 3, Need: 3}}, make([]Answer, 1))
		r.heat(r.ask)
		n, before := r.inHand(r.ask), r.sent()
		for i, source := range []Source{FromStore, FromCache} {
			answers := r.take(r.ask, full)
			if answers[0].Charged() || answers[1].Granted || answers[1].Source != source || !answers[0].Undecided {
				t.Errorf("call %d: %+v", i, answers)
			}
			r.want("in hand", r.inHand(r.ask), n)
		}
		r.want("asked", int64(r.sent()-before), 1)

		// A refusal that does not count leaves the other one to decide.
		full.Advisory = true
		if answers := r.take(r.ask, full); !answers[0].Granted || answers[1].Granted {
			t.Errorf("advisory: %+v", answers)
		}
		r.want("in hand", r.inHand(r.ask), n-1)

		// A call that only leases decide.
		third := r.ask
		third.Key.Zone = "third"
		r.heat(third)
		r.heat(r.ask)
		before = r.sent()
		for i, a := range r.take(r.ask, third) {
			if !a.Granted || a.Source != FromLease || !a.Charged() {
				t.Errorf("ask %d: %+v, want it from a lease", i, a)
			}
		}
		r.want("asked", int64(r.sent()-before), 0)
	})
}
