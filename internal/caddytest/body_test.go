package caddytest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const (
	formType      = "application/x-www-form-urlencoded"
	multipartType = "multipart/form-data; boundary=B"
	jsonType      = "application/json"
)

func multipartForm(fields ...string) string {
	var b strings.Builder
	for _, field := range fields {
		name, value, _ := strings.Cut(field, "=")
		fmt.Fprintf(&b, "--B\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n", name, value)
	}
	return b.String() + "--B--\r\n"
}

// logins is an application that gets what a limit lets pass.
type logins struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string
}

func startLogins(t *testing.T) *logins {
	l := new(logins)
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			data = append(data, "; "+err.Error()...)
		}
		l.mu.Lock()
		l.bodies = append(l.bodies, string(data))
		l.mu.Unlock()
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(l.Close)
	return l
}

// got returns the bodies that have come since the last call.
func (l *logins) got() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := l.bodies
	l.bodies = nil
	return got
}

// startLogin runs a site with a limit on accounts in front of an application.
func startLogin(t *testing.T, options, account string) (*edge, *logins) {
	t.Helper()
	l := startLogins(t)
	return start(t, fmt.Sprintf(`
http://a.test {
	distributed_ratelimit {
		%s
		zone account {
			events 5
			window 1h
			%s
		}
	}
	reverse_proxy %s
}`, options, account, l.Listener.Addr())), l
}

// post sends a body over loopback.
func (e *edge) post(path, contentType string, body io.Reader, change ...func(*http.Request)) int {
	e.t.Helper()
	r, err := http.NewRequest(http.MethodPost, "http://"+e.ports["80"]+path, body)
	if err != nil {
		e.t.Fatal(err)
	}
	r.Host = "a.test"
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for _, c := range change {
		c(r)
	}
	return e.dial(r).StatusCode
}

// A limit on the address in a handler of its own counts the requests whose body another
// handler refuses: large bodies that are refused cannot be sent without end. In one
// handler with that zone it does not.
func TestRefusedBodiesCountInAHandlerBefore(t *testing.T) {
	for name, row := range map[string]struct {
		between string
		want    int
	}{
		"apart":    {"}\ndistributed_ratelimit {", http.StatusTooManyRequests},
		"together": {"", http.StatusUnauthorized},
	} {
		app := startLogins(t)
		e := start(t, fmt.Sprintf(`
http://a.test {
	distributed_ratelimit {
		zone address-%s {
			key all
			events 4
			window 1h
		}
		%s
		zone account-%[1]s {
			key {form.user}
			events 1
			window 1h
		}
	}
	reverse_proxy %[3]s
}`, name, row.between, app.Listener.Addr()))
		post := func(user string) int { return e.post("/", formType, strings.NewReader("user="+user)) }
		for i, want := range []int{http.StatusUnauthorized, http.StatusTooManyRequests, http.StatusTooManyRequests, http.StatusTooManyRequests} {
			if status := post("alice"); status != want {
				t.Errorf("%s, login %d of one account: status %d, want %d", name, i, status, want)
			}
		}
		if status := post("bob"); status != row.want {
			t.Errorf("%s: another account has status %d, want %d", name, status, row.want)
		}
	}
}

// login is one way to send a name.
type login struct {
	name, contentType, body string
	change                  func(*http.Request)
}

