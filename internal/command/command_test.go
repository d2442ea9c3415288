package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// endpoint is an admin endpoint that always gives one answer, and remembers calls.
type endpoint struct {
	*httptest.Server
	status int
	answer string
	calls  []string
}

func newEndpoint(t *testing.T) *endpoint {
	e := &endpoint{status: http.StatusOK, answer: "{}"}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		e.calls = append(e.calls, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, body)))
		w.WriteHeader(e.status)
		_, _ = io.WriteString(w, e.answer)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) address() string { return strings.TrimPrefix(e.URL, "http://") }

// run runs a command, and returns what it printed.
func (e *endpoint) run(stdin string, args ...string) (string, error) {
	parent := &cobra.Command{Use: "distributed-ratelimit", SilenceErrors: true, SilenceUsage: true}
	Parent(parent)
	var out bytes.Buffer
	parent.SetOut(&out)
	parent.SetErr(&out)
	parent.SetIn(strings.NewReader(stdin))
	parent.SetArgs(append(args, "--address", e.address()))
	err := parent.Execute()
	return out.String(), err
}

const changedAnswer = `{"zone":"login","store":"redis","dry_run":false,"key":"192.0.2.7","until":"2036-11-24T14:04:57Z","found":true,"kept":false,"holds_elsewhere_within":"1.25s"}`

