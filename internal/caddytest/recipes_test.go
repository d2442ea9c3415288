package caddytest

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/requestbody"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/forwardauth"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

const localSite = "http://localhost:8080"

// recipe runs a configuration of examples/ as it stands there. The test has its own
// Redis and its own backends, whose addresses stand in the environment, the ports are
// free ones, and a decision may take its time on a busy machine. Sites for the test's
// own use may be added.
func recipe(t *testing.T, name, more string, env ...string) *edge {
	t.Helper()
	t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
	for i := 0; i+1 < len(env); i += 2 {
		t.Setenv(env[i], env[i+1])
	}
	return runRecipe(t, readRecipe(t, name)+more)
}

func readRecipe(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../examples", name, "Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func runRecipe(t *testing.T, caddyfile string) *edge {
	t.Helper()
	e := &edge{t: t, log: openLogBook(t), ports: make(map[string]string), kept: t.TempDir()}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("caddy.Stop: %v", err)
		}
	})
	var cfg map[string]any
	if err := json.Unmarshal(adapted(t, caddyfile), &cfg); err != nil {
		t.Fatal(err)
	}
	dig(cfg, "apps", "distributed_ratelimit").(map[string]any)["budget"] = "10s"
	config, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(e.fit(config), true); err != nil {
		t.Fatalf("loading: %v\n%s", err, caddyfile)
	}
	return e
}

// backend is a small application that notes what reaches it.
type backend struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string // method and path
}

func newBackend(t *testing.T, serve http.HandlerFunc) *backend {
	b := new(backend)
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.seen = append(b.seen, r.Method+" "+r.URL.Path)
		b.mu.Unlock()
		serve(w, r)
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) addr() string { return b.Listener.Addr().String() }

// took returns how many requests have reached the backend since the last call.
func (b *backend) took() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.seen)
	b.seen = nil
	return n
}

func (b *backend) reached() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.seen)
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

// sending gives a request a body.
func sending(contentType, body string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Set("Content-Type", contentType)
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
}

func form(fields ...string) func(*http.Request) {
	values := url.Values{}
	for i := 0; i+1 < len(fields); i += 2 {
		values.Add(fields[i], fields[i+1])
	}
	return sending(formType, values.Encode())
}

func address(i int) string { return "192.0.2." + strconv.Itoa(i) }

// wants expects the status of a POST.
func (e *edge) wants(status int, from, url string, change ...func(*http.Request)) reply {
	e.t.Helper()
	a := e.send(from, http.MethodPost, url, change...)
	if a.StatusCode != status {
		e.t.Fatalf("POST %s from %s: got status %d (%s), want %d", url, from, a.StatusCode, a.body, status)
	}
	return a
}

// atOnce sends requests from as many addresses, and counts their statuses.
func (e *edge) atOnce(n int, method, url string, change ...func(*http.Request)) map[int]int {
	var mu sync.Mutex
	counts := make(map[int]int)
	server := e.server("8080")
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			status := e.sendTo(server, address(100+i), method, url, change...).StatusCode
			mu.Lock()
			counts[status]++
			mu.Unlock()
		})
	}
	all.Wait()
	return counts
}

// seconds expects Retry-After to be within bounds.
func (a reply) seconds(t *testing.T, least, most int) {
	t.Helper()
	if got, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || got < least || got > most {
		t.Errorf("Retry-After %q, want %d to %d", a.Header.Get("Retry-After"), least, most)
	}
}

// formApp is a login that answers failures with the form again, and success with a
// redirect.
func formApp(t *testing.T) *backend {
	return newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.FormValue("password") == "right" {
			http.Redirect(w, r, "/home", http.StatusSeeOther)
			return
		}
		_, _ = io.WriteString(w, "<form>")
	})
}

