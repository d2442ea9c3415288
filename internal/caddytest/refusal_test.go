package caddytest

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

const (
	alice = "198.51.100.1"
	bob   = "198.51.100.2"
)

// waits expects a Retry-After of about an hour: a slow machine may have used
// some of it.
func (a reply) waits(t *testing.T, least, most int64) {
	t.Helper()
	text := a.Header.Get("Retry-After")
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < least || seconds > most {
		t.Errorf("Retry-After: got %q, want %d to %d", text, least, most)
	}
}

// hour replaces the seconds of an hour, less what the test took, in a header.
func hour(text string) string {
	for s := 3600; s > 3500; s-- {
		text = strings.ReplaceAll(text, strconv.Itoa(s), "HOUR")
	}
	return text
}

func TestRefusalIsWrittenInFull(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 2 1h
	respond "hello"
}`)
	e.granted(2, alice, "http://a.test/")
	a := e.refused(alice, "http://a.test/")
	a.waits(t, 3500, 3600)
	a.header(t, "RateLimit-Policy", `"2-per-1h";q=2;w=3600`)
	if got := hour(a.Header.Get("RateLimit")); got != `"2-per-1h";r=0;t=HOUR` {
		t.Errorf("header RateLimit: got %q", got)
	}
	a.header(t, "X-RateLimit-Limit", "")
	a.header(t, "Cache-Control", "no-store")
	a.header(t, "Content-Type", "application/problem+json")
	a.header(t, "Content-Length", strconv.Itoa(len(a.body)))

	var problem struct {
		Type     string   `json:"type"`
		Title    string   `json:"title"`
		Status   int      `json:"status"`
		Detail   string   `json:"detail"`
		Violated []string `json:"violated-policies"`
	}
	if err := json.Unmarshal([]byte(a.body), &problem); err != nil {
		t.Fatalf("body %q: %v", a.body, err)
	}
	if problem.Type != "https://iana.org/assignments/http-problem-types#quota-exceeded" || problem.Status != 429 ||
		!reflect.DeepEqual(problem.Violated, []string{"2-per-1h"}) || !strings.Contains(problem.Detail, a.Header.Get("Retry-After")) {
		t.Errorf("body: got %+v", problem)
	}
	e.granted(1, bob, "http://a.test/")
}

// What the header's policy counts is what the limit is, so a granted response
// must be clean by default: caches would keep somebody's remaining count.
func TestGrantedResponseIsCleanByDefault(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 2 1h
	respond "hello"
}`)
	a := e.get(alice, "http://a.test/")
	for _, name := range []string{"RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "Retry-After", "Cache-Control"} {
		a.header(t, name, "")
	}
}

func TestRefusalToHead(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h
	respond "hello"
}`)
	url := "http://" + e.ports["80"] + "/"
	for _, want := range []int{http.StatusOK, http.StatusTooManyRequests} {
		r, err := http.NewRequest(http.MethodHead, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "a.test"
		a := e.dial(r)
		if a.StatusCode != want || a.body != "" {
			t.Errorf("HEAD: got status %d, body %q, want %d and no body", a.StatusCode, a.body, want)
		}
		if want == http.StatusTooManyRequests {
			a.waits(t, 3500, 3600)
			a.header(t, "Content-Type", "application/problem+json")
		}
	}
}

func TestStatusOfRefusals(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 0 1h {
		status 420
	}
}`)
	a := e.status(420, alice, "http://a.test/")
	if !strings.Contains(a.body, `"status":420`) {
		t.Errorf("body: got %s, want status 420 in it", a.body)
	}
}

func TestJitterOnlyLengthens(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1000s {
		jitter 50%
	}
	respond "ok"
}`)
	e.granted(1, alice, "http://a.test/")
	seen := make(map[string]bool)
	for range 200 {
		a := e.refused(alice, "http://a.test/")
		a.waits(t, 900, 1500)
		seen[a.Header.Get("Retry-After")] = true
		// The header must not promise an earlier time than Retry-After.
		if got, want := a.Header.Get("RateLimit"), `"1-per-16m40s";r=0;t=`+a.Header.Get("Retry-After"); got != want {
			t.Fatalf("header RateLimit: got %q, want %q", got, want)
		}
	}
	if len(seen) < 20 {
		t.Errorf("Retry-After with jitter: got %d different values in 200 refusals, want many", len(seen))
	}
}

func TestZeroEventsRefuseEverything(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone closed {
			events 0
			window 1m
		}
		zone open {
			events 5
			window 1h
		}
	}
	respond "hello"
}
http://b.test {
	distributed_ratelimit 5 1h open
	respond "{http.distributed_ratelimit.remaining}"
}`)
	a := e.refused(alice, "http://a.test/")
	a.header(t, "Retry-After", "")
	a.header(t, "RateLimit", `"closed";r=0`)
	e.body("4", alice, "http://b.test/")
}

func TestRefusalNamesTheLongestWait(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone short {
			events 1
			window 10m
		}
		zone long {
			events 1
			window 1h
		}
		zone wide {
			events 100
			window 2h
		}
	}
	respond "hello"
}`)
	e.granted(1, alice, "http://a.test/")
	a := e.refused(alice, "http://a.test/")
	a.waits(t, 3500, 3600)
	if !strings.Contains(a.body, `"violated-policies":["short","long"]`) {
		t.Errorf("body: got %s, want the zones short and long in it", a.body)
	}
	a.header(t, "RateLimit-Policy", `"short";q=1;w=600, "long";q=1;w=3600, "wide";q=100;w=7200`)
	// The wide zone did not refuse: it tells what it has left.
	if got := a.Header.Get("RateLimit"); !strings.Contains(got, `"wide";r=99;t=`) {
		t.Errorf("header RateLimit: got %q, want 99 of wide in it", got)
	}
}
