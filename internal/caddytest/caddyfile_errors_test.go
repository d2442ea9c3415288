package caddytest

import (
	"fmt"
	"strings"
	"testing"
)

// mistake is a Caddyfile that is wrong on the line that ends in #!, and what
// the error must say.
type mistake struct {
	name  string
	file  string
	wants []string
}

// here marks the line of a mistake.
const here = " #!"

func (m mistake) check(t *testing.T) {
	t.Helper()
	line := 0
	for i, text := range strings.Split(m.file, "\n") {
		if strings.HasSuffix(text, here) {
			line = i + 1
		}
	}
	if line == 0 {
		t.Fatalf("no line of the Caddyfile is marked:\n%s", m.file)
	}
	_, err := adapt(m.file)
	if err == nil {
		t.Fatalf("adapting: got no error, want one on line %d:\n%s", line, m.file)
	}
	for _, want := range append(m.wants, fmt.Sprintf(", at Caddyfile:%d", line)) {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("adapting: got error %q, want %q in it; the Caddyfile:\n%s", err, want, m.file)
		}
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("adapting: the error %q shows a password", err)
	}
}

const secret = "hunter2"

// site, zone and global put a wrong line into a Caddyfile that is right
// otherwise.
func site(options ...string) string {
	return ":80 {\n\tdistributed_ratelimit 10 1m {\n" + strings.Join(options, "\n") + "\n\t}\n}"
}

func zone(options ...string) string {
	return ":80 {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\tevents 10\n\t\t\twindow 1m\n" + strings.Join(options, "\n") + "\n\t\t}\n\t}\n}"
}

func bareZone(options ...string) string {
	return ":80 {\n\tdistributed_ratelimit {\n\t\tzone z {\n" + strings.Join(options, "\n") + "\n\t\t}\n\t}\n}"
}

func bareExempt(options ...string) string {
	return ":80 {\n\tdistributed_ratelimit {\n" + strings.Join(options, "\n") + "\n\t\tzone z {\n\t\t\tevents 10\n\t\t\twindow 1m\n\t\t}\n\t}\n}"
}

func global(options ...string) string {
	return "{\n\tdistributed_ratelimit {\n" + strings.Join(options, "\n") + "\n\t}\n}\n:80 {\n\tdistributed_ratelimit 10 1m\n}"
}

func redis(options ...string) string {
	return global("store redis {\n" + strings.Join(options, "\n") + "\n}")
}