// A limit of 5 an account is 5 an account: in the three types of body together, and
// whatever a client does to its body to be taken for somebody else. What passes
// arrives byte for byte.
func TestAccountLimitHolds(t *testing.T) {
	const victim = "username=victim&password=x"
	e, app := startLogin(t, "zone address {\nevents 1000\nwindow 1h\n}", "key {form.username}{json.username}")
	for i, honest := range []login{
		{"", formType, victim, nil},
		{"", formType + "; charset=UTF-8", "password=%20&username=%76ictim", nil},
		{"", multipartType, multipartForm("password=x", "username=victim"), nil},
		{"", jsonType, `{"password":"x","username":"victim"}`, nil},
		{"", formType, "username=+VICTIM&password=" + strings.Repeat("x", 50<<10), nil},
	} {
		if status := e.post("/login", honest.contentType, strings.NewReader(honest.body)); status != http.StatusUnauthorized {
			t.Fatalf("login %d: got status %d, want 401 from the application", i, status)
		}
		if got := app.got(); len(got) != 1 || got[0] != honest.body {
			t.Fatalf("login %d: the application got %.200q, want %.200q", i, got, honest.body)
		}
	}
	for _, l := range []login{
		{"again", formType, victim, nil},
		{"multipart", multipartType, multipartForm("username=victim"), nil},
		{"JSON", jsonType, `{"username":"victim"}`, nil},
		{"upper case", formType, "username=VICTIM", nil},
		{"spaces around", formType, "username=%20victim+", nil},
		{"accents", formType, "username=v%C3%AFctim", nil},
		{"full width", formType, "username=%EF%BD%96%EF%BD%89%EF%BD%83%EF%BD%94%EF%BD%89%EF%BD%8D", nil},
		{"zero width", formType, "username=vic%E2%80%8Btim", nil},
	} {
		if status := e.post("/login", l.contentType, strings.NewReader(l.body), changes(l.change)...); status != http.StatusTooManyRequests {
			t.Errorf("%s: got status %d, want 429", l.name, status)
		}
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte(victim))
	_ = z.Close()
	padding := strings.Repeat("x", 65<<10)
	for _, l := range []login{
		{"padding behind", formType, victim + "&pad=" + padding, nil},
		{"padding in front", formType, "pad=" + padding + "&" + victim, nil},
		{"padding in JSON", jsonType, `{"pad":"` + padding + `","username":"victim"}`, nil},
		{"padding in multipart", multipartType, multipartForm("pad="+padding, "username=victim"), nil},
		{"twice", formType, "username=decoy&username=victim", nil},
		{"twice in JSON", jsonType, `{"username":"decoy","username":"victim"}`, nil},
		{"twice in multipart", multipartType, multipartForm("username=decoy", "username=victim"), nil},
		{"array", formType, "username=decoy&username[]=victim", nil},
		{"other case of the name", formType, "Username=victim", nil},
		{"both cases of the name", formType, "username=decoy&Username=victim", nil},
		{"both cases in JSON", jsonType, `{"username":"decoy","Username":"victim"}`, nil},
		{"semicolon", formType, "username=decoy;username=victim", nil},
		{"in the query", formType, "username=decoy", func(r *http.Request) { r.URL.RawQuery = "username=victim" }},
		{"gzip", formType, zipped.String(), with("Content-Encoding", "gzip")},
		{"gzip without saying so", formType, zipped.String(), nil},
		{"another charset", formType + "; charset=utf-16", "u\x00s\x00e\x00r\x00n\x00a\x00m\x00e\x00", nil},
		{"two types", formType, victim, with("Content-Type", jsonType)},
		{"no type", "", victim, nil},
		{"plain text", "text/plain", victim, nil},
		{"JSON as a form", formType, `{"a":"&username=decoy&","username":"victim"}`, nil},
		{"byte order mark", jsonType, "\ufeff" + `{"username":"victim"}`, nil},
		{"trailing data", jsonType, `{"username":"decoy"}{"username":"victim"}`, nil},
		{"list", jsonType, `{"username":["victim"]}`, nil},
		{"zero byte", formType, "username=victim%00x", nil},
		{"no name", formType, "password=x", nil},
		{"empty", formType, "", nil},
	} {
		for _, chunked := range []bool{false, true} {
			var body io.Reader = strings.NewReader(l.body)
			if chunked {
				body = io.MultiReader(body)
			}
			if status := e.post("/login", l.contentType, body, changes(l.change)...); status != http.StatusForbidden {
				t.Errorf("%s (chunked: %v): got status %d, want 403", l.name, chunked, status)
			}
		}
	}
	if got := app.got(); len(got) > 0 {
		t.Errorf("the application got %d more logins: %.100q", len(got), got)
	}
	if status := e.post("/login", formType, strings.NewReader("username=ann")); status != http.StatusUnauthorized {
		t.Errorf("another account: got status %d, want 401 from the application", status)
	}
}

