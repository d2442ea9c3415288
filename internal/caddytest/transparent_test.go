package caddytest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/quic-go/quic-go/http3"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/response"
)

// Whatever a handler does to its http.ResponseWriter, it and the client see the
// same with a handler of this module in front as without one.

func init() {
	caddy.RegisterModule(new(watchHandler))
	httpcaddyfile.RegisterHandlerDirective("watch", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		return new(watchHandler), nil
	})
	httpcaddyfile.RegisterDirectiveOrder("watch", httpcaddyfile.Before, "method")
}

// watchHandler watches responses, their bodies too, and compares what it is told
// with what the client says in the end.
type watchHandler struct{}

func (*watchHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.watch", New: func() caddy.Module { return new(watchHandler) }}
}

func (*watchHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	seen := new(watched)
	writer := new(response.Writer)
	writer.Reset(w, seen)
	response.WatchBody(r)
	defer func() { watches.Store(r.Header.Get("Trial"), seen) }()
	err := next.ServeHTTP(writer, r)
	if err == nil {
		writer.End()
	}
	return err
}

type watched struct {
	statuses []int
	body     bytes.Buffer
}

func (s *watched) Begin(status int, _ http.Header) { s.statuses = append(s.statuses, status) }
func (*watched) WantsBody() bool                   { return true }
func (s *watched) Pass(p []byte) []byte            { s.body.Write(p); return p }
func (*watched) Rest() []byte                      { return nil }

// watches holds what a watchHandler saw of each trial.
var watches sync.Map

// notes is what a handler noticed.
type notes struct{ lines []string }

func (n *notes) note(format string, args ...any) {
	n.lines = append(n.lines, fmt.Sprintf(format, args...))
}

// abuse is a way to use a ResponseWriter.
type abuse struct {
	name string
	play func(w http.ResponseWriter, r *http.Request, n *notes) error
	only int    // major version of HTTP, 0 for all
	send string // body of the request
}

const page = "a page that is long enough to be told from others\n"

