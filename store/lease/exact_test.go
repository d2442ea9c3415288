package lease

import (
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
