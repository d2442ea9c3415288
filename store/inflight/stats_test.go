package inflight_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// A look counts the slots of all processes, takes none, and leaves nothing behind.
func TestLook(t *testing.T) {
	onSite(t, 2, func(s *site) {
		r := request("client", 3, 1)
		look := func(process int, inFlight int64, granted bool, source store.Source) {
			s.Helper()
			synctest.Wait()
			want := inflight.Decision{Granted: granted, InFlight: inFlight, Source: source}
			if got, err := s.limiters[process].Look(wait, r); got != want || (err != nil) != (source == store.FromLocal) {
				s.Errorf("process %d looks: %+v, error %v, want %+v", process, got, err, want)
			}
			synctest.Wait()
		}
		look(0, 0, true, store.FromStore)
		if s.records.Keys() != 0 || s.tables[0].Entries() != 0 {
			t.Error("a look at nothing leaves something behind")
		}
		a, b, c := s.acquire(0, r, true, store.FromStore), s.acquire(0, r, true, store.FromStore), s.acquire(1, r, true, store.FromStore)
		look(0, 3, false, store.FromStore)
		look(1, 3, false, store.FromStore)
		s.hold(r, 3)
		if got, want := s.tables[0].Stats(), (inflight.Stats{Held: 2, Keys: 1}); got != want {
			t.Errorf("stats: %+v, want %+v", got, want)
		}
		c.Release()
		look(0, 2, true, store.FromStore)
		s.records.Fail(func(*inflight.Claim) storetest.Fault { return storetest.Lost })
		look(1, 0, true, store.FromLocal)
		look(0, 2, false, store.FromLocal)
		a.Release()
		b.Release()
		time.Sleep(350 * time.Millisecond) // the call that tells it has failed, and the next one is not made yet
		if got := s.tables[0].Stats(); got.Held != 0 || got.Untold != 1 {
			t.Errorf("stats after a release that nobody hears: %+v", got)
		}
		s.records.Fail(nil)
	})
}

// While another call about the key is under way, that one tells; if it has too little time,
// there is another one. A look never waits for longer than it may.
func TestLookWhileOthersAsk(t *testing.T) {
	onSite(t, 2, func(s *site) {
		r := request("client", 3, 1)
		look := func(inFlight int64, source store.Source) {
			s.Helper()
			d, err := s.limiters[0].Look(wait, r)
			if d.InFlight != inFlight || d.Source != source || (err != nil) != (source == store.FromLocal) {
				s.Errorf("a look tells %+v, error %v; want %d in flight, by %v", d, err, inFlight, source)
			}
		}
		a, b := s.acquire(0, r, true, store.FromStore), s.acquire(0, r, true, store.FromStore)
		c := s.acquire(1, r, true, store.FromStore)
		s.records.Delay(wait / 2)

		_, before := s.records.Counts()
		a.Release()
		synctest.Wait() // the store is just being told
		b.Release()
		look(1, store.FromStore) // of which it is not told yet
		time.Sleep(time.Second)
		if _, after := s.records.Counts(); after != before+2 {
			t.Errorf("%d claims for two releases and a look, want 2", after-before)
		}
		s.hold(r, 1)

		go s.limiters[0].Acquire(wait/10, request("client", 3, 0)) // which is too little time
		synctest.Wait()
		look(1, store.FromStore)
		time.Sleep(time.Second)

		s.records.Delay(3 * wait)
		c.Release()
		d := s.acquire(0, r, true, store.FromLocal)
		d.Release()
		synctest.Wait()
		began := time.Now()
		look(0, store.FromLocal)
		if took := time.Since(began); took != wait {
			t.Errorf("a look took %v, want %v", took, wait)
		}
		s.records.Delay(0)
		time.Sleep(2 * time.Second)
		s.hold(r, 0)
	})
}
