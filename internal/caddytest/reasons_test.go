package caddytest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Every refusal has a reason: in the placeholder, the log line and the metric, whose
// series are there from the start.
func TestReasons(t *testing.T) {
	for reason, row := range map[string]struct {
		options string
		status  int
		limit   any
		grants  int
	}{
		"limit":      {"events 2\nwindow 1h", 429, 2.0, 2},
		"zero":       {"events 0\nwindow 1h", 429, 0.0, 0},
		"too_costly": {"events 2\nwindow 1h\ncost {vars.cost} default 3 max 9", 429, 2.0, 0},
		"empty_key":  {"events 2\nwindow 1h\nkey {header.X-User}\non_empty_key deny", 403, 2.0, 0},
	} {
		t.Run(reason, func(t *testing.T) {
			e := start(t, `
http://a.test {
	log
	log_append why {http.distributed_ratelimit.reason}
	distributed_ratelimit {
		status 429
		zone z {
			`+row.options+`
		}
	}
	respond "[{http.distributed_ratelimit.reason}]"
	handle_errors {
		respond "{http.distributed_ratelimit.reason} {http.distributed_ratelimit.zones.z.reason}"
	}
}`)
			e.sample("refusals_total", "refused "+reason+" z", 0)
			e.sample("requests_total", "granted store z", 0)
			for range row.grants {
				e.body("[]", alice, "http://a.test/")
			}
			for range 2 {
				if a := e.status(row.status, alice, "http://a.test/some/path?secret=x"); a.body != reason+" "+reason {
					t.Errorf("placeholders of the reason: got %q, want %q twice", a.body, reason)
				}
			}
			e.sample("refusals_total", "refused "+reason+" z", 2)
			for _, line := range e.log.says(2, "request refused") {
				for field, want := range map[string]any{
					"reason": reason, "zone": "z", "status": float64(row.status), "limit": row.limit, "window": 3600.0,
					"host": "a.test", "method": "GET", "path": "/some/path", "dry_run": false,
				} {
					if line[field] != want {
						t.Errorf("line of a refusal: %s is %v, want %v", field, line[field], want)
					}
				}
			}
			for _, line := range e.log.find("handled request")[row.grants:] {
				if line["why"] != reason {
					t.Errorf("access log: got reason %v, want %s", line["why"], reason)
				}
			}
		})
	}
}

func TestReasonWhileTheStoreIsAway(t *testing.T) {
	e, f := remote(t, 1, "distributed_ratelimit 10 1h z {\non_store_error deny\n}")
	e.sample("refusals_total", "refused store_away z", 0)
	e.sample("requests_total", "granted lease z", 0)
	e.sample("requests_total", "refused cache z", 0)
	f.breaks(errAway)
	a := e.status(http.StatusServiceUnavailable, alice, "http://a.test/", with("Accept", "text/html"))
	a.header(t, "Retry-After", "1")
	if !strings.Contains(a.body, "<h1>Limits cannot be checked at the moment</h1>") {
		t.Errorf("page while the store is away: %s", a.body)
	}
	e.sample("refusals_total", "refused store_away z", 1)
	for _, line := range e.log.says(1, "request refused") {
		if line["reason"] != "store_away" || line["status"] != 503.0 || line["retry_after"] != 1.0 {
			t.Errorf("line of a refusal: got %v", line)
		}
	}
}

// What a stranger writes does not fill the log.
func TestRefusalLinesAreBounded(t *testing.T) {
	e := start(t, "http:// {\ndistributed_ratelimit {\nlog_key\nzone z {\nevents 0\nwindow 1h\nkey {header.X-User}\n}\n}\n}")
	long := strings.Repeat("é", 50_000)
	a := e.get(alice, "http://a.test/"+strings.Repeat("p", 50_000), with("X-User", long), func(r *http.Request) { r.Host = strings.Repeat("h", 10_000) })
	if a.StatusCode != http.StatusTooManyRequests {
		t.Fatalf("got status %d, want 429", a.StatusCode)
	}
	for _, line := range e.log.says(1, "request refused") {
		for _, field := range []string{"host", "path", "key"} {
			if n := len(line[field].(string)); n < 200 || n > 300 {
				t.Errorf("%s of the line has %d bytes, want about 256", field, n)
			}
		}
	}
}

