package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// TestBudgetOfficialClients: the official clients see a site with a budget as one
// without, chunk by chunk, and understand its refusals.
func TestBudgetOfficialClients(t *testing.T) {
	sdks := llmtest.InstallSDKs(t)
	redis, backend := redistest.Start(t), llmtest.Start(t)
	plain := "http://" + startProcess(t, passing(backend.Addr)).addr
	wide := budgeted{events: "1000000000", window: "1h", upstream: backend.Addr}.start(t, redis)
	behaviours := slices.DeleteFunc(slices.Clone(llmBehaviours), func(b string) bool { return b == "usage=none" || b == "huge=500000" })
	list := scenarios(plain, behaviours)
	half := len(list)
	list = append(list, scenarios(wide.url(), behaviours)...)
	for _, scenario := range list {
		scenario.Header[caseHeader] = "official"
	}
	runs := sdks.Drive(t, list...)
	for i := range half {
		of := fmt.Sprintf("%s, stream %v, helper %t, %q", list[i].Endpoint, list[i].Request["stream"], list[i].Helper, list[i].Header[llmtest.Header])
		a, b := runs[i][0], runs[half+i][0]
		if got, want := view(withoutNull(b)), view(withoutNull(a)); got != want {
			t.Errorf("%s: with a budget\n%.1000s\nwithout\n%.1000s", of, got, want)
		}
	}

	careless := llmtest.Scenario{
		URL: wide.url(), Endpoint: "chat", Careless: true, Request: llmEndpoints[0].request(100, "stream", true),
		Header: map[string]string{caseHeader: "careless"},
	}
	if run := sdks.One(t, careless); run.Error != nil {
		t.Errorf("a client that reads choices[0] of every chunk: %+v", run.Error)
	}
}

// withoutNull leaves usage: null out of chunks: it is what a stream of chat
// completions gets when the usage is asked for on behalf of the client.
func withoutNull(run llmtest.Run) llmtest.Run {
	run.Chunks = slices.Clone(run.Chunks)
	for i, chunk := range run.Chunks {
		var fields map[string]json.RawMessage
		if json.Unmarshal(chunk, &fields) == nil && string(fields["usage"]) == "null" {
			delete(fields, "usage")
			run.Chunks[i], _ = json.Marshal(fields)
			continue
		}
		run.Chunks[i], _ = json.Marshal(fields) // in the same order
	}
	return run
}

// TestBudgetRefusals: a client that is refused for a short time tries again, after
// that time, and one that is refused for long gives up at once.
func TestBudgetRefusals(t *testing.T) {
	sdks := llmtest.InstallSDKs(t)
	redis, backend := redistest.Start(t), llmtest.Start(t)
	for _, window := range []string{"3s", "10m"} {
		for i, e := range []llmEndpoint{llmEndpoints[0], llmEndpoints[2]} { // of each client one
			for _, stream := range []bool{i == 1} {
				site := budgeted{events: "2000", window: window, upstream: backend.Addr}.start(t, redis)
				scenario := llmtest.Scenario{
					URL: site.url(), Endpoint: e.name, Request: e.request(1500, "stream", stream),
					Header: map[string]string{llmtest.Header: "output=1000000", caseHeader: fmt.Sprint(e.name, stream)},
				}
				if first := sdks.One(t, scenario); first.Error != nil {
					t.Fatalf("%s, stream %t: %+v", e.name, stream, first.Error)
				}
				second := sdks.One(t, scenario)
				if window == "10m" {
					if err := second.Error; len(second.Attempts) != 1 || err == nil || err.Class != "RateLimitError" || err.Status != 429 || err.RetryAfter == "" {
						t.Errorf("%s, stream %t: refused for long: %+v %+v", e.name, stream, second, err)
					}
				} else if second.Error != nil || len(second.Attempts) > 2 {
					t.Errorf("%s, stream %t: refused for a moment: %+v %+v", e.name, stream, second, second.Error)
				}
				site.kill()
			}
		}
	}
}

// TestBudgetFirstEvent: the first event of a stream comes as soon as without the
// module: 1.01 times as late on a quiet machine. The model thinks for a while, as models
// do. A busy machine may take longer for anything; a module that waited for the second
// event, or for the end, would take far longer.
func TestBudgetFirstEvent(t *testing.T) {
	redis, backend := redistest.Start(t), llmtest.Start(t)
	sites := []string{
		"http://" + startProcess(t, passing(backend.Addr)).addr,
		budgeted{events: "1000000000", window: "1h", upstream: backend.Addr}.start(t, redis).url(),
	}
	var times [2][]time.Duration
	for i := range 2 * 30 {
		began := time.Now()
		resp, err := llmPost(t.Context(), sites[i%2], "/v1/chat/completions", "wait=200ms,every=200ms", llmEndpoints[0].request(100, "stream", true), caseHeader, "first")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		times[i%2] = append(times[i%2], time.Since(began))
		resp.Body.Close()
	}
	median := func(d []time.Duration) time.Duration { slices.Sort(d); return d[len(d)/2] }
	without, with := median(times[0]), median(times[1])
	ratio := float64(with) / float64(without)
	t.Logf("to the first event: %v without the module, %v with it, ratio %.3f", without, with, ratio)
	if ratio > 1.5 {
		t.Errorf("the first event takes %.3f times as long", ratio)
	}
}

// A stream is the same byte for byte as without the module, when the client asks
// for its usage itself.
func TestBudgetStreamsAreTheSame(t *testing.T) {
	redis, backend := redistest.Start(t), llmtest.Start(t)
	plain := "http://" + startProcess(t, passing(backend.Addr)).addr
	wide := budgeted{events: "1000000000", window: "1h", upstream: backend.Addr}.start(t, redis).url()
	for _, behaviour := range []string{"", "crlf", "split=7,tricky", "cached=100,written=50", "huge=70000,crlf,split=1000,tricky", "hints"} {
		for _, e := range llmEndpoints {
			request := e.request(100, "stream", true)
			if e.name == "chat" {
				request["stream_options"] = map[string]any{"include_usage": true}
			}
			var texts []string
			for _, site := range []string{plain, wide} {
				resp, err := llmPost(t.Context(), site, e.path, behaviour, request, caseHeader, "same")
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("%s, %q: status %d, %v", e.name, behaviour, resp.StatusCode, err)
				}
				texts = append(texts, string(text))
			}
			if texts[0] != texts[1] || texts[0] == "" {
				t.Errorf("%s, %q: with a budget\n%.1000s\nwithout\n%.1000s", e.name, behaviour, texts[1], texts[0])
			}
		}
	}
}
