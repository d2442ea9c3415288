package caddytest

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
)

// A request is charged to all the zones that match, or to none.
func TestAllZonesOrNone(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone each {
			events 10
			window 1h
		}
		zone all {
			key all
			events 3
			window 1h
		}
	}
	respond "ok"
}
http://each.test {
	distributed_ratelimit 10 1h each
	respond "{http.distributed_ratelimit.remaining}"
}`)
	e.granted(3, alice, "http://a.test/")
	for range 20 {
		e.refused(alice, "http://a.test/")
		e.refused(bob, "http://a.test/")
	}
	e.body("6", alice, "http://each.test/")
	e.body("9", bob, "http://each.test/")
}

// Handlers decide one after another: what one has charged stays charged when a
// later one refuses.
func TestWhatAHandlerChargesStays(t *testing.T) {
	for _, refusal := range []string{"problem", "error"} {
		t.Run(refusal, func(t *testing.T) {
			e := start(t, `
http://a.test {
	distributed_ratelimit 10 1h first
	handle {
		distributed_ratelimit 20 1h second
		distributed_ratelimit 2 1h third {
			refusal `+refusal+`
		}
		respond "ok"
	}
	handle_errors {
		respond "sorry"
	}
}
http://first.test {
	distributed_ratelimit 10 1h first
	respond "{http.distributed_ratelimit.remaining}"
}
http://second.test {
	distributed_ratelimit 20 1h second
	respond "{http.distributed_ratelimit.remaining}"
}`)
			e.granted(2, alice, "http://a.test/")
			for range 3 {
				e.refused(alice, "http://a.test/")
			}
			e.body("4", alice, "http://first.test/")
			e.body("14", alice, "http://second.test/")
		})
	}
}

// A refused request is charged nowhere else: a limit in the error routes is for
// other failures, such as wrong passwords.
func TestRefusalsAreNotChargedInErrorRoutes(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 2 1h requests
	error 401
	handle_errors {
		distributed_ratelimit 4 1h failures
		respond "{err.status_code} {http.distributed_ratelimit.zone}"
	}
}
http://failures.test {
	distributed_ratelimit 4 1h failures
	respond "{http.distributed_ratelimit.remaining}"
}`)
	for range 2 {
		if a := e.get(alice, "http://a.test/"); a.body != "401 requests" && a.body != "401 failures" {
			t.Errorf("a request that fails: got body %q", a.body)
		}
	}
	for range 20 {
		if a := e.refused(alice, "http://a.test/"); a.body != "429 requests" {
			t.Fatalf("a refused request: got body %q, want the error route's, about the zone that refused", a.body)
		}
	}
	e.body("1", alice, "http://failures.test/")
}

// A limit that a request meets twice counts it once, in one store; in error
// routes too.
func TestZoneMetTwiceCountsOnce(t *testing.T) {
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 4 1h shared
		distributed_ratelimit {
			zone shared {
				events 4
				window 1h
			}
			zone more {
				events 10
				window 1h
			}
		}
		error /fails 502
		respond "ok"
	}
	handle_errors 502 {
		distributed_ratelimit 4 1h shared
		respond "{http.distributed_ratelimit.remaining}"
	}
}`)
	e.granted(2, alice, "http://a.test/")
	if a := e.get(alice, "http://a.test/fails"); a.StatusCode != http.StatusBadGateway || a.body != "1" {
		t.Errorf("after an error: got status %d, body %q, want 502 and 1 remaining of shared", a.StatusCode, a.body)
	}
	e.granted(1, alice, "http://a.test/")
	e.refused(alice, "http://a.test/")
}

// A refused request costs nothing: six clients of two each share a total of
// ten, one after another, each hammering.
func TestRefusedRequestsAreFree(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone total {
			key total
			events 10
			window 1h
		}
		zone client {
			events 2
			window 1h
		}
	}
	respond "ok"
}`)
	var got []int
	for client := range 6 {
		granted := 0
		for range 50 {
			if e.get(fmt.Sprintf("198.51.100.%d", client+1), "http://a.test/").StatusCode == http.StatusOK {
				granted++
			}
		}
		got = append(got, granted)
	}
	if want := []int{2, 2, 2, 2, 2, 0}; !slices.Equal(got, want) {
		t.Errorf("granted per client, one after another: got %v, want %v", got, want)
	}
}

// Zones of one name in two sites are one limit; of two names, two.
func TestOneNameIsOneLimit(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 3 1h shared
	respond "ok"
}
http://b.test:8081 {
	distributed_ratelimit 3 1h shared
	respond "ok"
}
http://c.test {
	distributed_ratelimit 3 1h other
	respond "ok"
}`)
	e.granted(2, alice, "http://a.test/")
	e.granted(1, alice, "http://b.test:8081/")
	e.refused(alice, "http://a.test/")
	e.refused(alice, "http://b.test:8081/")
	e.granted(3, alice, "http://c.test/")
}

// One name in two stores is two limits: each is charged, once.
func TestOneNameInTwoStoresIsTwoLimits(t *testing.T) {
	one, two := newRig(t, "one"), newRig(t, "two")
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 10 1h z {
			store rig one
			budget 5s
		}
		distributed_ratelimit 2 1h z {
			store rig two
			budget 5s
		}
		distributed_ratelimit 10 1h z {
			store rig one
			budget 5s
		}
		respond "ok"
	}
}`)
	e.granted(2, alice, "http://a.test/")
	if a, b := len(one.requested()), len(two.requested()); a != 2 || b != 2 {
		t.Errorf("two HTTP requests: got %d and %d requests to the stores, want 2 each", a, b)
	}
	e.refused(alice, "http://a.test/")
	if n := len(one.refunded()) + len(two.refunded()); n != 0 {
		t.Errorf("after a refusal: got %d refunds, want none", n)
	}
}

// A client can cause a refusal at will, by leaving out its key. Such a refusal is
// an ordinary error: the routes that render it may have limits, which hold.
func TestLimitsOfErrorRoutesHold(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 10 1h users {
		key {http.auth.user.id}
		on_empty_key deny
	}
	handle_errors {
		distributed_ratelimit 3 1h pages
		respond "page" 403
	}
}`)
	pages := 0
	for range 20 {
		if e.get(alice, "http://a.test/").body == "page" {
			pages++
		}
	}
	if pages != 3 {
		t.Errorf("pages of a limit of 3: got %d", pages)
	}
}
