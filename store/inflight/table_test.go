package inflight_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

const wait = 100 * time.Millisecond

// site is processes that share records.
type site struct {
	*testing.T
	records  *storetest.Records
	tables   []*inflight.Table
	limiters []*inflight.Limiter
}

// onSite runs a test in a bubble, with so many processes.
func onSite(t *testing.T, processes int, test func(s *site)) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{T: t, records: storetest.NewRecords()}
		for range processes {
			s.start()
		}
		test(s)
		time.Sleep(2 * 10 * time.Minute) // the last sweep
	})
}

// start starts another process.
func (s *site) start() {
	table := inflight.NewTable()
	s.tables = append(s.tables, table)
	s.limiters = append(s.limiters, table.Limiter(s.records))
}

func request(client string, limit, alone int64) inflight.Request {
	return inflight.Request{Key: inflight.Key{Zone: "zone", Client: client}, Limit: limit, Alone: alone}
}

// acquire asks a process for a slot.
func (s *site) acquire(process int, r inflight.Request, granted bool, source store.Source) *inflight.Slot {
	s.Helper()
	slot, d := s.limiters[process].Acquire(wait, r)
	if d.Granted != granted || d.Source != source || (slot != nil) != granted {
		s.Fatalf("process %d: %+v for %+v, want granted %v by %v", process, d, r, granted, source)
	}
	return slot
}

// hold wants slots to be held in the records, and waits until all calls are over.
func (s *site) hold(r inflight.Request, want int64) {
	s.Helper()
	synctest.Wait()
	if got := s.records.Held(r.Key); got != want {
		s.Fatalf("the store counts %d slots of %q, want %d", got, r.Client, want)
	}
}

func (s *site) release(slots ...*inflight.Slot) {
	for _, slot := range slots {
		slot.Release()
	}
	synctest.Wait()
}

func TestLostReply(t *testing.T) {
	onSite(t, 2, func(s *site) {
		r := request("client", 3, 1)
		s.records.Fail(func(*inflight.Claim) storetest.Fault { return storetest.LostReply })
		slot := s.acquire(0, r, true, store.FromLocal)
		s.records.Fail(nil)
		time.Sleep(2 * time.Second)
		s.hold(r, 1)
		a, b := s.acquire(1, r, true, store.FromStore), s.acquire(1, r, true, store.FromStore)
		s.acquire(1, r, false, store.FromStore)
		s.release(slot, a, b)
		s.hold(r, 0)
		if s.records.Keys() != 1 {
			t.Error("nobody remembers that a call may still arrive")
		}
	})
}

// TestUntold: what is released while the store is away is told when it is back, and
// what was granted meanwhile counts.
func TestUntold(t *testing.T) {
	onSite(t, 1, func(s *site) {
		r := request("client", 3, 2)
		a, b := s.acquire(0, r, true, store.FromStore), s.acquire(0, r, true, store.FromStore)
		s.records.Fail(func(*inflight.Claim) storetest.Fault { return storetest.Unexecuted })
		s.release(a)
		s.hold(r, 2)
		c := s.acquire(0, r, true, store.FromLocal)
		s.acquire(0, r, false, store.FromLocal)
		s.release(b)
		time.Sleep(10 * time.Minute)
		s.hold(r, 2)
		s.records.Fail(nil)
		time.Sleep(2 * time.Second)
		s.hold(r, 1)
		s.release(c)
		s.hold(r, 0)
		if s.records.Keys() != 0 {
			t.Error("a record is left")
		}
	})
}

func TestPolicies(t *testing.T) {
	onSite(t, 1, func(s *site) {
		s.records.Fail(func(*inflight.Claim) storetest.Fault { return storetest.Unexecuted })
		deny, allow := request("deny", 3, -1), request("allow", 1, inflight.Unlimited)
		s.acquire(0, deny, false, store.FromPolicy)
		var slots []*inflight.Slot
		for range 5 {
			slots = append(slots, s.acquire(0, allow, true, store.FromPolicy))
		}
		slot, d := s.limiters[0].Acquire(0, request("hurry", 1, 1))
		if !d.Granted || d.Source != store.FromLocal || d.Waited != 0 {
			t.Errorf("without time: %+v", d)
		}
		s.records.Fail(nil)
		time.Sleep(2 * time.Second)
		s.hold(allow, 5) // they are in flight
		s.acquire(0, allow, false, store.FromCache)
		s.release(slots...)
		s.release(slot)
		s.acquire(0, allow, true, store.FromStore).Release()
		time.Sleep(time.Second)
		if s.records.Keys() != 0 {
			t.Error("a record is left")
		}
	})
}

