package fallback_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// reserved is how many units the tests reserve, of a limit of 10.
const reserved = 4

// reserving is a call that reserves units.
func reserving(g *fallback.Guard, zones string, policy fallback.Policy) *fallback.Call {
	var requests []store.Request
	var policies []fallback.Policy
	for _, name := range zones {
		request := zone(string(name), 10)
		request.Units, request.Exact = reserved, true
		requests, policies = append(requests, request), append(policies, policy)
	}
	return decide(g, time.Second, requests, policies...)
}

// settle settles the reservation of a call's only request.
func settle(g *fallback.Guard, wait time.Duration, r fallback.Reservation, spent int64) {
	g.Settle(wait, []fallback.Settlement{{Reservation: r, Spent: spent}})
}

// usedThere is how many units of a zone are used at the store.
func usedThere(r *remote, name string) int64 {
	look := zone(name, 1000)
	look.Units = 0
	decisions := make([]store.Decision, 1)
	_ = r.memory.Take(time.Time{}, 0, []store.Request{look}, decisions)
	return 1000 - decisions[0].Remaining
}

// usedHere is how many are used in the local counts. The store is away for that.
func usedHere(g *fallback.Guard, r *remote, name string) int64 {
	r.mu.Lock()
	before := r.err
	r.err = unexecuted
	r.mu.Unlock()
	look := zone(name, 1000)
	look.Units = 0
	used := 1000 - decide(g, 0, []store.Request{look}).Decisions[0].Remaining
	r.mu.Lock()
	r.err = before
	r.mu.Unlock()
	return used
}

// fares tells how calls and refunds end from here on.
func (r *remote) fares(take *store.Error, refund error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.refuses = take, refund
}

var (
	unexecuted = &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errAway}
	unknown    = &store.Error{Kind: store.KindBroken, Err: errAway}
)

