package distributedratelimit

import (
	"cmp"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

func init() {
	caddy.RegisterModule(new(MemoryStore))
}

// MemoryStore counts in the memory of this process. It needs no server, and
// every instance counts for itself: N instances grant up to N times a limit,
// and a restart forgets everything.
type MemoryStore struct {
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
func (*MemoryStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "distributed_ratelimit.stores.memory",
		New: func() caddy.Module { return new(MemoryStore) },
	}
}

// Provision takes the process's one memory. It keeps its bound until the
// configuration starts: this one may never run.
func (m *MemoryStore) Provision(ctx caddy.Context) error {
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

func (m *MemoryStore) check() *settings.Mistake {
	if m.MaxKeys < 0 || m.MaxKeys > maxMaxKeys {
		return settings.Wrong("max_keys", "max_keys %d is not between 1 and %d", m.MaxKeys, maxMaxKeys)
	}
	return nil
}

// FallbackSettings implements fallback.Configured.
func (m *MemoryStore) FallbackSettings() fallback.Settings {
	return fallback.Settings{Infallible: true}
}

// Start implements Starter.
func (m *MemoryStore) Start() { m.pooled.SetMaxKeys(cmp.Or(m.MaxKeys, store.DefaultMaxKeys)) }

// Cleanup releases the memory; requests still in flight may go on using it.
func (m *MemoryStore) Cleanup() error {
	if m.pooled == nil {
		return nil
	}
	_, err := storePool.Delete(memoryPoolKey)
	return err
}

// Take implements store.Store.
func (m *MemoryStore) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	return m.pooled.Take(now, wait, requests, decisions)
}

// Refund implements store.Store.
func (m *MemoryStore) Refund(wait time.Duration, refunds []store.Refund) error {
	return m.pooled.Refund(wait, refunds)
}

// String implements store.Store.
func (m *MemoryStore) String() string { return m.pooled.String() }

// Amend implements store.Steered.
func (m *MemoryStore) Amend(wait time.Duration, key store.Key, amendment store.Amendment) error {
	return m.pooled.Amend(wait, key, amendment)
}

// Post implements store.Steered.
func (m *MemoryStore) Post(wait time.Duration, notice store.Notice, most int) error {
	return m.pooled.Post(wait, notice, most)
}

// Withdraw implements store.Steered.
func (m *MemoryStore) Withdraw(wait time.Duration, class byte, name string) (found bool, err error) {
	return m.pooled.Withdraw(wait, class, name)
}

// WatchBoard implements store.Steered.
func (m *MemoryStore) WatchBoard(do func([]store.Notice)) (stop func()) {
	return m.pooled.WatchBoard(do)
}

// Interface guards
var (
	_ store.Steered       = (*MemoryStore)(nil)
	_ Starter             = (*MemoryStore)(nil)
	_ fallback.Configured = (*MemoryStore)(nil)
)
