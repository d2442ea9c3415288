package distributedratelimit

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/stores"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// InFlightStore is a store that can limit how many requests are in flight at once.
// Inflight returns what the processes share, or nil if each counts for itself. A
// zone with concurrent needs such a store.
type InFlightStore interface{ Inflight() inflight.Shared }

// checkConcurrent checks a zone that limits how many requests are in flight.
func (z *Zone) checkConcurrent() *settings.Mistake {
	const instead = "%s: concurrent limits how many requests are in flight at once and has no %[1]s; remove it, or write a zone of its own for it"
	switch {
	case *z.Concurrent < 1 || *z.Concurrent > inflight.MaxLimit:
		return settings.Wrong("concurrent", "concurrent %d is not between 1 and %d; to refuse everything write events 0 and a window", *z.Concurrent, int64(inflight.MaxLimit))
	case z.Events != nil:
		return settings.Wrong("events", instead, "events")
	case z.Tier != nil:
		return settings.Wrong("tier", instead, "tier")
	case z.Cost != nil:
		return settings.Wrong("cost", instead, "cost")
	case z.Window != 0:
		return settings.Wrong("window", instead, "window")
	case z.BlockFor != 0:
		return settings.Wrong("block_for", instead, "block_for")
	case len(z.CountIf) > 0:
		return settings.Wrong("count_if", instead, "count_if")
	}
	return nil
}

// provisionConcurrent prepares the handler for a zone that limits how many requests
// are in flight.
func (h *Handler) provisionConcurrent(z *Zone) error {
	if _, ok := h.backend.store.(InFlightStore); !ok {
		return fmt.Errorf("concurrent: the store %T cannot tell how many requests are in flight; use the store redis or memory", h.backend.store)
	}
	h.backend.openLimiter()
	return nil
}

// openLimiter has the backend limit requests in flight. It is called while the
// configuration is being loaded.
func (b *backend) openLimiter() {
	if b.limiter == nil {
		b.limiter = b.lasting.slots.Limiter(b.store.(InFlightStore).Inflight())
	}
}

// leaveTime is how long the end of the process may wait until the store has heard
// that it holds nothing any more. What it has not heard of is free again after
// some 20 s.
const leaveTime = 500 * time.Millisecond

// leave tells the store that the process holds nothing any more, if it ends. After
// a reload, its requests are still in flight.
func (l *lasting) leave() {
	if caddy.Exiting() {
		l.slots.Leave(leaveTime)
	}
}

// alone is how many requests of a key an instance may have in flight by itself, under a
// limit.
func (z *Zone) alone(limit int64, instances int) int64 {
	switch z.policy {
	case fallback.Allow:
		return inflight.Unlimited
	case fallback.Deny:
		return -1
	}
	return max(1, limit/int64(max(1, instances)))
}

// takeSlots decides zones that limit how many requests are in flight, one after
// the other, until one in force refuses.
func (e *evaluation) takeSlots() {
	for n, i := range e.slots {
		if !e.passes() {
			break
		}
		v := &e.verdicts[i]
		b := e.h.backend
		slot, d := b.limiter.Acquire(e.charges.rest(e.h.budget), inflight.Request{
			Key:   inflight.Key{Zone: v.zone.storeName, Client: v.client},
			Limit: v.limit, Alone: v.zone.alone(v.limit, b.Guard.Instances()),
		})
		e.charges.waited += d.Waited
		v.counted = d.Source != store.FromPolicy
		v.Decision = store.Decision{Granted: d.Granted, Remaining: max(0, v.limit-d.InFlight), Source: d.Source}
		switch {
		case d.Granted:
			if e.flight == nil {
				e.flight = new(flight)
			}
			e.flight.add(v.zone, slot)
			v.charged = true
			e.traceCall(d.Waited, e.slots[n:n+1])
			continue
		case v.counted:
			v.reason, v.RetryAfter = reasonBusy, unknownWait
		default:
			v.reason = reasonStoreAway
		}
		e.heed(v.zone, v.reason)
		e.traceCall(d.Waited, e.slots[n:n+1])
	}
	e.slots = e.slots[:0] // zones that need the body take theirs later
}

// keepSlots is called when everything is decided: a request that does not pass gives
// its slots back.
func (e *evaluation) keepSlots() {
	switch {
	case e.flight == nil:
	case e.passes():
		e.flight.begin()
	default:
		e.flight.giveUp()
		e.flight = nil
		for i := range e.verdicts {
			if v := &e.verdicts[i]; v.zone.Concurrent != nil {
				v.charged = false
			}
		}
	}
}

// flight is the slots that a request holds in one handler.
type flight struct {
	held []heldSlot
	few  [2]heldSlot // room for those of most requests
}

type heldSlot struct {
	zone *Zone
	slot *inflight.Slot
}

func (f *flight) add(z *Zone, slot *inflight.Slot) {
	if f.held == nil {
		f.held = f.few[:0]
	}
	f.held = append(f.held, heldSlot{z, slot})
}

// begin is called when the request passes.
func (f *flight) begin() {
	for _, s := range f.held {
		inFlight.add(s.zone.Name, 1)
	}
}

// giveUp is called when the request does not pass after all.
func (f *flight) giveUp() {
	for _, s := range f.held {
		s.slot.Release()
	}
}

// around is the handlers behind this one, after which the slots are released, also after
// a panic.
func (f *flight) around(next caddyhttp.Handler) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) (err error) {
		defer func() { f.end(r.Context(), err) }()
		return next.ServeHTTP(w, r)
	})
}

// end is called when the handlers behind this one have returned. If they returned an
// error, error routes still have to respond: the request is in flight until the
// server is done with it, and ends its context.
func (f *flight) end(ctx context.Context, err error) {
	if err != nil && ctx.Done() != nil {
		context.AfterFunc(ctx, f.release)
		return
	}
	f.release()
}

func (f *flight) release() {
	for _, s := range f.held {
		s.slot.Release()
		inFlight.add(s.zone.Name, -1)
	}
}

// inFlight is how many requests are in flight for each zone with concurrent, as a
// metric. Requests outlive configurations, so that it is counted apart from what is
// shown.
var inFlight = &flightGauge{
	counts: make(map[string]int64), shown: make(map[string]bool),
	desc: prometheus.NewDesc("caddy_distributed_ratelimit_in_flight",
		"Requests of this instance that hold a slot of a zone with concurrent.", []string{"zone"}, nil),
}

type flightGauge struct {
	desc   *prometheus.Desc
	mu     sync.Mutex
	counts map[string]int64
	shown  map[string]bool
}

func (g *flightGauge) add(zone string, n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counts[zone] += n; g.counts[zone] == 0 {
		delete(g.counts, zone)
	}
}

// of is how many requests of this instance hold a slot of a zone.
func (g *flightGauge) of(zone string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts[zone]
}

// show shows a zone or, with false, hides it.
func (g *flightGauge) show(zone string, shown bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shown[zone] = shown; !shown {
		delete(g.shown, zone)
	}
}

// Describe implements prometheus.Collector.
func (g *flightGauge) Describe(descs chan<- *prometheus.Desc) { descs <- g.desc }

// Collect implements prometheus.Collector.
func (g *flightGauge) Collect(into chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for zone := range g.shown {
		into <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, float64(g.counts[zone]), zone)
	}
}

// Interface guards
var (
	_ InFlightStore        = (*stores.Redis)(nil)
	_ InFlightStore        = (*stores.Memory)(nil)
	_ prometheus.Collector = (*flightGauge)(nil)
)
