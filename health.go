package distributedratelimit

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// health is what outlives a reload: how the servers of a store fare, when they
// lost counts, and what this process granted while they were away. It belongs
// to the data behind a store, so that the configurations of before and after a
// reload, which both watch, report each change once.
type health struct {
	standby *store.Standby
	lost    atomic.Pointer[time.Time] // the last loss, nil if there was none
	losses  logLimiter
	away    atomic.Bool // servers are known, and none of them is up
	// instances is how many shared the limits when a server answered last.
	// A process before this one may have known it, see recall.
	instances  atomic.Int64
	memoBroken atomic.Bool // the storage has failed, and that is known

	// calm: the last call of a store that does not report went well, and that
	// is known.
	calm atomic.Bool

	mu       sync.Mutex
	backends []*backend // the one whose reports count is the last
	servers  map[string]*server
	failures int   // in a row, of a store that does not report
	warned   bool  // that the number of instances is not known
	writing  bool  // the number of instances, soon
	written  int64 // the one that was written last
	settling bool
	again    bool // another server is back since that began
}

// server is what is known of one server.
type server struct {
	condition store.Condition
	lost      time.Time
}

const (
	// failuresToDown is how many calls in a row must fail before a store that
	// has answered, and does not report by itself, counts as away: fewer, and
	// a store that loses one reply in twenty would be reported away and back
	// all the time.
	failuresToDown = 3
	// sameLoss is the time within which losses of one server are one: each
	// configuration's store may notice it.
	sameLoss = 5 * time.Second
	// settleWait is how long the store has for each call that reports what
	// was spent without it.
	settleWait = time.Second
)

var healthPool = caddy.NewUsagePool()

func openHealth(name string) (*health, error) {
	pooled, _, err := healthPool.LoadOrNew(name, func() (caddy.Destructor, error) {
		return &health{standby: store.NewStandby(), servers: make(map[string]*server)}, nil
	})
	if err != nil {
		return nil, err
	}
	return pooled.(*health), nil
}

func closeHealth(name string) error {
	_, err := healthPool.Delete(name)
	return err
}

// Destruct implements caddy.Destructor. There is nothing to close.
func (*health) Destruct() error { return nil }

// join adds a backend. Its reports do not count yet if another configuration
// runs: it may only be being validated.
func (h *health) join(b *backend) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.backends); n > 0 && h.backends[n-1].started {
		h.backends = slices.Insert(h.backends, 0, b)
	} else {
		h.backends = append(h.backends, b)
	}
}

// promote makes the reports of b count.
func (h *health) promote(b *backend) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b.started = true
	defer h.memorizeLocked()
	i := slices.Index(h.backends, b)
	if i < 0 {
		return
	}
	h.backends = append(slices.Delete(h.backends, i, i+1), b)
	h.replayLocked()
}

// leave removes b. If its reports counted, those of another one do now.
func (h *health) leave(b *backend) {
	h.mu.Lock()
	defer h.mu.Unlock()
	led := h.leaderLocked() == b
	h.backends = slices.DeleteFunc(h.backends, func(other *backend) bool { return other == b })
	if led {
		h.replayLocked()
	}
	h.pruneLocked()
}

// pruneLocked forgets the servers of which no store speaks any more: those of
// one that was replaced at a reload.
func (h *health) pruneLocked() {
	b := h.leaderLocked()
	if b == nil || len(b.reports) == 0 {
		return // there are no reports, or none yet
	}
	for name := range h.servers {
		spokenOf := func(b *backend) bool { _, ok := b.reports[name]; return ok }
		if !slices.ContainsFunc(h.backends, spokenOf) {
			delete(h.servers, name)
			metrics.storeUp.DeleteLabelValues(b.name, name)
		}
	}
}

// leaderLocked is the backend whose reports count, nil if none is left.
func (h *health) leaderLocked() *backend {
	if n := len(h.backends); n > 0 {
		return h.backends[n-1]
	}
	return nil
}

// replayLocked takes in what the leader has heard before it was that.
func (h *health) replayLocked() {
	if b := h.leaderLocked(); b != nil {
		for _, r := range b.reports {
			h.followLocked(b, r)
		}
	}
}

// heard takes in a report of b's store.
func (h *health) heard(b *backend, r store.Report) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.backends, b) {
		return // it was released, and its series are gone
	}
	if r.Lost != "" {
		h.loseLocked(r)
		r.Lost = ""
	}
	if r.Condition == store.Up || r.Condition == store.Slow {
		b.inTouch.Store(true)
		h.instances.Store(int64(r.Instances))
		h.memorizeLocked()
	}
	b.reports[r.Server] = r
	if r.Condition == store.Gone {
		delete(b.reports, r.Server)
	}
	if h.leaderLocked() == b {
		h.followLocked(b, r)
		h.pruneLocked()
	}
}

