package distributedratelimit

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
)

// The metrics of budgets. The label price is a pattern of the configuration, empty
// without prices: names of models are what clients make of them.
var (
	usageTokens = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "usage_tokens_total",
		Help: "Tokens that responses told to have used, by zone, the price that counted, and kind (input, cached, cache_write, output; none is in two of them).",
	}, []string{"zone", "price", "kind"})
	usageDollars = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "usage_dollars_total",
		Help: "What these tokens cost, in dollars.",
	}, []string{"zone", "price", "kind"})
	usageUnits = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "usage_units_total",
		Help: "Units of budgets, tokens or micro-dollars, by zone and what became of them: reserved (when requests came), settled (what stayed charged of that, and what was added) and overrun (the part of settled that was beyond the reservation).",
	}, []string{"zone", "what"})
	usageResponses = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "usage_responses_total",
		Help: "Requests to budgets by what their response told: counted (its usage), missing (none, so that the reservation stays charged), failed (an error that cost nothing), and among them overrun (it cost more than was reserved).",
	}, []string{"zone", "outcome"})
)

var usageOutcomes = map[llm.Outcome]string{llm.Counted: "counted", llm.Missing: "missing", llm.Failed: "failed"}

const (
	usageReserved = "reserved"
	usageSettled  = "settled"
	usageOverrun  = "overrun"
)

var usageCollectors = []prometheus.Collector{usageTokens, usageDollars, usageUnits, usageResponses}[:4:4]

// usageVecs are the same, for what they have in common.
var usageVecs = []interface {
	DeletePartialMatch(labels prometheus.Labels) int
}{usageTokens, usageDollars, usageUnits, usageResponses}

// showUsage shows the series of a zone that exist whatever is asked for.
func (c *zoneCounters) showUsage() {
	zoneSeries.ifHeld(c.zone, func() {
		for _, what := range []string{usageReserved, usageSettled, usageOverrun} {
			usageUnits.WithLabelValues(c.zone, what).Add(0)
		}
		for _, outcome := range usageOutcomes {
			usageResponses.WithLabelValues(c.zone, outcome).Add(0)
		}
		usageResponses.WithLabelValues(c.zone, usageOverrun).Add(0)
	})
}

// spend counts what became of a reservation.
func (c *zoneCounters) spend(z *Zone, reserved *llm.Reservation, said llm.Settlement) {
	zoneSeries.ifHeld(c.zone, func() {
		usageUnits.WithLabelValues(c.zone, usageReserved).Add(float64(reserved.Units))
		usageUnits.WithLabelValues(c.zone, usageSettled).Add(float64(said.Units))
		usageResponses.WithLabelValues(c.zone, usageOutcomes[said.Outcome]).Inc()
		if beyond := said.Units - reserved.Units; beyond > 0 {
			usageUnits.WithLabelValues(c.zone, usageOverrun).Add(float64(beyond))
			usageResponses.WithLabelValues(c.zone, usageOverrun).Inc()
		}
		u := said.Usage
		for _, kind := range []struct {
			name string
			llm.Usage
		}{
			{"input", llm.Usage{Input: u.Input}}, {"cached", llm.Usage{Cached: u.Cached}},
			{"cache_write", llm.Usage{CacheWrite: u.CacheWrite, CacheWriteHour: u.CacheWriteHour}}, {"output", llm.Usage{Output: u.Output}},
		} {
			if n := kind.Tokens(); n > 0 {
				usageTokens.WithLabelValues(c.zone, said.Price, kind.name).Add(float64(n))
				if z.meter.Priced() {
					usageDollars.WithLabelValues(c.zone, said.Price, kind.name).Add(z.meter.Dollars(said.Price, kind.Usage))
				}
			}
		}
	})
}
