package caddytest

import (
	"fmt"
	"strings"
	"testing"
)

// handlerJSON is a configuration with one handler.
func handlerJSON(handler string) string {
	return `{"apps": {"http": {"servers": {"srv0": {"listen": [":80"], "routes": [{"handle": [` +
		strings.Replace(handler, "{", `{"handler": "distributed_ratelimit", `, 1) + `]}]}}}}}`
}

func zoneJSON(fields string) string {
	return handlerJSON(`{"zones": [{"name": "z", ` + fields + `}]}`)
}

func appJSON(app string) string {
	return `{"apps": {"distributed_ratelimit": ` + app + `}}`
}

// JSON is held to the same rules as the Caddyfile.
func TestProvisionRejects(t *testing.T) {
	const fine = `"events": 1, "window": "1m"`
	const handlerOf = `{"zones": [{"name": "z", ` + fine + `}], `
	for _, m := range []struct {
		name, config string
		wants        []string
	}{
		{"no zones", handlerJSON(`{"zones": []}`), []string{"no limit given"}},
		{"null zone", handlerJSON(`{"zones": [null]}`), []string{"zone 0 is null"}},
		{"unknown field", handlerJSON(`{"zone": 1}`), []string{`unknown field "zone"`}},
		{"no name", handlerJSON(`{"zones": [{` + fine + `}]}`), []string{"a zone needs a name"}},
		{"bad name", handlerJSON(`{"zones": [{"name": "a b", ` + fine + `}]}`), []string{`zone name "a b"`}},
		{"two zones of one name", handlerJSON(`{"zones": [{"name": "z", ` + fine + `}, {"name": "z", ` + fine + `}]}`), []string{"two zones of this name", "rename one"}},
		{"no events", zoneJSON(`"window": "1m"`), []string{`zone "z"`, "events is missing"}},
		{"events below zero", zoneJSON(`"events": -1, "window": "1m"`), []string{"events -1 is not between"}},
		{"events with a fraction", zoneJSON(`"events": 1.5, "window": "1m"`), []string{"events"}},
		{"events too many", zoneJSON(`"events": 10000000000000, "window": "1m"`), []string{"events 10000000000000 is not between 0 and 1000000000000"}},
		{"no window", zoneJSON(`"events": 1`), []string{"window is missing"}},
		{"window below zero", zoneJSON(`"events": 1, "window": "-1m"`), []string{"window -1m0s is not between 1s and 30d"}},
		{"window short", zoneJSON(`"events": 1, "window": "500ms"`), []string{"window 500ms is not between"}},
		{"window long", zoneJSON(`"events": 1, "window": "31d"`), []string{"window 31d is not between"}},
		{"window without a unit", zoneJSON(`"events": 1, "window": 60`), []string{"window 60ns is too short", `bare number is in nanoseconds: write "60s"`}},
		{"window fine", zoneJSON(`"events": 1, "window": 1000000001`), []string{"finer than a microsecond"}},
		{"key", zoneJSON(fine + `, "key": "{http.request.remote}"`), []string{"each connection", "{http.vars.client_ip}"}},
		{"key in the Caddyfile's words", zoneJSON(fine + `, "key": "{client_ip}"`), []string{"in Caddyfiles only", "write {http.vars.client_ip}"}},
		{"key remote_host", zoneJSON(fine + `, "key": "{remote_host}"`), []string{"in Caddyfiles only", "write {http.request.remote.host}"}},
		{"key host", zoneJSON(fine + `, "key": "{host}"`), []string{"in Caddyfiles only", "write {http.request.host}"}},
		{"key header in the Caddyfile's words", zoneJSON(fine + `, "key": "{header.X-User}"`), []string{"short form", "write {http.request.header.X-User}"}},
		{"key of nothing", zoneJSON(fine + `, "key": "{}"`), []string{"names no placeholder"}},
		{"key header", zoneJSON(fine + `, "key": "{http.request.header.X-FORWARDED-FOR}"`), []string{"written by the client"}},
		{"prefix", zoneJSON(fine + `, "ipv4_prefix": 0`), []string{"ipv4_prefix 0 is not between"}},
		{"on_empty_key", zoneJSON(fine + `, "on_empty_key": "x"`), []string{"unknown on_empty_key"}},
		{"on_store_error of a zone", zoneJSON(fine + `, "on_store_error": "x"`), []string{"unknown on_store_error"}},
		{"prefix without an address", zoneJSON(fine + `, "key": "all", "ipv4_prefix": 24`), []string{"ipv4_prefix 24", `"all" holds no address`, "{client_ip}"}},
		{"prefix of a key that denies", zoneJSON(fine + `, "key": "{http.auth.user.id}", "on_empty_key": "deny", "ipv6_prefix": 56`), []string{"ipv6_prefix 56", "holds no address"}},
		{"exemption of everything", zoneJSON(fine + `, "exempt": [{}]`), []string{`zone "z"`, "set 0 of exempt has no matcher", "remove it"}},
		{"empty matcher set", zoneJSON(fine + `, "match": [{"path": ["/"]}, {}]`), []string{`zone "z"`, "set 1 of match has no matcher"}},
		{"matcher", zoneJSON(fine + `, "match": [{"nonsense": {}}]`), []string{`zone "z": match`, "http.matchers.nonsense"}},
		{"matcher's value", zoneJSON(fine + `, "exempt": [{"client_ip": {"ranges": ["x"]}}]`), []string{`zone "z": exempt`}},
		{"on_store_error", handlerJSON(handlerOf + `"on_store_error": "x"}`), []string{"unknown on_store_error"}},
		{"budget", handlerJSON(handlerOf + `"budget": -1}`), []string{"budget -1ns is not between"}},
		{"budget long", handlerJSON(handlerOf + `"budget": "2h"}`), []string{"budget 2h0m0s is not between"}},
		{"headers", handlerJSON(handlerOf + `"ratelimit_headers": ["x"]}`), []string{"unknown word"}},
		{"refusal", handlerJSON(handlerOf + `"refusal": "x"}`), []string{"unknown refusal"}},
		{"status", handlerJSON(handlerOf + `"status": 200}`), []string{"status 200"}},
		{"jitter", handlerJSON(handlerOf + `"jitter": -1}`), []string{"jitter -1"}},
		{"two headers", handlerJSON(handlerOf + `"client_ip_headers": ["A", "B"]}`), []string{"has 2 headers"}},
		{"empty header", handlerJSON(handlerOf + `"client_ip_headers": [""]}`), []string{"client_ip_headers", "empty"}},
		{"header name", handlerJSON(handlerOf + `"client_ip_headers": ["A:B"]}`), []string{"cannot be in the name"}},
		{"source", handlerJSON(handlerOf + `"trusted_proxies": {"source": "nowhere"}}`), []string{"trusted_proxies", "http.ip_sources.nowhere"}},
		{"all of IPv4", handlerJSON(handlerOf + `"trusted_proxies": {"source": "static", "ranges": ["0.0.0.0/0"]}}`), []string{"trusted_proxies", "0.0.0.0/0 covers every address", "list the networks of the proxies"}},
		{"all of IPv6", handlerJSON(handlerOf + `"trusted_proxies": {"source": "static", "ranges": ["10.0.0.0/8", "::/0"]}}`), []string{"::/0 covers every address"}},
		{"all of IPv4 in IPv6", handlerJSON(handlerOf + `"trusted_proxies": {"source": "static", "ranges": ["::ffff:0:0/96"]}}`), []string{"covers every address"}},
		{"all of IPv4 in halves", handlerJSON(handlerOf + `"trusted_proxies": {"source": "static", "ranges": ["0.0.0.0/1", "128.0.0.0/1"]}}`), []string{"trusted_proxies", "cover 100 % of 0.0.0.0/0", "list the networks of the proxies"}},
		{"all of IPv6 in use", handlerJSON(handlerOf + `"trusted_proxies": {"source": "static", "ranges": ["2000::/3"]}}`), []string{"cover 100 % of 2000::/3"}},
		{"range", handlerJSON(handlerOf + `"trusted_proxies": {"source": "static", "ranges": ["10.0.0.0/33"]}}`), []string{"trusted_proxies", "10.0.0.0/33"}},
		{"range placeholder", handlerJSON(handlerOf + `"trusted_proxies": {"source": "static", "ranges": ["{env.DRL_RANGE}"]}}`), []string{"trusted_proxies", "'{env.DRL_RANGE}'"}},
		{"store", handlerJSON(handlerOf + `"store": {"module": "nothing"}}`), []string{"store", "distributed_ratelimit.stores.nothing"}},
		{"store without module", handlerJSON(handlerOf + `"store": {}}`), []string{"store", "module"}},
		{"memory", handlerJSON(handlerOf + `"store": {"module": "memory", "max_keys": -1}}`), []string{"max_keys -1"}},

		{"app policy", appJSON(`{"on_store_error": "x"}`), []string{"unknown on_store_error"}},
		{"app budget", appJSON(`{"budget": "1us"}`), []string{"budget 1µs is not between"}},
		{"app ranges", appJSON(`{"trusted_proxies": {"source": "static", "ranges": ["0.0.0.0/0"]}}`), []string{"covers every address"}},
		{"app ranges in halves", appJSON(`{"trusted_proxies": {"source": "static", "ranges": ["0.0.0.0/1", "128.0.0.0/1"]}}`), []string{"cover 100 % of 0.0.0.0/0"}},
		{"app store", appJSON(`{"store": {"module": "nothing"}}`), []string{"distributed_ratelimit.stores.nothing"}},
		{"redis URL", appJSON(`{"store": {"module": "redis", "url": "http://:` + secret + `@h"}}`), []string{"redis://"}},
		{"redis URL and address", appJSON(`{"store": {"module": "redis", "url": "redis://h", "address": ["h:1"]}}`), []string{"both a URL and an address"}},
		{"redis addresses", appJSON(`{"store": {"module": "redis", "address": ["h:1", "h:2"]}}`), []string{"address has 2 servers"}},
		{"redis empty address", appJSON(`{"store": {"module": "redis", "cluster": true, "address": [""]}}`), []string{"address is not of the form host:port"}},
		{"redis bad address in a variable", appJSON(`{"store": {"module": "redis", "cluster": true, "address": ["h:1", "{env.DRL_URL}"]}}`), []string{"address 2 of 2", "host:port"}},
		{"redis cluster and sentinel", appJSON(`{"store": {"module": "redis", "address": ["h:1"], "cluster": true, "sentinel": true}}`), []string{"sentinel and cluster exclude each other"}},
		{"redis cluster with a database", appJSON(`{"store": {"module": "redis", "cluster": true, "url": "{env.DRL_URL}"}}`), []string{"database 1", "database 0 only"}},
		{"redis sentinel without master_name", appJSON(`{"store": {"module": "redis", "address": ["h:1"], "sentinel": true}}`), []string{"master_name is missing", "for example mymaster"}},
		{"redis sentinel's URL without port", appJSON(`{"store": {"module": "redis", "sentinel": true, "master_name": "m", "url": "{env.DRL_URL}"}}`), []string{"no port"}},
		{"redis sentinel_password unset", appJSON(`{"store": {"module": "redis", "sentinel": true, "master_name": "m", "address": ["h:1"], "sentinel_password": "{env.DRL_NOT_SET}"}}`), []string{"sentinel_password of the redis store", "{env.DRL_NOT_SET}"}},
		{"redis master_name unset", appJSON(`{"store": {"module": "redis", "sentinel": true, "master_name": "{env.DRL_NOT_SET}", "address": ["h:1"]}}`), []string{"master_name of the redis store"}},
		{"redis instances", appJSON(`{"store": {"module": "redis", "instances": -1}}`), []string{"instances -1 is not between"}},
		{"redis on_data_loss", appJSON(`{"store": {"module": "redis", "on_data_loss": "x"}}`), []string{"unknown on_data_loss"}},
		{"redis timeout", appJSON(`{"store": {"module": "redis", "timeout": -1}}`), []string{"timeout -1ns is not between"}},
		{"redis unset variable", appJSON(`{"store": {"module": "redis", "url": "{env.DRL_NOT_SET}"}}`), []string{"url of the redis store", "{env.DRL_NOT_SET}", "set it"}},
		{"redis unknown placeholder", appJSON(`{"store": {"module": "redis", "password": "{nothing.at.all}"}}`), []string{"password of the redis store", "{nothing.at.all}"}},
		{"redis bad variable", appJSON(`{"store": {"module": "redis", "url": "{env.DRL_BAD_URL}"}}`), []string{"redis", "percent encoding"}},
		{"redis database twice", appJSON(`{"store": {"module": "redis", "url": "{env.DRL_URL}", "db": 2}}`), []string{"database is given twice"}},
		{"redis ca", appJSON(`{"store": {"module": "redis", "tls": {"ca": "/nowhere/ca.pem"}}}`), []string{"tls ca of the redis store", "/nowhere/ca.pem"}},
		{"redis ca without certificate", appJSON(`{"store": {"module": "redis", "tls": {"ca": "doc.go"}}}`), []string{"doc.go holds no certificate"}},
		{"redis pair", appJSON(`{"store": {"module": "redis", "tls": {"cert": "x"}}}`), []string{"only one of cert and key"}},
		{"redis tls on a socket", appJSON(`{"store": {"module": "redis", "url": "unix:///run/x.sock", "tls": {}}}`), []string{"Unix socket"}},
	} {
		t.Run(m.name, func(t *testing.T) {
			t.Setenv("DRL_BAD_URL", "redis://:"+secret+"/x@host")
			t.Setenv("DRL_RANGE", "10.0.0.0/8")
			t.Setenv("DRL_URL", "redis://:"+secret+"@host/1")
			err := validated(t, []byte(m.config))
			if err == nil {
				t.Fatalf("provisioning %s: got no error", m.config)
			}
			for _, want := range m.wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("provisioning: got error %q, want %q in it", err, want)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("provisioning: the error %q shows a password", err)
			}
		})
	}
}

