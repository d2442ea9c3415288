package caddytest

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

var errUnknownFate = &store.Error{Kind: store.KindBroken, Err: errors.New("connection reset")}

// remote runs a site on a store that several instances share. line is the
// handler.
func remote(t *testing.T, instances int, line string) (*edge, *far) {
	t.Helper()
	f := newFar(t, "redis", instances)
	return start(t, onFar("far redis", line)), f
}

func onFar(name, line string) string {
	return "{\n\tdistributed_ratelimit {\n\t\tstore " + name + "\n\t\tbudget 5s\n\t}\n}\nhttp://a.test {\n\t" + line + "\n\t" + tell + "\n}"
}

// soon waits for something that happens in the background.
func soon(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("within 30 s: %s", what)
		}
	}
}

// unreported is the units that requests report, and in how many entries.
func unreported(requests []store.Request) (units int64, entries int) {
	for _, r := range requests {
		for _, spent := range r.Unreported {
			units += spent.Units
			entries++
		}
	}
	return units, entries
}

func (f *far) refundedUnits() int64 {
	var units int64
	for _, g := range f.refunded() {
		units += g.Units
	}
	return units
}

// While the store is away, each instance grants its share, and at least one.
func TestStoreAwayIsShared(t *testing.T) {
	e, f := remote(t, 3, "distributed_ratelimit 11 1h z")
	f.breaks(errAway)
	e.body("granted local 2", alice, "http://a.test/")
	e.granted(2, alice, "http://a.test/")
	e.refused(alice, "http://a.test/").waits(t, 3500, 3600)
	f.watch.Lock()
	f.instances = 100
	f.watch.Unlock()
	e.body("granted local 0", bob, "http://a.test/")
	e.refused(bob, "http://a.test/")
}

// What the store granted here before counts in the share, also from a lease.
func TestLocalCountsAreWarm(t *testing.T) {
	e, f := remote(t, 2, "distributed_ratelimit 10 1h z")
	e.granted(2, alice, "http://a.test/")
	f.source = store.FromLease
	e.granted(1, alice, "http://a.test/")
	f.breaks(errAway)
	e.body("granted local 1", alice, "http://a.test/")
	e.body("granted local 0", alice, "http://a.test/")
	e.refused(alice, "http://a.test/")
}

// What was granted for calls that were never sent is reported with the next call
// for the key, once. What may have been counted is not.
func TestUnreportedUnitsAreReported(t *testing.T) {
	e, f := remote(t, 1, "distributed_ratelimit 10 1h z")
	f.breaks(errAway)
	e.granted(3, alice, "http://a.test/")
	f.breaks(errUnknownFate)
	f.requested()
	e.granted(1, bob, "http://a.test/")
	if units, _ := unreported(f.requested()); units != 0 {
		t.Errorf("first call for another client: got %d units reported, want none", units)
	}
	// It stays unreported while the calls that report it are not executed.
	f.breaks(errAway)
	e.granted(1, alice, "http://a.test/")
	if units, _ := unreported(f.requested()); units != 3 {
		t.Errorf("call that is not executed: got %d units reported, want 3", units)
	}
	f.breaks(nil)
	e.body("granted store 5", alice, "http://a.test/")
	if units, _ := unreported(f.requested()); units != 4 {
		t.Errorf("call of the store that is back: got %d units reported, want 4", units)
	}
	e.body("granted store 4", alice, "http://a.test/")
	e.body("granted store 9", bob, "http://a.test/")
	if units, _ := unreported(f.requested()); units != 0 {
		t.Errorf("later calls: got %d units reported, want none", units)
	}

	// A report of unknown fate is not repeated.
	f.breaks(errAway)
	e.granted(1, alice, "http://a.test/")
	f.breaks(errUnknownFate)
	e.granted(1, alice, "http://a.test/")
	f.breaks(nil)
	f.requested()
	e.granted(1, alice, "http://a.test/")
	if units, _ := unreported(f.requested()); units != 0 {
		t.Errorf("after a report of unknown fate: got %d units reported, want none", units)
	}
}