func changes(change func(*http.Request)) []func(*http.Request) {
	if change == nil {
		return nil
	}
	return []func(*http.Request){change}
}

// Who is over another limit does not get the body read; and what a zone keyed on the
// body refuses costs nothing in the others.
func TestBodiesComeSecond(t *testing.T) {
	e, app := startLogin(t, "zone address {\nevents 10\nwindow 1h\n}", "key {form.username}")
	for i := range 40 {
		want := http.StatusUnauthorized
		if i >= 5 {
			want = http.StatusTooManyRequests
		}
		if status := e.post("/", formType, strings.NewReader("username=ann")); status != want {
			t.Fatalf("login %d: got status %d, want %d", i, status, want)
		}
	}
	for i := range 3 {
		if status := e.post("/", formType, strings.NewReader("user=ann")); status != http.StatusForbidden {
			t.Fatalf("login %d without a name: got status %d, want 403", i, status)
		}
	}
	for i := range 5 {
		if status := e.post("/", formType, strings.NewReader(fmt.Sprintf("username=bob%d", i))); status != http.StatusUnauthorized {
			t.Fatalf("login %d of others: got status %d, want 401", i, status)
		}
	}
	if got := app.got(); len(got) != 10 {
		t.Errorf("the application got %d logins, want 10", len(got))
	}
	e.sample("requests_total", "granted store address", 10)

	// The next one is over the address's limit: its body is not even asked for.
	conn, in := e.open(t)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Type: %s\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n", formType)
	line, err := in.ReadString('\n')
	if err != nil || !strings.Contains(line, "429") {
		t.Errorf("got %q (%v), want 429 without 100 Continue", line, err)
	}
}

func (e *edge) open(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", e.ports["80"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, bufio.NewReader(conn)
}

// A client that hangs in the midst of its body gets 408, and keeps what it was
// charged: else it could hang as often as it likes.
func TestSlowBodies(t *testing.T) {
	e, app := startLogin(t, "body_timeout 200ms\nzone address {\nevents 3\nwindow 1h\n}", "key {form.username}\ndry_run")
	for i, want := range []string{"408", "408", "408", "429"} {
		conn, in := e.open(t)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Type: %s\r\nContent-Length: 100\r\n\r\nusername=", formType)
		if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, want) {
			t.Errorf("upload %d: got %q (%v), want %s", i, line, err, want)
		}
		if want == "429" {
			continue // the server waits a while for the rest of the body, as it always does
		}
		if rest, err := io.ReadAll(in); err != nil || !strings.Contains(string(rest), "Connection: close") {
			t.Errorf("upload %d: got %q (%v), want the connection closed", i, rest, err)
		}
	}
	if got := app.got(); len(got) > 0 {
		t.Errorf("the application got %q", got)
	}
	e.sample("body_memory_bytes", "", 0)
}

// A thousand clients that send half and hang hold no more than body_memory; who
// finds no room gets 503. In the end all of it is free again.
func TestMemoryForSlowBodies(t *testing.T) {
	const budget = 2 << 20
	l := startLogins(t)
	e := start(t, fmt.Sprintf(`
{
	distributed_ratelimit {
		body_memory 2MiB
		body_timeout 1m
	}
}
http://a.test {
	distributed_ratelimit 1000000 1h account {
		key {form.username}
	}
	reverse_proxy %s
}`, l.Listener.Addr()))
	var conns []net.Conn
	refused := make(chan string, 1000)
	for range 1000 {
		conn, in := e.open(t)
		conns = append(conns, conn)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Type: %s\r\nContent-Length: 65000\r\n\r\nusername=%s", formType, strings.Repeat("x", 3000))
		go func() {
			line, _ := in.ReadString('\n')
			refused <- line
		}()
	}
	// 4 KiB each, and 2 KiB beside it until that is copied.
	for range 1000 - budget>>12 {
		if line := <-refused; !strings.Contains(line, "503") {
			t.Fatalf("got %q, want 503", line)
		}
		if used := e.series("body_memory_bytes")[""]; used > budget {
			t.Fatalf("%v bytes are held, more than %d", used, budget)
		}
	}
	e.log.says(1, "bodies hold all of body_memory")
	for _, conn := range conns {
		conn.Close()
	}
	for e.series("body_memory_bytes")[""] > 0 {
		time.Sleep(time.Millisecond)
	}
	if status := e.post("/", formType, strings.NewReader("username=ann")); status != http.StatusUnauthorized {
		t.Errorf("after that: got status %d, want 401 from the application", status)
	}
}

