package caddytest

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
)

// budgetSite is a site with a budget in front of a provider.
func budgetSite(backend *llmtest.Server, zones, usage string) string {
	return fmt.Sprintf(`
http://a.test {
	distributed_ratelimit {
		ratelimit_headers always
		%s
		zone budget {
			key {header.User}
			on_empty_key deny
			window 1h
			%s
		}
	}
	reverse_proxy %s
}`, zones, usage, backend.Addr)
}

const tokenBudget = "events 100000\nusage openai {\n max_output 500\n}"

// chatBody is a request for chat completions.
func chatBody(more string) string {
	return `{"model":"gpt-5","messages":[{"role":"user","content":"What is a budget?"}]` + more + `}`
}

// ask sends a request to an API over loopback, with HTTP/1.1.
func (e *edge) ask(path, behaviour, body string, header ...string) reply {
	e.t.Helper()
	r, err := http.NewRequest(http.MethodPost, "http://"+e.ports["80"]+path, strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	r.Host = "a.test"
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User", "u")
	r.Header.Set(llmtest.Header, behaviour)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := new(http.Transport).RoundTrip(r)
	if err != nil {
		return reply{&http.Response{}, err.Error()}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		text = append(text, ("(" + err.Error() + ")")...)
	}
	return reply{response, string(text)}
}

// left is what remains of the budget beside what a request reserves that the upstream
// refuses, so that it leaves nothing behind.
func (e *edge) left() int64 {
	e.t.Helper()
	a := e.ask("/v1/chat/completions", "status=400", chatBody(`,"max_completion_tokens":1`))
	_, rest, ok := strings.Cut(a.Header.Get("RateLimit"), `"budget";r=`)
	number, _, _ := strings.Cut(rest, ";")
	n, err := strconv.ParseInt(number, 10, 64)
	if a.StatusCode != 400 || !ok || err != nil {
		e.t.Fatalf("the request that looks: status %d, RateLimit %q, %s", a.StatusCode, a.Header.Get("RateLimit"), a.body)
	}
	return n
}

// charged expects that a request is charged so much.
func (e *edge) charged(what string, want int64, do func()) {
	e.t.Helper()
	before := e.left()
	do()
	if got := before - e.left(); got != want {
		e.t.Errorf("%s: charged %d, want %d\n%s", what, got, want, e.log.text())
	}
}

// What is charged is what the provider bills, for whole responses and for streams.
func TestBudgetIsWhatWasSpent(t *testing.T) {
	backend := llmtest.Start(t)
	e := start(t, budgetSite(backend, "", tokenBudget))
	for _, body := range []string{chatBody(""), chatBody(`,"stream":true`), chatBody(`,"stream":true,"stream_options":{"include_usage":true}`)} {
		n := len(backend.Ledger())
		e.charged(body, 130, func() {
			a := e.ask("/v1/chat/completions", "input=30,output=100", body)
			if a.StatusCode != http.StatusOK {
				t.Errorf("status %d: %s", a.StatusCode, a.body)
			}
			if asked := strings.Contains(body, "include_usage"); strings.Contains(a.body, `"usage":{`) != (asked || !strings.Contains(body, "stream")) {
				t.Errorf("%s: the response has usage, or not:\n%s", body, a.body)
			}
		})
		got := string(backend.Since(n)[1].Body)
		if !strings.Contains(got, `"max_completion_tokens":500`) || strings.Contains(body, "stream") != strings.Contains(got, `"include_usage":true`) {
			t.Errorf("the upstream gets %s", got)
		}
	}
}
