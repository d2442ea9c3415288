package caddytest

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

var errAway = &store.Error{Kind: store.KindUnavailable, Unexecuted: true, Err: errors.New("connection refused")}

// outage runs a site whose store is called away, and breaks that.
func outage(t *testing.T, sites string) (*edge, *rig) {
	t.Helper()
	r := newRig(t, "away")
	e := start(t, "{\n\tdistributed_ratelimit {\n\t\tstore rig away\n\t\tbudget 5s\n\t}\n}\n"+sites)
	r.breaks(errAway)
	return e, r
}

const tell = `respond "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.source} {http.distributed_ratelimit.remaining}"`

func TestStoreAwayLocal(t *testing.T) {
	e, r := outage(t, `
http://a.test {
	distributed_ratelimit 2 1h z
	`+tell+`
}`)
	r.breaks(nil)
	e.body("granted store 1", alice, "http://a.test/")
	r.breaks(errAway)
	e.body("granted local 0", alice, "http://a.test/") // the local count knows what the store granted
	a := e.refused(alice, "http://a.test/")
	a.waits(t, 3500, 3600)
	e.body("granted local 1", bob, "http://a.test/")
	r.breaks(nil)
	e.refused(alice, "http://a.test/") // the store learns what was granted without it
	e.sample("requests_total", "granted local z", 2)
	e.sample("requests_total", "refused local z", 1)
	e.sample("requests_total", "granted store z", 1)
	e.sample("requests_total", "refused store z", 1)
}

func TestStoreAwayAllow(t *testing.T) {
	e, _ := outage(t, `
http://a.test {
	distributed_ratelimit 2 1h z {
		on_store_error allow
		ratelimit_headers always
	}
	`+tell+`
}`)
	for range 5 {
		a := e.get(alice, "http://a.test/")
		if a.StatusCode != http.StatusOK || a.body != "granted policy " {
			t.Fatalf("got status %d, body %q, want granted by policy", a.StatusCode, a.body)
		}
		a.header(t, "RateLimit", "")
	}
	e.sample("requests_total", "granted policy z", 5)
}

func TestStoreAwayDeny(t *testing.T) {
	e, _ := outage(t, `
http://a.test {
	distributed_ratelimit 2 1h z {
		on_store_error deny
	}
	`+tell+`
}
http://b.test {
	distributed_ratelimit 2 1h z {
		on_store_error deny
	}
	handle_errors {
		respond "{err.status_code} {http.distributed_ratelimit.outcome} {http.distributed_ratelimit.source} {http.distributed_ratelimit.retry_after}"
	}
}`)
	a := e.status(http.StatusServiceUnavailable, alice, "http://a.test/")
	a.header(t, "Retry-After", "1")
	a.header(t, "Cache-Control", "no-store")
	a.header(t, "Content-Type", "application/problem+json")
	a.header(t, "RateLimit", "")
	var problem struct {
		Type   string
		Status int
	}
	if err := json.Unmarshal([]byte(a.body), &problem); err != nil || problem.Status != 503 ||
		problem.Type != "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity" {
		t.Errorf("body: got %s (%v)", a.body, err)
	}

	a = e.status(http.StatusServiceUnavailable, alice, "http://b.test/")
	a.header(t, "Retry-After", "1")
	if a.body != "503 refused policy 1" {
		t.Errorf("body of handle_errors: got %q", a.body)
	}
	e.sample("requests_total", "refused policy z", 2)
	for line := range strings.Lines(e.log.text()) {
		if strings.Contains(line, `"level":"error"`) {
			t.Errorf("a denied request logs an error: %s", line)
		}
	}
}

// Each zone follows its own policy. One that denies decides; then nothing is
// charged, not even locally.
func TestStoreAwayWithPoliciesOfZones(t *testing.T) {
	e, _ := outage(t, `
http://a.test {
	distributed_ratelimit {
		zone shared {
			events 2
			window 1h
		}
		zone open {
			events 1
			window 1h
			on_store_error allow
		}
		zone closed {
			match path /closed
			events 10
			window 1h
			on_store_error deny
		}
		zone trial {
			events 10
			window 1h
			on_store_error deny
			dry_run
		}
		on_store_error local
	}
	`+tell+`
}`)
	for range 5 {
		e.status(http.StatusServiceUnavailable, alice, "http://a.test/closed")
	}
	e.granted(2, alice, "http://a.test/")
	a := e.refused(alice, "http://a.test/")
	a.header(t, "RateLimit-Policy", `"shared";q=2;w=3600`)
	e.status(http.StatusServiceUnavailable, alice, "http://a.test/closed")
}

// The global option has the default; handlers and zones come before it.
func TestStoreAwayWithGlobalPolicy(t *testing.T) {
	r := newRig(t, "away")
	e := start(t, `
{
	distributed_ratelimit {
		store rig away
		on_store_error deny
		budget 5s
	}
}
http://a.test {
	distributed_ratelimit 2 1h a
}
http://b.test {
	distributed_ratelimit 2 1h b {
		on_store_error allow
	}
	respond "ok"
}`)
	r.breaks(errAway)
	e.status(http.StatusServiceUnavailable, alice, "http://a.test/")
	e.granted(5, alice, "http://b.test/")
}

// What an earlier handler granted locally counts, though a later one refuses.
func TestStoreAwayInASecondHandler(t *testing.T) {
	e, r := outage(t, `
http://a.test {
	route {
		distributed_ratelimit 2 1h first
		distributed_ratelimit 0 1h second
	}
}
http://first.test {
	distributed_ratelimit 2 1h first
	`+tell+`
}`)
	e.refused(alice, "http://a.test/")
	e.body("granted local 0", alice, "http://first.test/")
	if refunds := r.refunded(); len(refunds) > 0 {
		t.Errorf("refunds to the store that was away: got %+v, want none", refunds)
	}
}