// A dry run says what would have been, and takes nothing from a zone in force.
func TestDryRunTakesNoPlaceholders(t *testing.T) {
	const tell = `respond "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.zone} {http.distributed_ratelimit.reason} ` +
		`{http.distributed_ratelimit.zones.trial.reason} {http.distributed_ratelimit.zones.force.remaining}"`
	for name, order := range map[string][2]string{"first": {"trial", "force"}, "last": {"force", "trial"}} {
		zones := map[string]string{
			"trial": "zone trial {\nevents 0\nwindow 1h\ndry_run\n}",
			"force": "zone force {\nevents 5\nwindow 1h\n}",
		}
		t.Run(name, func(t *testing.T) {
			e := start(t, "http://a.test {\ndistributed_ratelimit {\n"+zones[order[0]]+"\n"+zones[order[1]]+"\n}\n"+tell+"\n}\n"+
				"http://b.test {\nroute {\ndistributed_ratelimit {\n"+zones[order[0]]+"\n}\ndistributed_ratelimit {\n"+zones[order[1]]+"\n}\n"+tell+"\n}\n}")
			e.sample("refusals_total", "dry_run zero trial", 0)
			e.body("granted force  zero 4", alice, "http://a.test/")
			e.body("granted force  zero 4", bob, "http://b.test/")
			e.sample("refusals_total", "dry_run zero trial", 2)
			for _, line := range e.log.says(2, "request would be refused") {
				if line["dry_run"] != true || line["reason"] != "zero" || line["status"] != 429.0 {
					t.Errorf("line of a dry run: got %v", line)
				}
			}
			e.log.says(0, "request refused")
		})
	}
	e := start(t, "http://a.test {\ndistributed_ratelimit 0 1h trial {\ndry_run\n}\n"+tell+"\n}")
	e.body("dry_run trial zero zero ", alice, "http://a.test/")
}

// A hidden zone limits, but no client learns of it.
func TestHiddenZones(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		ratelimit_headers draft legacy always
		zone all.of-them {
			key all
			events 2
			window 1h
			hide
		}
		zone each {
			events 10
			window 1h
		}
	}
	respond "{http.distributed_ratelimit.zones.all.of-them.remaining} {http.distributed_ratelimit.zones.each.limit} {http.distributed_ratelimit.zones.none.limit}."
}`)
	a := e.get(alice, "http://a.test/")
	if a.body != "1 10 ." {
		t.Errorf("placeholders of zones: got %q, want %q", a.body, "1 10 .")
	}
	a.header(t, "RateLimit-Policy", `"each";q=10;w=3600`)
	a.header(t, "X-RateLimit-Limit", "10")
	e.granted(1, bob, "http://a.test/")
	a = e.refused(bob, "http://a.test/")
	a.header(t, "RateLimit-Policy", `"each";q=10;w=3600`)
	a.header(t, "RateLimit", `"each";r=9;t=3600`)
	if strings.Contains(a.body, "all") || strings.Contains(a.body, "violated-policies") {
		t.Errorf("body of a refusal by a hidden zone: %s", a.body)
	}
	if a.Header.Get("Retry-After") == "" {
		t.Error("refusal by a hidden zone: no Retry-After")
	}
}

// What zones decided is told by their names, over several handlers and in error
// routes.
func TestPlaceholdersOfZones(t *testing.T) {
	const told = "{http.distributed_ratelimit.zones.a.limit} {http.distributed_ratelimit.zones.a.remaining} {http.distributed_ratelimit.zones.a.reset} " +
		"[{http.distributed_ratelimit.zones.a.reason}] {http.distributed_ratelimit.zones.b.c.limit} {http.distributed_ratelimit.zones.b.c.remaining} [{http.distributed_ratelimit.zones.b.c.reason}]"
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 5 1h a
		distributed_ratelimit 2 1h b.c
		respond "`+told+`"
	}
	handle_errors {
		respond "`+told+`"
	}
}`)
	e.told("5 4 HOUR [] 2 1 []", e.get(alice, "http://a.test/").body)
	e.told("5 3 HOUR [] 2 0 []", e.get(alice, "http://a.test/").body)
	e.told("5 2 HOUR [] 2 0 [limit]", e.refused(alice, "http://a.test/").body)
}

