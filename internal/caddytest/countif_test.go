package caddytest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// loginStage responds as a login does: 200 for the right password, else 401.
func loginStage(t *testing.T, name string) {
	invite(t, name, act(func(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
		if r.Header.Get("Password") == "right" {
			_, err := io.WriteString(w, "welcome")
			return err
		}
		w.WriteHeader(http.StatusUnauthorized)
		return nil
	}))
}

func TestOnlyFailedLoginsCount(t *testing.T) {
	loginStage(t, "login")
	e := start(t, `
http://a.test {
	distributed_ratelimit 3 1h z {
		count_if status 401
	}
	stage login
}`)
	right, wrong := with("Password", "right"), with("Password", "wrong")
	e.granted(20, alice, "http://a.test/", right)
	for range 3 {
		e.status(http.StatusUnauthorized, alice, "http://a.test/", wrong)
		e.granted(20, bob, "http://a.test/", right)
	}
	e.refused(alice, "http://a.test/", wrong)
	e.refused(alice, "http://a.test/", right)
	e.sample("settled_requests_total", "given_back z", 80)
	e.sample("settled_requests_total", "counted z", 3)
}

// What counts is the response, whichever way it comes.
func TestWhatCounts(t *testing.T) {
	type play = func(w http.ResponseWriter, r *http.Request) error
	write := func(status int) play {
		return func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(status); return nil }
	}
	fail := func(err error) play { return func(http.ResponseWriter, *http.Request) error { return err } }
	none := func(http.ResponseWriter, *http.Request) error { return nil }
	cancelled := func(r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		*r = *r.WithContext(ctx)
	}
	broken := func(r *http.Request) {
		r.Method, r.ContentLength = http.MethodPost, 10
		r.Body = io.NopCloser(io.MultiReader(strings.NewReader("half"), failing{}))
	}
	complete := func(r *http.Request) {
		r.Method, r.ContentLength = http.MethodPost, 4
		r.Body = io.NopCloser(strings.NewReader("full"))
	}
	readBody := func(status int) play {
		return func(w http.ResponseWriter, r *http.Request) error {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(status)
			return nil
		}
	}
	for name, row := range map[string]struct {
		countIf string
		play    play
		change  func(*http.Request)
		counts  bool
	}{
		"status":                        {"status 401 403", write(403), nil, true},
		"another status":                {"status 401 403", write(404), nil, false},
		"class":                         {"status 4xx", write(418), nil, true},
		"another class":                 {"status 4xx", write(503), nil, false},
		"nothing written":               {"status 2xx", none, nil, true},
		"nothing written, not matched":  {"status 401", none, nil, false},
		"error":                         {"status 401", fail(caddyhttp.Error(401, errors.New("no"))), nil, true},
		"another error":                 {"status 401", fail(caddyhttp.Error(502, errors.New("no"))), nil, false},
		"wrapped error":                 {"status 401", fail(fmt.Errorf("x: %w", caddyhttp.Error(401, errors.New("no")))), nil, true},
		"error without status":          {"status 500", fail(errors.New("plain")), nil, true},
		"plain error, not matched":      {"status 401", fail(errors.New("plain")), nil, false},
		"client that has gone":          {"status 401", fail(caddyhttp.Error(499, errors.New("gone"))), nil, true},
		"client that has gone, written": {"status 401", write(499), nil, true},
		"cancelled":                     {"status 401", write(200), cancelled, true},
		"cancelled, error":              {"status 401", fail(caddyhttp.Error(502, errors.New("no"))), cancelled, true},
		"cancelled, nothing written":    {"status 401", none, cancelled, true},
		"body that breaks off":          {"status 401", readBody(502), broken, true},
		"body that does not":            {"status 401", readBody(502), complete, false},
		"body that is not read":         {"status 401", write(502), broken, false},
		"panic":                         {"status 401", func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }, nil, true},
		"panic after the header":        {"status 401", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(200); panic(http.ErrAbortHandler) }, nil, false},
		"error after the header": {"status 401", func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(200)
			return caddyhttp.Error(401, nil)
		}, nil, false},
		"error after the header counts": {"status 401", func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(401)
			return caddyhttp.Error(500, nil)
		}, nil, true},
		"early hints":              {"status 401", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(103); w.WriteHeader(401); return nil }, nil, true},
		"early hints, not matched": {"status 401", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(103); w.WriteHeader(200); return nil }, nil, false},
		"header":                   {"header X-Login failed", func(w http.ResponseWriter, _ *http.Request) error { w.Header().Set("X-Login", "failed"); return nil }, nil, true},
		"another value":            {"header X-Login failed", func(w http.ResponseWriter, _ *http.Request) error { w.Header().Set("X-Login", "ok"); return nil }, nil, false},
		"no header":                {"header X-Login failed", none, nil, false},
		"both":                     {"{\nstatus 302\nheader Location *failed*\n}", redirect("/login?failed"), nil, true},
		"one of both":              {"{\nstatus 302\nheader Location *failed*\n}", redirect("/home"), nil, false},
		"second of two":            {"status 401\ncount_if header X-Login failed", func(w http.ResponseWriter, _ *http.Request) error { w.Header().Set("X-Login", "failed"); return nil }, nil, true},
		"header of an error": {"header X-Login failed", func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("X-Login", "failed")
			return caddyhttp.Error(401, nil)
		}, nil, true},
		"copied source without anything": {"status 401", func(w http.ResponseWriter, _ *http.Request) error {
			io.Copy(w, strings.NewReader(""))
			w.WriteHeader(401)
			return nil
		}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			invite(t, "play", act(func(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error { return row.play(w, r) }))
			e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h z {
		count_if `+row.countIf+`
	}
	stage play
}`)
			change := row.change
			if change == nil {
				change = func(*http.Request) {}
			}
			func() {
				defer func() { _ = recover() }()
				e.get(alice, "http://a.test/", change)
			}()
			again := http.StatusTooManyRequests
			func() {
				defer func() { _ = recover() }()
				again = 0 // a panic is no refusal
				again = e.get(alice, "http://a.test/").StatusCode
			}()
			if refused := again == http.StatusTooManyRequests; refused != row.counts {
				t.Errorf("the next request got status %d; want it refused: %v", again, row.counts)
			}
		})
	}
}

// A backend that is down counts against nobody; one that breaks down does, and so does
// an error that is not the proxy's.
func TestABackendThatIsDownBansNobody(t *testing.T) {
	breaks := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer breaks.Close()
	handles := ""
	for _, h := range [][2]string{
		{"/gone", "reverse_proxy " + freeAddress(t)},
		{"/down", "reverse_proxy " + freeAddress(t) + " {\nfail_duration 1h\n}"},
		{"/php", "reverse_proxy " + freeAddress(t) + " {\ntransport fastcgi\n}"},
		{"/breaks", "reverse_proxy " + breaks.Listener.Addr().String()},
		{"/error", "error 503"},
		{"/refused", "error 401"},
	} {
		handles += "handle " + h[0] + " {\n" + h[1] + "\n}\n"
	}
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h z {
		key {path}
		count_if status 4xx 5xx
		block_for 10m
	}
	`+handles+`
}`)
	for path, want := range map[string][3]int{
		"/gone":    {502, 502, 502},
		"/down":    {502, 503, 503},
		"/php":     {502, 502, 502},
		"/breaks":  {502, 429, 429},
		"/error":   {503, 429, 429},
		"/refused": {401, 429, 429},
	} {
		for i, status := range want {
			if a := e.get(alice, "http://a.test"+path); a.StatusCode != status {
				t.Errorf("%s, request %d: status %d, want %d", path, i, a.StatusCode, status)
			}
		}
	}
	e.sample("settled_requests_total", "given_back z", 9)
}

