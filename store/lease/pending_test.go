package lease

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// patience is how long calls wait in these tests.
const patience = 100 * time.Millisecond

// slowly makes replies come after so long, and calls not wait for them.
func (r *rig) slowly(back time.Duration) {
	r.wire.set(func(w *wire) { w.there, w.back, w.patience = time.Millisecond, back, patience })
}

// promptly undoes slowly.
func (r *rig) promptly() {
	r.wire.set(func(w *wire) { w.there, w.back, w.patience = 0, 0, 0 })
}

// drop loses the leases of a key, so that what is needed is asked for.
func (r *rig) drop(a store.Request) {
	s, known := r.of(a.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := known()
	k.first, k.second = batch{}, batch{}
}

// news is what the caller of a pending call was told so far.
type news struct{ told [][]store.Decision }

// late makes a call whose answers do not come in time.
func (r *rig) late(requests ...store.Request) *news {
	r.Helper()
	err := r.Take(time.Now(), budget, requests, make([]store.Decision, len(requests)))
	e, ok := err.(*store.Error)
	if !ok || e.Kind != store.KindTimeout || e.Unexecuted || e.Pending == nil || e.Err != errLost {
		r.Fatalf("Take(%+v): %v, want a timeout with late decisions", requests, err)
	}
	n := &news{}
	e.Pending.Then(func(decisions []store.Decision) { n.told = append(n.told, decisions) })
	return n
}

// only is what was told, once.
func (r *rig) only(n *news) []store.Decision {
	r.Helper()
	synctest.Wait()
	if len(n.told) != 1 {
		r.Fatalf("told %+v, want one call's decisions", n.told)
	}
	return n.told[0]
}

// A store that answers later than its callers wait still says who is over the
// limit, and those no longer ask.
func TestPendingRefusal(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit = 2
		r.granted(r.request, 2)
		r.slowly(300 * time.Millisecond)
		at := time.Now()
		n := r.late(r.request)
		time.Sleep(300 * time.Millisecond)
		decision := r.only(n)[0]
		if decision.Granted || decision.Charged() || decision.Source != store.FromStore || decision.RetryAfter < 59*time.Second {
			t.Errorf("the caller is told %+v, want the refusal", decision)
		}
		before := r.sent()
		for time.Since(at) < refusalTime*7/8 {
			a := r.refused(r.request, 1)
			if a.Source != store.FromCache || a.Remaining != 0 {
				t.Fatalf("%v after it was sent: %+v, want it from memory", time.Since(at), a)
			}
			if end := time.Since(at) + a.RetryAfter; end < time.Minute-2*time.Millisecond {
				t.Fatalf("told to come back after %v: too early", end)
			}
			time.Sleep(10 * time.Millisecond)
		}
		r.want("asked", int64(r.sent()-before), 0)
		// It ends a second after the call was sent, not after the decision.
		time.Sleep(time.Until(at.Add(refusalTime)))
		r.promptly()
		if a := r.refused(r.request, 1); a.Source != store.FromStore {
			t.Errorf("%+v after a second, want it from the store", a)
		}
	})
}

// A refusal that comes when its memory would have ended is not remembered, nor
// does it replace what is. One that is older than what was refunded is not
// either.
func TestPendingRefusalOutdated(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit = 2
		refund := r.granted(r.request, 2)
		r.slowly(refusalTime + 100*time.Millisecond)
		n := r.late(r.request)
		time.Sleep(time.Second)
		r.promptly()
		r.refused(r.request, 1)
		known := r.key(r.request).refusal
		time.Sleep(10 * time.Millisecond)
		r.only(n)
		if now := r.key(r.request).refusal; now != known {
			t.Errorf("%+v is remembered, want %+v as before", now, known)
		}

		time.Sleep(2 * time.Second)
		r.slowly(300 * time.Millisecond)
		n = r.late(r.request)
		r.promptly()
		if err := r.Refund(budget, []store.Refund{{Key: r.request.Key, Charge: refund.Charge, Units: 1, Source: refund.Source}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		r.only(n)
		r.granted(r.request, 1)
	})
}

