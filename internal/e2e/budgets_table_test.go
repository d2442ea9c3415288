package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// What becomes of a reservation.
const (
	settled   = "settled"  // charged is what was spent
	kept      = "kept"     // charged is what was reserved
	givenBack = "nothing"  // charged is nothing, and nothing was spent
	refused   = "refused"  // the same, and the backend never saw it
	free      = "free"     // charged is nothing, though it went through
	atLeast   = "at least" // not less than spent, whether it goes through or not
)

// budgetCase is one row of the table.
type budgetCase struct {
	name      string
	endpoints string // that it is for; empty for all
	ways      string // whole or stream; empty for both
	behaviour string
	change    func(request map[string]any)
	text      func(body string) string // changes the text of the request
	method    string                   // empty: POST
	path      string                   // empty: the endpoint's
	header    []string
	hangUp    string // empty, before (the header), during or after the response
	site      string // empty, or one of the other sites below
	want      string
	status    int    // of a refusal, or what the proxy says; 0: not looked at
	reason    string // of a refusal
}

func with(name string, value any) func(map[string]any) {
	return func(request map[string]any) { request[name] = value }
}

// unbounded takes the bound of the output out of a request.
func unbounded(request map[string]any) {
	for _, name := range []string{"max_completion_tokens", "max_output_tokens", "max_tokens"} {
		delete(request, name)
	}
}

var budgetCases = []budgetCase{
	{name: "an answer", behaviour: "output=60", want: settled},
	{name: "all of the bound", behaviour: "output=1000000", want: settled},
	{name: "no bound in the request", behaviour: "output=1000000", change: unbounded, want: settled},
	{name: "n", endpoints: "chat", behaviour: "output=60", change: with("n", 3), want: settled},
	{name: "cache and reasoning", behaviour: "input=9,cached=30,written=20,output=60,reasoning=50", want: settled},
	{name: "text that looks like usage", behaviour: "tricky,split=3,crlf", want: settled},
	{name: "a huge last event", behaviour: "huge=3000000,tricky", want: settled},
	{name: "gzip asked for", behaviour: "gzip=asked", header: []string{"Accept-Encoding", "gzip, deflate, br"}, want: settled},
	{name: "gzip anyway", behaviour: "gzip=always", want: settled},
	{name: "early hints", behaviour: "hints", want: settled},
	{name: "no usage", behaviour: "usage=none", want: kept},
	{name: "no include_usage", endpoints: "chat", ways: "stream", want: settled},
	{name: "include_usage", endpoints: "chat", ways: "stream", change: with("stream_options", map[string]any{"include_usage": true}), want: settled},
	{name: "include_usage false", endpoints: "chat", ways: "stream", change: with("stream_options", map[string]any{"include_usage": false}), want: settled},
	{name: "hang-up before the response", behaviour: "output=60,wait=1h", hangUp: "before", want: kept},
	{name: "hang-up during the stream", ways: "stream", behaviour: "output=60,every=100ms,events=50", hangUp: "during", want: kept},
	{name: "hang-up during a stream that ends soon", ways: "stream", behaviour: "output=60,every=100ms,events=50,after=1", hangUp: "during", want: kept},
	{name: "hang-up after the stream", behaviour: "output=60", hangUp: "after", want: settled},
	{name: "upstream 400", behaviour: "status=400", want: givenBack, status: 400},
	{name: "upstream 401", behaviour: "status=401", want: givenBack, status: 401},
	{name: "upstream 429", behaviour: "status=429,retry-after=7", want: givenBack, status: 429},
	{name: "upstream 500", behaviour: "status=500", want: givenBack, status: 500},
	{name: "upstream 502 of its own", behaviour: "status=502", want: givenBack, status: 502},
	{name: "upstream 504 of its own", behaviour: "status=504", want: kept, status: 504},
	{name: "upstream 529", behaviour: "status=529", want: givenBack, status: 529},
	{name: "upstream 500 that costs", behaviour: "status=500,usage=error,input=3,output=4", want: settled, status: 500},
	{name: "upstream 400 with a huge body", behaviour: "status=400", text: filled, want: givenBack, status: 400},
	{name: "ends before the response", behaviour: "break=head,output=60", want: kept, status: 502},
	{name: "cut midway", behaviour: "break=cut,output=60,events=20", want: kept},
	{name: "reset midway", behaviour: "break=reset,output=60,events=20", want: kept},
	{name: "an error midway", ways: "stream", behaviour: "break=error,output=60,events=20", want: kept},
	{name: "time-out before the response", behaviour: "break=hang,output=60", site: "impatient", want: kept, status: 504},
	{name: "nobody there", site: "gone", want: givenBack, status: 502},
	{name: "duplicate names", text: twice, want: refused, status: 400},
	{name: "odd-case names", text: oddCase, want: refused, status: 400},
	{name: "a bound of 0", change: bound(0), endpoints: "chat responses", want: refused, status: 400},
	{name: "a bound of 1.5", change: bound(1.5), want: refused, status: 400},
	{name: "a bound in quotes", change: bound("5"), want: refused, status: 400},
	{name: "an encoded request", header: []string{"Content-Encoding", "gzip"}, want: refused, status: 415},
	{name: "no JSON", text: func(body string) string { return body[1:] }, want: refused, status: 400},
	{name: "beyond max_request", change: bound(300000), want: refused, reason: "too_costly"},
	{name: "previous_response_id", endpoints: "responses", change: with("previous_response_id", "resp_1"), want: refused, status: 400, reason: "unbounded"},
	{name: "conversation", endpoints: "responses", change: with("conversation", "conv_1"), want: refused, status: 400, reason: "unbounded"},
	{name: "a stored prompt", endpoints: "responses", change: with("prompt", map[string]any{"id": "pmpt_1"}), want: refused, status: 400, reason: "unbounded"},
	{name: "background", endpoints: "responses", change: with("background", true), want: refused, status: 400},
	{name: "an image's URL", endpoints: "chat", change: with("messages", []any{map[string]any{"role": "user", "content": []any{
		map[string]any{"type": "image_url", "image_url": map[string]any{"url": "https://example.com/a.png"}}}}}), want: refused, status: 400, reason: "unbounded"},
	{name: "previous_response_id with max_input", endpoints: "responses", change: with("previous_response_id", "resp_1"), site: "max_input", want: settled},
	{name: "unknown model", change: with("model", "mystery-1"), want: settled},
	{name: "models", ways: "whole", method: "GET", path: "/v1/models", want: free},
	{name: "count_tokens", endpoints: "messages", ways: "whole", path: "/v1/messages/count_tokens", change: unbounded, want: free},
	{name: "embeddings", endpoints: "chat", ways: "whole", path: "/v1/embeddings", want: refused, reason: "unmetered"},
	{name: "audio", endpoints: "chat", ways: "whole", path: "/v1/audio/speech", want: refused, reason: "unmetered"},
	{name: "batches", ways: "whole", endpoints: "chat", path: "/v1/batches", want: refused, reason: "unmetered"},
	{name: "message batches", ways: "whole", endpoints: "messages", path: "/v1/messages/batches", want: refused, reason: "unmetered"},
	{name: "realtime", ways: "whole", endpoints: "responses", method: "GET", path: "/v1/responses", want: refused, reason: "unmetered"},
	{name: "a slash more", ways: "whole", endpoints: "chat", path: "/v1/chat/completions/", want: atLeast},
	{name: "two slashes", ways: "whole", endpoints: "chat", path: "/v1//chat/completions", want: atLeast},
	{name: "an escaped path", ways: "whole", endpoints: "chat", path: "/v1/%63hat/completions", want: atLeast},
	{name: "another case", ways: "whole", endpoints: "chat messages", path: "/V1/Messages", want: atLeast},
}

