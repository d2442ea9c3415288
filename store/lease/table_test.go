package lease

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func (l *Store) keys() (n int) {
	for i := range l.shards {
		n += len(l.shards[i].keys)
	}
	return n
}

// of returns the shard of a key, and what is known of the key, if anything. The caller
// locks the shard if others use it.
func (l *Store) of(key store.Key) (*shard, func() *leaseKey) {
	hash := l.hash(&key)
	s := l.shard(hash)
	return s, func() *leaseKey { return s.keyLocked(hash, &key) }
}

// Keys with leases are not refunded up either; there is no room for others then,
// and they are asked of the store.
func TestLeaseTableFull(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.Store = newStore(r.wire, Options{MaxKeys: 1}, r.machine.clock)
		r.heat(r.request)
		n := r.inHand(r.request)
		for i := range 300 {
			a := r.request
			a.Key.Client = fmt.Sprint(i)
			a.Limit = 1
			r.wire.set(func(w *wire) { w.there, w.back = 0, 0 })
			r.granted(a, 1)
			r.refused(a, 1)
		}
		r.want("in hand", r.inHand(r.request), n)
		if keys := r.keys(); keys > 64 {
			t.Errorf("%d keys, want 64", keys)
		}
	})
}

// Closing refunds what is in hand, and what is on its way.
func TestLeaseClose(t *testing.T) {
	inBubble(t, func(r *rig) {
		other := r.request
		other.Key.Zone = "other"
		r.heat(other)
		used := r.heat(r.request)
		r.heat(other) // again, which is short
		for r.inHand(r.request) > 0 && !r.key(r.request).refilling {
			r.granted(r.request, 1)
			used++
		}
		if !r.key(r.request).refilling {
			t.Fatal("no refill under way")
		}
		if err := r.Close(time.Second); err != nil {
			t.Fatal(err)
		}
		r.want("units that count", r.total(r.request), used)
		r.want("in hand", r.inHand(r.request)+r.inHand(other), 0)
		for range 100 {
			if a := r.granted(r.request, 1); a.Source != store.FromStore {
				t.Fatalf("%+v after closing", a)
			}
		}
		r.want("units that count", r.total(r.request), used+100)
		if err := r.Close(time.Second); err != nil {
			t.Error(err)
		}
	})
}

// Closing when the store is away waits no longer than it is told.
func TestLeaseCloseInTime(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.wire.set(func(w *wire) { w.deaf = true })
		if err := r.Close(time.Second); store.ErrorKind(err) != store.KindTimeout {
			t.Errorf("%v, want a timeout", err)
		}
		r.want("in hand", r.inHand(r.request), 0)
	})
}

// Units that a handler behind refuses go back to their lease at no cost. What
// is not of a lease goes to the store, also if it has the stamp of one: the
// store raises stamps to that of the last entry.
func TestLeaseRefund(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		n := r.inHand(r.request)
		for range 100 {
			a := r.granted(r.request, 1)
			if err := r.Refund(budget, []store.Refund{{Key: r.request.Key, Charge: a.Charge, Units: 1, Source: a.Source}}); err != nil {
				t.Fatal(err)
			}
		}
		r.want("in hand", r.inHand(r.request), n)
		r.want("refunded", int64(len(r.wire.refunded())), 0)

		lease := r.key(r.request).first
		before := r.total(r.request)
		g := store.Refund{Key: r.request.Key, Charge: lease.Charge, Units: 1, Source: store.FromStore}
		if err := r.Refund(budget, []store.Refund{g}); err != nil {
			t.Fatal(err)
		}
		r.want("in hand", r.inHand(r.request), n)
		r.want("units that count", r.total(r.request), before-1)

		// After its end a unit of a lease goes to the store as well.
		a := r.granted(r.request, 1)
		time.Sleep(shortest(r.request.Window))
		synctest.Wait()
		before = r.total(r.request)
		if err := r.Refund(budget, []store.Refund{{Key: r.request.Key, Charge: a.Charge, Units: 1, Source: a.Source}}); err != nil {
			t.Fatal(err)
		}
		r.want("in hand", r.inHand(r.request), 0)
		r.want("units that count", r.total(r.request), before-1)
	})
}

// The store's clock steps back, and the log has another mark: a lease that is
// out is spent, but what is left of it cannot be refunded, for nobody knows
// where its units are.
func TestLeaseMark(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		n := r.inHand(r.request)
		r.wire.step(time.Hour)
		b := r.granted(r.request, n+1) // of two lives of the log
		if b.Mark != notRefundable {
			t.Errorf("%+v, want it notRefundable", b)
		}
		before := r.total(r.request)
		if err := r.Refund(budget, []store.Refund{{Key: r.request.Key, Charge: b.Charge, Units: n + 1, Source: b.Source}}); err != nil {
			t.Fatal(err)
		}
		r.want("refunded", int64(len(r.wire.refunded())), 0)
		r.want("units that count", r.total(r.request), before)
	})
}