// A lease that comes late is spent until its end, which is reckoned from when
// it was asked for. What was needed is told to the caller.
func TestPendingLease(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.drop(r.request)
		before := r.total(r.request)
		r.slowly(300 * time.Millisecond)
		at := time.Now()
		n := r.late(r.request)
		r.want("in hand at first", r.inHand(r.request), 0)
		used := r.key(r.request).demand
		if r.key(r.request).refilling {
			t.Error("still waits for a lease")
		}
		time.Sleep(time.Until(at.Add(301*time.Millisecond - 1)))
		r.want("in hand before", r.inHand(r.request), 0)
		time.Sleep(time.Nanosecond)
		decision := r.only(n)[0]
		asked, reply := r.wire.last()
		if asked.Lease < 10 || reply.Lease != asked.Lease {
			t.Fatalf("asked %+v, decided %+v; want a lease", asked, reply)
		}
		want := reply
		want.Lease = 0
		if decision != want || !decision.Granted {
			t.Errorf("the caller is told %+v, want %+v", decision, want)
		}
		r.want("in hand", r.inHand(r.request), reply.Lease)
		r.want("units that count", r.total(r.request), before+1+reply.Lease)

		if now := r.key(r.request).demand; now.last(r.request.Window, shortest(r.request.Window), r.clock()) != used.last(r.request.Window, shortest(r.request.Window), r.clock())+1 {
			t.Errorf("demand %+v, want one more than %+v", now, used)
		}

		// The need is the caller's, and is refunded to the store.
		if err := r.Refund(budget, []store.Refund{{Key: r.request.Key, Charge: decision.Charge, Units: 1, Source: decision.Source}}); err != nil {
			t.Fatal(err)
		}
		r.want("in hand", r.inHand(r.request), reply.Lease)
		r.want("units that count", r.total(r.request), before+reply.Lease)

		r.wire.set(func(w *wire) { w.away = true }) // nothing more comes
		span, spent := asked.LeaseSpan, int64(0)
		end := at.Add(span - span/driftParts)
		for ; time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if a := r.granted(r.request, 1); a.Source != store.FromLease || a.Stamp != reply.Stamp || a.Mark != reply.Mark {
				t.Fatalf("%+v, want it from the lease", a)
			}
			spent++
		}
		time.Sleep(time.Until(end))
		if err := r.Take(time.Now(), budget, []store.Request{r.request}, make([]store.Decision, 1)); store.ErrorKind(err) != store.KindAway {
			t.Errorf("%v after the lease's end, want the store's error", err)
		}
		time.Sleep(leaveTime)
		synctest.Wait()
		if refunded := r.wire.refunded(); len(refunded) != 2 || refunded[1].Units != reply.Lease-spent {
			t.Errorf("%+v refunded, want the need and %d units", refunded, reply.Lease-spent)
		}
		time.Sleep(time.Second)
	})
}

// A lease that comes after its end, or to a process that has closed, or has
// refunded the key up, is refunded, once. What was needed stays with the caller.
func TestPendingLeaseOfNoUse(t *testing.T) {
	tests := []struct {
		name string
		back time.Duration
		then func(r *rig)
	}{
		{"ended", 600 * time.Millisecond, func(*rig) {}},
		{"closed", 300 * time.Millisecond, func(r *rig) {
			if err := r.Close(time.Second); err != nil {
				r.Error(err)
			}
		}},
		{"refunded up", 300 * time.Millisecond, func(r *rig) {
			s, known := r.of(r.request.Key)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.dropLocked(known())
		}},
	}
	for _, test := range tests {
		inBubble(t, func(r *rig) {
			r.heat(r.request)
			r.drop(r.request)
			r.slowly(test.back)
			n := r.late(r.request)
			test.then(r)
			before := r.total(r.request) // with the units of the call
			time.Sleep(test.back - patience + 5*time.Millisecond)
			if decision := r.only(n)[0]; !decision.Granted || !decision.Charged() || decision.Lease != 0 {
				t.Errorf("%s: the caller is told %+v", test.name, decision)
			}
			asked, reply := r.wire.last()
			lease := reply.Lease
			if lease < 10 {
				t.Fatalf("%s: asked %+v, decided %+v; want a lease", test.name, asked, reply)
			}
			r.want(test.name+": in hand", r.inHand(r.request), 0)
			want := []store.Refund{{Key: r.request.Key, Charge: reply.Charge, Units: lease, Source: store.FromStore}}
			if refunded := r.wire.refunded(); !slices.Equal(refunded, want) {
				t.Errorf("%s: %+v refunded, want %+v", test.name, refunded, want)
			}
			r.want(test.name+": units that count", r.total(r.request), before-lease)
			time.Sleep(time.Second)
			r.want(test.name+": refunded at last", int64(len(r.wire.refunded())), 1)
		})
	}
}

