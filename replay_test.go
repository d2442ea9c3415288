package distributedratelimit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/logtest"
)

// replayLine is a request in a log: method, host, path and headers, as JSON.
func replayLine(n int, client, method, host, uri, headers string, status int) string {
	return fmt.Sprintf(`{"ts":%d.5,"request":{"remote_ip":"%s","remote_port":"1234","client_ip":"%[2]s","proto":"HTTP/1.1","method":"%s","host":"%s","uri":"%s","tls":{"version":772},"headers":{%s}},"user_id":"u%[1]d","duration":0.001,"status":%[7]d}`+"\n",
		1_764_000_000+n, client, method, host, uri, headers, status)
}

// replayed runs the command on a Caddyfile and a log.
func replayed(t *testing.T, caddyfile, log string, args ...string) (out string, err error) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(config, []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := replayCommand()
	var stdout bytes.Buffer
	cmd.SetOut(&stdout)
	cmd.SetErr(&stdout)
	cmd.SetIn(strings.NewReader(log))
	cmd.SetArgs(append([]string{"--config", config, "-"}, args...))
	err = cmd.Execute()
	return stdout.String(), err
}

// says fails unless what the command prints holds all of these, with one space for each
// run of white space.
func says(t *testing.T, out string, parts ...string) {
	t.Helper()
	plain := strings.Join(strings.Fields(out), " ")
	for _, part := range parts {
		if !strings.Contains(plain, part) {
			t.Errorf("it does not say %q:\n%s", part, out)
		}
	}
}

// Requests go through the routes, matchers and keys that they would go through in Caddy,
// and through no further ones.
func TestReplayFollowsRoutes(t *testing.T) {
	const caddyfile = `{
	servers {
		trusted_proxies static 10.0.0.0/8
	}
}
(limits) {
	distributed_ratelimit {
		zone {args[0]} {
			key {args[1]}
			events 2
			window 1h
		}
	}
}
a.example, b.example {
	handle_path /api/* {
		vars tenant {header.X-Tenant}
		route {
			import limits tenant {vars.tenant}
			handle /v1/* {
				import limits v1 {path}
				reverse_proxy localhost:1
			}
			respond 204
		}
	}
	handle /old/* {
		route {
			respond 410
			import limits never {client_ip}
		}
	}
	handle {
		route {
			basic_auth {
				alice $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
			}
			import limits user {http.auth.user.id}
			import limits address {client_ip}
			@agent header User-Agent bad*
			distributed_ratelimit @agent {
				zone agent {
					events 0
					window 1h
				}
			}
		}
	}
	log
}
http://plain.example:8080 {
	import limits plain {client_ip}
}
`
	log := ""
	for n := range 5 {
		client := "10.0.0.1"
		log += replayLine(n, client, "GET", "a.example", "/api/v1/x", `"X-Tenant":["t1"],"X-Forwarded-For":["192.0.2.7"]`, 200)
		log += replayLine(n, client, "GET", "a.example", "/api/v2", `"X-Tenant":["t2"]`, 200)
		log += replayLine(n, client, "GET", "b.example", "/old/a", ``, 200)
		log += replayLine(n, client, "GET", "b.example", "/", `"X-Forwarded-For":["192.0.2.7"],"User-Agent":["badbot"]`, 200)
		log += replayLine(n, "192.0.2.8", "GET", "plain.example:8080", "/", ``, 200)
		log += replayLine(n, "192.0.2.8", "GET", "c.example", "/", ``, 200)
	}
	// Nobody is logged in: these do not come to the limits.
	log += strings.ReplaceAll(replayLine(9, "192.0.2.9", "GET", "b.example", "/", ``, 401), `"u1764000009"`, `""`)
	log = strings.ReplaceAll(log, `"host":"plain.example:8080","uri":"/","tls":{"version":772},`, `"host":"plain.example:8080","uri":"/",`)
	out, err := replayed(t, caddyfile, log)
	if err != nil {
		t.Fatal(err)
	}
	says(t, out,
		"31 requests", "11 of them no zone applies to",
		"Zone tenant: 2 in 1h, by {http.vars.tenant} requests 10 would be refused 6 60.00 % clients 2",
		"Zone v1: 2 in 1h, by {http.request.uri.path} requests 2 would be refused 0",
		"Zone user: 2 in 1h, by {http.auth.user.id} requests 5 would be refused 0 0 % clients 5",
		"Zone address: 2 in 1h, by the client's address requests 5 would be refused 3 60.00 % clients 1",
		"192.0.2.7 3 5",
		"Zone agent: 0", "requests 2 would be refused 2",
		"Zone plain: 2 in 1h, by the client's address requests 5 would be refused 3",
	)
	if strings.Contains(out, "Zone never: 2 in 1h, by the client's address\n  requests          5") {
		t.Errorf("requests pass a handler that responds:\n%s", out)
	}
}