// An exemption of the handler holds for all of its zones.
func TestExemptionOfTheHandler(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		exempt client_ip 198.51.100.0/24
		exempt path /health
		zone each {
			events 1
			window 1h
		}
		zone logins {
			match path /login
			events 0
			window 1h
		}
	}
	respond "{http.distributed_ratelimit.outcome}"
}`)
	for range 5 {
		e.body("exempt", alice, "http://a.test/login")
		e.body("exempt", "203.0.113.1", "http://a.test/health")
	}
	e.body("granted", "203.0.113.1", "http://a.test/")
	e.refused("203.0.113.1", "http://a.test/")
	e.refused("203.0.113.2", "http://a.test/login")
	e.sample("requests_total", "exempt policy each", 10)
	e.sample("requests_total", "exempt policy logins", 5)
}

// A browser gets a page, a program gets JSON.
func TestPageForBrowsers(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h
}
http://problem.test {
	distributed_ratelimit 0 1h no {
		refusal problem
	}
}
http://error.test {
	distributed_ratelimit 0 1h no
	handle_errors {
		respond "mine"
	}
}`)
	e.granted(1, alice, "http://a.test/")
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
	for accept, html := range map[string]bool{
		browser: true, "text/html": true, "TEXT/HTML;level=1": true, "text/*": true, "text/html, */*": true, "text/html;q=0.5, application/json;q=0.4": true,
		"": false, "*/*": false, "application/json": false, "application/json, text/html": false, "application/json, text/plain, */*": false,
		"text/html;q=0.4, application/json;q=0.5": false, "text/html;q=0": false, "text/html;q=0, */*": false, "text/html;q=2": false, "text/html;q=NaN": false,
		"application/problem+json;q=0.9, text/html;q=0.8": false, "image/png": false, ";;,,;q=": false, strings.Repeat("x/y,", 1000) + "text/html": false,
	} {
		a := e.refused(alice, "http://a.test/", with("Accept", accept))
		if got := strings.HasPrefix(a.Header.Get("Content-Type"), "text/html"); got != html {
			t.Errorf("Accept: %.60s: got a page: %v, want %v", accept, got, html)
		}
		if a.Header.Get("Retry-After") == "" || a.Header.Get("Content-Length") != fmt.Sprint(len(a.body)) {
			t.Errorf("Accept: %.60s: headers %v of a body of %d bytes", accept, a.Header, len(a.body))
		}
	}
	a := e.refused(alice, "http://a.test/<script>alert(1)</script>", with("Accept", browser))
	for _, want := range []string{`<html lang="en">`, "<title>Too many requests</title>", "try again in 3600 s", "color-scheme", "prefers-color-scheme: dark", "viewport"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the page lacks %q:\n%s", want, a.body)
		}
	}
	for _, never := range []string{"<script", "http:", "https:", "src=", "url("} {
		if strings.Contains(a.body, never) {
			t.Errorf("the page has %q", never)
		}
	}
	e.refused(alice, "http://problem.test/", with("Accept", browser)).header(t, "Content-Type", "application/problem+json")
	if a := e.refused(alice, "http://error.test/", with("Accept", browser)); a.body != "mine" {
		t.Errorf("with handle_errors: got %q", a.body)
	}
}

// Five visitors through one CDN share a limit, and one line says why. Where the peer
// is trusted nothing is said.
func TestForwardingHeadersOfUntrustedPeers(t *testing.T) {
	const warning = "a peer that is not trusted names its client in a header"
	const site = "http://a.test {\ndistributed_ratelimit 3 1h {\n%s\n}\nrespond ok\n}\nhttp://b.test {\ndistributed_ratelimit 100 1h\nrespond ok\n}"
	for _, header := range []string{"X-Forwarded-For", "Forwarded", "CF-Connecting-IP", "X-Real-IP", "True-Client-IP"} {
		e := start(t, fmt.Sprintf(site, ""))
		e.granted(1, bob, "http://b.test/")
		e.log.says(0, warning)
		for visitor := range 5 {
			e.get(alice, "http://a.test/", with(header, fmt.Sprintf("203.0.113.%d", visitor)))
			e.get(bob, "http://b.test/", with(header, "203.0.113.1"))
		}
		e.refused(alice, "http://a.test/")
		for _, line := range e.log.says(1, warning) {
			if line["peer"] != alice || !strings.EqualFold(line["header"].(string), header) || line["level"] != "warn" || strings.Contains(fmt.Sprint(line), "203.0.113") {
				t.Errorf("warning: got %v, want the peer %s and the header %s", line, alice, header)
			}
		}
	}
	e := start(t, fmt.Sprintf(site, "trusted_proxies static 198.51.100.0/24"))
	for visitor := range 5 {
		e.granted(1, alice, "http://a.test/", with("X-Forwarded-For", fmt.Sprintf("203.0.113.%d", visitor)))
		e.granted(1, alice, "http://a.test/", with("CF-Connecting-IP", "203.0.113.9"), with("X-Forwarded-For", fmt.Sprintf("203.0.113.%d", 10+visitor)))
	}
	e.log.says(0, warning)
	e.get("192.0.2.77", "http://a.test/", with("X-Forwarded-For", "203.0.113.1"))
	e.log.says(1, warning)
}

// A zone that needs the body is decided by itself, after the others: the request takes
// one slot all the same, and gives it back once.
func TestSlotsNextToBodies(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone slots {
			concurrent 1
		}
		zone account {
			key {form.user}
			events 2
			window 1h
		}
	}
	respond "ok"
}`)
	e.sample("refusals_total", "refused busy slots", 0)
	e.sample("refusals_total", "refused empty_key account", 0)
	for i, want := range []int{200, 200, 429, 429} {
		a := e.send(alice, http.MethodPost, "http://a.test/", func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Body = io.NopCloser(strings.NewReader("user=me"))
			r.ContentLength = 7
		})
		if a.StatusCode != want {
			t.Errorf("request %d: got status %d (%s), want %d", i+1, a.StatusCode, a.body, want)
		}
		e.sample("in_flight", "slots", 0)
	}
	e.sample("refusals_total", "refused busy slots", 0)
	e.sample("refusals_total", "refused limit account", 2)
}