func bound(value any) func(map[string]any) {
	return func(request map[string]any) {
		for name := range request {
			if strings.HasPrefix(name, "max_") {
				request[name] = value
			}
		}
	}
}

// twice writes the bound once more in front, large.
func twice(body string) string {
	return "{" + boundName(body) + ":100000," + body[1:]
}

func oddCase(body string) string {
	return "{" + strings.ToUpper(boundName(body)) + ":1," + body[1:]
}

func boundName(body string) string {
	for _, name := range []string{`"max_completion_tokens"`, `"max_output_tokens"`, `"max_tokens"`} {
		if strings.Contains(body, name) {
			return name
		}
	}
	panic("no bound in " + body)
}

// filled is a request whose text is long.
func filled(body string) string {
	return strings.Replace(body, "What is", strings.Repeat("What is ", 10000), 1)
}

// budgetSites are the sites of the table, by their names.
func budgetSites(t *testing.T, backend *llmtest.Server, redis *redistest.Server) map[string]*process {
	t.Helper()
	usual := budgeted{events: "1000000", window: "1h", upstream: backend.Addr, usage: []string{"max_request 200000"}}
	gone, impatient, input := usual, usual, usual
	gone.upstream = freeAddr(t)
	impatient.proxy = []string{"transport http {", "\tresponse_header_timeout 1s", "}"}
	input.usage = append([]string{"max_input 10000"}, usual.usage...)
	sites := make(map[string]*process)
	for name, b := range map[string]budgeted{"": usual, "gone": gone, "impatient": impatient, "max_input": input} {
		sites[name] = b.start(t, redis)
	}
	return sites
}

// budgetRow is what was measured of a case.
type budgetRow struct {
	name                     string
	reserved, spent, charged int64
}

func (r budgetRow) String() string {
	return fmt.Sprintf("| %s | %d | %d | %d | %d |", r.name, r.reserved, r.spent, r.charged, r.reserved-r.charged)
}

var wholeTable = flag.Bool("whole", false, "try each case of TestBudgetTable with all endpoints, whole and as a stream, instead of one of these")