// Wherever a reservation was made, and whatever was spent of it: the store and the
// local counts have that in the end, and no more is asked of the store than it takes.
func TestSettle(t *testing.T) {
	type row struct {
		name     string
		policy   fallback.Policy
		settings fallback.Settings
		before   func(g *fallback.Guard, r *remote) // the reservation
		between  func(g *fallback.Guard, r *remote) // it and its settlement
		after    func(g *fallback.Guard, r *remote) // the settlement
		store    func(spent int64) int64            // that is used there in the end
		here     func(spent int64) int64
	}
	whole := func(spent int64) int64 { return spent }
	none := func(int64) int64 { return 0 }
	noMore := func(spent int64) int64 { return min(spent, reserved) }
	away := func(_ *fallback.Guard, r *remote) { r.err = unexecuted }
	back := func(_ *fallback.Guard, r *remote) {
		r.err = nil
		r.do(store.Report{Server: "s", Condition: store.Up, Instances: 1})
		synctest.Wait()
	}
	late := func(_ *fallback.Guard, r *remote) { r.pending = new(store.Pending) }
	arrives := func(_ *fallback.Guard, r *remote) {
		r.pending.Deliver(r.behind)
		r.pending = nil
		synctest.Wait()
	}
	fails := func(_ *fallback.Guard, r *remote) { // it was not executed after all
		r.memory = store.NewMemory(0)
		r.pending.Deliver(nil)
		r.pending = nil
	}
	for _, row := range []row{
		{name: "the store", store: whole, here: whole},
		{name: "memory", settings: fallback.Settings{Infallible: true}, store: whole, here: none},
		{name: "after a loss", settings: fallback.Settings{Cautious: true}, before: func(g *fallback.Guard, r *remote) {
			r.do(store.Report{Server: "s", Condition: store.Up, Lost: "it is empty", Instances: 1})
		}, store: whole, here: whole},
		{name: "here, not reported", before: away, after: back, store: whole, here: whole},
		{name: "here, reported", before: away, between: back, store: whole, here: whole},
		{name: "here, reported by the next call", before: away, between: func(g *fallback.Guard, r *remote) {
			r.err = nil
			time.Sleep(10 * time.Minute)
			full := zone("a", 4)
			decide(g, time.Second, []store.Request{full}) // which is refused
		}, store: whole, here: whole},
		{name: "here, reported with others", before: func(g *fallback.Guard, r *remote) {
			away(g, r)
			settle(g, 0, reserving(g, "a", fallback.Decide).Reservation(0), 0)
		}, between: back, store: whole, here: whole},
		{name: "here, unknown", before: func(_ *fallback.Guard, r *remote) { r.err = unknown }, between: func(_ *fallback.Guard, r *remote) { r.err = nil },
			store: func(spent int64) int64 { return max(spent-reserved, 0) }, here: whole},
		{name: "late, then settled", before: late, between: arrives, store: whole, here: whole},
		{name: "settled, then late", before: late, after: arrives, store: whole, here: whole},
		{name: "settled, never executed", before: late, between: fails, store: func(spent int64) int64 { return max(spent-reserved, 0) }, here: whole},
		{name: "allowed", policy: fallback.Allow, before: away, between: back, store: none, here: none},
		{name: "allowed, late", policy: fallback.Allow, before: late, between: arrives, store: noMore, here: none},
		{name: "allowed, then late", policy: fallback.Allow, before: late, after: arrives, store: noMore, here: none},
		{name: "denied", policy: fallback.Deny, before: away, between: back, store: none, here: none},
		{name: "denied, late", policy: fallback.Deny, before: late, after: arrives, store: none, here: none},
		{name: "away when it is settled", between: func(_ *fallback.Guard, r *remote) { r.fares(unexecuted, unexecuted) },
			after: func(g *fallback.Guard, r *remote) { r.fares(nil, nil); back(g, r) }, store: whole, here: whole},
		{name: "away for a moment", between: func(_ *fallback.Guard, r *remote) { r.fares(unexecuted, unexecuted) },
			after: func(_ *fallback.Guard, r *remote) {
				r.fares(nil, nil)
				time.Sleep(1100 * time.Millisecond)
				synctest.Wait()
			}, store: whole, here: whole},
	} {
		for _, spent := range []int64{0, 1, reserved, reserved + 3, 50} {
			for _, wait := range []time.Duration{time.Second, 0} {
				t.Run(fmt.Sprintf("%s, %d spent, wait %v", row.name, spent, wait), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := newRemote(1)
						r.settings = row.settings
						g, _ := guardOf(t, r)
						do := func(what func(*fallback.Guard, *remote)) {
							if what != nil {
								what(g, r)
							}
							synctest.Wait()
						}
						do(row.before)
						c := reserving(g, "a", row.policy)
						res := c.Reservation(0)
						c.Reset() // it is used again
						do(row.between)
						settle(g, wait, res, spent)
						synctest.Wait()
						do(row.after)
						if got, want := usedThere(r, "a"), row.store(spent); got != want {
							t.Errorf("%d units used at the store, want %d", got, want)
						}
						if got, want := usedHere(g, r, "a"), row.here(spent); got != want {
							t.Errorf("%d units used here, want %d", got, want)
						}
						time.Sleep(5 * time.Second) // nothing is told twice
						synctest.Wait()
						r.err = nil
						r.do(store.Report{Server: "s", Condition: store.Away, Instances: 1, Err: errAway})
						r.do(store.Report{Server: "s", Condition: store.Up, Instances: 1})
						synctest.Wait()
						if got, want := usedThere(r, "a"), row.store(spent); got != want {
							t.Errorf("%d units used at the store later, want %d", got, want)
						}
					})
				})
			}
		}
	}
}

