package store

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// patience is how long calls wait in these tests.
const patience = 100 * time.Millisecond

// slowly makes answers come after so long, and calls not wait for them.
func (r *rig) slowly(back time.Duration) {
	r.wire.set(func(w *wire) { w.there, w.back, w.patience = time.Millisecond, back, patience })
}

// promptly undoes slowly.
func (r *rig) promptly() {
	r.wire.set(func(w *wire) { w.there, w.back, w.patience = 0, 0, 0 })
}

// drop loses the leases of a key, so that what is needed is asked for.
func (r *rig) drop(a Ask) {
	s := r.shard(&a)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[logKey{a.Key, a.Window}]
	k.first, k.second = batch{}, batch{}
}

// news is what the caller of a late call was told so far.
type news struct{ told [][]Answer }

// late makes a call whose answers do not come in time.
func (r *rig) late(asks ...Ask) *news {
	r.Helper()
	err := r.Take(budget, asks, make([]Answer, len(asks)))
	e, ok := err.(*Error)
	if !ok || e.Kind != KindTimeout || e.Unexecuted || e.Late == nil || e.Err != errLost {
		r.Fatalf("Take(%+v): %v, want a timeout with late answers", asks, err)
	}
	n := &news{}
	e.Late.Then(func(answers []Answer) { n.told = append(n.told, answers) })
	return n
}

// only is what was told, once.
func (r *rig) only(n *news) []Answer {
	r.Helper()
	synctest.Wait()
	if len(n.told) != 1 {
		r.Fatalf("told %+v, want one call's answers", n.told)
	}
	return n.told[0]
}

// A store that answers later than its callers wait still says who is over the
// limit, and those no longer ask.
func TestLateRefusal(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.ask.Limit = 2
		r.granted(r.ask, 2)
		r.slowly(300 * time.Millisecond)
		at := time.Now()
		n := r.late(r.ask)
		time.Sleep(300 * time.Millisecond)
		answer := r.only(n)[0]
		if answer.Granted || answer.Charged() || answer.Source != FromStore || answer.RetryAfter < 59*time.Second {
			t.Errorf("the caller is told %+v, want the refusal", answer)
		}
		before := r.sent()
		for time.Since(at) < refusalTime*7/8 {
			a := r.refused(r.ask, 1)
			if a.Source != FromCache || a.Remaining != 0 {
				t.Fatalf("%v after it was sent: %+v, want it from memory", time.Since(at), a)
			}
			if end := time.Since(at) + a.RetryAfter; end < time.Minute-2*time.Millisecond {
				t.Fatalf("told to come back after %v: too early", end)
			}
			time.Sleep(10 * time.Millisecond)
		}
		r.want("asked", int64(r.sent()-before), 0)
		// It ends a second after the call was sent, not after the answer.
		time.Sleep(time.Until(at.Add(refusalTime)))
		r.promptly()
		if a := r.refused(r.ask, 1); a.Source != FromStore {
			t.Errorf("%+v after a second, want it from the store", a)
		}
	})
}

// A refusal that comes when its memory would have ended is not remembered, nor
// does it replace what is. One that is older than what was given back is not
// either.
func TestLateRefusalOutdated(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.ask.Limit = 2
		grant := r.granted(r.ask, 2)
		r.slowly(refusalTime + 100*time.Millisecond)
		n := r.late(r.ask)
		time.Sleep(time.Second)
		r.promptly()
		r.refused(r.ask, 1)
		known := r.key(r.ask).refusal
		time.Sleep(10 * time.Millisecond)
		r.only(n)
		if now := r.key(r.ask).refusal; now != known {
			t.Errorf("%+v is remembered, want %+v as before", now, known)
		}

		time.Sleep(2 * time.Second)
		r.slowly(300 * time.Millisecond)
		n = r.late(r.ask)
		r.promptly()
		if err := r.Return(budget, []Grant{{r.ask.Key, r.ask.Window, grant.Stamp, grant.Mark, grant.Origin, 1, grant.Source}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		r.only(n)
		r.granted(r.ask, 1)
	})
}

