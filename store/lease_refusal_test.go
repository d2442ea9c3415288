package store

import (
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A remembered refusal answers until the moment that the store named.
func TestRefusalUntilItsTime(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.ask.Limit, r.ask.Window = 2, time.Second
		r.granted(r.ask, 2)
		time.Sleep(600 * time.Millisecond)
		first := r.refused(r.ask, 1)
		at, calls := time.Now(), r.sent()
		for time.Since(at) < first.RetryAfter-3*time.Millisecond {
			a := r.refused(r.ask, 1)
			if a.Source != FromCache {
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
		r.granted(r.ask, 1)
	})
}

// It answers for a second at most, however long the wait. Before that is over
// one request asks the store again, and not all that come.
func TestRefusalForASecond(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.ask.Limit = 2
		r.granted(r.ask, 2)
		r.refused(r.ask, 1)
		before := r.sent()
		var wg sync.WaitGroup
		for range 10000 {
			wg.Go(func() { r.refused(r.ask, 1) })
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		if calls := r.sent() - before; calls < 10 || calls > 12 {
			t.Errorf("%d calls in ten seconds, want a little more than one a second", calls)
		}
		// Nobody renews it: it is over.
		time.Sleep(time.Second)
		before = r.sent()
		if a := r.refused(r.ask, 1); a.Source != FromStore {
			t.Errorf("%+v, want it from the store", a)
		}
		// It is over by the wall clock too: a machine has slept.
		r.machine.stepWall(time.Hour)
		if a := r.refused(r.ask, 1); a.Source != FromStore {
			t.Errorf("%+v after an hour's sleep, want it from the store", a)
		}
		r.want("asked", int64(r.sent()-before), 2)
	})
}

// Units come back: there is room, and no refusal that is older than that is
// remembered, be it known already or still on its way.
func TestRefusalAfterReturn(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.ask.Limit = 2
		a := r.granted(r.ask, 1)
		b := r.granted(r.ask, 1)
		grant := func(a Answer) []Grant {
			return []Grant{{r.ask.Key, r.ask.Window, a.Stamp, a.Mark, a.Origin, 1, a.Source}}
		}
		r.refused(r.ask, 1)
		if err := r.Return(budget, grant(a)); err != nil {
			t.Fatal(err)
		}
		c := r.granted(r.ask, 1)

		// The store refuses, and then gets a unit back; the refusal arrives
		// after the unit was acknowledged.
		r.wire.set(func(w *wire) { w.there, w.back = 0, 50*time.Millisecond })
		var wg sync.WaitGroup
		wg.Go(func() { r.refused(r.ask, 1) })
		synctest.Wait()
		if err := r.Return(budget, grant(b)); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		r.granted(r.ask, 1)
		_ = c
	})
}

// A call holds the last units there are while another one is refused, and is
// refused itself when their lease has ended. They go back to the store, and
// the other refusal is forgotten.
func TestRefusalAfterLease(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		rest := r.ask
		rest.Need = r.ask.Limit - r.total(r.ask)
		r.wire.central.Take(0, []Ask{rest}, make([]Answer, 1)) // by somebody else
		r.wire.set(func(w *wire) { w.there, w.back = 0, 480*time.Millisecond })
		var wg sync.WaitGroup
		wg.Go(func() { r.refused(r.ask, 6400) })
		synctest.Wait()
		r.wire.set(func(w *wire) { w.back = 0 })
		r.refused(r.ask, 1)
		if a := r.refused(r.ask, 1); a.Source != FromCache {
			t.Errorf("%+v, want it from memory", a)
		}
		wg.Wait()
		synctest.Wait()
		r.granted(r.ask, 1)
	})
}

// A refusal says nothing about smaller needs. To larger ones it applies, but
// they wait longer, and are told so.
func TestRefusalOfOtherNeeds(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.ask.Limit, r.ask.Window = 10, time.Minute
		r.granted(r.ask, 4)
		time.Sleep(20 * time.Second)
		r.granted(r.ask, 3)
		r.refused(r.ask, 5)
		large := r.refused(r.ask, 8)
		if large.Source != FromStore || large.RetryAfter < 59*time.Second {
			t.Errorf("8 units: %+v, want the store's word", large)
		}
		for range 3 {
			before := r.sent()
			if a := r.refused(r.ask, 5); a.RetryAfter > 41*time.Second || a.RetryAfter < 39*time.Second {
				t.Errorf("5 units: %+v, want 40 s", a)
			}
			if a := r.refused(r.ask, 8); a.RetryAfter < 59*time.Second {
				t.Errorf("8 units: %+v, want a minute", a)
			}
			if a := r.refused(r.ask, 7); a.RetryAfter < 39*time.Second {
				t.Errorf("7 units: %+v, want at least 40 s", a)
			}
			r.want("asked", int64(r.sent()-before), 0)
		}
		r.granted(r.ask, 3)
		if a := r.refused(r.ask, 5); a.Remaining != 0 {
			t.Errorf("%+v, want none remaining", a)
		}
	})
}

// plenty grants whatever it is asked for, to any number of keys.
type plenty struct{ full Key }

func (plenty) String() string                      { return "plenty" }
func (plenty) Return(time.Duration, []Grant) error { return nil }
func (p plenty) Take(_ time.Duration, asks []Ask, answers []Answer) error {
	for i := range asks {
		if asks[i].Key == p.full {
			answers[i] = Answer{RetryAfter: time.Hour, Reset: time.Hour}
			continue
		}
		answers[i] = Answer{Granted: true, Extra: asks[i].Extra, Remaining: asks[i].Limit, Stamp: 1, Mark: 1, Reset: asks[i].Window}
	}
	return nil
}

// An attacker who is refused invents a million fresh clients to make the
// process forget him. The table stays small, too.
func TestRefusalSurvivesAFlood(t *testing.T) {
	now := moment{mono: time.Hour, wall: time.Hour}
	full := Key{Zone: "zone", Client: "attacker"}
	l := newLeases(plenty{full}, LeasesOptions{MaxKeys: 256}, func() moment { return now })
	asks, answers := []Ask{{Key: full, Window: time.Minute, Limit: 5, Need: 1}}, make([]Answer, 1)
	take := func(key Key) Answer {
		asks[0].Key = key
		if err := l.Take(0, asks, answers); err != nil {
			t.Fatal(err)
		}
		return answers[0]
	}
	take(full)
	for i := range 1_000_000 {
		if i == 500_000 {
			now = now.add(800 * time.Millisecond)
		}
		take(Key{Zone: "zone", Client: strconv.Itoa(i)})
	}
	if a := take(full); a.Granted || a.Source != FromCache {
		t.Errorf("%+v, want it from memory", a)
	}
	if n := l.keys(); n > 256 {
		t.Errorf("%d keys, want at most 256", n)
	}
	// Who comes when all is over sweeps up.
	now = now.add(time.Minute)
	for i := range 10_000 {
		take(Key{Zone: "zone", Client: "later " + strconv.Itoa(i)})
		if i%100 == 99 {
			now = now.add(time.Minute)
		}
	}
	if n := l.keys(); n > 200 {
		t.Errorf("%d keys are left, want at most 200", n)
	}
}