func TestCaddyfileMistakesOfTheDirective(t *testing.T) {
	for _, m := range []mistake{
		{"no limit", ":80 {\n\tdistributed_ratelimit" + here + "\n}", []string{"no limit given", "distributed_ratelimit 30 1m"}},
		{"empty block", ":80 {\n\tdistributed_ratelimit {" + here + "\n\t}\n}", []string{"no limit given"}},
		{"events without window", ":80 {\n\tdistributed_ratelimit 30" + here + "\n}", []string{"the number of events and the window", "30 1m"}},
		{"four arguments", ":80 {\n\tdistributed_ratelimit 30 1m name more" + here + "\n}", []string{"the number of events and the window"}},
		{"window first", ":80 {\n\tdistributed_ratelimit 1m 30" + here + "\n}", []string{`events "1m" is not a whole number`}},
		{"window without unit", ":80 {\n\tdistributed_ratelimit 30 60" + here + "\n}", []string{`window "60" is not a duration`, "1m"}},
		{"window below zero", ":80 {\n\tdistributed_ratelimit 30 -1m" + here + "\n}", []string{`window "-1m" is not a duration above zero`}},
		{"name of the short form", ":80 {\n\tdistributed_ratelimit 30 1m a/b" + here + "\n}", []string{`zone name "a/b"`, "letters, digits"}},
		{"unknown option", site("burst 5" + here), []string{`unknown option "burst"`, "zone, trusted_proxies"}},
		{"distributed", site("distributed {" + here + "\n}"), []string{"distributed is not an option", "store redis"}},
		{"storage", site("storage file_system" + here), []string{"storage is not an option", "store redis"}},
		{"sweep_interval", site("sweep_interval 1m" + here), []string{"sweep_interval is not an option", "remove it"}},
		{"read_interval", site("read_interval 1m" + here), []string{`unknown option "read_interval"`}},
		{"zone in the short form", site("zone more {" + here + "\nevents 1\nwindow 1s\n}"), []string{"zone cannot stand in the short form", `"10-per-1m"`}},
		{"events in the short form", site("events 5" + here), []string{"events is already given"}},
		{"window in the short form", site("window 5s" + here), []string{"window is already given"}},
		{"zone option outside of a zone", ":80 {\n\tdistributed_ratelimit {\n\t\tkey {client_ip}" + here + "\n\t}\n}", []string{"key belongs into a zone", "zone <name> { key ... }"}},
		{"zone option next to a zone", ":80 {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\tevents 1\n\t\t\twindow 1s\n\t\t}\n\t\tdry_run" + here + "\n\t}\n}", []string{"dry_run belongs into a zone"}},
		{"option twice", site("budget 1s", "budget 2s"+here), []string{"budget is already given on line 3", "remove one"}},
		{"log_key with argument", site("log_key on" + here), []string{"log_key takes no argument", `"on"`}},

		{"exempt without matcher", bareExempt("exempt" + here), []string{"exempt has no matcher"}},
		{"exempt everything", bareExempt("exempt *" + here), []string{"every request"}},
		{"hide with argument", site("hide me" + here), []string{"hide takes no argument"}},

		{"budget 0", site("budget 0" + here), []string{`budget "0" is not a duration above zero`}},
		{"budget 2h", site("budget 2h" + here), []string{"budget 2h0m0s is not between 1ms and 1m"}},
		{"budget 1us", site("budget 1us" + here), []string{"is not between 1ms and 1m"}},
		{"budget word", site("budget soon" + here), []string{`budget "soon" is not a duration`}},
		{"budget missing", site("budget" + here), []string{"budget takes one argument, not 0"}},
		{"policy", site("on_store_error block" + here), []string{`unknown on_store_error "block"`, "local, allow or deny"}},
		{"policy twice", site("on_store_error local allow" + here), []string{"on_store_error takes one argument, not 2"}},
		{"headers", site("ratelimit_headers ietf" + here), []string{`unknown word "ietf"`, "draft, draft7 or draft6, and legacy or legacy_epoch"}},
		{"headers none", site("ratelimit_headers" + here), []string{"ratelimit_headers needs words", "off"}},
		{"headers off and more", site("ratelimit_headers off draft" + here), []string{"ratelimit_headers off stands alone"}},
		{"headers always and refused", site("ratelimit_headers always refused" + here), []string{"exclude each other"}},
		{"headers of two drafts", site("ratelimit_headers draft6 draft" + here), []string{"draft6 and draft exclude each other", "the one that your clients read"}},
		{"headers with two units", site("ratelimit_headers legacy_epoch draft7 legacy" + here), []string{"legacy_epoch and legacy exclude each other", "two meanings"}},
		{"headers prefix without legacy", site("ratelimit_headers draft6\nratelimit_headers_prefix X-Rate-Limit" + here), []string{"names the fields of legacy and legacy_epoch"}},
		{"headers prefix alone", site("ratelimit_headers_prefix X-Rate-Limit" + here), []string{"names the fields of legacy and legacy_epoch"}},
		{"headers prefix with a hyphen", site("ratelimit_headers legacy\nratelimit_headers_prefix X-Rate-Limit-" + here), []string{`"X-Rate-Limit-" does not begin a name`, "without a hyphen at the end", "ratelimit_headers_prefix X-Rate-Limit"}},
		{"headers prefix that is none", site("ratelimit_headers legacy\nratelimit_headers_prefix X:" + here), []string{`"X:" does not begin a name`}},
		{"headers prefix too long", site("ratelimit_headers legacy\nratelimit_headers_prefix " + strings.Repeat("x", 65) + here), []string{"1 to 64 letters"}},
		{"headers prefix of a draft", site("ratelimit_headers legacy draft6\nratelimit_headers_prefix ratelimit" + here), []string{"gives the names of draft6 to other fields", "remove draft6"}},
		{"headers prefix missing", site("ratelimit_headers legacy\nratelimit_headers_prefix" + here), []string{"ratelimit_headers_prefix takes one argument, not 0"}},
		{"headers twice the same", site("ratelimit_headers draft draft" + here), []string{`ratelimit_headers has "draft" twice`}},
		{"refusal", site("refusal html" + here), []string{`unknown refusal "html"`, "auto, error or problem"}},
		{"status 200", site("status 200" + here), []string{"status 200 is not an error status", "429"}},
		{"status 600", site("status 600" + here), []string{"status 600 is not an error status", "400 to 599"}},
		{"status word", site("status teapot" + here), []string{`status "teapot" is not a whole number`}},
		{"jitter below zero", site("jitter -1" + here), []string{"jitter -1 is not between 0 and 1", "20%"}},
		{"jitter without its %", site("jitter 20" + here), []string{"jitter 20 is not between 0 and 1", "20%"}},
		{"jitter no number", site("jitter NaN" + here), []string{"jitter NaN is not between"}},
		{"jitter word", site("jitter some" + here), []string{`jitter "some" is not a number`, "20%"}},

		{"trusted_proxies empty", site("trusted_proxies" + here), []string{"trusted_proxies needs an IP source", "trusted_proxies static private_ranges"}},
		{"trusted_proxies of reverse_proxy", site("trusted_proxies 10.0.0.0/8" + here), []string{"write: trusted_proxies static 10.0.0.0/8"}},
		{"trusted_proxies addresses", site("trusted_proxies 10.0.0.1 2001:db8::1" + here), []string{"write: trusted_proxies static 10.0.0.1 2001:db8::1"}},
		{"trusted_proxies private_ranges", site("trusted_proxies private_ranges 10.0.0.1" + here), []string{"write: trusted_proxies static private_ranges 10.0.0.1"}},
		{"trusted_proxies unknown", site("trusted_proxies cloudflair" + here), []string{`there is no IP source "cloudflair"`, "http.ip_sources.cloudflair", "static"}},
		{"hops none", site("trusted_proxies hops 0" + here), []string{"hops 0 are not between 1 and 32"}},
		{"hops many", site("trusted_proxies hops 33" + here), []string{"33 hops are not between 1 and 32"}},
		{"hops word", site("trusted_proxies hops two" + here), []string{`hops "two" is not a whole number`}},
		{"hops in one address", site("trusted_proxies hops 2"+here, "client_ip_headers X-Real-IP"), []string{"not a list", "X-Forwarded-For or Forwarded"}},
		{"two headers", site("client_ip_headers X-Real-IP X-Forwarded-For" + here), []string{"client_ip_headers has 2 headers", "name the one"}},
		{"no header", site("client_ip_headers" + here), []string{"client_ip_headers needs the name of a header"}},
		{"header name", site("client_ip_headers X-Real:IP" + here), []string{"X-Real:IP", "cannot be in the name of a header"}},

		{"store without name", site("store" + here), []string{"store needs a name", "memory or redis"}},
		{"store unknown", site("store memcached localhost" + here), []string{`there is no store "memcached"`, "memory or redis"}},
	} {
		t.Run(m.name, m.check)
	}
}