// The promise: five failed logins in 10 minutes for an account, from however many
// addresses and however many at once; then nobody gets in for 15 minutes. Twenty an
// address. Whoever knows the password is not counted.
func TestRecipeFormLogin(t *testing.T) {
	app := formApp(t)
	e := recipe(t, "form-login", "", "BACKEND", app.addr())
	login := func(user, password string) func(*http.Request) {
		return form("username", user, "password", password)
	}
	for range 30 {
		e.wants(http.StatusSeeOther, alice, localSite+"/login", login("alice", "right"))
	}
	for i := range 5 {
		e.wants(http.StatusOK, address(i+1), localSite+"/login", login("alice", "wrong"))
	}
	e.wants(http.StatusTooManyRequests, address(9), localSite+"/login", login("alice", "right")).seconds(t, 880, 900)
	e.wants(http.StatusTooManyRequests, address(9), localSite+"/login/", login(" ALICE", "right"))
	e.wants(http.StatusSeeOther, address(1), localSite+"/login", login("bob", "right"))
	e.wants(http.StatusForbidden, address(9), localSite+"/login", login("alice", strings.Repeat("x", 70<<10)))
	e.granted(30, address(1), localSite+"/login") // the form itself

	app.took()
	counts := e.atOnce(40, http.MethodPost, localSite+"/login", login("carol", "wrong"))
	if n := app.took(); n != 5 || counts[http.StatusOK] != 5 {
		t.Errorf("of 40 guesses at once %d reached the application, want 5; statuses %v", n, counts)
	}

	for i := range 20 {
		e.wants(http.StatusOK, address(50), localSite+"/login", login("user"+strconv.Itoa(i), "wrong"))
	}
	e.wants(http.StatusTooManyRequests, address(50), localSite+"/login", login("dave", "right")).seconds(t, 3590, 3600)
	e.wants(http.StatusSeeOther, address(51), localSite+"/login", login("dave", "right"))
}

// The promise: five failed logins for an account, in however many spellings, and
// twenty an address; what is no JSON with one username is refused.
func TestRecipeJSONLogin(t *testing.T) {
	app := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Username, Password string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Password != "right" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	e := recipe(t, "json-login", "", "BACKEND", app.addr())
	login := func(user, password string) func(*http.Request) {
		body, _ := json.Marshal(map[string]string{"username": user, "password": password})
		return sending(jsonType, string(body))
	}
	url := localSite + "/api/login"
	for range 10 {
		e.wants(http.StatusOK, alice, url, login("alice", "right"))
	}
	for i, user := range []string{"alice", "Alice", "ALICE ", " alice", "álice"} {
		e.wants(http.StatusUnauthorized, address(i+1), url, login(user, "wrong"))
	}
	e.wants(http.StatusTooManyRequests, address(7), url, login("alice", "right"))
	app.took()
	for _, body := range []func(*http.Request){
		sending(jsonType, `{"username":"alice","username":"bob","password":"wrong"}`),
		sending(jsonType, `{"Username":"alice","password":"wrong"}`),
		sending(jsonType, `{"pad":"`+strings.Repeat("x", 70<<10)+`","username":"alice"}`),
		sending("text/plain", `{"username":"alice","password":"wrong"}`),
		form("username", "alice"),
	} {
		e.wants(http.StatusForbidden, address(8), url, body)
	}
	if n := app.took(); n != 0 {
		t.Errorf("%d requests without a clear username reached the application", n)
	}
	for i := range 20 {
		e.wants(http.StatusUnauthorized, address(50), url, login("user"+strconv.Itoa(i), "wrong"))
	}
	e.wants(http.StatusTooManyRequests, address(50), url, login("dave", "right"))
}

