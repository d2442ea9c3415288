package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
)

// What the official clients do with a response that is an error, as their sources
// say (openai 7.57.0 and @anthropic-ai/sdk 1.12.0, client.mjs: shouldRetry and
// retryRequest) and the tests below show:
//
//	status        408, 409, 429 and every one from 500 on are tried again, as are
//	              connections that fail and time-outs; nothing else is
//	x-should-retry  true and false overrule the status
//	attempts      3, one and maxRetries, which is 2
//	retry-after-ms  is obeyed before Retry-After; both may have fractions, and
//	              Retry-After may be a date
//	above 60 s    openai takes no notice and tries again after its own delay;
//	              anthropic waits for as long as it is told, up to 24 days, and its
//	              user sees nothing meanwhile
//	0             openai tries again at once; anthropic takes a retry-after-ms of 0
//	              for none, a Retry-After of 0 too
//	below 0       taken for none by both
//	own delay     0.5 s doubled with each attempt, up to 8 s, and up to a quarter less
//	time-out      10 minutes for each attempt, to the response's header (openai: and
//	              its body, of one that is no stream); then the next attempt begins
//	headers       x-stainless-retry-count tells how many attempts came before
//
// A stream that breaks midway is not tried again. A user who aborts, or leaves the
// loop, ends the connection.
//
// So whoever refuses for long says x-should-retry: false, or openai comes back at
// once, twice, and anthropic's user waits for hours without an error. And after a
// time-out or a broken connection the same work is asked for again, while the
// provider bills for the first: each attempt is a request of its own.

// caseHeader tells the requests of a test's cases apart in the ledger.
const caseHeader = "LLM-Case"

// retried is one scenario of a client whose first attempts are refused.
type retried struct {
	name      string
	behaviour string
	retries   int // -1: the client's own
	abort     *llmtest.Abort
	clients   string // which it is for: empty for both
	attempts  int
	class     string        // of the error, empty for none
	waited    time.Duration // at least, before the second attempt
}

// enough is when a client would be waiting that should have given up.
var enough = llmtest.Abort{At: "attempt", N: 20000}

var retriedScenarios = []retried{
	{"Retry-After is obeyed", "status=429,times=1,retry-after=2", -1, nil, "", 2, "", 2 * time.Second},
	{"with a fraction", "status=429,times=1,retry-after=1.5", -1, nil, "", 2, "", 1500 * time.Millisecond},
	{"retry-after-ms comes first", "status=429,times=1,retry-after=3600,retry-after-ms=1500", -1, nil, "", 2, "", 1500 * time.Millisecond},
	{"its own delay", "status=429,times=1", -1, nil, "", 2, "", 375 * time.Millisecond},
	{"three attempts", "status=429,retry-after-ms=1", -1, nil, "", 3, "RateLimitError", 0},
	{"not to be tried again", "status=429,retry-after=3600,should-retry=false", -1, &enough, "", 1, "RateLimitError", 0},
	{"not to be tried again, without Retry-After", "status=429,should-retry=false", -1, &enough, "", 1, "RateLimitError", 0},
	{"not to be tried again though it is away", "status=503,should-retry=false", -1, &enough, "chat responses", 1, "InternalServerError", 0},
	{"not to be tried again though it is away", "status=503,should-retry=false", -1, &enough, "messages", 1, "ServiceUnavailableError", 0},
	{"to be tried again though it is wrong", "status=400,times=1,should-retry=true,retry-after-ms=1", -1, nil, "", 2, "", 0},
	{"a long Retry-After is ignored", "status=429,retry-after=61", -1, nil, "chat responses", 3, "RateLimitError", 0},
	{"a long Retry-After is obeyed", "status=429,retry-after=61", -1, &llmtest.Abort{At: "attempt", N: 4000}, "messages", 1, "APIUserAbortError", 0},
	{"none at all, at once", "status=429,times=2,retry-after=0", -1, nil, "", 3, "", 0},
	{"400", "status=400", -1, nil, "", 1, "BadRequestError", 0},
	{"401", "status=401", -1, nil, "", 1, "AuthenticationError", 0},
	{"415", "status=415", -1, nil, "", 1, "APIError", 0},
	{"408", "status=408,times=1,retry-after-ms=1", -1, nil, "", 2, "", 0},
	{"409", "status=409,times=1,retry-after-ms=1", -1, nil, "", 2, "", 0},
	{"500", "status=500,times=1,retry-after-ms=1", -1, nil, "", 2, "", 0},
	{"529", "status=529,retry-after-ms=1", 1, nil, "chat responses", 2, "InternalServerError", 0},
	{"529", "status=529,retry-after-ms=1", 1, nil, "messages", 2, "OverloadedError", 0},
}

