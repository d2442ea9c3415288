package llmtest_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
)

// ledgerPrices are written out, so that both sides can have the same without
// knowing of each other's defaults.
var ledgerPrices = map[string]llmtest.Price{
	"gpt-5":             {Input: "1.25", Cached: "0.125", Written: "1.5625", Output: "10"},
	"gpt-5-pro":         {Input: "15.000001", Cached: "15", Written: "18.75", Output: "120"},
	"claude-sonnet-4-6": {Input: "3", Cached: "0.3", Written: "3.75", Written1h: "6", Output: "15"},
	"default":           {Input: "100", Cached: "100", Written: "125", Written1h: "200", Output: "600"},
}

func meter(t *testing.T, api llm.API, dollars bool) *llm.Meter {
	t.Helper()
	cfg := llm.Config{API: api, MaxOutput: 4096}
	if dollars {
		for _, model := range []string{"gpt-5", "gpt-5-pro", "claude-sonnet-4-6", "default"} {
			p := ledgerPrices[model]
			price := llm.Price{Match: model, Input: *rate(t, p.Input), Output: *rate(t, p.Output), Cached: rate(t, p.Cached), CacheWrite: rate(t, p.Written)}
			if p.Written1h != "" {
				price.CacheWriteHour = rate(t, p.Written1h)
			}
			cfg.Prices = append(cfg.Prices, price)
		}
	}
	m, err := llm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func rate(t *testing.T, dollars string) *llm.Rate {
	t.Helper()
	r, err := llm.ParseRate(dollars)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

// metered are requests to all endpoints: as a whole and as streams, with a bound
// of their own and without, asking for the usage and not. No user asks for what
// the meter accepts only when it is told to.
var metered = []struct {
	api  llm.API
	path string
	body string
}{
	{llm.OpenAI, "/v1/chat/completions", `{"model":"gpt-5","messages":[{"role":"user","content":"What is a budget?"}],"max_completion_tokens":90}`},
	{llm.OpenAI, "/v1/chat/completions", `{"model":"gpt-9","messages":[{"role":"user","content":"What is a budget?"}]}`},
	{llm.OpenAI, "/v1/chat/completions", `{"model":"gpt-5-pro","n":3,"messages":[{"role":"user","content":"What is a budget?"}],"stream":true}`},
	{llm.OpenAI, "/v1/chat/completions", `{"stream":true,"stream_options":{"include_usage":true},"model":"gpt-5","messages":[{"role":"user","content":"What is a budget?"}]}`},
	{llm.OpenAI, "/v1/chat/completions", `{"stream":true,"stream_options":{},"model":"gpt-5","messages":[{"role":"user","content":"What is a budget?"}]}`},
	{llm.OpenAI, "/v1/responses", `{"model":"gpt-5","input":"What is a budget?","max_output_tokens":90}`},
	{llm.OpenAI, "/v1/responses", `{"model":"gpt-5","input":"What is a budget?","stream":true,"instructions":"Say \"usage\": 0"}`},
	{llm.Anthropic, "/v1/messages", `{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":"What is a budget?"}],"max_tokens":90}`},
	{llm.Anthropic, "/v1/messages", `{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":"What is a budget?"}],"max_tokens":90,"stream":true}`},
}

var meteredBehaviours = []string{
	"", "crlf,split=1", "tricky,split=3", "tricky,crlf", "huge=100000,tricky", "output=1000000", "output=0,events=1", "events=100,output=77",
	"input=3,cached=100,written=41,output=33,reasoning=30", "input=0,cached=7,written=0,output=1", "gzip=asked", "hints", "wait=1ms",
	"written1h=11,written=3,input=1,output=7", "usage=none", "break=cut", "break=reset", "break=error", "break=head", "status=500", "status=429",
	"status=500,usage=error,input=2,output=9", "answered=default-model,output=9", "gzip=always",
}

// What the meter settles is what the ledger bills, to the token and to the
// micro-dollar; where it cannot know, the reservation stands and covers it. The
// two have no line of code in common.
func TestMeterAgreesWithLedger(t *testing.T) {
	for _, dollars := range []bool{false, true} {
		for _, request := range metered {
			backend := llmtest.Start(t, ledgerPrices)
			m := meter(t, request.api, dollars)
			for _, behaviour := range meteredBehaviours {
				if strings.Contains(behaviour, "written1h") && request.api == llm.OpenAI {
					continue // there is no such price
				}
				before := len(backend.Ledger())
				got, outcome, reserved := settle(t, m, backend, request.path, request.body, behaviour)
				entry := backend.Since(before)
				of := fmt.Sprintf("dollars %t, %s %s, %q", dollars, request.path, request.body, behaviour)
				tokens, micro := llmtest.Spent(entry)
				spent := int64(tokens)
				if dollars {
					spent = micro
				}
				switch {
				case outcome == llm.Counted && got != spent:
					t.Errorf("%s: settled to %d, spent %d: %v", of, got, spent, entry)
				case outcome == llm.Missing && (got != reserved || got < spent):
					t.Errorf("%s: settled to %d without a usage, reserved %d, spent %d: %v", of, got, reserved, spent, entry)
				case outcome == llm.Failed && (got != 0 || spent != 0):
					t.Errorf("%s: settled to %d for an error, spent %d: %v", of, got, spent, entry)
				}
				if want := expected(behaviour, entry[0].Stream); outcome != want {
					t.Errorf("%s: outcome %v, want %v: %v", of, outcome, want, entry)
				}
				if spent > reserved && !strings.Contains(behaviour, "answered") && !strings.Contains(behaviour, "cached") {
					t.Errorf("%s: spent %d, reserved only %d: %v", of, spent, reserved, entry)
				}
			}
		}
	}
}

// expected is the outcome of a behaviour. Whatever broke, a usage that was read
// in full counts, as it does of a body of which only the end is missing.
func expected(behaviour string, stream bool) llm.Outcome {
	switch {
	case behaviour == "usage=none", behaviour == "gzip=always", behaviour == "break=head":
		return llm.Missing
	case strings.HasPrefix(behaviour, "break="):
		if behaviour == "break=error" && !stream {
			return llm.Counted
		}
		return llm.Missing
	case strings.HasSuffix(behaviour, "usage=error,input=2,output=9"):
		return llm.Counted
	case strings.HasPrefix(behaviour, "status="):
		return llm.Failed
	}
	return llm.Counted
}

// settle does what a proxy with a budget does for one request.
func settle(t *testing.T, m *llm.Meter, backend *llmtest.Server, path, body, behaviour string) (units int64, outcome llm.Outcome, reserved int64) {
	t.Helper()
	rsv, refusal := m.Reserve(http.MethodPost, path, http.Header{}, []byte(body))
	if refusal != nil {
		t.Fatalf("%s %s: %v", path, body, refusal)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, backend.URL+path, strings.NewReader(string(rsv.Body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(llmtest.Header, behaviour)
	r.Header.Set("Anthropic-Version", "2023-06-01")
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return rsv.Units, llm.Missing, rsv.Units // which is what a proxy is to do then
	}
	defer answer.Body.Close()
	response := rsv.Response(answer.StatusCode, answer.Header)
	for {
		buffer := make([]byte, 1+rand.IntN(2000))
		n, err := answer.Body.Read(buffer)
		response.Pass(buffer[:n])
		if err == io.EOF {
			response.End()
		}
		if err != nil {
			break
		}
	}
	settlement := response.Settle()
	return settlement.Units, settlement.Outcome, rsv.Units
}
