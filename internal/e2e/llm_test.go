package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
)

// passing is a Caddyfile for a site without this module, in front of an
// upstream: what the official clients see of it is what they are to see of one
// with the module.
func passing(upstream string) string {
	return fmt.Sprintf("{\n\tadmin ADMIN\n}\nADDR {\n\treverse_proxy %s\n}\n", upstream)
}

// llmSites are the addresses of a backend itself, and of a Caddy in front of it
// that does nothing else.
func llmSites(t *testing.T, backend *llmtest.Server) map[string]string {
	t.Helper()
	return map[string]string{"backend": backend.URL, "Caddy": "http://" + startProcess(t, passing(backend.Addr)).addr}
}

// llmEndpoint is one that generates text, and a request for it.
type llmEndpoint struct {
	name, path string
	stored     func(bound int) map[string]any // the request, of about 30 bytes of text
}

func said(text string) []any { return []any{map[string]any{"role": "user", "content": text}} }

var llmEndpoints = []llmEndpoint{
	{"chat", "/v1/chat/completions", func(bound int) map[string]any {
		return map[string]any{"model": "gpt-5", "messages": said("What is a budget?"), "max_completion_tokens": bound}
	}},
	{"responses", "/v1/responses", func(bound int) map[string]any {
		return map[string]any{"model": "gpt-5", "input": said("What is a budget?"), "max_output_tokens": bound}
	}},
	{"messages", "/v1/messages", func(bound int) map[string]any {
		return map[string]any{"model": "claude-sonnet-4-6", "messages": said("What is a budget?"), "max_tokens": bound}
	}},
}

// request is the endpoint's, with more fields.
func (e llmEndpoint) request(bound int, more ...any) map[string]any {
	request := e.stored(bound)
	for i := 0; i+1 < len(more); i += 2 {
		request[more[i].(string)] = more[i+1]
	}
	return request
}

// llmPost sends a request of a client that has no library.
func llmPost(ctx context.Context, site, path, behaviour string, request any, header ...string) (*http.Response, error) {
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return llmSend(ctx, http.MethodPost, site+path, behaviour, string(text), header...)
}

// llmSend is llmPost for any text.
func llmSend(ctx context.Context, method, url, behaviour, body string, header ...string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set(llmtest.Header, behaviour)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Anthropic-Version", "2023-06-01")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	return client.Do(r)
}

// llmBehaviours are all ways to write a response that ends well.
var llmBehaviours = []string{
	"", "crlf", "split=3", "split=7,tricky", "tricky,reasoning=9", "cached=100,written=50", "huge=500000", "huge=70000,crlf,split=1000,tricky",
	"gzip=asked", "gzip=asked,tricky,split=5", "hints", "every=20ms", "usage=none", "events=200", "output=1000", "output=0,events=1",
}

// A stream, and a response as a whole, are the same byte for byte through Caddy
// and from the backend itself.
func TestResponsesThroughCaddy(t *testing.T) {
	backend := llmtest.Start(t)
	sites := llmSites(t, backend)
	for _, e := range llmEndpoints {
		for _, stream := range []bool{false, true} {
			for _, behaviour := range llmBehaviours {
				encodings := []string{"identity"}
				if strings.Contains(behaviour, "gzip") {
					encodings = append(encodings, "gzip, deflate, br")
				}
				for _, encoding := range encodings {
					direct := read(t, sites["backend"], e.path, behaviour, e.request(100, "stream", stream), encoding)
					through := read(t, sites["Caddy"], e.path, behaviour, e.request(100, "stream", stream), encoding)
					if direct != through {
						t.Errorf("%s, stream %t, %q, %s: through Caddy\n%.1000s\nfrom the backend\n%.1000s", e.name, stream, behaviour, encoding, through, direct)
					}
				}
			}
		}
	}
}

// read returns status, type, encoding and bytes of a response.
func read(t *testing.T, site, path, behaviour string, request any, encoding string) string {
	t.Helper()
	resp, err := llmPost(t.Context(), site, path, behaviour, request, "Accept-Encoding", encoding)
	if err != nil {
		t.Errorf("POST %s: %v", path, err)
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("POST %s: %v", path, err)
	}
	return fmt.Sprintf("%d %s %s\n%s", resp.StatusCode, resp.Header.Get("Content-Type"), resp.Header.Get("Content-Encoding"), text)
}

// An event is with the client when it was sent: the backend goes on only when
// the client, which has seen half of the stream, goes away.
func TestStreamsAreNotHeldUp(t *testing.T) {
	backend := llmtest.Start(t)
	for name, site := range llmSites(t, backend) {
		for _, e := range llmEndpoints {
			before := len(backend.Ledger())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			resp, err := llmPost(ctx, site, e.path, "break=stall,events=20,output=40", e.request(100, "stream", true))
			if err != nil {
				t.Fatal(err)
			}
			var seen strings.Builder
			for buffer := make([]byte, 100); !strings.Contains(seen.String(), "word 5, "); {
				n, err := resp.Body.Read(buffer)
				if err != nil {
					t.Fatalf("%s, %s: %v after\n%s", name, e.name, err, seen.String())
				}
				seen.Write(buffer[:n])
			}
			cancel()
			resp.Body.Close()
			if entry := backend.Since(before)[0]; !entry.HungUp {
				t.Errorf("%s, %s: the backend has not learned that the client has gone: %v", name, e.name, entry)
			}
		}
	}
}