// A lease that comes late is spent until its end, which is reckoned from when
// it was asked for. What was needed is told to the caller.
func TestLateLease(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.drop(r.ask)
		before := r.total(r.ask)
		r.slowly(300 * time.Millisecond)
		at := time.Now()
		n := r.late(r.ask)
		r.want("in hand at first", r.inHand(r.ask), 0)
		used := r.key(r.ask).demand
		if r.key(r.ask).refilling {
			t.Error("still waits for a lease")
		}
		time.Sleep(time.Until(at.Add(301*time.Millisecond - 1)))
		r.want("in hand before", r.inHand(r.ask), 0)
		time.Sleep(time.Nanosecond)
		answer := r.only(n)[0]
		asked, reply := r.wire.last()
		if asked.Extra < 10 || reply.Extra != asked.Extra {
			t.Fatalf("asked %+v, answered %+v; want a lease", asked, reply)
		}
		want := reply
		want.Extra = 0
		if answer != want || !answer.Granted {
			t.Errorf("the caller is told %+v, want %+v", answer, want)
		}
		r.want("in hand", r.inHand(r.ask), reply.Extra)
		r.want("units that count", r.total(r.ask), before+1+reply.Extra)

		if now := r.key(r.ask).demand; now.last(leaseSpan(r.ask.Window), r.clock()) != used.last(leaseSpan(r.ask.Window), r.clock())+1 {
			t.Errorf("demand %+v, want one more than %+v", now, used)
		}

		// The need is the caller's, and is given back to the store.
		if err := r.Return(budget, []Grant{{r.ask.Key, r.ask.Window, answer.Stamp, answer.Mark, answer.Origin, 1, answer.Source}}); err != nil {
			t.Fatal(err)
		}
		r.want("in hand", r.inHand(r.ask), reply.Extra)
		r.want("units that count", r.total(r.ask), before+reply.Extra)

		r.wire.set(func(w *wire) { w.away = true }) // nothing more comes
		span, spent := leaseSpan(r.ask.Window), int64(0)
		end := at.Add(span - span/driftParts)
		for ; time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if a := r.granted(r.ask, 1); a.Source != FromLease || a.Stamp != reply.Stamp || a.Mark != reply.Mark {
				t.Fatalf("%+v, want it from the lease", a)
			}
			spent++
		}
		time.Sleep(time.Until(end))
		if err := r.Take(budget, []Ask{r.ask}, make([]Answer, 1)); ErrorKind(err) != KindAway {
			t.Errorf("%v after the lease's end, want the store's error", err)
		}
		synctest.Wait()
		if given := r.wire.given(); len(given) != 2 || given[1].Units != reply.Extra-spent {
			t.Errorf("%+v given back, want the need and %d units", given, reply.Extra-spent)
		}
		time.Sleep(time.Second)
	})
}

// A lease that comes after its end, or to a process that has closed, or has
// given the key up, goes back, once. What was needed stays with the caller.
func TestLateLeaseOfNoUse(t *testing.T) {
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
		{"given up", 300 * time.Millisecond, func(r *rig) {
			s := r.shard(&r.ask)
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.keys, logKey{r.ask.Key, r.ask.Window})
		}},
	}
	for _, test := range tests {
		inBubble(t, func(r *rig) {
			r.heat(r.ask)
			r.drop(r.ask)
			r.slowly(test.back)
			n := r.late(r.ask)
			test.then(r)
			before := r.total(r.ask) // with the units of the call
			time.Sleep(test.back - patience + 5*time.Millisecond)
			if answer := r.only(n)[0]; !answer.Granted || !answer.Charged() || answer.Extra != 0 {
				t.Errorf("%s: the caller is told %+v", test.name, answer)
			}
			asked, reply := r.wire.last()
			extra := reply.Extra
			if extra < 10 {
				t.Fatalf("%s: asked %+v, answered %+v; want a lease", test.name, asked, reply)
			}
			r.want(test.name+": in hand", r.inHand(r.ask), 0)
			want := []Grant{{r.ask.Key, r.ask.Window, reply.Stamp, reply.Mark, reply.Origin, extra, FromStore}}
			if given := r.wire.given(); !slices.Equal(given, want) {
				t.Errorf("%s: %+v given back, want %+v", test.name, given, want)
			}
			r.want(test.name+": units that count", r.total(r.ask), before-extra)
			time.Sleep(time.Second)
			r.want(test.name+": given back at last", int64(len(r.wire.given())), 1)
		})
	}
}

