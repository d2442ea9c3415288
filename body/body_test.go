package body

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// got is what a handler behind Open saw.
type got struct {
	err      error
	value    string
	outcome  Outcome
	body     string
	bodyErr  error
	length   int64
	trailer  string
	complete bool
}

// reader is a handler that opens the body, and then reads it as any handler.
type reader struct {
	limits Limits
	field  *Field
	seen   chan got
}

func newReader(t *testing.T, limits Limits) *reader {
	if limits.Memory == nil {
		limits.Memory = NewMemory(1 << 20)
	}
	if limits.Timeout == 0 {
		limits.Timeout = time.Minute
	}
	return &reader{limits: limits, field: mustField(t, "form.user"), seen: make(chan got, 2000)}
}

func (h *reader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var g got
	b, err := Open(w, r, h.limits)
	g.err, g.complete = err, b.Complete()
	if err != nil {
		h.seen <- g
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestTimeout)
		return
	}
	g.value, g.outcome = b.Value(h.field)
	g.length = r.ContentLength
	data, err := io.ReadAll(r.Body)
	g.body, g.bodyErr = string(data), err
	g.trailer = r.Trailer.Get("X-Sum")
	h.seen <- g
	_, _ = io.WriteString(w, "ok")
}

// servers runs a test with HTTP/1 and HTTP/2.
func servers(t *testing.T, h http.Handler, test func(t *testing.T, url string, client *http.Client)) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			server := httptest.NewUnstartedServer(h)
			server.EnableHTTP2 = http2
			if http2 {
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()
			test(t, server.URL, server.Client())
		})
	}
}

func post(t *testing.T, client *http.Client, url string, body io.Reader, change func(*http.Request)) int {
	t.Helper()
	r, err := http.NewRequest("POST", url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", urlencoded)
	if change != nil {
		change(r)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	response.Body.Close()
	return response.StatusCode
}

// stream hides the length of a body.
type stream struct{ io.Reader }

// TestUntouched: the next handler sees the same bytes, length and trailers, also of
// a body that is longer than the limit.
func TestUntouched(t *testing.T) {
	h := newReader(t, Limits{Bytes: 2000})
	servers(t, h, func(t *testing.T, url string, client *http.Client) {
		for _, size := range []int{0, 1, 511, 512, 1999, 2000, 2001, 5000, 1 << 20} {
			data := "user=ann&x="
			data += strings.Repeat("x", max(size-len(data), 0))
			data = data[:size] // may be without the value
			for _, announced := range []bool{true, false} {
				var body io.Reader = strings.NewReader(data)
				if !announced {
					body = stream{body}
				}
				post(t, client, url, body, func(r *http.Request) {
					if !announced {
						r.Trailer = http.Header{"X-Sum": {"7"}}
					}
				})
				g := <-h.seen
				want := Found
				switch {
				case size > 2000:
					want = TooLong
				case size < 8:
					want = Missing
				}
				if g.body != data || g.bodyErr != nil || g.err != nil || g.outcome != want {
					t.Errorf("%d bytes, announced %v: handed on %d bytes (%v, %v), outcome %d, want outcome %d",
						size, announced, len(g.body), g.err, g.bodyErr, g.outcome, want)
				}
				if announced && g.length != int64(size) || !announced && (g.length != -1 || g.trailer != "7") {
					t.Errorf("%d bytes, announced %v: length %d, trailer %q", size, announced, g.length, g.trailer)
				}
			}
		}
	})
	if used := h.limits.Memory.Used(); used != 0 {
		t.Errorf("%d bytes are held in the end", used)
	}
}

// TestExpectContinue: a client that waits for it is asked to send its body, and
// only where the body is read.
func TestExpectContinue(t *testing.T) {
	h := newReader(t, Limits{Bytes: 100})
	server := httptest.NewServer(h)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n", urlencoded)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("got %q (%v), want 100 Continue", line, err)
	}
	_, _ = in.ReadString('\n')
	fmt.Fprint(conn, "user=ann")
	response, err := http.ReadResponse(in, nil)
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("got %v (%v), want 200", response, err)
	}
	if g := <-h.seen; g.value != "ann" || g.body != "user=ann" {
		t.Errorf("got %+v", g)
	}
}

// TestSlowBody: a client that hangs, or sends drop by drop, is waited for until the
// timeout and no longer. A server's own deadline is left alone when the body comes in
// time.
func TestSlowBody(t *testing.T) {
	h := newReader(t, Limits{Bytes: 1000, Timeout: 200 * time.Millisecond})
	servers(t, h, func(t *testing.T, url string, client *http.Client) {
		for _, drip := range []bool{false, true} {
			in, out := io.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				defer cancel()
				fmt.Fprint(out, "user=ann")
				for drip && ctx.Err() == nil {
					if _, err := fmt.Fprint(out, "x"); err != nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			}()
			r, _ := http.NewRequest("POST", url, in)
			r.Header.Set("Content-Type", urlencoded)
			response, err := client.Do(r)
			if err == nil && response.StatusCode != http.StatusRequestTimeout {
				t.Errorf("drip %v: got %v, want 408", drip, response.Status)
			}
			if g := <-h.seen; g.err != ErrTimeout {
				t.Errorf("drip %v: got %v, want %v", drip, g.err, ErrTimeout)
			}
			in.Close()
			if err == nil {
				response.Body.Close()
			}
			cancel()
		}
	})
}