// abuses use a writer in every way there is.
func abuses(file string) []abuse {
	write := func(w http.ResponseWriter, n *notes, text string) {
		_, err := io.WriteString(w, text)
		n.note("Write %q: %v", text, err)
	}
	header := func(status int, then ...string) func(http.ResponseWriter, *http.Request, *notes) error {
		return func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.Header().Set("X-First", "1")
			w.WriteHeader(status)
			for _, text := range then {
				write(w, n, text)
			}
			return nil
		}
	}
	rc := http.NewResponseController
	return []abuse{
		{name: "nothing", play: func(http.ResponseWriter, *http.Request, *notes) error { return nil }},
		{name: "header, nothing", play: func(w http.ResponseWriter, _ *http.Request, _ *notes) error {
			w.Header().Set("X-Only", "1")
			return nil
		}},
		{name: "error", play: func(http.ResponseWriter, *http.Request, *notes) error { return errors.New("plain") }},
		{name: "HTTP error", play: func(w http.ResponseWriter, _ *http.Request, _ *notes) error {
			w.Header().Set("X-Before", "1")
			return caddyhttp.Error(http.StatusTeapot, errors.New("teapot"))
		}},
		{name: "error after Write", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			write(w, n, page)
			return caddyhttp.Error(http.StatusTeapot, errors.New("teapot"))
		}},
		{name: "Write", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error { write(w, n, page); return nil }},
		{name: "Write nothing", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error { write(w, n, ""); return nil }},
		{name: "Write much", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			for range 20 {
				write(w, n, strings.Repeat(page, 200))
			}
			return nil
		}},
		{name: "status 200", play: header(200, page)},
		{name: "status 204", play: header(204)},
		{name: "status 204 with body", play: header(204, page)},
		{name: "status 304 with body", play: header(304, page)},
		{name: "status 401", play: header(401, page, page)},
		{name: "status 500", play: header(500)},
		{name: "status 599", play: header(599, page)},
		{name: "status 0", play: header(0, page)},
		{name: "status 99", play: header(99)},
		{name: "status 1000", play: header(1000)},
		{name: "WriteHeader twice", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.WriteHeader(http.StatusAccepted)
			w.WriteHeader(http.StatusTeapot)
			write(w, n, page)
			return nil
		}},
		{name: "Write, then header", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			write(w, n, page)
			w.Header().Set("X-Late", "1")
			w.WriteHeader(http.StatusTeapot)
			return nil
		}},
		{name: "early hints", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Set("Link", "</other.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			w.WriteHeader(http.StatusForbidden)
			write(w, n, page)
			return nil
		}},
		{name: "early hints, nothing", play: func(w http.ResponseWriter, _ *http.Request, _ *notes) error {
			w.WriteHeader(http.StatusEarlyHints)
			return nil
		}},
		{name: "early hints, error", play: func(w http.ResponseWriter, _ *http.Request, _ *notes) error {
			w.WriteHeader(http.StatusEarlyHints)
			return caddyhttp.Error(http.StatusTeapot, errors.New("teapot"))
		}},
		{name: "Flush", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.Header().Set("X-First", "1")
			n.note("Flush: %v", rc(w).Flush())
			w.Header().Set("X-Late", "1")
			write(w, n, page)
			n.note("Flush: %v", rc(w).Flush())
			n.note("Flush: %v", rc(w).Flush())
			write(w, n, page)
			return nil
		}},
		{name: "Flush, error", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			n.note("Flush: %v", rc(w).Flush())
			return caddyhttp.Error(http.StatusTeapot, errors.New("teapot"))
		}},
		{name: "Copy", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			written, err := io.Copy(w, strings.NewReader(page))
			n.note("Copy: %d, %v", written, err)
			return nil
		}},
		{name: "Copy nothing", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			written, err := io.Copy(w, strings.NewReader(""))
			n.note("Copy: %d, %v", written, err)
			return nil
		}},
		{name: "Copy nothing, then header", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			written, err := io.Copy(w, strings.NewReader(""))
			n.note("Copy: %d, %v", written, err)
			w.WriteHeader(http.StatusTeapot)
			return nil
		}},
		{name: "Copy a reader that fails", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.WriteHeader(http.StatusAccepted)
			written, err := io.Copy(w, io.MultiReader(strings.NewReader(page), failing{}))
			n.note("Copy: %d, %v", written, err)
			return nil
		}},
		{name: "Copy a reader that fails at once", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			written, err := io.Copy(w, failing{})
			n.note("Copy: %d, %v", written, err)
			return caddyhttp.Error(http.StatusBadGateway, err)
		}},
		{name: "Copy a file", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			written, err := io.Copy(w, f)
			if err != nil {
				written = -1 // depends on the sizes of buffers
			}
			n.note("Copy: %d, %v", written, err)
			return nil
		}},
		{name: "ServeFile", play: func(w http.ResponseWriter, r *http.Request, _ *notes) error { http.ServeFile(w, r, file); return nil }},
		{name: "ServeFile, range", play: func(w http.ResponseWriter, r *http.Request, _ *notes) error {
			r.Header.Set("Range", "bytes=10-99,200-300")
			http.ServeFile(w, r, file)
			return nil
		}},
		{name: "trailers", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.Header().Set("Trailer", "X-Sum")
			write(w, n, page)
			n.note("Flush: %v", rc(w).Flush())
			w.Header().Set("X-Sum", "123")
			w.Header().Set(http.TrailerPrefix+"X-Unannounced", "456")
			return nil
		}},
		{name: "body too short", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.Header().Set("Content-Length", "1000")
			write(w, n, page)
			return nil
		}},
		{name: "body too long", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.Header().Set("Content-Length", "3")
			write(w, n, page)
			return nil
		}},
		{name: "abort", play: func(http.ResponseWriter, *http.Request, *notes) error { panic(http.ErrAbortHandler) }},
		{name: "abort after Write", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			write(w, n, page)
			n.note("Flush: %v", rc(w).Flush())
			panic(http.ErrAbortHandler)
		}},
		{name: "read, then write", send: page, play: func(w http.ResponseWriter, r *http.Request, n *notes) error {
			body, err := io.ReadAll(r.Body)
			n.note("read %q, %v; close: %v", body, err, r.Body.Close())
			_, err = r.Body.Read(make([]byte, 1))
			n.note("read after close: %v", err)
			write(w, n, page)
			return nil
		}},
		{name: "write, then read", send: page, play: func(w http.ResponseWriter, r *http.Request, n *notes) error {
			err := rc(w).EnableFullDuplex()
			n.note("EnableFullDuplex: %v", err)
			write(w, n, page)
			n.note("Flush: %v", rc(w).Flush())
			body, err := io.ReadAll(r.Body)
			n.note("read %q, %v", body, err)
			return nil
		}},
		{name: "deadlines", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			n.note("SetReadDeadline: %v", rc(w).SetReadDeadline(time.Now().Add(time.Hour)))
			n.note("SetWriteDeadline: %v", rc(w).SetWriteDeadline(time.Now().Add(time.Hour)))
			write(w, n, page)
			return nil
		}},
		{name: "write deadline in the past", only: 1, play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			n.note("SetWriteDeadline: %v", rc(w).SetWriteDeadline(time.Now().Add(-time.Hour)))
			n.note("Flush fails: %v", rc(w).Flush() != nil)
			return nil
		}},
		{name: "push", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			pusher, ok := w.(http.Pusher)
			n.note("pusher: %v", ok)
			if ok {
				n.note("Push fails: %v", pusher.Push("/pushed", nil) != nil)
			}
			write(w, n, page)
			return nil
		}},
		{name: "take the connection over", play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			conn, stream, err := rc(w).Hijack()
			n.note("Hijack: %v", err)
			if err != nil {
				write(w, n, page)
				return nil
			}
			defer conn.Close()
			_, _, err = rc(w).Hijack()
			n.note("Hijack again: %v", err)
			write(w, n, page)
			io.WriteString(stream, "HTTP/1.1 299 By hand\r\nContent-Length: 2\r\n\r\nhi")
			return stream.Flush()
		}},
		{name: "take the connection over after 101", only: 1, play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, stream, err := rc(w).Hijack()
			n.note("Hijack: %v", err)
			if err != nil {
				return err
			}
			defer conn.Close()
			io.WriteString(stream, "by hand")
			return stream.Flush()
		}},
		{name: "take the connection over after Write", only: 1, play: func(w http.ResponseWriter, _ *http.Request, n *notes) error {
			w.Header().Set("Content-Length", "1000")
			write(w, n, page)
			n.note("Flush: %v", rc(w).Flush())
			conn, stream, err := rc(w).Hijack()
			n.note("Hijack: %v", err)
			if err != nil {
				return err
			}
			defer conn.Close()
			io.WriteString(stream, "by hand")
			return stream.Flush()
		}},
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the source failed") }

