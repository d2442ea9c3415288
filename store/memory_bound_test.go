package store_test

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func TestMemoryBound(t *testing.T) {
	for _, bound := range []int{1, 2, 10, 100, 1000, 2000} {
		m := store.NewMemory(bound)
		var group sync.WaitGroup
		for g := range 4 {
			group.Go(func() {
				for i := range 2 * bound {
					take(t, m, client(4*i+g))
					if n := m.Len(); n > bound {
						t.Errorf("%d keys held, want at most %d", n, bound)
					}
				}
			})
		}
		group.Wait()
		if n := m.Len(); n != bound {
			t.Errorf("%d keys held of %d, want %d", n, 8*bound, bound)
		}
	}
}

func TestMemoryDefaultBound(t *testing.T) {
	m := store.NewMemory(-1)
	var decisions [1]store.Decision
	for i := range store.DefaultMaxKeys + 1000 {
		m.Take(time.Now(), 0, []store.Request{client(i)}, decisions[:])
	}
	if n := m.Len(); n != store.DefaultMaxKeys {
		t.Errorf("%d keys held, want %d", n, store.DefaultMaxKeys)
	}
}

// Whoever is refused stays refused, however many clients are invented.
func TestMemoryKeepsRefused(t *testing.T) {
	for _, bound := range []int{1, 10, 200} {
		m := store.NewMemory(bound)
		full := bound/2 + 1
		for i := range full {
			use(t, m, client(i), 5)
		}
		for i := range 20 * bound {
			take(t, m, client(1000+i))
		}
		for i := range full {
			if a := take(t, m, client(i))[0]; a.Granted {
				t.Errorf("bound %d: client %d is granted units again: %+v", bound, i, a)
			}
		}
	}
}

// Clients with a unit each push out their like and not who has used more: a
// client that is near its limit cannot make itself forgotten that way.
func TestMemoryKeepsLargeRecords(t *testing.T) {
	const bound, large = 200, 20
	m := store.NewMemory(bound)
	for i := range large {
		use(t, m, client(i), 4)
	}
	for i := range 50 * bound {
		take(t, m, client(1000+i))
	}
	for i := range large {
		if n := left(t, m, client(i)); n != 1 {
			t.Errorf("client %d has %d units left, want 1", i, n)
		}
	}
	// It goes by the share of the limit, not by units.
	m = store.NewMemory(1)
	small := client(0)
	small.Limit = 1000
	use(t, m, small, 100)
	use(t, m, client(1), 1)
	if n := left(t, m, small); n != small.Limit {
		t.Errorf("%d units left of a tenth used, want it forgotten", n)
	}
}

func TestMemoryReplacesExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory(10)
		for i := range 9 {
			use(t, m, client(i), 4)
		}
		short := client(9)
		short.Window = time.Second
		use(t, m, short, 5)
		time.Sleep(time.Second)
		use(t, m, client(10), 1)
		for i := range 9 {
			if n := left(t, m, client(i)); n != 1 {
				t.Errorf("client %d has %d units left, want 1", i, n)
			}
		}
		if n := left(t, m, client(10)); n != 4 {
			t.Errorf("the new client has %d units left, want 4", n)
		}
	})
}

// full returns a store with no room: its clients have nothing left.
func full(t *testing.T, bound int) *store.Memory {
	m := store.NewMemory(bound)
	for i := range bound {
		use(t, m, client(-1-i), 5)
	}
	return m
}

// Newcomers to a store that is full of refused clients share overflow logs.
func TestMemoryOverflow(t *testing.T) {
	const slots, limit = 16, 5
	synctest.Test(t, func(t *testing.T) {
		m := full(t, 1)
		for range 3 {
			granted := 0
			for range 3 { // the same newcomers again and again
				for i := range 1000 {
					if take(t, m, client(i))[0].Granted {
						granted++
					}
				}
			}
			if granted != slots*limit {
				t.Errorf("%d units granted to newcomers, want %d for each of %d overflow logs", granted, limit, slots)
			}
			if a := take(t, m, client(-1))[0]; a.Granted {
				t.Errorf("the refused client is granted units again: %+v", a)
			}
			if n := m.Len(); n != 1 {
				t.Errorf("%d keys held, want 1", n)
			}
			time.Sleep(time.Hour)
			use(t, m, client(-1), limit)
		}
	})
}

// Zones and windows have overflow logs of their own.
func TestMemoryOverflowOfItsOwn(t *testing.T) {
	m := full(t, 1)
	a, b, c := client(1), client(1), client(1)
	b.Key.Zone = "other"
	c.Window = time.Minute
	for _, request := range []store.Request{a, b, c} {
		use(t, m, request, 5)
		if a := take(t, m, request)[0]; a.Granted {
			t.Errorf("%+v granted beyond its limit", request)
		}
	}
}

