package caddytest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func TestHeaderStyles(t *testing.T) {
	const draft, legacy, both, none = "d", "l", "dl", ""
	for _, row := range []struct{ words, granted, refused string }{
		{"", none, draft},
		{"ratelimit_headers draft", none, draft},
		{"ratelimit_headers refused", none, draft},
		{"ratelimit_headers always", draft, draft},
		{"ratelimit_headers legacy", none, legacy},
		{"ratelimit_headers legacy always", legacy, legacy},
		{"ratelimit_headers draft legacy refused", none, both},
		{"ratelimit_headers always legacy draft", both, both},
		{"ratelimit_headers off", none, none},
	} {
		t.Run(row.words, func(t *testing.T) {
			e := start(t, `
http://a.test {
	distributed_ratelimit 2 1h x {
		`+row.words+`
	}
	respond "hello"
}`)
			expect := func(a reply, style, remaining string) {
				t.Helper()
				draft, legacy := strings.Contains(style, "d"), strings.Contains(style, "l")
				if got := hour(a.Header.Get("RateLimit")); (got != "") != draft || draft && got != `"x";r=`+remaining+`;t=HOUR` {
					t.Errorf("status %d: header RateLimit %q with %q remaining", a.StatusCode, got, remaining)
				}
				if got := a.Header.Get("RateLimit-Policy"); (got != "") != draft || draft && got != `"x";q=2;w=3600` {
					t.Errorf("status %d: header RateLimit-Policy %q", a.StatusCode, got)
				}
				got := hour(a.Header.Get("X-RateLimit-Limit") + "/" + a.Header.Get("X-RateLimit-Remaining") + "/" + a.Header.Get("X-RateLimit-Reset"))
				if want := "2/" + remaining + "/HOUR"; legacy && got != want || !legacy && got != "//" {
					t.Errorf("status %d: headers X-RateLimit-*: got %q, want %q: %v", a.StatusCode, got, want, legacy)
				}
			}
			expect(e.get(alice, "http://a.test/"), row.granted, "1")
			expect(e.get(alice, "http://a.test/"), row.granted, "0")
			expect(e.refused(alice, "http://a.test/"), row.refused, "0")
		})
	}
}

// With several zones, the one legacy triple tells of the zone nearest to its
// limit.
func TestLegacyHeadersTellOfTheTightestZone(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone wide {
			events 100
			window 1h
		}
		zone tight {
			events 4
			window 1h
		}
		zone trial {
			events 1
			window 1h
			dry_run
		}
		ratelimit_headers legacy draft always
	}
	respond "hello"
}`)
	e.granted(1, alice, "http://a.test/")
	a := e.get(alice, "http://a.test/")
	a.header(t, "X-RateLimit-Limit", "4")
	a.header(t, "X-RateLimit-Remaining", "2")
	a.header(t, "RateLimit-Policy", `"wide";q=100;w=3600, "tight";q=4;w=3600`)
}

// What the upstream has set itself is not replaced, per style; and several
// handlers that a request passes tell of all their zones, once.
func TestHeadersOfTheUpstreamStay(t *testing.T) {
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 10 1h one {
			ratelimit_headers draft legacy always
		}
		distributed_ratelimit 20 1h two {
			ratelimit_headers always
		}
		header /draft RateLimit upstream
		header /legacy X-RateLimit-Reset upstream
		respond "hello"
	}
}`)
	a := e.get(alice, "http://a.test/draft")
	a.header(t, "RateLimit", "upstream")
	a.header(t, "RateLimit-Policy", "")
	a.header(t, "X-RateLimit-Limit", "10")

	a = e.get(alice, "http://a.test/legacy")
	a.header(t, "X-RateLimit-Reset", "upstream")
	a.header(t, "X-RateLimit-Limit", "")
	a.header(t, "RateLimit-Policy", `"one";q=10;w=3600, "two";q=20;w=3600`)
	if got := hour(a.Header.Get("RateLimit")); got != `"one";r=8;t=HOUR, "two";r=18;t=HOUR` {
		t.Errorf("header RateLimit: got %q", got)
	}
}

// The headers of a request that a later handler refuses tell of that refusal
// alone.
func TestHeadersOfARefusalByASecondHandler(t *testing.T) {
	for name, row := range map[string]struct{ options, errors, policy, limit string }{
		"written":        {"ratelimit_headers draft", "", `"two";q=0;w=3600`, `"two";r=0`},
		"as an error":    {"ratelimit_headers draft", "handle_errors {\n respond \"sorry\"\n}", `"two";q=0;w=3600`, `"two";r=0`},
		"off":            {"ratelimit_headers off", "", "", ""},
		"off, an error":  {"ratelimit_headers off", "handle_errors {\n respond \"sorry\"\n}", "", ""},
		"another style":  {"ratelimit_headers legacy", "", "", ""},
		"two announcing": {"ratelimit_headers always", "", `"two";q=0;w=3600`, `"two";r=0`},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 10 1h one {
			ratelimit_headers always
		}
		distributed_ratelimit 0 1h two {
			`+row.options+`
		}
	}
	`+row.errors+`
}`)
			a := e.refused(alice, "http://a.test/")
			a.header(t, "RateLimit-Policy", row.policy)
			a.header(t, "RateLimit", row.limit)
		})
	}
}

// stage runs a function behind a handler that sends headers always, on a real
// connection.
func stage(t *testing.T, play act) (e *edge, get func() (reply, error)) {
	t.Helper()
	invite(t, "stage of "+t.Name(), play)
	e = start(t, `