// outcome is what a client sees of a response.
type seen struct {
	informational []string
	status        int
	header        http.Header
	body          string
	trailer       http.Header
	err           bool // which error depends on timing
}

func (s *seen) String() string {
	return fmt.Sprintf("informational %q, status %d, header %v, trailer %v, body %q, error %v",
		s.informational, s.status, s.header, s.trailer, s.body, s.err)
}

// reset leaves out what came before a stream of HTTP/3 was reset: what a client has
// not read by then is lost, or not.
func (s *seen) reset(major int) *seen {
	if major == 3 && s.err {
		return &seen{err: true}
	}
	return s
}

// ask sends a request and notes everything that comes.
func ask(client http.RoundTripper, method, url, trial, body string) *seen {
	s := new(seen)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			h := http.Header(header).Clone()
			h.Del("Alt-Svc")
			s.informational = append(s.informational, fmt.Sprint(code, h))
			return nil
		},
	})
	var send io.Reader
	if body != "" {
		send = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, send)
	if err != nil {
		panic(err)
	}
	r.Host = "localhost"
	r.Header.Set("Trial", trial)
	a, err := client.RoundTrip(r)
	if err != nil {
		s.err = true
		return s
	}
	defer a.Body.Close()
	got, err := io.ReadAll(a.Body)
	s.status, s.header, s.body, s.trailer, s.err = a.StatusCode, a.Header, string(got), a.Trailer, err != nil
	for _, name := range []string{"Date", "Alt-Svc", "Ratelimit", "Ratelimit-Policy"} {
		s.header.Del(name)
	}
	if s.header.Get("Content-Length") == "0" {
		s.header.Del("Content-Length") // it depends on when the end of an empty body is seen
	}
	if i := strings.Index(s.header.Get("Content-Type"), "boundary="); i > 0 {
		boundary := s.header.Get("Content-Type")[i+len("boundary="):]
		s.body = strings.ReplaceAll(s.body, boundary, "BOUNDARY")
		s.header.Set("Content-Type", "multipart")
	}
	return s
}