func TestCaddyfileMistakesOfZones(t *testing.T) {
	for _, m := range []mistake{
		{"no name", ":80 {\n\tdistributed_ratelimit {\n\t\tzone {" + here + "\n\t\t}\n\t}\n}", []string{"zone takes one name", "zone <name> { events <n> ... }"}},
		{"two names", ":80 {\n\tdistributed_ratelimit {\n\t\tzone a b {" + here + "\n\t\t}\n\t}\n}", []string{"zone takes one name"}},
		{"name with a slash", ":80 {\n\tdistributed_ratelimit {\n\t\tzone a/b {" + here + "\n\t\t\tevents 1\n\t\t\twindow 1s\n\t\t}\n\t}\n}", []string{`zone name "a/b"`, "letters, digits, dots"}},
		{"name too long", ":80 {\n\tdistributed_ratelimit {\n\t\tzone " + strings.Repeat("z", 65) + " {" + here + "\n\t\t\tevents 1\n\t\t\twindow 1s\n\t\t}\n\t}\n}", []string{"is not 1 to 64 letters"}},
		{"name not ASCII", ":80 {\n\tdistributed_ratelimit {\n\t\tzone zöne {" + here + "\n\t\t\tevents 1\n\t\t\twindow 1s\n\t\t}\n\t}\n}", []string{`zone name "zöne"`}},
		{"name empty", ":80 {\n\tdistributed_ratelimit {\n\t\tzone \"\" {" + here + "\n\t\t\tevents 1\n\t\t\twindow 1s\n\t\t}\n\t}\n}", []string{"a zone needs a name"}},
		{"twice in one handler", ":80 {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\tevents 1\n\t\t\twindow 1s\n\t\t}\n\t\tzone z {" + here + "\n\t\t}\n\t}\n}", []string{`zone "z" is already defined on line 3`, "rename one or merge them"}},
		{"unknown option", zone("rate 5" + here), []string{`unknown option "rate"`, "match, exempt, key, events"}},
		{"handler option in a zone", zone("jitter 5" + here), []string{"jitter does not belong into a zone", "after the zones"}},
		{"distributed", zone("distributed" + here), []string{"distributed is not an option"}},
		{"option twice", zone("events 5" + here), []string{"events is already given on line 4"}},
		{"events missing", bareZone("window 1m") + "", []string{"events is missing"}},
		{"window missing", bareZone("events 1"), []string{"window is missing", "1m"}},
		{"events none", bareZone("events"+here, "window 1m"), []string{"events takes one argument"}},
		{"events below zero", bareZone("events -1"+here, "window 1m"), []string{`events "-1" is not a whole number between 0 and 1000000000000`}},
		{"events with a fraction", bareZone("events 1.5"+here, "window 1m"), []string{`events "1.5" is not a whole number`}},
		{"events too many", bareZone("events 10000000000000"+here, "window 1m"), []string{"between 0 and 1000000000000"}},
		{"events beyond int64", bareZone("events 99999999999999999999"+here, "window 1m"), []string{"between 0 and 1000000000000"}},
		{"events placeholder", bareZone("events {env.LIMIT}"+here, "window 1m"), []string{`events "{env.LIMIT}" is not a whole number`, "{$LIMIT}"}},
		{"window short", bareZone("window 500ms"+here, "events 1"), []string{"window 500ms is not between 1s and 30d"}},
		{"window long", bareZone("window 31d"+here, "events 1"), []string{"window 31d is not between 1s and 30d"}},
		{"window of nanoseconds", bareZone("window 1.5us"+here, "events 1"), []string{"is not between 1s and 30d"}},
		{"window finer than microseconds", bareZone("window 1.0000005s"+here, "events 1"), []string{"finer than a microsecond", "round it"}},
		{"window word", bareZone("window minute"+here, "events 1"), []string{`window "minute" is not a duration`}},
		{"window 0", bareZone("window 0s"+here, "events 1"), []string{`window "0s" is not a duration above zero`}},
		{"ipv4_prefix 0", zone("ipv4_prefix 0" + here), []string{"ipv4_prefix 0 is not between 1 and 32"}},
		{"ipv4_prefix 33", zone("ipv4_prefix 33" + here), []string{"ipv4_prefix 33 is not between 1 and 32"}},
		{"ipv6_prefix 0", zone("ipv6_prefix 0" + here), []string{"ipv6_prefix 0 is not between 1 and 128"}},
		{"ipv6_prefix 129", zone("ipv6_prefix 129" + here), []string{"ipv6_prefix 129 is not between 1 and 128"}},
		{"ipv6_prefix with a slash", zone("ipv6_prefix /64" + here), []string{`ipv6_prefix "/64" is not a whole number`}},
		{"on_empty_key", zone("on_empty_key allow" + here), []string{`unknown on_empty_key "allow"`, "client, skip or deny"}},
		{"on_store_error", zone("on_store_error open" + here), []string{`unknown on_store_error "open"`, "local, allow or deny"}},
		{"dry_run with argument", zone("dry_run true" + here), []string{"dry_run takes no argument", `"true"`}},
		{"match empty", zone("match" + here), []string{"match has no matcher", "match @name"}},
		{"exempt empty block", zone("exempt {" + here + "\n}"), []string{"exempt has no matcher"}},
		{"match unknown name", zone("match @nobody" + here), []string{"matcher @nobody is not defined", "define it in this site"}},
		{"match two names", strings.Replace(zone("match @a @b"+here), ":80 {", ":80 {\n@a path /a\n@b path /b", 1), []string{"one named matcher", "repeat match"}},
		{"match a name in a block", zone("match {", "@a"+here, "}"), []string{"write: match @a"}},
		{"match bare path", zone("match /login" + here), []string{"write: match path /login"}},
		{"match everything", zone("match *" + here), []string{"every request", "remove"}},
		{"exempt everything", zone("exempt *" + here), []string{"every request", "remove the zone"}},
		{"exempt bare address", zone("exempt 10.0.0.0/8" + here), []string{"write: exempt client_ip 10.0.0.0/8"}},
		{"match unknown matcher", zone("match {", "method GET", "uri /x"+here, "}"), []string{`there is no matcher "uri"`, "docs/caddyfile/matchers"}},
		{"key empty", zone(`key ""` + here), []string{"key is empty", "remove it for the default"}},
		{"key of two words", zone("key {client_ip} {host}" + here), []string{"key takes one argument, not 2"}},
		{"key with an open brace", zone(`key "{client_ip"` + here), []string{"brace that is never closed"}},
	} {
		if !strings.Contains(m.file, here) {
			// What is missing is reported where the zone begins.
			m.file = strings.Replace(m.file, "zone z {", "zone z {"+here, 1)
		}
		t.Run(m.name, m.check)
	}
}

