package caddytest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
)

// askAt sends a request from an address.
func (e *edge) askAt(from, path, behaviour, body string, header ...string) reply {
	return e.send(from, http.MethodPost, localSite+path, func(r *http.Request) {
		text := strings.NewReader(body)
		r.Body, r.ContentLength = readCloser{text}, int64(len(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Anthropic-Version", "2023-06-01")
		r.Header.Set(llmtest.Header, behaviour)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func TestRecipeLLMTeam(t *testing.T) {
	api := llmtest.Start(t)
	e := recipe(t, "llm-team", "", "BACKEND", api.URL, "TEAM_KEY", "t0p", "OPENAI_API_KEY", "provider")
	if a := e.askAt(alice, "/v1/chat/completions", "", chatBody(""), "Authorization", "Bearer no"); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("without the team's key: status %d", a.StatusCode)
	}
	spend := func() reply {
		return e.askAt(alice, "/v1/chat/completions", "input=20,output=100000", strings.Replace(chatBody(`,"max_completion_tokens":50000`), "gpt-5", "gpt-5-pro", 1), "Authorization", "Bearer t0p")
	}
	for n := 1; ; n++ { // $6 each, as it is a model without a price
		a := spend()
		if a.StatusCode == http.StatusTooManyRequests && n == 4 && strings.Contains(a.body, `"code":"rate_limit_exceeded"`) {
			break
		}
		if a.StatusCode != http.StatusOK || n == 4 {
			t.Fatalf("request %d: status %d: %s", n, a.StatusCode, a.body)
		}
	}
	for _, entry := range api.Ledger() {
		if got := entry.Header.Get("Authorization"); got != "Bearer provider" {
			t.Errorf("the API gets the key %q", got)
		}
	}
	if a := e.askAt(alice, "/v1/embeddings", "", "{}", "Authorization", "Bearer t0p"); a.StatusCode != http.StatusForbidden {
		t.Errorf("embeddings: status %d", a.StatusCode)
	}
}

func TestRecipeLLMDemo(t *testing.T) {
	api := llmtest.Start(t)
	e := recipe(t, "llm-demo", "", "BACKEND", api.URL, "ANTHROPIC_API_KEY", "provider")
	body := func(model string) string {
		return `{"model":"` + model + `","max_tokens":1000,"messages":[{"role":"user","content":"Hello"}]}`
	}
	for range 10 {
		if a := e.askAt(alice, "/v1/messages", "output=5", body("claude-haiku-4-5")); a.StatusCode != http.StatusOK {
			t.Fatalf("status %d: %s", a.StatusCode, a.body)
		}
	}
	if a := e.askAt(alice, "/v1/messages", "", body("claude-haiku-4-5")); a.StatusCode != http.StatusTooManyRequests || !strings.Contains(a.body, "rate_limit_error") {
		t.Errorf("the eleventh in a minute: status %d: %s", a.StatusCode, a.body)
	}
	if a := e.askAt(bob, "/v1/messages", "", `{"model":"claude-haiku-4-5","max_tokens":400000,"messages":[]}`); a.StatusCode < 400 || !strings.Contains(a.body, "too_costly") {
		t.Errorf("more than one request may reserve: status %d: %s", a.StatusCode, a.body)
	}
	if a := e.askAt(bob, "/v1/messages", "", strings.Replace(body("x"), "1000", "7000", 1)); a.StatusCode != http.StatusTooManyRequests || !strings.Contains(a.body, "too_costly") {
		t.Errorf("more than a visitor's dollars, for a model that nobody knows: status %d: %s", a.StatusCode, a.body)
	}
	if got := api.Ledger()[0].Header.Get("X-Api-Key"); got != "provider" {
		t.Errorf("the API gets the key %q", got)
	}
}