// A call that a lease decides reports nothing: the units stay unreported.
func TestUnreportedUnitsWaitForTheStore(t *testing.T) {
	e, f := remote(t, 1, "distributed_ratelimit 10 1h z")
	f.breaks(errAway)
	e.granted(2, alice, "http://a.test/")
	f.breaks(nil)
	f.source = store.FromLease
	e.granted(1, alice, "http://a.test/")
	f.source = store.FromStore
	f.requested()
	e.granted(1, alice, "http://a.test/")
	if units, _ := unreported(f.requested()); units != 2 {
		t.Errorf("call after one that a lease decided: got %d units reported, want 2", units)
	}
}

// When the store is back, all unreported units are flushed, without an HTTP
// request.
func TestUnreportedUnitsAreFlushed(t *testing.T) {
	e, f := remote(t, 1, "distributed_ratelimit 10 1h z")
	f.report(store.Report{Condition: store.Up})
	f.report(store.Report{Condition: store.Away, Err: errAway})
	f.breaks(errAway)
	e.granted(3, alice, "http://a.test/")
	e.granted(2, bob, "http://a.test/")
	f.breaks(nil)
	f.requested()
	f.report(store.Report{Condition: store.Slow, Took: time.Second})
	f.report(store.Report{Condition: store.Up})
	var requests []store.Request
	soon(t, "the unreported units are flushed", func() bool {
		requests = append(requests, f.requested()...)
		return len(requests) == 2
	})
	if units, _ := unreported(requests); units != 5 || requests[0].Units != 0 || requests[1].Units != 0 {
		t.Errorf("reported: got %+v, want 5 units, and none requested", requests)
	}
	// All instances see them, this one too.
	e.body("granted store 6", alice, "http://a.test/")
	e.body("granted store 7", bob, "http://a.test/")
}

// What an earlier handler granted while the store was away is reported, though a
// later handler refuses the request.
func TestUnreportedUnitsOfRefusedRequests(t *testing.T) {
	f := newFar(t, "redis", 1)
	e := start(t, "{\n\tdistributed_ratelimit {\n\t\tstore far redis\n\t}\n}\nhttp://a.test {\n\troute {\n\t\tdistributed_ratelimit 10 1h first\n\t\tdistributed_ratelimit 0 1h second\n\t}\n}\nhttp://b.test {\n\tdistributed_ratelimit 10 1h first\n}")
	f.breaks(errAway)
	for range 3 {
		e.refused(alice, "http://a.test/")
	}
	f.breaks(nil)
	f.requested()
	e.granted(1, alice, "http://b.test/")
	if units, _ := unreported(f.requested()); units != 3 || f.refundedUnits() != 0 {
		t.Errorf("after three refusals: got %d units reported and %d refunded, want 3 and none", units, f.refundedUnits())
	}
}

// The charge of a pending call stands if its HTTP request has passed this
// handler, whatever a later one says. If this handler has refused it, the charge
// is refunded.
func TestPendingCalls(t *testing.T) {
	f := newFar(t, "redis", 100)
	e := start(t, `
{
	distributed_ratelimit {
		store far redis
		budget 5s
	}
}
http://a.test {
	distributed_ratelimit 10 1h z
	respond "ok"
}
http://deny.test {
	distributed_ratelimit 10 1h denied {
		on_store_error deny
	}
}
http://two.test {
	route {
		distributed_ratelimit 100 1h two
		distributed_ratelimit 0 1h none
	}
}`)
	// The instance's share is one request.
	f.lags()
	e.granted(1, alice, "http://a.test/")
	f.arrive()
	f.lags()
	e.refused(alice, "http://a.test/")
	if f.refundedUnits() != 0 {
		t.Errorf("before the call is decided: got %d units refunded, want none", f.refundedUnits())
	}
	f.arrive()
	soon(t, "the charge of a refused request is refunded", func() bool { return f.refundedUnits() == 1 })
	g := f.refunded()[0]
	if g.Key.Zone != "z" || g.Mark == 0 || g.Units != 1 {
		t.Errorf("refunded: got %+v", g)
	}
	e.body("ok", bob, "http://a.test/")

	f.lags()
	e.status(http.StatusServiceUnavailable, alice, "http://deny.test/")
	f.arrive()
	soon(t, "the charge of a denied request is refunded", func() bool { return f.refundedUnits() == 2 })

	// A later handler refuses. The charge of a request that passed this one is
	// not refunded.
	f.lags()
	e.refused(alice, "http://two.test/")
	f.arrive()
	time.Sleep(20 * time.Millisecond)
	if f.refundedUnits() != 2 {
		t.Errorf("in the end: got %d units refunded, want 2: %+v", f.refundedUnits(), f.refunded())
	}
}

