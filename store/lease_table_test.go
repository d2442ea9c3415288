package store

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func (l *Leases) keys() (n int) {
	for i := range l.shards {
		n += len(l.shards[i].keys)
	}
	return n
}

// Keys with leases are not given up either; there is no room for others then,
// and they are asked of the store.
func TestLeaseTableFull(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.Leases = newLeases(r.wire, LeasesOptions{MaxKeys: 1}, r.machine.clock)
		r.heat(r.ask)
		n := r.inHand(r.ask)
		for i := range 300 {
			a := r.ask
			a.Key.Client = fmt.Sprint(i)
			a.Limit = 1
			r.wire.set(func(w *wire) { w.there, w.back = 0, 0 })
			r.granted(a, 1)
			r.refused(a, 1)
		}
		r.want("in hand", r.inHand(r.ask), n)
		if keys := r.keys(); keys > 64 {
			t.Errorf("%d keys, want 64", keys)
		}
	})
}

// Closing gives back what is in hand, and what is on its way.
func TestLeaseClose(t *testing.T) {
	inBubble(t, func(r *rig) {
		used := r.heat(r.ask)
		other := r.ask
		other.Key.Zone = "other"
		r.heat(other)
		for r.inHand(r.ask) > 0 && !r.key(r.ask).refilling {
			r.granted(r.ask, 1)
			used++
		}
		if !r.key(r.ask).refilling {
			t.Fatal("no refill under way")
		}
		if err := r.Close(time.Second); err != nil {
			t.Fatal(err)
		}
		r.want("units that count", r.total(r.ask), used)
		r.want("in hand", r.inHand(r.ask)+r.inHand(other), 0)
		for range 100 {
			if a := r.granted(r.ask, 1); a.Source != FromStore {
				t.Fatalf("%+v after closing", a)
			}
		}
		r.want("units that count", r.total(r.ask), used+100)
		if err := r.Close(time.Second); err != nil {
			t.Error(err)
		}
	})
}

// Closing when the store is away waits no longer than it is told.
func TestLeaseCloseInTime(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.wire.set(func(w *wire) { w.deaf = true })
		if err := r.Close(time.Second); ErrorKind(err) != KindTimeout {
			t.Errorf("%v, want a timeout", err)
		}
		r.want("in hand", r.inHand(r.ask), 0)
	})
}

// Units that a handler behind refuses go back to their lease at no cost. What
// is not of a lease goes to the store, also if it has the stamp of one: the
// store raises stamps to that of the last entry.
func TestLeaseReturn(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		n := r.inHand(r.ask)
		for range 100 {
			a := r.granted(r.ask, 1)
			if err := r.Return(budget, []Grant{{r.ask.Key, r.ask.Window, a.Stamp, a.Mark, a.Origin, 1, a.Source}}); err != nil {
				t.Fatal(err)
			}
		}
		r.want("in hand", r.inHand(r.ask), n)
		r.want("given back", int64(len(r.wire.given())), 0)

		lease := r.key(r.ask).first
		before := r.total(r.ask)
		g := Grant{r.ask.Key, r.ask.Window, lease.stamp, lease.mark, lease.origin, 1, FromStore}
		if err := r.Return(budget, []Grant{g}); err != nil {
			t.Fatal(err)
		}
		r.want("in hand", r.inHand(r.ask), n)
		r.want("units that count", r.total(r.ask), before-1)

		// After its end a unit of a lease goes to the store as well.
		a := r.granted(r.ask, 1)
		time.Sleep(leaseSpan(r.ask.Window))
		synctest.Wait()
		before = r.total(r.ask)
		if err := r.Return(budget, []Grant{{r.ask.Key, r.ask.Window, a.Stamp, a.Mark, a.Origin, 1, a.Source}}); err != nil {
			t.Fatal(err)
		}
		r.want("in hand", r.inHand(r.ask), 0)
		r.want("units that count", r.total(r.ask), before-1)
	})
}

// The store's clock steps back, and the log has another mark: a lease that is
// out is spent, but what is left of it cannot be given back, for nobody knows
// where its units are.
func TestLeaseMark(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		n := r.inHand(r.ask)
		r.wire.step(time.Hour)
		b := r.granted(r.ask, n+1) // of two lives of the log
		if b.Mark != unreturnable {
			t.Errorf("%+v, want it unreturnable", b)
		}
		before := r.total(r.ask)
		if err := r.Return(budget, []Grant{{r.ask.Key, r.ask.Window, b.Stamp, b.Mark, b.Origin, n + 1, b.Source}}); err != nil {
			t.Fatal(err)
		}
		r.want("given back", int64(len(r.wire.given())), 0)
		r.want("units that count", r.total(r.ask), before)
	})
}