// hotLeases is a Store with a lease of the first key that does not end, and
// a remembered refusal of the second.
func hotLeases(tb testing.TB) (l *Store, hot, full []store.Request) {
	now := moment{mono: time.Hour, wall: time.Hour}
	hot = []store.Request{{Key: store.Key{Zone: "zone", Client: "203.0.113.7", Window: time.Minute}, Limit: store.MaxEvents, Units: 1}}
	full = []store.Request{{Key: store.Key{Zone: "zone", Client: "203.0.113.9", Window: time.Minute}, Limit: 5, Units: 1}}
	l = newStore(plenty{full[0].Key}, Options{}, func() moment { _ = time.Now(); return now })
	decisions := make([]store.Decision, 1)
	for _, requests := range [][]store.Request{hot, hot, full} { // a key has a place when it comes again
		if err := l.Take(time.Now(), 0, requests, decisions); err != nil {
			tb.Fatal(err)
		}
	}
	_, known := l.of(hot[0].Key)
	known().first = batch{units: 1 << 50, Charge: store.Charge{Stamp: 1, Mark: 1}, end: now.add(time.Second)}
	return l, hot, full
}

func TestLeasesDoNotAllocate(t *testing.T) {
	l, hot, full := hotLeases(t)
	decisions := make([]store.Decision, 1)
	for _, test := range []struct {
		requests []store.Request
		source   store.Source
	}{{hot, store.FromLease}, {full, store.FromCache}} {
		allocs := testing.AllocsPerRun(1000, func() {
			if err := l.Take(time.Now(), 0, test.requests, decisions); err != nil || decisions[0].Source != test.source {
				t.Fatalf("%+v, %v; want source %d", decisions[0], err, test.source)
			}
		})
		if allocs != 0 {
			t.Errorf("source %d: %v allocations, want none", test.source, allocs)
		}
	}
}

func BenchmarkLeases(b *testing.B) {
	l, hot, full := hotLeases(b)
	for name, requests := range map[string][]store.Request{"lease": hot, "refusal": full} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				decisions := make([]store.Decision, 1)
				for pb.Next() {
					_ = l.Take(time.Now(), 0, requests, decisions)
				}
			})
		})
	}
}

var _ store.Store = (*Store)(nil)

// A key that is granted once takes no place in the table, and has one when it
// comes again.
func TestLeaseTableIsForKeysThatComeAgain(t *testing.T) {
	l := New(plenty{}, Options{})
	request := func(client string) {
		t.Helper()
		requests := []store.Request{{Key: store.Key{Zone: "zone", Client: client, Window: time.Minute}, Limit: 1000, Units: 1}}
		if err := l.Take(time.Now(), 0, requests, make([]store.Decision, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1000 {
		request(fmt.Sprint(i))
	}
	if n := l.keys(); n != 0 {
		t.Errorf("%d keys that were granted once are in the table", n)
	}
	for range 2 {
		request("again")
	}
	if n := l.keys(); n != 1 {
		t.Errorf("%d keys are in the table, want the one that came again", n)
	}
}

// Another server stands in with a copy of the log: what was charged before cannot
// be told from what is somebody else's by now. Units from before and after are
// not refunded, and what is left of a lease from before takes nothing.
func TestLeaseOrigin(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		lease := r.key(r.request).first
		r.wire.failOver()
		elsewhere := lease.Charge
		elsewhere.Origin++
		other := store.Refund{Key: r.request.Key, Charge: elsewhere, Units: 1, Source: store.FromLease}
		k := r.key(r.request)
		if k.restoreRefund(&other, r.clock()) {
			t.Errorf("units of another server's data were restored into the lease %+v", lease)
		}
		if b := (batch{units: 1, Charge: elsewhere, end: lease.end}); b.is(&lease) {
			t.Errorf("%+v is taken for one lease with %+v", b, lease)
		}
		n := r.inHand(r.request)
		b := r.granted(r.request, n+1)
		if b.Mark != notRefundable {
			t.Errorf("%+v, want it notRefundable", b)
		}
		a := r.granted(r.request, 1)
		before := r.total(r.request)
		if err := r.Refund(budget, []store.Refund{{Key: r.request.Key, Charge: a.Charge, Units: 1, Source: store.FromStore}}); err != nil {
			t.Fatal(err)
		}
		r.want("units that count", r.total(r.request), before-1)

		r.heat(r.request)
		before = r.total(r.request)
		r.wire.failOver()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		r.want("in hand", r.inHand(r.request), 0)
		r.want("units that count", r.total(r.request), before)
	})
}
