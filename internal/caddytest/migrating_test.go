package caddytest

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// A row of a table in docs/migrating.md has a test of its name for what it says of
// this limiter. What it says of the others is tested in the module migration.
type migrationRows map[string]func(t *testing.T)

// migrations are the tests of the page's sections, by what one comes from.
var migrations = map[string]migrationRows{
	"caddy-ratelimit":    fromCaddyRatelimit,
	"nginx":              fromNginx,
	"express-rate-limit": fromExpress,
	"@upstash/ratelimit": fromUpstash,
	"Vercel's WAF":       fromVercel,
	"Traefik":            fromTraefik,
	"HAProxy":            fromHAProxy,
}

// untestedRows are rows without a test, and why that is so.
var untestedRows = map[string]string{
	"caddy-ratelimit: distributed":                               "internal/e2e is about what several instances grant together, as in TestFaults",
	"caddy-ratelimit: storage":                                   "the same; and every test here runs on store memory",
	"caddy-ratelimit: ipv4_prefix":                               "TestKeyIsTheMaskedAddress has all of it",
	"caddy-ratelimit: event rate_limit_exceeded":                 "there is nothing to see of an event that is not there",
	"express-rate-limit: store: new RedisStore()":                "the examples run on a Redis, examples/from-express too",
	"@upstash/ratelimit: cachedFixedWindow":                      "store/lease and internal/e2e are about leases",
	"@upstash/ratelimit: MultiRegionRatelimit":                   "nothing to write here",
	"@upstash/ratelimit: dynamicLimits":                          "plans_test.go and reload_test.go have it",
	"Vercel's WAF: key: JA4 digest":                              "it has no counterpart",
	"Vercel's WAF: Challenge":                                    "it has no counterpart",
	"Traefik: redis":                                             "internal/e2e has several instances with one Redis",
	"Traefik: 65,536 sources":                                    "store/memory_test.go has the bound of the memory store",
	"HAProxy: peers":                                             "internal/e2e has several instances with one Redis",
	"nginx: zone=name:size":                                      "nothing to write here",
	"nginx: limit_req_log_level":                                 "nothing to write here",
	"nginx: limit_conn_log_level":                                "nothing to write here",
	"nginx: delay":                                               "nothing to write here",
	"nginx: nodelay":                                             "nothing to write here",
	"nginx: limit_rate, limit_rate_after":                        "nothing to write here",
	"nginx: sync":                                                "nothing to write here",
	"express-rate-limit: sendCommand":                            "nothing to write here",
	"express-rate-limit: logger":                                 "nothing to write here",
	"express-rate-limit: store of another kind":                  "nothing to write here",
	"@upstash/ratelimit: redis: Redis.fromEnv()":                 "the examples run on a Redis, examples/from-upstash too",
	"@upstash/ratelimit: limit(id, { ip, userAgent, country })":  "nothing to write here",
	"@upstash/ratelimit: denyListThreshold, IpDenyList":          "nothing to write here",
	"@upstash/ratelimit: cacheScripts, enableTelemetry":          "nothing to write here",
	"Vercel's WAF: headers, request, firewallHostForDevelopment": "nothing to write here",
	"Vercel's WAF: error: 'not-found'":                           "nothing to write here",
	"@upstash/ratelimit: success":                                "nothing to write here",
	"@upstash/ratelimit: pending":                                "nothing to write here",
	"@upstash/ratelimit: analytics":                              "nothing to write here",
	"@upstash/ratelimit: blockUntilReady":                        "nothing to write here",
	"Traefik: a short delay":                                     "nothing to write here",
	"Traefik: redis.minIdleConns, redis.maxActiveConns":          "nothing to write here",
	"Traefik: inFlightConn":                                      "it has no counterpart",
	"Traefik: X-Retry-In":                                        "nothing to write here",
	"HAProxy: size":                                              "nothing to write here",
	"HAProxy: expire":                                            "nothing to write here",
	"HAProxy: conn_rate, conn_cnt, sess_rate, sess_cnt":          "nothing to write here",
	"HAProxy: bytes_in_rate, bytes_out_rate and their _cnt":      "nothing to write here",
	"HAProxy: nopurge, write-to, srvkey":                         "nothing to write here",
	"HAProxy: server_id, server_key":                             "it has no counterpart",
	"HAProxy: gpt0, sc-set-gpt0":                                 "it has no counterpart",
	"HAProxy: tcp-request connection reject, silent-drop":        "it has no counterpart",
	"HAProxy: tarpit":                                            "nothing to write here",
	"HAProxy: maxconn, queues":                                   "nothing to write here",
	"HAProxy: http_req_cnt, http_err_cnt, http_fail_cnt":         "nothing to write here",
}

// section is what docs/migrating.md has below one heading.
type section struct {
	name   string
	rows   []string
	blocks []string // the Caddyfiles
}