// Another server stands in with a copy of the log: what was charged before cannot
// be told from what is somebody else's by now. Units from before and after are
// not given back, and what is left of a lease from before takes nothing.
func TestLeaseOrigin(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		lease := r.key(r.ask).first
		r.wire.failOver()
		other := Grant{r.ask.Key, r.ask.Window, lease.stamp, lease.mark, lease.origin + 1, 1, FromLease}
		k := r.key(r.ask)
		if k.takeBack(&other, r.clock()) {
			t.Errorf("units of another server's data went back into the lease %+v", lease)
		}
		if b := (batch{units: 1, stamp: lease.stamp, mark: lease.mark, origin: lease.origin + 1, end: lease.end}); b.is(&lease) {
			t.Errorf("%+v is taken for one lease with %+v", b, lease)
		}
		n := r.inHand(r.ask)
		b := r.granted(r.ask, n+1)
		if b.Mark != unreturnable {
			t.Errorf("%+v, want it unreturnable", b)
		}
		a := r.granted(r.ask, 1)
		before := r.total(r.ask)
		if err := r.Return(budget, []Grant{{r.ask.Key, r.ask.Window, a.Stamp, a.Mark, a.Origin, 1, FromStore}}); err != nil {
			t.Fatal(err)
		}
		r.want("units that count", r.total(r.ask), before-1)

		r.heat(r.ask)
		before = r.total(r.ask)
		r.wire.failOver()
		time.Sleep(leaseSpan(r.ask.Window))
		synctest.Wait()
		r.want("in hand", r.inHand(r.ask), 0)
		r.want("units that count", r.total(r.ask), before)
	})
}

// hotLeases is a Leases with a lease of the first key that does not end, and
// a remembered refusal of the second.
func hotLeases(tb testing.TB) (l *Leases, hot, full []Ask) {
	now := moment{mono: time.Hour, wall: time.Hour}
	hot = []Ask{{Key: Key{Zone: "zone", Client: "203.0.113.7"}, Window: time.Minute, Limit: MaxEvents, Need: 1}}
	full = []Ask{{Key: Key{Zone: "zone", Client: "203.0.113.9"}, Window: time.Minute, Limit: 5, Need: 1}}
	l = newLeases(plenty{full[0].Key}, LeasesOptions{}, func() moment { _ = time.Now(); return now })
	answers := make([]Answer, 1)
	for _, asks := range [][]Ask{hot, hot, full} { // a key has a place when it comes again
		if err := l.Take(0, asks, answers); err != nil {
			tb.Fatal(err)
		}
	}
	k := l.shard(&hot[0]).keys[logKey{hot[0].Key, hot[0].Window}]
	k.first = batch{units: 1 << 50, stamp: 1, mark: 1, end: now.add(time.Second)}
	return l, hot, full
}

func TestLeasesDoNotAllocate(t *testing.T) {
	l, hot, full := hotLeases(t)
	answers := make([]Answer, 1)
	for _, test := range []struct {
		asks   []Ask
		source Source
	}{{hot, FromLease}, {full, FromCache}} {
		allocs := testing.AllocsPerRun(1000, func() {
			if err := l.Take(0, test.asks, answers); err != nil || answers[0].Source != test.source {
				t.Fatalf("%+v, %v; want source %d", answers[0], err, test.source)
			}
		})
		if allocs != 0 {
			t.Errorf("source %d: %v allocations, want none", test.source, allocs)
		}
	}
}

func BenchmarkLeases(b *testing.B) {
	l, hot, full := hotLeases(b)
	for name, asks := range map[string][]Ask{"lease": hot, "refusal": full} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				answers := make([]Answer, 1)
				for pb.Next() {
					_ = l.Take(0, asks, answers)
				}
			})
		})
	}
}

var _ Store = (*Leases)(nil)

// A key that is granted once takes no place in the table, and has one when it
// comes again.
func TestLeaseTableIsForKeysThatComeAgain(t *testing.T) {
	l := NewLeases(plenty{}, LeasesOptions{})
	ask := func(client string) {
		t.Helper()
		asks := []Ask{{Key: Key{Zone: "zone", Client: client}, Window: time.Minute, Limit: 1000, Need: 1}}
		if err := l.Take(0, asks, make([]Answer, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1000 {
		ask(fmt.Sprint(i))
	}
	if n := l.keys(); n != 0 {
		t.Errorf("%d keys that were granted once are in the table", n)
	}
	for range 2 {
		ask("again")
	}
	if n := l.keys(); n != 1 {
		t.Errorf("%d keys are in the table, want the one that came again", n)
	}
}