func redirect(to string) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
		return nil
	}
}

// A connection that is taken over counts with 101, whether or not the status was
// written before.
func TestUpgradesCountWith101(t *testing.T) {
	for _, written := range []bool{false, true} {
		invite(t, "upgrade", act(func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
			if written {
				w.Header().Set("Connection", "Upgrade")
				w.Header().Set("Upgrade", "echo")
				w.WriteHeader(http.StatusSwitchingProtocols)
			}
			conn, stream, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return err
			}
			defer conn.Close()
			if !written {
				io.WriteString(stream, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			}
			return stream.Flush()
		}))
		for countIf, want := range map[string]int{"101": http.StatusTooManyRequests, "401": http.StatusSwitchingProtocols} {
			e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h z`+countIf+fmt.Sprint(written)+` {
		count_if status `+countIf+`
	}
	stage upgrade
}`)
			var last int
			for range 2 {
				conn, err := net.Dial("tcp", e.ports["80"])
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
				last = response.StatusCode
			}
			if last != want {
				t.Errorf("written %v, count_if status %s: the second upgrade got status %d, want %d", written, countIf, last, want)
			}
		}
	}
}

// While requests are pending their units are taken, and they come back.
func TestPendingRequestsTakeUnits(t *testing.T) {
	var inside sync.WaitGroup
	goOn := make(chan struct{})
	invite(t, "wait", act(func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
		inside.Done()
		<-goOn
		w.WriteHeader(http.StatusOK)
		return nil
	}))
	e := start(t, `
http://a.test {
	distributed_ratelimit 5 1h z {
		count_if status 401
	}
	stage wait
}`)
	server := e.server("80")
	inside.Add(5)
	var done sync.WaitGroup
	for range 5 {
		done.Go(func() { e.sendTo(server, alice, http.MethodGet, "http://a.test/") })
	}
	inside.Wait()
	e.refused(alice, "http://a.test/")
	close(goOn)
	done.Wait()
	inside.Add(5)
	e.granted(5, alice, "http://a.test/")
}

// A request that a later handler refuses has the response 429, which is judged
// like any other: a limit behind the work does not undo a charge for it, unless
// it hides the response that would have counted.
func TestResponsesOfLaterHandlers(t *testing.T) {
	for name, row := range map[string]struct {
		countIf, behind, errors string
		counts                  bool
	}{
		"a later limit refuses":           {"status 401", "distributed_ratelimit 0 1h second", "", false},
		"it refuses as an error":          {"status 401", "distributed_ratelimit 0 1h second", "handle_errors {\nrespond \"no\" 401\n}", false},
		"its refusals count":              {"status 401 429", "distributed_ratelimit 0 1h second", "", true},
		"its refusals count as an error":  {"status 401 429", "distributed_ratelimit 0 1h second", "handle_errors {\nrespond \"no\" 200\n}", true},
		"the error routes refuse":         {"status 401", "error 401", "handle_errors {\ndistributed_ratelimit 0 1h second\n}", true},
		"the error routes make it a 200":  {"status 401", "error 401", "handle_errors {\nrespond \"no\" 200\n}", true},
		"the error routes make it a 401":  {"status 401", "error 404", "handle_errors {\nrespond \"no\" 401\n}", false},
		"the same limit is met twice":     {"status 401", "distributed_ratelimit 1 1h z {\ncount_if status 403\n}\nrespond 401", "", true},
		"the same limit, other responses": {"status 401", "distributed_ratelimit 1 1h z {\ncount_if status 403\n}\nrespond 403", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 1 1h z {
			count_if `+row.countIf+`
		}
		`+row.behind+`
	}
	`+row.errors+`
}
http://z.test {
	distributed_ratelimit 1 1h z {
		count_if status 401
	}
}`)
			e.get(alice, "http://a.test/")
			if refused := e.get(alice, "http://z.test/").StatusCode == http.StatusTooManyRequests; refused != row.counts {
				t.Errorf("counted: %v, want %v", refused, row.counts)
			}
		})
	}
}

