package caddytest

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// What is explained is what then happens: over all recipes, with limits that are soon
// reached, random requests are explained, sent, and explained again. The same zones
// apply, the request is granted or refused as told, and what is used of each limit grows
// by the units that were told, under the key that was told.
func TestExplanationsAgreeWithWhatHappens(t *testing.T) {
	recipes, err := filepath.Glob("../../examples/*/Caddyfile")
	if err != nil || len(recipes) < 10 {
		t.Fatalf("%d recipes, %v", len(recipes), err)
	}
	redis := redistest.Start(t)
	applied, refused := 0, 0
	for _, path := range recipes {
		name := filepath.Base(filepath.Dir(path))
		t.Run(name, func(t *testing.T) {
			redis.Do(t, "flushall")
			seed := uint64(time.Now().UnixNano())
			trial := &trial{T: t, rand: rand.New(rand.NewPCG(seed, 0)), seed: seed, began: time.Now()}
			trial.edge = trial.start(name, redis.Addr)
			trial.t = t
			for range 40 {
				trial.step()
			}
			applied, refused = applied+trial.applied, refused+trial.refused
		})
	}
	if applied < 80 || refused < 50 {
		t.Errorf("%d zones applied, and %d requests were refused: this tests too little", applied, refused)
	}
	t.Logf("%d zones applied, and %d requests were refused", applied, refused)
}

// trial is one recipe under test.
type trial struct {
	*testing.T
	*edge
	rand             *rand.Rand
	seed             uint64
	began            time.Time
	paths            []string // that the recipe is about
	applied, refused int
}

var pathWords = regexp.MustCompile(`(?m)path ((?:/\S+ ?)+)$`)

var limits = regexp.MustCompile(`(events \$?|distributed_ratelimit )([1-9][0-9.]*)`)

// sentinels is a store that is found by Sentinels; here it is the one Redis.
var sentinels = regexp.MustCompile(`(?s)store redis \{\s+sentinel\n.*?\n\t\t\}`)

// start runs a recipe with small limits.
func (p *trial) start(name, redis string) *edge {
	backend := newBackend(p.T, func(w http.ResponseWriter, r *http.Request) {
		if user, plan, ok := strings.Cut(r.Header.Get("Authorization"), "/"); ok { // forward_auth
			w.Header().Set("X-User", user)
			w.Header().Set("X-Plan", plan)
		}
		_, _ = io.WriteString(w, "hello")
	})
	root := p.TempDir()
	for _, name := range []string{"index.php", "wp-login.php", "xmlrpc.php"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("<?php"), 0o600); err != nil {
			p.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"REDIS_URL": "redis://" + redis, "WORDPRESS": root, "PHP": "127.0.0.1:1", "TEAM_KEY": "team",
		"ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": "x", "BALANCER": "10.0.0.0/16",
	} {
		p.Setenv(name, value)
	}
	for _, name := range []string{"BACKEND", "AUTH", "SHOP", "BLOG", "API"} {
		p.Setenv(name, backend.addr())
	}
	text := sentinels.ReplaceAllString(readRecipe(p.T, name), "store redis {env.REDIS_URL}")
	small := make(map[string]int) // zones of one name have one limit
	text = limits.ReplaceAllStringFunc(text, func(match string) string {
		part := limits.FindStringSubmatch(match)
		if strings.HasSuffix(part[1], "$") || len(part[2]) > 5 {
			return match // a budget
		}
		if small[part[2]] == 0 {
			small[part[2]] = []int{2, 6, 40}[p.rand.IntN(3)]
		}
		return part[1] + strconv.Itoa(small[part[2]])
	})
	for _, words := range pathWords.FindAllStringSubmatch(text, -1) {
		p.paths = append(p.paths, strings.Fields(strings.ReplaceAll(words[1], "*", "x"))...)
	}
	return runRecipe(p.T, text)
}

