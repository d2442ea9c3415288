package stores

import (
	"cmp"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

func init() {
	caddy.RegisterModule(new(Memory))
}

// Memory counts in the memory of this process. It needs no server, and
// every instance counts for itself: N instances grant up to N times a limit,
// and a restart forgets everything.
type Memory struct {
	// How many keys are remembered at most, 1 to 100,000,000. At the bound a
	// new key takes the place of one that has expired, or of the one in a
	// sample that had used the least of its limit; a client that is being
	// refused is never forgotten. If there is no such place, new clients
	// share what is left among them. Default: 100000.
	MaxKeys int `json:"max_keys,omitempty"`

	pooled *pooledMemory
}

type pooledMemory struct{ *store.Memory }

// Destruct implements caddy.Destructor. There is nothing to close.
func (pooledMemory) Destruct() error { return nil }

const (
	memoryPoolKey = "memory"
	maxMaxKeys    = 100_000_000
)

// CaddyModule returns the Caddy module information.
func (*Memory) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "distributed_ratelimit.stores.memory",
		New: func() caddy.Module { return new(Memory) },
	}
}

// Provision takes the process's one memory. It keeps its bound until the
// configuration starts: this one may never run.
func (m *Memory) Provision(ctx caddy.Context) error {
	if mistake := m.check(); mistake != nil {
		return mistake
	}
	pooled, _, err := storePool.LoadOrNew(memoryPoolKey, func() (caddy.Destructor, error) {
		return &pooledMemory{store.NewMemory(cmp.Or(m.MaxKeys, store.DefaultMaxKeys))}, nil
	})
	if err != nil {
		return err
	}
	m.pooled = pooled.(*pooledMemory)
	ctx.Logger().Warn("the store is this process's memory: every instance counts for itself, and a restart forgets; " +
		"to share the limits, configure: distributed_ratelimit { store redis <url> }")
	return nil
}

func (m *Memory) check() *settings.Mistake {
	if m.MaxKeys < 0 || m.MaxKeys > maxMaxKeys {
		return settings.Wrong("max_keys", "max_keys %d is not between 1 and %d", m.MaxKeys, maxMaxKeys)
	}
	return nil
}

// FallbackSettings implements fallback.Configured.
func (m *Memory) FallbackSettings() fallback.Settings {
	return fallback.Settings{Infallible: true}
}

// Start puts the bound into force: the configuration runs.
func (m *Memory) Start() { m.pooled.SetMaxKeys(cmp.Or(m.MaxKeys, store.DefaultMaxKeys)) }

// Cleanup releases the memory; requests still in flight may go on using it.
func (m *Memory) Cleanup() error {
	if m.pooled == nil {
		return nil
	}
	_, err := storePool.Delete(memoryPoolKey)
	return err
}

// Take implements store.Store.
func (m *Memory) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	return m.pooled.Take(now, wait, requests, decisions)
}

// Refund implements store.Store.
func (m *Memory) Refund(wait time.Duration, refunds []store.Refund) error {
	return m.pooled.Refund(wait, refunds)
}

// Held returns how many keys are remembered, of how many at most.
func (m *Memory) Held() (keys, most int) { return m.pooled.Len(), m.pooled.MaxKeys() }

// Inflight returns nil: requests in flight are this process's.
func (*Memory) Inflight() inflight.Shared { return nil }

// String implements store.Store.
func (m *Memory) String() string { return m.pooled.String() }

// Amend implements store.Steered.
func (m *Memory) Amend(wait time.Duration, key store.Key, amendment store.Amendment) error {
	return m.pooled.Amend(wait, key, amendment)
}

// Post implements store.Steered.
func (m *Memory) Post(wait time.Duration, notice store.Notice, most int) error {
	return m.pooled.Post(wait, notice, most)
}

// Withdraw implements store.Steered.
func (m *Memory) Withdraw(wait time.Duration, class byte, name string) (found bool, err error) {
	return m.pooled.Withdraw(wait, class, name)
}

// WatchBoard implements store.Steered.
func (m *Memory) WatchBoard(do func([]store.Notice)) (stop func()) {
	return m.pooled.WatchBoard(do)
}

// Interface guards
var (
	_ store.Steered       = (*Memory)(nil)
	_ fallback.Configured = (*Memory)(nil)
)
