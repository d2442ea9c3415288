package caddytest

import (
	"errors"
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// match and exempt given several times: any of them counts; within one block,
// all of its matchers.
func TestMatchAndExemptMeanAnyOf(t *testing.T) {
	e := start(t, `
http://a.test {
	@get method GET
	distributed_ratelimit {
		zone z {
			match path /one
			match {
				path /two
				method POST
			}
			match @named
			exempt header X-Internal yes
			exempt {
				path /one
				query free=1
			}
			events 0
			window 1h
		}
	}
	@named path /three
	respond "{http.distributed_ratelimit.outcome}/{http.distributed_ratelimit.zone}"
}`)
	e.refused(alice, "http://a.test/one")
	e.refused(alice, "http://a.test/three")
	e.body("/", alice, "http://a.test/two")
	if a := e.send(alice, http.MethodPost, "http://a.test/two"); a.StatusCode != 429 {
		t.Errorf("POST /two: got status %d, want 429", a.StatusCode)
	}
	e.body("/", alice, "http://a.test/four")
	e.body("exempt/z", alice, "http://a.test/one", with("X-Internal", "yes"))
	e.body("exempt/z", alice, "http://a.test/one?free=1")
	e.refused(alice, "http://a.test/three?free=1")
	// What the zone does not apply to is not exempt from it either.
	e.body("/", alice, "http://a.test/four", with("X-Internal", "yes"))
}

func TestExemptRequestsAreNotCounted(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone z {
			exempt path /free
			events 3
			window 1h
		}
	}
	respond "ok"
}`)
	e.granted(20, alice, "http://a.test/free")
	e.granted(3, alice, "http://a.test/")
	e.refused(alice, "http://a.test/")
	e.granted(1, alice, "http://a.test/free")
	e.sample("requests_total", "exempt policy z", 21)
}

// A limit that is skipped because something fails is none: the error is
// returned, and what was charged before stays charged.
func TestMatcherErrorsAreReturned(t *testing.T) {
	for _, word := range []string{"match", "exempt"} {
		t.Run(word, func(t *testing.T) {
			e := start(t, `
http://a.test {
	distributed_ratelimit 10 1h before
	handle {
		distributed_ratelimit {
			zone z {
				`+word+` broken
				events 10
				window 1h
			}
		}
		respond "ok"
	}
}
http://before.test {
	distributed_ratelimit 10 1h before
	respond "{http.distributed_ratelimit.remaining}"
}`)
			for range 5 {
				e.status(http.StatusTeapot, alice, "http://a.test/")
			}
			e.body("4", alice, "http://before.test/")
		})
	}
}

// The first of the sets that matches decides, as in Caddy: what stands after
// it does not run.
func TestMatcherErrorsAfterAMatchDoNotMatter(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone z {
			match path /
			match broken
			events 0
			window 1h
		}
	}
}`)
	e.refused(alice, "http://a.test/")
	e.status(http.StatusTeapot, alice, "http://a.test/elsewhere")
}

// While matchers of zones run, client_ip is what the handler has decided; for
// everyone else the server's variable stays as it was, also after an error.
func TestClientIPVariableIsBorrowed(t *testing.T) {
	const server = `
{
	servers {
		trusted_proxies static 10.0.0.0/8
	}
}
http://a.test {
	route {
		stage note
		distributed_ratelimit {
			zone z {
				match vars {client_ip} 203.0.113.9
				events 2
				window 1h
			}
			zone broken {
				match broken /broken
				events 9
				window 1h
			}
		}
		stage note
		respond "{http.distributed_ratelimit.outcome}"
	}
}`
	var noted []any
	invite(t, "note", act(func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		noted = append(noted, caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey))
		err := next.ServeHTTP(w, r)
		noted = append(noted, caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey))
		return err
	}))
	e := start(t, server)
	// The server, which is not strict, takes the forged address on the left.
	forged := with("X-Forwarded-For", "192.168.0.1, 203.0.113.9")
	e.body("granted", "10.0.0.1", "http://a.test/", forged)
	e.status(http.StatusTeapot, "10.0.0.1", "http://a.test/broken", forged)
	for i, v := range noted {
		if v != "192.168.0.1" {
			t.Errorf("variable client_ip, note %d: got %v, want the server's 192.168.0.1", i, v)
		}
	}
	if len(noted) != 6 {
		t.Errorf("notes: got %d, want 6", len(noted))
	}
}

func TestErrorFromNextIsReturned(t *testing.T) {
	invite(t, "fails", act(func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error {
		return caddyhttp.Error(http.StatusBadGateway, errors.New("the upstream is away"))
	}))
	e := start(t, `
http://a.test {
	distributed_ratelimit 2 1h
	stage fails
}`)
	for range 2 {
		e.status(http.StatusBadGateway, alice, "http://a.test/")
	}
	e.refused(alice, "http://a.test/")
}
