package lease

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// queued is a store of which calls wait in its queue before they are sent.
type queued struct {
	*wire
	alone time.Duration // a round trip without the queue
}

func (q queued) RoundTrip() time.Duration { return q.alone }

// Calls that wait in this process's own queue tell nothing of how far away the
// store is. With short windows and a load that the store could hardly bear, there
// were no leases because the queue was long, and the queue was long because there
// were no leases.
func TestLeasesThoughTheQueueIsLong(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Window = time.Second // leases last 167 ms at most
		r.wire.there, r.wire.back = 2*time.Millisecond, 2*time.Millisecond
		r.Store = newStore(queued{r.wire, 300 * time.Microsecond}, Options{}, r.machine.clock)
		leased := func(a store.Request) bool {
			for range 400 {
				r.granted(a, 1)
				time.Sleep(shortest(a.Window) / 64)
				synctest.Wait()
			}
			asked, replies := r.wire.requests()
			for i := range asked {
				if asked[i].Key == a.Key && replies[i].Lease > 0 {
					return true
				}
			}
			return false
		}
		if !leased(r.request) {
			r.Error("a store that is near, and a long queue: no leases")
		}

		// A store that is so far away gives none.
		far := r.request
		far.Key.Client = "another"
		r.wire.there, r.wire.back = 30*time.Millisecond, 30*time.Millisecond
		r.Store = newStore(queued{r.wire, 50 * time.Millisecond}, Options{}, r.machine.clock)
		if leased(far) {
			r.Error("a store that is a third of the longest lease away: leases")
		}
	})
}

// A key goes on with leases while the store is twice as far away as would keep it
// from beginning: they do not come and go with each round trip.
func TestLeasesDoNotFlap(t *testing.T) {
	inBubble(t, func(r *rig) {
		may := func() bool {
			s, known := r.of(r.request.Key)
			s.mu.Lock()
			defer s.mu.Unlock()
			k := known()
			held := k.second // of no account here
			k.second = batch{}
			size, _ := r.leaseLocked(k, &r.request, r.clock())
			k.second = held
			return size > 0
		}
		r.heat(r.request)
		span := shortest(r.request.Window)
		for _, step := range []struct {
			parts int64 // of a span, that a round trip takes
			may   bool
		}{{5, true}, {3, true}, {4, true}, {3, true}, {1, false}, {3, false}, {5, true}, {3, true}} {
			r.roundTrip.Store(int64(span) / step.parts)
			if got := may(); got != step.may {
				r.Errorf("round trips of a %dth of a span: leases %v, want %v", step.parts, got, step.may)
			}
		}
	})
}
