package lease

import (
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// A remembered refusal decides until the moment that the store named.
func TestRefusalUntilItsTime(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit, r.request.Window = 2, time.Second
		r.granted(r.request, 2)
		time.Sleep(600 * time.Millisecond)
		first := r.refused(r.request, 1)
		at, calls := time.Now(), r.sent()
		for time.Since(at) < first.RetryAfter-3*time.Millisecond {
			a := r.refused(r.request, 1)
			if a.Source != store.FromCache {
				t.Fatalf("%v later: %+v, want it from memory", time.Since(at), a)
			}
			// Truthful: not too short, and longer by a round trip at most.
			if early := at.Add(first.RetryAfter).Sub(time.Now().Add(a.RetryAfter)); early > 0 || early < -3*time.Millisecond {
				t.Fatalf("%v early", early)
			}
			time.Sleep(time.Millisecond)
		}
		r.want("asked", int64(r.sent()-calls), 0)
		time.Sleep(3 * time.Millisecond)
		r.granted(r.request, 1)
	})
}

// It decides for a second at most, however long the wait. Before that is over
// one request asks the store again, and not all that come.
func TestRefusalForASecond(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit = 2
		r.granted(r.request, 2)
		r.refused(r.request, 1)
		before := r.sent()
		var wg sync.WaitGroup
		for range 10000 {
			wg.Go(func() { r.refused(r.request, 1) })
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		if calls := r.sent() - before; calls < 10 || calls > 12 {
			t.Errorf("%d calls in ten seconds, want a little more than one a second", calls)
		}
		// Nobody renews it: it is over.
		time.Sleep(time.Second)
		before = r.sent()
		if a := r.refused(r.request, 1); a.Source != store.FromStore {
			t.Errorf("%+v, want it from the store", a)
		}
		// It is over by the wall clock too: a machine has slept.
		r.machine.stepWall(time.Hour)
		if a := r.refused(r.request, 1); a.Source != store.FromStore {
			t.Errorf("%+v after an hour's sleep, want it from the store", a)
		}
		r.want("asked", int64(r.sent()-before), 2)
	})
}

// Units come back: there is room, and no refusal that is older than that is
// remembered, be it known already or still on its way.
func TestRefusalAfterRefund(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit = 2
		a := r.granted(r.request, 1)
		b := r.granted(r.request, 1)
		refund := func(a store.Decision) []store.Refund {
			return []store.Refund{{Key: r.request.Key, Charge: a.Charge, Units: 1, Source: a.Source}}
		}
		r.refused(r.request, 1)
		if err := r.Refund(budget, refund(a)); err != nil {
			t.Fatal(err)
		}
		c := r.granted(r.request, 1)

		// The store refuses, and then gets a unit back; the refusal arrives
		// after the unit was acknowledged.
		r.wire.set(func(w *wire) { w.there, w.back = 0, 50*time.Millisecond })
		var wg sync.WaitGroup
		wg.Go(func() { r.refused(r.request, 1) })
		synctest.Wait()
		if err := r.Refund(budget, refund(b)); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		r.granted(r.request, 1)
		_ = c
	})
}

// A call holds the last units there are while another one is refused, and is
// refused itself when their lease has ended. They go back to the store, and
// the other refusal is forgotten.
func TestRefusalAfterLease(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		rest := r.request
		rest.Units = r.request.Limit - r.total(r.request)
		r.wire.central.Take(time.Now(), 0, []store.Request{rest}, make([]store.Decision, 1)) // by somebody else
		r.wire.set(func(w *wire) { w.there, w.back = 0, 480*time.Millisecond })
		var wg sync.WaitGroup
		wg.Go(func() { r.refused(r.request, 6400) })
		synctest.Wait()
		r.wire.set(func(w *wire) { w.back = 0 })
		r.refused(r.request, 1)
		if a := r.refused(r.request, 1); a.Source != store.FromCache {
			t.Errorf("%+v, want it from memory", a)
		}
		wg.Wait()
		synctest.Wait()
		r.granted(r.request, 1)
	})
}