// versions are clients of each version of HTTP.
func versions(t *testing.T) map[int]http.RoundTripper {
	t.Helper()
	insecure := func() *tls.Config { return &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"} }
	// A connection that is used again might be one that is about to be closed.
	one := &http.Transport{TLSClientConfig: insecure(), DisableKeepAlives: true, DisableCompression: true}
	two := &http.Transport{TLSClientConfig: insecure(), ForceAttemptHTTP2: true, DisableCompression: true}
	three := &http3.Transport{TLSClientConfig: insecure(), DisableCompression: true}
	t.Cleanup(func() {
		two.CloseIdleConnections()
		three.Close()
	})
	return map[int]http.RoundTripper{1: one, 2: two, 3: three}
}

// secure starts sites on ports of TLS and QUIC, each with its block.
func secure(t *testing.T, blocks ...string) (e *edge, urls []string) {
	t.Helper()
	ca := redistest.NewAuthority(t)
	var caddyfile strings.Builder
	for i, block := range blocks {
		fmt.Fprintf(&caddyfile, "https://localhost:%d {\n\ttls %s %s\n%s\n}\n", 8443+i, ca.CertFile, ca.KeyFile, block)
	}
	e = start(t, caddyfile.String())
	for i := range blocks {
		urls = append(urls, "https://"+e.ports[fmt.Sprint(8443+i)])
	}
	return e, urls
}

// fronts are what may stand in front of a handler and makes no difference.
var fronts = []string{
	"",
	"distributed_ratelimit 100000 1h x {\n\tratelimit_headers always\n}",
	"watch",
}

func TestNothingDiffersForAHandler(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.txt")
	if err := os.WriteFile(file, []byte(strings.Repeat(page, 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	plays := abuses(file)
	var mu sync.Mutex
	noted := make(map[string]*notes)
	noticed := func(trial string) ([]string, bool) {
		mu.Lock()
		defer mu.Unlock()
		n := noted[trial]
		if n == nil {
			return nil, false
		}
		return n.lines, true
	}
	invite(t, "abuse", act(func(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
		n := new(notes)
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			noted[r.Header.Get("Trial")] = n
		}()
		i := slices.IndexFunc(plays, func(a abuse) bool { return strings.HasPrefix(r.Header.Get("Trial"), a.name+"|") })
		return plays[i].play(w, r, n)
	}))
	var blocks []string
	for _, front := range fronts {
		blocks = append(blocks, front+"\nstage abuse")
	}
	_, urls := secure(t, blocks...)
	for major, client := range versions(t) {
		for _, a := range plays {
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
				if a.only != 0 && a.only != major || method == http.MethodHead && a.send != "" {
					continue
				}
				t.Run(fmt.Sprintf("%d/%s/%s", major, method, a.name), func(t *testing.T) {
					sameAsWithout(t, func(i int) string {
						trial := fmt.Sprintf("%s|%d|%s|%d", a.name, major, method, i)
						mu.Lock()
						delete(noted, trial)
						mu.Unlock()
						got := ask(client, method, urls[i], trial, a.send).reset(major)
						var lines []string
						eventually(t, func() (done bool) { lines, done = noticed(trial); return done })
						if fronts[i] == "watch" {
							checkWatch(t, a.name, trial, got)
						}
						return fmt.Sprintf("%v\nand the handler noted %q", got, lines)
					})
				})
			}
		}
	}
}

// sameAsWithout expects what comes with each front to be what comes without one. It
// varies what arrives together, as when a header is sent before its body is there:
// whatever is possible with a front must be possible without it.
func sameAsWithout(t *testing.T, try func(front int) string) {
	t.Helper()
	possible := []string{try(0)}
	for i := 1; i < len(fronts); i++ {
		got := try(i)
		for n := 0; n < 1000 && !slices.Contains(possible, got); n++ {
			possible = append(possible, try(0))
		}
		if !slices.Contains(possible, got) {
			t.Errorf("behind %q the client got\n%v\nwant, as without it,\n%v", fronts[i], got, possible[0])
		}
	}
}

// checkWatch compares what an observer was told with what the client got.
func checkWatch(t *testing.T, name, trial string, got *seen) {
	t.Helper()
	var w *watched
	eventually(t, func() bool {
		v, ok := watches.LoadAndDelete(trial)
		if ok {
			w = v.(*watched)
		}
		return ok
	})
	want := []int{got.status}
	switch {
	case strings.HasPrefix(name, "take the connection over"):
		if got.status == 299 {
			want = []int{101} // only the handler knows what it wrote by hand
		}
	case strings.Contains(name, "error") && !strings.Contains(name, "after") && !strings.Contains(name, "Flush"),
		strings.HasPrefix(name, "Copy a reader that fails at once"):
		want = nil // the error routes write the response
	}
	if got.status == 0 {
		return // there was none
	}
	if !slices.Equal(w.statuses, want) {
		t.Errorf("told status %v, the client got %d", w.statuses, got.status)
	}
	byHand := strings.HasPrefix(name, "take the connection over")
	if body := w.body.String(); got.body != "" && want != nil && !byHand && got.header.Get("Content-Type") != "multipart" && body != got.body && name != "body too long" {
		t.Errorf("told a body of %d bytes, the client got %d", len(body), len(got.body))
	}
}

// eventually waits for something that a server does after its response.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing happened for 30 s")
		}
	}
}

