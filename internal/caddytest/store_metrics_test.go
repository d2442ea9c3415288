package caddytest

import (
	"math"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

func onRedis(server *redistest.Server, sites string) string {
	return "{\n\tdistributed_ratelimit {\n\t\tstore redis redis://" + server.Addr + "\n\t\tbudget 5s\n\t}\n}\n" + sites
}

// value is the one sample of a metric, NaN if there is none.
func (e *edge) value(metric string) float64 {
	e.t.Helper()
	for _, value := range e.series(metric) {
		return value
	}
	return math.NaN()
}

// becomes waits until the one sample of a metric is as it should be.
func (e *edge) becomes(metric string, is func(float64) bool) {
	e.t.Helper()
	var got float64
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got = e.value(metric); is(got) {
			return
		}
	}
	e.t.Fatalf("metric %s: still %v after 30 s", metric, got)
}

func equals(want float64) func(float64) bool {
	return func(got float64) bool { return got == want }
}

// What a store holds is told as it is: leases, what was decided without the store, and by
// how much limits may be exceeded.
func TestStoreMetrics(t *testing.T) {
	server := redistest.Start(t)
	config := onRedis(server, `
http://a.test {
	distributed_ratelimit 100000 10s wide
	respond "ok"
}
http://b.test {
	distributed_ratelimit 1 1h tight {
		store redis redis://`+server.Addr+` # the app's once more, which counts once
	}
	respond "ok"
}`)
	e := start(t, config)
	for metric, want := range map[string]float64{
		"leases": 0, "lease_units": 0, "leased_units_total": 0, "leased_unspent_units_total": 0, "remembered_refusals": 0,
		"store_queued_calls": 0, "unreported_units": 0, "store_data_losses_total": 0, "worst_case_limits": 1, "store_instances": 1,
	} {
		e.becomes(metric, equals(want))
	}

	// A busy client gets leases; what it does not use of them is given back.
	for deadline := time.Now().Add(30 * time.Second); e.value("leased_units_total") < 10 && time.Now().Before(deadline); {
		e.granted(1, alice, "http://a.test/")
	}
	e.becomes("leased_unspent_units_total", func(got float64) bool { return got > 0 })
	e.becomes("lease_units", equals(0))
	if granted, unspent := e.value("leased_units_total"), e.value("leased_unspent_units_total"); unspent > granted {
		t.Errorf("units of leases: got %v unspent of %v", unspent, granted)
	}
	e.granted(1, bob, "http://b.test/")
	e.refused(bob, "http://b.test/")
	e.reload(config)
	e.refused(bob, "http://b.test/")
	e.becomes("remembered_refusals", equals(1))
	if got := len(e.series("leases")); got != 1 {
		t.Errorf("series of leases after a reload: got %d, want 1", got)
	}

	// While the store is away, one instance may grant its limit once more.
	server.Kill()
	e.becomes("worst_case_limits", equals(2))
	e.granted(3, alice, "http://a.test/")
	e.becomes("unreported_units", func(got float64) bool { return got >= 3 })
	// It comes back empty, which is another time the limit.
	server.Restart(t)
	e.becomes("worst_case_limits", equals(3))
	e.becomes("unreported_units", equals(0))
}

// Every grant that leaves less than a tenth is a near miss.
func TestNearMisses(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone twenty {
			events 20
			window 1h
		}
		zone never {
			match path /never
			events 0
			window 1h
		}
	}
	respond "ok"
}`)
	e.sample("near_misses_total", "twenty", 0)
	e.granted(18, alice, "http://a.test/")
	e.sample("near_misses_total", "twenty", 0)
	e.status(429, alice, "http://a.test/never") // the other zone refuses
	e.sample("near_misses_total", "twenty", 0)
	e.granted(2, alice, "http://a.test/")
	e.refused(alice, "http://a.test/")
	e.sample("near_misses_total", "twenty", 2)
}

// A handler that names the app's store once more hides none of the other handlers' zones.
func TestStoreMetricsOfOneStoreTwice(t *testing.T) {
	server := redistest.Start(t)
	e := start(t, onRedis(server, `
http://a.test {
	distributed_ratelimit 5 1h first
	distributed_ratelimit 5 1h second {
		store redis redis://`+server.Addr+`
	}
	respond "ok"
}`))
	for deadline := time.Now().Add(30 * time.Second); len(e.series("overrides")) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("overrides are told of %v, want both zones", e.series("overrides"))
		}
	}
	if got := e.series("worst_case_limits"); len(got) != 1 {
		t.Errorf("the worst case has the series %v, want one for the store", got)
	}
}

// What may be granted at most while the store is away goes by the limits that hold, those
// that an operator has set included.
func TestWorstCaseGoesByOverrides(t *testing.T) {
	server := redistest.Start(t)
	e := start(t, onRedis(server, `
http://a.test {
	distributed_ratelimit {
		zone plans {
			window 1h
			tier {header.Plan} {
				free 0
				default 0
			}
		}
	}
	respond "ok"
}`))
	e.becomes("worst_case_limits", equals(1))
	e.steer("PUT", "zones/plans/override?plan=free&events=5&for=1h")
	server.Kill()
	e.becomes("worst_case_limits", equals(2))
	var zones []struct {
		AtMost *float64 `json:"at_most"`
	}
	if e.adminGet("zones/plans", &zones); zones[0].AtMost == nil || *zones[0].AtMost != 2 {
		t.Errorf("the zone grants at most %v times its limit, want 2", zones[0].AtMost)
	}
}
