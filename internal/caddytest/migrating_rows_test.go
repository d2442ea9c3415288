package caddytest

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const (
	siteA   = "http://a.test/"
	oneHour = "window 1h"
	twoAnH  = "events 2;" + oneHour
)

// lobby lets requests for /wait wait in the site's last handler.
type lobby struct {
	e     *edge
	begun chan struct{}
	end   chan struct{}
	all   sync.WaitGroup
}

// waitingSite runs a directive in front of a handler in which requests for /wait
// wait until the test ends, or release.
func waitingSite(t *testing.T, directive string) *lobby {
	t.Helper()
	w := &lobby{begun: make(chan struct{}, 100), end: make(chan struct{})}
	var play act = func(rw http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
		if r.URL.Path == "/wait" {
			w.begun <- struct{}{}
			<-w.end
		}
		_, err := rw.Write([]byte("hello"))
		return err
	}
	invite(t, "waiting of "+t.Name(), play)
	w.e = start(t, "http://a.test {\n"+directive+"\nstage \"waiting of "+t.Name()+"\"\n}")
	t.Cleanup(w.release)
	return w
}

// hold begins n requests that stay in flight.
func (w *lobby) hold(n int, from string) {
	w.e.t.Helper()
	server := w.e.server("80")
	for range n {
		w.all.Go(func() { w.e.sendTo(server, from, http.MethodGet, siteA+"wait") })
		select {
		case <-w.begun:
		case <-time.After(30 * time.Second):
			w.e.t.Fatal("a request that fits does not come through")
		}
	}
}

func (w *lobby) release() {
	select {
	case <-w.end:
	default:
		close(w.end)
		w.all.Wait()
	}
}

// handlerInJSON runs a handler in JSON in front of a greeting.
func handlerInJSON(t *testing.T, handler string) *edge {
	t.Helper()
	e := start(t, "http://a.test {\nrespond \"hello\"\n}")
	var cfg, part map[string]any
	if err := json.Unmarshal(adapted(t, "http://a.test {\nrespond \"hello\"\n}"), &cfg); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(handler), &part); err != nil {
		t.Fatal(err)
	}
	server := dig(cfg, "apps", "http", "servers", "srv0").(map[string]any)
	routes := server["routes"].([]any)
	server["routes"] = append([]any{map[string]any{"handle": []any{part}}}, routes...)
	config, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(e.fit(config), true); err != nil {
		t.Fatalf("loading %s: %v", config, err)
	}
	return e
}

// jsonRejected expects that a handler in JSON is not taken, with a word of the error.
func jsonRejected(t *testing.T, handler, word string) {
	t.Helper()
	config := `{"apps": {"http": {"servers": {"s": {"routes": [{"handle": [` + handler + `]}]}}}}}`
	var cfg caddy.Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&cfg); err == nil || !strings.Contains(err.Error(), word) {
		t.Errorf("%s: error %v, want one that says %q", handler, err, word)
	}
}