// The same for what a real upstream sends through reverse_proxy.
func TestNothingDiffersForAReverseProxy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.txt")
	if err := os.WriteFile(file, []byte(strings.Repeat(page, 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	plays := abuses(file)
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(r.Header.Get("Trial"), "|")
		i := slices.IndexFunc(plays, func(a abuse) bool { return a.name == name })
		if err := plays[i].play(w, r, new(notes)); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	upstream.Config.ErrorLog = log.New(io.Discard, "", 0) // it panics on purpose
	upstream.Start()
	defer upstream.Close()
	var blocks []string
	for _, front := range fronts {
		// A connection that an upstream is about to close may fail the next request.
		blocks = append(blocks, front+"\nreverse_proxy "+upstream.Listener.Addr().String()+" {\ntransport http {\nkeepalive off\n}\n}")
	}
	_, urls := secure(t, blocks...)
	for major, client := range versions(t) {
		for _, a := range plays {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				if method == http.MethodHead && a.send != "" {
					continue
				}
				t.Run(fmt.Sprintf("%d/%s/%s", major, method, a.name), func(t *testing.T) {
					sameAsWithout(t, func(i int) string {
						return ask(client, method, urls[i], fmt.Sprintf("%s|proxied|%d|%s|%d", a.name, major, method, i), a.send).reset(major).String()
					})
				})
			}
		}
	}
}

// Events arrive one by one, and a client that leaves is noticed by the upstream.
func TestEventsOfAReverseProxyArriveInTime(t *testing.T) {
	goOn, left := make(chan struct{}), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			select {
			case <-goOn:
			case <-r.Context().Done():
				left <- struct{}{}
				return
			}
		}
	}))
	defer upstream.Close()
	for _, front := range fronts[1:] {
		_, urls := secure(t, front+"\nreverse_proxy "+upstream.Listener.Addr().String())
		for major, client := range versions(t) {
			ctx, cancel := context.WithCancel(context.Background())
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, urls[0], nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = "localhost"
			a, err := client.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				event := make([]byte, len("data: 0\n\n"))
				if _, err := io.ReadFull(a.Body, event); err != nil || string(event) != fmt.Sprintf("data: %d\n\n", i) {
					t.Fatalf("HTTP/%d behind %q: got event %q, %v; want the one that was sent", major, front, event, err)
				}
				if i < 2 {
					goOn <- struct{}{}
				}
			}
			cancel()
			<-left
			a.Body.Close()
		}
	}
}