// A refill that comes late is a lease as well, if it has not ended.
func TestLateRefill(t *testing.T) {
	for _, test := range []struct {
		back time.Duration
		kept bool
	}{{300 * time.Millisecond, true}, {500 * time.Millisecond, false}} {
		inBubble(t, func(r *rig) {
			r.heat(r.ask)
			r.slowly(test.back)
			at := time.Now()
			for !r.key(r.ask).refilling {
				r.granted(r.ask, 1)
			}
			time.Sleep(patience)
			synctest.Wait()
			if k := r.key(r.ask); k.refilling || k.refillAt <= r.clock().mono {
				t.Errorf("%+v, want it to wait before the next refill", k)
			}
			r.drop(r.ask)
			time.Sleep(time.Until(at.Add(test.back + time.Millisecond)))
			synctest.Wait()
			asked, reply := r.wire.last()
			r.want("needed", asked.Need, 0)
			if reply.Extra < 10 {
				t.Fatalf("%+v, want a lease", reply)
			}
			if given := r.wire.given(); test.kept {
				r.want("in hand", r.inHand(r.ask), reply.Extra)
				r.want("given back", int64(len(given)), 0)
			} else if r.want("in hand", r.inHand(r.ask), 0); len(given) != 1 || given[0].Units != reply.Extra {
				t.Errorf("%+v given back, want %d units", given, reply.Extra)
			}
			time.Sleep(time.Second)
		})
	}
}

// An answer that comes late is not taken for that of the refill which is under
// way by then.
func TestLateLeaseMeanwhile(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.drop(r.ask)
		r.slowly(150 * time.Millisecond)
		n := r.late(r.ask)
		r.slowly(120 * time.Millisecond)
		go r.Take(budget, []Ask{r.ask}, make([]Answer, 1))
		synctest.Wait()
		if !r.key(r.ask).refilling {
			t.Fatal("no lease was asked for")
		}
		time.Sleep(60 * time.Millisecond)
		r.only(n)
		if !r.key(r.ask).refilling {
			t.Error("a lease is under way, and another one may be asked for")
		}
		time.Sleep(time.Second)
	})
}

// Units were held for the call, and have gone back to their lease when its time
// was up. What was asked for besides is of no use to anybody, and goes back to
// the store; the caller has nothing to give back.
func TestLateDifference(t *testing.T) {
	inBubble(t, func(r *rig) {
		other, spare, full := r.ask, r.ask, r.ask
		other.Key.Zone, spare.Key.Zone, full.Key.Zone, full.Limit, full.Advisory = "other", "spare", "full", 1, true
		r.heat(spare)
		r.heat(r.ask)
		r.granted(full, 1)
		r.refused(full, 1)
		have, spares, before := r.inHand(r.ask), r.inHand(spare), r.total(r.ask)
		r.wire.set(func(w *wire) {
			w.there, w.back, w.patience = time.Millisecond, 30*time.Millisecond, 20*time.Millisecond
		})
		a := r.ask
		a.Need = have + 5
		n := r.late(a, other, spare, full)
		r.want("in hand", r.inHand(r.ask), have)
		time.Sleep(12 * time.Millisecond)
		answers := r.only(n)
		if answers[0] != (Answer{}) || !answers[1].Granted || !answers[1].Charged() || answers[2] != (Answer{}) || answers[3] != (Answer{}) {
			t.Errorf("the caller is told %+v, want only the ask that the store was asked for", answers)
		}
		asked, replies := r.wire.asks()
		asked, replies = asked[len(asked)-2:], replies[len(replies)-2:]
		r.want("asked", asked[0].Need, 5)
		r.want("in hand", r.inHand(r.ask), have+replies[0].Extra)
		r.want("spare in hand", r.inHand(spare), spares)
		want := []Grant{{r.ask.Key, r.ask.Window, replies[0].Stamp, replies[0].Mark, replies[0].Origin, 5, FromStore}}
		if given := r.wire.given(); !slices.Equal(given, want) {
			t.Errorf("%+v given back, want %+v", given, want)
		}
		time.Sleep(time.Millisecond)
		r.want("units that count", r.total(r.ask), before+replies[0].Extra)

		// Refused late: it was the difference that did not fit.
		before = r.total(r.ask)
		a.Need = r.ask.Limit
		have = r.inHand(r.ask)
		n = r.late(a, other)
		time.Sleep(12 * time.Millisecond)
		if answers := r.only(n); answers[0] != (Answer{}) || !answers[1].Granted || answers[1].Charged() {
			t.Errorf("the caller is told %+v of a refused call", answers)
		}
		r.want("least that is refused", r.key(r.ask).refusal.need, 0)
		r.want("in hand", r.inHand(r.ask), have)
		r.want("units that count", r.total(r.ask), before)
		time.Sleep(2 * time.Second)
	})
}