// TestBudgetTable: nothing is free by accident, and nothing is charged for
// nothing. What a request reserves is measured by a request that is the same, and
// whose connection ends before the response.
func TestBudgetTable(t *testing.T) {
	backend := llmtest.Start(t)
	redis := redistest.Start(t)
	sites := budgetSites(t, backend, redis)
	rows := []string{"| case | reserved | spent at the backend | charged | given back |", "|---|---:|---:|---:|---:|"}
	for i, c := range budgetCases {
		tried := c.requests()
		if !*wholeTable {
			tried = tried[i%len(tried):][:1]
		}
		for _, r := range tried {
			name := fmt.Sprintf("%s, %s, %s", c.name, r.endpoint.name, r.way)
			var reserved int64
			if c.want != refused && c.want != free && c.want != atLeast {
				twin := c
				twin.behaviour, twin.hangUp, twin.want, twin.status = "break=head", "", kept, 0
				if twin.site != "max_input" {
					twin.site = ""
				}
				reserved = twin.play(t, "the reservation of "+name, r.endpoint, r.way, sites, backend, redis, 0).charged
			}
			row := c.play(t, name, r.endpoint, r.way, sites, backend, redis, reserved)
			c.check(t, row)
			rows = append(rows, row.String())
		}
	}
	t.Logf("\n%s\n", strings.Join(rows, "\n"))
}

// budgetRequest is one of the requests that a case can be tried with.
type budgetRequest struct {
	endpoint llmEndpoint
	way      string
}

func (c budgetCase) requests() (all []budgetRequest) {
	for _, e := range llmEndpoints {
		for _, way := range []string{"whole", "stream"} {
			if (c.endpoints == "" || strings.Contains(c.endpoints, e.name)) && (c.ways == "" || c.ways == way) {
				all = append(all, budgetRequest{e, way})
			}
		}
	}
	return all
}

// check holds a row against what is wanted of it.
func (c budgetCase) check(t *testing.T, r budgetRow) {
	t.Helper()
	want := r.charged
	switch c.want {
	case settled:
		want = r.spent
	case kept:
		want = r.reserved
	case givenBack, refused, free:
		want = 0
	}
	if r.charged != want || r.charged < r.spent || c.want != atLeast && r.charged > max(r.reserved, r.spent) {
		t.Errorf("%s: reserved %d, spent %d, charged %d, want %d (%s)", r.name, r.reserved, r.spent, r.charged, want, c.want)
	}
	if c.want == settled && r.spent == 0 || c.want == kept && r.reserved == 0 {
		t.Errorf("%s: spent %d, reserved %d: the case tests nothing", r.name, r.spent, r.reserved)
	}
}

// play sends the request of a case, and measures.
func (c budgetCase) play(t *testing.T, name string, e llmEndpoint, way string, sites map[string]*process, backend *llmtest.Server, redis *redistest.Server, reserved int64) budgetRow {
	t.Helper()
	request := e.request(100)
	if way == "stream" {
		request["stream"] = true
	}
	if c.change != nil {
		c.change(request)
	}
	text, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	body := string(text)
	if c.text != nil {
		body = c.text(body)
	}
	before, entries := charged(t, redis), len(backend.Ledger())
	status, answer := c.send(t, sites[c.site].url(), e, name, body, func() bool { return len(backend.Ledger()) > entries })
	ledger := backend.Since(entries)
	tokens, _ := llmtest.Spent(ledger)
	r := budgetRow{name: name, reserved: reserved, spent: int64(tokens)}
	r.charged = chargedUntil(t, redis, func(units int64) bool {
		switch c.want {
		case settled:
			return units-before == r.spent
		case kept:
			return units-before >= max(reserved, r.spent, 1)
		case atLeast:
			return units-before >= r.spent
		}
		return units == before
	}) - before
	if c.want == refused {
		if len(ledger) > 0 {
			t.Errorf("%s: the backend was asked: %v", name, ledger)
		}
		if status < 400 || !json.Valid([]byte(answer)) || !strings.Contains(answer, `"error"`) || !strings.Contains(answer, c.reason) {
			t.Errorf("%s: status %d, want an error of the API with the reason %q: %.300q", name, status, c.reason, answer)
		}
	}
	if c.status != 0 && status != c.status {
		t.Errorf("%s: status %d, want %d: %.300q", name, status, c.status, answer)
	}
	return r
}

// send sends the request of a case, and hangs up when it is to. The status is 0
// where there was none.
func (c budgetCase) send(t *testing.T, site string, e llmEndpoint, name, body string, arrived func() bool) (status int, answer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	method, path := http.MethodPost, e.path
	if c.method != "" {
		method, body = c.method, ""
	}
	if c.path != "" {
		path = c.path
	}
	header := append([]string{caseHeader, strings.ReplaceAll(name, " ", "-")}, c.header...)
	if c.hangUp == "before" {
		go func() {
			for !arrived() {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
	}
	resp, err := llmSend(ctx, method, site+path, c.behaviour, body, header...)
	if err != nil {
		if c.hangUp != "before" {
			t.Errorf("%s: %v", name, err)
		}
		return 0, ""
	}
	defer resp.Body.Close()
	if c.hangUp == "during" {
		if _, err := io.ReadFull(resp.Body, make([]byte, 400)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		return resp.StatusCode, ""
	}
	text, _ := io.ReadAll(resp.Body) // some break
	return resp.StatusCode, string(text)
}