// What each command asks for, and what it prints.
func TestCommands(t *testing.T) {
	for _, c := range []struct {
		args   []string
		stdin  string
		answer string
		call   string
		prints []string
	}{
		{args: []string{"show", "login", "192.0.2.7"},
			answer: `{"zone":"login","store":"redis","key":"192.0.2.7","limit":5,"window":900,"used":3,"remaining":2,"reset":852.4,"source":"store"}`,
			call:   `GET /distributed_ratelimit/zones/login/keys {"key":"192.0.2.7"}`,
			prints: []string{"limit +5 in 15m\n", "used +3\n", "remaining +2\n", "all free +in 14m12s\n"}},
		{args: []string{"show", "api", "--client-ip", "192.0.2.7", "--plan", "pro", "--store", "redis 1", "--dry-run=false"},
			answer: `{"zone":"api","key":"client_ip=192.0.2.7","plan":"pro","window":3600,"used":3,"override":true,"blocked_until":"2036-11-24T14:04:57Z","blocked_by":"hand","source":"store"}`,
			call:   `GET /distributed_ratelimit/zones/api/keys {"client_ip":"192.0.2.7","dry_run":"false","plan":"pro","store":"redis 1"}`,
			prints: []string{"unlimited in 1h, plan pro, set by hand\n", "remaining +-\n", `blocked +until 2036-.* by hand`}},
		{args: []string{"show", "api", "k", "--dry-run"},
			answer: `{"zone":"api","dry_run":true,"key":"k","limit":4,"remaining":1,"source":"local","store_error":"store away: no answer"}`,
			call:   `GET /distributed_ratelimit/zones/api/keys {"dry_run":"true","key":"k"}`,
			prints: []string{`zone +api \(dry run\)`, "used +-\n", `the store has not answered \(store away: no answer\)`}},
		{args: []string{"show", "api", "-"}, stdin: "a secret\n", answer: `{"key":"a secret","source":"store"}`,
			call: `GET /distributed_ratelimit/zones/api/keys {"key":"a secret"}`, prints: []string{"a secret"}},
		{args: []string{"show", "a/b?c", "%2F\x00\xff ü"}, answer: `{"key":"x","source":"store"}`,
			call: `GET /distributed_ratelimit/zones/a%2Fb%3Fc/keys {"key":"%2F\u0000\ufffd ü"}`},
		{args: []string{"reset", "login", "192.0.2.7"}, answer: changedAnswer,
			call:   `DELETE /distributed_ratelimit/zones/login/keys {"key":"192.0.2.7"}`,
			prints: []string{"The key 192.0.2.7 of zone login has its whole limit again. All instances follow within 1.25s.\n"}},
		{args: []string{"ban", "login", "192.0.2.7", "--for", "10m"}, answer: changedAnswer,
			call:   `PUT /distributed_ratelimit/zones/login/bans {"for":"10m","key":"192.0.2.7"}`,
			prints: []string{`is banned until 2036-.* All instances follow within 1.25s`}},
		{args: []string{"unban", "login", "192.0.2.7"}, answer: changedAnswer,
			call:   `DELETE /distributed_ratelimit/zones/login/bans {"key":"192.0.2.7"}`,
			prints: []string{"not banned any more, and has its whole limit again. All"}},
		{args: []string{"unban", "login", "192.0.2.7", "--keep"}, answer: `{"zone":"login","key":"192.0.2.7","found":false,"kept":true}`,
			call:   `DELETE /distributed_ratelimit/zones/login/bans {"keep":"true","key":"192.0.2.7"}`,
			prints: []string{"not banned any more. No ban was set by hand.\n"}},
		{args: []string{"bans"}, answer: "[]", call: "GET /distributed_ratelimit/bans", prints: []string{"No ban was set by hand"}},
		{args: []string{"bans"}, answer: `[{"zone":"login","key":"192.0.2.7","set":"2026-11-24T14:04:57Z","until":"2036-11-24T14:04:57Z","id":"ZKQ6O2JD5M"},{"zone":"api","dry_run":true,"not_configured":true}]`,
			call: "GET /distributed_ratelimit/bans", prints: []string{"ZONE +KEY +SET +UNTIL +ID", `login +192.0.2.7 +2026-.* ZKQ6O2JD5M\n`, `api \(dry run\) \(not configured\) +-`}},
		{args: []string{"unban", "login", "--id", "ZKQ6O2JD5M"}, answer: `{"zone":"login","key":"","found":true,"kept":true,"holds_elsewhere_within":"1.25s"}`,
			call:   `DELETE /distributed_ratelimit/zones/login/bans {"id":"ZKQ6O2JD5M"}`,
			prints: []string{"The key of this ban of zone login is not banned any more. All"}},
		{args: []string{"overrides"}, answer: "[]", call: "GET /distributed_ratelimit/overrides", prints: []string{"No limit was set by hand"}},
		{args: []string{"overrides"}, answer: `[{"zone":"api","plan":"pro","events":9,"window":60,"until":"2036-11-24T14:04:57Z","note":"sale","in_force":true},{"zone":"up","dry_run":true,"events":3,"in_force":false,"because":"the configuration has no such zone"}]`,
			call: "GET /distributed_ratelimit/overrides", prints: []string{"ZONE +PLAN +LIMIT +UNTIL +IN FORCE +NOTE", `api +pro +9 in 1m +2036-.* yes +sale`, `up \(dry run\) +- +3 in flight .* no: the configuration has no such zone +-`}},
		{args: []string{"override", "api", "--events", "1000", "--for", "1h", "--plan", "pro", "--note", "sale"},
			answer: `{"zone":"api","plan":"pro","events":1000,"until":"2036-11-24T14:04:57Z","holds_elsewhere_within":"1.25s"}`,
			call:   `PUT /distributed_ratelimit/zones/api/override {"events":"1000","for":"1h","note":"sale","plan":"pro"}`,
			prints: []string{"The limit of zone api, plan pro is 1000 until 2036-"}},
		{args: []string{"override", "api", "--end"}, answer: `{"zone":"api","found":true,"holds_elsewhere_within":"1.25s"}`,
			call: "DELETE /distributed_ratelimit/zones/api/override {}", prints: []string{"The configured limit of zone api holds again. All"}},
		{args: []string{"override", "api", "--end"}, answer: `{"zone":"api","found":false}`,
			call: "DELETE /distributed_ratelimit/zones/api/override {}", prints: []string{"There was no override of zone api."}},
		{args: []string{"top", "pages", "-n", "3"}, answer: `{"zone":"pages","over":83.2,"keys":[{"key":"192.0.2.7","granted":9,"refused":1},{"key":"b","granted":2,"refused":0,"missed":4}]}`,
			call: `GET /distributed_ratelimit/top {"n":"3","zone":"pages"}`, prints: []string{"zone pages, in the last 1m23s\n", "9 +1 +192.0.2.7\n", `0 \(and up to 4 more of both\) +b`}},
		{args: []string{"explain", "https://example.com/", "--header", "X-A: b:c", "-H", "X-A:d", "-X", "POST", "--from", "192.0.2.7", "--var", "a=b=c"},
			answer: `{"server":"srv0","granted":false,"handlers":[{"client":{"ip":"192.0.2.7","because":"it is connected"},"reason":"limit","status":429,"zones":[
				{"zone":"pages","applies":true,"key":"192.0.2.7","limit":5,"used":5,"remaining":0,"reset":60,"granted":false,"reason":"limit"},{"zone":"api","applies":true,"key":"k","limit":5,"granted":false,"reason":"blocked","blocked_until":"2036-11-24T14:04:57Z","blocked_by":"hand"},{"zone":"login","applies":false,"because":"not_matched"}]}],"assumed":["it is HTTPS"]}`,
			call: `POST /distributed_ratelimit/explain {"headers":{"X-A":["b:c","d"]},"method":"POST","remote_addr":"192.0.2.7","url":"https://example.com/","vars":{"a":"b=c"}}`,
			prints: []string{"would be refused by server srv0", "client is 192.0.2.7 .* status 429, reason limit", "pages +192.0.2.7 +5 +5 +0 +1m +refused: limit", "refused, blocked by hand until 2036", "login .* does not apply: not_matched",
				"Assumed: it is HTTPS."}},
		{args: []string{"explain", "http://example.com/", "--from", "192.0.2.7"}, answer: `{"server":"srv0","granted":true,"handlers":[],"ends":"reverse_proxy","assumed":[]}`,
			call:   `POST /distributed_ratelimit/explain {"remote_addr":"192.0.2.7","url":"http://example.com/"}`,
			prints: []string{"would be granted by server srv0", "It meets no limit. Its way ends with reverse_proxy; a limit behind"}},
	} {
		e := newEndpoint(t)
		e.answer = c.answer
		out, err := e.run(c.stdin, c.args...)
		if err != nil || len(e.calls) != 1 || e.calls[0] != c.call {
			t.Errorf("%q: error %v, calls %q, want %q", c.args, err, e.calls, c.call)
		}
		for _, want := range c.prints {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("%q prints no %q:\n%s", c.args, want, out)
			}
		}
		if c.args[0] == "top" {
			continue
		}
		if out, err = e.run(c.stdin, append(c.args, "--json")...); err != nil || !json.Valid([]byte(out)) || !strings.HasPrefix(out, c.answer[:1]) {
			t.Errorf("%q --json: error %v, prints\n%s", c.args, err, out)
		}
	}
}

