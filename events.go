package distributedratelimit

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/loglimit"
)

// The events that the app emits, all with itself as their origin. None holds a key.
const (
	eventStoreAway  = "store_away"
	eventStoreBack  = "store_back"
	eventDataLost   = "data_lost"
	eventKeyBlocked = "key_blocked"
)

// eventsKept is how many events wait for handlers that are slow.
const eventsKept = 64

// emitter emits events. What it is told of must not wait, and handlers may take as long as
// they like: they run in a goroutine of their own, one event after the other. It is safe
// for concurrent use; a nil emitter emits nothing.
type emitter struct {
	ctx    caddy.Context
	app    *caddyevents.App
	logger *zap.Logger
	full   loglimit.Limiter

	mu      sync.Mutex
	started bool // the configuration runs
	busy    bool // a goroutine emits
	waiting []namedEvent
}

type namedEvent struct {
	name string
	data map[string]any
}

// newEmitter is for an app that is being provisioned.
func newEmitter(ctx caddy.Context) (*emitter, error) {
	app, err := ctx.App("events")
	if err != nil {
		return nil, fmt.Errorf("loading the events app: %v", err)
	}
	m := &emitter{ctx: ctx, app: app.(*caddyevents.App), logger: ctx.Logger()}
	// Apps start in any order, and until the events app has started nobody may ask it who
	// listens.
	if err := m.app.On("started", afterStart{m}); err != nil {
		return nil, fmt.Errorf("waiting for the start: %v", err)
	}
	return m, nil
}

// afterStart is told when the configuration runs.
type afterStart struct{ emitter *emitter }

// Handle implements caddyevents.Handler.
func (a afterStart) Handle(context.Context, caddy.Event) error {
	a.emitter.start()
	return nil
}

func (m *emitter) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = true
	m.runLocked()
}

// emit has an event emitted soon. The data must not be changed afterwards.
func (m *emitter) emit(name string, data map[string]any) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started && !m.app.ShouldEmit(name) {
		return
	}
	if len(m.waiting) >= eventsKept {
		if suppressed, ok := m.full.Allow(1, time.Minute); ok {
			m.logger.Warn("handlers of events are too slow; some events are left out",
				zap.String("event", name), zap.Int64("suppressed", suppressed))
		}
		return
	}
	m.waiting = append(m.waiting, namedEvent{name, data})
	m.runLocked()
}

func (m *emitter) runLocked() {
	if m.started && !m.busy && len(m.waiting) > 0 {
		m.busy = true
		go m.run()
	}
}

func (m *emitter) run() {
	for {
		m.mu.Lock()
		if len(m.waiting) == 0 || m.ctx.Err() != nil { // the configuration is gone
			m.busy, m.waiting = false, nil
			m.mu.Unlock()
			return
		}
		next := m.waiting[0]
		m.waiting = m.waiting[1:]
		m.mu.Unlock()
		m.handle(next)
	}
}

// handle has the handlers of an event called. Caddy lets their panics pass, which in this
// goroutine would end the process.
func (m *emitter) handle(event namedEvent) {
	defer func() {
		if p := recover(); p != nil {
			m.logger.Error("a handler of an event panicked",
				zap.String("event", event.name), zap.Any("panic", p), zap.StackSkip("stack", 1))
		}
	}()
	m.app.Emit(m.ctx, event.name, event.data)
}

// Interface guard
var _ caddyevents.Handler = afterStart{}