// storeOf is the store of the global option, in JSON.
func storeOf(t *testing.T, store string) string {
	t.Helper()
	var cfg map[string]any
	config := adapted(t, "{\ndistributed_ratelimit {\n"+store+"\n}\n}\nhttp://a.test {\ndistributed_ratelimit 1 1h\n}")
	if err := json.Unmarshal(config, &cfg); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(dig(cfg, "apps", "distributed_ratelimit", "store"))
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func retryAfter(t *testing.T, a reply) int {
	t.Helper()
	n, err := strconv.Atoi(a.Header.Get("Retry-After"))
	if err != nil {
		t.Fatalf("Retry-After %q: %v", a.Header.Get("Retry-After"), err)
	}
	return n
}

func post(r *http.Request) { r.Method = http.MethodPost }

var fromCaddyRatelimit = migrationRows{
	"order rate_limit": func(t *testing.T) {
		e := limitedSite(t, zonesOf("match path /asked;"+twoAnH), "rewrite /asked /rewritten")
		e.grants(2, alice, siteA+"asked")
	},
	"zone": func(t *testing.T) {
		// A refusal by one zone costs the others nothing; one name is one limit.
		e := limitedSite(t, zonesOf("events 3;"+oneHour, "match path /b;events 1;"+oneHour))
		if got := e.grantedOf(5, alice, siteA+"b"); got != 1 {
			t.Errorf("%d granted, want 1", got)
		}
		e.grants(2, alice, siteA)

		e = start(t, "http://a.test {\ndistributed_ratelimit 3 1h one\nrespond hello\n}\nhttp://b.test {\ndistributed_ratelimit 3 1h one\nrespond hello\n}")
		e.granted(1, alice, siteA)
		e.grants(2, alice, "http://b.test/")
	},
	"match": func(t *testing.T) {
		e := limitedSite(t, zonesOf("match {;method POST;path /x;};match path /y;"+twoAnH))
		e.granted(1, alice, siteA+"x", post)
		e.grants(1, alice, siteA+"y")
		e.granted(5, alice, siteA+"x")
		b := limitedSite(t, zonesOf("match broken;"+twoAnH))
		if got := b.get(alice, siteA).StatusCode; got < 400 || got == http.StatusTooManyRequests {
			t.Errorf("a matcher that fails: status %d, want its error", got)
		}
	},
	"key": func(t *testing.T) {
		e := limitedSite(t, zonesOf(twoAnH))
		e.grants(2, alice, siteA)
		e.grants(2, bob, siteA)
		e = limitedSite(t, zonesOf("key static;"+twoAnH))
		e.granted(1, alice, siteA)
		e.grants(1, bob, siteA)
		e = limitedSite(t, zonesOf("key {header.X-Key};"+twoAnH))
		e.grants(2, alice, siteA)
		e.grants(2, bob, siteA)
		e.grants(2, bob, siteA, with("X-Key", "k"))
	},
	"{remote_host}": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit {\ntrusted_proxies static 192.0.2.0/24\nzone x {\nevents 2\nwindow 1h\n}\n}")
		e.grants(2, alice, siteA)
		e.grants(2, "192.0.2.1", siteA, with("X-Forwarded-For", "203.0.113.77"))
		e.refused("192.0.2.9", siteA, with("X-Forwarded-For", "203.0.113.77"))
		e.granted(1, "192.0.2.9", siteA, with("X-Forwarded-For", "203.0.113.78"))
	},
	"events": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 0 1h")
		e.refused(alice, siteA).header(t, "Retry-After", "")
	},
	"window": func(t *testing.T) {
		limitedSite(t, "distributed_ratelimit 1 1s")
		limitedSite(t, "distributed_ratelimit 1 30d")
		rejected(t, "distributed_ratelimit 1 500ms", "1s and 30d")
		rejected(t, "distributed_ratelimit 1 31d", "1s and 30d")
	},
	"ipv6_prefix": func(t *testing.T) {
		e := limitedSite(t, zonesOf(twoAnH))
		e.granted(1, "[2001:db8::1]:1", siteA)
		e.grants(1, "[2001:db8::2]:1", siteA)
		e = limitedSite(t, zonesOf("ipv6_prefix 128;"+twoAnH))
		e.grants(2, "[2001:db8::1]:1", siteA)
		e.grants(2, "[2001:db8::2]:1", siteA)
	},
	"read_interval":  func(t *testing.T) { rejected(t, zonesOf(twoAnH+";read_interval 1s"), "unknown option") },
	"write_interval": func(t *testing.T) { rejected(t, zonesOf(twoAnH+";write_interval 1s"), "unknown option") },
	"purge_age":      func(t *testing.T) { rejected(t, zonesOf(twoAnH+";purge_age 1s"), "unknown option") },
	"sweep_interval": func(t *testing.T) {
		rejected(t, "distributed_ratelimit {\nzone z {\nevents 1\nwindow 1h\n}\nsweep_interval 1m\n}", "nothing needs to be swept; remove it")
	},
	"disable_metrics": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 2 1h x")
		e.granted(1, alice, siteA)
		e.granted(1, bob, siteA)
		for labels := range e.series("requests_total") {
			if strings.Contains(labels, alice) || !strings.HasSuffix(labels, " x") {
				t.Errorf("a series with labels %q", labels)
			}
		}
	},
	"caddy_rate_limit_*": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 1 1h x")
		e.granted(1, alice, siteA)
		e.refused(alice, siteA)
		for labels, n := range e.series("requests_total") {
			if n != 1 || !strings.Contains(labels, "granted") && !strings.Contains(labels, "refused") {
				t.Errorf("a series with labels %q: %v", labels, n)
			}
		}
	},
	"jitter": func(t *testing.T) {
		for _, share := range []string{"0.2", "20%"} {
			e := limitedSite(t, "distributed_ratelimit 1 1h {\njitter "+share+"\n}")
			e.granted(1, alice, siteA)
			n := retryAfter(t, e.refused(alice, siteA))
			if n < 3590 || n > 3600*12/10+1 {
				t.Errorf("Retry-After %d, want 3600 to 4320", n)
			}
		}
	},
	"log_key": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 1 1h {\nlog_key\n}")
		e.granted(1, alice, siteA)
		for range 10 {
			e.refused(alice, siteA)
		}
		lines := e.log.find("request refused")
		if len(lines) == 0 || len(lines) > 9 || lines[0]["key"] != alice {
			t.Errorf("%d lines of ten refusals: %v", len(lines), lines)
		}
	},
	"{http.rate_limit.exceeded.name}": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 1 1h x",
			"header >X-Zone \"{http.distributed_ratelimit.zone} {http.distributed_ratelimit.outcome}\"",
			"handle_errors {\nrespond \"{http.distributed_ratelimit.zone} {http.distributed_ratelimit.outcome}\"\n}")
		e.get(alice, siteA).header(t, "X-Zone", "x granted")
		e.body("x refused", alice, siteA)
	},
	"Retry-After": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 1 1h x")
		e.granted(1, alice, siteA)
		a := e.refused(alice, siteA)
		if n := retryAfter(t, a); n < 3590 || n > 3600 {
			t.Errorf("Retry-After %d, want an hour", n)
		}
		a.header(t, "RateLimit-Policy", `"x";q=1;w=3600`)
	},
	"handle_errors": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 0 1h", "handle_errors 429 {\nrespond \"slow down\" 429\n}")
		e.body("slow down", alice, siteA)
		e = limitedSite(t, "distributed_ratelimit 0 1h")
		e.refused(alice, siteA).header(t, "Content-Type", "application/problem+json")
		e.refused(alice, siteA, with("Accept", "text/html")).header(t, "Content-Type", "text/html; charset=utf-8")
	},
	`"handler": "rate_limit"`: func(t *testing.T) {
		e := handlerInJSON(t, `{"handler": "distributed_ratelimit", "zones": [{"name": "z", "events": 2, "window": "1h"}]}`)
		e.grants(2, alice, siteA)
	},
	`"rate_limits"`: func(t *testing.T) {
		e := handlerInJSON(t, `{"handler": "distributed_ratelimit", "zones": [{"name": "a", "events": 3, "window": "1h"}, {"name": "b", "events": 2, "window": "1h"}]}`)
		e.grants(2, alice, siteA)
	},
	`"max_events"`: func(t *testing.T) {
		e := handlerInJSON(t, `{"handler": "distributed_ratelimit", "zones": [{"name": "z", "events": 4, "window": "1h"}]}`)
		e.grants(4, alice, siteA)
	},
	`"match"`: func(t *testing.T) {
		e := handlerInJSON(t, `{"handler": "distributed_ratelimit", "zones": [{"name": "z", "match": [{"method": ["POST"]}], "events": 2, "window": "1h"}]}`)
		e.grants(2, alice, siteA, post)
		e.granted(3, alice, siteA)
	},
	`"key", "window"`: func(t *testing.T) {
		e := handlerInJSON(t, `{"handler": "distributed_ratelimit", "zones": [{"name": "z", "key": "static", "events": 2, "window": 3600000000000}]}`)
		e.granted(1, alice, siteA)
		e.grants(1, bob, siteA)
	},
	`"ipv4_prefix", "ipv6_prefix"`: func(t *testing.T) {
		e := handlerInJSON(t, `{"handler": "distributed_ratelimit", "zones": [{"name": "z", "ipv4_prefix": 24, "ipv6_prefix": 128, "events": 2, "window": "1h"}]}`)
		e.granted(1, "198.51.100.1", siteA)
		e.grants(1, "198.51.100.2", siteA)
		e.grants(2, "[2001:db8::1]:1", siteA)
		e.grants(2, "[2001:db8::2]:1", siteA)
		jsonRejected(t, `{"handler": "distributed_ratelimit", "zones": [{"name": "z", "ipv6_prefix": 0, "events": 2, "window": "1h"}]}`, "ipv6_prefix")
	},
	`"jitter", "log_key"`: func(t *testing.T) {
		e := handlerInJSON(t, `{"handler": "distributed_ratelimit", "jitter": 0.2, "log_key": true, "zones": [{"name": "z", "events": 1, "window": "1h"}]}`)
		e.granted(1, alice, siteA)
		if n := retryAfter(t, e.refused(alice, siteA)); n < 3590 || n > 4321 {
			t.Errorf("Retry-After %d, want 3600 to 4320", n)
		}
		if lines := e.log.find("request refused"); len(lines) != 1 || lines[0]["key"] != alice {
			t.Errorf("the log has %v", lines)
		}
	},
	`"sweep_interval", "disable_metrics"`: func(t *testing.T) {
		for _, field := range []string{"sweep_interval", "disable_metrics"} {
			jsonRejected(t, `{"handler": "distributed_ratelimit", "`+field+`": null, "zones": [{"name": "z", "events": 1, "window": "1h"}]}`, field)
		}
	},
	`"distributed", "storage"`: func(t *testing.T) {
		if got := storeOf(t, "store redis {env.REDIS_URL}"); got != `{"module":"redis","url":"{env.REDIS_URL}"}` {
			t.Errorf("the store is %s", got)
		}
	},
}