// TestNoDeadlineLeft: reading in time leaves the connection as it was; a body of
// which only a part was read can be read long after the timeout.
func TestNoDeadlineLeft(t *testing.T) {
	h := newReader(t, Limits{Bytes: 10, Timeout: 200 * time.Millisecond})
	servers(t, h, func(t *testing.T, url string, client *http.Client) {
		in, out := io.Pipe()
		go func() {
			fmt.Fprint(out, "user=ann&x=0123456789")
			time.Sleep(600 * time.Millisecond)
			fmt.Fprint(out, "end")
			out.Close()
		}()
		post(t, client, url, in, nil)
		if g := <-h.seen; g.err != nil || g.bodyErr != nil || g.outcome != TooLong || g.body != "user=ann&x=0123456789end" {
			t.Errorf("got %+v", g)
		}
	})
}

// TestSameError: the next handler gets what was read, and then the error.
func TestSameError(t *testing.T) {
	broken := errors.New("broken")
	r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("user=ann"), iotest.ErrReader(broken)))
	r.Header.Set("Content-Type", urlencoded)
	b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: 100, Timeout: time.Minute, Memory: NewMemory(1000)})
	if err != nil || !b.Failed() {
		t.Fatalf("Open: got %v, failed %v, want nil, true", err, b.Failed())
	}
	if _, outcome := b.Value(mustField(t, "form.user")); outcome != Unreadable {
		t.Errorf("outcome %d, want %d", outcome, Unreadable)
	}
	for range 2 {
		data, err := io.ReadAll(r.Body)
		if err != broken {
			t.Errorf("got %q, %v, want the error %v", data, err, broken)
		}
	}
}

// TestClosed: after Close, the source says what is wrong.
func TestClosed(t *testing.T) {
	memory := NewMemory(1000)
	var after error
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = Open(w, r, Limits{Bytes: 100, Timeout: time.Minute, Memory: memory})
		_ = r.Body.Close()
		_, after = r.Body.Read(make([]byte, 10))
	}))
	defer server.Close()
	post(t, server.Client(), server.URL, strings.NewReader("user=ann"), nil)
	if after != http.ErrBodyReadAfterClose {
		t.Errorf("got %v, want %v", after, http.ErrBodyReadAfterClose)
	}
	if memory.Used() != 0 {
		t.Errorf("%d bytes are held after Close", memory.Used())
	}
}

// TestAgain: a second handler finds the same, without reading again, also with a
// larger limit; and nothing once somebody has read.
func TestAgain(t *testing.T) {
	r := httptest.NewRequest("POST", "/", stream{strings.NewReader("user=ann&x=" + strings.Repeat("x", 1000))})
	r.Header.Set("Content-Type", urlencoded)
	field, memory := mustField(t, "form.user"), NewMemory(10000)
	for _, step := range []struct {
		limit int64
		want  Outcome
	}{{100, TooLong}, {2000, Found}, {2000, Found}, {500, TooLong}, {2000, Found}} {
		b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: step.limit, Timeout: time.Minute, Memory: memory})
		if err != nil {
			t.Fatal(err)
		}
		if _, outcome := b.Value(field); outcome != step.want {
			t.Errorf("limit %d: outcome %d, want %d", step.limit, outcome, step.want)
		}
	}
	first := make([]byte, 5)
	if _, err := io.ReadFull(r.Body, first); err != nil {
		t.Fatal(err)
	}
	b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: 2000, Timeout: time.Minute, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	if _, outcome := b.Value(field); outcome != Unreadable {
		t.Errorf("after somebody has read: outcome %d, want %d", outcome, Unreadable)
	}
	if rest, err := io.ReadAll(r.Body); err != nil || len(rest) != 1006 {
		t.Errorf("got %d bytes more (%v), want 1006", len(rest), err)
	}
}