// A refill that comes late is a lease as well, if it has not ended.
func TestPendingRefill(t *testing.T) {
	for _, test := range []struct {
		back time.Duration
		kept bool
	}{{300 * time.Millisecond, true}, {500 * time.Millisecond, false}} {
		inBubble(t, func(r *rig) {
			r.heat(r.request)
			r.slowly(test.back)
			at := time.Now()
			for !r.key(r.request).refilling {
				r.granted(r.request, 1)
			}
			time.Sleep(patience)
			synctest.Wait()
			if k := r.key(r.request); k.refilling || k.refillAt <= r.clock().mono {
				t.Errorf("%+v, want it to wait before the next refill", k)
			}
			r.drop(r.request)
			time.Sleep(time.Until(at.Add(test.back + time.Millisecond)))
			synctest.Wait()
			asked, reply := r.wire.last()
			r.want("needed", asked.Units, 0)
			if reply.Lease < 10 {
				t.Fatalf("%+v, want a lease", reply)
			}
			if refunded := r.wire.refunded(); test.kept {
				r.want("in hand", r.inHand(r.request), reply.Lease)
				r.want("refunded", int64(len(refunded)), 0)
			} else if r.want("in hand", r.inHand(r.request), 0); len(refunded) != 1 || refunded[0].Units != reply.Lease {
				t.Errorf("%+v refunded, want %d units", refunded, reply.Lease)
			}
			time.Sleep(time.Second)
		})
	}
}

// A late reply is not taken for the reply to the refill which is under
// way by then.
func TestPendingLeaseMeanwhile(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.drop(r.request)
		r.slowly(150 * time.Millisecond)
		n := r.late(r.request)
		r.slowly(120 * time.Millisecond)
		go r.Take(time.Now(), budget, []store.Request{r.request}, make([]store.Decision, 1))
		synctest.Wait()
		if !r.key(r.request).refilling {
			t.Fatal("no lease was asked for")
		}
		time.Sleep(60 * time.Millisecond)
		r.only(n)
		if !r.key(r.request).refilling {
			t.Error("a lease is under way, and another one may be asked for")
		}
		time.Sleep(time.Second)
	})
}

// Units were held for the call, and have been released when its time
// was up. What was asked for besides is of no use to anybody, and is refunded to
// the store; the caller has nothing to refund.
func TestPendingDifference(t *testing.T) {
	inBubble(t, func(r *rig) {
		other, spare, full := r.request, r.request, r.request
		other.Key.Zone, spare.Key.Zone, full.Key.Zone, full.Limit, full.Shadow = "other", "spare", "full", 1, true
		r.heat(r.request)
		r.heat(spare)
		r.heat(r.request) // again, which is short
		r.wire.set(func(w *wire) { w.returned = nil })
		r.granted(full, 1)
		r.refused(full, 1)
		have, spares, before := r.inHand(r.request), r.inHand(spare), r.total(r.request)
		r.wire.set(func(w *wire) {
			w.there, w.back, w.patience = time.Millisecond, 30*time.Millisecond, 20*time.Millisecond
		})
		a := r.request
		a.Units = have + 5
		n := r.late(a, other, spare, full)
		r.want("in hand", r.inHand(r.request), have)
		time.Sleep(12 * time.Millisecond)
		decisions := r.only(n)
		if decisions[0] != (store.Decision{}) || !decisions[1].Granted || !decisions[1].Charged() || decisions[2] != (store.Decision{}) || decisions[3] != (store.Decision{}) {
			t.Errorf("the caller is told %+v, want only the request that the store was asked for", decisions)
		}
		asked, replies := r.wire.requests()
		asked, replies = asked[len(asked)-2:], replies[len(replies)-2:]
		r.want("asked", asked[0].Units, 5)
		r.want("in hand", r.inHand(r.request), have+replies[0].Lease)
		r.want("spare in hand", r.inHand(spare), spares)
		want := []store.Refund{{Key: r.request.Key, Charge: replies[0].Charge, Units: 5, Source: store.FromStore}}
		if refunded := r.wire.refunded(); !slices.Equal(refunded, want) {
			t.Errorf("%+v refunded, want %+v", refunded, want)
		}
		time.Sleep(time.Millisecond)
		r.want("units that count", r.total(r.request), before+replies[0].Lease)

		// Refused late: it was the difference that did not fit.
		before = r.total(r.request)
		a.Units = r.request.Limit
		have = r.inHand(r.request)
		n = r.late(a, other)
		time.Sleep(12 * time.Millisecond)
		if decisions := r.only(n); decisions[0] != (store.Decision{}) || !decisions[1].Granted || decisions[1].Charged() {
			t.Errorf("the caller is told %+v of a refused call", decisions)
		}
		r.want("least that is refused", r.key(r.request).refusal.need, 0)
		r.want("in hand", r.inHand(r.request), have)
		r.want("units that count", r.total(r.request), before)
		time.Sleep(2 * time.Second)
	})
}