// The promise: five failed logins for an account through WordPress's own form,
// whatever the action is called and however the path is written, then a ban; the
// page's other forms work; and XML-RPC has a limit.
func TestRecipeWordPress(t *testing.T) {
	app := new(backend)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		_ = fcgi.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			app.mu.Lock()
			app.seen = append(app.seen, r.URL.Path)
			app.mu.Unlock()
			if r.FormValue("pwd") == "right" || r.FormValue("post_password") != "" {
				http.Redirect(w, r, "/wp-admin/", http.StatusFound)
				return
			}
			_, _ = io.WriteString(w, "<form>")
		}))
	}()
	root := t.TempDir()
	for _, name := range []string{"index.php", "wp-login.php", "xmlrpc.php"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("<?php"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := recipe(t, "wordpress", "", "WORDPRESS", root, "PHP", listener.Addr().String())
	login := func(user, password string, more ...string) func(*http.Request) {
		return form(append([]string{"log", user, "pwd", password}, more...)...)
	}
	for range 10 {
		e.wants(http.StatusFound, alice, localSite+"/wp-login.php", login("admin", "right"))
	}
	for i, path := range []string{"/wp-login.php", "//wp-login.php", "/WP-login.php?x=1", "/wp-login.php/x.css", "/wp%2Dlogin.php?action=lostpassword"} {
		e.wants(http.StatusOK, address(i+1), localSite+path, login("admin", "wrong", "action", "login"))
	}
	app.took()
	e.wants(http.StatusTooManyRequests, address(9), localSite+"/wp-login.php", login("Admin ", "right")).seconds(t, 880, 900)
	e.wants(http.StatusTooManyRequests, address(9), localSite+"/wp-login.php?action=lostpassword", login("admin", "wrong", "action", "login"))
	for _, doubtful := range []func(*http.Request){
		form(" log", "admin", "pwd", "wrong"),
		form("log[]", "admin", "pwd", "wrong"),
		form("log\x00x", "admin", "pwd", "wrong"),
		form("log", "x", "Log", "admin", "pwd", "wrong"),
		form("pad", strings.Repeat("x", 70<<10), "log", "admin", "pwd", "wrong"),
	} {
		e.wants(http.StatusForbidden, address(9), localSite+"/wp-login.php", doubtful)
	}
	if n := app.took(); n != 0 {
		t.Errorf("%d more logins reached WordPress", n)
	}
	for range 30 {
		e.wants(http.StatusFound, address(10), localSite+"/wp-login.php?action=postpass", form("post_password", "x"))
	}
	e.granted(30, address(10), localSite+"/wp-login.php")

	for range 10 {
		e.wants(http.StatusOK, address(11), localSite+"/xmlrpc.php", sending("text/xml", "<methodCall/>"))
	}
	e.wants(http.StatusTooManyRequests, address(11), localSite+"/blog/../xmlrpc.php", sending("text/xml", "<methodCall/>"))
	e.granted(30, address(11), localSite+"/")
}

// The promise: each user has the limit of the plan that the authentication names,
// whatever the client writes into these headers, and guessing keys comes to an end.
func TestRecipePlans(t *testing.T) {
	auth := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		user, plan, ok := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), "/")
		if !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if user != "" {
			w.Header().Set("X-User", user)
		}
		if plan != "" {
			w.Header().Set("X-Plan", plan)
		}
	})
	app := newBackend(t, hello)
	e := recipe(t, "plans", "", "BACKEND", app.addr(), "AUTH", auth.addr())
	cheat := func(r *http.Request) {
		r.Header.Set("X-Plan", "partner")
		r.Header.Set("X-User", "u"+strconv.Itoa(int(time.Now().UnixNano())))
	}
	for user, row := range map[string]struct{ limit, remaining string }{
		"ann/free": {"60", "59"}, "ben/pro": {"600", "599"}, "cat/unknown": {"60", "59"}, "dan/": {"60", "59"},
	} {
		a := e.status(http.StatusOK, alice, localSite+"/", with("Authorization", "Bearer "+user), cheat)
		if policy := a.Header.Get("RateLimit-Policy"); !strings.Contains(policy, `"api";q=`+row.limit+";") {
			t.Errorf("%s: RateLimit-Policy %s, want a limit of %s", user, policy, row.limit)
		}
	}
	for range 70 {
		e.status(http.StatusOK, alice, localSite+"/", with("Authorization", "Bearer eve/partner"))
	}
	e.status(http.StatusForbidden, alice, localSite+"/", with("Authorization", "Bearer /pro"), cheat)
	e.log.says(0, "the client writes what this tier reads")
	e.log.says(0, "the client chooses a part of this key")
	// One after the other: Caddy's transport reads variables while it dials in the
	// background, and forward_auth writes them, which is a race of its own.
	counts := make(map[int]int)
	for i := range 80 {
		counts[e.send(address(100+i), http.MethodGet, localSite+"/", with("Authorization", "Bearer ann/free"), cheat).StatusCode]++
	}
	if counts[http.StatusOK] != 59 || counts[http.StatusTooManyRequests] != 21 {
		t.Errorf("80 requests on the plan of 60, of which one was spent: %v", counts)
	}

	auth.took()
	for range 30 {
		e.status(http.StatusUnauthorized, bob, localSite+"/", with("Authorization", "Bearer guess"))
	}
	e.refused(bob, localSite+"/", with("Authorization", "Bearer guess"))
	e.refused(bob, localSite+"/", with("Authorization", "Bearer ben/pro"))
	if n := auth.took(); n != 30 {
		t.Errorf("the authentication was asked %d times, want 30", n)
	}
	e.status(http.StatusOK, alice, localSite+"/", with("Authorization", "Bearer ben/pro"))
}

