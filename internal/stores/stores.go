// Package stores is the stores as modules of Caddy: their settings in JSON and in a
// Caddyfile, and which open store they stand for. The modules of configurations that
// have equal settings share one, so that a reload keeps counts and connections.
//
// How a store counts is up to packages store, store/lease and store/redis. A module may
// be used once it is provisioned and until Cleanup, by many goroutines at once.
package stores

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// storePool holds the open Redis stores, and the process's one memory, by the
// identity of their data and their settings, so that a reload keeps counts and
// connections.
var storePool = caddy.NewUsagePool()

// Parse parses: store <name> ...
//
// The current token is the word store. It returns the module's JSON.
func Parse(d *caddyfile.Dispenser) (json.RawMessage, error) {
	if !d.NextArg() {
		return nil, d.Err("store needs a name; write memory or redis")
	}
	name := d.Val()
	id := "distributed_ratelimit.stores." + name
	if _, err := caddy.GetModule(id); err != nil {
		return nil, d.Errf("there is no store %q; write memory or redis, or build Caddy with the plugin that has the module %s", name, id)
	}
	module, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return nil, err
	}
	s, ok := module.(store.Store)
	if !ok {
		return nil, d.Errf("module %s is not a store", id)
	}
	return caddyconfig.JSONModuleObject(s, "module", name, nil), nil
}