// TestBudget: nobody waits longer than he wants to.
func TestBudget(t *testing.T) {
	onSite(t, 1, func(s *site) {
		s.records.Delay(time.Second)
		began := time.Now()
		var group sync.WaitGroup
		for i := range 20 {
			group.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				slot, d := s.limiters[0].Acquire(wait, request("client", 100, 100))
				if !d.Granted || d.Source != store.FromLocal || d.Waited > wait {
					t.Errorf("%+v", d)
				}
				slot.Release()
			})
		}
		group.Wait()
		if took := time.Since(began); took > wait+20*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if calls, _ := s.records.Counts(); calls > 2 {
			t.Errorf("%d calls, of which most had no time", calls)
		}
		s.records.Delay(0)
	})
}

// TestCombined: requests that come together share calls, and are served in order.
func TestCombined(t *testing.T) {
	onSite(t, 1, func(s *site) {
		const callers, limit = 1000, 300
		s.records.Delay(10 * time.Millisecond)
		r := request("client", limit, -1)
		var group sync.WaitGroup
		var granted atomic.Int64
		for i := range callers {
			group.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Microsecond)
				slot, d := s.limiters[0].Acquire(wait, r)
				if d.Granted != (i < limit) {
					t.Errorf("request %d: %+v", i, d)
				}
				if slot != nil {
					granted.Add(1)
				}
			})
		}
		group.Wait()
		if calls, _ := s.records.Counts(); calls > 3 || granted.Load() != limit {
			t.Errorf("%d calls, %d granted", calls, granted.Load())
		}
		s.hold(r, limit)
	})
}

// TestReleasedMeanwhile: a slot that is released while a call is under way goes to
// whoever waits for it.
func TestReleasedMeanwhile(t *testing.T) {
	onSite(t, 2, func(s *site) {
		r := request("client", 2, -1)
		a := s.acquire(0, r, true, store.FromStore)
		b := s.acquire(1, r, true, store.FromStore)
		s.records.Delay(10 * time.Millisecond)
		time.AfterFunc(5*time.Millisecond, a.Release)
		c := s.acquire(0, r, true, store.FromStore)
		s.hold(r, 2)
		s.release(b, c)
		time.Sleep(time.Second)
		s.hold(r, 0)
	})
}

func TestLoss(t *testing.T) {
	onSite(t, 2, func(s *site) {
		r := request("client", 5, -1)
		a, b := s.acquire(0, r, true, store.FromStore), s.acquire(0, r, true, store.FromStore)
		c := s.acquire(1, r, true, store.FromStore)
		life := s.tables[0].Life()
		s.records.Lose(true)
		s.hold(r, 3)
		if s.tables[0].Life() == life {
			t.Error("the process goes by its old name")
		}
		s.records.Doubt() // nothing was lost
		s.records.Doubt()
		s.hold(r, 3)
		s.release(a, b, c)
		s.hold(r, 0)
		if s.records.Keys() != 0 {
			t.Error("a record is left")
		}
	})
}

// TestLossWhileCalling: a call that the loss overtakes grants, and is claimed again.
func TestLossWhileCalling(t *testing.T) {
	onSite(t, 1, func(s *site) {
		r := request("client", 5, -1)
		s.records.Delay(20 * time.Millisecond)
		time.AfterFunc(10*time.Millisecond, func() { s.records.Lose(true) })
		life := s.tables[0].Life()
		slot := s.acquire(0, r, true, store.FromStore)
		time.Sleep(time.Second)
		s.records.Kill(life)
		time.Sleep(16 * time.Second)
		s.start()
		other := s.acquire(1, r, true, store.FromStore)
		s.hold(r, 2) // and what the dead name held is gone
		s.release(slot, other)
		time.Sleep(time.Second)
		s.hold(r, 0)
	})
}

// TestLossWhileAway: a slot that is released while the store is away, after which the
// process takes another name, is free when the store is back.
func TestLossWhileAway(t *testing.T) {
	onSite(t, 1, func(s *site) {
		r := request("client", 5, -1)
		slot := s.acquire(0, r, true, store.FromStore)
		s.records.Fail(func(*inflight.Claim) storetest.Fault { return storetest.Unexecuted })
		s.release(slot)
		s.records.Doubt()
		s.records.Fail(nil)
		time.Sleep(2 * time.Second)
		s.hold(r, 0)
	})
}

// TestResurrection: a server that took over lacks a release, of which the process knows
// nothing any more. Its old name is dead, so that the slots are free again.
func TestResurrection(t *testing.T) {
	onSite(t, 2, func(s *site) {
		r := request("client", 2, -1)
		stale := inflight.Claim{Key: r.Key, Limit: 2, Life: s.tables[0].Life(), Seq: 1, Held: 2}
		s.records.Decide(stale, time.Now())
		s.records.Doubt()
		s.acquire(1, r, false, store.FromStore)
		if s.tables[0].Life() == stale.Life {
			t.Fatal("the stale name lives on")
		}
		s.acquire(0, r, true, store.FromStore).Release() // the process itself knows better
		s.records.Decide(stale, time.Now())
		s.records.Kill(stale.Life)
		time.Sleep(16 * time.Second)
		s.acquire(1, r, true, store.FromStore).Release()
	})
}