// What an error gave back does not stand for a guess that an error route lets through:
// a client that makes the first backend fail would guess at the second for nothing.
func TestErrorRoutesChargeAnewWhatCameBack(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 2 1h z {
		count_if status 401
	}
	error 502
	handle_errors 502 {
		distributed_ratelimit 2 1h z {
			count_if status 401
		}
		respond 401
	}
}`)
	for range 2 {
		e.status(http.StatusUnauthorized, alice, "http://a.test/")
	}
	e.refused(alice, "http://a.test/")
	e.sample("settled_requests_total", "given_back z", 2)
	e.sample("settled_requests_total", "counted z", 2)
}

// Two handlers settle each its own.
func TestTwoHandlersSettleEachItsOwn(t *testing.T) {
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 1 1h outer {
			count_if status 401
		}
		distributed_ratelimit 1 1h inner {
			count_if status 403
		}
		respond "text" {query.s}
	}
}`)
	for range 3 {
		e.status(http.StatusOK, alice, "http://a.test/?s=200")
	}
	e.status(http.StatusForbidden, alice, "http://a.test/?s=403")
	e.refused(alice, "http://a.test/?s=200")
	e.status(http.StatusUnauthorized, bob, "http://a.test/?s=401")
	e.refused(bob, "http://a.test/?s=200")
}

