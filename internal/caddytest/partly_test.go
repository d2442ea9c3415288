package caddytest

import (
	"net/http"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// partly makes the store decide the first ask of each call, and fail for the
// rest, as a Cluster does of which one server is away.
func (f *far) partly(t *testing.T, on bool) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.first = on
}

// Of a request whose zones are on two servers, one of which is away, what the
// other has decided counts; policy decides about the rest. All zones were
// limited locally once.
func TestWhatIsKnownOfACallThatFailedCounts(t *testing.T) {
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
	// What there is charged is returned when away refuses.
	e.refused(alice, "http://a.test/").header(t, "Ratelimit-Policy", `"there";q=3;w=3600, "away";q=8;w=3600`)
	soon(t, "the unit of there is returned", func() bool { return f.given() == 1 })
	if g := f.returned()[0]; g.Key.Zone != "there" || g.Units != 1 {
		t.Errorf("returned: got %+v, want a unit of there", g)
	}
	e.status(http.StatusServiceUnavailable, alice, "http://deny.test/")
	soon(t, "the unit of first is returned", func() bool { return f.given() == 2 })

	// What was decided locally is owed, and what the store decided is not.
	f.partly(t, false)
	f.asked()
	e.granted(1, alice, "http://a.test/")
	for _, a := range f.asked() {
		units, _ := owed([]store.Request{a})
		if want := map[string]int64{"there": 0, "away": 2}[a.Key.Zone]; units != want {
			t.Errorf("owed in zone %s: got %d units, want %d", a.Key.Zone, units, want)
		}
	}
}

// What was certainly not asked was not charged: the zone's policy in the next
// handler holds, if it is met again.
func TestWhatWasNotAskedIsMetAgain(t *testing.T) {
	f := newFar(t, "redis", 1)
	zones := func(policy string) string {
		return "distributed_ratelimit {\n\t\t\tzone there {\n\t\t\t\tevents 9\n\t\t\t\twindow 1h\n\t\t\t}\n\t\t\tzone away {\n\t\t\t\tevents 9\n\t\t\t\twindow 1h\n\t\t\t\ton_store_error " + policy + "\n\t\t\t}\n\t\t}\n\t\t"
	}
	e := start(t, onFar("far redis", "route {\n\t\t"+zones("allow")+"distributed_ratelimit 9 1h away {\n\t\t\ton_store_error deny\n\t\t}\n\t}"))
	f.partly(t, true)
	f.asked()
	e.get(alice, "http://a.test/")
	if asked := f.asked(); len(asked) != 3 || asked[2].Key.Zone != "away" {
		t.Errorf("the store was asked %+v, want there and away, and away again", asked)
	}
}