var fromNginx = migrationRows{
	"limit_req_zone": func(t *testing.T) {
		e := limitedSite(t, zonesOf("events 3;"+oneHour))
		e.grants(3, alice, siteA)
	},
	"key": func(t *testing.T) {
		e := limitedSite(t, zonesOf("key {host};"+twoAnH))
		e.granted(1, alice, siteA)
		e.grants(1, bob, siteA)
		e = limitedSite(t, zonesOf("key {header.X-Api-Key};"+twoAnH))
		e.grants(2, alice, siteA, with("X-Api-Key", "one"))
		e.grants(2, alice, siteA, with("X-Api-Key", "two"))
	},
	"rate": func(t *testing.T) {
		// All at once, but for a machine that takes longer than the window for ten.
		e := limitedSite(t, zonesOf("events 10;window 1h"))
		e.grants(10, alice, siteA)
	},
	"burst": func(t *testing.T) {
		// The page's own numbers: 21 at once, and not one more.
		e := migrated(t, "nginx")
		began := time.Now()
		got := e.grantedOf(60, alice, "http://a.test:8080/")
		if took := time.Since(began); got < 21 || got > 21*(1+int(took/(2100*time.Millisecond))) {
			t.Errorf("%d of 60 granted in %v, want 21", got, took)
		}
	},
	"limit_req_status": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 0 1h {\nstatus 503\n}")
		e.status(503, alice, siteA)
		e = limitedSite(t, "distributed_ratelimit 0 1h")
		e.status(429, alice, siteA)
	},
	"limit_req_dry_run": func(t *testing.T) {
		e := limitedSite(t, zonesOf("dry_run;events 1;"+oneHour, "events 3;"+oneHour))
		e.grants(3, alice, siteA)
		if len(e.log.find("request would be refused")) == 0 {
			t.Error("nothing in the log")
		}
	},
	"$limit_req_status": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit {\nexempt path /free\nzone x {\nevents 1\nwindow 1h\n}\nzone y {\nmatch path /dry\nevents 0\nwindow 1h\ndry_run\n}\n}",
			"header >X-Outcome {http.distributed_ratelimit.outcome}", "handle_errors {\nheader X-Outcome {http.distributed_ratelimit.outcome}\nrespond sorry\n}")
		e.get(alice, siteA+"free").header(t, "X-Outcome", "exempt")
		e.get(alice, siteA).header(t, "X-Outcome", "granted")
		e.get(alice, siteA).header(t, "X-Outcome", "refused")
		e = limitedSite(t, zonesOf("dry_run;events 0;"+oneHour), "header >X-Outcome {http.distributed_ratelimit.outcome}")
		e.get(alice, siteA).header(t, "X-Outcome", "dry_run")
	},
	"several limit_req": func(t *testing.T) { fromCaddyRatelimit["zone"](t) },
	"limit_req in http, server and location": func(t *testing.T) {
		e := limitedSite(t, zonesOf("events 10;"+oneHour), "handle /b {\n"+strings.Replace(zonesOf("events 2;"+oneHour), "za", "zb", 1)+"\nrespond hello\n}")
		e.grants(2, alice, siteA+"b") // of five, which the first directive charges
		e.grants(5, alice, siteA)
	},
	"empty key": func(t *testing.T) {
		e := limitedSite(t, zonesOf("key {header.X-Key};on_empty_key skip;"+twoAnH))
		e.granted(5, alice, siteA)
		e.grants(2, alice, siteA, with("X-Key", "k"))
		e = limitedSite(t, zonesOf("key {header.X-Key};"+twoAnH))
		e.grants(2, alice, siteA)
	},
	"geo, map": func(t *testing.T) {
		e := limitedSite(t, zonesOf("exempt client_ip 10.0.0.0/8;"+twoAnH))
		e.granted(5, "10.1.2.3", siteA)
		e.grants(2, alice, siteA)
		e = start(t, "http://a.test {\nroute {\nmap {header.X-Who} {plan} {\ncarol pro\ndefault free\n}\ndistributed_ratelimit {\nzone x {\nwindow 1h\ntier {plan} {\npro 4\ndefault 1\n}\n}\n}\nrespond hello\n}\n}")
		e.grants(1, alice, siteA)
		e.grants(4, bob, siteA, with("X-Who", "carol"))
	},
	"limit_conn_zone": func(t *testing.T) {
		w := waitingSite(t, zonesOf("concurrent 2"))
		w.hold(2, alice)
		w.e.refused(alice, siteA)
		w.e.granted(1, bob, siteA)
	},
	"limit_conn": func(t *testing.T) {
		w := waitingSite(t, zonesOf("concurrent 2"))
		w.hold(1, alice)
		w.e.granted(3, alice, siteA) // one after the other
		w.hold(1, alice)
		w.e.refused(alice, siteA).header(t, "Retry-After", "1")
		w.release()
		w.e.granted(3, alice, siteA)
	},
	"limit_conn_status": func(t *testing.T) {
		w := waitingSite(t, strings.Replace(zonesOf("concurrent 1"), "zone", "status 503\nzone", 1))
		w.hold(1, alice)
		w.e.status(503, alice, siteA)
	},
	"limit_conn_dry_run": func(t *testing.T) {
		w := waitingSite(t, zonesOf("concurrent 1;dry_run"))
		w.hold(3, alice)
		w.e.granted(1, alice, siteA)
		if len(w.e.log.find("request would be refused")) == 0 {
			t.Error("nothing in the log")
		}
	},
	"$limit_conn_status": func(t *testing.T) {
		w := waitingSite(t, strings.Replace(zonesOf("concurrent 1"), "zone", "refusal error\nzone", 1)+
			"\nheader >X-Outcome {http.distributed_ratelimit.outcome}\nhandle_errors {\nrespond {http.distributed_ratelimit.outcome} 429\n}")
		w.e.get(alice, siteA).header(t, "X-Outcome", "granted")
		w.hold(1, alice)
		w.e.body("refused", alice, siteA)
	},
	"Retry-After":    func(t *testing.T) { fromCaddyRatelimit["Retry-After"](t) },
	"error_page 429": func(t *testing.T) { fromCaddyRatelimit["handle_errors"](t) },
}