// A pending call that turns out refused, or whose outcome is never known, has
// nothing to refund.
func TestPendingRefusals(t *testing.T) {
	e, f := remote(t, 1, "distributed_ratelimit 1 1h z")
	e.granted(1, alice, "http://a.test/")
	f.lags()
	e.refused(alice, "http://a.test/")
	f.arrive()
	f.lags()
	e.refused(alice, "http://a.test/")
	f.pending.Deliver(nil)
	time.Sleep(20 * time.Millisecond)
	if f.refundedUnits() != 0 {
		t.Errorf("got %d units refunded, want none", f.refundedUnits())
	}
}

const (
	lineAway = "the store gives no answer; until it is back, requests follow on_store_error, and limits that are kept locally are per instance"
	lineSlow = "the store answers too late; limits are now per instance"
	lineBack = "the store is back; limits are shared again"
	lineLost = "the store has lost counts; clients may be granted up to one limit more"
)

// Each change is logged once, without a request, however many backends watch.
func TestReportsAreLoggedOnce(t *testing.T) {
	e, f := remote(t, 3, "distributed_ratelimit 10 1h z")
	if got := e.series("store_up"); len(got) != 0 {
		t.Errorf("before a report: got %v, want nothing known", got)
	}
	f.report(store.Report{Condition: store.Unknown})
	f.report(store.Report{Condition: store.Up})
	f.report(store.Report{Condition: store.Up})
	f.report(store.Report{Condition: store.Unknown}) // a store that was opened anew
	e.log.says(0, "the store ")
	e.sample("store_up", "far:1 far redis", 1)
	e.sample("store_instances", "far redis", 3)

	// Calls that fail log nothing: the store's reports do.
	f.breaks(errAway)
	e.granted(3, alice, "http://a.test/")
	e.refused(alice, "http://a.test/")
	e.log.says(0, "the store ")
	e.sample("store_up", "far:1 far redis", 1)

	f.report(store.Report{Condition: store.Slow, Took: 300 * time.Millisecond, Wait: 100 * time.Millisecond})
	if line := e.log.says(1, lineSlow)[0]; line["store"] != "far redis" || line["server"] != "far:1" || line["took"] != 0.3 || line["budget"] != 0.1 || line["level"] != "warn" {
		t.Errorf("line: got %v", line)
	}
	e.sample("store_up", "far:1 far redis", 0)
	f.report(store.Report{Condition: store.Away, Err: errAway})
	if line := e.log.says(1, lineAway)[0]; line["store"] != "far redis" || line["server"] != "far:1" || line["error"] != errAway.Error() || line["level"] != "warn" {
		t.Errorf("line: got %v", line)
	}

	// Over reloads, and while another configuration is being validated.
	for _, line := range []string{"distributed_ratelimit 11 1h z", "distributed_ratelimit 12 1h z"} {
		e.reload(onFar("far redis", line))
	}
	if err := e.validate(onFar("far redis", "distributed_ratelimit 13 1h z")); err != nil {
		t.Fatal(err)
	}
	if f.watching() != 1 {
		t.Errorf("after reloads: got %d watchers, want 1", f.watching())
	}
	e.log.says(1, lineAway)
	f.report(store.Report{Condition: store.Up})
	if line := e.log.says(1, lineBack)[0]; line["server"] != "far:1" || line["level"] != "info" {
		t.Errorf("line: got %v", line)
	}
	e.sample("store_up", "far:1 far redis", 1)

	// Servers are told apart.
	f.report(store.Report{Server: "far:2", Condition: store.Away, Err: errAway})
	e.log.says(2, lineAway)
	e.sample("store_up", "far:1 far redis", 1)
	e.sample("store_up", "far:2 far redis", 0)

	// Their series are deleted with the store.
	e.reload("http://a.test {\n\tdistributed_ratelimit 1 1h z\n}")
	for _, name := range e.seriesNames() {
		if strings.Contains(name, "far") {
			t.Errorf("after a reload without the store there is a series %q", name)
		}
	}
	if f.watching() != 0 {
		t.Errorf("after a reload without the store: got %d watchers, want none", f.watching())
	}
}