// A newcomer that has used up an overflow log does not get its limit again
// when there is room for a log of its own.
func TestMemoryOverflowIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory(1)
		old := use(t, m, client(0), 5)
		use(t, m, client(1), 2)
		time.Sleep(time.Minute)
		second := use(t, m, client(1), 2)
		m.Refund(0, []store.Refund{{Key: client(0).Key, Charge: old.Charge, Units: 5}})
		if n := m.Len(); n != 0 {
			t.Fatalf("%d keys held, want none", n)
		}

		// There is room now: the last unit goes to a log of its own, which
		// takes back what the overflow log was charged.
		third := use(t, m, client(1), 1)
		if n := m.Len(); n != 1 {
			t.Errorf("%d keys held, want 1", n)
		}
		if a := take(t, m, client(1))[0]; a.Granted || a.RetryAfter != 59*time.Minute {
			t.Errorf("%+v, want it refused until the first units expire", a)
		}
		for _, a := range []store.Decision{second, third} {
			m.Refund(0, []store.Refund{{Key: client(1).Key, Charge: a.Charge, Units: 1}})
		}
		use(t, m, client(1), 2)
		if a := take(t, m, client(1))[0]; a.Granted {
			t.Errorf("%+v, want it refused", a)
		}
		time.Sleep(59 * time.Minute)
		use(t, m, client(1), 2)
	})
}

// What a newcomer takes over is a copy: the overflow log goes on by itself.
func TestMemoryOverflowIsCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory(1)
		old := use(t, m, client(0), 5)
		use(t, m, client(1), 1)
		time.Sleep(20 * time.Minute)
		use(t, m, client(1), 2)
		m.Refund(0, []store.Refund{{Key: client(0).Key, Charge: old.Charge, Units: 5}})
		use(t, m, client(1), 1)
		if n := left(t, m, client(1)); n != 1 {
			t.Errorf("%d units left of a log of its own, want 1", n)
		}
		// The first unit expires in both logs, once in each.
		time.Sleep(40 * time.Minute)
		if n := left(t, m, client(1)); n != 2 {
			t.Errorf("%d units left of a log of its own, want 2", n)
		}
		sharing := 0
		for i := range 200 {
			switch n := left(t, m, client(2+i)); n {
			case 3:
				sharing++
			case 5:
			default:
				t.Errorf("%d units left for a newcomer, want 5, or 3 if it shares", n)
			}
		}
		if sharing == 0 {
			t.Errorf("none of 200 newcomers shares the overflow log")
		}
	})
}

func TestMemoryOverflowRefunds(t *testing.T) {
	m := full(t, 1)
	for range 100 {
		a := use(t, m, client(1), 5)
		m.Refund(0, []store.Refund{{Key: client(1).Key, Charge: a.Charge, Units: 5}})
	}
}

// What is reported is counted though there is no room for the key.
func TestMemoryOverflowCountsReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := full(t, 1)
		request := client(1)
		request.Unreported = []store.Spent{{Age: time.Minute, Units: 3}, {Age: time.Hour, Units: 3}}
		if a := use(t, m, request, 1); a.Remaining != 1 || a.Reset != time.Hour {
			t.Errorf("%+v, want 1 remaining for an hour", a)
		}
		if a := take(t, m, request)[0]; a.Granted || a.RetryAfter != 59*time.Minute {
			t.Errorf("%+v, want it refused until what was reported expires", a)
		}
		if n := m.Len(); n != 1 {
			t.Errorf("%d keys held, want 1", n)
		}

		// Newcomers of one call, of which some share an overflow log.
		m = full(t, 1)
		var requests []store.Request
		for i := range 40 {
			request.Key, request.Shadow = client(i).Key, true
			requests = append(requests, request)
		}
		for _, a := range take(t, m, requests...) {
			if a.Granted && a.Remaining != 1 {
				t.Errorf("%+v, want nobody to be granted what another one reported", a)
			}
		}
	})
}

// The keys of one call do not push each other out.
func TestMemoryOneCallAtTheBound(t *testing.T) {
	for _, bound := range []int{1, 3, 4} {
		m := store.NewMemory(bound)
		var requests []store.Request
		for _, zone := range []string{"a", "b", "c", "d", "e", "f"} {
			request := client(1)
			request.Key.Zone = zone
			requests = append(requests, request)
		}
		for round := range int64(7) {
			for i, a := range take(t, m, requests...) {
				if a.Granted != (round < 5) || a.Remaining != max(4-round, 0) {
					t.Errorf("bound %d: call %d: zone %d: %+v", bound, round, i, a)
				}
			}
		}
		if n := m.Len(); n != bound {
			t.Errorf("%d keys held, want %d", n, bound)
		}
	}
}

