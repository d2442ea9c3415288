package caddytest

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

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
	r.Header.Set("Anthropic-Version", "2023-06-01")
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

const dollarBudget = `events $20
			usage %s {
				price gpt-5 input 1.25 cached 0.125 cache_write 1.25 output 10
				price claude-sonnet-4-6 input 3 cached 0.30 output 15
				price default input 15 cached 15 cache_write 18.75 output 120
				max_output 500
			}`

// In dollars, too, what is charged is what the provider bills, to the micro-dollar:
// with caches, and at the price of the model that answered if that is the dearer one.
func TestBudgetInDollars(t *testing.T) {
	for api, row := range map[string]struct{ path, body string }{
		"openai":    {"/v1/chat/completions", chatBody(`,"max_completion_tokens":100`)},
		"anthropic": {"/v1/messages", `{"model":"claude-sonnet-4-6","max_tokens":100,"messages":[{"role":"user","content":"Hello"}]}`},
	} {
		t.Run(api, func(t *testing.T) {
			backend := llmtest.Start(t)
			e := start(t, budgetSite(backend, "", fmt.Sprintf(dollarBudget, api)))
			left := func() int64 {
				a := e.ask(row.path, "status=400", row.body)
				_, rest, _ := strings.Cut(a.Header.Get("RateLimit"), `"budget";r=`)
				number, _, _ := strings.Cut(rest, ";")
				n, err := strconv.ParseInt(number, 10, 64)
				if err != nil {
					t.Fatalf("status %d, %v: %s", a.StatusCode, a.Header, a.body)
				}
				return n
			}
			for _, behaviour := range []string{"input=7,cached=3,output=60", "input=9,output=100", "answered=mystery,input=5,output=7"} {
				before, n := left(), len(backend.Ledger())
				if a := e.ask(row.path, behaviour, row.body); a.StatusCode != http.StatusOK {
					t.Fatalf("status %d: %s", a.StatusCode, a.body)
				}
				_, micro := llmtest.Spent(backend.Since(n))
				if got := before - left(); got != micro || micro == 0 {
					t.Errorf("%s: charged %d micro-dollars, the provider bills %d", behaviour, got, micro)
				}
			}
			e.sample("usage_responses_total", "counted budget", 3)
			e.sample("usage_tokens_total", "output "+map[string]string{"openai": "gpt-5", "anthropic": "claude-sonnet-4-6"}[api]+" budget", 160)
			e.sample("usage_tokens_total", "output default budget", 7)
		})
	}
}

// What certainly cost nothing is given back, and nothing else.
func TestBudgetWhenResponsesFail(t *testing.T) {
	backend := llmtest.Start(t)
	e := start(t, strings.Replace(budgetSite(backend, "", tokenBudget), "reverse_proxy "+backend.Addr, `
	@gone header Test gone
	handle @gone {
		reverse_proxy `+freeAddress(t)+`
	}
	@late header Test late
	handle @late {
		respond "not here" 404
	}
	handle {
		reverse_proxy `+backend.Addr+` {
			transport http {
				response_header_timeout 500ms
			}
		}
	}`, 1))
	const request = `,"max_completion_tokens":100`
	full := int64(len(chatBody(request))) + 128 + 100
	for _, row := range []struct {
		name, behaviour, test string
		status                int
		want                  int64
	}{
		{"refused by the upstream", "status=400", "", 400, 0},
		{"over the upstream's limit", "status=429", "", 429, 0},
		{"an error of the upstream", "status=500", "", 500, 0},
		{"a 502 of the upstream's own", "status=502", "", 502, 0},
		{"an error that costs", "status=500,usage=error,input=3,output=4", "", 500, 7},
		{"no usage", "usage=none", "", 200, full},
		{"ends before the response", "break=head", "", 502, full},
		{"no response in time", "break=hang", "", 504, full},
		{"breaks off", "break=cut,events=20", "", 200, full},
		{"nobody there", "", "gone", 502, 0},
		{"another handler", "", "late", 404, 0},
		{"more than was reserved", "input=5,output=100,answered=x,reasoning=9,cached=5000", "", 200, 5105},
	} {
		for _, more := range []string{"", `,"stream":true`} {
			want := row.want
			if want == full && more != "" {
				want = int64(len(chatBody(request+more))) + 128 + 100
			}
			e.charged(row.name+more, want, func() {
				if a := e.ask("/v1/chat/completions", row.behaviour, chatBody(request+more), "Test", row.test); a.StatusCode != row.status {
					t.Errorf("%s: status %d, want %d: %s", row.name, a.StatusCode, row.status, a.body)
				}
			})
		}
	}
	e.sample("usage_responses_total", "overrun budget", 2)
	e.log.says(1, "a response cost more than its request had reserved; what it exceeds the budget by was charged all the same")
	e.log.says(1, "a response did not tell its usage, so that all that its request had reserved stays charged; see that the upstream tells it, and that nothing between here and there encodes responses")
}