// TestNoBody: what has no body lacks the field; what follows a CONNECT, or has a
// type of its own, is not waited for.
func TestNoBody(t *testing.T) {
	endless, w := io.Pipe()
	defer w.Close()
	for _, test := range []struct {
		method, contentType string
		length              int64
		body                io.ReadCloser
		want                Outcome
	}{
		{"GET", "", 0, http.NoBody, Missing},
		{"GET", urlencoded, 0, nil, Missing},
		{"GET", "", -1, io.NopCloser(strings.NewReader("")), Missing}, // HTTP/3
		{"GET", "", -1, io.NopCloser(strings.NewReader("x")), OtherType},
		{"CONNECT", "", -1, endless, Missing},
		{"POST", "application/grpc", -1, endless, OtherType},
		{"POST", urlencoded, 101, endless, TooLong},
	} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Method, r.ContentLength, r.Body = test.method, test.length, test.body
		if test.contentType != "" {
			r.Header.Set("Content-Type", test.contentType)
		}
		b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: 100, Timeout: time.Minute, Memory: NewMemory(1000)})
		if err != nil {
			t.Fatal(err)
		}
		if _, outcome := b.Value(mustField(t, "form.user")); outcome != test.want {
			t.Errorf("%s, type %q, length %d: outcome %d, want %d", test.method, test.contentType, test.length, outcome, test.want)
		}
	}
}

// TestMemory: room is made for what arrives, not for what is announced, and there is
// an end to it; all of it is given back.
func TestMemory(t *testing.T) {
	memory := NewMemory(3000)
	open := func(data string) (*http.Request, *Body, error) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(data))
		r.Header.Set("Content-Type", urlencoded)
		ctx, cancel := context.WithCancel(r.Context())
		t.Cleanup(cancel)
		r = r.WithContext(ctx)
		b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: 10000, Timeout: time.Minute, Memory: memory})
		return r, b, err
	}
	_, first, err := open(strings.Repeat("x", 1000))
	if err != nil || memory.Used() != 1001 {
		t.Fatalf("1000 bytes: got %v, and %d bytes are held, want 1001", err, memory.Used())
	}
	// 512 and 1024 beside it: 1001 + 1024 + 2000 are too many.
	data := strings.Repeat("y", 1999)
	r, _, err := open(data)
	if err != ErrMemory {
		t.Fatalf("2000 bytes more: got %v, want %v", err, ErrMemory)
	}
	if all, err := io.ReadAll(r.Body); err != nil || string(all) != data {
		t.Errorf("handed on %d bytes (%v), want 1999", len(all), err)
	}
	if memory.Used() != 1001 {
		t.Errorf("%d bytes are held, want 1001", memory.Used())
	}
	first.Release()
	first.Release()
	if memory.Used() != 0 {
		t.Errorf("%d bytes are held, want none", memory.Used())
	}
}

// TestManySlowUploads: a thousand clients that announce a megabyte, send a little
// and hang hold a thousand small buffers, and those that send much have the budget
// and no more.
func TestManySlowUploads(t *testing.T) {
	const clients, budget = 1000, 1 << 20
	memory := NewMemory(budget)
	h := newReader(t, Limits{Bytes: 1 << 20, Timeout: time.Minute, Memory: memory})
	server := httptest.NewServer(h)
	defer server.Close()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
		for memory.Used() != 0 { // ends with the test's deadline
			time.Sleep(time.Millisecond)
		}
	}()
	upload := func(sent int) {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 1000000\r\n\r\n%s", urlencoded, bytes.Repeat([]byte("x"), sent))
	}
	for range clients {
		upload(100)
	}
	for memory.Used() < clients*minBuffer {
		time.Sleep(time.Millisecond)
	}
	if used := memory.Used(); used != clients*minBuffer {
		t.Errorf("%d clients that sent 100 bytes hold %d bytes, want %d", clients, used, clients*minBuffer)
	}
	for range 10 {
		upload(200_000)
	}
	refused := 0
	for refused < 8 {
		if g := <-h.seen; g.err != ErrMemory {
			t.Fatalf("got %+v, want %v", g, ErrMemory)
		}
		refused++
		if used := memory.Used(); used > budget {
			t.Errorf("%d bytes are held, more than %d", used, budget)
		}
	}
}

// TestFullDuplex: what is longer than the limit can be answered while it is read.
func TestFullDuplex(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		if _, err := Open(w, r, Limits{Bytes: 4, Timeout: time.Minute, Memory: NewMemory(1000)}); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 5)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = control.Flush()
			if err != nil {
				return
			}
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for _, protocols := range [][]string{{"http/1.1"}, {"h2"}} {
		transport := server.Client().Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.NextProtos = protocols
		transport.ForceAttemptHTTP2 = protocols[0] == "h2"
		if protocols[0] != "h2" {
			transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		in, out := io.Pipe()
		r, _ := http.NewRequest("POST", server.URL, in)
		r.Header.Set("Content-Type", urlencoded)
		var once sync.Once
		go fmt.Fprint(out, "hello")
		response, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		for _, word := range []string{"hello", "there", "again"} {
			if _, err := io.ReadFull(response.Body, buf); err != nil || string(buf) != word {
				t.Fatalf("%v: got %q (%v), want %q", protocols, buf, err, word)
			}
			switch word {
			case "hello":
				fmt.Fprint(out, "there")
			case "there":
				fmt.Fprint(out, "again")
			}
		}
		once.Do(func() { out.Close() })
		response.Body.Close()
		transport.CloseIdleConnections()
	}
}
