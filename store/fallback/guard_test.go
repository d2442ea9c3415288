package fallback_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// remote is a shared store of which a test says how it fares: it counts in
// memory until it is told to fail.
type remote struct {
	memory    *store.Memory
	settings  fallback.Settings
	instances int
	do        func(store.Report)

	mu       sync.Mutex
	err      *store.Error                         // of each call
	pending  *store.Pending                       // calls are executed, but not answered in time
	behind   []store.Decision                     // of the last such call
	fates    []store.Fate                         // of the requests of each call, if it is as long
	take     func(requests []store.Request) error // instead of all that
	asked    []store.Request
	given    []store.Refund
	during   func() *store.Error // is called once, while a call is under way, and says how it ends
	executes bool                // the call is executed
	refuses  error               // of each refund
	waits    []time.Duration     // of refunds
}

func newRemote(instances int) *remote {
	return &remote{memory: store.NewMemory(0), instances: instances}
}

func (r *remote) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, requests...)
	if during := r.during; during != nil {
		r.during = nil
		var err error
		if r.executes {
			err = r.memory.Take(now, wait, requests, decisions)
		}
		r.mu.Unlock()
		failure := during()
		r.mu.Lock()
		if failure != nil {
			err = failure
		}
		return err
	}
	switch {
	case r.take != nil:
		return r.take(requests)
	case len(r.fates) == len(requests):
		return r.takeApart(requests, decisions)
	case r.pending != nil:
		r.behind = make([]store.Decision, len(requests))
		if err := r.memory.Take(now, wait, requests, r.behind); err != nil {
			return err
		}
		return &store.Error{Kind: store.KindTimeout, Pending: r.pending, Err: errors.New("no answer in time")}
	case r.err != nil:
		for i := range decisions { // what a store leaves behind when it fails means nothing
			decisions[i] = store.Decision{Granted: true, Remaining: 99, Charge: store.Charge{Stamp: 1, Mark: 1}}
		}
		return r.err
	}
	return r.memory.Take(now, wait, requests, decisions)
}

// takeApart decides requests as servers of their own do, of which some do not
// answer. What those of unknown fate have charged is known at once, to Pending.
func (r *remote) takeApart(requests []store.Request, decisions []store.Decision) error {
	known := make([]store.Decision, len(requests))
	refused := false
	for i := range requests {
		decisions[i] = store.Decision{Skipped: true}
		if r.fates[i] == store.FateUnexecuted {
			continue
		}
		if err := r.memory.Take(time.Time{}, 0, requests[i:i+1], known[i:i+1]); err != nil {
			return err
		}
		if r.fates[i] == store.FateDecided {
			decisions[i] = known[i]
			refused = refused || !known[i].Granted && !requests[i].Shadow
		}
	}
	e := &store.Error{Kind: store.KindTimeout, Fates: slices.Clone(r.fates), Err: errAway}
	if !refused {
		e.Pending = new(store.Pending)
		e.Pending.Deliver(known)
		return e
	}
	for i := range known {
		if known[i].Charged() {
			if err := r.memory.Refund(0, []store.Refund{{Key: requests[i].Key, Charge: known[i].Charge, Units: requests[i].Units}}); err != nil {
				return err
			}
			decisions[i].Charge = store.Charge{}
		}
	}
	return e
}

func (r *remote) Refund(wait time.Duration, refunds []store.Refund) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits = append(r.waits, wait)
	if r.refuses != nil {
		return r.refuses
	}
	r.given = append(r.given, refunds...)
	return r.memory.Refund(wait, refunds)
}

func (r *remote) String() string                      { return "remote" }
func (r *remote) Instances() int                      { return r.instances }
func (r *remote) FallbackSettings() fallback.Settings { return r.settings }
func (r *remote) Watch(do func(store.Report)) func()  { r.do = do; return func() {} }

func (r *remote) refunded() (units int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.given {
		units += g.Units
	}
	return units
}

// reported is how many units calls have reported since the last time.
func (r *remote) reported() (units int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.asked {
		units += total(a.Unreported)
	}
	r.asked = nil
	return units
}

// notes is an observer that writes down what it is told.
type notes struct {
	mu    sync.Mutex
	lines []string
}

func (n *notes) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, fmt.Sprintf(format, args...))
}

