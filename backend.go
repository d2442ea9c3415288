package distributedratelimit

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/loglimit"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/stores"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// Starter is a store module that puts something into force only when its
// configuration starts to run. Until then the configuration may be rejected,
// while another one uses what both share.
type Starter interface{ Start() }

// backend is a store as the handlers of one configuration use it: with a guard,
// whose observations become logs and metrics here.
type backend struct {
	*fallback.Guard
	store    store.Store
	name     string // of the data behind the store
	logger   *zap.Logger
	lasting  *lasting
	storage  storage // outlives the process; or nil
	hurried  loglimit.Limiter
	events   *emitter
	here     bool                       // the store is in this process
	limiter  *inflight.Limiter          // of requests in flight; nil if no zone limits them
	duration func() prometheus.Observer // looked up once, when it is needed; nil if the series are deleted

	mu    sync.Mutex
	zones []*Zone // that handlers have in the store, guarded by mu
}

// has notes that a zone is in the store.
func (b *backend) has(z *Zone) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.zones = append(b.zones, z)
	z.backend = b
	b.lasting.steering.add(z)
}

func (b *backend) allZones() []*Zone {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.zones)
}

// lasting is what outlives the configurations that use one store's data.
type lasting struct {
	*fallback.State
	slots  *inflight.Table
	losses loglimit.Limiter
	memo   memo

	steering steering
}

// Destruct implements caddy.Destructor.
func (l *lasting) Destruct() error {
	l.leave()
	return nil
}

var lastingPool = caddy.NewUsagePool()

// openBackend makes a backend of a store. It must be released. Without a
// storage nothing is kept for the next process.
func openBackend(s store.Store, logger *zap.Logger, kept storage, events *emitter) (*backend, error) {
	name := s.String()
	pooled, _, err := lastingPool.LoadOrNew(name, func() (caddy.Destructor, error) {
		return &lasting{State: fallback.NewState(), slots: inflight.NewTable()}, nil
	})
	if err != nil {
		return nil, err
	}
	storeSeries.retain(name)
	b := &backend{
		store: s, name: name, logger: logger, lasting: pooled.(*lasting), storage: kept, events: events,
		duration: sync.OnceValue(func() (o prometheus.Observer) {
			storeSeries.ifHeld(name, func() { o = metrics.storeDuration.WithLabelValues(name) })
			return o
		}),
	}
	if c, ok := s.(fallback.Configured); ok {
		b.here = c.FallbackSettings().Infallible
	}
	if _, shared := s.(store.Shared); shared {
		showStore(name)
		b.lasting.memo.recall(b)
	}
	b.Guard = b.lasting.Guard(s, b)
	storeStates.add(b)
	return b, nil
}

// start is called when the configuration runs: from then on the observations of
// this backend count.
func (b *backend) start() {
	if s, ok := b.store.(Starter); ok {
		s.Start()
	}
	b.Guard.Start()
	if b.limiter != nil {
		b.limiter.Start()
	}
	b.lasting.memo.start(b)
	b.lasting.steering.start(b)
}

func (b *backend) release() error {
	b.lasting.memo.stop(b)
	b.lasting.steering.leave(b, b.allZones())
	storeStates.remove(b)
	b.Close()
	if b.limiter != nil {
		b.limiter.Close()
	}
	storeSeries.release(b.name)
	_, err := lastingPool.Delete(b.name)
	return err
}

// Called implements fallback.Observer.
func (b *backend) Called(took time.Duration, err error) {
	if err != nil {
		kind := store.ErrorKind(err)
		storeSeries.ifHeld(b.name, func() { metrics.storeErrors.WithLabelValues(b.name, string(kind)).Inc() })
		switch kind {
		case store.KindBudget: // nothing was sent, and that was no fault of the store
			if suppressed, ok := b.hurried.Allow(1, time.Minute); ok {
				b.logger.Warn("requests have no time left to ask the store after other handlers have; on_store_error decides. "+
					"Write the zones into one handler, or raise budget to several round trips for each",
					zap.String("store", b.name), zap.Int64("suppressed", suppressed))
			}
			return
		case store.KindAway: // nothing was sent
			return
		}
	}
	if duration := b.duration(); duration != nil {
		duration.Observe(took.Seconds())
	}
}

