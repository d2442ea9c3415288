package caddytest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// upstream keeps its responses open until it is told to end them, and counts how
// many are open.
type upstream struct {
	*httptest.Server
	open, most atomic.Int64
	end        chan struct{}
}

func newUpstream(t *testing.T) *upstream {
	u := &upstream{end: make(chan struct{})}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := u.open.Add(1)
		defer u.open.Add(-1)
		if n > u.most.Load() {
			u.most.Store(n)
		}
		switch r.URL.Path {
		case "/quick":
		case "/websocket":
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.Copy(conn, rw) // an echo, until the client closes
		case "/abort":
			fmt.Fprint(w, "half a res")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			fmt.Fprintln(w, "begun")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-u.end:
			case <-r.Context().Done():
			}
		}
	}))
	t.Cleanup(u.Close)
	t.Cleanup(func() { close(u.end) })
	return u
}

func (u *upstream) address() string { return u.Listener.Addr().String() }

// stream opens a response over loopback. Close its body to abort it.
func (e *edge) stream(host, path string) *http.Response {
	e.t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+e.ports["80"]+path, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	r.Host = host
	r.Close = true // a reload closes connections that are kept
	response, err := http.DefaultTransport.RoundTrip(r)
	for range 5 { // a connection may reach the server that a reload has just ended
		if err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
		response, err = http.DefaultTransport.RoundTrip(r)
	}
	if err != nil {
		e.t.Fatalf("%s%s: %v", host, path, err)
	}
	e.t.Cleanup(func() { response.Body.Close() })
	return response
}

// streams wants responses to begin.
func (e *edge) streams(n int, host string) (all []*http.Response) {
	e.t.Helper()
	for range n {
		response := e.stream(host, "/")
		if response.StatusCode != http.StatusOK {
			e.t.Fatalf("status %d, want 200", response.StatusCode)
		}
		all = append(all, response)
	}
	return all
}

// busy wants a request to be refused because too many are in flight.
func (e *edge) busy(host string) {
	e.t.Helper()
	response := e.stream(host, "/")
	defer response.Body.Close()
	if response.StatusCode != http.StatusTooManyRequests {
		e.t.Fatalf("status %d, want a refusal", response.StatusCode)
	}
	body, _ := io.ReadAll(response.Body)
	if response.Header.Get("Retry-After") != "1" || !strings.Contains(string(body), "in flight") {
		e.t.Fatalf("status %d, Retry-After %q, %s; want a refusal", response.StatusCode, response.Header.Get("Retry-After"), body)
	}
	for _, name := range []string{"Ratelimit", "Ratelimit-Policy"} {
		if response.Header.Get(name) != "" {
			e.t.Errorf("%s: %s", name, response.Header.Get(name))
		}
	}
}

// passes wants a request to find a slot soon.
func (e *edge) passes(status int, host, path string) *http.Response {
	e.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		response := e.stream(host, path)
		switch {
		case response.StatusCode == status:
			return response
		case response.StatusCode != http.StatusTooManyRequests || time.Now().After(deadline):
			e.t.Fatalf("status %d, want %d", response.StatusCode, status)
		}
		response.Body.Close()
	}
}

// free wants so many slots to be free soon, and no more.
func (e *edge) free(n int, host string) {
	e.t.Helper()
	var open []*http.Response
	for range n {
		open = append(open, e.passes(http.StatusOK, host, "/"))
	}
	e.busy(host)
	for _, response := range open {
		response.Body.Close()
	}
}

// streaming is a site with a limit of requests in flight.
func streaming(u *upstream, host, zone, more string) string {
	return fmt.Sprintf(`
http://%s {
	distributed_ratelimit {
		zone %s {
			concurrent 2
			%s
		}
	}
	reverse_proxy %s
}`, host, zone, more, u.address())
}

// left waits until so many responses are open. An upstream notices that a response was
// aborted a little later than Caddy, whose slot is free by then.
func (u *upstream) left(t *testing.T, n int64) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); u.open.Load() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d responses are open, want %d", u.open.Load(), n)
		}
	}
}

