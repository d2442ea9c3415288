package llm_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
)

// ledgerMeter has the prices of the test's provider.
func ledgerMeter(t *testing.T, api llm.API) *llm.Meter {
	t.Helper()
	rate := func(s string) *llm.Rate {
		if s == "" {
			return nil
		}
		r, err := llm.ParseRate(s)
		if err != nil {
			t.Fatal(err)
		}
		return &r
	}
	cfg := llm.Config{API: api, MaxOutput: 2000}
	for name, p := range llmtest.Prices {
		price := llm.Price{Match: name, Input: *rate(p.Input), Output: *rate(p.Output), Cached: rate(p.Cached),
			CacheWrite: rate(p.Written), CacheWriteHour: rate(p.Written1h)}
		if price.CacheWrite == nil {
			price.CacheWrite = &price.Input // as the provider takes it
		}
		if price.CacheWriteHour == nil {
			price.CacheWriteHour = &price.Input
		}
		cfg.Prices = append(cfg.Prices, price)
	}
	m, err := llm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// What is settled is what a provider bills, by a ledger that was written apart
// from this package, or the reservation where the provider does not tell.
func TestLedger(t *testing.T) {
	backend := llmtest.Start(t)
	meters := map[llm.API]*llm.Meter{llm.OpenAI: ledgerMeter(t, llm.OpenAI), llm.Anthropic: ledgerMeter(t, llm.Anthropic)}
	for _, endpoint := range []struct {
		api                     llm.API
		path, model, body, much string
	}{
		{llm.OpenAI, "/v1/chat/completions", "gpt-5", `"messages":[{"role":"user","content":"Hello there, how are you?"}]`, "input=21,cached=9,written=4,"},
		{llm.OpenAI, "/v1/responses", "gpt-5", `"input":"Hello there, how are you?"`, "input=21,cached=9,written=4,"},
		{llm.Anthropic, "/v1/messages", "claude-sonnet-4-6", `"max_tokens":2000,"messages":[{"role":"user","content":[{"type":"text","text":"Hello there?","cache_control":{"type":"ephemeral","ttl":"1h"}}]}]`, "input=21,cached=9,written=4,written1h=3,"},
	} {
		for _, stream := range []string{`"stream":false,`, `"stream":true,`, `"stream":true,"stream_options":{"include_usage":true},`} {
			if strings.Contains(stream, "options") && !strings.Contains(endpoint.path, "chat") {
				continue
			}
			body := `{"model":"` + endpoint.model + `",` + stream + endpoint.body + `}`
			for _, behaviour := range []string{"", "crlf", "split=1", "split=1,crlf", "tricky", "tricky,split=3", "huge=2000000",
				"hints", "output=777,reasoning=700", "usage=none", "break=cut", "break=error", "status=400", "status=500",
				"status=500,usage=error", "status=500,gzip=always", "gzip=always", "output=0", "events=0"} {
				name := strings.Join([]string{endpoint.path, stream, behaviour}, " ")
				checkLedger(t, backend, meters[endpoint.api], name, endpoint.path, endpoint.much+behaviour, body)
			}
		}
	}
}

func checkLedger(t *testing.T, backend *llmtest.Server, meter *llm.Meter, name, path, behaviour, body string) {
	t.Helper()
	rsv, refusal := meter.Reserve("POST", path, http.Header{}, []byte(body))
	if refusal != nil {
		t.Fatalf("%s: %v", name, refusal)
	}
	r, err := http.NewRequest("POST", backend.URL+path, bytes.NewReader(rsv.Body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Anthropic-Version", "2023-06-01")
	r.Header.Set("Accept-Encoding", "identity")
	r.Header.Set(llmtest.Header, behaviour)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	defer answer.Body.Close()
	resp := rsv.Response(answer.StatusCode, answer.Header)
	var got bytes.Buffer
	chunk := make([]byte, 4096)
	for {
		n, err := answer.Body.Read(chunk)
		got.Write(resp.Pass(chunk[:n]))
		if err != nil {
			got.Write(resp.End())
			if err != io.EOF && !strings.Contains(behaviour, "break") {
				t.Fatalf("%s: %v", name, err)
			}
			break
		}
	}
	s := resp.Settle()
	entries := backend.Ledger()
	entry := entries[len(entries)-1]
	want := rsv.Units
	switch {
	case answer.StatusCode >= 400 && entry.Micro() == 0 && answer.Header.Get("Content-Encoding") == "":
		want = 0
	case entry.Told && answer.Header.Get("Content-Encoding") == "":
		want = entry.Micro()
	}
	if s.Units != want {
		t.Errorf("%s: settled %+v, want %d; billed %d for %+v, told %v, reserved %d", name, s, want, entry.Micro(), entry.Tokens, entry.Told, rsv.Units)
	}
	if (s.Outcome == llm.Counted) != (entry.Told && answer.Header.Get("Content-Encoding") == "") {
		t.Errorf("%s: status %d, outcome %d, told %v: %.200s", name, answer.StatusCode, s.Outcome, entry.Told, got.String())
	}
	if entry.Micro() > s.Units && s.Outcome != llm.Failed {
		t.Errorf("%s: billed %d, settled %d", name, entry.Micro(), s.Units)
	}
	asked := strings.Contains(body, "include_usage")
	empty := strings.Contains(got.String(), `"choices":[],`) && strings.Contains(got.String(), `"usage":{"`)
	if rsv.Stream && strings.Contains(path, "chat") && behaviour[len(behaviour)-1] == ',' && empty != asked {
		t.Errorf("%s: asked for usage: %v, and got %s", name, asked, got.String())
	}
}
