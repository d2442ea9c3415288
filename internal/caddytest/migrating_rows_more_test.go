package caddytest

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// grantsOf is a test of a site with one zone, which grants so many to each of two
// clients.
func grantsOf(n int, words string) func(t *testing.T) {
	return func(t *testing.T) {
		e := limitedSite(t, zonesOf(words))
		e.grants(n, alice, siteA)
		e.grants(n, bob, siteA)
	}
}

// as is the test of a row in another section, which says the same.
func as(section migrationRows, row string) func(t *testing.T) {
	return func(t *testing.T) {
		test := section[row]
		if test == nil {
			t.Fatalf("there is no test %q", row)
		}
		test(t)
	}
}

func byHeader(t *testing.T) {
	e := limitedSite(t, zonesOf("key {header.X-User};"+twoAnH))
	e.grants(2, alice, siteA, with("X-User", "one"))
	e.refused(bob, siteA, with("X-User", "one"))
	e.grants(2, alice, siteA, with("X-User", "two"))
	e.grants(2, alice, siteA) // by its address
}

func bans(t *testing.T) {
	e := limitedSite(t, zonesOf("events 1;window 1s;block_for 1h"))
	e.granted(1, alice, siteA)
	n := retryAfter(t, e.refused(alice, siteA))
	if n < 3590 || n > 3600 {
		t.Errorf("Retry-After %d, want an hour", n)
	}
	e.granted(1, bob, siteA)
}

var fromUpstash = migrationRows{
	"slidingWindow(30, '60 s')": func(t *testing.T) {
		e := migrated(t, "@upstash/ratelimit")
		e.grants(30, alice, "http://a.test:8080/api/chat", with("X-User", "carol"))
		e.grants(30, bob, "http://a.test:8080/api/chat/more", with("X-User", "dave"))
		e.granted(40, alice, "http://a.test:8080/", with("X-User", "carol"))
	},
	"fixedWindow(30, '60 s')":    grantsOf(30, "events 30;window 60s"),
	"tokenBucket(5, '10 s', 20)": grantsOf(20, "events 20;window 40s"),
	"limit(identifier)":          byHeader,
	"limit(id, { rate })": func(t *testing.T) {
		e := limitedSite(t, zonesOf("cost {header.X-Cost} default 1 max 10;events 12;"+oneHour))
		e.granted(1, alice, siteA, with("X-Cost", "10"))
		e.refused(alice, siteA, with("X-Cost", "3"))
		e.grants(2, alice, siteA)
		e = limitedSite(t, zonesOf("cost {header.X-Cost} default 1 max 10;events 12;"+oneHour))
		e.granted(1, bob, siteA, with("X-Cost", "1000")) // no more than the bound
		e.grants(2, bob, siteA)
	},
	"limit, remaining": as(fromExpress, "req.rateLimit"),
	"reset": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 1 1h", "header >X-Reset {http.distributed_ratelimit.reset}")
		if got := hour(e.get(alice, siteA).Header.Get("X-Reset")); got != "HOUR" {
			t.Errorf("reset is %q", got)
		}
	},
	"reason": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 1 1h", "header >X-Source {http.distributed_ratelimit.source}")
		e.get(alice, siteA).header(t, "X-Source", "store")
	},
	"prefix": as(fromCaddyRatelimit, "zone"),
	"ephemeralCache": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 1 1s")
		e.granted(1, alice, siteA)
		e.refused(alice, siteA)
		eventually(t, func() bool { return e.get(alice, siteA).StatusCode == http.StatusOK })
	},
	"timeout":          as(fromExpress, "passOnStoreError"),
	"enableProtection": bans,
	"deniedValue": func(t *testing.T) {
		e := limitedSite(t, zonesOf("events 1;window 1s;block_for 1h"), "handle_errors {\nrespond {http.distributed_ratelimit.reason} 429\n}")
		e.granted(1, alice, siteA)
		e.refused(alice, siteA)
		e.body("blocked", alice, siteA)
	},
	"getRemaining":    as(fromExpress, "handler"),
	"resetUsedTokens": resets,
}

