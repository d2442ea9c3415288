package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// What a limit protects is worked on before a later limit can refuse: a
// password is checked, an auth service or an upstream is asked. An attacker
// once had all of 1000 guesses tried behind a limit of 10, because refusals by
// a limit on failures, after the work, gave back what the front limit had
// charged.
func TestAttemptsBehindALimit(t *testing.T) {
	const limit, guesses = 10, 1000
	redis := redistest.Start(t)
	var asked atomic.Int64 // of whoever checks the guess
	judge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path == "/welcome" {
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "no")
	}))
	t.Cleanup(judge.Close)
	address := strings.TrimPrefix(judge.URL, "http://")

	failures := func(name string) string {
		return "distributed_ratelimit 3 1h " + name + "-failures"
	}
	sites := map[string]struct {
		site string
		// tried tells whether an answer shows that the guess was tried; nil
		// if the judge knows.
		tried func(reply) bool
	}{
		// A guess that was tried is answered with 401, or with the 429 of the
		// limit on failures, which then names it.
		"basic_auth": {
			site: `distributed_ratelimit 10 1h basic
	basic_auth {
		alice $2a$04$Zk2AG5LtLAfMGE5pjdD.DuNu8WhAQlFJJwPPs8kuKDSj6wB5mPpTq
	}
	respond secret
	handle_errors 401 {
		` + failures("basic") + `
		respond "tried" 401
	}`,
			tried: func(r reply) bool { return r.status == 401 || strings.Contains(r.body, "basic-failures") },
		},
		"forward_auth": {
			site: `route {
		distributed_ratelimit 10 1h forward
		forward_auth ` + address + ` {
			uri /welcome
		}
		distributed_ratelimit 1 1h forward-users {
			key {header.X-User}
		}
		respond secret
	}`,
		},
		"handle_response": {
			site: `distributed_ratelimit 10 1h proxied
	reverse_proxy ` + address + ` {
		@no status 401
		handle_response @no {
			` + failures("proxied") + `
			respond "no" 401
		}
	}`,
		},
	}
	for name, s := range sites {
		t.Run(name, func(t *testing.T) {
			p := startProcess(t, fmt.Sprintf(`{
	admin ADMIN
	distributed_ratelimit {
		store redis redis://%s {
			dial_timeout 20s
		}
		budget 30s
	}
}
ADDR {
	%s
}
`, redis.Addr, s.site))
			asked.Store(0)
			calls := redis.Calls(t, "evalsha")
			tried, refused := int64(0), 0
			for range guesses {
				r := p.get(t, "/", "Authorization", "Basic YWxpY2U6d3Jvbmc=", "X-User", "alice") // alice:wrong
				if s.tried != nil && s.tried(r) {
					tried++
				}
				if r.status == http.StatusTooManyRequests {
					refused++
				}
			}
			if s.tried == nil {
				tried = asked.Load()
			}
			if tried != limit {
				t.Errorf("%d guesses behind a limit of %d: %d were tried, want %d", guesses, limit, tried, limit)
			}
			if refused < guesses-limit {
				t.Errorf("%d guesses: %d refused, want %d at least", guesses, refused, guesses-limit)
			}
			// Refusals are remembered, for a second at most. Heartbeats are
			// EVALs, not EVALSHAs.
			if n := redis.Calls(t, "evalsha") - calls; n > guesses/4 {
				t.Errorf("%d guesses: Redis was asked %d times", guesses, n)
			}
		})
	}
}

// A client whom the second of two handlers refuses is charged by the first until
// that refuses too, and then costs next to no calls of Redis. It was two calls
// for each request: a charge, and its return.
func TestRefusalsOfASecondHandlerCostNoCalls(t *testing.T) {
	redis := redistest.Start(t)
	in := newInstance(t, fmt.Sprintf(`{
	admin off
	log {
		level ERROR
	}
	distributed_ratelimit {
		store redis redis://%s {
			dial_timeout 20s
		}
		budget 30s
	}
}
:80 {
	route {
		distributed_ratelimit 60 1h first
		distributed_ratelimit 10 1h second
		respond ok
	}
}
`, redis.Addr))
	const client, requests = "192.0.2.1", 1000
	for range 10 {
		in.get(client)
	}
	before := redis.Calls(t, "evalsha")
	for range requests {
		if in.get(client).granted() {
			t.Fatal("granted beyond the second limit")
		}
	}
	if calls := redis.Calls(t, "evalsha") - before; calls > requests/10 {
		t.Errorf("%d refused requests cost %d calls of Redis, want %d at most", requests, calls, requests/10)
	}
}