// read returns what has been written since the last time.
func (n *notes) read() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	lines := n.lines
	n.lines = nil
	return lines
}

func (n *notes) Called(time.Duration, error) {}
func (n *notes) ServerChanged(b store.Condition, r store.Report) {
	n.note("%s: %d to %d", r.Server, b, r.Condition)
}
func (n *notes) ServerRemoved(server string) { n.note("%s removed", server) }
func (n *notes) Lost(r store.Report)         { n.note("%s lost", r.Server) }
func (n *notes) Instances(count int, inTouch bool) {
	n.note("%d instances, in touch %v", count, inTouch)
}
func (n *notes) Alone() { n.note("alone") }

func guardOf(t *testing.T, r *remote) (*fallback.Guard, *notes) {
	t.Helper()
	n := new(notes)
	g := fallback.NewState().Guard(r, n)
	g.Start()
	t.Cleanup(g.Close)
	return g, n
}

// zone is a request for one unit of a limit.
func zone(name string, limit int64) store.Request {
	return store.Request{Key: store.Key{Zone: name, Client: "client", Window: time.Hour}, Limit: limit, Units: 1}
}

// decide decides a call of requests with policies.
func decide(g *fallback.Guard, wait time.Duration, requests []store.Request, policies ...fallback.Policy) *fallback.Call {
	c := &fallback.Call{Requests: requests, Policies: policies}
	for len(c.Policies) < len(requests) {
		c.Policies = append(c.Policies, fallback.Decide)
	}
	g.Decide(time.Now(), wait, c)
	return c
}

// How each policy and each fate of a call end: who decides, whether the call is
// granted, and whether it counts as charged.
func TestPolicies(t *testing.T) {
	const D, A, N = fallback.Decide, fallback.Allow, fallback.Deny
	unexecuted := &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errAway}
	unknown := &store.Error{Kind: store.KindBroken, Err: errAway}
	for _, c := range []struct {
		name     string
		err      *store.Error
		policies []fallback.Policy
		sources  []store.Source // FromPolicy of a denial included
		skipped  []bool
		granted  bool
		charged  []bool
	}{
		{"the store decides", nil, []fallback.Policy{D, N}, []store.Source{store.FromStore, store.FromStore}, []bool{false, false}, true, []bool{true, true}},
		{"local", unexecuted, []fallback.Policy{D, D}, []store.Source{store.FromLocal, store.FromLocal}, []bool{false, false}, true, []bool{true, true}},
		{"allow", unexecuted, []fallback.Policy{A, A}, []store.Source{store.FromPolicy, store.FromPolicy}, []bool{false, false}, true, []bool{false, false}},
		{"allow, unknown fate", unknown, []fallback.Policy{A, A}, []store.Source{store.FromPolicy, store.FromPolicy}, []bool{false, false}, true, []bool{true, true}},
		{"local and allow", unexecuted, []fallback.Policy{D, A}, []store.Source{store.FromLocal, store.FromPolicy}, []bool{false, false}, true, []bool{true, false}},
		{"local and deny", unexecuted, []fallback.Policy{D, N}, []store.Source{0, store.FromPolicy}, []bool{true, false}, false, []bool{false, false}},
		{"allow and deny", unexecuted, []fallback.Policy{A, N}, []store.Source{0, store.FromPolicy}, []bool{true, false}, false, []bool{false, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRemote(1)
			g, _ := guardOf(t, r)
			r.err = c.err
			call := decide(g, time.Second, []store.Request{zone("a", 10), zone("b", 10)}, c.policies...)
			if call.Granted() != c.granted {
				t.Errorf("granted %v, want %v", call.Granted(), c.granted)
			}
			for i, d := range call.Decisions {
				if d.Source != c.sources[i] || d.Skipped != c.skipped[i] || call.Charged(i) != c.charged[i] {
					t.Errorf("request %d: %+v, charged %v; want source %v, skipped %v, charged %v", i, d, call.Charged(i), c.sources[i], c.skipped[i], c.charged[i])
				}
			}
			if denied := slices.Contains(c.policies, N) && c.err != nil; call.Denied != denied {
				t.Errorf("denied %v, want %v", call.Denied, denied)
			}
		})
	}
}