var fromVercel = migrationRows{
	"If": func(t *testing.T) {
		e := migrated(t, "Vercel's WAF")
		e.granted(105, alice, "http://a.test:8080/api/x") // GET
		e.grants(100, alice, "http://a.test:8080/api/x", post)
		e.granted(3, alice, "http://a.test:8080/", post)
	},
	"Fixed Window":                 grantsOf(100, "events 100;window 60s"),
	"Token Bucket":                 grantsOf(20, "events 20;window 40s"),
	"Time Window":                  as(fromCaddyRatelimit, "window"),
	"Request Limit":                as(fromExpress, "limit"),
	"key: IP address":              as(fromCaddyRatelimit, "ipv6_prefix"),
	"a second group of conditions": as(fromCaddyRatelimit, "match"),
	"several keys":                 as(fromExpress, "keyGenerator"),
	"key: header":                  byHeader,
	"Default (429)":                func(t *testing.T) { limitedSite(t, "distributed_ratelimit 0 1h").status(429, alice, siteA) },
	"Deny": func(t *testing.T) {
		limitedSite(t, "distributed_ratelimit 0 1h {\nstatus 403\n}").status(403, alice, siteA)
	},
	"Log":                as(fromNginx, "limit_req_dry_run"),
	"for a duration":     bans,
	"Bypass":             as(fromExpress, "skip"),
	"checkRateLimit(id)": as(fromExpress, "windowMs"),
	"rateLimitKey":       byHeader,
	"rules for each project": func(t *testing.T) {
		e := start(t, "http://a.test {\ndistributed_ratelimit 2 1h one\nrespond hello\n}\nhttp://b.test {\ndistributed_ratelimit 2 1h other\nrespond hello\n}\nhttp://c.test {\ndistributed_ratelimit 2 1h one\nrespond hello\n}")
		e.grants(2, alice, siteA)
		e.grants(2, alice, "http://b.test/")
		e.grants(0, alice, "http://c.test/")
	},
}

// storeIs is a test of what the words of store redis are in JSON.
func storeIs(words, want string) func(t *testing.T) {
	return func(t *testing.T) {
		if got := storeOf(t, "store redis {\n"+words+"\n}"); got != "{"+want+"}" {
			t.Errorf("the store is %s, want {%s}", got, want)
		}
	}
}

var fromTraefik = migrationRows{
	"average": func(t *testing.T) {
		e := limitedSite(t, "distributed_ratelimit 0 1h")
		e.refused(alice, siteA)
	},
	"period": as(fromCaddyRatelimit, "window"),
	"burst":  grantsOf(20, "events 20;window 1h"),
	"a client that pauses": func(t *testing.T) {
		// Whatever it waits for within the window, what it spent is still spent.
		e := limitedSite(t, "distributed_ratelimit 20 1m")
		e.grants(20, alice, siteA)
		time.Sleep(2100 * time.Millisecond)
		e.refused(alice, siteA)
	},
	"sourceCriterion":                          as(fromExpress, "keyGenerator"),
	"forwardedHeaders.trustedIPs":              as(fromCaddyRatelimit, "{remote_host}"),
	"redis.endpoints":                          as(fromExpress, "sendCommandCluster"),
	"redis.username, redis.password, redis.db": storeIs("username u\npassword {env.P}\ndb 3", `"db":3,"module":"redis","password":"{env.P}","username":"u"`),
	"redis.tls":                                storeIs("tls {\nserver_name r\ninsecure_skip_verify\n}", `"module":"redis","tls":{"insecure_skip_verify":true,"server_name":"r"}`),
	"redis.poolSize":                           storeIs("pool_size 20", `"module":"redis","pool_size":20`),
	"redis.readTimeout, redis.writeTimeout":    storeIs("timeout 3s", `"module":"redis","timeout":3000000000`),
	"redis.dialTimeout":                        storeIs("dial_timeout 5s", `"dial_timeout":5000000000,"module":"redis"`),
	"sourceCriterion.ipStrategy":               as(fromCaddyRatelimit, "{remote_host}"),
	"ipStrategy.depth":                         as(fromExpress, "trust proxy"),
	"ipStrategy.excludedIPs":                   as(fromCaddyRatelimit, "{remote_host}"),
	"ipStrategy.ipv6Subnet":                    as(fromCaddyRatelimit, "ipv6_prefix"),
	"sourceCriterion.requestHeaderName":        byHeader,
	"sourceCriterion.requestHost":              as(fromNginx, "key"),
	"inFlightReq.amount": func(t *testing.T) {
		as(fromNginx, "limit_conn")(t)
		rejected(t, zonesOf("concurrent 0"), "concurrent")
	},
	"inFlightReq.sourceCriterion": func(t *testing.T) {
		w := waitingSite(t, zonesOf("key {host};concurrent 2"))
		w.hold(1, alice)
		w.hold(1, bob)
		w.e.refused(bob, siteA)
	},
	"429": as(fromNginx, "limit_req_status"),
	"Retry-After": func(t *testing.T) {
		as(fromCaddyRatelimit, "Retry-After")(t)
		as(fromNginx, "limit_conn")(t)
	},
	"a router's middlewares": as(fromCaddyRatelimit, "match"),
}