func migrationSections(t *testing.T) []section {
	t.Helper()
	text, err := os.ReadFile("../../docs/migrating.md")
	if err != nil {
		t.Fatal(err)
	}
	var sections []section
	for _, part := range strings.Split(string(text), "\n## From ")[1:] {
		name, body, _ := strings.Cut(part, "\n")
		if i := strings.Index(body, "\n## "); i >= 0 {
			body = body[:i]
		}
		s := section{name: name}
		fence := ""
		for _, line := range strings.SplitAfter(body, "\n") {
			mark, fenced := strings.CutPrefix(strings.TrimSpace(line), "```")
			switch {
			case fenced && fence == "":
				if fence = "```" + mark; mark == "caddyfile" {
					s.blocks = append(s.blocks, "")
				}
			case fenced:
				fence = ""
			case fence == "```caddyfile":
				s.blocks[len(s.blocks)-1] += line
			case fence == "" && strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| there |"):
				cell, _, _ := strings.Cut(line[2:], " | ")
				s.rows = append(s.rows, strings.ReplaceAll(cell, "`", ""))
			}
		}
		sections = append(sections, s)
	}
	return sections
}

// Every row of every table in docs/migrating.md has a test of its name, or stands
// among those that have none, with the reason.
func TestMigrating(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range migrationSections(t) {
		tests := migrations[s.name]
		if tests == nil || len(s.rows) < 5 || len(s.blocks) == 0 {
			t.Errorf("section %q: %d rows, %d Caddyfiles, tests: %v", s.name, len(s.rows), len(s.blocks), tests != nil)
		}
		for _, row := range s.rows {
			name := s.name + ": " + row
			if seen[name] {
				t.Errorf("two rows are called %q", name)
			}
			seen[name] = true
			test, why := tests[row], untestedRows[name]
			if (test == nil) == (why == "") {
				t.Errorf("row %q: has a test: %v; reason for having none: %q; want one of the two", name, test != nil, why)
				continue
			}
			if test != nil {
				t.Run(strings.ReplaceAll(name, "/", "|"), test)
			}
		}
	}
	for from, tests := range migrations {
		for row := range tests {
			if !seen[from+": "+row] {
				t.Errorf("no row is called %q: a test is left over", from+": "+row)
			}
		}
	}
	for name := range untestedRows {
		if !seen[name] {
			t.Errorf("no row is called %q: a reason is left over", name)
		}
	}
}

// migrated runs a Caddyfile of the page, its first one unless told otherwise, with the
// memory store and a backend that greets.
func migrated(t *testing.T, from string, which ...int) *edge {
	t.Helper()
	for _, s := range migrationSections(t) {
		if s.name != from {
			continue
		}
		i := 0
		if len(which) > 0 {
			i = which[0]
		}
		text := strings.ReplaceAll(s.blocks[i], "store redis {env.REDIS_URL}", "store memory")
		return start(t, strings.ReplaceAll(text, "reverse_proxy app:3000", `respond "hello"`))
	}
	t.Fatalf("docs/migrating.md has no section %q", from)
	return nil
}

// limitedSite runs a site with a directive. It begins without the counts of sites that the
// test ran before.
func limitedSite(t *testing.T, directive string, more ...string) *edge {
	t.Helper()
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	return start(t, "http://a.test {\n\t"+directive+"\n\t"+strings.Join(more, "\n\t")+"\n\trespond \"hello\"\n}")
}

// zonesOf is a directive of zones, whose words are separated by semicolons.
func zonesOf(zones ...string) string {
	var text strings.Builder
	text.WriteString("distributed_ratelimit {\n")
	for i, words := range zones {
		text.WriteString("zone z" + string(rune('a'+i)) + " {\n" + strings.ReplaceAll(words, ";", "\n") + "\n}\n")
	}
	return text.String() + "}"
}

// rejected expects that a Caddyfile is not taken, with words of the error.
func rejected(t *testing.T, directive string, words ...string) {
	t.Helper()
	_, err := adapt("http://a.test {\n" + directive + "\n}")
	if err == nil {
		t.Fatalf("taken: %s", directive)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %v does not say %q", err, word)
		}
	}
}

// grantedOf counts how many of n requests are granted.
func (e *edge) grantedOf(n int, from, url string, change ...func(*http.Request)) int {
	e.t.Helper()
	granted := 0
	for range n {
		if e.get(from, url, change...).StatusCode == http.StatusOK {
			granted++
		}
	}
	return granted
}

// grants expects that exactly so many of more requests are granted.
func (e *edge) grants(want int, from, url string, change ...func(*http.Request)) {
	e.t.Helper()
	if got := e.grantedOf(want+3, from, url, change...); got != want {
		e.t.Errorf("%d of %d requests from %s to %s were granted, want %d", got, want+3, from, url, want)
	}
}

// Examples that the page names are there, with the steps.
func TestMigrationExamplesAreThere(t *testing.T) {
	text, err := os.ReadFile("../../docs/migrating.md")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, part := range strings.Split(string(text), "(../examples/")[1:] {
		name, _, _ := strings.Cut(part, ")")
		found = append(found, name)
		for _, file := range []string{"README.md", "Caddyfile"} {
			if _, err := os.Stat(filepath.Join("../../examples", name, file)); err != nil {
				t.Error(err)
			}
		}
	}
	slices.Sort(found)
	if len(found) == 0 {
		t.Error("the page names no example")
	}
}