// The promise: all of the windows hold, and what one of them refuses costs nothing in
// the others.
func TestRecipeWindows(t *testing.T) {
	app := newBackend(t, hello)
	e := recipe(t, "windows", `
http://fill.test:8081 {
	distributed_ratelimit 300 1m minute
	respond ok
}`, "BACKEND", app.addr())
	server := e.server("8080")
	began := time.Now()
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() { e.sendTo(server, alice, http.MethodGet, localSite+"/") })
	}
	all.Wait()
	granted, seconds := app.took(), int(time.Since(began).Seconds())
	if granted < 10 || granted > 10*(seconds+1) {
		t.Errorf("%d of 40 requests were granted within %d s, want 10 in any second", granted, seconds)
	}
	e.granted(300-granted, alice, "http://fill.test:8081/")
	e.refused(alice, "http://fill.test:8081/")
	eventually(t, func() bool { // the second has passed, the minute has not
		wait, _ := strconv.Atoi(e.refused(alice, localSite+"/").Header.Get("Retry-After"))
		return wait > 1
	})
	a := e.status(http.StatusOK, bob, localSite+"/")
	for _, policy := range []string{`"second";q=10;w=1`, `"minute";q=300;w=60`, `"day";q=5000;w=86400`} {
		if got := strings.Join(a.Header.Values("RateLimit-Policy"), ", "); !strings.Contains(got, policy) {
			t.Errorf("RateLimit-Policy %s, want %s in it", got, policy)
		}
	}
}

// hangs is a backend whose responses begin at once and end when the client goes.
func hangs(t *testing.T) *backend {
	ended := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/quick" || r.Method == http.MethodPut {
			_, _ = io.Copy(w, r.Body)
			return
		}
		if r.Header.Get("Upgrade") != "" {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.Copy(conn, rw)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: begun\n\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-ended:
		case <-r.Context().Done():
		}
	})
	t.Cleanup(func() { close(ended) })
	return b
}

// connect sends a request over a connection of its own from an address on loopback and
// returns its status, and what closes it.
func (e *edge) connect(from, method, path, more string) (int, net.Conn) {
	e.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", e.ports["8080"])
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, method+" "+path+" HTTP/1.1\r\nHost: localhost\r\n"+more+"\r\n"); err != nil {
		e.t.Fatal(err)
	}
	if method == http.MethodPut {
		return 0, conn // the response comes when the upload has ended
	}
	return statusLine(e.t, conn), conn
}

// statusLine reads the beginning of a response.
func statusLine(t *testing.T, conn net.Conn) int {
	t.Helper()
	line := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(conn, line); err != nil {
		t.Fatal(err)
	}
	status, _ := strconv.Atoi(string(line[len("HTTP/1.1 "):]))
	return status
}

