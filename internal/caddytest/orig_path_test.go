package caddytest

import (
	"net/http"
	"testing"
)

// The path that a client asked for can be matched where it has been rewritten, also
// by name, in not, and in another handler's matchers.
func TestOrigPath(t *testing.T) {
	e := start(t, `
http://a.test {
	handle_path /api/* {
		@login orig_path /api/login*
		distributed_ratelimit {
			zone login {
				match @login
				events 1
				window 1h
			}
			zone other {
				match not orig_path /api/login* /api/free
				events 2
				window 1h
			}
			zone changed {
				match path /login
				events 1000
				window 1h
			}
			zone never {
				match orig_path /login
				events 0
				window 1h
			}
		}
		respond "{path}"
	}
	handle {
		rewrite * /login
		distributed_ratelimit 1 1h unchanged {
			match orig_path /a%2Fb
		}
		respond "{path}"
	}
}`)
	e.body("/login", "192.0.2.1", "http://a.test/api/login")
	e.refused("192.0.2.1", "http://a.test/api/login")
	for _, spelling := range []string{"/api/LOGIN", "/api//login", "/api/./login", "/api/x/../login", "/api/%6Cogin", "/api/login?x"} {
		if a := e.get("192.0.2.1", "http://a.test"+spelling); a.StatusCode != http.StatusTooManyRequests {
			t.Errorf("%s: got status %d, want 429", spelling, a.StatusCode)
		}
	}
	e.granted(2, "192.0.2.1", "http://a.test/api/more")
	e.refused("192.0.2.1", "http://a.test/api/more")
	e.granted(3, "192.0.2.1", "http://a.test/api/free")
	e.sample("requests_total", "granted store changed", 1)

	e.body("/login", "192.0.2.1", "http://a.test/x")
	e.granted(1, "192.0.2.1", "http://a.test/a%2Fb")
	e.refused("192.0.2.1", "http://a.test/a%2Fb")
	e.granted(1, "192.0.2.1", "http://a.test/a/b")
}