// request makes up a request that one of the recipes is about.
func (p *trial) request() asked {
	one := func(of ...string) string { return of[p.rand.IntN(len(of))] }
	q := asked{
		Method: one("GET", "POST", "POST"),
		URL: one(localSite, localSite, "http://shop.localhost:8080", "http://api.localhost:8080") +
			one("/", "/login", "/api/login", "/export", "/beta", "/healthz", "/wp-login.php", "/wp-login.php", "/xmlrpc.php", "/ws", "/upload", "/download/x", "/search", "/v1/chat/completions", "/v1/messages", "/v1/models"),
		RemoteAddr: one("198.51.100.1", "198.51.100.2", "127.0.0.1", "10.0.0.1", "173.245.48.1", "2001:db8::1"),
		Headers:    map[string]any{},
		Server:     p.names["8080"],
	}
	if len(p.paths) > 0 && p.rand.IntN(3) > 0 {
		q.URL = localSite + one(p.paths...)
	}
	if p.rand.IntN(2) == 0 {
		q.Headers[one("X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP")] = one("203.0.113.1", "203.0.113.2", "2001:db8::2", "10.0.0.2")
	}
	user, plan := one("alice", "bob"), one("free", "pro", "partner", "none")
	q.Headers["Authorization"] = one("Bearer team", user+"/"+plan)
	if q.Headers["Authorization"] == "Bearer team" {
		user, plan = "", ""
	}
	// What forward_auth sets, in the plans recipe.
	q.Vars = map[string]any{"http.request.header.X-User": user, "http.request.header.X-Plan": plan}
	switch p.rand.IntN(5) {
	case 0:
		q.Method = "OPTIONS"
		q.Headers["Origin"], q.Headers["Access-Control-Request-Method"] = "https://app.example.com", "PUT"
	case 1, 2:
		q.Headers["Content-Type"], q.Body = formType, one("username=alice&log=alice", "username=Bob+&log=bob", "x=y", "username=a&username=b")
	case 3:
		q.Headers["Content-Type"], q.Body = jsonType, one(`{"username":"alice"}`, `{"username":1}`, `{"username":"a","username":"b"}`)
	default:
		q.Headers["Content-Type"], q.Body = jsonType, one(
			`{"model":"gpt-5-mini","max_completion_tokens":50,"messages":[{"role":"user","content":"hi"}]}`,
			`{"model":"claude-haiku-4-5","max_tokens":50,"messages":[{"role":"user","content":"hi"}]}`,
			`{"model":"gpt-5","messages":[{"role":"user","content":"hi"}]}`)
	}
	return q
}

// send sends what was explained.
func (p *trial) send(q asked) reply {
	r := httptest.NewRequest(q.Method, q.URL, strings.NewReader(q.Body))
	r.RemoteAddr = "[" + q.RemoteAddr + "]:40000"
	if !strings.Contains(q.RemoteAddr, ":") {
		r.RemoteAddr = q.RemoteAddr + ":40000"
	}
	for name, value := range q.Headers {
		r.Header.Set(name, value.(string))
	}
	w := httptest.NewRecorder()
	p.server("8080").ServeHTTP(w, r)
	return reply{w.Result(), w.Body.String()}
}

// outcomes are the counters of all zones: zone, outcome and count.
func (p *trial) outcomes() map[string]map[string]int {
	var zones []struct {
		Name     string
		Counters struct{ Requests map[string]map[string]int }
	}
	p.adminGet("zones", &zones)
	all := make(map[string]map[string]int)
	for _, z := range zones {
		all[z.Name] = make(map[string]int)
		for outcome, sources := range z.Counters.Requests {
			for _, n := range sources {
				all[z.Name][outcome] += n
			}
		}
	}
	return all
}

// step explains a request, sends it, and compares.
func (p *trial) step() {
	q := p.request()
	if p.rand.IntN(3) > 0 { // the limits are reached by few clients
		q.RemoteAddr = "198.51.100.1"
		delete(q.Headers, "X-Forwarded-For")
	}
	before, counted := p.explains(q), p.outcomes()
	a := p.send(q)
	after := p.outcomes()
	text, _ := json.Marshal(q)
	story := fmt.Sprintf("seed %d, request %s, status %d", p.seed, text, a.StatusCode)

	if shortly(before) {
		return // a window of a second may have passed in between
	}
	told := make(map[string]string) // zone -> the outcome that was told
	for _, h := range before.Handlers {
		for _, z := range h.Zones {
			p.told(told, before.Granted || h.Granted, z)
		}
	}
	refusals := 0
	for zone := range after {
		delta := func(outcome string) int { return after[zone][outcome] - counted[zone][outcome] }
		refusals += delta("refused")
		switch {
		case told[zone] == "refused" && delta("refused") <= 1 && delta("granted") == 0:
		case told[zone] == "granted" && delta("granted") == 1 && delta("refused") == 0:
		case told[zone] == "exempt" && delta("exempt") >= 1 && delta("granted")+delta("refused") == 0:
		case told[zone] == "" && delta("granted")+delta("refused") == 0:
		default:
			p.Fatalf("zone %s was told to be %q, but granted %d, refused %d, exempt %d; %s; %+v",
				zone, told[zone], delta("granted"), delta("refused"), delta("exempt"), story, before)
		}
	}
	if before.Granted != (refusals == 0) {
		p.Fatalf("granted %v was told, and %d zones refused; %s; %+v", before.Granted, refusals, story, before)
	}
	if !before.Granted {
		p.refused++
	}
	p.compareNumbers(q, before, story)
}