func TestConcurrent(t *testing.T) {
	u := newUpstream(t)
	e := start(t, streaming(u, "a.test", "streams", ""))
	open := e.streams(2, "a.test")
	e.busy("a.test")
	open[0].Body.Close()
	u.left(t, 1)
	e.free(1, "a.test")
	u.left(t, 1)
	open[1].Body.Close()
	u.left(t, 0)
	e.free(2, "a.test")
	u.left(t, 0)
	for range 10 {
		if response := e.stream("a.test", "/quick"); response.StatusCode != http.StatusOK && response.StatusCode != http.StatusTooManyRequests {
			t.Errorf("status %d", response.StatusCode)
		}
	}
	e.free(2, "a.test")
	if u.most.Load() > 2 {
		t.Errorf("%d were in flight at once", u.most.Load())
	}
	if lines := e.log.find("request refused"); len(lines) == 0 || lines[0]["zone"] != "streams" {
		t.Errorf("log lines %v", lines)
	}
}

// What ends badly ends all the same.
func TestConcurrentEndsBadly(t *testing.T) {
	u := newUpstream(t)
	e := start(t, streaming(u, "a.test", "streams", "")+`
http://fails.test {
	distributed_ratelimit {
		zone streams {
			concurrent 2
		}
	}
	reverse_proxy 127.0.0.1:1
}`)
	for range 5 {
		response := e.passes(http.StatusOK, "a.test", "/abort")
		if _, err := io.ReadAll(response.Body); err == nil {
			t.Error("the response was not cut off")
		}
		response.Body.Close()
		e.free(2, "a.test")
		e.passes(http.StatusBadGateway, "fails.test", "/")
		e.free(2, "a.test")
	}
}

// A request is in flight until its error page has been sent.
func TestConcurrentErrorRoutes(t *testing.T) {
	u := newUpstream(t)
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone streams {
			concurrent 2
		}
	}
	error 500
	handle_errors {
		@refused expression {err.status_code} == 429
		respond @refused "in flight" 429
		reverse_proxy `+u.address()+`
	}
}`)
	var open []*http.Response
	for range 2 {
		open = append(open, e.stream("a.test", "/"))
	}
	for _, response := range open {
		if line, err := bufio.NewReader(response.Body).ReadString('\n'); line != "begun\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	e.busy("a.test")
	open[0].Body.Close()
	open[1].Body.Close()
	e.passes(http.StatusOK, "a.test", "/quick")
}

// A WebSocket is in flight as long as it is open, over a reload too.
func TestConcurrentWebSockets(t *testing.T) {
	u := newUpstream(t)
	config := func(delay string) string {
		return brief + `