// fields expects ratelimit_headers to lead to these fields of a first request of two.
func fields(words string, want map[string]string) func(t *testing.T) {
	return func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 2 1h x {\nratelimit_headers "+words+"\n}")
		e.get(alice, siteA).tells(t, want)
	}
}

// failingSite is a site whose answers are what the query asks for, and which counts some.
func failingSite(t *testing.T, countIf string) *edge {
	t.Helper()
	return start(t, "http://a.test {\ndistributed_ratelimit 2 1h {\ncount_if "+countIf+"\n}\nheader /login X-Login failed\nrespond /bad no 401\nrespond hello\n}")
}

var fromExpress = migrationRows{
	"windowMs": func(t *testing.T) { limitedSite(t, "distributed_ratelimit 100 1m").grants(100, alice, siteA) },
	"limit": func(t *testing.T) {
		limitedSite(t, "distributed_ratelimit 7 1h").grants(7, alice, siteA)
		limitedSite(t, "distributed_ratelimit 0 1h").refused(alice, siteA)
	},
	"limit as a function": func(t *testing.T) { fromNginx["geo, map"](t) },
	"message": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 0 1h", "handle_errors 429 {\nrespond \"Too many requests, please try again later.\" 429\n}")
		e.refused(alice, siteA)
		e.body("Too many requests, please try again later.", alice, siteA)
		e = limitedSite(t, "distributed_ratelimit 0 1h")
		e.refused(alice, siteA).header(t, "Content-Type", "application/problem+json")
	},
	"statusCode": func(t *testing.T) { fromNginx["limit_req_status"](t) },
	"handler": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 1 1h x", "handle_errors {\nrespond \"{http.distributed_ratelimit.limit} {http.distributed_ratelimit.remaining} {http.distributed_ratelimit.reason}\" 429\n}")
		e.granted(1, alice, siteA)
		e.body("1 0 limit", alice, siteA)
	},
	"standardHeaders: true": fields("draft6 always", map[string]string{
		"Ratelimit-Policy": "2;w=3600", "Ratelimit-Limit": "2", "Ratelimit-Remaining": "1", "Ratelimit-Reset": "HOUR"}),
	"standardHeaders: 'draft-7'": fields("draft7 always", map[string]string{
		"Ratelimit-Policy": "2;w=3600", "Ratelimit": "limit=2, remaining=1, reset=HOUR"}),
	"standardHeaders: 'draft-8'": fields("draft always", map[string]string{
		"Ratelimit-Policy": `"x";q=2;w=3600`, "Ratelimit": `"x";r=1;t=HOUR`}),
	"legacyHeaders: true": func(t *testing.T) { TestResetAsAMoment(t) },
	"identifier": func(t *testing.T) {
		fields("always", map[string]string{"Ratelimit-Policy": `"x";q=2;w=3600`, "Ratelimit": `"x";r=1;t=HOUR`})(t)
	},
	"retryAfter": func(t *testing.T) { fromCaddyRatelimit["jitter"](t) },
	"req.rateLimit": func(t *testing.T) {
		var seen []string
		b := newBackend(t, func(_ http.ResponseWriter, r *http.Request) { seen = append(seen, r.Header.Get("X-Limit-Remaining")) })
		e := start(t, "http://a.test {\ndistributed_ratelimit 2 1h x\nreverse_proxy "+strings.TrimPrefix(b.URL, "http://")+
			" {\nheader_up X-Limit-Remaining {http.distributed_ratelimit.remaining}\n}\n}")
		e.granted(2, alice, siteA, with("X-Limit-Remaining", "1000"))
		if strings.Join(seen, " ") != "1 0" {
			t.Errorf("the application saw %q", seen)
		}
	},
	"requestPropertyName": func(t *testing.T) {
		var seen string
		b := newBackend(t, func(_ http.ResponseWriter, r *http.Request) { seen = r.Header.Get("X-Left") })
		e := start(t, "http://a.test {\ndistributed_ratelimit 2 1h x\nreverse_proxy "+strings.TrimPrefix(b.URL, "http://")+
			" {\nheader_up X-Left {http.distributed_ratelimit.remaining}\n}\n}")
		e.granted(1, alice, siteA)
		if seen != "1" {
			t.Errorf("the application saw %q", seen)
		}
	},
	"skipFailedRequests": func(t *testing.T) {
		e := failingSite(t, "status 2xx 3xx")
		for range 4 {
			e.status(401, alice, siteA+"bad")
		}
		e.grants(2, alice, siteA)
	},
	"skipSuccessfulRequests": func(t *testing.T) {
		e := failingSite(t, "status 4xx 5xx")
		e.granted(5, alice, siteA)
		e.status(401, alice, siteA+"bad")
		e.status(401, alice, siteA+"bad")
		e.refused(alice, siteA+"bad")
	},
	"requestWasSuccessful": func(t *testing.T) {
		e := failingSite(t, "header X-Login failed")
		e.granted(5, alice, siteA)
		e.grants(2, alice, siteA+"login")
	},
	"keyGenerator": func(t *testing.T) {
		e := limitedSite(t, zonesOf("key {client_ip}+{header.X-Api-Key};"+twoAnH))
		e.grants(2, alice, siteA, with("X-Api-Key", "one"))
		e.grants(2, bob, siteA, with("X-Api-Key", "one"))
		e = limitedSite(t, zonesOf("key {json.user};"+twoAnH))
		body := func(user string) func(r *http.Request) {
			return func(r *http.Request) {
				r.Method = http.MethodPost
				r.Header.Set("Content-Type", "application/json")
				text := `{"user": "` + user + `"}`
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
			}
		}
		e.grants(2, alice, siteA, body("carol"))
		e.grants(2, alice, siteA, body("dave"))
	},
	"ipv6Subnet": func(t *testing.T) {
		e := limitedSite(t, zonesOf("ipv6_prefix 56;"+twoAnH))
		e.granted(1, "[2001:db8:0:1::1]:1", siteA)
		e.grants(1, "[2001:db8:0:2::1]:1", siteA)
		e = limitedSite(t, zonesOf(twoAnH))
		e.grants(2, "[2001:db8:0:1::1]:1", siteA)
		e.grants(2, "[2001:db8:0:2::1]:1", siteA)
	},
	"skip": func(t *testing.T) {
		e := migrated(t, "express-rate-limit")
		e.granted(5, alice, "http://a.test:8080/api/health")
		e.grants(100, alice, "http://a.test:8080/api/")
		e.granted(5, alice, "http://a.test:8080/elsewhere")
	},
	"store: new MemoryStore()": func(t *testing.T) {
		e := start(t, "{\ndistributed_ratelimit {\nstore memory\n}\n}\nhttp://a.test {\ndistributed_ratelimit 2 1h\nrespond hello\n}")
		e.grants(2, alice, siteA)
	},
	"prefix": func(t *testing.T) {
		adapted(t, "{\ndistributed_ratelimit {\nstore redis {env.REDIS_URL} {\nkey_prefix rl2\n}\n}\n}\nhttp://a.test {\ndistributed_ratelimit 2 1h\n}")
	},
	"sendCommandCluster": func(t *testing.T) {
		got := storeOf(t, "store redis redis://redis-1:6379 {\naddress redis-2:6379\ncluster\n}")
		if want := `{"address":["redis-2:6379"],"cluster":true,"module":"redis","url":"redis://redis-1:6379"}`; got != want {
			t.Errorf("the store is %s, want %s", got, want)
		}
	},
	"passOnStoreError": func(t *testing.T) {
		for policy, want := range map[string]int{"allow": 200, "deny": 503, "local": 200} {
			r := newRig(t, policy)
			r.breaks(errAway)
			e := limitedSite(t, "distributed_ratelimit 1 1h {\nstore rig "+policy+"\non_store_error "+policy+"\n}")
			e.status(want, alice, siteA)
			if policy == "local" {
				e.refused(alice, siteA)
			}
		}
	},
	"trust proxy": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 2 1h {\ntrusted_proxies hops 1\n}")
		e.grants(2, "192.0.2.1", siteA, with("X-Forwarded-For", "203.0.113.99, 203.0.113.77"))
		e.refused("192.0.2.1", siteA, with("X-Forwarded-For", "203.0.113.98, 203.0.113.77"))
		e.granted(1, "192.0.2.1", siteA, with("X-Forwarded-For", "203.0.113.77, 203.0.113.99"))
	},
	"resetKey": resets,
	"validate": func(t *testing.T) { rejected(t, "distributed_ratelimit 10 1m {\nlimit 5\n}", "unknown option") },
}

func init() { fromExpress["getKey"] = fromExpress["handler"] }

// resets expects that the admin API looks at a key and gives it its limit back.
func resets(t *testing.T) {
	e := limitedSite(t, "distributed_ratelimit 2 1h api")
	e.grants(2, alice, siteA)
	e.granted(1, bob, siteA)
	const key = "zones/api/keys?client_ip=" + alice
	e.look(key, 2, 0)
	if status, answer := e.admin(http.MethodDelete, key, ""); status != http.StatusOK {
		t.Fatalf("status %d: %s", status, answer)
	}
	e.grants(2, alice, siteA)
	e.granted(1, bob, siteA)
	e.refused(bob, siteA) // whose count has stayed
}
