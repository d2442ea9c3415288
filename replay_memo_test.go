package distributedratelimit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/replay"
)

// memoLine is a random request out of few, so that many are alike in all but one thing.
func memoLine(random *rand.Rand) *replay.Line {
	pick := func(of ...string) []byte { return []byte(of[random.IntN(len(of))]) }
	line := &replay.Line{
		Status: []int64{200, 401, 404}[random.IntN(3)], Method: pick("GET", "POST"),
		Host: pick("a.example", "b.example", "A.example:443", "a.example:8080", ""),
		URI: pick("/", "/x", "/api/x", "/API/x", "/api/x?q=1", "/api/%78", "//api/x", "/api/../x", "/x?q=2", "/x#y", "*", "", "/t/t1", "/t/t2",
			"/?api/x", "/ api", "/a%3fb", "/a?b", "/%zz", "/%zz?.php"),
		Proto: pick("HTTP/1.1", "HTTP/3.0"), RemoteIP: pick("192.0.2.7", "192.0.2.8", "2001:db8::7", "10.0.0.1", "", "@", "192.0.2.7:1"),
		RemotePort: pick("1", "", "65536", "00001", "x", "40000"), UserID: pick("", "alice"),
		Headers:     pick(`{}`, `{"X-T":["t1"]}`, `{"X-T":["t2"],"X-Forwarded-For":["192.0.2.99"]}`, `{"Authorization":["REDACTED"]}`),
		RespHeaders: pick(`{"X-Count":["no"]}`, `{}`),
	}
	if random.IntN(2) == 0 {
		line.TLS = &replay.TLS{Version: 772}
	}
	return line
}

