package migration

import (
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// example is a file of an example.
func example(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile("../examples/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// patient lets decisions take their time: a busy machine is not an outage.
func patient(caddyfile string) string {
	return strings.ReplaceAll(caddyfile, "store redis {env.REDIS_URL}", "store redis {env.REDIS_URL}\n\t\tbudget 10s")
}

// remaining is what the service says is left.
func remaining(t *testing.T, a answer) int {
	t.Helper()
	var said struct{ Remaining *int }
	if err := json.Unmarshal([]byte(a.body), &said); err != nil || said.Remaining == nil {
		t.Fatalf("status %d: the service says %q: %v", a.status, a.body, err)
	}
	return *said.Remaining
}

// Three processes that count in memory grant a client three times the limit. Behind two
// Caddys, which count together, it is the limit. Clients and service keep reading what
// they read.
func TestFromExpress(t *testing.T) {
	const processes, limit = 3, 100
	run := func(t *testing.T, script string) string {
		t.Helper()
		var addresses []string
		for range processes {
			addresses = append(addresses, strings.TrimPrefix(node(t, script), "http://"))
		}
		return strings.Join(addresses, " ")
	}
	old := run(t, copied(t, "../examples/from-express/before.js"))
	balancer := site(t, ":8080 {\nreverse_proxy "+old+" {\nlb_policy round_robin\n}\n}")
	began := time.Now()
	before := get(t, one, balancer+"/")
	if n := remaining(t, before); n != limit-1 {
		t.Errorf("before: the service says that %d remain, want %d", n, limit-1)
	}
	wantIn(t, "before", 1+granted(t, processes*limit+20, 429, one, balancer+"/"), processes*limit, began, time.Minute)

	redis := "REDIS_URL=redis://" + redistest.Start(t).Addr
	caddyfile := patient(example(t, "from-express/Caddyfile"))
	backends := run(t, copied(t, "../examples/from-express/after.js"))
	var caddys []string
	for range 2 {
		caddys = append(caddys, instance(t, strings.Replace(caddyfile, "{$SITE::8080}", "http://:8080", 1), redis, "BACKENDS="+backends))
	}
	began = time.Now()
	after := get(t, one, caddys[0]+"/", with("X-Limit-Remaining", "1000"))
	if n := remaining(t, after); n != limit-1 {
		t.Errorf("after: the service says that %d remain, want %d", n, limit-1)
	}
	for _, found := range parsed(t, before, after) {
		if found == nil || found.Limit != limit || found.Remaining != limit-1 || found.Reset < 20 || found.Reset > 63 {
			t.Errorf("a client reads %+v, want %d of %d and a minute", found, limit-1, limit)
		}
	}
	for _, name := range []string{"RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining"} {
		if b, a := before.header.Get(name), after.header.Get(name); b == "" || a != b {
			t.Errorf("%s was %q, and is %q", name, b, a)
		}
	}
	if epoch, err := strconv.Atoi(after.header.Get("X-RateLimit-Reset")); err != nil || epoch < 1e9 {
		t.Errorf("X-RateLimit-Reset is %q, no moment", after.header.Get("X-RateLimit-Reset"))
	}

	got := 1
	for range processes * limit / 2 {
		for _, url := range caddys {
			switch a := get(t, one, url+"/"); a.status {
			case http.StatusOK:
				got++
			case http.StatusTooManyRequests:
				if a.body != "Too many requests, please try again later." {
					t.Fatalf("a refusal has the body %q", a.body)
				}
			default:
				t.Fatalf("status %d: %s", a.status, a.body)
			}
		}
	}
	wantIn(t, "after, two Caddys together", got, limit, began, time.Minute)
	want(t, "after, /health", granted(t, 3, 429, one, caddys[0]+"/health"), 3)
	want(t, "after, another client", granted(t, 3, 429, two, caddys[1]+"/"), 3)
}
