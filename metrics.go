package distributedratelimit

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// metrics are collected for the process and registered with the registry of
// each configuration, so that counts go on over reloads. Label values come
// from the configuration or from fixed lists, never from a request: the
// number of series does not depend on clients.
var metrics = struct {
	requests       *prometheus.CounterVec
	refusals       *prometheus.CounterVec
	emptyKeys      *prometheus.CounterVec
	replaced       *prometheus.CounterVec
	settled        *prometheus.CounterVec
	bans           *prometheus.CounterVec
	nearMisses     *prometheus.CounterVec
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
	refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "refusals_total",
		Help: "Requests that were refused, or would have been in a dry run (outcome refused, dry_run), by the zone and its reason.",
	}, []string{"zone", "outcome", "reason"}),
	emptyKeys: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "empty_keys_total",
		Help: "Requests whose key was empty (missing), or a part of it because the request had several values (ambiguous) or nobody knows the placeholder (unknown), or the body was of no use (other_type, too_long, unreadable).",
	}, []string{"zone", "reason"}),
	replaced: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "replaced_values_total",
		Help: "Requests for which a default or a bound stood for what a word of the zone (cost, tier) read, by why: it was empty (missing), " +
			"the request had several values (ambiguous), nobody knows the placeholder (unknown), no plan of this name (unlisted), " +
			"no whole number (no_number), or above max (above_max).",
	}, []string{"zone", "word", "reason"}),
	settled: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "settled_requests_total",
		Help: "Requests to zones with count_if by what their response made of them: counted, given_back, or client_gone (counted, because the client went away before the response).",
	}, []string{"zone", "result"}),
	bans: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "bans_total",
		Help: "Bans that this instance has begun, or has met first. Each instance that refuses a client for it counts a ban.",
	}, []string{"zone"}),
	nearMisses: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "near_misses_total",
		Help: "Requests that were granted with less than a tenth of the zone's limit left for their client afterwards.",
	}, []string{"zone"}),
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
	for _, c := range append(usageCollectors, []prometheus.Collector{
		metrics.requests, metrics.refusals, metrics.emptyKeys, metrics.replaced, metrics.settled, metrics.bans, metrics.clients, metrics.storeDuration, metrics.storeErrors,
		metrics.storeUp, metrics.storeLosses, metrics.storeInstances, bodyMemoryUsed, inFlight, metrics.nearMisses, storeStates,
	}...) {
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
		metrics.refusals.DeletePartialMatch(match)
		metrics.emptyKeys.DeletePartialMatch(match)
		metrics.replaced.DeletePartialMatch(match)
		metrics.settled.DeletePartialMatch(match)
		metrics.bans.DeletePartialMatch(match)
		metrics.nearMisses.DeletePartialMatch(match)
		for _, vec := range usageVecs {
			vec.DeletePartialMatch(match)
		}
		inFlight.show(zone, false)
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

// zoneCounters are a zone's counters, looked up once each: with the label values
// in hand the look-up costs more than the count.
type zoneCounters struct {
	zone      string
	requests  [outcomes][store.Sources]counterSlot
	refusals  [outcomes][reasons]counterSlot
	emptyKeys [keys.Lacks]counterSlot
	replaced  [len(readWords)][keys.Lacks]counterSlot
	settled   [settledResults]counterSlot
	bans      counterSlot
	near      counterSlot
}

type counterSlot = atomic.Pointer[prometheus.Counter]

func (c *zoneCounters) request(o outcome, s store.Source) {
	if slot := &c.requests[o][s]; !hit(slot) {
		c.add(1, slot, metrics.requests, o.String(), s.String())
	}
}

// nearParts: a request that leaves less than a nearParts-th of the limit is a near miss.
const nearParts = 10

// grant counts a request that the zone grants.
func (c *zoneCounters) grant(v *verdict) {
	c.request(outcomeGranted, v.Source)
	if v.counted && v.Remaining <= (v.limit-1)/nearParts && !hit(&c.near) {
		c.add(1, &c.near, metrics.nearMisses)
	}
}

// refuse counts a request that the zone refuses, or would in force.
func (c *zoneCounters) refuse(o outcome, s store.Source, why reason) {
	c.request(o, s)
	if slot := &c.refusals[o][why]; !hit(slot) {
		c.add(1, slot, metrics.refusals, o.String(), why.String())
	}
}

// emptyKey counts a key that was short of something.
func (c *zoneCounters) emptyKey(l keys.Lack) {
	if slot := &c.emptyKeys[l]; !hit(slot) {
		c.add(1, slot, metrics.emptyKeys, l.String())
	}
}

// replace counts a value for which a default or a bound stands.
func (c *zoneCounters) replace(word readWord, l keys.Lack) {
	if slot := &c.replaced[word][l]; !hit(slot) {
		c.add(1, slot, metrics.replaced, readWords[word], l.String())
	}
}

// settle counts what the response made of a request.
func (c *zoneCounters) settle(s settled) {
	if slot := &c.settled[s]; !hit(slot) {
		c.add(1, slot, metrics.settled, settledNames[s])
	}
}

// ban counts a ban.
func (c *zoneCounters) ban() {
	if !hit(&c.bans) {
		c.add(1, &c.bans, metrics.bans)
	}
}

// hit counts one, if the counter has been looked up.
func hit(slot *counterSlot) bool {
	counter := slot.Load()
	if counter == nil {
		return false
	}
	(*counter).Inc()
	return true
}

// show makes the series that the zone may come to have, so that a dashboard shows 0
// and an alert sees the first increase. They depend on the configuration alone.
func (c *zoneCounters) show(z *Zone, shared, exempt bool) {
	outcome := outcomeRefused
	if z.DryRun {
		outcome = outcomeDryRun
	}
	sources := []store.Source{store.FromStore}
	if shared {
		sources = append(sources, store.FromLease, store.FromCache, store.FromLocal)
	}
	for _, s := range sources {
		if s != store.FromCache {
			c.add(0, &c.requests[outcomeGranted][s], metrics.requests, outcomeGranted.String(), s.String())
		}
		if s != store.FromLease {
			c.add(0, &c.requests[outcome][s], metrics.requests, outcome.String(), s.String())
		}
	}
	if exempt || len(z.exempt) > 0 || z.tier != nil && z.tier.has(unlimited) || z.cost.fixed == 0 && z.cost.least == 0 {
		c.add(0, &c.requests[outcomeExempt][store.FromPolicy], metrics.requests, outcomeExempt.String(), store.FromPolicy.String())
	}
	c.add(0, &c.near, metrics.nearMisses)
	for _, why := range z.possible() {
		c.add(0, &c.refusals[outcome][why], metrics.refusals, outcome.String(), why.String())
		if why != reasonLimit && why != reasonBusy && why != reasonBlocked {
			c.add(0, &c.requests[outcome][store.FromPolicy], metrics.requests, outcome.String(), store.FromPolicy.String())
		}
	}
	if z.key.Dynamic() && !z.key.NeverEmpty() {
		c.add(0, &c.emptyKeys[keys.LackMissing], metrics.emptyKeys, keys.LackMissing.String())
	}
	if z.tier != nil {
		c.showReplaced(readTier, keys.LackMissing, keys.LackListed)
	}
	if z.cost.fixed == 0 {
		c.showReplaced(readCost, keys.LackMissing, keys.LackNumber, keys.LackBound)
	}
	if len(z.CountIf) > 0 {
		for s := range settledResults {
			c.add(0, &c.settled[s], metrics.settled, settledNames[s])
		}
	}
	if z.BlockFor > 0 {
		c.add(0, &c.bans, metrics.bans)
	}
	if z.Usage != nil {
		c.showUsage()
	}
}

func (c *zoneCounters) showReplaced(word readWord, lacking ...keys.Lack) {
	for _, l := range lacking {
		c.add(0, &c.replaced[word][l], metrics.replaced, readWords[word], l.String())
	}
}

// add looks a counter of the zone up and adds to it, if a configuration still has the
// zone. To add 0 shows the series.
func (c *zoneCounters) add(n float64, slot *counterSlot, of *prometheus.CounterVec, labels ...string) {
	zoneSeries.ifHeld(c.zone, func() {
		fresh := of.WithLabelValues(append([]string{c.zone}, labels...)...)
		slot.Store(&fresh)
		fresh.Add(n)
	})
}

// settled is what a response made of a request.
type settled uint8

const (
	settledCounted settled = iota
	settledGivenBack
	settledGone
	settledResults // how many there are
)

var settledNames = [settledResults]string{"counted", "given_back", "client_gone"}

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