// TestMayLoseAll: whatever is lost and late, after it all slots are free.
func TestMayLoseAll(t *testing.T) {
	onSite(t, 3, func(s *site) {
		for i, l := range s.limiters {
			if i > 0 {
				l.Start()
			}
		}
		var late []inflight.Claim
		var mu sync.Mutex
		s.records.Fail(func(c *inflight.Claim) storetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			fault := []storetest.Fault{0, 0, 0, storetest.Unexecuted, storetest.LostReply, storetest.Lost}[rand.IntN(6)]
			if fault == storetest.Lost {
				late = append(late, *c)
			}
			return fault
		})
		var group sync.WaitGroup
		for i := range 60 {
			group.Go(func() {
				for range 30 {
					r := request(fmt.Sprint(rand.IntN(5)), 4, 2)
					slot, _ := s.limiters[i%3].Acquire(wait, r)
					time.Sleep(rand.N(50 * time.Millisecond))
					slot.Release()
				}
			})
		}
		group.Wait()
		s.records.Fail(nil)
		time.Sleep(5 * time.Second)
		for i := range 5 {
			s.hold(request(fmt.Sprint(i), 4, 2), 0)
		}
		for _, c := range late {
			s.records.Decide(c, time.Now())
		}
		for i := range 5 {
			s.hold(request(fmt.Sprint(i), 4, 2), 0)
		}
		if len(late) < 20 {
			t.Errorf("%d claims came late", len(late))
		}
	})
}

// TestBound: a table that cannot tell the store forgets, and takes another name.
func TestBound(t *testing.T) {
	onSite(t, 1, func(s *site) {
		r := request("kept", 5, 5)
		kept := s.acquire(0, r, true, store.FromStore)
		life := s.tables[0].Life()
		s.records.Fail(func(*inflight.Claim) storetest.Fault { return storetest.LostReply })
		const clients, bound = 2000, 1500
		s.tables[0].SetBound(bound)
		var group sync.WaitGroup
		for i := range clients {
			group.Go(func() {
				slot, _ := s.limiters[0].Acquire(wait, request(fmt.Sprint(i), 1, 1))
				slot.Release()
			})
		}
		group.Wait()
		s.records.Fail(nil)
		time.Sleep(time.Minute)
		s.hold(r, 1)
		if s.tables[0].Life() == life {
			t.Error("it goes by its old name")
		}
		if n := s.tables[0].Entries(); n != 1 {
			t.Errorf("%d entries are left", n)
		}
		s.release(kept)
	})
}

// TestIdle: what is in flight for long costs a claim an hour.
func TestIdle(t *testing.T) {
	onSite(t, 1, func(s *site) {
		const clients, hours = 2000, 26
		var slots []*inflight.Slot
		for i := range clients {
			slots = append(slots, s.acquire(0, request(fmt.Sprint(i), 1, -1), true, store.FromStore))
		}
		calls, claims := s.records.Counts()
		time.Sleep(hours*time.Hour + time.Minute)
		moreCalls, moreClaims := s.records.Counts()
		moreCalls, moreClaims = moreCalls-calls, moreClaims-claims
		if moreClaims < clients*hours*3/4 || moreClaims > clients*hours || moreCalls > 6*hours {
			t.Errorf("%d claims in %d calls in %d hours", moreClaims, moreCalls, hours)
		}
		s.release(slots...)
		if s.records.Keys() != 0 || s.tables[0].Entries() != 0 {
			t.Errorf("%d records and %d entries are left", s.records.Keys(), s.tables[0].Entries())
		}
	})
}

// TestReload: slots outlive the limiter that granted them, and the last one tells.
func TestReload(t *testing.T) {
	onSite(t, 1, func(s *site) {
		r := request("client", 2, -1)
		slot := s.acquire(0, r, true, store.FromStore)
		s.limiters[0].Start()
		broken := storetest.NewRecords()
		broken.Fail(func(*inflight.Claim) storetest.Fault { return storetest.Unexecuted })
		validated := s.tables[0].Limiter(broken)
		other := s.acquire(0, r, true, store.FromStore)
		s.release(other)
		s.hold(r, 1)
		validated.Close()
		next := s.tables[0].Limiter(s.records)
		next.Start()
		s.limiters[0].Close()
		s.limiters[0] = next
		other = s.acquire(0, r, true, store.FromStore)
		s.acquire(0, r, false, store.FromCache)
		next.Close()
		s.release(slot, other)
		s.hold(r, 0)
	})
}

func TestLeave(t *testing.T) {
	onSite(t, 2, func(s *site) {
		r := request("client", 1000, -1)
		for i := range 600 {
			s.acquire(0, request(fmt.Sprint(i), 1, -1), true, store.FromStore)
			s.acquire(0, r, true, store.FromStore)
		}
		s.acquire(1, r, true, store.FromStore)
		s.tables[0].Leave(time.Second)
		if got, keys := s.records.Held(r.Key), s.records.Keys(); got != 1 || keys != 1 {
			t.Errorf("%d slots and %d records are left", got, keys)
		}
	})
}