// What may have been executed is not sent again.
func TestSettleOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(1)
		g, _ := guardOf(t, r)
		back, beyond := reserving(g, "a", fallback.Decide).Reservation(0), reserving(g, "b", fallback.Decide).Reservation(0)
		r.err, r.refuses = unknown, unknown
		settle(g, 50*time.Millisecond, back, 0)
		settle(g, time.Second, beyond, 10)
		r.err, r.refuses = nil, nil
		r.do(store.Report{Server: "s", Condition: store.Up, Instances: 1})
		time.Sleep(5 * time.Second)
		if n := r.refunded(); n != 0 {
			t.Errorf("%d units refunded by a second call", n)
		}
		if n := usedThere(r, "b"); n != reserved {
			t.Errorf("%d units used, want %d: the rest may have been charged", n, reserved)
		}
		if len(r.waits) != 1 || r.waits[0] > 50*time.Millisecond {
			t.Errorf("the store was waited for %v, want once, and no longer than allowed", r.waits)
		}
	})
}

// A thousand logins succeed, and then the store is away: nobody is refused on their
// account.
func TestSettledUnitsAreNotUsedInAnOutage(t *testing.T) {
	r := newRemote(1)
	g, _ := guardOf(t, r)
	for range 1000 {
		settle(g, time.Second, reserving(g, "a", fallback.Decide).Reservation(0), 0)
	}
	r.err = unexecuted
	if c := reserving(g, "a", fallback.Decide); !c.Granted() {
		t.Errorf("%+v, want it granted", c.Decisions)
	}
}

// What comes back when the window has passed comes too late, and so does what comes
// back to another life of the log: nobody else's units are given back.
func TestSettleTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(1)
		g, _ := guardOf(t, r)
		old := reserving(g, "a", fallback.Decide).Reservation(0)
		time.Sleep(time.Hour)
		reserving(g, "a", fallback.Decide)
		settle(g, time.Second, old, 0)
		if there, here := usedThere(r, "a"), usedHere(g, r, "a"); there != reserved || here != reserved {
			t.Errorf("%d units used there and %d here, want the %d of the second", there, here, reserved)
		}
		r.memory = store.NewMemory(0) // the store has lost everything
		other := reserving(g, "b", fallback.Decide)
		if settle(g, time.Second, old, 0); usedThere(r, "b") != reserved {
			t.Errorf("%d units used of %+v", usedThere(r, "b"), other.Decisions)
		}
	})
}

// Several reservations are settled with one call for what goes back, and one for what
// was spent beyond them, in which each key occurs once.
func TestSettleMany(t *testing.T) {
	r := newRemote(1)
	g, _ := guardOf(t, r)
	var all []fallback.Settlement
	for _, zones := range []string{"abc", "ab"} {
		c := reserving(g, zones, fallback.Decide)
		for i := range zones {
			all = append(all, fallback.Settlement{Reservation: c.Reservation(i), Spent: int64(5 * i)})
		}
	}
	r.asked = nil
	g.Settle(time.Second, all)
	for name, want := range map[string]int64{"a": 0, "b": 10, "c": 10} {
		if got := usedThere(r, name); got != want {
			t.Errorf("%d units of %s used, want %d", got, name, want)
		}
	}
	if len(r.waits) != 1 || len(r.asked) != 2 {
		t.Errorf("%d calls refunded, and %d logs were charged; want 1 and 2", len(r.waits), len(r.asked))
	}
	if i := slices.IndexFunc(r.asked, func(a store.Request) bool { return a.Units != 0 || !a.Exact }); i >= 0 {
		t.Errorf("asked for %+v, want nothing but a report", r.asked[i])
	}
}

// After a loss this process counts first, and takes that back when the store is not
// there to decide. It is not given back a second time with a reservation.
func TestSettleWhatWasTakenBack(t *testing.T) {
	r := newRemote(1)
	r.settings.Cautious = true
	g, _ := guardOf(t, r)
	r.do(store.Report{Server: "s", Condition: store.Up, Lost: "it is empty", Instances: 1})
	reserving(g, "a", fallback.Decide) // the log goes on
	r.err = unknown
	res := reserving(g, "a", fallback.Allow).Reservation(0)
	r.err = nil
	reserving(g, "a", fallback.Decide)
	settle(g, time.Second, res, 0)
	if n := usedHere(g, r, "a"); n != 2*reserved {
		t.Errorf("%d units used here, want the %d of two others", n, 2*reserved)
	}
}