func TestCaddyfileMistakesOfKeys(t *testing.T) {
	const own = "write {client_ip}"
	for key, wants := range map[string][]string{
		"{remote}":                      {"each connection", own},
		"{remote_port}":                 {"each connection", own},
		"{uuid}":                        {"differs for each request", own},
		"{http.request.remote}":         {"each connection", own},
		"{http.request.remote.port}":    {"each connection", own},
		"{http.request.uuid}":           {"differs for each request", own},
		"{http.request.duration_ms}":    {"differs for each request", own},
		"{time.now.unix}":               {"changes with time", "remove"},
		"{time.now}":                    {"changes with time"},
		"{http.request.client_ip}":      {"Caddy has no such placeholder", own},
		"{http.request.remote_ip}":      {"Caddy has no such placeholder", own},
		"{http.request.remote_host}":    {"Caddy has no such placeholder", own},
		"{remote_ip}":                   {"Caddy has no such placeholder", own},
		"{remote_addr}":                 {"Caddy has no such placeholder", own},
		"{ip}":                          {"Caddy has no such placeholder", own},
		"{http.request.nonsense}":       {"is no placeholder of Caddy", "caddyserver.com/docs"},
		"{hostport}":                    {"chooses the port", "write {host}"},
		"{client_ip}-{hostport}":        {"chooses the port", "write {host}"},
		"{http.request.body}":           {"the whole of a body", "{form.<field>} or {json.<path>}"},
		"{http.request.body_base64}":    {"the whole of a body"},
		"{vars.start_time}":             {"differs for each request", own},
		"{vars.uuid}":                   {"differs for each request", own},
		"{vars.trace_id}":               {"differs for each request", own},
		"{err.id}":                      {"differs for each request", own},
		"{http.error.trace}":            {"differs for each request", own},
		"{http.time_until_shutdown}":    {"differs for each request", own},
		"{http.response.header.X}":      {"not known before the response"},
		"{rp.duration_ms}":              {"differs for each request"},
		"{header.Host}":                 {"always empty", "write {host}"},
		"{http.request.header.}":        {"ends in a dot"},
		"{http.request.form.user}":      {"write {form.user}"},
		"{http.request.json.user.name}": {"write {json.user.name}"},
		"header.X-Api-Key":              {"has no braces", "share one limit", "write {header.X-Api-Key}", "{http.request.header.X-Api-Key}"},
		"vars.tenant":                   {"has no braces", "write {vars.tenant}", "{http.vars.tenant}"},
		"form.user":                     {"has no braces", "write {form.user}"},
		"http.auth.user.id":             {"has no braces", "write {http.auth.user.id}"},
		"client_ip":                     {"has no braces", own},
		"remote_addr":                   {"has no braces", own},
		"remote_host":                   {"has no braces", "write {remote_host}"},
		"{http.requst.x}":               {"is no placeholder of Caddy", "did you mean {http.request.x}"},
		"{htpp.request.host}":           {"did you mean {http.request.host}"},
		"{headers.X-User}":              {"did you mean {header.X-User}"},
		"{header.X.User}":               {"write {http.request.header.X.User}"},
		"{http.request.tls.sni}":        {"is no placeholder of Caddy"},
		"{labels.x}":                    {"is no placeholder of Caddy"},
		"{path.x}":                      {"is no placeholder of Caddy"},
		"{system.host}":                 {"is no placeholder of Caddy"},
		"{hots}":                        {"did you mean {host}", "{http.request.host}"},
		"{hsot}":                        {"did you mean {host}"},
		"{methd}":                       {"did you mean {method}"},
		"{clientip}":                    {"did you mean {client_ip}", "{http.vars.client_ip}"},
		"{header.X-Forwarded-For}":      {"written by the client", own, "client_ip_headers", "trusted_proxies"},
		"{header.x-forwarded-for}":      {"written by the client", own},
		"{header.Forwarded}":            {"written by the client", own},
		"{header.X-Real-IP}":            {"written by the client", own},
		"{header.CF-Connecting-IP}":     {"written by the client", own},
		"{header.True-Client-IP}":       {"written by the client", own},
		"{header.Fly-Client-IP}":        {"written by the client", own},
		"a-{header.X-Forwarded-For}-b":  {"written by the client", own},
		"{client_ip}{header.X-Real-IP}": {"written by the client", own},
	} {
		t.Run(key, mistake{file: zone("key " + key + here), wants: append(wants, `zone "z"`)}.check)
	}
}

