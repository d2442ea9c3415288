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
			if got := s.limiters[process].Look(wait, r); got != want {
				s.Errorf("process %d looks: %+v, want %+v", process, got, want)
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