// A request that nobody can have got costs nothing, although reverse_proxy has read it;
// and one that was sent costs what it has reserved, whatever somebody makes of the error.
func TestBudgetOfWhatWasNotSent(t *testing.T) {
	invite(t, "calm", act(func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		if err := next.ServeHTTP(w, r); err != nil {
			w.WriteHeader(http.StatusTooManyRequests)
		}
		return nil
	}))
	backend := llmtest.Start(t)
	proxy := func(to string, more ...string) string {
		return "reverse_proxy " + to + " {\n request_buffers 1MiB\n " + strings.Join(more, "\n ") + "\n}\n"
	}
	const impatient = "transport http {\n response_header_timeout 500ms\n }"
	var handles string
	for _, h := range [][2]string{
		{"gone", proxy(freeAddress(t))},
		{"down", proxy(freeAddress(t), "fail_duration 1h")},
		{"second", proxy(freeAddress(t)+" "+backend.Addr, "lb_policy round_robin", "lb_retries 1")},
		{"calmed", "route {\n stage calm\n " + proxy(backend.Addr, impatient) + "}\n"},
		{"calmed-gone", "route {\n stage calm\n " + proxy(freeAddress(t)) + "}\n"},
		{"again", proxy(backend.Addr, "lb_retries 1", "lb_retry_match {\n method POST\n }", impatient)},
	} {
		handles += "@" + h[0] + " header Test " + h[0] + "\nhandle @" + h[0] + " {\n" + h[1] + "}\n"
	}
	handles += "handle {\n reverse_proxy " + backend.Addr + "\n}\n"
	e := start(t, strings.Replace(budgetSite(backend, "", tokenBudget), "reverse_proxy "+backend.Addr, handles, 1))
	request := chatBody(`,"max_completion_tokens":100`)
	full := int64(len(request)) + 128 + 100
	for _, row := range []struct {
		test, behaviour string
		status          int
		want            int64
	}{
		{"gone", "", 502, 0},
		{"down", "", 502, 0},
		{"down", "", 503, 0}, // no upstream is left
		{"second", "status=400", 400, 0},
		{"second", "status=400", 400, 0},
		{"second", "input=30,output=50", 200, 80},
		{"calmed", "break=hang", 429, full},
		{"calmed", "break=head", 429, full},
		{"calmed", "status=429", 429, 0},
		{"calmed-gone", "", 429, 0},
		{"again", "break=hang", 504, full},
	} {
		e.charged(row.test+" "+row.behaviour, row.want, func() {
			if a := e.ask("/v1/chat/completions", row.behaviour, request, "Test", row.test); a.StatusCode != row.status {
				t.Errorf("%s: status %d, want %d: %s", row.test, a.StatusCode, row.status, a.body)
			}
		})
	}
}

