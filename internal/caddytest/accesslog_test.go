package caddytest

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// decision is what the last line of the access log says of the decision, without the
// moment, which is checked: "" if it says nothing.
func (e *edge) decision(times int) string {
	e.t.Helper()
	lines := e.log.says(times, "handled request")
	field, ok := lines[len(lines)-1]["rate_limit"]
	if !ok {
		return ""
	}
	object := field.(map[string]any)
	if at, ok := object["at"]; ok {
		if age := time.Since(time.UnixMicro(int64(at.(float64)))); age < 0 || age > time.Minute {
			e.t.Errorf("at %v: got an age of %v, want a moment ago", at, age)
		}
		delete(object, "at")
	}
	if wait, ok := object["retry_after"].(float64); ok && wait > 3000 {
		object["retry_after"] = "HOUR"
	}
	text, err := json.Marshal(object)
	if err != nil {
		e.t.Fatal(err)
	}
	return string(text)
}

// The access log has the decision, without any configuration.
func TestAccessLog(t *testing.T) {
	e := start(t, `
http://a.test {
	log
	log_skip /quiet
	distributed_ratelimit {
		trusted_proxies static 192.0.2.9
		zone each {
			match path /each /both /quiet
			exempt header X-Free yes
			events 2
			window 1h
		}
		zone tried {
			match path /both /tried
			events 1
			window 1h
			dry_run
		}
		zone named {
			match path /named
			key {header.X-User}
			on_empty_key deny
			events 1
			window 1h
		}
		zone none {
			match path /none
			events 0
			window 1h
		}
	}
	respond "ok"
}`)
	lines := 0
	for _, c := range []struct {
		from, path string
		change     func(*http.Request)
		status     int
		want       string
	}{
		{alice, "/", nil, 200, ``},
		{alice, "/each", with("X-Free", "yes"), 200, `{"outcome":"exempt","source":"policy","zone":"each"}`},
		{alice, "/both", nil, 200, `{"limit":2,"outcome":"granted","remaining":1,"source":"store","zone":"each"}`},
		// A zone in dry run never hides what the zone in force says.
		{alice, "/both", nil, 200, `{"limit":2,"outcome":"granted","remaining":0,"source":"store","would_refuse":[{"reason":"limit","zone":"tried"}],"zone":"each"}`},
		{alice, "/each", nil, 429, `{"limit":2,"outcome":"refused","reason":"limit","remaining":0,"retry_after":"HOUR","source":"store","zone":"each"}`},
		{alice, "/tried", nil, 200, `{"limit":1,"outcome":"dry_run","reason":"limit","remaining":0,"source":"store","would_refuse":[{"reason":"limit","zone":"tried"}],"zone":"tried"}`},
		{alice, "/named", nil, 403, `{"outcome":"refused","reason":"empty_key","source":"policy","zone":"named"}`},
		{alice, "/none", nil, 429, `{"limit":0,"outcome":"refused","reason":"zero","remaining":0,"source":"policy","zone":"none"}`},
		// Caddy itself takes this client for the proxy.
		{"192.0.2.9", "/each", with("X-Forwarded-For", bob), 200, `{"client_ip":"` + bob + `","limit":2,"outcome":"granted","remaining":1,"source":"store","zone":"each"}`},
	} {
		if c.change == nil {
			c.change = func(*http.Request) {}
		}
		e.status(c.status, c.from, "http://a.test"+c.path, c.change)
		lines++
		if got := e.decision(lines); got != c.want {
			t.Errorf("%s from %s: got %s, want %s", c.path, c.from, got, c.want)
		}
	}
	e.status(429, alice, "http://a.test/quiet")
	e.log.says(lines, "handled request")
}

// Of several handlers the access log tells what the placeholders do; error routes do
// not add a second field.
func TestAccessLogOfSeveralHandlers(t *testing.T) {
	e := start(t, `
http://a.test {
	log
	route {
		distributed_ratelimit 5 1h wide
		distributed_ratelimit 1 1h tight
		respond "ok"
	}
	handle_errors {
		distributed_ratelimit 5 1h errors
		respond "sorry" 429
	}
}`)
	e.granted(1, alice, "http://a.test/")
	if got, want := e.decision(1), `{"limit":1,"outcome":"granted","remaining":0,"source":"store","zone":"tight"}`; got != want {
		t.Errorf("granted by both: got %s, want %s", got, want)
	}
	e.refused(alice, "http://a.test/")
	if got, want := e.decision(2), `{"limit":1,"outcome":"refused","reason":"limit","remaining":0,"retry_after":"HOUR","source":"store","zone":"tight"}`; got != want {
		t.Errorf("refused by the second: got %s, want %s", got, want)
	}
	for line := range strings.Lines(e.log.text()) {
		if n := strings.Count(line, `"rate_limit":`); n > 1 {
			t.Errorf("got %d fields in one line, want 1: %s", n, line)
		}
	}
}

// The field works with Caddy's filters for logs, as any other.
func TestAccessLogFiltered(t *testing.T) {
	const config = "http://a.test {\n\tlog\n\tdistributed_ratelimit 1 1h each\n\trespond ok\n}"
	e := start(t, config)
	var cfg map[string]any
	if err := json.Unmarshal(e.config(config), &cfg); err != nil {
		t.Fatal(err)
	}
	for _, l := range dig(cfg, "logging", "logs").(map[string]any) {
		l.(map[string]any)["encoder"] = map[string]any{
			"format": "filter", "wrap": map[string]any{"format": "json"},
			"fields": map[string]any{"rate_limit>at": map[string]any{"filter": "delete"}, "rate_limit>zone": map[string]any{"filter": "replace", "value": "hidden"}},
		}
	}
	changed, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(changed, true); err != nil {
		t.Fatal(err)
	}
	e.granted(1, alice, "http://a.test/")
	object, _ := e.log.says(1, "handled request")[0]["rate_limit"].(map[string]any)
	if _, there := object["at"]; there || object["zone"] != "hidden" {
		t.Errorf("filtered field: got %v, want zone hidden and no at", object)
	}
}
