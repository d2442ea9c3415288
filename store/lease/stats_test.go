package lease

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// What is in hand counts until the lease's end, and a refusal while it is remembered.
func TestStats(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		other := r.request
		other.Client, other.Limit = "other", 2
		r.granted(other, 2)
		r.refused(other, 1)
		synctest.Wait()

		stats := r.Stats()
		r.want("keys", int64(stats.Keys), 2)
		r.want("keys with units in hand", int64(stats.Leased), 1)
		r.want("units in hand", stats.Units, r.inHand(r.request))
		r.want("refusals", int64(stats.Refusals), 1)
		r.want("in hand of one key", r.InHand(r.request.Key, r.request.Limit), r.inHand(r.request))
		r.want("in hand under another limit", r.InHand(r.request.Key, r.request.Limit+1), 0)
		if stats.Units == 0 {
			t.Error("nothing is in hand, so that this tests nothing")
		}

		r.wire.set(func(w *wire) { w.there = time.Hour }) // what has ended stays here until it is refunded
		time.Sleep(2 * time.Second)
		stats = r.Stats()
		r.want("units that have ended", stats.Units, 0)
		r.want("refusals that are over", int64(stats.Refusals), 0)
		r.wire.set(func(w *wire) { w.there = 0 })
		time.Sleep(2 * time.Hour)
	})
}

// Each unit of a lease is spent, in hand, or unspent in the end.
func TestStatsOfUnits(t *testing.T) {
	inBubble(t, func(r *rig) {
		var spent int64
		for range 2000 {
			if r.granted(r.request, 1).Source == store.FromLease {
				spent++
			}
			time.Sleep(3 * time.Millisecond)
		}
		synctest.Wait()
		stats := r.Stats()
		r.want("units granted", stats.Granted, spent+stats.Units+stats.Unspent)
		time.Sleep(time.Minute) // all leases end
		synctest.Wait()
		stats = r.Stats()
		r.want("units granted in the end", stats.Granted, spent+stats.Unspent)
		if spent == 0 || stats.Unspent == 0 {
			t.Errorf("%d units spent and %d unspent: this tests nothing", spent, stats.Unspent)
		}
		time.Sleep(2 * time.Hour)
	})
}