// What headers and placeholders tell of a zone includes what came back.
func TestRemainingIncludesWhatCameBack(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 5 1h z {
		count_if status 401
		ratelimit_headers always
	}
	respond "text" {query.s}
}`)
	for _, row := range []struct{ status, remaining string }{{"200", "5"}, {"401", "4"}, {"200", "4"}} {
		a := e.get(alice, "http://a.test/?s="+row.status)
		if got := a.Header.Get("RateLimit"); !strings.HasPrefix(got, `"z";r=`+row.remaining+";") {
			t.Errorf("status %s: header RateLimit %q, want %s remaining", row.status, got, row.remaining)
		}
	}
}

// A dry run gives back what it charged in its own log.
func TestDryRunSettles(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h z {
		count_if status 401
		dry_run
	}
	respond "text" {query.s}
}`)
	e.granted(5, alice, "http://a.test/?s=200")
	e.status(http.StatusUnauthorized, alice, "http://a.test/?s=401")
	e.granted(1, alice, "http://a.test/?s=200")
	e.sample("requests_total", "dry_run store z", 1)
}

// A request that is in the next handler while the configuration changes is settled
// all the same.
func TestRequestsAreSettledAfterAReload(t *testing.T) {
	inside, goOn := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	invite(t, "wait", act(func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
		if !first.Swap(true) {
			inside <- struct{}{}
			<-goOn
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}))
	config := func(body string) string {
		return `
http://a.test {
	distributed_ratelimit 1 1h z {
		count_if status 401
	}
	stage wait
}
http://other.test {
	respond ` + body + `
}`
	}
	e := start(t, config("one"))
	server := e.server("80")
	var done sync.WaitGroup
	done.Go(func() { e.sendTo(server, alice, http.MethodGet, "http://a.test/") })
	<-inside
	e.reload(config("two"))
	e.refused(alice, "http://a.test/")
	close(goOn)
	done.Wait()
	e.granted(1, alice, "http://a.test/")
}