// A refusal says nothing about smaller needs. To larger ones it applies, but
// they wait longer, and are told so.
func TestRefusalOfOtherNeeds(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit, r.request.Window = 10, time.Minute
		r.granted(r.request, 4)
		time.Sleep(20 * time.Second)
		r.granted(r.request, 3)
		r.refused(r.request, 5)
		large := r.refused(r.request, 8)
		if large.Source != store.FromStore || large.RetryAfter < 59*time.Second {
			t.Errorf("8 units: %+v, want the store's word", large)
		}
		for range 3 {
			before := r.sent()
			if a := r.refused(r.request, 5); a.RetryAfter > 41*time.Second || a.RetryAfter < 39*time.Second {
				t.Errorf("5 units: %+v, want 40 s", a)
			}
			if a := r.refused(r.request, 8); a.RetryAfter < 59*time.Second {
				t.Errorf("8 units: %+v, want a minute", a)
			}
			if a := r.refused(r.request, 7); a.RetryAfter < 39*time.Second {
				t.Errorf("7 units: %+v, want at least 40 s", a)
			}
			r.want("asked", int64(r.sent()-before), 0)
		}
		r.granted(r.request, 3)
		if a := r.refused(r.request, 5); a.Remaining != 0 {
			t.Errorf("%+v, want none remaining", a)
		}
	})
}

// plenty grants whatever it is asked for, to any number of keys.
type plenty struct{ full store.Key }

func (plenty) String() string                             { return "plenty" }
func (plenty) Refund(time.Duration, []store.Refund) error { return nil }
func (p plenty) Take(_ time.Time, _ time.Duration, requests []store.Request, decisions []store.Decision) error {
	for i := range requests {
		if requests[i].Key == p.full {
			decisions[i] = store.Decision{RetryAfter: time.Hour, Reset: time.Hour}
			continue
		}
		decisions[i] = store.Decision{Granted: true, Lease: requests[i].Lease, Remaining: requests[i].Limit, Charge: store.Charge{Stamp: 1, Mark: 1}, Reset: requests[i].Window}
	}
	return nil
}

// An attacker who is refused invents a million fresh clients to make the
// process forget him. The table stays small, too.
func TestRefusalSurvivesAFlood(t *testing.T) {
	now := moment{mono: time.Hour, wall: time.Hour}
	full := store.Key{Zone: "zone", Client: "attacker", Window: time.Minute}
	l := newStore(plenty{full}, Options{MaxKeys: 256}, func() moment { return now })
	requests, decisions := []store.Request{{Key: full, Limit: 5, Units: 1}}, make([]store.Decision, 1)
	take := func(key store.Key) store.Decision {
		requests[0].Key = key
		if err := l.Take(time.Now(), 0, requests, decisions); err != nil {
			t.Fatal(err)
		}
		return decisions[0]
	}
	take(full)
	for i := range 1_000_000 {
		if i == 500_000 {
			now = now.add(800 * time.Millisecond)
		}
		take(store.Key{Zone: "zone", Client: strconv.Itoa(i), Window: time.Minute})
	}
	if a := take(full); a.Granted || a.Source != store.FromCache {
		t.Errorf("%+v, want it from memory", a)
	}
	if n := l.keys(); n > 256 {
		t.Errorf("%d keys, want at most 256", n)
	}
	// Who comes when all is over sweeps up.
	now = now.add(time.Minute)
	for i := range 10_000 {
		take(store.Key{Zone: "zone", Client: "later " + strconv.Itoa(i), Window: time.Minute})
		if i%100 == 99 {
			now = now.add(time.Minute)
		}
	}
	if n := l.keys(); n > 200 {
		t.Errorf("%d keys are left, want at most 200", n)
	}
}
