package caddytest

import (
	"net/http"
	"strings"
	"testing"
)

// planned is a site with a limit by plan. The plan is what the test writes into a
// header, as authentication would set it.
func planned(options ...string) string {
	return `
http://a.test {
	route {
		vars {
			plan {header.X-Is}
			cost {header.X-Takes}
		}
		distributed_ratelimit {
			ratelimit_headers draft legacy always
			zone api {
				window 1h
				` + strings.Join(options, "\n") + `
			}
		}
		respond "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.limit} {http.distributed_ratelimit.remaining}"
	}
}`
}

const table = "tier {vars.plan} {\nfree 2\npro 5\npartner unlimited\nblocked 0\ndefault free\n}"

func is(plan string) func(*http.Request) { return with("X-Is", plan) }
func takes(n string) func(*http.Request) { return with("X-Takes", n) }

func TestTier(t *testing.T) {
	e := start(t, planned(table))
	a := e.get(alice, "http://a.test/", is("pro"))
	a.header(t, "RateLimit-Policy", `"api";q=5;w=3600`)
	a.header(t, "X-RateLimit-Limit", "5")
	e.body("granted 5 3", alice, "http://a.test/", is("pro"))

	// One log whatever the plan: a downgrade holds at once, and so does the way
	// back.
	a = e.refused(alice, "http://a.test/", is("free"))
	a.header(t, "RateLimit-Policy", `"api";q=2;w=3600`)
	e.body("granted 5 2", alice, "http://a.test/", is("pro"))
	e.refused(alice, "http://a.test/")
	e.body("granted 5 1", alice, "http://a.test/", is("pro"))

	// Unknown and missing plans have the default.
	e.body("granted 2 1", bob, "http://a.test/", is("gold"))
	e.body("granted 2 0", bob, "http://a.test/")
	e.refused(bob, "http://a.test/", is("Pro"))
	e.sample("replaced_values_total", "unlisted tier api", 2)
	e.sample("replaced_values_total", "missing tier api", 2)
	e.log.says(0, "chooses its own plan")
}

func TestTierUnlimited(t *testing.T) {
	e := start(t, planned(table))
	for range 20 {
		a := e.get(alice, "http://a.test/", is("partner"))
		if a.body != "exempt  " {
			t.Fatalf("unlimited plan: got %d %q, want it exempt", a.StatusCode, a.body)
		}
		a.header(t, "RateLimit-Policy", "")
	}
	e.body("granted 2 1", alice, "http://a.test/", is("free"))
	e.sample("requests_total", "exempt policy api", 20)
}

func TestTierOfNothing(t *testing.T) {
	e := start(t, planned(table))
	a := e.refused(alice, "http://a.test/", is("blocked"))
	a.header(t, "Retry-After", "")
	a.header(t, "RateLimit-Policy", `"api";q=0;w=3600`)
	if !strings.Contains(a.body, "allows no requests") {
		t.Errorf("plan of 0: got %s", a.body)
	}
	e.body("granted 5 4", alice, "http://a.test/", is("pro"))
}

// Whoever has no key is refused before the table is asked, also if unknown plans
// are unlimited.
func TestTierAndEmptyKey(t *testing.T) {
	e := start(t, planned("tier {vars.plan} {\nfree 2\ndefault unlimited\n}", "key {header.X-User}", "on_empty_key deny"))
	e.status(http.StatusForbidden, alice, "http://a.test/")
	e.granted(5, alice, "http://a.test/", with("X-User", "me"))
}

// The plan is read as a key is: two headers are none, whichever comes first.
func TestTierIsReadOnce(t *testing.T) {
	e := start(t, strings.ReplaceAll(planned("tier {header.X-Is} {\nfree 1\npro 5\ndefault free\n}"), "plan {header.X-Is}", ""))
	e.granted(1, alice, "http://a.test/", is("pro"), is("free"))
	e.refused(alice, "http://a.test/", is("pro"), is("pro"))
	e.sample("replaced_values_total", "ambiguous tier api", 2)
	lines := e.log.says(1, "the client writes what this tier reads")
	if len(lines) == 1 && (lines[0]["placeholder"] != "{http.request.header.X-Is}" || !strings.Contains(lines[0]["msg"].(string), "vars plan {http.auth.user.plan}")) {
		t.Errorf("warning of a tier that the client writes: got %v", lines[0])
	}
}

