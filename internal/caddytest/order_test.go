package caddytest

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Zones see what the client asked for, not what the site makes of it. With
// try_files, a limit on /login was never met: the path was /index.php.
func TestLimitsComeBeforeRewrites(t *testing.T) {
	for name, site := range map[string]string{
		"rewrite":     "rewrite /index.php\n\trespond ok",
		"try_files":   "try_files {path} /index.php\n\trespond ok",
		"php_fastcgi": "php_fastcgi 127.0.0.1:1",
		"method":      "method GET\n\trespond ok",
		"handle_path": "handle_path /log* {\n\t\trespond ok\n\t}",
		"redir":       "redir /old /login\n\trespond ok",
		"uri":         "uri strip_prefix /login\n\trespond ok",
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, `
http://a.test {
	root * `+t.TempDir()+`
	distributed_ratelimit {
		zone login {
			match {
				method POST
				path /login
			}
			events 2
			window 1h
		}
	}
	`+site+`
}`)
			var refused int
			for range 4 {
				if e.send(alice, http.MethodPost, "http://a.test/login").StatusCode == http.StatusTooManyRequests {
					refused++
				}
			}
			if refused != 2 {
				t.Errorf("four logins at a limit of 2: %d refused, want 2", refused)
			}
			// Redirections cost nothing: redir comes first.
			if name == "redir" {
				e.status(http.StatusFound, alice, "http://a.test/old")
			}
		})
	}
}

// A client that waits with its body until it is told to send it, or sends it
// slowly, hears of its refusal at once, also through handle_errors. The server
// would read the body first, to use the connection again.
func TestRefusalsComeBeforeTheBody(t *testing.T) {
	for name, routes := range map[string]string{
		"problem":       "",
		"handle_errors": "handle_errors {\n\t\trespond \"sorry\"\n\t}",
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, "http://a.test:8080 {\n\tdistributed_ratelimit 0 1h\n\t"+routes+"\n}")
			for _, head := range []string{"Expect: 100-continue\r\n", ""} {
				conn, err := net.Dial("tcp", e.ports["8080"])
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a.test\r\n%sContent-Length: 100000\r\n\r\n", head)
				if head == "" {
					fmt.Fprint(conn, "half of it")
				}
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatalf("%q: no response while the body is missing: %v", head, err)
				}
				if response.StatusCode != http.StatusTooManyRequests || !response.Close {
					t.Errorf("%q: got status %d, close %v, want 429 and the end of the connection", head, response.StatusCode, response.Close)
				}
			}
			// Without a body the connection goes on.
			r, _ := http.NewRequest(http.MethodGet, "http://"+e.ports["8080"]+"/", strings.NewReader(""))
			r.Host = "a.test"
			if a := e.dial(r); a.Close {
				t.Error("a refused request without a body ends the connection")
			}
		})
	}
}

// Where waiting does not help, no retry is promised.
func TestNoRetryWhereWaitingDoesNotHelp(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone closed {
			match path /closed
			events 0
			window 1h
		}
		zone open {
			events 1
			window 1h
		}
		ratelimit_headers draft legacy
	}
	respond "ok"
	handle_errors {
		respond "{http.distributed_ratelimit.zone} [{http.distributed_ratelimit.retry_after}]"
	}
}
http://b.test {
	distributed_ratelimit 5 1h b {
		key {http.vars.user}
		on_empty_key deny
	}
	handle_errors {
		respond "[{http.distributed_ratelimit.retry_after}]"
	}
}`)
	a := e.refused(alice, "http://a.test/closed")
	a.header(t, "Retry-After", "")
	a.header(t, "Ratelimit", `"closed";r=0`)
	a.header(t, "X-Ratelimit-Reset", "")
	if a.body != "closed []" {
		t.Errorf("got body %q, want closed and no retry_after", a.body)
	}
	if b := e.status(http.StatusForbidden, alice, "http://b.test/"); b.body != "[]" || b.Header.Get("Retry-After") != "" {
		t.Errorf("an empty key: got body %q, Retry-After %q, want none", b.body, b.Header.Get("Retry-After"))
	}
	e.granted(1, alice, "http://a.test/")
	e.refused(alice, "http://a.test/").waits(t, 3500, 3600)
}
