package distributedratelimit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/identity"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/loglimit"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func init() {
	caddy.RegisterModule(new(App))
}

const appID = "distributed_ratelimit"

// App holds what all distributed_ratelimit handlers of a configuration share:
// the store, and defaults. It need not be configured: without it the store is
// the memory of this process.
type App struct {
	// The store of all handlers without a store of their own. Default: memory,
	// in which each instance counts for itself.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=distributed_ratelimit.stores inline_key=module"`

	// Where the client's address comes from, for handlers that do not say so
	// themselves.
	identity.ClientAddress

	// The default of the handlers' on_store_error: `local`, `allow` or
	// `deny`. Default: `local`.
	OnStoreError string `json:"on_store_error,omitempty"`

	// The default of the handlers' budget. Default: 100ms.
	Budget caddy.Duration `json:"budget,omitempty"`

	// How handlers read bodies, if they do not say so themselves.
	BodyReading

	// What all bodies that are being read in the process may hold together, in
	// bytes, 1 MiB or more. A request whose body is needed and finds no room gets
	// 503. Default: 256 MiB.
	BodyMemory int64 `json:"body_memory,omitempty"`

	ctx      caddy.Context
	logger   *zap.Logger
	ipSource caddyhttp.IPRangeSource
	events   *emitter

	bodyWarnings loglimit.Limiter
	forwarding   loglimit.Fading // of the warning about headers that are not believed

	mu       sync.Mutex
	shared   *backend // opened by the first handler that needs it
	backends []*backend
	zones    map[zoneID]*Zone
	handlers []*Handler
}

// zoneID is the identity of a limit within a configuration: its name, in the
// data behind one store.
type zoneID struct{ store, zone string }

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  appID,
		New: func() caddy.Module { return new(App) },
	}
}

// Provision sets up the app. The store is opened here if it is configured,
// and otherwise when the first handler needs it.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.logger = ctx, ctx.Logger()
	a.zones = make(map[zoneID]*Zone)
	if mistake := a.check(); mistake != nil {
		return mistake
	}
	if err := registerMetrics(ctx); err != nil {
		return err
	}
	var err error
	if a.events, err = newEmitter(ctx); err != nil {
		return err
	}
	if a.TrustedProxiesRaw != nil {
		if a.ipSource, err = identity.LoadIPSource(ctx, &a.ClientAddress); err != nil {
			return err
		}
	}
	if a.StoreRaw != nil {
		_, err := a.sharedBackend()
		return err
	}
	return nil
}

func (a *App) check() *settings.Mistake {
	if mistake := identity.Check(&a.ClientAddress); mistake != nil {
		return mistake
	}
	if mistake := a.BodyReading.check(maxBodyLimit); mistake != nil {
		return mistake
	}
	if mistake := checkBodyMemory(a.BodyMemory); mistake != nil {
		return mistake
	}
	return checkStoreUse(a.OnStoreError, a.Budget)
}

// Start puts into force what must not change before the configuration runs: the
// bounds of a store and of memory that it shares with the previous configuration,
// and which backend logs the store's reports.
func (a *App) Start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	bodyMemory.SetLimit(cmp.Or(a.BodyMemory, defaultBodyMemory))
	for _, b := range a.backends {
		b.start()
	}
	running.add(a)
	return nil
}

// Stop ends nothing but what the admin API knows of the app: requests may still be on
// their way through handlers.
func (a *App) Stop() error {
	running.remove(a)
	return nil
}

// Cleanup releases the backends. An app whose configuration failed to start is not
// always stopped.
func (a *App) Cleanup() error {
	running.remove(a)
	a.mu.Lock()
	defer a.mu.Unlock()
	var err error
	for _, b := range a.backends {
		if e := b.release(); e != nil && err == nil {
			err = e
		}
	}
	a.backends, a.shared = nil, nil
	return err
}

// sharedBackend returns the backend of the handlers without a store of their
// own.
func (a *App) sharedBackend() (*backend, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shared != nil {
		return a.shared, nil
	}
	var module any
	var err error
	if a.StoreRaw != nil {
		module, err = a.ctx.LoadModule(a, "StoreRaw")
	} else {
		module, err = a.ctx.LoadModuleByID("distributed_ratelimit.stores.memory", nil)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the store: %v", err)
	}
	a.shared, err = a.newBackendLocked(module, a.logger)
	return a.shared, err
}

// newBackend makes a backend of a store module. It lives as long as the app.
func (a *App) newBackend(module any, logger *zap.Logger) (*backend, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.newBackendLocked(module, logger)
}

func (a *App) newBackendLocked(module any, logger *zap.Logger) (*backend, error) {
	s, ok := module.(store.Store)
	if !ok {
		return nil, fmt.Errorf("module %T is not a store: it must implement the interface store.Store", module)
	}
	b, err := openBackend(s, logger, a.ctx.Storage(), a.events)
	if err != nil {
		return nil, err
	}
	a.backends = append(a.backends, b)
	return b, nil
}

// registerZone makes sure that zones of one name, which are one limit, are
// configured alike, and finds the one that stands for them. The zones are kept in the app because each configuration has
// its own: during a reload, and while a configuration is only validated, the
// zones of the running one must not be in the way.
func (a *App) registerZone(store string, z *Zone) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := zoneID{store, z.storeName}
	other, ok := a.zones[id]
	if !ok {
		a.zones[id], z.same = z, z
		return nil
	}
	if mistake := z.conflict(other); mistake != nil {
		mistake.Zone = z.Name
		return mistake
	}
	z.same = other
	return nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