// The official clients understand a refusal, through Caddy too, and try again
// when and only when they are told to.
func TestOfficialClientsTryAgain(t *testing.T) {
	sdks := llmtest.InstallSDKs(t)
	backend := llmtest.Start(t)
	var list []llmtest.Scenario
	var wants []retried
	for _, site := range llmSites(t, backend) {
		for _, e := range llmEndpoints {
			for _, stream := range []bool{false, true} {
				for _, r := range retriedScenarios {
					if r.clients != "" && !strings.Contains(r.clients, e.name) {
						continue
					}
					scenario := llmtest.Scenario{
						URL: site, Endpoint: e.name, Abort: r.abort, Request: e.request(100, "stream", stream),
						Header: map[string]string{llmtest.Header: r.behaviour},
					}
					if r.retries >= 0 {
						scenario.Retries = &r.retries
					}
					list, wants = append(list, scenario), append(wants, r)
				}
			}
		}
	}
	for i, runs := range sdks.Drive(t, list...) {
		wants[i].check(t, list[i], runs[0])
	}
}

func (r retried) check(t *testing.T, scenario llmtest.Scenario, run llmtest.Run) {
	t.Helper()
	class, message := "", ""
	if run.Error != nil {
		class, message = run.Error.Class, run.Error.Message
	}
	if len(run.Attempts) != r.attempts || class != r.class {
		t.Errorf("%s: %s %s: %d attempts and error %q (%s), want %d and %q", r.name, scenario.Endpoint, scenario.URL, len(run.Attempts), class, message, r.attempts, r.class)
		return
	}
	if len(run.Attempts) > 1 {
		// The clock of the client starts when the header is there, and the
		// delay before its own rounding.
		if waited := run.Attempts[1].At - run.Attempts[0].At; waited < r.waited-5*time.Millisecond {
			t.Errorf("%s: %s: tried again after %v, want at least %v", r.name, scenario.Endpoint, waited, r.waited)
		}
	}
	if class == "RateLimitError" && (run.Error.Status != 429 || run.Error.Type == "" || !strings.Contains(message, "the test wants it")) {
		t.Errorf("%s: %s: the client does not find what the error holds: %+v", r.name, scenario.Endpoint, run.Error)
	}
}