// Refusals are in the API's own shape, and say whether to come again.
func TestBudgetRefusals(t *testing.T) {
	backend := llmtest.Start(t)
	for _, row := range []struct {
		name, api, zones, path, body string
		header                       []string
		status                       int
		code, retry                  string // x-should-retry
	}{
		{"budget used up", "openai", "", "/v1/chat/completions", chatBody(`,"max_tokens":400`), nil, 429, "rate_limit_exceeded", "false"},
		{"too costly", "openai", "", "/v1/chat/completions", chatBody(`,"max_tokens":4000`), nil, 429, "too_costly", "false"},
		{"too costly for a request", "openai", "", "/v1/chat/completions", chatBody(`,"max_tokens":600`), nil, 400, "too_costly", "false"},
		{"unmetered", "openai", "", "/v1/batches", "{}", nil, 403, "unmetered", "false"},
		{"a slash more", "openai", "", "/v1/chat/completions/", chatBody(""), nil, 403, "unmetered", "false"},
		{"unbounded", "openai", "", "/v1/responses", `{"model":"gpt-5","input":"x","previous_response_id":"r"}`, nil, 400, "unbounded", "false"},
		{"duplicate", "openai", "", "/v1/chat/completions", chatBody(`,"max_tokens":1,"max_tokens":1`), nil, 400, "malformed", "false"},
		{"no body", "openai", "", "/v1/chat/completions", "", nil, 400, "malformed", "false"},
		{"encoded", "openai", "", "/v1/chat/completions", chatBody(""), []string{"Content-Encoding", "gzip"}, 415, "encoded", "false"},
		{"a form", "openai", "", "/v1/chat/completions", "a=b", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "encoded", "false"},
		{"another type", "openai", "", "/v1/chat/completions", chatBody(""), []string{"Content-Type", "text/plain"}, 415, "encoded", "false"},
		{"long", "openai", "", "/v1/chat/completions", chatBody(strings.Repeat(" ", 9000)), nil, 413, "too_long", "false"},
		{"no key", "openai", "", "/v1/chat/completions", chatBody(""), []string{"User", ""}, 403, "empty_key", "false"},
		{"another zone", "openai", "zone slow {\nevents 1\nwindow 5s\n}", "/v1/chat/completions", chatBody(`,"max_tokens":1`), nil, 429, "rate_limit_exceeded", ""},
		{"anthropic", "anthropic", "", "/v1/messages", `{"model":"x","max_tokens":400,"messages":[]}`, nil, 429, "limit", "false"},
		{"anthropic, batches", "anthropic", "", "/v1/messages/batches", `{}`, nil, 403, "unmetered", "false"},
	} {
		t.Run(row.name, func(t *testing.T) {
			site := budgetSite(backend, row.zones, "events 1000\nusage "+row.api+" {\n max_output 100\n"+map[bool]string{true: "max_request 700\n"}[row.name == "too costly for a request"]+"}")
			e := start(t, strings.Replace(site, "ratelimit_headers always", "ratelimit_headers always\nbody_limit 8KiB", 1))
			first := chatBody(`,"max_completion_tokens":300`)
			if row.api == "anthropic" {
				first = `{"model":"x","max_tokens":500,"messages":[]}`
			}
			if row.status == 429 {
				e.ask(map[string]string{"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[row.api], "usage=none", first)
			}
			n := len(backend.Ledger())
			a := e.ask(row.path, "", row.body, row.header...)
			if a.StatusCode != row.status || len(backend.Ledger()) > n {
				t.Errorf("status %d, want %d, and the backend was asked %d times: %s", a.StatusCode, row.status, len(backend.Ledger())-n, a.body)
			}
			a.header(t, "X-Should-Retry", row.retry)
			a.header(t, "Content-Type", "application/json")
			want := `"code":"` + row.code + `"`
			if row.api == "anthropic" {
				want = `"error_code":"` + row.code + `"`
			}
			if !strings.Contains(a.body, `{"error":{`) && !strings.Contains(a.body, `"type":"error","error":{`) || !strings.Contains(a.body, want) {
				t.Errorf("want an error of the API with %s: %s", want, a.body)
			}
			if waits := a.Header.Get("Retry-After") != "" && a.Header.Get("Retry-After-Ms") != ""; waits != strings.HasPrefix(row.code, "rate") && row.code != "limit" {
				t.Errorf("headers %v", a.Header)
			}
		})
	}
}

// Free requests pass whatever is left; several budgets read a request once, each has
// its own bounds, and the smallest is written.
func TestSeveralBudgets(t *testing.T) {
	backend := llmtest.Start(t)
	e := start(t, budgetSite(backend, `
		zone all {
			key all
			events $30
			window 30d
			usage openai {
				price default input 15 output 120
				max_output 2000
			}
		}`, "events 1000\nusage openai {\nmax_output 50\n}"))
	for _, body := range []string{chatBody(""), chatBody(`,"stream":true`)} {
		n := len(backend.Ledger())
		a := e.ask("/v1/chat/completions", "output=1000,input=10", body)
		if a.StatusCode != http.StatusOK || strings.Contains(a.body, `"usage":{`) && strings.Contains(body, "stream") {
			t.Errorf("status %d: %s", a.StatusCode, a.body)
		}
		if got := string(backend.Since(n)[0].Body); strings.Count(got, "max_") != 1 || !strings.Contains(got, `"max_completion_tokens":50,`) {
			t.Errorf("the upstream gets %s", got)
		}
	}
	e.sample("usage_units_total", "settled budget", 120)
	e.sample("usage_units_total", "settled all", 2*(10*15+50*120))
	e.sample("usage_units_total", "overrun all", 0)
	for e.ask("/v1/chat/completions", "output=900,usage=none", chatBody("")).StatusCode == http.StatusOK {
	}
	n := len(backend.Ledger())
	e.ask("/v1/responses/input_tokens", "", "{}")
	if ledger := backend.Since(n); len(ledger) != 1 {
		t.Errorf("a request that is free does not pass: %v", ledger)
	}
}

// A backend in an error route bills what it does, whatever the first one has cost: what
// the limit had reserved for that, and given back, does not stand for it.
func TestErrorRoutesReserveAnew(t *testing.T) {
	backend := llmtest.Start(t)
	site := budgetSite(backend, "", tokenBudget)
	limit, proxy, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(site, "\nhttp://a.test {"), "}"), "\treverse_proxy")
	e := start(t, "http://a.test {\nroute {"+limit+"@down header Down *\nerror @down 502\nreverse_proxy"+proxy+"}\nhandle_errors 502 {\nroute {"+limit+"reverse_proxy"+proxy+"}\n}\n}")
	before := e.left()
	a := e.ask("/v1/chat/completions", "input=30,output=100", chatBody(""), "Down", "yes")
	if a.StatusCode != http.StatusOK {
		t.Fatalf("got status %d, %s, want 200 from the second backend", a.StatusCode, a.body)
	}
	if after := e.left(); after >= before {
		t.Errorf("the second backend's work was free: %d were left before it, and %d after", before, after)
	}
}