// What the log does not tell is said, with what to do about it.
func TestReplaySaysWhatIsUnknown(t *testing.T) {
	const caddyfile = `a.example {
	route {
		distributed_ratelimit {
			zone token {
				key {header.Authorization}
				events 1
				window 1h
			}
			zone session {
				match header Cookie *session*
				events 1
				window 1h
			}
			zone name {
				key {form.user}
				events 1
				window 1h
			}
			zone api {
				key {header.X-Api-Key}
				events 1
				window 1h
			}
		}
		respond ok
	}
	handle_errors {
		distributed_ratelimit 1 1m
	}
}
`
	log := ""
	for n := range 3 {
		log += replayLine(n, "192.0.2.7", "GET", "a.example", "/", `"Authorization":["REDACTED"],"Cookie":["REDACTED"],"X-Api-Key":["k`+fmt.Sprint(n)+`"]`, 200)
	}
	log += `192.0.2.7 - - [24/Nov/2025:17:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "x"` + "\n"
	out, err := replayed(t, caddyfile, log)
	if err != nil {
		t.Fatal(err)
	}
	says(t, out,
		"Zone token", "not decidable 3 ", "3 requests could not be decided: the zone reads the header Authorization, which the log redacts. Write log_credentials",
		"Zone session", "its matchers look at the header Cookie, which the log redacts",
		"Zone name", "Not replayed: it reads the bodies of requests",
		"Zone api", "it reads the header X-Api-Key, and the log of some requests has no headers; use a log in the format json",
		"limits in error routes (handle_errors) are not replayed",
	)
}

func TestReplayMistakes(t *testing.T) {
	const good = "a.example {\n\tdistributed_ratelimit 1 1m\n\trespond ok\n}\n"
	line := replayLine(1, "192.0.2.7", "GET", "a.example", "/", ``, 200)
	for _, tt := range []struct {
		caddyfile, log string
		args           []string
		want           string
	}{
		{"a.example\nrespond ok\n", line, nil, "the configuration has no limits"},
		{"a.example {\n\tdistributed_ratelimit\n}\n", line, nil, "no limit given"},
		{"{\n\tdebug\n}\n", line, nil, "no HTTP server"},
		{good, line, []string{"--suggest", "999"}, "--suggest 999 is no share of the clients"},
		{good, line, []string{"--suggest", "1", "--windows", "1ms"}, "--windows 1ms: write windows of 1s to 30d"},
		{good, line, []string{"--max-clients", "0"}, "--max-clients 0"},
		{good, line, []string{"--config", "/does/not/exist"}, "there is no configuration /does/not/exist; name yours with --config"},
		{good, line, []string{"--adapter", "yaml"}, `there is no config adapter "yaml"`},
		{good, strings.ReplaceAll(line, "a.example", "b.example"), nil, "no zone applies to any of 1 requests. The log has the hosts b.example; the configuration has a.example"},
		{good, "", nil, "the log is empty"},
	} {
		_, err := replayed(t, tt.caddyfile, tt.log, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %s", tt.args, err, tt.want)
		}
	}
}

// A log that names no host belongs to the only one of the configuration.
func TestReplayCommonFormat(t *testing.T) {
	log := strings.Repeat(`192.0.2.7 - - [24/Nov/2025:17:00:00 +0000] "GET / HTTP/1.1" 200 1`+"\n", 4)
	out, err := replayed(t, "a.example {\n\tdistributed_ratelimit 1 1m\n\trespond ok\n}\n", log, "--suggest", "99%")
	if err != nil {
		t.Fatal(err)
	}
	says(t, out, "requests 4 would be refused 3 75.00 % clients 1", "worst minute: 2025-11-24 17:00 UTC, 3 of 4 requests refused", "1m 4")
	if _, err := replayed(t, "a.example, b.example {\n\tdistributed_ratelimit 1 1m\n\trespond ok\n}\n", log); err == nil || !strings.Contains(err.Error(), "--host") {
		t.Errorf("two hosts: %v", err)
	}
	if _, err := replayed(t, "a.example, b.example {\n\tdistributed_ratelimit 1 1m\n\trespond ok\n}\n", log, "--host", "b.example"); err != nil {
		t.Errorf("two hosts, one named: %v", err)
	}
}

// What the manual shows is what the command prints, but for how long it took.
func TestReplayInTheManual(t *testing.T) {
	page, err := os.ReadFile("docs/replay.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```caddyfile\n")
	caddyfile, rest, _ := strings.Cut(rest, "```\n")
	_, rest, _ = strings.Cut(rest, "```text\n")
	want, _, _ := strings.Cut(rest, "```\n")
	var log bytes.Buffer
	if _, err := logtest.Write(&log, logtest.Options{Seed: 1, Requests: 60_000, Rate: 0.7}); err != nil {
		t.Fatal(err)
	}
	out, err := replayed(t, caddyfile, log.String(), "--suggest", "99%,99.9%", "--html", filepath.Join(t.TempDir(), "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	cut := func(text string) string { return text[:strings.LastIndex(text, " MiB, in ")] }
	if cut(out) != cut(want) {
		t.Errorf("the manual shows something else:\n%s", out)
	}
}

// A client writes the port in its Host as it likes, which does not bring it past the
// limits of the server that it spoke TLS with, nor to those of one that it did not.
func TestReplayForgedPort(t *testing.T) {
	const caddyfile = `a.example {
	distributed_ratelimit 1 1h secure
	respond ok
}
http://a.example {
	distributed_ratelimit 1 1h plain
	respond ok
}
`
	log := ""
	for n := range 4 {
		log += replayLine(n, "192.0.2.7", "GET", "a.example:80", "/", ``, 200)
	}
	for n := range 3 {
		log += strings.ReplaceAll(replayLine(n, "192.0.2.7", "GET", "a.example:443", "/", ``, 200), `"tls":{"version":772},`, "")
	}
	out, err := replayed(t, caddyfile, log)
	if err != nil {
		t.Fatal(err)
	}
	says(t, out, "Zone secure: 1 in 1h, by the client's address requests 4 would be refused 3", "Zone plain: 1 in 1h, by the client's address requests 3 would be refused 2")
}