// A configuration that does not run logs nothing, even if its store reports
// something else.
func TestReportsOfAConfigurationThatFails(t *testing.T) {
	e, f := remote(t, 1, "distributed_ratelimit 10 1h z")
	f.report(store.Report{Condition: store.Up})
	f.watch.Lock()
	f.known = []store.Report{{Server: "far:1", Condition: store.Away, Err: errAway}}
	f.watch.Unlock()
	if err := e.validate(onFar("far redis", "distributed_ratelimit 11 1h z")); err != nil {
		t.Fatal(err)
	}
	e.log.says(0, lineAway)
	e.reload(onFar("far redis", "distributed_ratelimit 12 1h z"))
	e.log.says(1, lineAway)
	e.sample("store_up", "far:1 far redis", 0)
}

// Losses are always counted, and logged once a minute.
func TestLossesAreReported(t *testing.T) {
	e, f := remote(t, 1, "distributed_ratelimit 10 1h z")
	f.report(store.Report{Condition: store.Up, Lost: "it restarted"})
	if line := e.log.says(1, lineLost)[0]; line["store"] != "far redis" || line["server"] != "far:1" || line["how"] != "it restarted" ||
		line["on_data_loss"] != "continue" || line["suppressed"] != 0.0 || line["level"] != "warn" {
		t.Errorf("line: got %v", line)
	}
	f.report(store.Report{Condition: store.Up, Lost: "as another store of this process sees it"})
	e.sample("store_data_losses_total", "far redis", 1)
	f.report(store.Report{Server: "far:2", Condition: store.Up, Lost: "it restarted"})
	e.sample("store_data_losses_total", "far redis", 2)
	e.reload(onFar("far redis", "distributed_ratelimit 11 1h z"))
	e.log.says(1, lineLost)
	e.sample("store_data_losses_total", "far redis", 2)
}

// What was not sent took no time.
func TestCallsThatAreNotSentAreNotMeasured(t *testing.T) {
	e, f := remote(t, 1, "distributed_ratelimit 100 1h z")
	e.granted(1, alice, "http://a.test/")
	f.breaks(errUnknownFate)
	e.granted(1, alice, "http://a.test/")
	f.breaks(&store.Error{Kind: store.KindAway, Unexecuted: true, Err: errors.New("known to be away")})
	e.granted(3, alice, "http://a.test/")
	e.sample("store_duration_seconds", "far redis", 2)
	e.sample("store_errors_total", "away far redis", 3)
	e.sample("store_errors_total", "broken far redis", 1)
}

// After a loss, a cautious instance also holds clients to its share, by what it
// granted itself. Other limits are not affected.
func TestCautiousAfterALoss(t *testing.T) {
	f := newFar(t, "redis", 2)
	config := onFar("far redis cautious", `distributed_ratelimit {
		zone long {
			events 6
			window 1h
		}
		zone other {
			match path /other
			events 5
			window 1h
		}
	}`)
	e := start(t, config)
	e.granted(1, alice, "http://a.test/")
	f.memory = store.NewMemory(0)
	f.report(store.Report{Condition: store.Up, Lost: "it is empty"})
	if line := e.log.says(1, lineLost)[0]; line["on_data_loss"] != "cautious" {
		t.Errorf("line: got %v", line)
	}
	e.body("granted store 5", alice, "http://a.test/")
	e.reload(config) // the loss is not forgotten
	e.body("granted store 4", alice, "http://a.test/")
	f.requested()
	a := e.get(alice, "http://a.test/")
	if a.StatusCode != http.StatusTooManyRequests || len(f.requested()) != 0 {
		t.Errorf("beyond the share: got status %d, want 429 and no call", a.StatusCode)
	}
	e.sample("requests_total", "refused local long", 1)

	// What the store refuses does not count here.
	e.granted(1, bob, "http://a.test/other")
	key := f.requested()[0].Key.Client
	before := f.memory
	f.memory = store.NewMemory(0)
	others := []store.Request{{Key: store.Key{Zone: "other", Client: key, Window: time.Hour}, Limit: 5, Units: 5}}
	if err := f.memory.Take(time.Now(), 0, others, make([]store.Decision, 1)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		e.refused(bob, "http://a.test/other")
	}
	e.sample("requests_total", "refused store other", 5)
	f.memory = before
	e.granted(1, bob, "http://a.test/other")

	// What is granted while it fails counts once.
	f.breaks(errAway)
	e.body("granted local 0", bob, "http://a.test/")
	f.breaks(nil)
	e.refused(bob, "http://a.test/")
	e.sample("requests_total", "refused local long", 2)
}

