package distributedratelimit

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// metrics are collected for the process and registered with the registry of
// each configuration, so that counts go on over reloads. Label values come
// from the configuration or from fixed lists, never from a request: the
// number of series does not depend on clients.
var metrics = struct {
	requests       *prometheus.CounterVec
	emptyKeys      *prometheus.CounterVec
	clients        *prometheus.CounterVec
	storeDuration  *prometheus.HistogramVec
	storeErrors    *prometheus.CounterVec
	storeUp        *prometheus.GaugeVec
	storeLosses    *prometheus.CounterVec
	storeInstances *prometheus.GaugeVec
}{
	requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "requests_total",
		Help: "Requests by the zone that applied, what came of it (granted, refused, dry_run, exempt), and what decided (store, lease, cache, local, policy).",
	}, []string{"zone", "outcome", "source"}),
	emptyKeys: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "empty_keys_total",
		Help: "Requests whose key was empty (missing), or a part of it because the request had several values (ambiguous) or nobody knows the placeholder (unknown).",
	}, []string{"zone", "reason"}),
	clients: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "identified_requests_total",
		Help: "Requests by how the client's address was found.",
	}, []string{"reason"}),
	storeDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "store_duration_seconds",
		Help:    "How long requests waited for the store, failed calls included.",
		Buckets: []float64{.00001, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
	}, []string{"store"}),
	storeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "store_errors_total",
		Help: "Calls that the store did not answer, by kind (timeout, unavailable, broken, overload, reply, budget, away).",
	}, []string{"store", "kind"}),
	storeUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "store_up",
		Help: "1 if the server of the store answers in time, 0 if not.",
	}, []string{"store", "server"}),
	storeLosses: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "store_data_losses_total",
		Help: "How often a server of the store had lost counts.",
	}, []string{"store"}),
	storeInstances: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "store_instances",
		Help: "How many instances use the store, as far as is known.",
	}, []string{"store"}),
}

// registerMetrics registers the collectors with the configuration's registry.
func registerMetrics(ctx caddy.Context) error {
	registry := ctx.GetMetricsRegistry()
	for _, c := range []prometheus.Collector{
		metrics.requests, metrics.emptyKeys, metrics.clients, metrics.storeDuration, metrics.storeErrors,
		metrics.storeUp, metrics.storeLosses, metrics.storeInstances,
	} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// series deletes the series of a label's value when the last configuration that
// holds it has ended.
type series struct {
	mu     sync.Mutex
	holds  map[string]int
	remove func(value string)
}

func (s *series) retain(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds[value]++
}

func (s *series) release(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[value]--; s.holds[value] > 0 {
		return
	}
	delete(s.holds, value)
	s.remove(value)
}

// ifHeld does something with the series of a value if it is held, and reports
// whether it is. A request may end after its configuration was cleaned up: a
// look-up would then bring back series that nobody deletes again.
func (s *series) ifHeld(value string, do func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[value] == 0 {
		return false
	}
	do()
	return true
}

var (
	zoneSeries = series{holds: make(map[string]int), remove: func(zone string) {
		match := prometheus.Labels{"zone": zone}
		metrics.requests.DeletePartialMatch(match)
		metrics.emptyKeys.DeletePartialMatch(match)
	}}
	storeSeries = series{holds: make(map[string]int), remove: func(name string) {
		match := prometheus.Labels{"store": name}
		metrics.storeDuration.DeletePartialMatch(match)
		metrics.storeErrors.DeletePartialMatch(match)
		metrics.storeUp.DeletePartialMatch(match)
		metrics.storeLosses.DeletePartialMatch(match)
		metrics.storeInstances.DeletePartialMatch(match)
	}}
)

// outcome is what came of a request for a zone.
type outcome uint8

const (
	outcomeNone outcome = iota
	outcomeGranted
	outcomeRefused
	outcomeDryRun
	outcomeExempt
	outcomes // how many there are
)

var outcomeNames = [outcomes]string{"", "granted", "refused", "dry_run", "exempt"}

func (o outcome) String() string { return outcomeNames[o] }

// outcomeCounters are a zone's counters, looked up once each: with the label
// values in hand the look-up costs more than the count.
type outcomeCounters struct {
	zone string
	seen [outcomes][store.Sources]atomic.Pointer[prometheus.Counter]
}

func (c *outcomeCounters) inc(o outcome, s store.Source) {
	if counter := c.seen[o][s].Load(); counter != nil {
		(*counter).Inc()
		return
	}
	incFresh(&c.seen[o][s], metrics.requests, c.zone, o.String(), s.String())
}

// incFresh looks a zone's counter up, and counts, if a configuration still has
// the zone.
func incFresh(slot *atomic.Pointer[prometheus.Counter], of *prometheus.CounterVec, zone string, labels ...string) {
	zoneSeries.ifHeld(zone, func() {
		fresh := of.WithLabelValues(append([]string{zone}, labels...)...)
		slot.Store(&fresh)
		fresh.Inc()
	})
}

// lackCounters are a zone's counters of keys that were short of something.
type lackCounters struct {
	zone string
	seen [lacks]atomic.Pointer[prometheus.Counter]
}

func (c *lackCounters) inc(l lack) {
	if counter := c.seen[l].Load(); counter != nil {
		(*counter).Inc()
		return
	}
	incFresh(&c.seen[l], metrics.emptyKeys, c.zone, l.String())
}

var identityCounters [32]atomic.Pointer[prometheus.Counter]

// identityMetric returns the counter of a reason.
func identityMetric(reason ipident.Reason) prometheus.Counter {
	slot := &identityCounters[reason]
	counter := slot.Load()
	if counter == nil {
		fresh := metrics.clients.WithLabelValues(reason.String())
		counter = &fresh
		slot.Store(counter)
	}
	return *counter
}
