package caddytest

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The handler in front of a real reverse_proxy: what the upstream sends
// arrives, and a connection that is upgraded works.
func TestInFrontOfAReverseProxy(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/limited":
			w.Header().Set("RateLimit", "upstream's")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusTooManyRequests)
			io.WriteString(w, "the upstream's limit")
		case "/upgrade":
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, stream, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			line, _ := stream.ReadString('\n')
			stream.WriteString("echo " + line)
			stream.Flush()
		default:
			w.Header().Set("Content-Length", "100000")
			io.WriteString(w, strings.Repeat("x", 100000))
		}
	}))
	defer upstream.Close()
	e := start(t, `
http://a.test {
	distributed_ratelimit 4 1h x {
		ratelimit_headers always
	}
	reverse_proxy `+upstream.Listener.Addr().String()+`
}
http://down.test {
	distributed_ratelimit 4 1h y {
		ratelimit_headers always
	}
	reverse_proxy 127.0.0.1:1
}`)
	const policy = `"x";q=4;w=3600`
	get := func(host, path string) reply {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, "http://"+e.ports["80"]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		return e.dial(r)
	}
	a := get("a.test", "/")
	if a.StatusCode != http.StatusOK || len(a.body) != 100000 {
		t.Errorf("a large body: got status %d and %d bytes, want 200 and 100000", a.StatusCode, len(a.body))
	}
	a.header(t, "RateLimit-Policy", policy)

	a = get("a.test", "/limited")
	if a.StatusCode != http.StatusTooManyRequests || a.body != "the upstream's limit" {
		t.Errorf("the upstream's own refusal: got status %d, body %q", a.StatusCode, a.body)
	}
	a.header(t, "RateLimit", "upstream's")
	a.header(t, "Retry-After", "7")
	a.header(t, "RateLimit-Policy", "")

	conn, err := net.Dial("tcp", e.ports["80"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /upgrade HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrading: got %v, %v, want status 101", response, err)
	}
	reply{Response: response}.header(t, "RateLimit-Policy", policy)
	io.WriteString(conn, "hello\n")
	if line, err := reader.ReadString('\n'); line != "echo hello\n" {
		t.Errorf("through the upgraded connection: got %q, %v", line, err)
	}

	a = get("a.test", "/")
	if a.StatusCode != http.StatusOK {
		t.Errorf("the fourth request: got status %d, want 200", a.StatusCode)
	}
	if a = get("a.test", "/"); a.rendered() != "problem" {
		t.Errorf("the fifth request: got status %d, body %q, want a refusal", a.StatusCode, a.body)
	}

	a = get("down.test", "/")
	if a.StatusCode != http.StatusBadGateway {
		t.Errorf("an upstream that is down: got status %d, want 502", a.StatusCode)
	}
	a.header(t, "RateLimit-Policy", `"y";q=4;w=3600`)
}