// What is remembered of requests is what their evaluation comes to: whatever matchers,
// handlers and keys look at.
func TestReplayRemembersNothingElse(t *testing.T) {
	site := func(body string) string {
		return "a.example, b.example {\nroute {\n" + body + "\ndistributed_ratelimit {\nzone last {\nevents 5\nwindow 1m\n}\n}\nrespond ok\n}\n}\n"
	}
	limit := func(name, more string) string {
		return fmt.Sprintf("distributed_ratelimit {\nzone %s {\nwindow 1m\n%s\n}\n}\n", name, more)
	}
	const five = "events 5\n"
	for _, tt := range []struct {
		name, caddyfile string
		steady          bool // the routes are followed once for requests that are alike
		open            int  // of the requests remembered: 0 for none, 1 for some, 2 for all
	}{
		{"plain", site(""), true, 0},
		{"hosts", "a.example {\n" + limit("a", five) + "}\nhttp://b.example:8080, http://a.example:8080 {\n" + limit("b", five+"ipv6_prefix 48") + "}\n", true, 0},
		{"path", site("handle /api/* {\n" + limit("api", five) + "}\nhandle {\n" + limit("rest", five+"ipv4_prefix 24") + "}"), true, 0},
		{"path that is none", site(limit("php", five+"match path *.php")), true, 0},
		{"method", site("@m {\nmethod POST\nnot path /x\n}\nhandle @m {\n" + limit("m", five) + "respond no\n}"), true, 0},
		{"match of a zone", site(limit("m", five+"match {\nmethod POST\npath /api/*\n}\nexempt path /api/x")), true, 0},
		{"stripped", site("handle_path /api/* {\nhandle /x {\n" + limit("x", five) + "}\n}"), true, 0},
		{"count_if", site(limit("c", five+"count_if {\nstatus 401\nheader X-Count no\n}")), true, 0},
		{"in flight", "a.example {\ndistributed_ratelimit {\nzone f {\nconcurrent 3\n}\n}\n}\n", true, 0},
		{"nothing and too much", site(limit("z", "events 0") + limit("dear", five+"cost 3")), true, 0},
		{"login", site("basic_auth {\nalice $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\n" + limit("u", five)), true, 0},
		{"key of a user", site(limit("u", five+"key {http.auth.user.id}")), true, 2},
		{"key of a header", site("handle /api/* {\n" + limit("h", five+"key {header.X-T}\non_empty_key skip") + "}"), true, 1},
		{"key of a path", site(limit("p", five+"key {path}")), true, 2},
		{"key of a query", site("handle_path /api/* {\n" + limit("p", five+"key {query.q}") + "\n}"), true, 1},
		{"key of TLS", site(limit("p", five+"key {http.request.proto}")), true, 2},
		{"key of a zone that matches", site(limit("p", five+"key {header.X-T}\nmatch method POST")), true, 1},
		{"key of a body", site(limit("p", five+"key {form.user}\nmatch path /x")), true, 1},
		{"credentials", site(limit("p", five+"key {header.Authorization}")), false, 0},
		{"tier", site(limit("t", "tier {header.X-T} {\nt1 3\ndefault 2\n}")), true, 2},
		{"cost", site(limit("t", five+"cost {header.X-T} default 2 max 3")), true, 2},
		{"exempt by address", site(limit("e", five+"exempt client_ip 10.0.0.0/8")), true, 2},
		{"exempt by header", site(limit("e", five+"exempt header X-T t1")), true, 2},
		{"exempt from all", site("distributed_ratelimit {\nexempt header X-T t1\nzone e {\nevents 5\nwindow 1m\n}\n}\n"), true, 2},
		{"match by query", site(limit("e", five+"match query q=1")), true, 2},
		{"remote_ip", site("@r remote_ip 10.0.0.0/8\nhandle @r {\n" + limit("r", five) + "}"), false, 0},
		{"not remote_ip", site("@r {\npath /x\nnot remote_ip 10.0.0.0/8\n}\nhandle @r {\n" + limit("r", five) + "}"), false, 0},
		{"header", site("@r header X-T t1\nhandle @r {\n" + limit("r", five) + "}"), false, 0},
		{"query", site("@r query q=1\nhandle @r {\n" + limit("r", five) + "}"), false, 0},
		{"protocol", site("@r protocol http\nhandle @r {\n" + limit("r", five) + "}"), false, 0},
		{"path with a placeholder", site("@r path /t/{header.X-T}\nhandle @r {\n" + limit("r", five) + "}"), false, 0},
		{"path of a zone with a placeholder", site(limit("r", five+"match path /t/{header.X-T}")), true, 2},
		{"vars", site("vars tenant {header.X-T}\n@r vars {vars.tenant} t1\nhandle @r {\n" + limit("r", five) + "}"), false, 0},
		{"path_regexp", site("@r path_regexp r /t/(.*)\nhandle @r {\n" + limit("r", five+"key {re.r.1}") + "}"), false, 0},
		{"expression", site("@r expression {header.X-T} == \"t1\"\nhandle @r {\n" + limit("r", five) + "}"), false, 0},
		{"map", site("map {header.X-T} {who} {\nt1 one\ndefault other\n}\n" + limit("r", five+"key {who}")), false, 0},
		{"rewrite", site("rewrite /x /api/{header.X-T}\nhandle /api/t1 {\n" + limit("r", five) + "}"), false, 0},
		{"stripped with a placeholder", site("uri strip_prefix /{header.X-T}\nhandle /x {\n" + limit("r", five) + "}"), false, 0},
		{"request headers", site("request_header X-T t1\n" + limit("r", five+"key {header.X-T}")), false, 0},
		{"invoke", "&(named) {\n" + limit("r", five) + "}\n" + site("invoke named"), false, 0},
		{"trusted proxies", "{\nservers {\ntrusted_proxies static 10.0.0.0/8\n}\n}\n" + site(""), true, 2},
		{"trusted proxies of a handler", site("distributed_ratelimit {\ntrusted_proxies static 10.0.0.0/8\nzone e {\nevents 5\nwindow 1m\n}\n}\n"), true, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "Caddyfile")
			if err := os.WriteFile(file, []byte(tt.caddyfile), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := readReplayConfig(file, "")
			if err != nil {
				t.Fatal(err)
			}
			e, err := newReplayEvaluator(c, "a.example")
			if err != nil {
				t.Fatal(err)
			}
			if e.known.steady != tt.steady {
				t.Errorf("the routes look at host, method and path alone: %v, want %v", e.known.steady, tt.steady)
			}
			w, plain := e.NewWorker().(*replayWorker), e.NewWorker().(*replayWorker)
			plain.memo.shape = &replayShape{}
			random := rand.New(rand.NewPCG(1, 2))
			for range 5000 {
				line := memoLine(random)
				if strings.Contains(tt.caddyfile, "_ip ") && (len(line.RemoteIP) < 2 || bytes.HasSuffix(line.RemoteIP, []byte(":1"))) {
					continue // Caddy's matchers would log what is no address
				}
				if got, want := w.Gather(line, nil), plain.Gather(line, nil); !slices.Equal(got, want) {
					t.Fatalf("%s %s%s from %s:%s: %v, want %v", line.Method, line.Host, line.URI, line.RemoteIP, line.RemotePort, got, want)
				}
			}
			open, some := 0, 0
			for _, of := range w.memo.requests {
				if of.open {
					open++
				} else if len(of.parts) > 0 {
					some++
				}
			}
			if wants := [][2]bool{{false, tt.steady}, {true, true}, {true, false}}[tt.open]; open > 0 != wants[0] || some > 0 != wants[1] {
				t.Errorf("%d requests are evaluated each time, %d are remembered with their limits", open, some)
			}
		})
	}
}

// However many requests a log has, few of them are remembered.
func TestReplayForgets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte("a.example {\nhandle /x* {\ndistributed_ratelimit 5 1m\n}\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readReplayConfig(file, "")
	if err != nil {
		t.Fatal(err)
	}
	e, err := newReplayEvaluator(c, "")
	if err != nil {
		t.Fatal(err)
	}
	w := e.NewWorker().(*replayWorker)
	requests, clients := 0, 0
	for n := range maxMemoAddresses + 100 {
		line := &replay.Line{
			Method: []byte("GET"), Host: []byte("a.example"), URI: fmt.Appendf(nil, "/x/%d", n%(maxMemos+100)),
			RemoteIP: fmt.Appendf(nil, "10.%d.%d.%d", n>>16, n>>8&255, n&255), RemotePort: []byte("1"),
		}
		line.TLS = &replay.TLS{}
		for range 2 {
			if parts := w.Gather(line, nil); len(parts) != 1 || parts[0].Client != "a"+string(line.RemoteIP) {
				t.Fatalf("request %d: %v", n, parts)
			}
		}
		requests, clients = max(requests, len(w.memo.requests)), max(clients, len(w.memo.clients))
	}
	if requests != maxMemos || clients != maxMemoAddresses {
		t.Errorf("%d requests and %d addresses are remembered, want %d and %d", requests, clients, maxMemos, maxMemoAddresses)
	}
}
