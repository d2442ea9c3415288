package caddytest

import (
	"net/http"
	"strings"
	"testing"
)

// rendered tells who wrote a reply: the plugin, or else its body.
func (a reply) rendered() string {
	if a.Header.Get("Content-Type") == "application/problem+json" {
		return "problem"
	}
	return a.body
}

func (e *edge) rendered(want, url string, change ...func(*http.Request)) reply {
	e.t.Helper()
	e.get(alice, url, change...) // uses the limit up
	a := e.refused(alice, url, change...)
	if got := a.rendered(); got != want {
		e.t.Errorf("refusal of %s: got %q, want %q", url, got, want)
	}
	a.waits(e.t, 3500, 3600)
	a.header(e.t, "Cache-Control", "no-store")
	if a.Header.Get("RateLimit") == "" {
		e.t.Errorf("refusal of %s: got no header RateLimit", url)
	}
	return a
}

// Error routes belong to the listener: each site's refusals go to its own, and
// are written in full where there are none for them.
func TestRefusalGoesToTheErrorRouteThatIsMeantForIt(t *testing.T) {
	e := start(t, `
http://plain.test {
	distributed_ratelimit 1 1h plain
}
http://own.test {
	distributed_ratelimit 1 1h own
	handle_errors {
		respond "own {err.status_code} {err.message} {http.distributed_ratelimit.zone}/{http.distributed_ratelimit.outcome}"
	}
}
http://other-status.test {
	distributed_ratelimit 1 1h other
	handle_errors 404 5xx {
		respond "not found"
	}
}
http://this-status.test {
	distributed_ratelimit 1 1h this
	handle_errors 404 {
		respond "not found"
	}
	handle_errors 429 {
		respond "slow down"
	}
}
http://nested.test {
	distributed_ratelimit 1 1h nested
	handle_errors {
		@api path /api/*
		handle @api {
			respond "api"
		}
		@limited `+"`{err.status_code} == 429`"+`
		handle @limited {
			@json header Accept application/json
			respond @json "json"
			@html header Accept text/html
			respond @html "html"
		}
	}
}
http://grouped.test {
	distributed_ratelimit 1 1h grouped
	handle_errors {
		handle /api/* {
			respond /api/v1 "v1"
		}
		handle {
			respond "fallback"
		}
	}
}
http://wide.neighbour.test {
	distributed_ratelimit 1 1h neighbour
	handle_errors 404 {
		respond "not found"
	}
}
http://*.neighbour.test {
	handle_errors {
		respond "the neighbour's"
	}
}
http://rewritten.test {
	rewrite * /rewritten
	distributed_ratelimit 1 1h rewritten
	handle_errors {
		@original path /original
		respond @original "original"
	}
}
http://forced.test {
	distributed_ratelimit 1 1h forced {
		refusal problem
	}
	handle_errors {
		respond "never"
	}
}
http://handed.test {
	distributed_ratelimit 1 1h handed {
		refusal error
	}
}
http://subtree.test:8081 {
	distributed_ratelimit 1 1h subtree
}
`)
	e.rendered("problem", "http://plain.test/")
	e.rendered("own 429 The limit on requests is reached; try again in 3600 s. own/refused", "http://own.test/")
	e.rendered("problem", "http://other-status.test/")
	e.rendered("slow down", "http://this-status.test/")
	e.rendered("api", "http://nested.test/api/x")
	e.rendered("json", "http://nested.test/", with("Accept", "application/json"))
	e.rendered("html", "http://nested.test/", with("Accept", "text/html"))
	e.rendered("problem", "http://nested.test/", with("Accept", "image/png"))
	// The first handle that matches is the only one, whatever it does.
	e.rendered("v1", "http://grouped.test/api/v1")
	e.rendered("problem", "http://grouped.test/api/v2")
	e.rendered("fallback", "http://grouped.test/")
	// So is the first site.
	e.rendered("problem", "http://wide.neighbour.test/")
	e.rendered("original", "http://rewritten.test/original")
	e.rendered("problem", "http://rewritten.test/rewritten")
	e.rendered("problem", "http://forced.test/")
	e.rendered("problem", "http://subtree.test:8081/")

	// Forced to be an error where nothing handles it: Caddy's empty response.
	e.granted(1, alice, "http://handed.test/")
	a := e.refused(alice, "http://handed.test/")
	a.waits(t, 3500, 3600)
	if a.body != "" {
		t.Errorf("refusal error without error route: got body %q, want none", a.body)
	}
}

// An error out of an error route would leave the response empty.
func TestRefusalInAnErrorRouteIsAlwaysWritten(t *testing.T) {
	e := start(t, `
http://a.test {
	error 500
	handle_errors {
		distributed_ratelimit 1 1h errors {
			refusal error
		}
		respond "sorry"
	}
}`)
	if a := e.get(alice, "http://a.test/"); a.body != "sorry" {
		t.Errorf("first error: got %d %q, want sorry", a.StatusCode, a.body)
	}
	e.rendered("problem", "http://a.test/")
}

// A refusal that is written is no error: what runs afterwards, such as the
// access log, must not see the placeholders that were set for the matchers.
func TestWrittenRefusalLeavesNoErrorBehind(t *testing.T) {
	e := start(t, `
http://a.test {
	log
	log_append code {http.error.status_code}
	log_append text {http.error.status_text}
	log_append message {http.error.message}
	log_append id {http.error.id}
	log_append trace {http.error.trace}
	log_append error {http.error}
	log_append what {http.distributed_ratelimit.outcome}
	distributed_ratelimit 1 1h
	handle_errors 404 {
		respond "not found"
	}
}`)
	e.rendered("problem", "http://a.test/")
	for _, line := range e.log.says(1, "handled request") {
		for _, name := range []string{"code", "text", "message", "id", "trace", "error"} {
			if value := line[name]; value != nil && value != "" {
				t.Errorf("access log: placeholder of the error %s: got %q, want none", name, value)
			}
		}
		if line["what"] != "refused" {
			t.Errorf("access log: outcome: got %q, want refused", line["what"])
		}
	}
}

func TestRefusalErrorIsNoFailureInTheLog(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h
	handle_errors {
		respond "sorry"
	}
}`)
	e.rendered("sorry", "http://a.test/")
	for line := range strings.Lines(e.log.text()) {
		if strings.Contains(line, `"level":"error"`) {
			t.Errorf("a refusal logs an error: %s", line)
		}
	}
}

// Matchers of error routes that fail are no route for the refusal.
func TestRefusalSurvivesABrokenErrorRoute(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h
	handle_errors {
		@broken broken
		respond @broken "broken"
	}
}`)
	e.rendered("problem", "http://a.test/")
}