// skip passes over requests that certainly do not have the field.
func TestBodyKeySkips(t *testing.T) {
	e, app := startLogin(t, "", "key {json.coupon}\non_empty_key skip")
	for _, c := range []struct {
		contentType, body string
		want              int
	}{
		{jsonType, `{"coupon":"a"}`, http.StatusUnauthorized},
		{jsonType, `{"other":"a"}`, http.StatusUnauthorized},
		{jsonType, `{"coupon":null}`, http.StatusUnauthorized},
		{jsonType, ``, http.StatusUnauthorized},
		{"", ``, http.StatusUnauthorized},
		{jsonType, `{"coupon":"a","coupon":"b"}`, http.StatusForbidden},
		{jsonType, `{"coupon":"a"`, http.StatusForbidden},
		{jsonType, `{"coupon":"a","pad":"` + strings.Repeat("x", 65<<10) + `"}`, http.StatusForbidden},
		{formType, `a={"coupon":"a"}`, http.StatusForbidden},
	} {
		if status := e.post("/", c.contentType, strings.NewReader(c.body)); status != c.want {
			t.Errorf("%.50q of type %q: got status %d, want %d", c.body, c.contentType, status, c.want)
		}
	}
	e.sample("requests_total", "granted store account", 1)
	for reason, n := range map[string]float64{"missing": 4, "ambiguous": 1, "unreadable": 1, "too_long": 1, "other_type": 1} {
		e.sample("empty_keys_total", reason+" account", n)
	}
	app.got()
}

// A dry run passes on what it cannot read.
func TestBodyDryRun(t *testing.T) {
	e, app := startLogin(t, "", "key {form.username}\ndry_run")
	long := "username=ann&x=" + strings.Repeat("x", 200<<10)
	if status := e.post("/", formType, strings.NewReader(long)); status != http.StatusUnauthorized {
		t.Errorf("got status %d, want 401 from the application", status)
	}
	if got := app.got(); len(got) != 1 || got[0] != long {
		t.Errorf("the application got %d bodies, want the one that was sent", len(got))
	}
}

// Two handlers read one body once.
func TestBodyOfTwoHandlers(t *testing.T) {
	app := startLogins(t)
	e := start(t, fmt.Sprintf(`
http://a.test {
	route {
		distributed_ratelimit 5 1h account {
			key {form.username}
			body_limit 1KiB
		}
		distributed_ratelimit 5 1h mail {
			key {form.mail}
		}
		reverse_proxy %s
	}
}`, app.Listener.Addr()))
	const form = "username=ann&mail=a%40b"
	for i := range 6 {
		want := http.StatusUnauthorized
		if i == 5 {
			want = http.StatusTooManyRequests
		}
		if status := e.post("/", formType, strings.NewReader(form)); status != want {
			t.Errorf("login %d: got status %d, want %d", i, status, want)
		}
	}
	if got := app.got(); len(got) != 5 || got[4] != form {
		t.Errorf("the application got %q, want %q five times", got, form)
	}
	e.sample("body_memory_bytes", "", 0)
}

