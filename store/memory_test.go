package store_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return store.NewMemory(0) })
}

func TestMemoryShared(t *testing.T) {
	m := store.NewMemory(0)
	storetest.RunShared(t, func(*testing.T) store.Store { return m })
	t.Run("steered", func(t *testing.T) {
		storetest.RunSteered(t, func(*testing.T) store.Steered { return m })
	})
}

// client asks for one unit of five an hour, of a client with a number.
func client(n int) store.Request {
	return store.Request{
		Key:   store.Key{Zone: "zone", Client: fmt.Sprint("client ", n), Window: time.Hour},
		Limit: 5, Units: 1,
	}
}

// take makes a call; it may be called by several goroutines.
func take(t testing.TB, m *store.Memory, requests ...store.Request) []store.Decision {
	decisions := make([]store.Decision, len(requests))
	if err := m.Take(time.Now(), 0, requests, decisions); err != nil {
		t.Errorf("Take: %v", err)
	}
	return decisions
}

func use(t testing.TB, m *store.Memory, request store.Request, units int64) store.Decision {
	t.Helper()
	request.Units = units
	a := take(t, m, request)[0]
	if !a.Granted {
		t.Fatalf("Take(%+v) = %+v, want it granted", request, a)
	}
	return a
}

func left(t testing.TB, m *store.Memory, request store.Request) int64 {
	request.Units = 0
	return take(t, m, request)[0].Remaining
}

// A window of thirty days, hammered for a hundred of them, at whole
// microseconds: the store's clock knows no others.
func TestMemoryLongWindow(t *testing.T) {
	for _, limit := range []int64{10, 300} {
		synctest.Test(t, func(t *testing.T) {
			m := store.NewMemory(0)
			request := client(0)
			request.Window, request.Limit = store.MaxWindow, limit
			var spans []storetest.Span
			begin := time.Now()
			for time.Since(begin) < 100*24*time.Hour {
				a := take(t, m, request)[0]
				if a.Granted {
					spans = append(spans, storetest.Span{From: time.Now(), To: time.Now(), Units: 1})
					time.Sleep(rand.N(30 * time.Minute).Truncate(time.Microsecond))
					continue
				}
				time.Sleep(a.RetryAfter - time.Microsecond)
				if early := take(t, m, request)[0]; early.Granted || early.RetryAfter != time.Microsecond {
					t.Fatalf("a microsecond early: %+v", early)
				}
				time.Sleep(time.Microsecond)
				if a := take(t, m, request)[0]; !a.Granted {
					t.Fatalf("after %v: %+v", a.RetryAfter, a)
				}
				spans = append(spans, storetest.Span{From: time.Now(), To: time.Now(), Units: 1})
			}
			if units, at := storetest.Most(spans, request.Window); units != limit {
				t.Errorf("%d units in the window from %v, want %d", units, at, limit)
			}
			if n := int64(len(spans)); n < 3*limit*97/100 {
				t.Errorf("%d units in 100 days, want %d", n, 3*limit)
			}
		})
	}
}

// The clock is the monotonic one of the bubble that the store lives in.
func TestMemoryClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory(0)
		request := client(0)
		request.Limit = 1
		use(t, m, request, 1)
		time.Sleep(time.Hour - time.Microsecond)
		if a := take(t, m, request)[0]; a.Granted || a.RetryAfter != time.Microsecond {
			t.Errorf("%+v, want it refused for another microsecond", a)
		}
		time.Sleep(time.Microsecond)
		use(t, m, request, 1)
	})
}

// A call that charges nothing leaves nothing behind.
func TestMemoryHoldsOnlyWhatIsCharged(t *testing.T) {
	m := store.NewMemory(0)
	look, refill, tooMuch, none := client(1), client(2), client(3), client(4)
	look.Units = 0
	refill.Units, refill.Lease, refill.Limit = 0, 5, 0
	tooMuch.Units = 6
	none.Limit = 0
	for _, request := range []store.Request{look, refill, tooMuch, none} {
		take(t, m, request)
	}
	take(t, m, client(5), tooMuch)
	weak := tooMuch
	weak.Shadow = true
	take(t, m, weak)
	if n := m.Len(); n != 0 {
		t.Errorf("%d keys held, want none", n)
	}

	// What is reported stays, unless that was too long ago.
	for i, age := range []time.Duration{time.Hour, time.Minute} {
		owing := tooMuch
		owing.Unreported = []store.Spent{{Age: age, Units: 5}}
		take(t, m, owing, client(5))
		if n := m.Len(); n != i {
			t.Errorf("%d keys held after a refused call of what was spent %v ago, want %d", n, age, i)
		}
		if n := left(t, m, tooMuch); n != int64(5-5*i) {
			t.Errorf("%d units left after a refused call of what was spent %v ago", n, age)
		}
	}
	m = store.NewMemory(0)

	a := use(t, m, client(6), 2)
	g := store.Refund{Key: client(6).Key, Charge: a.Charge, Units: 1}
	m.Refund(0, []store.Refund{g})
	if n := m.Len(); n != 1 {
		t.Errorf("%d keys held with a unit left, want 1", n)
	}
	m.Refund(0, []store.Refund{g})
	if n := m.Len(); n != 0 {
		t.Errorf("%d keys held after everything was refunded, want none", n)
	}
}