// The caution of a limit ends with its window, and a store that continues has
// none.
func TestCautionEnds(t *testing.T) {
	e, f := remote(t, 2, "distributed_ratelimit 4 1h z")
	f.report(store.Report{Condition: store.Up, Lost: "it is empty"})
	e.granted(4, alice, "http://a.test/")

	f = newFar(t, "short", 2)
	e.reload(onFar("far short cautious", "distributed_ratelimit 4 1s z"))
	f.report(store.Report{Condition: store.Up, Lost: "it is empty"})
	e.granted(2, alice, "http://a.test/")
	e.refused(alice, "http://a.test/")
	time.Sleep(1100 * time.Millisecond)
	e.granted(4, alice, "http://a.test/")
}

// A request that ends after its configuration brings no series back.
func TestSeriesDoNotComeBack(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	invite(t, "hold", act(func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		close(arrived)
		<-goOn
		return next.ServeHTTP(w, r)
	}))
	f := newFar(t, "redis", 1)
	e := start(t, onFar("far redis", "route {\n\tstage hold\n\tdistributed_ratelimit 10 1h z\n}"))
	f.breaks(errUnknownFate)
	server := e.server("80")
	done := make(chan reply)
	go func() { done <- e.sendTo(server, alice, http.MethodGet, "http://a.test/") }()
	<-arrived
	e.reload("http://a.test {\n\tdistributed_ratelimit 1 1h y\n}")
	close(goOn)
	if a := <-done; a.StatusCode != http.StatusOK {
		t.Errorf("a request in flight over a reload: got status %d, want 200", a.StatusCode)
	}
	for _, name := range e.seriesNames() {
		if strings.Contains(name, "far") || strings.HasSuffix(name, " z") {
			t.Errorf("after a reload there is a series %q", name)
		}
	}
}

// A server that does not belong to the store any more has no series: an alert on
// store_up would never end.
func TestRemovedServers(t *testing.T) {
	e, f := remote(t, 3, "distributed_ratelimit 10 1h z")
	f.report(store.Report{Condition: store.Away, Err: errAway})
	e.sample("store_up", "far:1 far redis", 0)
	f.report(store.Report{Condition: store.Removed})
	if got := e.series("store_up"); len(got) != 0 {
		t.Errorf("after it was removed: got %v", got)
	}
	e.reload(onFar("far redis", "distributed_ratelimit 11 1h z"))
	if got := e.series("store_up"); len(got) != 0 {
		t.Errorf("after a reload: got %v", got)
	}
	f.report(store.Report{Condition: store.Up})
	e.sample("store_up", "far:1 far redis", 1)
	e.log.says(0, lineBack)
}

// A zone that is met again, after a call that timed out, is not requested again:
// both calls may be executed.
func TestPendingCallsAreNotRepeated(t *testing.T) {
	h := "distributed_ratelimit 10 1h z {\n\t\ton_store_error allow\n\t}\n\t"
	e, f := remote(t, 1, h+h)
	f.breaks(&store.Error{Kind: store.KindTimeout, Pending: new(store.Pending), Err: errors.New("late")})
	e.status(200, alice, "http://a.test/")
	if got := len(f.requested()); got != 1 {
		t.Errorf("one HTTP request and one zone: got %d requests to the store, want 1", got)
	}
}

// A store that is away again, soon after it lost counts, is away: a zone that
// denies then does not tell clients that they sent too much.
func TestPoliciesComeBeforeCaution(t *testing.T) {
	f := newFar(t, "redis", 2)
	e := start(t, onFar("far redis cautious", `distributed_ratelimit 4 1h z {
		on_store_error deny
	}`))
	f.report(store.Report{Condition: store.Up})
	f.report(store.Report{Condition: store.Up, Lost: "it is empty"})
	e.granted(2, alice, "http://a.test/")
	e.refused(alice, "http://a.test/") // its share is used up
	f.breaks(errAway)
	f.report(store.Report{Condition: store.Away, Err: errAway})
	e.status(http.StatusServiceUnavailable, alice, "http://a.test/")
}