// scenarios for the official clients are all the ways to ask the endpoints.
func scenarios(site string, behaviours []string) (list []llmtest.Scenario) {
	for _, behaviour := range behaviours {
		for _, e := range llmEndpoints {
			for _, how := range []string{"whole", "stream", "usage", "helper"} {
				scenario := llmtest.Scenario{
					URL: site, Endpoint: e.name, Helper: how == "helper", Request: e.request(100),
					Header: map[string]string{llmtest.Header: behaviour},
				}
				if how != "whole" {
					scenario.Request["stream"] = true
				}
				if e.name == "chat" && how == "usage" {
					scenario.Request["stream_options"] = map[string]any{"include_usage": true}
				}
				list = append(list, scenario)
			}
		}
	}
	return list
}

// The official clients read everything that the backend writes, and see the
// same through Caddy, chunk by chunk.
func TestOfficialClients(t *testing.T) {
	sdks := llmtest.InstallSDKs(t)
	backend := llmtest.Start(t)
	sites := llmSites(t, backend)
	// Anthropic's class for streams cannot do without a usage, as the API always
	// tells one.
	behaviours := slices.DeleteFunc(slices.Clone(llmBehaviours), func(b string) bool { return b == "usage=none" || b == "huge=500000" })
	direct := scenarios(sites["backend"], behaviours)
	runs := sdks.Drive(t, append(direct, scenarios(sites["Caddy"], behaviours)...)...)
	for i, scenario := range direct {
		of := fmt.Sprintf("%s, stream %v, helper %t, %q", scenario.Endpoint, scenario.Request["stream"], scenario.Helper, scenario.Header[llmtest.Header])
		a, b := runs[i][0], runs[len(direct)+i][0]
		if a.Error != nil || !strings.Contains(a.Text, "word 0, ") || len(a.Attempts) != 1 {
			t.Errorf("%s: %+v %+v", of, a, a.Error)
		}
		if got, want := view(b), view(a); got != want {
			t.Errorf("%s: through Caddy\n%.1000s\nfrom the backend\n%.1000s", of, got, want)
		}
		if told := string(a.Usage) != "null"; told == (scenario.Endpoint == "chat" && scenario.Request["stream"] == true && scenario.Request["stream_options"] == nil) {
			t.Errorf("%s: usage %s", of, a.Usage)
		}
	}
}

// view is what a user sees of a run, without its times.
func view(run llmtest.Run) string {
	run.Attempts = nil
	text, _ := json.Marshal(run)
	return string(text)
}

// What costs nothing goes through, and so does what the budgets will refuse.
func TestOfficialClientsOtherEndpoints(t *testing.T) {
	sdks := llmtest.InstallSDKs(t)
	backend := llmtest.Start(t)
	for name, site := range llmSites(t, backend) {
		messages := map[string]any{"model": "claude-sonnet-4-6", "messages": said("hello")}
		runs := sdks.Drive(t,
			llmtest.Scenario{URL: site, Endpoint: "openaiModels"},
			llmtest.Scenario{URL: site, Endpoint: "anthropicModels"},
			llmtest.Scenario{URL: site, Endpoint: "countTokens", Request: messages},
			llmtest.Scenario{URL: site, Endpoint: "embeddings", Request: map[string]any{"model": "text-embedding-3-small", "input": "hello", "encoding_format": "float"}},
		)
		for i, run := range runs {
			if run[0].Error != nil {
				t.Errorf("%s, %d: %+v", name, i, run[0].Error)
			}
		}
	}
	if tokens, _ := llmtest.Spent(backend.Since(0)); tokens != 2*1000 {
		t.Errorf("%d tokens spent, want 1000 for each request for embeddings", tokens)
	}
}

// Chunks without choices come only to who asks for the usage: a user who reads
// choices[0] of every chunk, as most examples do, is broken by one.
func TestCarelessClient(t *testing.T) {
	sdks := llmtest.InstallSDKs(t)
	backend := llmtest.Start(t)
	for name, site := range llmSites(t, backend) {
		careless := llmtest.Scenario{URL: site, Endpoint: "chat", Careless: true, Request: llmEndpoints[0].request(100, "stream", true)}
		asking := careless
		asking.Request = maps.Clone(careless.Request)
		asking.Request["stream_options"] = map[string]any{"include_usage": true}
		runs := sdks.Drive(t, careless, asking)
		if err := runs[0][0].Error; err != nil {
			t.Errorf("%s: %+v", name, err)
		}
		if err := runs[1][0].Error; err == nil || err.Class != "TypeError" {
			t.Errorf("%s: %+v, want a TypeError for a chunk without choices", name, err)
		}
	}
}