func TestMemoryDoesNotAllocate(t *testing.T) {
	m := store.NewMemory(0)
	var requests []store.Request
	for i := range 4 {
		request := client(i)
		request.Window, request.Limit = time.Second, store.MaxEvents
		requests = append(requests, request)
	}
	full := client(9)
	use(t, m, full, 5)
	tests := []struct {
		name     string
		requests []store.Request
	}{
		{"granted", requests[:1]},
		{"four requests", requests},
		{"refused", []store.Request{full}},
		{"look at a fresh key", []store.Request{{Key: store.Key{Client: "fresh", Window: time.Second}}}},
	}
	for _, test := range tests {
		decisions := make([]store.Decision, len(test.requests))
		allocs := testing.AllocsPerRun(1000, func() {
			if err := m.Take(time.Now(), 0, test.requests, decisions); err != nil {
				t.Error(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations, want none", test.name, allocs)
		}
	}
}

// What a key costs does not depend on its limit.
func TestMemoryBytesPerKey(t *testing.T) {
	tests := []struct {
		name  string
		limit int64
		keys  int
		times int
		pause time.Duration
		most  int
	}{
		{"one unit", 30, 5000, 1, 0, 250},
		{"a full log of 64", 64, 2000, 64, 900 * time.Millisecond, 2000},
		{"a million", 1_000_000, 500, 300, 250 * time.Millisecond, 2000},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			m := store.NewMemory(0)
			requests := make([]store.Request, test.keys)
			for i := range requests {
				requests[i] = store.Request{
					Key:   store.Key{Zone: "30-per-1m", Client: fmt.Sprintf("203.0.%d.%d", i/256, i%256), Window: 64 * time.Second},
					Limit: test.limit, Units: 1,
				}
			}
			before := heap()
			decisions := make([]store.Decision, 1)
			for range test.times {
				for i := range requests {
					m.Take(time.Now(), 0, requests[i:i+1], decisions)
				}
				time.Sleep(test.pause)
			}
			bytes := int(heap()-before) / test.keys
			t.Logf("%s: %d bytes a key", test.name, bytes)
			if m.Len() != test.keys || bytes > test.most {
				t.Errorf("%s: %d bytes for each of %d keys, want at most %d", test.name, bytes, m.Len(), test.most)
			}
			runtime.KeepAlive(requests)
			runtime.KeepAlive(m)
		})
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// Everything at once, for the race detector and for deadlocks: calls over
// several shards in any order, while logs are refunded, replaced and shared.
func TestMemoryConcurrently(t *testing.T) {
	const bound, limit = 100, 20
	m := store.NewMemory(bound)
	var group sync.WaitGroup
	for g := range 8 {
		rng := rand.New(rand.NewPCG(uint64(g), 1))
		group.Go(func() {
			for range 1500 {
				var requests []store.Request
				for _, n := range rng.Perm(300)[:1+rng.IntN(6)] {
					request := client(n)
					request.Window, request.Limit, request.Lease = time.Second, limit, rng.Int64N(3)
					request.Shadow = rng.IntN(4) == 0
					requests = append(requests, request)
				}
				var refunds []store.Refund
				for i, a := range take(t, m, requests...) {
					if a.Charged() && rng.IntN(2) == 0 {
						refunds = append(refunds, store.Refund{Key: requests[i].Key, Charge: a.Charge, Units: 1})
					}
					if a.Remaining < 0 || a.Remaining > limit {
						t.Errorf("%+v", a)
					}
				}
				m.Refund(0, refunds)
				if n := m.Len(); n > bound || n < 0 {
					t.Errorf("%d keys held, want at most %d", n, bound)
				}
				if rng.IntN(100) == 0 {
					m.SetMaxKeys(bound - rng.IntN(10))
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkMemory(b *testing.B) {
	for _, keys := range []int{1, 1000} {
		b.Run(fmt.Sprint("keys ", keys), func(b *testing.B) {
			m := store.NewMemory(0)
			requests := make([]store.Request, keys)
			for i := range requests {
				requests[i] = client(i)
				requests[i].Limit = store.MaxEvents
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				var decisions [1]store.Decision
				for i := rand.IntN(keys); pb.Next(); i++ {
					m.Take(time.Now(), 0, requests[i%keys:i%keys+1], decisions[:])
				}
			})
		})
	}
	b.Run("fresh keys at the bound", func(b *testing.B) {
		m := store.NewMemory(10_000)
		requests := make([]store.Request, 50_000)
		for i := range requests {
			requests[i] = client(i)
		}
		var decisions [1]store.Decision
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			n := i % len(requests)
			m.Take(time.Now(), 0, requests[n:n+1], decisions[:])
		}
	})
}
