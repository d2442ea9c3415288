package lease

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Leases are long while little of the limit is used, and short when much is, or when it
// would soon be.
func TestSpan(t *testing.T) {
	const limit = 6400
	request := store.Request{Key: store.Key{Window: time.Minute}, Limit: limit}
	short, long := shortest(time.Minute), longest(time.Minute)
	for _, test := range []struct {
		name  string
		used  int64
		spent int64         // here
		ago   time.Duration // when
		want  time.Duration
	}{
		{"nothing is used", 0, 0, 0, long},
		{"a single unit is no rate", 0, 1, 0, long},
		{"a 25th", limit / 25, 0, 0, long},
		{"a 16th", limit / 16, 0, 0, time.Minute * 16 / spanParts},
		{"a half", limit / 2, 0, 0, time.Minute * 2 / spanParts},
		{"all", limit, 0, 0, short},
		{"a burst just now", 0, 1 + limit/spanParts, 0, short},
		{"half of such a burst", 0, 1 + limit/spanParts/2, 0, 2 * short},
		{"some seconds ago", 0, 1 + limit/24/4, 2 * time.Second, time.Minute * 4 / spanParts},
		{"a while ago", 0, 1 + limit/6/4, 8 * time.Second, time.Minute * 4 / spanParts},
	} {
		k := leaseKey{limit: limit, remaining: limit - test.used}
		now := moment{mono: time.Hour}
		k.demand.add(request.Window, test.spent, now.add(-test.ago))
		if got := k.span(&request, now); got < test.want*97/100 || got > test.want*103/100 {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	// What is not known to be calm for long has short leases.
	for _, test := range []struct{ calm, want time.Duration }{
		{-time.Second, short}, {0, short}, {time.Second, short}, {8 * time.Second, 2 * time.Second}, {time.Minute, long},
	} {
		now := moment{mono: time.Hour}
		k := leaseKey{limit: limit, remaining: limit, calmSince: now.mono - test.calm}
		if got := k.span(&request, now); got != test.want {
			t.Errorf("calm for %v: %v, want %v", test.calm, got, test.want)
		}
	}
	for _, window := range []time.Duration{store.MinWindow, time.Minute, time.Hour, store.MaxWindow} {
		if short, long := shortest(window), longest(window); short > long || long > store.MaxLeaseSpan || long > window/6 || short > time.Second || short%time.Microsecond+long%time.Microsecond != 0 {
			t.Errorf("window %v: %v to %v", window, short, long)
		}
	}
}

// A lease that was asked for later may end sooner: its units are refunded at its own
// end, not at that of the one before, and are in nobody's way meanwhile.
func TestLeaseThatEndsSooner(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.know(r.request)
		for range 3 {
			r.granted(r.request, 1)
			time.Sleep(50 * time.Millisecond)
		}
		long := r.key(r.request).first
		if long.end.mono-r.clock().mono < 5*time.Second {
			t.Fatalf("%+v, want a long lease", long)
		}
		for r.key(r.request).first.end.mono > r.clock().mono+time.Second {
			r.granted(r.request, 1) // a sudden load
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
		}
		time.Sleep(time.Second + leaveTime)
		if k := r.key(r.request); k.first.units > 0 && k.first.end.mono < r.clock().mono {
			t.Errorf("%s: the units of a lease that has ended are still here", r.state(r.request))
		}
		time.Sleep(store.MaxLeaseSpan)
		r.want("in hand", r.inHand(r.request), 0)
	})
}

// A key that is refused is not calm until it fits again.
func TestCalmSince(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.know(r.request)
		before := r.key(r.request).calmSince
		if calm := r.clock().mono - before; calm < calmParts*longest(r.request.Window) {
			t.Fatalf("calm for %v", calm)
		}
		r.granted(r.request, 6000)
		r.refused(r.request, 1000)
		if k := r.key(r.request); k.calmSince < r.clock().mono+time.Second {
			t.Errorf("refused, and calm since %v, now %v", k.calmSince, r.clock().mono)
		}
	})
}

// What is left of the leases of keys that are little used is refunded together.
func TestLeftoversGoTogether(t *testing.T) {
	inBubble(t, func(r *rig) {
		const keys = 300
		for i := range int64(keys) {
			a := r.request
			a.Key.Client = string(rune('一' + i))
			for range 2 + strangerParts {
				r.granted(a, 1)
			}
			if r.inHand(a) == 0 {
				t.Fatal("no lease")
			}
		}
		calls := func() int {
			r.wire.central.mu.Lock()
			defer r.wire.central.mu.Unlock()
			return r.wire.gives
		}
		before := calls()
		time.Sleep(store.MaxLeaseSpan + leaveTime + time.Second)
		if refunds := len(r.wire.refunded()); refunds != keys {
			t.Errorf("%d refunds, want %d", refunds, keys)
		}
		if n := calls() - before; n > 10 {
			t.Errorf("%d calls for them, want few", n)
		}

		// Closing does not leave them behind.
		r.heat(r.request)
		r.leave(r.request.Key, &holding{{units: 1, Charge: store.Charge{Stamp: 1, Mark: 1, Origin: 1}}})
		if err := r.Close(time.Second); err != nil {
			t.Fatal(err)
		}
		if refunded := r.wire.refunded(); !containsStamp(refunded, 1) {
			t.Errorf("closed, and %+v refunded: want what was left, too", refunded)
		}
		time.Sleep(store.MaxLeaseSpan)
	})
	// Where more than half is used others may be waiting for them.
	inBubble(t, func(r *rig) {
		r.granted(r.request, 4000)
		r.heat(r.request)
		end := r.key(r.request).first.end
		time.Sleep(end.mono - r.clock().mono)
		synctest.Wait()
		r.want("refunded at once", int64(len(r.wire.refunded())), 1)
		time.Sleep(time.Second)
	})
}

// A lease that is smaller than a request would be gone with the next one, and all units
// of the call would be held until its end.
func TestNoLeaseWithALargeRequest(t *testing.T) {
	inBubble(t, func(r *rig) {
		for range 5 {
			r.granted(r.request, 200)
		}
		for asked, _ := r.wire.requests(); len(asked) > 0; asked = asked[1:] {
			r.want("lease", asked[0].Lease, 0)
		}
	})
}

// Many clients come a few times and not again soon: no lease is asked for them.
func TestNoLeaseForStrangers(t *testing.T) {
	inBubble(t, func(r *rig) {
		for i := range rune(100) {
			a := r.request
			a.Key.Client = string('一' + i)
			for range strangerParts {
				r.granted(a, 1)
			}
		}
		for asked, _ := r.wire.requests(); len(asked) > 0; asked = asked[1:] {
			r.want("lease", asked[0].Lease, 0)
		}
		// A client that is known comes seldom, but for long.
		r.know(r.request)
		r.granted(r.request, 1)
		time.Sleep(time.Second)
		r.granted(r.request, 1)
		if asked, _ := r.wire.last(); asked.Lease == 0 {
			t.Error("a client that is known gets no lease")
		}
	})
}

func containsStamp(refunds []store.Refund, stamp int64) bool {
	for i := range refunds {
		if refunds[i].Stamp == stamp {
			return true
		}
	}
	return false
}
