package lease

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// wire is the way to the central store in these tests. It does what it is
// told to.
type wire struct {
	*central
	mu          sync.Mutex
	there, back time.Duration    // how long calls are under way
	mute        bool             // replies are lost
	deaf        bool             // refunds are lost
	tardy       time.Duration    // refunds are executed so much later
	patience    time.Duration    // if not 0, a call waits so long at most; its decision comes late
	fails       bool             // the late decision is a failure
	away        bool             // nothing is asked, and fails at once
	asked       []store.Request  // everything that was asked for
	replies     []store.Decision // and what was granted
	returned    []store.Refund   // what was sent, executed or not
	refilling   int              // calls for a lease under way, and the most there were
	mostAtOnce  int
}

// set changes what the wire does, or looks at what it did.
func (w *wire) set(change func(w *wire)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

// refunded is what was refunded so far.
func (w *wire) refunded() (returned []store.Refund) {
	w.set(func(w *wire) { returned = slices.Clone(w.returned) })
	return returned
}

// requests is what was asked so far, and what was replied.
func (w *wire) requests() (asked []store.Request, replies []store.Decision) {
	w.set(func(w *wire) { asked, replies = slices.Clone(w.asked), slices.Clone(w.replies) })
	return asked, replies
}

// last is what was asked last, and what was replied.
func (w *wire) last() (store.Request, store.Decision) {
	asked, replies := w.requests()
	return asked[len(asked)-1], replies[len(replies)-1]
}

func (w *wire) count(requests []store.Request, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range requests {
		if requests[i].Lease > 0 {
			w.refilling += n
			w.mostAtOnce = max(w.mostAtOnce, w.refilling)
		}
	}
}

func (w *wire) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	w.count(requests, 1)
	defer w.count(requests, -1)
	w.mu.Lock()
	there, back, patience, fails, away := w.there, w.back, w.patience, w.fails, w.away
	w.mu.Unlock()
	if away {
		return &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errLost}
	}
	if wait = min(wait, patience); patience > 0 && there+back > wait {
		late, requests := new(store.Pending), slices.Clone(requests)
		for i := range requests {
			requests[i].Unreported = slices.Clone(requests[i].Unreported)
		}
		go func() {
			time.Sleep(there)
			decisions := make([]store.Decision, len(requests))
			_ = w.central.Take(time.Now(), 0, requests, decisions)
			w.set(func(w *wire) { w.asked, w.replies = append(w.asked, requests...), append(w.replies, decisions...) })
			time.Sleep(back)
			if fails {
				decisions = nil
			}
			late.Deliver(decisions)
		}()
		time.Sleep(wait)
		return &store.Error{Kind: store.KindTimeout, Pending: late, Err: errLost}
	}
	time.Sleep(there)
	err := w.central.Take(time.Now(), wait, requests, decisions)
	w.mu.Lock()
	w.asked = append(w.asked, requests...)
	w.replies = append(w.replies, decisions...)
	mute := w.mute
	w.mu.Unlock()
	time.Sleep(back)
	if mute {
		return &store.Error{Kind: store.KindBroken, Err: errLost}
	}
	return err
}

func (w *wire) Refund(wait time.Duration, refunds []store.Refund) error {
	w.mu.Lock()
	w.returned = append(w.returned, refunds...)
	deaf, tardy, there := w.deaf, w.tardy, w.there
	w.mu.Unlock()
	if deaf {
		return &store.Error{Kind: store.KindTimeout, Err: errLost}
	}
	if tardy > 0 {
		time.AfterFunc(tardy, func() { _ = w.central.Refund(wait, refunds) })
		return &store.Error{Kind: store.KindTimeout, Err: errLost}
	}
	time.Sleep(there)
	return w.central.Refund(wait, refunds)
}

// rig is one process, its machine, its wire and a key of 6400 units a minute:
// leases of at most 100 units, which last 468.75 ms.
type rig struct {
	*testing.T
	*Store
	wire    *wire
	machine *machine
	request store.Request
}

// inBubble runs a test with a rig.
func inBubble(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{
			T: t, wire: &wire{central: newCentral(), there: time.Millisecond, back: time.Millisecond}, machine: &machine{rate: 1},
			request: store.Request{Key: store.Key{Zone: "zone", Client: "client", Window: time.Minute}, Limit: 6400, Units: 1},
		}
		r.Store = newStore(r.wire, Options{}, r.machine.clock)
		test(r)
	})
}

func (r *rig) take(requests ...store.Request) []store.Decision {
	r.Helper()
	decisions := make([]store.Decision, len(requests))
	if err := r.Take(time.Now(), budget, requests, decisions); err != nil {
		r.Fatalf("Take(%+v): %v", requests, err)
	}
	return decisions
}

func (r *rig) granted(a store.Request, units int64) store.Decision {
	r.Helper()
	a.Units = units
	decision := r.take(a)[0]
	if !decision.Granted {
		r.Fatalf("%d units of %+v refused: %+v; %s", units, a, decision, r.state(a))
	}
	return decision
}

func (r *rig) refused(a store.Request, units int64) store.Decision {
	r.Helper()
	a.Units = units
	decision := r.take(a)[0]
	if decision.Granted || decision.RetryAfter <= 0 {
		r.Fatalf("%d units of %+v: %+v, want them refused; %s", units, a, decision, r.state(a))
	}
	return decision
}

// key is a copy of what the process knows of a key.
func (r *rig) key(a store.Request) leaseKey {
	s, known := r.of(a.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := known(); k != nil {
		return *k
	}
	return leaseKey{}
}

func (r *rig) state(a store.Request) string {
	return fmt.Sprintf("key %+v, %d units count", r.key(a), r.total(a))
}

// inHand is how many units of leases the process has.
func (r *rig) inHand(a store.Request) int64 { k := r.key(a); return k.first.units + k.second.units }

// total is how many units count at the store.
func (r *rig) total(a store.Request) int64 { return r.wire.total(a.Key) }

// sent is how many requests the store was asked.
func (r *rig) sent() int { asked, _ := r.wire.requests(); return len(asked) }

// heat uses a key until there is a lease with some units, and returns how many
// units it took.
func (r *rig) heat(a store.Request) (units int64) {
	r.Helper()
	for range 1000 {
		r.granted(a, 1)
		units++
		time.Sleep(shortest(a.Window) / 64)
		synctest.Wait()
		if k := r.key(a); !k.refilling && k.first.units >= min(20, a.Limit/leaseParts-1) && k.second.empty() && r.clock().add(shortest(a.Window)*3/4).before(k.first.end) {
			// What was left of the leases before is no matter of the test.
			r.sendLeftovers()
			time.Sleep(3 * time.Millisecond)
			r.wire.set(func(w *wire) { w.returned = nil })
			return units
		}
	}
	r.Fatalf("no lease after %d units; %s", units, r.state(a))
	return 0
}

func (r *rig) want(what string, got, want int64) {
	r.Helper()
	if got != want {
		r.Errorf("%s: %d, want %d", what, got, want)
	}
}

// know has the process know a key for so long that it may have the longest leases.
func (r *rig) know(a store.Request) {
	r.Helper()
	for range 2 {
		r.granted(a, 1)
	}
	time.Sleep((calmParts + 1) * longest(a.Window))
}