// The promise: three downloads and two uploads at once for each client; one more is
// refused at once and may come again when one has ended.
func TestRecipeTransfers(t *testing.T) {
	app := hangs(t)
	e := recipe(t, "transfers", "", "BACKEND", app.addr())
	const one, other = "127.0.0.1", "127.0.0.2"
	download := func(from string) (int, net.Conn) { return e.connect(from, "GET", "/download/big", "") }

	var first net.Conn
	for range 3 {
		status, conn := download(one)
		if status != http.StatusOK {
			t.Fatalf("a download of three got status %d", status)
		}
		first = conn
	}
	e.refused(one, localSite+"/download/big").seconds(t, 1, 1)
	if status, _ := download(other); status != http.StatusOK {
		t.Errorf("another client got status %d", status)
	}
	first.Close()
	eventually(t, func() bool { status, _ := download(one); return status == http.StatusOK })
	e.granted(5, one, localSite+"/quick")

	app.took()
	var uploads []net.Conn
	for i := range 2 {
		_, conn := e.connect(one, "PUT", "/upload/big", "Content-Length: 4\r\n")
		_, _ = io.WriteString(conn, "ha")
		uploads = append(uploads, conn)
		eventually(t, func() bool { return app.reached() == i+1 })
	}
	put := func() int {
		return e.send(one, http.MethodPut, localSite+"/upload/big", sending("text/plain", "whole")).StatusCode
	}
	if status := put(); status != http.StatusTooManyRequests {
		t.Errorf("a third upload got status %d", status)
	}
	_, _ = io.WriteString(uploads[0], "lf")
	if status := statusLine(t, uploads[0]); status != http.StatusOK {
		t.Errorf("the first upload got status %d", status)
	}
	eventually(t, func() bool { return put() == http.StatusOK })
}