func TestStatus(t *testing.T) {
	answers := map[string]string{
		"/distributed_ratelimit/stores": `[{"name":"redis 127.0.0.1:6379 db 0","condition":"away","instances":3,"servers":[{"server":"127.0.0.1:6379","condition":"away","error":"no answer","losses":1}],
			"leases":{"keys":4,"leased_keys":2,"units":17,"refusals":0},"unreported":{"keys":1,"units":2,"refunds":0}}]`,
		"/distributed_ratelimit/zones": `[{"name":"api","store":"redis","dry_run":true,"tier":{"plan":"x"},"window":60,"counters":{"requests":{"granted":{"store":2,"lease":3},"dry_run":{"store":4}}},
			"overrides":[{"plan":"pro","events":9,"until":"2036-11-24T14:04:57Z","note":"sale","in_force":false,"because":"it was set for concurrent"}],"bans_by_hand":1,"at_most":null},
			{"name":"up","concurrent":3,"counters":{"requests":{}},"overrides":[],"at_most":1}]`,
		"/distributed_ratelimit/bans":      `[{"zone":"api","store":"redis","dry_run":true},{"zone":"api","store":"redis"}]`,
		"/distributed_ratelimit/overrides": `[{"zone":"api","store":"redis","dry_run":true},{"zone":"gone","store":"redis"},{"zone":"api","store":"memory","dry_run":true}]`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, answers[r.RequestURI]+"\n") }))
	defer server.Close()
	e := &endpoint{Server: server}
	out, err := e.run("", "status")
	for _, want := range []string{"redis 127.0.0.1:6379 db 0 +away +3 +17 +2", "127.0.0.1:6379 +away: no answer +1", `api \(dry run\) +by plan in 1m +5 +0 +4 +1 +no bound +plan pro: 9 until 2036-.*, sale, not in force: it was set for concurrent`, "up +3 in flight",
		"zones that the configuration does not have: bans: 1, overrides: 2"} {
		if err != nil || !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("status prints no %q, %v:\n%s", want, err, out)
		}
	}
	var both struct{ Stores, Zones []any }
	out, err = e.run("", "status", "--json")
	if err != nil || json.Unmarshal([]byte(out), &both) != nil || len(both.Stores) != 1 || len(both.Zones) != 2 {
		t.Errorf("status --json: %v\n%s", err, out)
	}
}

