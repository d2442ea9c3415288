package migration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
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
	return strings.ReplaceAll(caddyfile, "store redis {env.REDIS_URL}", "budget 10s\n\t\tstore redis {env.REDIS_URL}")
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

// Three routes with 30 requests a minute each: what a user is granted at two Caddys
// together is what Upstash granted. Then tokens, which the service asks for through
// Caddy.
func TestFromUpstash(t *testing.T) {
	api := llmtest.Start(t)
	carol, dave := with("X-User", "carol"), with("X-User", "dave")
	old := node(t, copied(t, "../examples/from-upstash/before.js"), append(upstash(t), "LLM_URL="+api.URL, "OPENAI_API_KEY=provider")...)
	began := untilAWindow(time.Minute, 25*time.Second)
	before := get(t, one, old+"/api/chat", post, carol)
	wantIn(t, "before, a user's chat", 1+granted(t, 32, 429, one, old+"/api/chat", post, carol), 30, began, 25*time.Second)
	want(t, "before, the user's summaries", granted(t, 3, 429, one, old+"/api/summary", post, carol), 3)
	want(t, "before, another's chat", granted(t, 3, 429, one, old+"/api/chat", post, dave), 3)

	url := "REDIS_URL=redis://" + redistest.Start(t).Addr
	service := strings.TrimPrefix(node(t, copied(t, "../examples/from-upstash/after.js"), "LLM_URL="+api.URL, "OPENAI_API_KEY=provider"), "http://")
	caddyfile := patient(strings.Replace(example(t, "from-upstash/Caddyfile"), "{$SITE::8080}", "http://:8080", 1))
	a, b := instance(t, caddyfile, url, "BACKEND="+service), instance(t, caddyfile, url, "BACKEND="+service)
	began = time.Now()
	after := get(t, one, a+"/api/chat", post, carol)
	got := 1 + granted(t, 14, 429, one, a+"/api/chat", post, carol) + granted(t, 20, 429, one, b+"/api/chat", post, carol)
	wantIn(t, "after, a user's chat at two Caddys", got, 30, began, time.Minute)
	want(t, "after, the user's summaries", granted(t, 3, 429, one, b+"/api/summary", post, carol), 3)
	want(t, "after, another's chat", granted(t, 3, 429, one, a+"/api/chat", post, dave), 3)
	for name, a := range map[string]answer{"before": before, "after": after} {
		if a.header.Get("X-RateLimit-Limit") != "30" || a.header.Get("X-RateLimit-Remaining") != "29" || len(a.header.Get("X-RateLimit-Reset")) != 10 {
			t.Errorf("%s: %v", name, a.header)
		}
	}
	// Express takes more paths for a route than its own. None of them goes around the limit.
	for _, path := range []string{"/api/chat/", "/API/Chat", "/api/chat?again"} {
		if around := get(t, one, b+path, post, carol); time.Since(began) < time.Minute && around.status != http.StatusTooManyRequests {
			t.Errorf("POST %s after the limit: status %d", path, around.status)
		}
	}
	if a := get(t, one, b+"/api/else", post, carol); a.status != http.StatusNotFound {
		t.Errorf("a route that is none: status %d", a.status)
	}
	if refused := get(t, one, a+"/api/chat", post, carol); time.Since(began) < time.Minute && refused.body != `{"error":"Too many requests"}` {
		t.Errorf("a refusal has the body %q", refused.body)
	}
}

// The budget of tokens bounds what a user's requests cost at the provider, whichever
// Caddy the service asks.
func TestFromUpstashToTokens(t *testing.T) {
	const budget = 20000
	api := llmtest.Start(t)
	url := "REDIS_URL=redis://" + redistest.Start(t).Addr
	caddyfile := patient(strings.Replace(example(t, "from-upstash/tokens.caddyfile"), "{$SITE::8080}", "http://:8080", 1))
	var llms []string
	for range 2 {
		port := freePort(t)
		service := strings.TrimPrefix(node(t, copied(t, "../examples/from-upstash/after.js"), "LLM_URL=http://127.0.0.1:"+port, "OPENAI_API_KEY=none"), "http://")
		site := instance(t, caddyfile, url, "BACKEND="+service, "LLM="+api.URL, "LLM_PORT="+port, "OPENAI_API_KEY=provider")
		want(t, "a question through it all", granted(t, 2, 429, one, site+"/api/chat", post, with("X-User", "carol")), 2)
		if a := get(t, one, site+"/api/chat/", post); a.status != http.StatusForbidden {
			t.Errorf("a question of nobody, through it all: status %d: %s", a.status, a.body)
		}
		llms = append(llms, "http://127.0.0.1:"+port+"/v1/chat/completions")
	}

	// What the service would ask, had users long questions: until the budget is spent.
	refused := 0
	for i := 0; i < 40 && refused < 2; i++ {
		a := get(t, one, llms[i%2], post, with("X-User", "carol"), with("LLM-Test", "output=3000"), question(4000))
		switch a.status {
		case http.StatusOK:
			if refused > 0 {
				t.Errorf("granted after a refusal: what is left does not hold another such request")
			}
		case http.StatusTooManyRequests:
			refused++
		default:
			t.Fatalf("status %d: %s", a.status, a.body)
		}
	}
	if refused != 2 {
		t.Error("the budget of tokens refuses nobody")
	}
	var spent int64
	for _, entry := range api.Ledger() {
		spent += int64(entry.Tokens.Total())
		if key := entry.Header.Get("Authorization"); key != "Bearer provider" {
			t.Errorf("the provider gets the key %q", key)
		}
		if user := entry.Header.Get("X-User"); user != "" {
			t.Errorf("the provider learns the user %q", user)
		}
	}
	if spent > budget || spent < budget/2 {
		t.Errorf("%d tokens spent of %d", spent, budget)
	}
	if a := get(t, one, llms[0], post, with("X-User", "dave"), question(100)); a.status != http.StatusOK {
		t.Errorf("another user: status %d: %s", a.status, a.body)
	}
	if a := get(t, one, llms[0], post, question(100)); a.status != http.StatusForbidden {
		t.Errorf("without a user: status %d: %s", a.status, a.body)
	}
}

// question is a body that asks for so many tokens at most.
func question(most int) func(*http.Request) {
	return func(r *http.Request) {
		text := fmt.Sprintf(`{"model":"gpt-5","max_completion_tokens":%d,"messages":[{"role":"user","content":"Hello"}]}`, most)
		r.Header.Set("Content-Type", "application/json")
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
	}
}