// What is reported while it is settled is given back when the store is known to have
// counted it, and never reported if it has not.
func TestSettleWhileItIsReported(t *testing.T) {
	for name, test := range map[string]struct {
		err   *store.Error
		there int64
	}{
		"reported":      {nil, 1},
		"not executed":  {unexecuted, 1},
		"unknown":       {unknown, reserved}, // it may have been counted, but nobody knows where
		"not executed2": {&store.Error{Kind: store.KindTimeout, Fates: []store.Fate{store.FateUnexecuted}, Err: errAway}, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRemote(1)
			g, _ := guardOf(t, r)
			r.err = unexecuted
			res := reserving(g, "a", fallback.Decide).Reservation(0)
			r.err = nil
			under, over := make(chan bool), make(chan bool)
			r.during = func() *store.Error {
				close(under)
				<-over
				return test.err
			}
			r.executes = test.err == nil || test.err == unknown
			time.Sleep(10 * time.Minute)
			look := zone("a", 10)
			look.Units = 0
			go decide(g, time.Second, []store.Request{look})
			<-under
			settle(g, time.Second, res, 1)
			close(over)
			time.Sleep(5 * time.Second)
			synctest.Wait()
			decide(g, time.Second, []store.Request{look}) // what was not reported is
			time.Sleep(time.Second)
			synctest.Wait()
			if n := usedThere(r, "a"); n != test.there {
				t.Errorf("%s: %d units used at the store, want %d", name, n, test.there)
			}
			if n := usedHere(g, r, "a"); n != 1 {
				t.Errorf("%s: %d units used here, want 1", name, n)
			}
		})
	}
}

// What is reserved while something else is being reported joins it when that was not
// heard, and can be settled all the same.
func TestSettleWhatHasJoined(t *testing.T) {
	for _, reported := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRemote(1)
			g, _ := guardOf(t, r)
			r.err = unexecuted
			first := reserving(g, "a", fallback.Decide).Reservation(0)
			var second fallback.Reservation
			r.during = func() *store.Error {
				second = reserving(g, "a", fallback.Decide).Reservation(0)
				return unexecuted
			}
			look := zone("a", 10)
			look.Units = 0
			decide(g, time.Second, []store.Request{look})
			r.err = nil
			if reported {
				decide(g, time.Second, []store.Request{look})
			}
			settle(g, time.Second, second, 1)
			settle(g, time.Second, first, 3)
			decide(g, time.Second, []store.Request{look})
			if n := usedThere(r, "a"); n != 4 {
				t.Errorf("reported %v: %d units used, want 4", reported, n)
			}
		})
	}
}

// What reserves nothing costs nothing to settle.
func TestSettleNothing(t *testing.T) {
	r := newRemote(1)
	g, _ := guardOf(t, r)
	refused := zone("a", 0)
	c := decide(g, time.Second, []store.Request{refused})
	look := zone("b", 10)
	look.Units = 0
	d := decide(g, time.Second, []store.Request{look})
	full := reserving(g, "c", fallback.Decide).Reservation(0)
	r.err = unknown // the store may have charged it, and it is refused here
	passes, fails := zone("d", 10), zone("e", 0)
	denied := decide(g, time.Second, []store.Request{passes, fails})
	if denied.Granted() {
		t.Errorf("%+v, want the call refused", denied.Decisions)
	}
	r.err = nil
	if n := full.Units(); n != reserved {
		t.Errorf("%d units reserved, want %d", n, reserved)
	}
	for name, s := range map[string]fallback.Settlement{
		"zero":         {Spent: 5},
		"refused":      {Reservation: c.Reservation(0)},
		"a look":       {Reservation: d.Reservation(0), Spent: 1},
		"refused here": {Reservation: denied.Reservation(0), Spent: 5},
		"all is spent": {Reservation: full, Spent: reserved},
	} {
		r.asked, r.waits = nil, nil
		settlements := []fallback.Settlement{s}
		if allocs := testing.AllocsPerRun(100, func() { g.Settle(time.Second, settlements) }); allocs != 0 || len(r.asked)+len(r.waits) > 0 {
			t.Errorf("%s: %v allocations, asked for %+v, %d refunds; want none", name, allocs, r.asked, len(r.waits))
		}
	}
}