http://a.test {
	distributed_ratelimit 10 1h x {
		ratelimit_headers always
	}
	stage "stage of `+t.Name()+`"
}`)
	return e, func() (reply, error) {
		r, err := http.NewRequest(http.MethodGet, "http://"+e.ports["80"]+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "a.test"
		response, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			return reply{}, err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return reply{response, string(body)}, err
	}
}

func TestHeadersAlwaysThroughWriters(t *testing.T) {
	const policy = `"x";q=10;w=3600`
	for name, play := range map[string]act{
		"Write": func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
			_, err := io.WriteString(w, "body")
			return err
		},
		"WriteHeader": func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
			w.WriteHeader(http.StatusOK)
			_, err := io.WriteString(w, "body")
			return err
		},
		"early hints first": func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
			w.WriteHeader(http.StatusEarlyHints)
			_, err := io.WriteString(w, "body")
			return err
		},
		"ReadFrom": func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
			_, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("body"))
			return err
		},
		"Copy": func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
			_, err := io.Copy(w, strings.NewReader("body"))
			return err
		},
		"Flush before Write": func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
			if err := http.NewResponseController(w).Flush(); err != nil {
				return err
			}
			_, err := io.WriteString(w, "body")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, get := stage(t, play)
			a, err := get()
			if err != nil || a.StatusCode != http.StatusOK || a.body != "body" {
				t.Fatalf("got %v %q, error %v, want status 200 and the body", a.Response, a.body, err)
			}
			a.header(t, "RateLimit-Policy", policy)
		})
	}

	// What counts is what the upstream has set by the final response.
	t.Run("headers of the upstream after early hints", func(t *testing.T) {
		_, get := stage(t, func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Set("RateLimit", "upstream's")
			_, err := io.WriteString(w, "body")
			return err
		})
		a, err := get()
		if err != nil {
			t.Fatal(err)
		}
		a.header(t, "RateLimit", "upstream's")
		a.header(t, "RateLimit-Policy", "")
	})

	t.Run("nothing written", func(t *testing.T) {
		_, get := stage(t, func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error { return nil })
		a, err := get()
		if err != nil {
			t.Fatal(err)
		}
		a.header(t, "RateLimit-Policy", policy)
	})

	t.Run("error from next", func(t *testing.T) {
		_, get := stage(t, func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error {
			return caddyhttp.Error(http.StatusBadGateway, errors.New("the upstream is away"))
		})
		a, err := get()
		if err != nil || a.StatusCode != http.StatusBadGateway {
			t.Fatalf("got %v, error %v, want status 502", a.Response, err)
		}
		a.header(t, "RateLimit-Policy", policy)
	})
}

// A stream reaches the client piece by piece.
func TestStreamsAreNotHeldBack(t *testing.T) {
	goOn := make(chan struct{})
	e, _ := stage(t, func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
		io.WriteString(w, "one")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Errorf("Flush: %v", err)
		}
		<-goOn
		_, err := io.WriteString(w, "two")
		return err
	})
	r, err := http.NewRequest(http.MethodGet, "http://"+e.ports["80"]+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "a.test"
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	first := make([]byte, 3)
	if _, err := io.ReadFull(response.Body, first); err != nil || string(first) != "one" {
		t.Errorf("reading before the second piece is written: got %q, %v", first, err)
	}
	close(goOn)
	if rest, err := io.ReadAll(response.Body); err != nil || string(rest) != "two" {
		t.Errorf("reading the rest: got %q, %v", rest, err)
	}
}

// A connection can be taken over, as a proxied WebSocket does.
func TestConnectionsCanBeTakenOver(t *testing.T) {
	e, _ := stage(t, func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
		w.Header().Set("Upgrade", "echo")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, stream, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("Hijack: %v", err)
			return err
		}
		defer conn.Close()
		line, _ := stream.ReadString('\n')
		stream.WriteString("echo " + line)
		return stream.Flush()
	})
	conn, err := net.Dial("tcp", e.ports["80"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrading: got %v, %v, want status 101", response, err)
	}
	reply{Response: response}.header(t, "RateLimit-Policy", `"x";q=10;w=3600`)
	io.WriteString(conn, "hello\n")
	if line, err := reader.ReadString('\n'); line != "echo hello\n" {
		t.Errorf("through the connection: got %q, %v", line, err)
	}
}