func TestCost(t *testing.T) {
	e := start(t, planned("events 10", "cost {vars.cost} default 2 max 6"))
	e.body("granted 10 7", alice, "http://a.test/", takes("3"))
	// All or nothing: what does not fit is charged nowhere, and what is cheaper
	// may fit.
	e.body("granted 10 1", alice, "http://a.test/", takes("6"))
	a := e.refused(alice, "http://a.test/", takes("2"))
	if a.Header.Get("Retry-After") == "" {
		t.Error("a cost that will fit later: no Retry-After")
	}
	e.body("granted 10 0", alice, "http://a.test/", takes("1"))

	for i, row := range []struct{ cost, left string }{
		{"", "8"}, {"x", "8"}, {"1.5", "8"}, {"1e3", "8"}, {"0x3", "8"}, {" 3", "8"}, // no whole number: the default
		{"7", "4"}, {"99999999999999999999", "4"}, // above max
		{"0", "9"}, {"-5", "9"}, {"-99999999999999999999", "9"}, // below 1
		{"06", "4"},
	} {
		from := "203.0.113." + string(rune('1'+i%9))
		if i >= 9 {
			from = "198.51.100.2" + string(rune('0'+i-9))
		}
		e.body("granted 10 "+row.left, from, "http://a.test/", takes(row.cost))
	}
	e.sample("replaced_values_total", "missing cost api", 1)
	e.sample("replaced_values_total", "no_number cost api", 5)
	e.sample("replaced_values_total", "above_max cost api", 2)
}

// A request that costs nothing is neither limited nor counted, but only where the
// operator says so.
func TestCostOfNothing(t *testing.T) {
	e := start(t, planned("events 1", "cost {vars.cost} default 1 max 6 min 0"))
	e.body("exempt  ", alice, "http://a.test/", takes("0"))
	e.granted(1, alice, "http://a.test/")
	e.body("exempt  ", alice, "http://a.test/", takes("-1"))
	e.refused(alice, "http://a.test/", takes("1"))
}

// A request that takes more than the limit is refused, and waiting does not help.
func TestTooCostly(t *testing.T) {
	e := start(t, planned(table, "cost {vars.cost} default 1 max 100"))
	for range 3 {
		a := e.refused(alice, "http://a.test/", is("pro"), takes("6"))
		a.header(t, "Retry-After", "")
		a.header(t, "RateLimit-Policy", `"api";q=5;w=3600`)
		a.header(t, "RateLimit", "")
		a.header(t, "X-RateLimit-Limit", "5")
		a.header(t, "X-RateLimit-Remaining", "")
		if !strings.Contains(a.body, "more than the whole limit") {
			t.Errorf("too costly: got %s", a.body)
		}
	}
	e.body("granted 5 0", alice, "http://a.test/", is("pro"), takes("5"))
	e.get(alice, "http://a.test/", is("partner"), takes("100"))
}

// A fixed cost, next to a zone that counts each request once.
func TestFixedCost(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone each {
			events 10
			window 1h
		}
		zone searches {
			match path /search
			events 12
			cost 5
			window 1h
		}
	}
	respond "{http.distributed_ratelimit.zone} {http.distributed_ratelimit.remaining}"
}`)
	e.body("searches 7", alice, "http://a.test/search")
	e.body("searches 2", alice, "http://a.test/search")
	e.refused(alice, "http://a.test/search")
	e.body("each 7", alice, "http://a.test/")
}

// A key or a plan that authentication sets is empty where authentication comes
// later: one warning says so, and names the remedy.
func TestAuthenticationThatComesLater(t *testing.T) {
	for word, options := range map[string]string{
		"key":  "key {http.auth.user.id}\nevents 5",
		"tier": "tier {http.auth.user.plan} {\nfree 5\ndefault free\n}",
		"cost": "cost {http.auth.user.cost} default 1 max 5\nevents 5",
	} {
		t.Run(word, func(t *testing.T) {
			e := start(t, planned(options))
			e.log.says(0, "nobody was authenticated")
			e.granted(3, alice, "http://a.test/")
			for _, line := range e.log.says(1, "nobody was authenticated when this "+word+" was read") {
				if !strings.Contains(line["msg"].(string), "into a route") || line["zone"] != "api" || line[word] == nil {
					t.Errorf("warning: got %v", line)
				}
			}
		})
	}
}