// A shadow request denies nothing.
func TestShadowDeniesNothing(t *testing.T) {
	r := newRemote(1)
	g, _ := guardOf(t, r)
	r.err = &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errAway}
	shadow := zone("b", 10)
	shadow.Shadow = true
	c := decide(g, time.Second, []store.Request{zone("a", 10), shadow}, fallback.Decide, fallback.Deny)
	if c.Denied || !c.Granted() || c.Decisions[1].Granted || c.Decisions[0].Source != store.FromLocal {
		t.Errorf("%+v, want it granted by the share of the first", c)
	}
}

// What one server has decided counts; another one of them is away. If the
// rest is refused here, what was charged there is refunded.
func TestPartOfACallIsDecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(4)
		g, _ := guardOf(t, r)
		r.fates = []store.Fate{store.FateDecided, store.FateUnexecuted}
		requests := func() []store.Request { return []store.Request{zone("there", 3), zone("away", 8)} }
		for range 2 { // the share is 2 of 8
			c := decide(g, time.Second, requests())
			if !c.Granted() || c.Decisions[0].Source != store.FromStore || c.Decisions[1].Source != store.FromLocal {
				t.Fatalf("%+v, want both granted, the second here", c.Decisions)
			}
		}
		if c := decide(g, time.Second, requests()); c.Granted() {
			t.Errorf("%+v, want the second refused here", c.Decisions)
		}
		synctest.Wait()
		if n := r.refunded(); n != 1 {
			t.Errorf("%d units refunded, want that of the refused call", n)
		}
		decide(g, time.Second, []store.Request{zone("there", 3)}) // the third
		c := decide(g, time.Second, requests())
		if c.Granted() || c.Decisions[0].Granted || !c.Decisions[1].Skipped || c.Denied {
			t.Errorf("%+v, want a refusal by the server that is there", c.Decisions)
		}
		if c := decide(g, time.Second, requests(), fallback.Decide, fallback.Deny); c.Denied || c.Decisions[0].Granted {
			t.Errorf("denied %v, %+v: a limit that is used up is one, whatever is away", c.Denied, c.Decisions)
		}
	})
}

// Of a call of which nothing else is known, each request is reported by its own
// fate: one server of unknown fate keeps the units of another from being
// counted nowhere once.
func TestFatesAreEachTheirOwn(t *testing.T) {
	r := newRemote(1)
	g, _ := guardOf(t, r)
	r.err = &store.Error{Kind: store.KindTimeout, Fates: []store.Fate{store.FateUnknown, store.FateUnexecuted}, Err: errAway}
	decide(g, time.Second, []store.Request{zone("unknown", 10), zone("unexecuted", 10)})
	r.err = nil
	r.reported()
	decide(g, time.Second, []store.Request{zone("unknown", 10)})
	if n := r.reported(); n != 0 {
		t.Errorf("%d units reported that may have been counted", n)
	}
	decide(g, time.Second, []store.Request{zone("unexecuted", 10)})
	if n := r.reported(); n != 1 {
		t.Errorf("%d units reported that were certainly not counted, want 1", n)
	}
}

// Without time to wait nothing is reported, and what is granted here is.
func TestNoTimeToWait(t *testing.T) {
	r := newRemote(1)
	g, _ := guardOf(t, r)
	r.err = &store.Error{Kind: store.KindBudget, Unexecuted: true, Err: errAway}
	decide(g, 0, []store.Request{zone("a", 10)})
	decide(g, 0, []store.Request{zone("a", 10)})
	if n := r.reported(); n != 0 {
		t.Errorf("%d units were in calls that are not sent", n)
	}
	r.err = nil
	decide(g, time.Second, []store.Request{zone("a", 10)})
	if n := r.reported(); n != 2 {
		t.Errorf("%d units reported by the next call, want 2", n)
	}
}

// What a call charged that is answered too late stands if the call was granted
// here, and is refunded if it was refused.
func TestPendingCharges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(10) // the share is 1 of 10
		g, _ := guardOf(t, r)
		for i, want := range []int64{0, 1} {
			r.pending = new(store.Pending)
			c := decide(g, time.Second, []store.Request{zone("a", 10)})
			if c.Granted() != (i == 0) {
				t.Fatalf("call %d: %+v", i, c.Decisions)
			}
			synctest.Wait()
			if n := r.refunded(); n != 0 {
				t.Errorf("call %d: %d units refunded before anything is known", i, n)
			}
			r.pending.Deliver(r.behind)
			synctest.Wait()
			if n := r.refunded(); n != want {
				t.Errorf("call %d: %d units refunded, want %d", i, n, want)
			}
			r.pending = nil
		}
	})
}