// Users who abort, and connections that break: what they see, and that the
// backend bills what they do not see.
func TestOfficialClientsGiveUp(t *testing.T) {
	sdks := llmtest.InstallSDKs(t)
	none, one := 0, 1
	type want struct {
		class    string // empty: it ends without an error
		requests int    // that reach the backend
		spent    int    // output tokens, at least; each request has 40
		hungUp   bool
	}
	tests := []struct {
		name      string
		behaviour string
		stream    bool
		change    llmtest.Scenario
		want      want
	}{
		{"abort before", "", true, llmtest.Scenario{Abort: &llmtest.Abort{At: "before"}}, want{"APIUserAbortError", 0, 0, false}},
		{"abort while it waits", "wait=1h", true, llmtest.Scenario{Abort: &llmtest.Abort{At: "sent", N: 5000}}, want{"APIUserAbortError", 1, 40, true}},
		{"abort while it waits for a whole", "wait=1h", false, llmtest.Scenario{Abort: &llmtest.Abort{At: "sent", N: 5000}}, want{"APIUserAbortError", 1, 40, true}},
		{"abort during a stream", "break=stall,events=20", true, llmtest.Scenario{Abort: &llmtest.Abort{At: "chunk", N: 6}}, want{"", 1, 1, true}},
		{"leave the loop", "every=1s,events=20", true, llmtest.Scenario{Abort: &llmtest.Abort{At: "break", N: 3}}, want{"", 1, 40, true}},
		{"abort after", "", true, llmtest.Scenario{Abort: &llmtest.Abort{At: "after"}}, want{"", 1, 40, false}},
		{"time-out", "break=hang", false, llmtest.Scenario{Timeout: 5000, Retries: &none}, want{"APIConnectionTimeoutError", 1, 40, true}},
		{"time-out, tried again", "break=hang", true, llmtest.Scenario{Timeout: 5000, Retries: &one}, want{"APIConnectionTimeoutError", 2, 80, true}},
		{"a stream is cut", "break=cut,events=20", true, llmtest.Scenario{}, want{"TypeError", 1, 1, false}},
		{"a stream is reset", "break=reset,events=20", true, llmtest.Scenario{}, want{"TypeError", 1, 1, false}},
		{"an error in a stream", "break=error,events=20", true, llmtest.Scenario{}, want{"APIError", 1, 1, false}},
	}
	backend := llmtest.Start(t)
	var list []llmtest.Scenario
	var wants []want
	for _, site := range llmSites(t, backend) {
		for _, e := range llmEndpoints {
			for _, test := range tests {
				scenario := test.change
				scenario.URL, scenario.Endpoint = site, e.name
				scenario.Request = e.request(100, "stream", test.stream)
				scenario.Header = map[string]string{llmtest.Header: "output=40," + test.behaviour, caseHeader: fmt.Sprint(len(list), ": ", test.name)}
				list, wants = append(list, scenario), append(wants, test.want)
			}
		}
	}
	runs := sdks.Drive(t, list...)
	ledger := backend.Since(0)
	for i, want := range wants {
		got := want
		got.class, got.requests, got.spent, got.hungUp = "", 0, 0, false
		if err := runs[i][0].Error; err != nil {
			got.class = err.Class
		}
		for _, entry := range ledger {
			if entry.Header.Get(caseHeader) == list[i].Header[caseHeader] {
				got.requests++
				got.spent += entry.Tokens.Output
				got.hungUp = got.hungUp || entry.HungUp
			}
		}
		got.spent = min(got.spent, want.spent)
		if got != want {
			t.Errorf("%s %s %s: %+v, want %+v: %+v", list[i].URL, list[i].Endpoint, list[i].Header[caseHeader], got, want, runs[i][0].Error)
		}
	}
}

// 200 requests of one client at once all come through, and the ledger has them.
func TestOfficialClientsInParallel(t *testing.T) {
	sdks := llmtest.InstallSDKs(t)
	backend := llmtest.Start(t)
	site := llmSites(t, backend)["Caddy"]
	for _, e := range llmEndpoints {
		before := len(backend.Ledger())
		scenario := llmtest.Scenario{
			URL: site, Endpoint: e.name, Request: e.request(1000), Times: 200,
			Header: map[string]string{llmtest.Header: "input=5,output=500,events=10,every=10ms"},
		}
		streamed := scenario
		streamed.Request = e.request(1000, "stream", true)
		for _, runs := range sdks.Drive(t, scenario, streamed) {
			for i, run := range runs {
				if run.Error != nil {
					t.Fatalf("%s, request %d: %+v", e.name, i, run.Error)
				}
			}
		}
		ledger := backend.Since(before)
		if tokens, _ := llmtest.Spent(ledger); len(ledger) != 400 || tokens != 400*505 {
			t.Errorf("%s: %d requests of %d tokens, want 400 of 505 each", e.name, len(ledger), tokens)
		}
	}
}