// The promise: five streams at once for each client, WebSockets and event streams
// together, for as long as they are open; and no more than 30 new ones a minute.
func TestRecipeStreams(t *testing.T) {
	app := hangs(t)
	e := recipe(t, "streams", "", "BACKEND", app.addr())
	const one, other, third = "127.0.0.1", "127.0.0.2", "127.0.0.3"
	websocket := func(from string) (int, net.Conn) {
		return e.connect(from, "GET", "/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
	}
	events := func(from string) (int, net.Conn) { return e.connect(from, "GET", "/events", "") }

	var last net.Conn
	for range 3 {
		if status, _ := events(one); status != http.StatusOK {
			t.Fatalf("an event stream got status %d", status)
		}
	}
	for range 2 {
		status, conn := websocket(one)
		if status != http.StatusSwitchingProtocols {
			t.Fatalf("a WebSocket got status %d", status)
		}
		last = conn
	}
	for range 40 { // refused at once, and not charged as starts
		if status, _ := websocket(one); status != http.StatusTooManyRequests {
			t.Fatalf("a sixth stream got status %d", status)
		}
	}
	if status, _ := websocket(other); status != http.StatusSwitchingProtocols {
		t.Errorf("another client got status %d", status)
	}
	e.granted(10, one, localSite+"/quick")
	last.Close()
	eventually(t, func() bool { status, _ := events(one); return status == http.StatusOK })

	// Thirty starts, one after another.
	started := 0
	for range 40 {
		status, conn := events(third)
		if status == http.StatusOK {
			started++
		}
		conn.Close()
		if started == 30 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for range 10 {
		status, conn := events(third)
		conn.Close()
		if status != http.StatusTooManyRequests {
			t.Errorf("after %d starts one more got status %d", started, status)
		}
	}
}

// The promise: 300 requests a minute of a client over all sites together; and searches
// within that.
func TestRecipeManySites(t *testing.T) {
	app := newBackend(t, hello)
	e := recipe(t, "many-sites", "", "SHOP", app.addr(), "BLOG", app.addr(), "API", app.addr())
	const shop, blog, api = "http://shop.localhost:8080", "http://blog.localhost:8080", "http://api.localhost:8080"
	e.granted(30, alice, api+"/search")
	e.refused(alice, api+"/search")
	e.granted(100, alice, shop+"/")
	e.granted(100, alice, blog+"/search")
	e.granted(70, alice, api+"/")
	for _, url := range []string{shop, blog, api} {
		e.refused(alice, url+"/").seconds(t, 1, 65)
		e.granted(1, bob, url+"/")
	}
}

// The promise: behind Cloudflare each visitor has a limit of its own, and nobody who
// comes by another way chooses an address. Without trusted_proxies, all visitors who
// come through one server of Cloudflare share one limit.
func TestRecipeBehindCloudflare(t *testing.T) {
	app := newBackend(t, hello)
	const edge1, edge2 = "172.68.1.2", "2400:cb00::5"
	visitor := func(i int) func(*http.Request) { return with("CF-Connecting-IP", address(i)) }
	e := recipe(t, "behind-cloudflare", "", "BACKEND", app.addr())
	e.granted(200, edge1, localSite+"/", visitor(1))
	e.granted(100, edge2, localSite+"/", visitor(1))
	e.refused(edge1, localSite+"/", visitor(1), with("X-Forwarded-For", address(77)))
	e.refused(edge2, localSite+"/", visitor(1))
	e.granted(5, edge1, localSite+"/", visitor(2))
	// Past Cloudflare, the header says nothing.
	for i := range 300 {
		e.granted(1, "203.0.113.7", localSite+"/", visitor(i%200))
	}
	e.refused("203.0.113.7", localSite+"/", visitor(201))
}

func TestWithoutTrustedProxiesVisitorsShareALimit(t *testing.T) {
	app := newBackend(t, hello)
	t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
	t.Setenv("BACKEND", app.addr())
	before, after, found := strings.Cut(readRecipe(t, "behind-cloudflare"), "\tservers {\n")
	_, after, closed := strings.Cut(after, "\n\t}\n")
	if !found || !closed {
		t.Fatal("the recipe has no servers")
	}
	e := runRecipe(t, before+after)
	for i := range 300 {
		e.granted(1, "172.68.1.2", localSite+"/", with("CF-Connecting-IP", address(i%200)))
	}
	e.refused("172.68.1.2", localSite+"/", with("CF-Connecting-IP", address(201)))
	if len(e.log.find("a peer that is not trusted")) == 0 {
		t.Error("no warning tells why")
	}
}

// The promise: the client is the address that the load balancer has appended, whatever
// the client wrote before it, and only the balancer's health checks are exempt.
func TestRecipeBehindAWS(t *testing.T) {
	app := newBackend(t, hello)
	e := recipe(t, "behind-aws", "", "BACKEND", app.addr())
	const balancer1, balancer2 = "10.0.1.20", "10.0.2.20"
	for i := range 300 {
		e.granted(1, []string{balancer1, balancer2}[i%2], localSite+"/", with("X-Forwarded-For", address(i%200)+", 203.0.113.7"))
	}
	e.refused(balancer1, localSite+"/", with("X-Forwarded-For", "203.0.113.7"))
	e.refused(balancer1, localSite+"/healthz", with("X-Forwarded-For", "10.0.0.9, 203.0.113.7"))
	e.refused(balancer1, localSite+"/", with("X-Forwarded-For", "203.0.113.8, 203.0.113.7"))
	e.granted(5, balancer2, localSite+"/", with("X-Forwarded-For", "203.0.113.8"))
	e.granted(310, balancer1, localSite+"/healthz")
}

// The promise: the client is the address that nginx has written into X-Real-IP, and
// who reaches Caddy from elsewhere does not choose one.
func TestRecipeBehindNginx(t *testing.T) {
	app := newBackend(t, hello)
	e := recipe(t, "behind-nginx", "", "BACKEND", app.addr())
	for i := range 300 {
		e.granted(1, "127.0.0.1", localSite+"/", with("X-Real-IP", "203.0.113.7"), with("X-Forwarded-For", address(i%200)))
	}
	e.refused("127.0.0.1", localSite+"/", with("X-Real-IP", "203.0.113.7"))
	e.granted(5, "127.0.0.1", localSite+"/", with("X-Real-IP", "203.0.113.8"))
	e.granted(300, "198.51.100.5", localSite+"/", with("X-Real-IP", "203.0.113.9"))
	e.refused("198.51.100.5", localSite+"/", with("X-Real-IP", "203.0.113.10"))
}

// The promise: each refusal has the shape of the API's own errors, with its reason,
// and null where waiting does not help; other errors keep theirs.
func TestRecipeAPIErrors(t *testing.T) {
	app := hangs(t)
	e := recipe(t, "api-errors", "", "BACKEND", app.addr())
	wants := func(path, code, limit string, most float64) {
		t.Helper()
		a := e.refused("127.0.0.1", localSite+path, with("Accept", "text/html"))
		var body struct {
			Error struct {
				Code, Limit string
				RetryAfter  *float64 `json:"retry_after"`
			}
		}
		if err := json.Unmarshal([]byte(a.body), &body); err != nil {
			t.Fatalf("%v: %s", err, a.body)
		}
		got := body.Error
		if got.Code != code || got.Limit != limit || (got.RetryAfter == nil) != (most == 0) || got.RetryAfter != nil && (*got.RetryAfter < 1 || *got.RetryAfter > most) {
			t.Errorf("%s: %s, want %s by %s", path, a.body, code, limit)
		}
		a.header(t, "Content-Type", "application/json")
		if waits := a.Header.Get("Retry-After") != ""; waits != (most > 0) {
			t.Errorf("%s: Retry-After %q", path, a.Header.Get("Retry-After"))
		}
	}
	wants("/beta", "zero", "closed", 0)
	status, export := e.connect("127.0.0.1", "GET", "/export", "")
	if status != http.StatusOK {
		t.Fatalf("an export got status %d", status)
	}
	wants("/export", "busy", "exports", 1)
	for range 59 {
		e.status(http.StatusOK, "127.0.0.1", localSite+"/quick")
	}
	wants("/quick", "limit", "api", 65)
	export.Close()
	app.Close()
	if a := e.status(http.StatusBadGateway, bob, localSite+"/"); strings.Contains(a.body, "error") {
		t.Errorf("another error: %s", a.body)
	}
}

// The promise: a script of another origin can read refusals and their headers;
// preflights cost nothing and never reach the application, and no other OPTIONS is
// exempt.
func TestRecipeCORS(t *testing.T) {
	app := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Access-Control-Expose-Headers", "X-Other")
		hello(w, r)
	})
	e := recipe(t, "cors", "", "BACKEND", app.addr())
	origin := with("Origin", "https://app.example.com")
	readable := func(a reply) {
		t.Helper()
		a.header(t, "Access-Control-Allow-Origin", "https://app.example.com")
		a.header(t, "Access-Control-Expose-Headers", "RateLimit, RateLimit-Policy, Retry-After")
	}
	preflight := func() {
		t.Helper()
		a := e.send(alice, http.MethodOptions, localSite+"/", origin, with("Access-Control-Request-Method", "PUT"), form("username", "x"))
		if a.StatusCode != http.StatusNoContent || !strings.Contains(a.Header.Get("Access-Control-Allow-Methods"), "PUT") {
			t.Fatalf("preflight: status %d, headers %v", a.StatusCode, a.Header)
		}
		a.header(t, "Access-Control-Allow-Origin", "https://app.example.com")
	}
	for range 70 {
		preflight()
	}
	if n := app.took(); n != 0 {
		t.Errorf("%d preflights reached the application", n)
	}
	for range 59 {
		a := e.status(http.StatusOK, alice, localSite+"/", origin)
		readable(a)
		if a.Header.Get("RateLimit") == "" {
			t.Fatal("no RateLimit header")
		}
	}
	options := func(want int) {
		t.Helper()
		if status := e.send(alice, http.MethodOptions, localSite+"/", origin).StatusCode; status != want {
			t.Errorf("OPTIONS that is no preflight: status %d, want %d", status, want)
		}
	}
	options(http.StatusOK)
	options(http.StatusTooManyRequests)
	a := e.refused(alice, localSite+"/", origin)
	readable(a)
	a.seconds(t, 1, 65)
	preflight()
	app.Close()
	readable(e.status(http.StatusBadGateway, bob, localSite+"/", origin))
}

// The manual shows the configurations as they are, and how to start them. An example
// with several files has a page of its own, which says that.
func TestRecipesAreShown(t *testing.T) {
	page, err := os.ReadFile("../../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Glob("../../examples/*/Caddyfile")
	if err != nil || len(examples) < 13 {
		t.Fatalf("%d examples, %v", len(examples), err)
	}
	for _, example := range examples {
		name := filepath.Base(filepath.Dir(example))
		if _, err := os.Stat(filepath.Join(filepath.Dir(example), "README.md")); err == nil {
			continue
		}
		if !strings.Contains(string(page), "```caddyfile\n"+readRecipe(t, name)+"```\n") {
			t.Errorf("docs/recipes.md does not show examples/%s/Caddyfile as it is", name)
		}
		if !strings.Contains(string(page), "--config examples/"+name+"/Caddyfile") {
			t.Errorf("docs/recipes.md does not say how to start examples/%s", name)
		}
	}
}
