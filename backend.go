package distributedratelimit

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// backend is a store as the handlers of one configuration use it: measured,
// its failures noticed, and with what decides while it is away.
type backend struct {
	store  store.Store
	shared store.Shared // tells how its servers fare; or nil
	name   string       // of the data behind the store
	logger *zap.Logger
	*health
	hurried logLimiter
	storage storage // outlives the process; or nil

	feeds    bool                       // the standby is kept warm
	cautious bool                       // on_data_loss
	duration func() prometheus.Observer // looked up once, when it is needed; nil if the series are gone
	unwatch  func()
	inTouch  atomic.Bool // a server of the store has answered

	// Guarded by the mutex of health.
	started bool
	reports map[string]store.Report // the last one of each server
}

// openBackend makes a backend of a store. It must be released. Without a
// storage nothing is kept for the next process.
func openBackend(s store.Store, logger *zap.Logger, kept storage) (*backend, error) {
	name := s.String()
	h, err := openHealth(name)
	if err != nil {
		return nil, err
	}
	storeSeries.retain(name)
	b := &backend{
		store: s, name: name, logger: logger, health: h, storage: kept,
		reports: make(map[string]store.Report), unwatch: func() {},
		duration: sync.OnceValue(func() (o prometheus.Observer) {
			storeSeries.ifHeld(name, func() { o = metrics.storeDuration.WithLabelValues(name) })
			return o
		}),
	}
	_, memory := s.(*MemoryStore)
	b.feeds = !memory // it never fails
	if c, ok := s.(careful); ok {
		b.cautious = c.Cautious()
	}
	shared, ok := s.(store.Shared)
	if ok && kept != nil && h.instances.Load() == 0 {
		h.recall(b)
	}
	h.join(b)
	if ok {
		b.shared = shared
		b.unwatch = b.shared.Watch(func(r store.Report) { h.heard(b, r) })
	}
	return b, nil
}

// start makes the backend the one whose reports count: its configuration runs.
func (b *backend) start() {
	if s, ok := b.store.(interface{ start() }); ok {
		s.start()
	}
	b.health.promote(b)
}

func (b *backend) release() error {
	b.unwatch()
	b.health.leave(b)
	storeSeries.release(b.name)
	return closeHealth(b.name)
}

// careful is a store that may be told to be cautious when it has lost counts.
type careful interface{ Cautious() bool }

// clocked is a store that decides some calls by the clock of this process.
type clocked interface {
	TakeAt(now time.Time, wait time.Duration, asks []store.Ask, answers []store.Answer) error
}

// take asks the store, and takes note of how it fares. began is now. What is
// owed to the store for the same keys is reported with it. It returns how long
// it waited for the store, 0 if the store was not asked.
func (b *backend) take(began time.Time, wait time.Duration, asks []store.Ask, answers []store.Answer) (took time.Duration, err error) {
	// Without time to wait only this process can decide; a lease does so only
	// for asks that owe nothing.
	attached := wait > 0 && b.standby.Attach(asks)
	if s, ok := b.store.(clocked); ok {
		err = s.TakeAt(began, wait, asks, answers)
	} else {
		err = b.store.Take(wait, asks, answers)
	}
	if attached {
		b.detach(asks, answers, err)
	}
	if err == nil && !slices.ContainsFunc(answers, fromStore) {
		return 0, nil // decided in this process: it says nothing about the store
	}
	took = time.Since(began)
	b.observe(took, err)
	return took, err
}

func fromStore(a store.Answer) bool { return a.Source == store.FromStore && !a.Undecided }

// detach takes back what was not reported: the store was certainly not asked,
// or not about all of the asks.
func (b *backend) detach(asks []store.Ask, answers []store.Answer, err error) {
	if err != nil {
		b.standby.DetachFailed(asks, err)
		return
	}
	for i := range asks {
		b.standby.Detach(asks[i:i+1], !fromStore(answers[i]))
	}
}

// feed keeps the standby warm with what the store granted.
func (b *backend) feed(asks []store.Ask, answers []store.Answer) {
	if b.feeds {
		b.standby.Feed(asks, answers)
	}
}

// instances is how many share the limits, as far as is known.
func (b *backend) instances() int {
	if b.shared == nil {
		return 1
	}
	n := b.shared.Instances()
	if !b.inTouch.Load() {
		// The store of before a reload or a restart knew better.
		n = max(n, int(b.health.instances.Load()))
	}
	return max(1, n)
}

// observe counts a call to the store. Of a shared store it says no more than
// that: how its servers fare, they report themselves.
func (b *backend) observe(took time.Duration, err error) {
	kind := store.Kind("")
	if err != nil {
		kind = store.ErrorKind(err)
		storeSeries.ifHeld(b.name, func() { metrics.storeErrors.WithLabelValues(b.name, string(kind)).Inc() })
	}
	if kind == store.KindBudget { // nothing was sent, and that was no fault of the store
		if suppressed, ok := b.hurried.allow(1, logMinute); ok {
			b.logger.Warn("requests have no time left to ask the store after other handlers have; on_store_error decides. "+
				"Write the zones into one handler, or raise budget to several round trips for each",
				zap.String("store", b.name), zap.Int64("suppressed", suppressed))
		}
		return
	}
	if kind != store.KindAway { // else nothing was sent
		if duration := b.duration(); duration != nil {
			duration.Observe(took.Seconds())
		}
	}
	if b.shared == nil {
		b.health.judge(b, err)
	}
}