// This process knows the bans that it has seen the store decide, when the store is
// away; a refund ends them here too, and so does a grant.
func TestBansAreKnownHere(t *testing.T) {
	const block = 2 * time.Hour
	unbanned := func(t *testing.T, here func(g *fallback.Guard) *fallback.Call, g *fallback.Guard, r *remote) {
		t.Helper()
		r.err = unexecuted
		if c := here(g); !c.Granted() {
			t.Errorf("%+v, want it granted here", c.Decisions)
		}
		r.err = nil
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(1)
		g, _ := guardOf(t, r)
		ask := func(g *fallback.Guard) *fallback.Call {
			request := zone("a", reserved)
			request.Units, request.Exact, request.Block = reserved, true, block
			return decide(g, time.Second, []store.Request{request})
		}
		blocked := func(source store.Source) {
			t.Helper()
			if c := ask(g); c.Granted() || !c.Decisions[0].Blocked || c.Decisions[0].Source != source || c.Decisions[0].RetryAfter > block {
				t.Errorf("%+v, want a ban by the %v", c.Decisions, source)
			}
		}
		ask(g)
		blocked(store.FromStore)
		time.Sleep(90 * time.Minute) // the window has passed
		r.err = unexecuted
		blocked(store.FromLocal)
		r.err = nil
		time.Sleep(31 * time.Minute)
		unbanned(t, ask, g, r)

		// Local bans by its share, and does not tell the store.
		r.err = unexecuted
		blocked(store.FromLocal)
		r.err = nil
		r.memory = store.NewMemory(0)
		look := zone("a", reserved)
		look.Units = 0
		if c := decide(g, time.Second, []store.Request{look}); c.Decisions[0].Blocked || c.Decisions[0].Remaining != 0 {
			t.Errorf("%+v, want the units and no ban at the store", c.Decisions)
		}

		// A refund ends a ban here as it does there.
		time.Sleep(4 * time.Hour)
		res := ask(g).Reservation(0)
		blocked(store.FromStore)
		settle(g, time.Second, res, 0)
		unbanned(t, ask, g, r)

		// So does a grant: another process has given units back.
		time.Sleep(4 * time.Hour)
		charge := ask(g).Decisions[0].Charge
		blocked(store.FromStore)
		_ = r.memory.Refund(0, []store.Refund{{Key: zone("a", 1).Key, Charge: charge, Units: reserved}})
		one := zone("a", reserved)
		decide(g, time.Second, []store.Request{one})
		r.err = unexecuted
		if c := decide(g, time.Second, []store.Request{one}); c.Decisions[0].Blocked {
			t.Errorf("%+v, want no ban", c.Decisions)
		}
	})
}

// A server that is there bans while another one is away.
func TestBansOfAPartAreKnownHere(t *testing.T) {
	r := newRemote(1)
	g, _ := guardOf(t, r)
	a := zone("a", 1)
	a.Block = 2 * time.Hour
	decide(g, time.Second, []store.Request{a})
	r.fates = []store.Fate{store.FateDecided, store.FateUnexecuted}
	decide(g, time.Second, []store.Request{a, zone("b", 1)})
	r.fates, r.err = nil, unexecuted
	a.Units = 0
	if c := decide(g, time.Second, []store.Request{a}); !c.Decisions[0].Blocked {
		t.Errorf("%+v, want the ban of the server that was there", c.Decisions)
	}
}
