package distributedratelimit

import (
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// backend is a store as handlers use it: measured, its failures noticed, and
// with the memory that decides while it is away.
type backend struct {
	store  store.Store
	name   string // of the data behind the store
	logger *zap.Logger
	*health
	duration func() prometheus.Observer // looked up once, when it is needed
}

// health is what outlives a reload: what this process counted while the store
// was away, and whether the store is. It belongs to the data behind a store.
type health struct {
	local *store.Memory

	mu       sync.Mutex
	state    storeState
	failures int // in a row
}

type storeState uint8

const (
	stateUnknown storeState = iota
	stateUp
	stateDown
)

// failuresToDown is how many calls in a row must fail before a store that has
// answered counts as away: fewer, and a store that loses one reply in twenty
// would be reported away and back all the time.
const failuresToDown = 3

var healthPool = caddy.NewUsagePool()

// Destruct implements caddy.Destructor. There is nothing to close.
func (*health) Destruct() error { return nil }

func openBackend(s store.Store, logger *zap.Logger) (*backend, error) {
	name := s.String()
	pooled, _, err := healthPool.LoadOrNew(name, func() (caddy.Destructor, error) {
		return &health{local: store.NewMemory(store.DefaultMaxKeys)}, nil
	})
	if err != nil {
		return nil, err
	}
	storeSeries.retain(name)
	return &backend{
		store: s, name: name, logger: logger, health: pooled.(*health),
		duration: sync.OnceValue(func() prometheus.Observer { return metrics.storeDuration.WithLabelValues(name) }),
	}, nil
}

func (b *backend) release() error {
	storeSeries.release(b.name)
	_, err := healthPool.Delete(b.name)
	return err
}

// clocked is a store that decides some calls by the clock of this process.
type clocked interface {
	TakeAt(now time.Time, wait time.Duration, asks []store.Ask, answers []store.Answer) error
}

// take asks the store, and takes note of how it fares. began is now.
func (b *backend) take(began time.Time, wait time.Duration, asks []store.Ask, answers []store.Answer) error {
	var err error
	if s, ok := b.store.(clocked); ok {
		err = s.TakeAt(began, wait, asks, answers)
	} else {
		err = b.store.Take(wait, asks, answers)
	}
	if err == nil && !slices.ContainsFunc(answers, func(a store.Answer) bool { return a.Source == store.FromStore && !a.Undecided }) {
		return nil // decided in this process: it says nothing about the store
	}
	b.observe(time.Since(began), wait, err)
	return err
}

func (b *backend) observe(took, wait time.Duration, err error) {
	b.duration().Observe(took.Seconds())
	if err != nil {
		metrics.storeErrors.WithLabelValues(b.name, string(store.ErrorKind(err))).Inc()
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.failures = 0
		if b.state != stateUp {
			metrics.storeUp.WithLabelValues(b.name).Set(1)
			if b.state == stateDown {
				b.logger.Info("the store is back; limits are shared again", zap.String("store", b.name))
			}
			b.state = stateUp
		}
		return
	}
	b.failures++
	if b.state == stateDown || (b.state == stateUp && b.failures < failuresToDown) {
		return
	}
	b.state = stateDown
	metrics.storeUp.WithLabelValues(b.name).Set(0)
	b.logger.Warn("the store gives no answer; until it is back, requests follow on_store_error, and limits that are kept locally are per instance",
		zap.String("store", b.name), zap.String("kind", string(store.ErrorKind(err))),
		zap.Duration("waited", took), zap.Duration("budget", wait), zap.Error(err))
}