// The budget is the request's, however many handlers it passes: what the first
// one has waited is missing for the next. A store is not called in vain, and not
// blamed for it.
func TestHandlersShareTheBudget(t *testing.T) {
	r := newRig(t, "slow")
	zone := func(name string) string {
		return "distributed_ratelimit 5 1h " + name + " {\n\t\t\tstore rig slow\n\t\t\tbudget 2s\n\t\t}\n\t\t"
	}
	e := start(t, "http://a.test {\n\troute {\n\t\t"+zone("a")+zone("b")+zone("c")+zone("d")+"respond ok\n\t}\n}\n"+
		"http://d.test {\n\t"+zone("d")+tell+"\n}")
	r.hangs(1500 * time.Millisecond)
	e.granted(1, alice, "http://a.test/")
	if requests := r.requested(); len(requests) != 1 || requests[0].Key.Zone != "a" {
		t.Errorf("four handlers, of which one uses up the budget: got the requests %+v, want one for a", requests)
	}
	e.sample("store_errors_total", "budget rig slow", 3)
	e.sample("store_up", "rig slow rig slow", 1)
	e.log.says(3, "requests have no time left to ask the store after other handlers have; on_store_error decides. Write the zones into one handler, or raise budget to several round trips for each")
	// What was granted without the store is reported with the next call.
	r.hangs(0)
	e.body("granted store 3", alice, "http://d.test/")
}

// Where budgets differ, the request has the largest: a handler with a smaller one
// must not find it used up by a handler that may wait for longer.
func TestHandlersOfDifferentBudgets(t *testing.T) {
	r := newRig(t, "slow")
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 5 1h long {
			store rig slow
			budget 20s
		}
		distributed_ratelimit 5 1h short {
			store rig slow
			budget 3s
			on_store_error deny
		}
		respond ok
	}
}`)
	r.hangs(1600 * time.Millisecond)
	e.granted(1, alice, "http://a.test/")
	if requests := r.requested(); len(requests) != 2 {
		t.Errorf("handlers with budgets of 20s and 3s, of which 1.6s are used: %d requests to the store, want 2", len(requests))
	}
}

// Whatever the store does, a request waits no longer than the budget.
func TestStoreThatHangs(t *testing.T) {
	r := newRig(t, "slow")
	e := start(t, `
http://a.test {
	distributed_ratelimit 2 1h z {
		store rig slow
		budget 50ms
	}
	`+tell+`
}`)
	r.hangs(time.Minute)
	begin := time.Now()
	e.body("granted local 1", alice, "http://a.test/")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("a request with a store that hangs: took %v, want about the budget of 50ms", took)
	}
	e.sample("store_errors_total", "timeout rig slow", 1)
}

// Errors of any other kind are failures of the store too, never a 500.
func TestStoreErrorsAreNeverA500(t *testing.T) {
	for _, err := range []error{
		errAway,
		&store.Error{Kind: store.KindTimeout, Err: errors.New("x")},
		&store.Error{Kind: store.KindBroken, Err: errors.New("x")},
		&store.Error{Kind: store.KindOverload, Err: errors.New("x")},
		&store.Error{Kind: store.KindReply, Err: errors.New("x")},
		errors.New("anything else"),
	} {
		t.Run(err.Error(), func(t *testing.T) {
			e, r := outage(t, `
http://a.test {
	distributed_ratelimit 1 1h z
	respond "ok"
}`)
			r.breaks(err)
			e.granted(1, alice, "http://a.test/")
			e.refused(alice, "http://a.test/")
			e.sample("store_errors_total", string(store.ErrorKind(err))+" rig away", 2)
		})
	}
}

// One line for each change of state, whatever the number of requests.
func TestStoreStateIsLoggedOncePerChange(t *testing.T) {
	e, r := outage(t, `
http://a.test {
	distributed_ratelimit 1000 1h z
	respond "ok"
}`)
	const away, back = "the store gives no answer", "the store is back"
	e.granted(50, alice, "http://a.test/")
	e.log.says(1, away)
	e.log.says(0, back)
	e.sample("store_up", "rig away rig away", 0)

	r.breaks(nil)
	e.granted(50, alice, "http://a.test/")
	e.log.says(1, away)
	e.log.says(1, back)
	e.sample("store_up", "rig away rig away", 1)

	// A single failure is not logged; a run of failures is.
	for range 10 {
		r.breaks(errAway)
		e.granted(2, alice, "http://a.test/")
		r.breaks(nil)
		e.granted(1, alice, "http://a.test/")
	}
	e.log.says(1, away)
	r.breaks(errAway)
	e.granted(20, alice, "http://a.test/")
	lines := e.log.says(2, away)
	if len(lines) == 2 && (lines[1]["store"] != "rig away" || lines[1]["server"] != "rig away" || lines[1]["error"] != errAway.Error()) {
		t.Errorf("warning: got %v, want the store, its server and the error", lines[1])
	}
	e.sample("store_up", "rig away rig away", 0)

	// The state outlives a reload.
	e.reload(strings.Replace(`
{
	distributed_ratelimit {
		store rig away
	}
}
http://a.test {
	distributed_ratelimit 1000 1h z
	respond "ok"
}`, "1000", "1001", 1))
	e.granted(5, alice, "http://a.test/")
	e.log.says(2, away)
	e.sample("store_up", "rig away rig away", 0)
}
