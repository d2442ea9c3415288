package store

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// wire is the way to the central store in these tests. It does what it is
// told to.
type wire struct {
	*central
	mu          sync.Mutex
	there, back time.Duration // how long calls are under way
	mute        bool          // replies are lost
	deaf        bool          // give-backs are lost
	tardy       time.Duration // give-backs are executed so much later
	patience    time.Duration // if not 0, a call waits so long at most; its answer comes late
	fails       bool          // the late answer is a failure
	away        bool          // nothing is asked, and fails at once
	asked       []Ask         // everything that was asked for
	replies     []Answer      // and what was granted
	returned    []Grant       // what was sent, executed or not
	refilling   int           // calls for a lease under way, and the most there were
	mostAtOnce  int
}

// set changes what the wire does, or looks at what it did.
func (w *wire) set(change func(w *wire)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

// given is what was sent back so far.
func (w *wire) given() (returned []Grant) {
	w.set(func(w *wire) { returned = slices.Clone(w.returned) })
	return returned
}

// asks is what was asked so far, and what was answered.
func (w *wire) asks() (asked []Ask, replies []Answer) {
	w.set(func(w *wire) { asked, replies = slices.Clone(w.asked), slices.Clone(w.replies) })
	return asked, replies
}

// last is what was asked last, and what was answered.
func (w *wire) last() (Ask, Answer) {
	asked, replies := w.asks()
	return asked[len(asked)-1], replies[len(replies)-1]
}

func (w *wire) count(asks []Ask, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range asks {
		if asks[i].Extra > 0 {
			w.refilling += n
			w.mostAtOnce = max(w.mostAtOnce, w.refilling)
		}
	}
}

func (w *wire) Take(wait time.Duration, asks []Ask, answers []Answer) error {
	w.count(asks, 1)
	defer w.count(asks, -1)
	w.mu.Lock()
	there, back, patience, fails, away := w.there, w.back, w.patience, w.fails, w.away
	w.mu.Unlock()
	if away {
		return &Error{Kind: KindAway, Unexecuted: true, Err: errLost}
	}
	if wait = min(wait, patience); patience > 0 && there+back > wait {
		late, asks := new(Late), slices.Clone(asks)
		for i := range asks {
			asks[i].Owed = slices.Clone(asks[i].Owed)
		}
		go func() {
			time.Sleep(there)
			answers := make([]Answer, len(asks))
			_ = w.central.Take(0, asks, answers)
			w.set(func(w *wire) { w.asked, w.replies = append(w.asked, asks...), append(w.replies, answers...) })
			time.Sleep(back)
			if fails {
				answers = nil
			}
			late.Deliver(answers)
		}()
		time.Sleep(wait)
		return &Error{Kind: KindTimeout, Late: late, Err: errLost}
	}
	time.Sleep(there)
	err := w.central.Take(wait, asks, answers)
	w.mu.Lock()
	w.asked = append(w.asked, asks...)
	w.replies = append(w.replies, answers...)
	mute := w.mute
	w.mu.Unlock()
	time.Sleep(back)
	if mute {
		return &Error{Kind: KindBroken, Err: errLost}
	}
	return err
}

func (w *wire) Return(wait time.Duration, grants []Grant) error {
	w.mu.Lock()
	w.returned = append(w.returned, grants...)
	deaf, tardy, there := w.deaf, w.tardy, w.there
	w.mu.Unlock()
	if deaf {
		return &Error{Kind: KindTimeout, Err: errLost}
	}
	if tardy > 0 {
		time.AfterFunc(tardy, func() { _ = w.central.Return(wait, grants) })
		return &Error{Kind: KindTimeout, Err: errLost}
	}
	time.Sleep(there)
	return w.central.Return(wait, grants)
}

// rig is one process, its machine, its wire and a key of 6400 units a minute:
// leases of at most 100 units, which last 468.75 ms.
type rig struct {
	*testing.T
	*Leases
	wire    *wire
	machine *machine
	ask     Ask
}

// inBubble runs a test with a rig.
func inBubble(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{
			T: t, wire: &wire{central: newCentral(), there: time.Millisecond, back: time.Millisecond}, machine: &machine{rate: 1},
			ask: Ask{Key: Key{Zone: "zone", Client: "client"}, Window: time.Minute, Limit: 6400, Need: 1},
		}
		r.Leases = newLeases(r.wire, LeasesOptions{}, r.machine.clock)
		test(r)
	})
}

func (r *rig) take(asks ...Ask) []Answer {
	r.Helper()
	answers := make([]Answer, len(asks))
	if err := r.Take(budget, asks, answers); err != nil {
		r.Fatalf("Take(%+v): %v", asks, err)
	}
	return answers
}

func (r *rig) granted(a Ask, units int64) Answer {
	r.Helper()
	a.Need = units
	answer := r.take(a)[0]
	if !answer.Granted {
		r.Fatalf("%d units of %+v refused: %+v; %s", units, a, answer, r.state(a))
	}
	return answer
}

func (r *rig) refused(a Ask, units int64) Answer {
	r.Helper()
	a.Need = units
	answer := r.take(a)[0]
	if answer.Granted || answer.RetryAfter <= 0 {
		r.Fatalf("%d units of %+v: %+v, want them refused; %s", units, a, answer, r.state(a))
	}
	return answer
}

// key is a copy of what the process knows of a key.
func (r *rig) key(a Ask) leaseKey {
	s := r.shard(&a)
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys[logKey{a.Key, a.Window}]; k != nil {
		return *k
	}
	return leaseKey{}
}

func (r *rig) state(a Ask) string {
	return fmt.Sprintf("key %+v, %d units count", r.key(a), r.total(a))
}

// inHand is how many units of leases the process has.
func (r *rig) inHand(a Ask) int64 { k := r.key(a); return k.first.units + k.second.units }

// total is how many units count at the store.
func (r *rig) total(a Ask) int64 { return r.wire.total(a.Key, a.Window) }

// sent is how many asks the store was asked.
func (r *rig) sent() int { asked, _ := r.wire.asks(); return len(asked) }

// heat uses a key until there is a lease with some units, and returns how many
// units it took.
func (r *rig) heat(a Ask) (units int64) {
	r.Helper()
	for range 1000 {
		r.granted(a, 1)
		units++
		time.Sleep(leaseSpan(a.Window) / 64)
		synctest.Wait()
		if k := r.key(a); k.first.units >= min(20, a.Limit/leaseParts-1) && k.second.empty() && r.clock().add(leaseSpan(a.Window)*3/4).before(k.first.end) {
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