// shortly reports whether a zone with a short window is about to decide otherwise.
func shortly(x explained) bool {
	for _, h := range x.Handlers {
		for _, z := range h.Zones {
			if z.Applies && !*z.Granted && z.Window > 0 && z.Window < 10 {
				return true
			}
		}
	}
	return false
}

// told adds what was told of a zone.
func (p *trial) told(told map[string]string, granted bool, z explainedZone) {
	switch {
	case z.Applies && !*z.Granted:
		told[z.Zone] = "refused"
	case z.Applies && granted:
		told[z.Zone] = "granted"
		p.applied++
	case z.Because == "exempt" || z.Because == "free":
		told[z.Zone] = "exempt"
	}
}

// compareNumbers explains the request again: what was charged is used now. Leases that
// are just being granted or refunded are missing for a moment.
func (p *trial) compareNumbers(q asked, before explained, story string) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		why := p.disagree(before, p.explains(q))
		switch {
		case why == "":
			return
		case time.Now().After(deadline):
			p.Fatalf("%s; %s", why, story)
		}
	}
}

// disagree tells where the numbers after a request are not those that were told.
func (p *trial) disagree(before, after explained) string {
	for i, h := range before.Handlers {
		for j, z := range h.Zones {
			if !z.Applies || z.Remaining == nil || i >= len(after.Handlers) {
				continue
			}
			now := after.Handlers[i].Zones[j]
			if now.Because == "unread" {
				continue // the request has used up a limit that is looked at before
			}
			if now.Remaining == nil || now.Key != z.Key || *now.Limit != *z.Limit {
				return fmt.Sprintf("zone %s: %+v, then %+v", z.Zone, z, now)
			}
			want := *z.Remaining
			slots := z.Window == 0
			if h.Granted && !slots {
				want -= z.Units
			}
			switch n := *now.Remaining; {
			case n == want:
			case n > want && n <= *z.Limit && (time.Since(p.began).Seconds() > z.Window*3/4 || z.Units > 1 || p.givesBack(z)):
				// Time has passed, or a part was given back after the response.
			default:
				return fmt.Sprintf("zone %s: %d remained, %d units were told, granted %v; now %d remain", z.Zone, *z.Remaining, z.Units, h.Granted, n)
			}
		}
	}
	return ""
}

// givesBack reports whether a zone gives back what did not count.
func (p *trial) givesBack(z explainedZone) bool {
	return strings.Contains(z.Zone, "login") || z.Zone == "api-guesses"
}

// Units of a lease that this instance has not spent yet are not used, although the store
// counts them.
func TestExplainKnowsLeases(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
	e := start(t, `{
		distributed_ratelimit {
			store redis {env.REDIS_URL}
			budget 10s
		}
	}
	:80 {
		distributed_ratelimit 1000000 1h
		respond ok
	}`)
	q := asked{URL: "http://localhost/", RemoteAddr: alice, Server: e.names["80"]}
	sent, leased := int64(0), false
	for deadline := time.Now().Add(30 * time.Second); !leased; {
		e.granted(50, alice, "http://localhost/")
		sent += 50
		// Between the two the lease may end; what is true is found in the end.
		leased = e.store(0).Leases.Units > 0
		z := e.explains(q).handler(t, 0, 1).Zones[0]
		leased = leased && *z.Used == sent && e.store(0).Leases.Units > 0
		if time.Now().After(deadline) {
			t.Fatalf("%d requests, leases %+v: explained as %d used", sent, e.store(0).Leases, *z.Used)
		}
	}
}