http://a.test {
	distributed_ratelimit {
		zone streams {
			concurrent 2
		}
	}
	# Caddy's proxy has a data race between other requests and the end of the last
	# WebSocket that a reload has left open.
	reverse_proxy /websocket ` + u.address() + ` {
		stream_close_delay ` + delay + `
	}
	reverse_proxy ` + u.address() + `
}`
	}
	e := start(t, config("1h"))
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", e.ports["80"])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprint(conn, "GET /websocket HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v, %v", response, err)
		}
		// Caddy knows that it has to close it only when it passes something on.
		echo := make([]byte, 4)
		fmt.Fprint(conn, "echo")
		if _, err := io.ReadFull(conn, echo); err != nil || string(echo) != "echo" {
			t.Fatalf("%q, %v", echo, err)
		}
		return conn
	}
	a, b := dial(), dial()
	e.busy("a.test")
	a.Close()
	e.free(1, "a.test")
	e.reload(config("2h"))
	if _, err := fmt.Fprint(b, "still there?"); err != nil {
		t.Error(err)
	}
	e.free(1, "a.test")
	b.Close()
	e.free(2, "a.test")

	// Without a delay, Caddy closes it at a reload.
	e.reload(strings.ReplaceAll(config("0"), "stream_close_delay 0", ""))
	e.passes(http.StatusOK, "a.test", "/quick")
	e.passes(http.StatusOK, "a.test", "/quick")
	time.Sleep(100 * time.Millisecond)
	b = dial()
	e.reload(config("3h"))
	e.free(2, "a.test")
	b.Close()
}

// brief has a reload not wait for long until streams have ended.
const brief = "{\n\tgrace_period 20ms\n}\n"

func TestConcurrentReload(t *testing.T) {
	u := newUpstream(t)
	e := start(t, brief+streaming(u, "a.test", "streams", ""))
	open := e.streams(2, "a.test")
	e.reload(brief + streaming(u, "a.test", "streams", "on_store_error allow"))
	e.busy("a.test")
	open[0].Body.Close()
	e.free(1, "a.test")
	open[1].Body.Close()
	e.free(2, "a.test")
}

// Slots come first: who finds none takes nothing of a window, and who is refused by
// a window takes no slot. Zones of one name are one limit, met twice too.
func TestConcurrentWithWindows(t *testing.T) {
	u := newUpstream(t)
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone window {
			events 3
			window 1h
		}
		zone streams {
			concurrent 2
		}
	}
	distributed_ratelimit {
		zone streams {
			concurrent 2
		}
	}
	reverse_proxy `+u.address()+`
}
http://left.test {
	distributed_ratelimit 3 1h window
	respond "{http.distributed_ratelimit.remaining}"
}
http://b.test {
	distributed_ratelimit {
		zone streams {
			concurrent 2
		}
		ratelimit_headers always
	}
	respond /told "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.limit} {http.distributed_ratelimit.remaining}"
	reverse_proxy `+u.address()+`
}`)
	open := e.streams(2, "a.test")
	for range 5 {
		e.busy("a.test")
	}
	open[1].Body.Close()
	e.free(1, "b.test")
	open[1] = e.passes(http.StatusOK, "a.test", "/") // the last of the window
	open[1].Body.Close()
	e.free(1, "b.test")
	byWindow := 0
	for range 1000 {
		response := e.stream("a.test", "/")
		if response.StatusCode != http.StatusTooManyRequests {
			t.Fatalf("status %d", response.StatusCode)
		}
		if response.Header.Get("RateLimit") != "" {
			byWindow++
		}
		response.Body.Close()
		if byWindow == 3 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if byWindow < 3 {
		t.Fatal("the window does not refuse")
	}
	open[0].Body.Close()
	e.free(2, "b.test")
	time.Sleep(50 * time.Millisecond)
	response := e.passes(http.StatusOK, "b.test", "/told")
	if told, _ := io.ReadAll(response.Body); string(told) != "granted 2 1" || response.Header.Get("Ratelimit") != "" {
		t.Errorf("placeholders %q, headers %v", told, response.Header)
	}
}

func TestConcurrentDryRun(t *testing.T) {
	u := newUpstream(t)
	e := start(t, streaming(u, "a.test", "streams", "dry_run"))
	e.streams(5, "a.test")
	if lines := append(e.log.find("request refused"), e.log.find("request would be refused")...); len(lines) == 0 {
		t.Error("nothing was logged")
	}
}

// Each policy while the store is away, and afterwards nothing is left.
func TestConcurrentStoreAway(t *testing.T) {
	u := newUpstream(t)
	site := func(policy string) string {
		return streaming(u, policy+".test", policy, "on_store_error "+policy)
	}
	e := start(t, `
{
	distributed_ratelimit {
		store redis redis://127.0.0.1:1
	}
}`+site("local")+site("allow")+site("deny"))
	e.free(2, "local.test")
	e.streams(5, "allow.test")
	response := e.stream("deny.test", "/")
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") != "1" {
		t.Errorf("status %d", response.StatusCode)
	}
}

// The gauge counts what is in flight, also of a configuration that has gone.
func TestConcurrentMetric(t *testing.T) {
	u := newUpstream(t)
	e := start(t, brief+streaming(u, "a.test", "streams", ""))
	gauge := func(want string) {
		t.Helper()
		ctx := caddy.ActiveContext()
		families, err := ctx.GetMetricsRegistry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := "none"
		for _, family := range families {
			if family.GetName() == "caddy_distributed_ratelimit_in_flight" {
				for _, m := range family.Metric {
					got = fmt.Sprint(m.GetLabel()[0].GetValue(), " ", m.GetGauge().GetValue())
				}
			}
		}
		if got != want {
			t.Errorf("in flight: %s, want %s", got, want)
		}
	}
	gauge("streams 0")
	open := e.streams(2, "a.test")
	gauge("streams 2")
	e.reload(brief + "http://b.test {\n\trespond ok\n}")
	gauge("none")
	e.reload(brief + streaming(u, "a.test", "streams", ""))
	gauge("streams 2")
	open[0].Body.Close()
	open[1].Body.Close()
	e.free(2, "a.test")
}
