// Package llmtest stands in for the providers of language models in tests: a
// server that speaks the APIs of OpenAI and Anthropic as far as a client and a
// proxy can tell, and their official clients from npm, to drive it.
//
//	backend := llmtest.Start(t)
//	... send requests to backend.URL, directly or through a proxy ...
//	for _, entry := range backend.Ledger() { ... what each has spent ... }
//
// How the server behaves is chosen by the request: by a header, [Header], or by
// the model's name, after a colon. See [Behaviour].
//
// The ledger is what a provider bills. It counts for itself, from its own price
// table and in exact fractions, so that it shares no mistake with what it is
// compared with. The server does not check keys, and counts a token for four bytes
// of text.
package llmtest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// Header chooses how the server behaves towards a request: "output=500,
// every=20ms".
const Header = "LLM-Test"

// hangTime ends what would never end, should a test forget its client.
const hangTime = 2 * time.Minute

// Server is a provider. It speaks HTTP/1.1, and HTTP/2 without TLS.
type Server struct {
	// URL is its address, without a path: http://127.0.0.1 and a port.
	URL string
	// Addr is the host and port in URL.
	Addr string

	prices map[string]Price
	closed chan struct{}
	busy   sync.WaitGroup

	mu     sync.Mutex
	ledger []*Entry
}

// Start starts a server that ends with the test. Models that prices does not
// name cost what "default" costs; without any prices, [Prices] hold.
func Start(t testing.TB, prices ...map[string]Price) *Server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: listener.Addr().String(), prices: Prices, closed: make(chan struct{})}
	s.URL = "http://" + s.Addr
	if len(prices) > 0 {
		s.prices = prices[0]
	}
	server := &http.Server{Handler: s, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		close(s.closed)
		_ = server.Close()
		s.busy.Wait()
	})
	return s
}

// ServeHTTP serves one request, and enters it into the ledger.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.busy.Add(1)
	defer s.busy.Done()
	body, err := readBody(r)
	x := &exchange{server: s, w: w, r: r, body: body, control: http.NewResponseController(w)}
	x.entry = s.enter(r, body)
	defer x.end()
	if err != nil {
		x.note(func(e *Entry) { e.HungUp = true })
		return
	}
	if x.behaviour, err = parseBehaviour(r.Header.Get(Header)); err != nil {
		http.Error(w, "llmtest: "+err.Error(), http.StatusNotImplemented)
		return
	}
	x.route()
}

// readBody reads a request, and decodes it as a provider might that accepts
// compressed ones.
func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Content-Encoding") != "gzip" {
		return body, err
	}
	decoder, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return body, err
	}
	return io.ReadAll(decoder)
}

// exchange is one request and what becomes of it.
type exchange struct {
	server    *Server
	w         http.ResponseWriter
	control   *http.ResponseController
	r         *http.Request
	body      []byte
	behaviour Behaviour
	entry     *Entry
}

// route finds the endpoint. What is not free is not for nothing here either:
// where a proxy lets an endpoint through that it does not meter, the ledger
// shows it.
func (x *exchange) route() {
	path := strings.TrimSuffix(x.r.URL.Path, "/")
	switch {
	case x.r.Method == http.MethodPost && path == "/v1/chat/completions":
		x.generate(chat{})
	case x.r.Method == http.MethodPost && path == "/v1/responses":
		x.generate(responses{})
	case x.r.Method == http.MethodPost && path == "/v1/messages":
		x.generate(messages{})
	case x.r.Method == http.MethodPost && (path == "/v1/messages/count_tokens" || path == "/v1/responses/input_tokens"):
		x.json(http.StatusOK, map[string]any{"object": "response.input_tokens", "input_tokens": len(x.body)/4 + 1})
	case x.r.Method == http.MethodGet && (path == "/v1/models" || strings.HasPrefix(path, "/v1/models/")):
		x.models(strings.TrimPrefix(strings.TrimPrefix(path, "/v1/models"), "/"))
	default:
		x.note(func(e *Entry) { e.Tokens.Input = 1000 })
		x.json(http.StatusOK, map[string]any{"object": "something that costs"})
	}
}

func (x *exchange) models(id string) {
	model := func(id string) any {
		return map[string]any{
			"id": id, "object": "model", "type": "model", "owned_by": "llmtest", "created": created,
			"display_name": id, "created_at": "2025-08-07T00:00:00Z",
		}
	}
	if id != "" {
		x.json(http.StatusOK, model(id))
		return
	}
	x.json(http.StatusOK, map[string]any{
		"object": "list", "has_more": false, "first_id": "gpt-5", "last_id": "claude-sonnet-4-6",
		"data": []any{model("gpt-5"), model("claude-sonnet-4-6")},
	})
}

// json answers as a whole, encoded as was asked for.
func (x *exchange) json(status int, value any) {
	x.w.Header().Set("Content-Type", "application/json")
	x.w.Header().Set("X-Request-Id", "req_llmtest")
	x.w.Header().Set("Request-Id", "req_llmtest")
	x.note(func(e *Entry) { e.Status = status })
	out := x.open(status)
	_, _ = out.Write(encode(value))
	_ = out.Close()
}

// encode is JSON on one line, as the providers write it.
func encode(value any) []byte {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err) // values of our own
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// pause waits, and reports whether the client is still there.
func (x *exchange) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-x.r.Context().Done():
	case <-x.server.closed:
	case <-timer.C:
		return x.r.Context().Err() == nil
	}
	x.note(func(e *Entry) { e.HungUp = true })
	return false
}