// What is wrong is said in a sentence.
func TestCommandErrors(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		answer string
		want   string
	}{
		{[]string{"shwo"}, 200, "", `no command "shwo"`},
		{[]string{"show", "login"}, 200, "", "--client-ip; for example: caddy distributed-ratelimit show login 192.0.2.7"},
		{[]string{"show", "login", "k", "--client-ip", "192.0.2.7"}, 200, "", "either the key or --client-ip"},
		{[]string{"ban", "login", "k"}, 200, "", "--for 10m"},
		{[]string{"override", "api"}, 200, "", "--events 1000 --for 1h; or --end"},
		{[]string{"override", "api", "--end", "--events", "1"}, 200, "", "--end stands without"},
		{[]string{"override"}, 200, "", "write the zone"},
		{[]string{"top"}, 200, "", "write the zone"},
		{[]string{"explain"}, 200, "", "write the URL"},
		{[]string{"explain", "http://a/", "--header", "x"}, 200, "", "no colon"},
		{[]string{"explain", "http://a/", "--var", "x"}, 200, "", "no equals sign"},
		{[]string{"status", "x"}, 200, "", "unknown command"},
		{[]string{"bans"}, 404, `{"error":"no zone is called \"x\"; there are: y"}`, `no zone is called "x"; there are: y`},
		{[]string{"bans"}, 404, "404 page not found\n", "was built without this plugin"},
		{[]string{"bans"}, 403, "\x1b[2Jforbidden", `status 403: \x1b[2Jforbidden`},
		{[]string{"bans"}, 200, "<html>", "another version"},
	} {
		e := newEndpoint(t)
		e.status, e.answer = c.status, c.answer
		out, err := e.run("", c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q with answer %d %q: got error %v, want %q in it; printed\n%s", c.args, c.status, c.answer, err, c.want, out)
		}
	}
	e := newEndpoint(t)
	e.Close()
	if _, err := e.run("", "bans"); err == nil || !strings.Contains(err.Error(), "is Caddy running, with its admin endpoint at "+e.address()) {
		t.Errorf("without a Caddy: %v", err)
	}
}

// The address of the admin endpoint is read from a configuration, as Caddy's own
// commands do.
func TestAddressFromConfiguration(t *testing.T) {
	e := newEndpoint(t)
	e.answer = "[]"
	path := filepath.Join(t.TempDir(), "caddy.json")
	if err := os.WriteFile(path, []byte(`{"admin":{"listen":"`+e.address()+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	parent := &cobra.Command{Use: "distributed-ratelimit", SilenceErrors: true, SilenceUsage: true}
	Parent(parent)
	parent.SetOut(io.Discard)
	parent.SetArgs([]string{"bans", "--config", path})
	if err := parent.Execute(); err != nil || len(e.calls) != 1 {
		t.Errorf("error %v, calls %q", err, e.calls)
	}
}

// A stranger who chose a key writes nothing to the terminal but what is seen.
func TestTerminalIsSafe(t *testing.T) {
	const evil = "\x1b[2J\u009b31m\u202e\x07\ttab\nline\x7f"
	quoted, _ := json.Marshal(evil)
	e := newEndpoint(t)
	for _, c := range []struct{ answer, command string }{
		{`{"zone":KEY,"key":KEY,"plan":KEY,"blocked_until":"2036-11-24T14:04:57Z","blocked_by":KEY,"store_error":KEY}`, "show login k"},
		{`{"zone":"login","key":KEY,"until":"2036-11-24T14:04:57Z","holds_elsewhere_within":KEY}`, "ban login k --for 1m"},
		{`[{"zone":"login","key":KEY}]`, "bans"},
		{`{"zone":KEY,"keys":[{"key":KEY,"granted":1}]}`, "top login"},
		{`{"server":KEY,"handlers":[{"client":{"ip":KEY},"reason":KEY,"zones":[{"zone":KEY,"key":KEY,"applies":true},{"because":KEY}]}],"assumed":[KEY]}`, "explain http://a/"},
	} {
		e.answer = strings.ReplaceAll(c.answer, "KEY", string(quoted))
		for _, flags := range []string{"", " --json"} {
			out, err := e.run("", strings.Fields(c.command+flags)...)
			if err != nil || strings.ContainsAny(out, "\x1b\u009b\u202e\x07\t\x7f") || strings.Contains(out, "\nline") {
				t.Errorf("%s%s: %v, prints %q", c.command, flags, err, out)
			}
			if flags != "" && !json.Valid([]byte(out)) {
				t.Errorf("%s%s prints no JSON: %s", c.command, flags, out)
			}
		}
	}
}

// Each command has a help text with an example.
func TestHelp(t *testing.T) {
	parent := &cobra.Command{Use: "distributed-ratelimit"}
	Parent(parent)
	for _, cmd := range parent.Commands() {
		if cmd.Short == "" || cmd.Long == "" || !strings.Contains(cmd.Example, "$ caddy distributed-ratelimit "+cmd.Name()) {
			t.Errorf("%s: short %q, long %q, example %q", cmd.Name(), cmd.Short, cmd.Long, cmd.Example)
		}
	}
}

func TestSpan(t *testing.T) {
	for seconds, want := range map[float64]string{0: "0s", 0.25: "250ms", 3: "3s", 60: "1m", 90: "1m30s", 900: "15m", 3600: "1h", 3660: "1h1m", 36000: "10h", 2592000: "30d", 86400: "24h", 90061: "25h1m1s", 3601: "1h0m1s"} {
		if got := span(seconds); got != want {
			t.Errorf("span(%v) is %q, want %q", seconds, got, want)
		}
	}
}
