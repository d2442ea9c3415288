package lease

import (
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Exact requests are the store's: no lease is asked for or spent, however much a key
// is used, and no refusal is remembered.
func TestExact(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit, r.request.Exact = 10_000, true
		const calls = 3000
		for range calls {
			if d := r.granted(r.request, 1); d.Source != store.FromStore || d.Lease != 0 {
				t.Fatalf("%+v, want it from the store", d)
			}
			time.Sleep(time.Millisecond)
		}
		r.want("asked", int64(r.sent()), calls)

		rest := r.request
		rest.Limit = calls
		for range 10 {
			if d := r.refused(rest, 1); d.Source != store.FromStore {
				t.Fatalf("%+v, want a refusal by the store", d)
			}
		}
		rest.Exact = false
		if d := r.refused(rest, 1); d.Source != store.FromStore {
			t.Errorf("%+v, want no refusal to be remembered", d)
		}
		if d := r.refused(rest, 1); d.Source != store.FromCache {
			t.Errorf("%+v, want it from memory", d)
		}
		rest.Exact = true
		if d := r.refused(rest, 1); d.Source != store.FromStore {
			t.Errorf("%+v, want it from the store, whatever is remembered of others", d)
		}

		// A lease in hand, of the time before the zone was exact, stays what it is.
		r.request.Client, r.request.Exact = "other", false
		for range calls {
			r.granted(r.request, 1)
			time.Sleep(time.Millisecond)
		}
		r.request.Exact = true
		if d := r.granted(r.request, 1); d.Source != store.FromStore {
			t.Errorf("%+v, want it from the store", d)
		}
	})
}

// A ban is remembered for a second at most, for Exact requests too; one of them asks the
// store again before that is over.
func TestBanIsRemembered(t *testing.T) {
	for _, exact := range []bool{false, true} {
		inBubble(t, func(r *rig) {
			r.request.Limit, r.request.Block, r.request.Exact = 2, 100*time.Minute, exact
			a := r.granted(r.request, 2)
			if d := r.refused(r.request, 1); !d.Blocked || d.Source != store.FromStore {
				t.Fatalf("%+v, want the store to ban", d)
			}
			before := r.sent()
			var wg sync.WaitGroup
			for range 10_000 {
				wg.Go(func() {
					if d := r.refused(r.request, 1); !d.Blocked || d.RetryAfter < 99*time.Minute {
						t.Errorf("%+v, want it blocked", d)
					}
				})
				time.Sleep(time.Millisecond)
			}
			wg.Wait()
			if calls := r.sent() - before; calls < 10 || calls > 12 {
				t.Errorf("exact %v: %d calls in ten seconds, want a little more than one a second", exact, calls)
			}
			if d := r.refused(r.request, 1); d.Source != store.FromCache {
				t.Errorf("exact %v: %+v, want it from memory", exact, d)
			}

			// Units come back through this process: it knows that the ban is over.
			if err := r.Store.Refund(time.Second, []store.Refund{{Key: r.request.Key, Charge: a.Charge, Units: 1, Source: a.Source}}); err != nil {
				t.Error(err)
			}
			if d := r.granted(r.request, 1); d.Source != store.FromStore {
				t.Errorf("exact %v: %+v, want it granted by the store", exact, d)
			}
			r.refused(r.request, 1)
		})
	}
}

// Another process has given units back: the first to ask the store learns it, and
// nobody is refused from memory after that.
func TestBanIsForgottenWhenTheStoreGrants(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit, r.request.Block, r.request.Exact = 2, 100*time.Minute, true
		a := r.granted(r.request, 2)
		r.refused(r.request, 1)
		if err := r.wire.central.Refund(0, []store.Refund{{Key: r.request.Key, Charge: a.Charge, Units: 2}}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second - refusalTime/16) // one request renews it
		r.granted(r.request, 1)
		if d := r.granted(r.request, 1); d.Source != store.FromStore {
			t.Errorf("%+v, want it from the store", d)
		}
	})
}