// After a loss, a cautious process holds clients to its share too; what the store
// then refuses costs nothing of it.
func TestCaution(t *testing.T) {
	r := newRemote(2)
	r.settings.Cautious = true
	g, n := guardOf(t, r)
	decide(g, time.Second, []store.Request{zone("a", 6)})
	r.do(store.Report{Server: "s", Condition: store.Up, Instances: 2})
	r.memory = store.NewMemory(0)
	r.do(store.Report{Server: "s", Condition: store.Up, Lost: "it is empty", Instances: 2})
	if !slices.Contains(n.read(), "s lost") {
		t.Error("nobody was told of the loss")
	}
	for range 2 {
		if c := decide(g, time.Second, []store.Request{zone("a", 6)}); !c.Granted() || c.Decisions[0].Source != store.FromStore {
			t.Fatalf("within the share: %+v", c.Decisions)
		}
	}
	c := decide(g, time.Second, []store.Request{zone("a", 6), zone("b", 6)})
	if c.Granted() || c.Decisions[0].Source != store.FromLocal || c.Decisions[1].Charged() || c.Waited != 0 {
		t.Errorf("beyond the share: %+v, waited %v; want a refusal without a call", c.Decisions, c.Waited)
	}
	full := zone("c", 6)
	full.Units = 6
	if err := r.memory.Take(time.Now(), 0, []store.Request{full}, make([]store.Decision, 1)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if c := decide(g, time.Second, []store.Request{zone("c", 6)}); c.Granted() || c.Decisions[0].Source != store.FromStore {
			t.Fatalf("a limit that others have used up: %+v, want the store to refuse", c.Decisions)
		}
	}
	// The store is away: the policies decide, and their counts are right.
	r.do(store.Report{Server: "s", Condition: store.Away, Err: errAway, Instances: 2})
	r.err = &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errAway}
	if c := decide(g, time.Second, []store.Request{zone("a", 6)}, fallback.Deny); !c.Denied {
		t.Errorf("%+v, want it denied, not refused", c.Decisions)
	}
}

// A cluster store that never knew the slots is replaced by one that does.
func TestServersOfAStoreThatWasReplaced(t *testing.T) {
	state, n := fallback.NewState(), new(notes)
	old, fresh := newRemote(1), newRemote(1)
	g1 := state.Guard(old, n)
	g1.Start()
	old.do(store.Report{Server: "replaced", Condition: store.Away, Err: errAway, Instances: 2})
	g2 := state.Guard(fresh, n)
	g2.Start()
	g1.Close()
	fresh.do(store.Report{Server: "node:1", Condition: store.Up, Instances: 1})
	if lines := n.read(); !slices.Contains(lines, "replaced removed") {
		t.Errorf("told %q, want that a server was removed", lines)
	}
	old.do(store.Report{Server: "replaced", Condition: store.Up, Instances: 1})
	if lines := n.read(); len(lines) > 0 {
		t.Errorf("told %q of a guard that was closed", lines)
	}
	g2.Close()
}

// A configuration that is only validated has no say.
func TestGuardsThatAreNotStarted(t *testing.T) {
	state, running, other := fallback.NewState(), new(notes), new(notes)
	r1, r2 := newRemote(1), newRemote(1)
	g1 := state.Guard(r1, running)
	g1.Start()
	r1.do(store.Report{Server: "s", Condition: store.Up, Instances: 1})
	g2 := state.Guard(r2, other)
	r2.do(store.Report{Server: "s", Condition: store.Away, Err: errAway, Instances: 1})
	if lines := other.read(); len(lines) > 0 {
		t.Errorf("one that does not run was told %q", lines)
	}
	g2.Close()
	if lines := running.read(); !slices.Equal(lines, []string{"1 instances, in touch true", fmt.Sprintf("s: %d to %d", store.Unknown, store.Up)}) {
		t.Errorf("the one that runs was told %q", lines)
	}
	g1.Close()
}