// ServerChanged implements fallback.Observer.
func (b *backend) ServerChanged(before store.Condition, r store.Report) {
	up := 0.0
	fields := []zap.Field{zap.String("store", b.name), zap.String("server", r.Server)}
	switch r.Condition {
	case store.Up:
		up = 1
		if before != store.Unknown {
			b.logger.Info("the store is back; limits are shared again", fields...)
			b.events.emit(eventStoreBack, map[string]any{"store": b.name, "server": r.Server})
		}
	case store.Slow:
		b.logger.Warn("the store answers too late; limits are now per instance",
			append(fields, zap.Duration("took", r.Took), zap.Duration("budget", r.Wait))...)
		b.events.emit(eventStoreAway, map[string]any{
			"store": b.name, "server": r.Server, "condition": r.Condition.String(), "took": r.Took.Seconds(), "budget": r.Wait.Seconds(),
		})
	case store.Away:
		b.logger.Warn("the store gives no answer; until it is back, requests follow on_store_error, and limits that are kept locally are per instance",
			append(fields, zap.Error(r.Err))...)
		b.events.emit(eventStoreAway, map[string]any{
			"store": b.name, "server": r.Server, "condition": r.Condition.String(), "error": fmt.Sprint(r.Err),
		})
	}
	metrics.storeUp.WithLabelValues(b.name, r.Server).Set(up)
}

// ServerRemoved implements fallback.Observer.
func (b *backend) ServerRemoved(server string) { metrics.storeUp.DeleteLabelValues(b.name, server) }

// Lost implements fallback.Observer.
func (b *backend) Lost(r store.Report) {
	metrics.storeLosses.WithLabelValues(b.name).Inc()
	suppressed, ok := b.lasting.losses.Allow(1, time.Minute)
	if !ok {
		return
	}
	policy := stores.DataLossContinue
	if c, ok := b.store.(fallback.Configured); ok && c.FallbackSettings().Cautious {
		policy = stores.DataLossCautious
	}
	b.logger.Warn("the store has lost counts; clients may be granted up to one limit more",
		zap.String("store", b.name), zap.String("server", r.Server), zap.String("how", r.Lost),
		zap.String("on_data_loss", policy), zap.Int64("suppressed", suppressed))
	b.events.emit(eventDataLost, map[string]any{
		"store": b.name, "server": r.Server, "how": r.Lost, "on_data_loss": policy, "suppressed": suppressed,
	})
}

// Instances implements fallback.Observer.
func (b *backend) Instances(n int, inTouch bool) {
	metrics.storeInstances.WithLabelValues(b.name).Set(float64(n))
	if inTouch {
		b.lasting.memo.learn(n)
	}
}

// Alone implements fallback.Observer.
func (b *backend) Alone() {
	b.logger.Warn("the store has never been reached, and nobody knows how many instances share it: until it has been reached once, each instance grants the whole limit where on_store_error is local; set the store's option `instances` to their number",
		zap.String("store", b.name))
}

// The words of on_store_error.
const (
	policyLocal = "local"
	policyAllow = "allow"
	policyDeny  = "deny"
)

var policies = map[string]fallback.Policy{policyLocal: fallback.Decide, policyAllow: fallback.Allow, policyDeny: fallback.Deny}

const (
	defaultBudget = 100 * time.Millisecond
	minBudget     = time.Millisecond
	maxBudget     = time.Minute
)

// checkStoreUse checks what the handler and the app both have.
func checkStoreUse(onStoreError string, budget caddy.Duration) *settings.Mistake {
	if mistake := checkPolicy(onStoreError); mistake != nil {
		return mistake
	}
	if b := time.Duration(budget); b != 0 && (b < minBudget || b > maxBudget) {
		return settings.Wrong("budget", "budget %v is not between %v and %v", b, minBudget, maxBudget)
	}
	return nil
}

func checkPolicy(policy string) *settings.Mistake {
	switch policy {
	case "", policyLocal, policyAllow, policyDeny:
		return nil
	}
	return settings.Wrong("on_store_error", "unknown on_store_error %q; write local, allow or deny", policy)
}

// Interface guards
var (
	_ fallback.Observer = (*backend)(nil)
	_ Starter           = (*stores.Memory)(nil)
)