// The call fails after all: everything is as if no answer had come.
func TestLateFailure(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.drop(r.ask)
		r.slowly(300 * time.Millisecond)
		r.wire.set(func(w *wire) { w.fails = true })
		n := r.late(r.ask)
		known := r.key(r.ask)
		time.Sleep(time.Second)
		synctest.Wait()
		known.watched = false // by a timer of before
		if now := r.key(r.ask); len(n.told) > 0 || now != known {
			t.Errorf("told %+v; key %+v, want %+v as before", n.told, now, known)
		}
		r.want("given back", int64(len(r.wire.given())), 0)
	})
}

// Who calls may use the memory of a call again when it has returned.
func TestLateLeavesTheCallersMemory(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.ask.Limit = 2
		r.granted(r.ask, 2)
		r.slowly(300 * time.Millisecond)
		asks, answers := []Ask{r.ask}, make([]Answer, 1)
		asks[0].Owed = []Spent{{0, 1}}
		e := r.Take(budget, asks, answers).(*Error)
		var told []Answer
		e.Late.Then(func(answers []Answer) { told = answers })
		var user sync.WaitGroup
		user.Go(func() { // the race detector sees whoever looks
			owed := asks[0].Owed
			for i := range int64(500) {
				owed[0].Units = i
				asks[0], answers[0] = Ask{Owed: owed}, Answer{Extra: i}
				time.Sleep(time.Millisecond)
			}
		})
		user.Wait()
		synctest.Wait()
		if len(told) != 1 || told[0].RetryAfter == 0 || answers[0] != (Answer{Extra: 499}) {
			t.Errorf("told %+v; the caller's answer is %+v", told, answers[0])
		}
		if a := r.refused(r.ask, 1); a.Source != FromCache {
			t.Errorf("%+v, want it from memory", a)
		}
	})
}

// once is a store that answers at once, but says that it is late.
type once struct{ Store }

func (o once) Take(wait time.Duration, asks []Ask, _ []Answer) error {
	answers, late := make([]Answer, len(asks)), new(Late)
	if err := o.Store.Take(wait, asks, answers); err != nil {
		return err
	}
	late.Deliver(answers)
	return &Error{Kind: KindTimeout, Late: late, Err: errLost}
}

// The answers come before the error does.
func TestLateAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.heat(r.ask)
		r.drop(r.ask)
		r.inner = once{r.inner}
		n := r.late(r.ask)
		_, reply := r.wire.last()
		if answer := r.only(n)[0]; answer.Mark != reply.Mark || answer.Stamp != reply.Stamp {
			t.Errorf("the caller is told %+v, want %+v", answer, reply)
		}
		r.want("in hand", r.inHand(r.ask), reply.Extra)
	})
}

