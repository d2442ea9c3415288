package distributedratelimit

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"
)

// storeStates are the metrics that tell what stores hold at the moment. They are read
// when they are asked for, so that no request pays for them.
var storeStates = &storeCollector{}

// storeCollector knows the backends. It is safe for concurrent use.
type storeCollector struct {
	mu       sync.Mutex
	backends []*backend
}

func (c *storeCollector) add(b *backend) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.backends = append(c.backends, b)
}

func (c *storeCollector) remove(b *backend) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.backends = slices.DeleteFunc(c.backends, func(other *backend) bool { return other == b })
}

// leading returns one backend for each store: that of the configuration that runs, not of
// one that is being loaded, or that is gone but for some requests.
func (c *storeCollector) leading() (list []*backend) {
	c.mu.Lock()
	all := slices.Clone(c.backends)
	c.mu.Unlock()
	return slices.DeleteFunc(all, func(b *backend) bool { return !b.Leads() })
}

// zonesOf returns the zones of a leading backend, and of others of its configuration that
// have the same store: a handler may name the store that the app has.
func (c *storeCollector) zonesOf(leader *backend) (zones []*Zone) {
	c.mu.Lock()
	all := slices.Clone(c.backends)
	c.mu.Unlock()
	for _, b := range all {
		if b.lasting == leader.lasting && b.events == leader.events {
			zones = append(zones, b.allZones()...)
		}
	}
	return zones
}

func storeDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("caddy_distributed_ratelimit_"+name, help, append([]string{"store"}, labels...), nil)
}

var (
	descLeases       = storeDesc("leases", "Keys of which this instance has a lease: units that it may spend without the store.")
	descLeaseUnits   = storeDesc("lease_units", "Units in these leases. Other instances cannot spend them.")
	descLeasedUnits  = storeDesc("leased_units_total", "Units of all leases that the store has granted to this instance.")
	descUnspentUnits = storeDesc("leased_unspent_units_total", "Units of leases that nobody had spent when the lease ended, and that were given back.")
	descRefusals     = storeDesc("remembered_refusals", "Keys that this instance refuses by itself at the moment, since the store has refused them.")
	descQueued       = storeDesc("store_queued_calls", "Calls that wait to be sent to the store, of queue_size for each server at most.")
	descTrips        = storeDesc("store_round_trips", "Round trips to the store under way, of pool_size for each server at most.")
	descUnreported   = storeDesc("unreported_units", "Units that this instance granted while the store was away, of which the store is still to be told.")
	descWorst        = storeDesc("worst_case_limits", "What all instances together may grant a client at most in a window that ends now, in multiples of its limit, by the zone for which it is the most: 1 while all is well and has been for a window.")
	descByHand       = storeDesc("bans_by_hand", "Keys that an operator has banned and that are banned still.", "zone")
	descOverrides    = storeDesc("overrides", "Limits of the zone that an operator has replaced for a while, one for each plan.", "zone")
)

// Describe implements prometheus.Collector.
func (*storeCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		descLeases, descLeaseUnits, descLeasedUnits, descUnspentUnits, descRefusals, descQueued, descTrips, descUnreported, descWorst, descByHand, descOverrides,
	} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *storeCollector) Collect(into chan<- prometheus.Metric) {
	for _, b := range c.leading() {
		zones := c.zonesOf(b)
		gauge := func(desc *prometheus.Desc, value float64) {
			into <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, b.name)
		}
		count := func(desc *prometheus.Desc, value int64) {
			into <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), b.name)
		}
		if s, ok := b.store.(interface{ LeaseStats() (lease.Stats, bool) }); ok {
			if leases, ok := s.LeaseStats(); ok {
				gauge(descLeases, float64(leases.Leased))
				gauge(descLeaseUnits, float64(leases.Units))
				gauge(descRefusals, float64(leases.Refusals))
				count(descLeasedUnits, leases.Granted)
				count(descUnspentUnits, leases.Unspent)
			}
		}
		if s, ok := b.store.(interface{ TrafficStats() redis.Stats }); ok {
			traffic := s.TrafficStats()
			gauge(descQueued, float64(traffic.Queued))
			gauge(descTrips, float64(traffic.Trips))
		}
		if _, ok := b.store.(store.Shared); ok {
			stats := b.State.Stats()
			gauge(descUnreported, float64(stats.UnreportedUnits))
			gauge(descWorst, b.worst(&stats, time.Now(), zones))
		}
		b.collectSteering(into, zones)
	}
}

// collectSteering tells what operators have changed by hand. A zone in force and a dry run of
// one name are two limits, and one series.
func (b *backend) collectSteering(into chan<- prometheus.Metric, zones []*Zone) {
	bans, overrides := make(map[string]int), make(map[string]int)
	seen := make(map[*Zone]bool)
	for _, z := range zones {
		if z = z.same; seen[z] {
			continue
		}
		seen[z] = true
		bans[z.Name] += z.bansByHand()
		for _, o := range z.overrides() {
			if z.idle(&o) == "" {
				overrides[z.Name]++
			}
		}
	}
	for zone, n := range bans {
		into <- prometheus.MustNewConstMetric(descByHand, prometheus.GaugeValue, float64(n), b.name, zone)
		into <- prometheus.MustNewConstMetric(descOverrides, prometheus.GaugeValue, float64(overrides[zone]), b.name, zone)
	}
}

// showStore makes the series that a store may come to have, so that an alert sees the first
// loss.
func showStore(name string) {
	storeSeries.ifHeld(name, func() {
		metrics.storeLosses.WithLabelValues(name).Add(0)
		metrics.storeDuration.WithLabelValues(name)
		for _, kind := range store.Kinds {
			metrics.storeErrors.WithLabelValues(name, string(kind)).Add(0)
		}
	})
}

// worst is the multiple of its limit that a client may be granted at most in a window that
// ends now, over these zones. Zones with concurrent have no window.
func (b *backend) worst(stats *fallback.Stats, now time.Time, zones []*Zone) float64 {
	worst := 1.0
	for _, z := range zones {
		if z.Concurrent == nil {
			worst = math.Max(worst, 1+b.Excess(stats, now, z.least(), z.window, z.policy))
		}
	}
	return worst
}

// least is the smallest limit of the zone that grants anything, 0 if none does or all are
// unlimited: an instance grants a unit of each at least while the store is away.
func (z *Zone) least() int64 {
	least := int64(0)
	for _, limit := range z.limitsNow() {
		if limit > 0 && (least == 0 || limit < least) {
			least = limit
		}
	}
	return least
}

// Interface guard
var _ prometheus.Collector = (*storeCollector)(nil)