// What a request costs may stand in its body, and what limit it has.
func TestCostAndTierFromBody(t *testing.T) {
	app := startLogins(t)
	e := start(t, fmt.Sprintf(`
http://a.test {
	distributed_ratelimit {
		zone jobs {
			key {json.team}
			cost {json.jobs.count} default 50 max 60
			window 1h
			tier {json.plan} {
				large 100
				default 10
			}
		}
	}
	reverse_proxy %s
}`, app.Listener.Addr()))
	for i, c := range []struct {
		body string
		want int
	}{
		{`{"team":"a","plan":"large","jobs":{"count":40}}`, http.StatusUnauthorized},
		{`{"team":"a","plan":"large","jobs":{"count":1e1}}`, http.StatusUnauthorized},
		{`{"team":"a","plan":"large","jobs":{"count":"50"}}`, http.StatusUnauthorized},
		{`{"team":"a","plan":"large","jobs":{"count":1}}`, http.StatusTooManyRequests},
		{`{"team":"b","plan":"large","jobs":{"count":1.5}}`, http.StatusUnauthorized}, // 50
		{`{"team":"b","plan":"large"}`, http.StatusUnauthorized},                      // 50
		{`{"team":"b","plan":"large","jobs":{"count":1}}`, http.StatusTooManyRequests},
		{`{"team":"c","jobs":{"count":10}}`, http.StatusUnauthorized},
		{`{"team":"c","jobs":{"count":1}}`, http.StatusTooManyRequests},
	} {
		if status := e.post("/", jsonType, strings.NewReader(c.body)); status != c.want {
			t.Errorf("request %d, %s: got status %d, want %d", i, c.body, status, c.want)
		}
	}
	e.log.says(1, "the client writes what this tier reads")
	e.log.says(1, "the client writes what this cost reads")
}

// key_normalize holds for everything that clients write.
func TestKeyNormalize(t *testing.T) {
	for words, names := range map[string]map[string]bool{ // whether a name is one with ann
		"key_normalize lower":      {"ANN": true, "ånn": true, "Ａｎｎ": true, "ann ": false, "bob": false},
		"key_normalize trim":       {" ann\t": true, "\u00a0ann": true, "ANN": false},
		"key_normalize lower trim": {" ANN\t": true, "a nn": false},
		"":                         {"ANN": false, "ann ": false},
	} {
		t.Run(words, func(t *testing.T) {
			e := limitedTo(t, 1, "key {query.user}\n"+words)
			passes := func(name string) bool {
				return e.passed(1, "192.0.2.1", func(_ int, r *http.Request) { r.URL.RawQuery = url.Values{"user": {name}}.Encode() }) == 1
			}
			if !passes("ann") || passes("ann") {
				t.Fatal("the limit of ann is not 1")
			}
			for name, same := range names {
				if passes(name) == same {
					t.Errorf("%q is one with ann: got %v, want %v", name, !same, same)
				}
			}
		})
	}
}

// HTTP/1, 2 and 3 alike: the application gets what was sent, with its length and its
// trailer, also where it is longer than the limit; a body that hangs is given up, and
// a request without one is not waited for.
func TestBodiesInAllVersions(t *testing.T) {
	type got struct {
		length        int64
		body, trailer string
	}
	seen := make(chan got, 1)
	invite(t, "application", act(func(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
		data, err := io.ReadAll(r.Body)
		seen <- got{r.ContentLength, string(data), r.Trailer.Get("X-Sum")}
		return err
	}))
	_, urls := secure(t, `distributed_ratelimit 1000 1h account {
	key {form.username}
	body_limit 2KiB
	body_timeout 300ms
	on_empty_key skip
}
stage application`, "stage application")
	for version, client := range versions(t) {
		url := urls[0]
		post := func(body io.Reader, change ...func(*http.Request)) (int, error) {
			r, _ := http.NewRequest(http.MethodPost, url, body)
			r.Host = "localhost"
			r.Header.Set("Content-Type", formType)
			for _, c := range change {
				c(r)
			}
			a, err := client.RoundTrip(r)
			if err != nil {
				return 0, err
			}
			a.Body.Close()
			return a.StatusCode, nil
		}
		const form = "username=ann&password=x"
		if status, err := post(strings.NewReader(form)); status != http.StatusOK {
			t.Errorf("HTTP/%d: got status %d (%v), want 200", version, status, err)
		} else if g := <-seen; g != (got{int64(len(form)), form, ""}) {
			t.Errorf("HTTP/%d: the application got %+v", version, g)
		}
		trailer := func(r *http.Request) { r.Trailer = http.Header{"X-Sum": {"7"}} }
		var streamed [2]got // with the limit and without
		for i := range streamed {
			url = urls[i]
			if status, err := post(io.MultiReader(strings.NewReader(form)), trailer); status != http.StatusOK {
				t.Fatalf("HTTP/%d, length unknown: got status %d (%v), want 200", version, status, err)
			}
			streamed[i] = <-seen
		}
		if url = urls[0]; streamed[0] != streamed[1] || streamed[0].body != form {
			t.Errorf("HTTP/%d, length unknown: the application got %+v, without the limit %+v", version, streamed[0], streamed[1])
		}
		if status, err := post(nil, func(r *http.Request) { r.Method = http.MethodGet; r.Header.Del("Content-Type") }); status != http.StatusOK {
			t.Errorf("HTTP/%d, no body: got status %d (%v), want 200", version, status, err)
		} else {
			<-seen
		}
		for _, announced := range []bool{false, true} {
			var long io.Reader = strings.NewReader(form + strings.Repeat("&", 1<<20))
			if !announced {
				long = io.MultiReader(long)
			}
			// HTTP/2 and 3 may reset the rest of the upload.
			if status, err := post(long); status != http.StatusForbidden && err == nil {
				t.Errorf("HTTP/%d, long, announced %v: got status %d, want 403", version, announced, status)
			}
		}
		half, rest := io.Pipe()
		go fmt.Fprint(rest, "username=")
		began := time.Now()
		if status, err := post(half); status != http.StatusRequestTimeout && err == nil {
			t.Errorf("HTTP/%d, half a body: got status %d, want 408", version, status)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("HTTP/%d, half a body: it took %v", version, took)
		}
		rest.Close()
	}
}