// While the store is away nobody knows what is left of a budget, whatever the handler
// says of its other zones.
func TestBudgetWithoutStore(t *testing.T) {
	backend := llmtest.Start(t)
	e := start(t, "{\n\tdistributed_ratelimit {\n\t\tstore redis redis://"+freeAddress(t)+"\n\t\ton_store_error local\n\t}\n}"+budgetSite(backend, "", tokenBudget))
	a := e.ask("/v1/chat/completions", "", chatBody(""))
	if a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, `"code":"store_away"`) || len(backend.Ledger()) > 0 {
		t.Errorf("status %d, the backend was asked %d times: %s", a.StatusCode, len(backend.Ledger()), a.body)
	}
	a.header(t, "X-Should-Retry", "")
	a.header(t, "Retry-After", "1")
}

// Free paths are no way round the key: what they show was bought with the operator's own
// key of the provider.
func TestFreePathsAskForTheKey(t *testing.T) {
	backend := llmtest.Start(t)
	e := start(t, budgetSite(backend, "", tokenBudget))
	const path = "/v1/responses/input_tokens"
	if a := e.ask(path, "", `{"model":"gpt-5","input":"hi"}`, "User", ""); a.StatusCode != http.StatusForbidden {
		t.Errorf("without a key: status %d: %s", a.StatusCode, a.body)
	}
	if n := len(backend.Ledger()); n != 0 {
		t.Errorf("%d requests without a key reached the provider", n)
	}
	if a := e.ask(path, "", `{"model":"gpt-5","input":"hi"}`); a.StatusCode == http.StatusForbidden {
		t.Errorf("with a key: status %d: %s", a.StatusCode, a.body)
	}
}