// The call fails after all: everything is as if no reply had come.
func TestPendingFailure(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.drop(r.request)
		r.slowly(300 * time.Millisecond)
		r.wire.set(func(w *wire) { w.fails = true })
		n := r.late(r.request)
		known := r.key(r.request)
		time.Sleep(time.Second)
		synctest.Wait()
		known.timer = nil // by a timer of before
		if now := r.key(r.request); len(n.told) > 0 || now != known {
			t.Errorf("told %+v; key %+v, want %+v as before", n.told, now, known)
		}
		r.want("refunded", int64(len(r.wire.refunded())), 0)
	})
}

// Who calls may use the memory of a call again when it has returned.
func TestPendingLeavesTheCallersMemory(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.request.Limit = 2
		r.granted(r.request, 2)
		r.slowly(300 * time.Millisecond)
		requests, decisions := []store.Request{r.request}, make([]store.Decision, 1)
		requests[0].Unreported = []store.Spent{{Units: 1}}
		e := r.Take(time.Now(), budget, requests, decisions).(*store.Error)
		var told []store.Decision
		e.Pending.Then(func(decisions []store.Decision) { told = decisions })
		var user sync.WaitGroup
		user.Go(func() { // the race detector sees whoever looks
			unreported := requests[0].Unreported
			for i := range int64(500) {
				unreported[0].Units = i
				requests[0], decisions[0] = store.Request{Unreported: unreported}, store.Decision{Lease: i}
				time.Sleep(time.Millisecond)
			}
		})
		user.Wait()
		synctest.Wait()
		if len(told) != 1 || told[0].RetryAfter == 0 || decisions[0] != (store.Decision{Lease: 499}) {
			t.Errorf("told %+v; the caller's decision is %+v", told, decisions[0])
		}
		if a := r.refused(r.request, 1); a.Source != store.FromCache {
			t.Errorf("%+v, want it from memory", a)
		}
	})
}

// once is a store that answers at once, but says that it is pending.
type once struct{ store.Store }

func (o once) Take(now time.Time, wait time.Duration, requests []store.Request, _ []store.Decision) error {
	decisions, late := make([]store.Decision, len(requests)), new(store.Pending)
	if err := o.Store.Take(time.Now(), wait, requests, decisions); err != nil {
		return err
	}
	late.Deliver(decisions)
	return &store.Error{Kind: store.KindTimeout, Pending: late, Err: errLost}
}

// The decisions come before the error does.
func TestPendingAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.request)
		r.drop(r.request)
		r.inner = once{r.inner}
		n := r.late(r.request)
		_, reply := r.wire.last()
		if decision := r.only(n)[0]; decision.Mark != reply.Mark || decision.Stamp != reply.Stamp {
			t.Errorf("the caller is told %+v, want %+v", decision, reply)
		}
		r.want("in hand", r.inHand(r.request), reply.Lease)
	})
}