var fromHAProxy = migrationRows{
	"stick-table": grantsOf(3, "events 3;"+oneHour),
	"type, len": func(t *testing.T) {
		e := limitedSite(t, zonesOf("key {header.X-Key};"+twoAnH))
		e.grants(2, alice, siteA, with("X-Key", strings.Repeat("k", 5000)))
		e.grants(2, alice, siteA, with("X-Key", strings.Repeat("k", 4999)))
	},
	"http_req_rate(60s)": func(t *testing.T) {
		// What was refused does not count: there is room again after a window.
		e := limitedSite(t, "distributed_ratelimit 1 1s")
		e.granted(1, alice, siteA)
		eventually(t, func() bool { return e.get(alice, siteA).StatusCode == http.StatusOK })
		migrated(t, "HAProxy").grants(100, alice, "http://a.test:8080/")
	},
	"http_err_rate(60s)": func(t *testing.T) {
		e := failingSite(t, "status 4xx")
		e.granted(5, alice, siteA)
		e.status(401, alice, siteA+"bad")
		e.status(401, alice, siteA+"bad")
		e.refused(alice, siteA+"bad")
	},
	"http_fail_rate(60s)": func(t *testing.T) {
		e := failingSite(t, "status 5xx")
		for range 5 {
			e.status(401, alice, siteA+"bad")
		}
	},
	"gpc0_rate(60s), gpc1, gpc(n)": func(t *testing.T) {
		as(fromCaddyRatelimit, "match")(t)
		as(fromExpress, "skipSuccessfulRequests")(t)
	},
	"table of another proxy":         as(fromCaddyRatelimit, "zone"),
	"show table, clear table":        resets,
	"http-request return, errorfile": as(fromCaddyRatelimit, "handle_errors"),
	"conn_cur":                       as(fromNginx, "limit_conn"),
	"gpc0, sc_inc_gpc0":              bans,
	"track-sc0 src":                  as(fromCaddyRatelimit, "ipv6_prefix"),
	"track-sc0 req.hdr(X-Api-Key)":   as(fromNginx, "empty key"),
	"track-sc1":                      as(fromCaddyRatelimit, "zone"),
	"track-sc0 ... if":               as(fromCaddyRatelimit, "match"),
	"deny_status":                    as(fromNginx, "limit_req_status"),
	"acl of exempt addresses":        as(fromNginx, "geo, map"),
	"http-response set-header": fields("legacy always\nratelimit_headers_prefix X-Rate-Limit", map[string]string{
		"X-Rate-Limit-Limit": "2", "X-Rate-Limit-Remaining": "1", "X-Rate-Limit-Reset": "HOUR"}),
}