func TestCaddyfileTakesSensibleKeys(t *testing.T) {
	for _, key := range []string{
		"everybody", "host", "api.v1", "{client_ip}", "{remote_host}", "{host}", "{header.Authorization}", "{header.X-Api-Key}|{client_ip}",
		"{cookie.session}", "{path}", "{method}", "{query.token}", "{tls_client_fingerprint}", "{http.auth.user.id}", "{vars.tenant}",
		"{http.request.tls.client.subject}", "{http.request.host.labels.1}", "{http.request.remote.host/24,64}", "{re.name.1}",
		"{tenant}", "{uid}", "{geoip2.country_code}", "{http.ratelimit.name}", "{l4.x}", "{tls_version}", "{labels.0}", "{path.0}",
		"{http.request.tls.client.san.dns_names.0}", "{http.request.local}", "{http.request.local.host}", "{http.request.tls.server_name}",
		"{http.distributed_ratelimit.client_ip}", `\{literal`, "{env.REGION}", "{http.request.uri.query.x}", "{orig_path}",
	} {
		if config, err := adapt(zone("key " + key)); err != nil {
			t.Errorf("key %s: got error %v, want none", key, err)
		} else if err := validated(t, config); err != nil {
			t.Errorf("key %s: provisioning: got error %v, want none", key, err)
		}
	}
}