// A store that is opened anew while the server is away knows as many instances
// as the one before; a process that knows nothing takes itself for the only one,
// and says so.
func TestInstancesAreKnownOverAReload(t *testing.T) {
	state, n := fallback.NewState(), new(notes)
	old, fresh := newRemote(10), newRemote(1)
	g1 := state.Guard(old, n)
	g1.Start()
	old.do(store.Report{Server: "s", Condition: store.Up, Instances: 10})
	old.do(store.Report{Server: "s", Condition: store.Away, Instances: 10, Err: errAway})
	g2 := state.Guard(fresh, n)
	fresh.do(store.Report{Server: "s", Condition: store.Away, Instances: 1, Err: errAway})
	g2.Start()
	g1.Close()
	if got := g2.Instances(); got != 10 {
		t.Errorf("%d instances, want 10", got)
	}
	g2.Close()

	for _, c := range []struct {
		name     string
		settings fallback.Settings
		recalled int
		alone    bool
		want     int
	}{
		{"nothing is known", fallback.Settings{}, 0, true, 1},
		{"the operator says", fallback.Settings{Instances: 3}, 0, false, 1},
		{"the last process knew", fallback.Settings{}, 7, false, 7},
	} {
		state, n := fallback.NewState(), new(notes)
		if c.recalled > 0 {
			state.Recall(c.recalled)
		}
		r := newRemote(1)
		r.settings = c.settings
		g := state.Guard(r, n)
		g.Start()
		for range 2 {
			r.do(store.Report{Server: "s", Condition: store.Away, Instances: 1, Err: errAway})
			r.do(store.Report{Server: "t", Condition: store.Away, Instances: 1, Err: errAway})
		}
		told := 0
		for _, line := range n.read() {
			if line == "alone" {
				told++
			}
		}
		if told > 1 || (told == 1) != c.alone || g.Instances() != c.want {
			t.Errorf("%s: told %d times that it is alone, %d instances; want %v, %d", c.name, told, g.Instances(), c.alone, c.want)
		}
		g.Close()
	}
}

// Two servers come back at nearly the same time: what the second one has to be
// told is told, too.
func TestFlushesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(1)
		g, _ := guardOf(t, r)
		r.err = &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errAway}
		decide(g, time.Second, []store.Request{zone("a", 10)})
		r.err = nil
		calls := 0
		goOn := make(chan bool)
		r.take = func([]store.Request) error {
			if calls++; calls == 1 {
				<-goOn
				return &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errors.New("the other one is away")}
			}
			return nil
		}
		r.do(store.Report{Server: "1", Condition: store.Up, Instances: 1})
		synctest.Wait()
		r.do(store.Report{Server: "2", Condition: store.Up, Instances: 1})
		close(goOn)
		synctest.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		if calls != 2 {
			t.Errorf("%d calls, want one in vain and one that reports", calls)
		}
	})
}

// A store that reports nothing itself is away after some failures in a row, and
// back after one success.
func TestStoresThatDoNotReport(t *testing.T) {
	r, n := newRemote(1), new(notes)
	plain := struct{ store.Store }{r}
	g := fallback.NewState().Guard(plain, n)
	g.Start()
	defer g.Close()
	decide(g, time.Second, []store.Request{zone("a", 100)})
	r.err = &store.Error{Kind: store.KindBroken, Err: errAway}
	decide(g, time.Second, []store.Request{zone("a", 100)})
	decide(g, time.Second, []store.Request{zone("a", 100)})
	up := fmt.Sprintf("remote: %d to %d", store.Unknown, store.Up)
	if lines := n.read(); !slices.Equal(lines, []string{up}) {
		t.Errorf("after two failures: told %q", lines)
	}
	decide(g, time.Second, []store.Request{zone("a", 100)})
	r.err = nil
	decide(g, time.Second, []store.Request{zone("a", 100)})
	want := []string{fmt.Sprintf("remote: %d to %d", store.Up, store.Away), fmt.Sprintf("remote: %d to %d", store.Away, store.Up)}
	if lines := n.read(); !slices.Equal(lines, want) {
		t.Errorf("after a third one, and a success: told %q, want %q", lines, want)
	}
}
