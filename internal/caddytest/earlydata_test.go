package caddytest

import (
	"crypto/tls"
	"net/http"
	"testing"
)

// arrives sets how far the connection of a request was when it came.
func arrives(major int, handshakeComplete bool) func(*http.Request) {
	return func(r *http.Request) {
		r.ProtoMajor, r.ProtoMinor = major, 0
		r.Proto = map[int]string{1: "HTTP/1.0", 2: "HTTP/2.0", 3: "HTTP/3.0"}[major]
		r.TLS = &tls.ConnectionState{HandshakeComplete: handshakeComplete}
	}
}

// HTTP/3 early data comes in packets whose source address anyone can write:
// it must not be counted for an address before that is verified.
func TestEarlyDataIsNotCountedForAnAddress(t *testing.T) {
	const early = http.StatusTooEarly
	for name, row := range map[string]struct {
		options string
		want    int
	}{
		"address":                  {"", early},
		"address in the key":       {"key {header.X-User}|{client_ip}", early},
		"peer":                     {"key {remote_host}", early},
		"network of the peer":      {"key {http.request.remote.host/24}\non_empty_key skip", early},
		"header or address":        {"key {header.X-User}", early},
		"header or nothing":        {"key {header.X-User}\non_empty_key skip", http.StatusOK},
		"header or denied":         {"key {header.X-User}\non_empty_key deny", http.StatusOK},
		"everybody":                {"key everybody", http.StatusOK},
		"exempt":                   {"exempt path /", http.StatusOK},
		"zone that does not match": {"match path /elsewhere", http.StatusOK},
		"dry run":                  {"dry_run", early},
		"zone of zero events":      {"", early},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "early")
			events := "5"
			if name == "zone of zero events" {
				events = "0"
			}
			e := start(t, `
http://a.test {
	distributed_ratelimit `+events+` 1h z {
		`+row.options+`
		store rig early
		budget 5s
	}
	respond "ok"
}`)
			user := with("X-User", "me")
			a := e.status(row.want, alice, "http://a.test/", user, arrives(3, false))
			if requests := r.requested(); row.want == early && len(requests) > 0 {
				t.Errorf("early data: got the requests %+v to the store, want no call", requests)
			}
			a.header(t, "Retry-After", "")
			if events == "0" {
				return
			}
			e.granted(1, alice, "http://a.test/", user, arrives(3, true))
			// On HTTP/1 and HTTP/2 an unfinished handshake has other reasons.
			e.granted(1, alice, "http://a.test/", user, arrives(2, false))
			e.granted(1, alice, "http://a.test/", user, arrives(1, false))
		})
	}
}

// What an earlier handler charged stays charged, and error routes see the
// status.
func TestEarlyDataInASecondHandler(t *testing.T) {
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 10 1h first {
			key all
		}
		distributed_ratelimit 10 1h second
		respond "ok"
	}
	handle_errors {
		respond "{err.status_code} {http.distributed_ratelimit.outcome}"
	}
}
http://first.test {
	distributed_ratelimit 10 1h first {
		key all
	}
	respond "{http.distributed_ratelimit.remaining}"
}`)
	for range 3 {
		if a := e.status(http.StatusTooEarly, alice, "http://a.test/", arrives(3, false)); a.body != "425 refused" {
			t.Errorf("early data: got body %q, want that of handle_errors", a.body)
		}
	}
	e.body("6", alice, "http://first.test/")
}