// A slot is taken before the body is read. It is free again when a zone that reads the
// body refuses, and when the body does not come.
func TestSlotsAndBodies(t *testing.T) {
	e, app := startLogin(t, "body_timeout 200ms\nzone busy {\nconcurrent 1\n}", "key {form.username}")
	for i := range 8 {
		want := http.StatusUnauthorized
		if i >= 5 {
			want = http.StatusTooManyRequests
		}
		if status := e.post("/", formType, strings.NewReader("username=ann")); status != want {
			t.Fatalf("login %d: got status %d, want %d", i, status, want)
		}
	}
	if status := e.post("/", formType, strings.NewReader("user=ann")); status != http.StatusForbidden {
		t.Errorf("without a name: got status %d, want 403", status)
	}
	for range 2 {
		conn, in := e.open(t)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Type: %s\r\nContent-Length: 100\r\n\r\nusername=", formType)
		if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "408") {
			t.Errorf("half a body: got %q (%v), want 408", line, err)
		}
	}
	if status := e.post("/", formType, strings.NewReader("username=bob")); status != http.StatusUnauthorized {
		t.Errorf("after all that: got status %d, want 401 from the application", status)
	}
	eventually(t, func() bool { return e.series("in_flight")["busy"] == 0 })
	if got := app.got(); len(got) != 6 {
		t.Errorf("the application got %d logins, want 6", len(got))
	}
}

type panickingReader struct{ io.Reader }

func (panickingReader) Read([]byte) (int, error) { panic(http.ErrAbortHandler) }

// A reader that another handler has put before the body may panic.
func TestSlotsAfterAPanicOfTheBody(t *testing.T) {
	invite(t, "breaks", act(func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		if r.Header.Get("Break") != "" {
			r.Body = io.NopCloser(panickingReader{})
		}
		return next.ServeHTTP(w, r)
	}))
	e := start(t, `
http://a.test {
	route {
		stage breaks
		distributed_ratelimit {
			zone busy {
				concurrent 1
			}
			zone account {
				key {form.username}
				events 5
				window 1h
			}
		}
		respond ok
	}
}`)
	const form = "username=ann"
	whole := func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(form)), int64(len(form))
		r.Header.Set("Content-Type", formType)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("nothing panicked")
			}
		}()
		e.send("192.0.2.1", http.MethodPost, "http://a.test/", whole, with("Break", "1"))
	}()
	if a := e.send("192.0.2.1", http.MethodPost, "http://a.test/", whole); a.StatusCode != http.StatusOK {
		t.Errorf("after the panic: got status %d, want 200", a.StatusCode)
	}
}