// judge makes a report of how a call of a request ended, for a store that
// sends none. Its one server has the name of the store.
func (h *health) judge(b *backend, err error) {
	if err == nil && h.calm.Load() {
		return
	}
	r := store.Report{Server: b.name, Condition: store.Up, Err: err}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.backends, b) {
		return
	}
	h.calm.Store(err == nil)
	if err == nil {
		h.failures = 0
	} else {
		if h.failures++; h.serverLocked(b.name).condition == store.Up && h.failures < failuresToDown {
			return
		}
		r.Condition = store.Away
	}
	h.followLocked(h.leaderLocked(), r)
}

func (h *health) serverLocked(name string) *server {
	s := h.servers[name]
	if s == nil {
		s = new(server)
		h.servers[name] = s
	}
	return s
}

// followLocked makes what the leader b heard visible, if it is news.
func (h *health) followLocked(b *backend, r store.Report) {
	if r.Instances > 0 {
		metrics.storeInstances.WithLabelValues(b.name).Set(float64(r.Instances))
	}
	if r.Condition == store.Gone {
		delete(h.servers, r.Server)
		metrics.storeUp.DeleteLabelValues(b.name, r.Server)
		return
	}
	s := h.serverLocked(r.Server)
	before := s.condition
	if r.Condition == before || r.Condition == store.Unknown {
		return
	}
	s.condition = r.Condition
	up := 0.0
	fields := []zap.Field{zap.String("store", b.name), zap.String("server", r.Server)}
	switch r.Condition {
	case store.Up:
		up = 1
		if before != store.Unknown {
			b.logger.Info("the store is back; limits are shared again", fields...)
		}
		h.settleLocked()
	case store.Slow:
		b.logger.Warn("the store answers too late; limits are now per instance",
			append(fields, zap.Duration("took", r.Took), zap.Duration("budget", r.Wait))...)
	case store.Away:
		b.logger.Warn("the store gives no answer; until it is back, requests follow on_store_error, and limits that are kept locally are per instance",
			append(fields, zap.Error(r.Err))...)
		h.warnAloneLocked(b, r.Instances)
	}
	metrics.storeUp.WithLabelValues(b.name, r.Server).Set(up)
	away := true
	for _, s := range h.servers {
		away = away && s.condition != store.Up
	}
	h.away.Store(away)
}

// warnAloneLocked tells, once, that nobody knows how many instances there are.
// The store has said that there are so many; it is not asked, since whoever
// reports may hold its locks.
func (h *health) warnAloneLocked(b *backend, instances int) {
	if b.shared == nil || b.inTouch.Load() || h.instances.Load() > 0 || h.warned {
		return
	}
	if s, ok := b.store.(interface{ expects() int }); ok && s.expects() > 0 || instances > 1 {
		return
	}
	h.warned = true
	b.logger.Warn("the store has never been reached, and nobody knows how many instances share it: until it has been reached once, each instance grants the whole limit where on_store_error is local; set the store's option `instances` to their number",
		zap.String("store", b.name))
}

// loseLocked notes that a server has lost counts.
func (h *health) loseLocked(r store.Report) {
	now := time.Now()
	h.lost.Store(&now)
	s := h.serverLocked(r.Server)
	if !s.lost.IsZero() && now.Sub(s.lost) < sameLoss {
		return
	}
	s.lost = now
	b := h.leaderLocked()
	metrics.storeLosses.WithLabelValues(b.name).Inc()
	suppressed, ok := h.losses.allow(1, logMinute)
	if !ok {
		return
	}
	policy := dataLossContinue
	if b.cautious {
		policy = dataLossCautious
	}
	b.logger.Warn("the store has lost counts; clients may be granted up to one limit more",
		zap.String("store", b.name), zap.String("server", r.Server), zap.String("how", r.Lost),
		zap.String("on_data_loss", policy), zap.Int64("suppressed", suppressed))
}

var errReleased = errors.New("no configuration uses the store any more")

// settleLocked reports what was spent without the store, in the background.
func (h *health) settleLocked() {
	if h.settling || h.standby.Owing() == 0 {
		h.again = h.settling
		return
	}
	h.settling = true
	go func() {
		h.standby.Settle(func(asks []store.Ask, answers []store.Answer) error {
			h.mu.Lock()
			b := h.leaderLocked()
			h.mu.Unlock()
			if b == nil {
				return &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errReleased}
			}
			return b.store.Take(settleWait, asks, answers)
		})
		h.mu.Lock()
		defer h.mu.Unlock()
		again := h.again
		h.settling, h.again = false, false
		if again {
			h.settleLocked()
		}
	}()
}
