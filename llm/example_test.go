package llm_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
)

// A small proxy with a budget. A real one also bounds the body and the time it
// takes to come, and refuses what the budget has no room for.
func Example() {
	rate := func(dollars string) llm.Rate {
		r, err := llm.ParseRate(dollars)
		if err != nil {
			panic(err)
		}
		return r
	}
	meter, err := llm.New(llm.Config{
		API:       llm.OpenAI,
		MaxOutput: 1000,
		Prices:    []llm.Price{{Match: "default", Input: rate("1"), Output: rate("10")}},
	})
	if err != nil {
		panic(err)
	}

	upstream := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Printf("upstream gets %s\n", body)
		w.Header().Set("Content-Type", "text/event-stream")
		for _, event := range []string{`{"choices":[{"delta":{"content":"Hi"}}]}`,
			`{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}`, `[DONE]`} {
			fmt.Fprintf(w, "data: %s\n\n", event)
		}
	}

	proxy := func(w http.ResponseWriter, r *http.Request) {
		switch meter.Route(r.Method, r.URL.EscapedPath()) {
		case llm.Free:
			upstream(w, r)
			return
		case llm.Unmetered:
			http.Error(w, string(llm.ErrorBody(llm.OpenAI, 403, "unmetered", "not here")), http.StatusForbidden)
			return
		}
		body, _ := io.ReadAll(r.Body)
		rsv, refusal := meter.Reserve(r.Method, r.URL.EscapedPath(), r.Header, body)
		if refusal != nil {
			llm.SetRetry(w.Header(), 0)
			w.WriteHeader(refusal.Status)
			w.Write(llm.ErrorBody(llm.OpenAI, refusal.Status, string(refusal.Reason), refusal.Message))
			return
		}
		fmt.Printf("reserve %d micro-dollars\n", rsv.Units)

		out := r.Clone(r.Context())
		out.Header.Del("Accept-Encoding")
		out.Body, out.ContentLength = io.NopCloser(strings.NewReader(string(rsv.Body))), int64(len(rsv.Body))
		out.Header.Del("Content-Length")
		recorder := httptest.NewRecorder()
		upstream(recorder, out)

		resp := rsv.Response(recorder.Code, recorder.Result().Header)
		w.Write(resp.Pass(recorder.Body.Bytes()))
		w.Write(resp.End())
		settlement := resp.Settle()
		fmt.Printf("settle to %d, counted: %v\n", settlement.Units, settlement.Outcome == llm.Counted)
	}

	w := httptest.NewRecorder()
	proxy(w, httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{"model":"gpt-5","stream":true,"messages":[]}`)))
	fmt.Print(w.Body)

	w = httptest.NewRecorder()
	proxy(w, httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{"max_tokens":5,"max_tokens":9}`)))
	fmt.Println(w.Body)
	// Output:
	// reserve 10217 micro-dollars
	// upstream gets {"max_completion_tokens":1000,"stream_options":{"include_usage":true},"model":"gpt-5","stream":true,"messages":[]}
	// settle to 29, counted: true
	// data: {"choices":[{"delta":{"content":"Hi"}}]}
	//
	// data: [DONE]
	//
	// {"error":{"message":"the body has max_tokens twice in one object, near byte 28: write it once","type":"invalid_request_error","param":null,"code":"malformed"}}
}