// Whoever hangs up before the answer has guessed all the same, over every version
// of HTTP, and also in the middle of the request's body.
func TestClientsThatHangUpGetNothingBack(t *testing.T) {
	arrived, left := make(chan struct{}, 1), make(chan struct{}, 1)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/slow" {
			return
		}
		// As a decoder of JSON does, this one acts before the end of the body.
		io.ReadFull(r.Body, make([]byte, 5))
		arrived <- struct{}{}
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			<-r.Context().Done()
		}
		left <- struct{}{}
	}))
	defer upstream.Close()
	front := `
	distributed_ratelimit 1 1h z {
		key {http.request.header.User}
		count_if status 401
	}
	reverse_proxy ` + upstream.Listener.Addr().String() + ` {
		flush_interval -1
	}`
	e, urls := secure(t, front)
	gones := func() float64 { return e.series("settled_requests_total")["client_gone z"] }
	next := func(client http.RoundTripper, user string) int {
		r, err := http.NewRequest(http.MethodGet, urls[0]+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "localhost"
		r.Header.Set("User", user)
		a, err := client.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		return a.StatusCode
	}
	for major, client := range versions(t) {
		for _, whole := range []bool{true, false} {
			user, before := fmt.Sprint(major, whole), gones()
			if got := next(client, user); got != http.StatusOK {
				t.Fatalf("HTTP/%d: a request got status %d, want 200", major, got)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var body io.Reader = strings.NewReader("guess")
			if !whole {
				body = io.MultiReader(body, waiting{ctx})
			}
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, urls[0]+"/slow", body)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = "localhost"
			r.Header.Set("User", user)
			gone := make(chan struct{})
			go func() {
				if a, err := client.RoundTrip(r); err == nil {
					a.Body.Close()
				}
				close(gone)
			}()
			<-arrived
			cancel()
			<-gone
			<-left
			eventually(t, func() bool { return gones() > before })
			if got := next(client, user); got != http.StatusTooManyRequests {
				t.Errorf("HTTP/%d, whole body %v: after a client that hung up a request got status %d, want 429", major, whole, got)
			}
		}
	}
}

// waiting is a source that gives nothing until the request is cancelled.
type waiting struct{ context.Context }

func (w waiting) Read([]byte) (int, error) {
	<-w.Done()
	return 0, w.Err()
}

// The store hears of it before the header goes out, and no layer decides in its
// place: the client's next request may come to another instance.
func TestSettledBeforeTheHeader(t *testing.T) {
	r := newRig(t, "settling")
	r.hangs(50 * time.Millisecond)
	goOn := make(chan struct{})
	invite(t, "stream", act(func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
		if err := http.NewResponseController(w).Flush(); err != nil {
			return err
		}
		<-goOn
		return nil
	}))
	e := start(t, `
http://a.test {
	distributed_ratelimit 1000 1h z {
		count_if status 401
		store rig settling
		budget 5s
	}
	stage stream
}`)
	request, err := http.NewRequest(http.MethodGet, "http://"+e.ports["80"]+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "a.test"
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	if refunds := r.refunded(); len(refunds) != 1 || refunds[0].Units != 1 {
		t.Errorf("when the header arrived the store had heard of %+v, want a refund of one unit", refunds)
	}
	if requests := r.requested(); len(requests) != 1 || !requests[0].Exact {
		t.Errorf("requests %+v, want one that is exact", requests)
	}
	close(goOn)
	response.Body.Close()
	if refunds := r.refunded(); len(refunds) != 1 {
		t.Errorf("after the response: %+v, want the one refund", refunds)
	}
}

// All units of a request come back, also those of a zone that is decided when the
// request's body has been read.
func TestCostsAndBodiesAreSettled(t *testing.T) {
	loginStage(t, "login")
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone account {
			key {form.user}
			events 6
			window 1h
			cost 3
			count_if status 401
		}
		zone all {
			key all
			events 1000
			window 1h
		}
	}
	stage login
}`)
	login := func(password string) int {
		return e.send(alice, http.MethodPost, "http://a.test/", with("Password", password), func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("user=alice")), 10
		}).StatusCode
	}
	for _, row := range []struct {
		password string
		want     int
	}{{"right", 200}, {"right", 200}, {"right", 200}, {"wrong", 401}, {"right", 200}, {"wrong", 401}, {"right", 429}} {
		if got := login(row.password); got != row.want {
			t.Errorf("%s password: got status %d, want %d", row.password, got, row.want)
		}
	}
}