// What is reported reaches the store, whatever the process could decide by itself.
// What it has stays.
func TestLeaseOfUnreported(t *testing.T) {
	inBubble(t, func(r *rig) {
		reporting := func(a store.Request, units ...int64) store.Request {
			for _, n := range units {
				a.Unreported = append(a.Unreported, store.Spent{Age: time.Second, Units: n})
			}
			return a
		}
		sent := func(want ...store.Request) {
			t.Helper()
			asked, _ := r.wire.requests()
			if len(asked) < len(want) {
				t.Fatalf("sent %+v, want %+v", asked, want)
			}
			for i, a := range asked[len(asked)-len(want):] {
				if w := want[i]; a.Key != w.Key || a.Units != w.Units || a.Lease != 0 || !slices.Equal(a.Unreported, w.Unreported) {
					t.Errorf("sent %+v, want %+v", a, w)
				}
			}
			r.wire.set(func(w *wire) { w.asked, w.replies = nil, nil })
		}
		full, fresh := r.request, r.request
		full.Key.Zone, full.Limit, full.Shadow, fresh.Key.Zone = "full", 1, true, "fresh"
		r.heat(r.request)
		have := r.inHand(r.request)
		r.granted(full, 1)
		r.refused(full, 1)

		if a := r.granted(reporting(r.request, 3, 4), 1); a.Source != store.FromStore || a.Lease != 0 || !a.Charged() {
			t.Errorf("%+v, want it from the store", a)
		}
		sent(reporting(r.request, 3, 4))
		if a := r.refused(reporting(full, 5), 1); a.Source != store.FromStore {
			t.Errorf("%+v, want it from the store", a)
		}
		sent(reporting(full, 5))
		decisions := r.take(full, r.request, reporting(fresh, 6))
		if !decisions[1].Charged() || decisions[1].Source != store.FromStore || decisions[0].Granted || decisions[0].Source != store.FromStore {
			t.Errorf("%+v, want them from the store", decisions)
		}
		sent(full, r.request, reporting(fresh, 6))
		r.want("in hand", r.inHand(r.request), have)
		if a := r.granted(r.request, 1); a.Source != store.FromLease {
			t.Errorf("%+v, want it from the lease", a)
		}

		// What the store says is learned, be it late.
		for _, late := range []bool{false, true} {
			time.Sleep(2 * time.Second)
			if late {
				r.slowly(150 * time.Millisecond)
				n := r.late(reporting(full, 7))
				time.Sleep(100 * time.Millisecond)
				if decision := r.only(n)[0]; decision.RetryAfter == 0 {
					t.Errorf("the caller is told %+v, want the refusal", decision)
				}
			} else {
				r.refused(reporting(full, 7), 1)
			}
			sent(reporting(full, 7))
			if a := r.refused(full, 1); a.Source != store.FromCache {
				t.Errorf("%+v, want it from memory", a)
			}
		}
	})
}

// How long a call takes is learned from replies, and from waiting in vain.
// Failures that are told at once say nothing.
func TestLeaseRoundTrip(t *testing.T) {
	inBubble(t, func(r *rig) {
		fails := func(kind store.Kind) {
			t.Helper()
			if err := r.Take(time.Now(), budget, []store.Request{r.request}, make([]store.Decision, 1)); store.ErrorKind(err) != kind {
				t.Fatalf("%v, want %s", err, kind)
			}
		}
		r.wire.set(func(w *wire) { w.away, w.there, w.back = true, 2*time.Millisecond, 2*time.Millisecond })
		fails(store.KindAway)
		r.want("usual", r.roundTrip.Load(), 0)
		r.wire.set(func(w *wire) { w.away = false })
		r.granted(r.request, 1)
		usual := r.roundTrip.Load()
		r.want("usual", usual, int64(4*time.Millisecond))
		for range 100 {
			r.wire.set(func(w *wire) { w.away = true })
			fails(store.KindAway)
		}
		r.want("usual", r.roundTrip.Load(), usual)
		r.wire.set(func(w *wire) { w.away = false })
		r.slowly(time.Second)
		fails(store.KindTimeout)
		r.want("usual", r.roundTrip.Load(), usual+(int64(patience)-usual)/8)
		// A broken connection is noticed at any time.
		usual = r.roundTrip.Load()
		r.wire.set(func(w *wire) { w.mute, w.patience = true, 0 })
		fails(store.KindBroken)
		r.want("usual", r.roundTrip.Load(), usual)
		time.Sleep(2 * time.Second)
	})
}