// What is owed reaches the store, whatever the process could decide by itself.
// What it has stays.
func TestLeaseOwed(t *testing.T) {
	inBubble(t, func(r *rig) {
		owes := func(a Ask, units ...int64) Ask {
			for _, n := range units {
				a.Owed = append(a.Owed, Spent{time.Second, n})
			}
			return a
		}
		sent := func(want ...Ask) {
			t.Helper()
			asked, _ := r.wire.asks()
			if len(asked) < len(want) {
				t.Fatalf("sent %+v, want %+v", asked, want)
			}
			for i, a := range asked[len(asked)-len(want):] {
				if w := want[i]; a.Key != w.Key || a.Need != w.Need || a.Extra != 0 || !slices.Equal(a.Owed, w.Owed) {
					t.Errorf("sent %+v, want %+v", a, w)
				}
			}
			r.wire.set(func(w *wire) { w.asked, w.replies = nil, nil })
		}
		full, fresh := r.ask, r.ask
		full.Key.Zone, full.Limit, full.Advisory, fresh.Key.Zone = "full", 1, true, "fresh"
		r.heat(r.ask)
		have := r.inHand(r.ask)
		r.granted(full, 1)
		r.refused(full, 1)

		if a := r.granted(owes(r.ask, 3, 4), 1); a.Source != FromStore || a.Extra != 0 || !a.Charged() {
			t.Errorf("%+v, want it from the store", a)
		}
		sent(owes(r.ask, 3, 4))
		if a := r.refused(owes(full, 5), 1); a.Source != FromStore {
			t.Errorf("%+v, want it from the store", a)
		}
		sent(owes(full, 5))
		answers := r.take(full, r.ask, owes(fresh, 6))
		if !answers[1].Charged() || answers[1].Source != FromStore || answers[0].Granted || answers[0].Source != FromStore {
			t.Errorf("%+v, want them from the store", answers)
		}
		sent(full, r.ask, owes(fresh, 6))
		r.want("in hand", r.inHand(r.ask), have)
		if a := r.granted(r.ask, 1); a.Source != FromLease {
			t.Errorf("%+v, want it from the lease", a)
		}

		// What the store says is learned, be it late.
		for _, late := range []bool{false, true} {
			time.Sleep(2 * time.Second)
			if late {
				r.slowly(150 * time.Millisecond)
				n := r.late(owes(full, 7))
				time.Sleep(100 * time.Millisecond)
				if answer := r.only(n)[0]; answer.RetryAfter == 0 {
					t.Errorf("the caller is told %+v, want the refusal", answer)
				}
			} else {
				r.refused(owes(full, 7), 1)
			}
			sent(owes(full, 7))
			if a := r.refused(full, 1); a.Source != FromCache {
				t.Errorf("%+v, want it from memory", a)
			}
		}
	})
}

// How long a call takes is learned from answers, and from waiting in vain.
// Failures that are told at once say nothing.
func TestLeaseRoundTrip(t *testing.T) {
	inBubble(t, func(r *rig) {
		fails := func(kind Kind) {
			t.Helper()
			if err := r.Take(budget, []Ask{r.ask}, make([]Answer, 1)); ErrorKind(err) != kind {
				t.Fatalf("%v, want %s", err, kind)
			}
		}
		r.wire.set(func(w *wire) { w.away, w.there, w.back = true, 2*time.Millisecond, 2*time.Millisecond })
		fails(KindAway)
		r.want("usual", r.roundTrip.Load(), 0)
		r.wire.set(func(w *wire) { w.away = false })
		r.granted(r.ask, 1)
		usual := r.roundTrip.Load()
		r.want("usual", usual, int64(4*time.Millisecond))
		for range 100 {
			r.wire.set(func(w *wire) { w.away = true })
			fails(KindAway)
		}
		r.want("usual", r.roundTrip.Load(), usual)
		r.wire.set(func(w *wire) { w.away = false })
		r.slowly(time.Second)
		fails(KindTimeout)
		r.want("usual", r.roundTrip.Load(), usual+(int64(patience)-usual)/8)
		// A broken connection is noticed at any time.
		usual = r.roundTrip.Load()
		r.wire.set(func(w *wire) { w.mute, w.patience = true, 0 })
		fails(KindBroken)
		r.want("usual", r.roundTrip.Load(), usual)
		time.Sleep(2 * time.Second)
	})
}