// Zones of one name in two handlers are one limit and must agree; in stores
// of their own they are different limits.
func TestProvisionComparesZonesOfOneName(t *testing.T) {
	const one = `{"handler": "distributed_ratelimit", "zones": [{"name": "z", "events": 1, "window": "1m"}]}`
	for other, want := range map[string]string{
		`"events": 1, "window": "1m"`:                                      "",
		`"events": 1, "window": "1m", "key": "{http.vars.client_ip}"`:      "",
		`"events": 2, "window": "2m", "dry_run": true`:                     "",
		`"events": 2, "window": "1m"`:                                      "events 2 here and 1",
		`"events": 1, "window": "2m"`:                                      "window 2m here and 1m",
		`"events": 1, "window": "1m", "key": "x"`:                          `key "x" here and the client's address`,
		`"events": 1, "window": "1m", "ipv6_prefix": 48`:                   "ipv6_prefix 48 here and 64",
		`"events": 1, "window": "1m", "match": [{"path": ["/elsewhere"]}]`: "",
	} {
		config := fmt.Sprintf(`{"apps": {"http": {"servers": {"a": {"listen": [":80"], "routes": [{"handle": [%s,
			{"handler": "distributed_ratelimit", "zones": [{"name": "z", %s}]}]}]}}}}}`, one, other)
		err := validated(t, []byte(config))
		switch {
		case want == "" && err != nil:
			t.Errorf("zone {%s} next to {events 1, window 1m}: got error %v, want none", other, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("zone {%s} next to {events 1, window 1m}: got error %v, want %q in it", other, err, want)
		}
	}
}