// New clients of one zone in one call may turn out to share an overflow log,
// after each was told that its units fit. Then the call is refused as a whole.
func TestMemoryOneCallSharesOverflow(t *testing.T) {
	for _, room := range []int{0, 3} {
		m := full(t, 2)
		m.SetMaxKeys(2 + room)
		var requests []store.Request
		for i := range 40 { // more than there are overflow logs
			requests = append(requests, client(i))
		}
		if room > 0 {
			// What is reported has its place first, and keeps it.
			m.SetMaxKeys(2 + room + 1)
			requests[0].Unreported = []store.Spent{{Age: time.Minute, Units: 2}}
		}
		refused := 0
		for _, a := range take(t, m, requests...) {
			if a.Charged() {
				t.Errorf("charged in a refused call: %+v", a)
			}
			if !a.Granted {
				refused++
			}
		}
		if refused == 0 {
			t.Errorf("nothing refused")
		}
		if n := m.Len(); n != 2+len(requests[0].Unreported) {
			t.Errorf("%d keys held, want %d", n, 2+len(requests[0].Unreported))
		}
		requests[0].Unreported = nil
		for i := range requests {
			requests[i].Shadow = true
		}
		charged := 0
		for _, a := range take(t, m, requests...) {
			if a.Charged() != a.Granted {
				t.Errorf("%+v, want it charged if granted", a)
			}
			if a.Charged() {
				charged++
			}
		}
		if charged == 0 || charged > 16+room+1 {
			t.Errorf("%d shadow requests charged, want at most %d", charged, 16+room)
		}
	}
}

func TestMemorySetMaxKeys(t *testing.T) {
	m := store.NewMemory(1000)
	next := 0
	// flood invents clients, and returns how many keys are held after them.
	flood := func(zone string, n int) int {
		for range n {
			request := client(next)
			request.Key.Zone = zone
			before := m.Len()
			take(t, m, request)
			if next++; m.Len() > max(before, 1000) {
				t.Fatalf("%d keys held after %d", m.Len(), before)
			}
		}
		return m.Len()
	}
	flood("a", 2000)
	for _, bound := range []int{100, 3, 1} {
		m.SetMaxKeys(bound)
		if n := flood("a", 5000); n > bound {
			t.Errorf("%d keys held, want at most %d", n, bound)
		}
	}
	m.SetMaxKeys(500)
	if n := flood("b", 2000); n != 500 {
		t.Errorf("%d keys held, want 500", n)
	}
	m.SetMaxKeys(0)
	if n := flood("b", 400); n != 900 {
		t.Errorf("%d keys held, want 900", n)
	}
}

// After a flood the table shrinks while new clients come, and the memory of
// the flood comes back.
func TestMemoryShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const flood, later = 50_000, 30_000
		m := store.NewMemory(0)
		empty := heap()
		for i := range flood {
			take(t, m, client(i))
		}
		flooded := heap()
		for i := range later {
			if i%1000 == 0 {
				time.Sleep(time.Hour)
			}
			take(t, m, client(flood+i))
		}
		if n := m.Len(); n > 3000 {
			t.Errorf("%d keys held, want not many more than the 1000 that count", n)
		}
		now := heap()
		runtime.KeepAlive(m)
		t.Logf("%d bytes after the flood, %d later", flooded-empty, now-empty)
		if now-empty > (flooded-empty)/5 {
			t.Errorf("%d bytes held, %d after the flood", now-empty, flooded-empty)
		}
	})
}

// Whoever is banned stays banned, however many clients are invented, and though units
// have expired meanwhile. Nobody is banned for what others have used.
func TestMemoryKeepsBanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, bound := range []int{1, 10, 200} {
			m := store.NewMemory(bound)
			banned := func(i int) store.Request {
				request := client(i)
				request.Block = 3 * time.Hour
				return request
			}
			full := bound/2 + 1
			for i := range full {
				use(t, m, banned(i), 5)
				take(t, m, banned(i))
			}
			time.Sleep(2 * time.Hour)
			for i := range 20 * bound {
				a := take(t, m, banned(1000+i), banned(100_000+i))
				if a[0].Blocked || a[1].Blocked {
					t.Fatalf("bound %d: %+v, want nobody to be banned who has not been refused", bound, a)
				}
			}
			for i := range full {
				if a := take(t, m, client(i))[0]; !a.Blocked {
					t.Errorf("bound %d: client %d is not banned any more: %+v", bound, i, a)
				}
			}
			// A ban that is over protects nobody.
			time.Sleep(2 * time.Hour)
			for i := range 20 * bound {
				take(t, m, client(1000+i))
			}
			if n := m.Len(); n > bound {
				t.Errorf("%d keys held, want at most %d", n, bound)
			}
		}
	})
}

// Clients that share an overflow log are limited together, and none of them is banned
// for it.
func TestMemoryOverflowDoesNotBan(t *testing.T) {
	m := store.NewMemory(1)
	use(t, m, client(0), 5)
	for i := range 1000 {
		request := client(1000 + i)
		request.Block = time.Hour
		if a := take(t, m, request)[0]; a.Blocked {
			t.Fatalf("client %d: %+v, want no ban", i, a)
		}
	}
}
