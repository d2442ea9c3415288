package caddytest

import (
	"net/http"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// partly makes the store decide the first request of each call, and fail for the
// rest, like a Cluster with one server that is away.
func (f *far) partly(t *testing.T, on bool) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.first = on
}

// The zones of a request are on two servers, one of which is away. What the other
// has decided counts; the rest follows on_store_error. All zones were limited
// locally once.
func TestDecisionsOfAFailedCallCount(t *testing.T) {
	f := newFar(t, "redis", 4)
	e := start(t, `
{
	distributed_ratelimit {
		store far redis
		budget 5s
	}
}
http://a.test {
	distributed_ratelimit {
		zone there {
			events 3
			window 1h
		}
		zone away {
			key all
			events 8
			window 1h
		}
	}
	respond "ok"
}
http://deny.test {
	distributed_ratelimit {
		zone first {
			events 10
			window 1h
		}
		zone denies {
			key all
			events 10
			window 1h
			on_store_error deny
		}
	}
	respond "ok"
}`)
	f.partly(t, true)
	// The share of away is 8/4, that of there would be 1: it has 3.
	e.granted(2, alice, "http://a.test/")
	e.sample("requests_total", "granted store there", 2)
	e.sample("requests_total", "granted local away", 2)
	// The charge of there is refunded when away refuses.
	e.refused(alice, "http://a.test/").header(t, "Ratelimit-Policy", `"there";q=3;w=3600, "away";q=8;w=3600`)
	soon(t, "the unit of there is refunded", func() bool { return f.refundedUnits() == 1 })
	if g := f.refunded()[0]; g.Key.Zone != "there" || g.Units != 1 {
		t.Errorf("refunded: got %+v, want a unit of there", g)
	}
	e.status(http.StatusServiceUnavailable, alice, "http://deny.test/")
	soon(t, "the unit of first is refunded", func() bool { return f.refundedUnits() == 2 })

	// What was granted locally is unreported; the store knows what it decided.
	f.partly(t, false)
	f.requested()
	e.granted(1, alice, "http://a.test/")
	for _, r := range f.requested() {
		units, _ := unreported([]store.Request{r})
		if want := map[string]int64{"there": 0, "away": 2}[r.Key.Zone]; units != want {
			t.Errorf("unreported in zone %s: got %d units, want %d", r.Key.Zone, units, want)
		}
	}
}

// A zone whose request was skipped is not charged. If the next handler has it
// too, its policy there holds.
func TestSkippedZonesAreMetAgain(t *testing.T) {
	f := newFar(t, "redis", 1)
	zones := func(policy string) string {
		return "distributed_ratelimit {\n\t\t\tzone there {\n\t\t\t\tevents 9\n\t\t\t\twindow 1h\n\t\t\t}\n\t\t\tzone away {\n\t\t\t\tevents 9\n\t\t\t\twindow 1h\n\t\t\t\ton_store_error " + policy + "\n\t\t\t}\n\t\t}\n\t\t"
	}
	e := start(t, onFar("far redis", "route {\n\t\t"+zones("allow")+"distributed_ratelimit 9 1h away {\n\t\t\ton_store_error deny\n\t\t}\n\t}"))
	f.partly(t, true)
	f.requested()
	e.get(alice, "http://a.test/")
	if requests := f.requested(); len(requests) != 3 || requests[2].Key.Zone != "away" {
		t.Errorf("the store got %+v, want requests for there and away, and for away again", requests)
	}
}
