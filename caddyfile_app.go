package distributedratelimit

import (
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/identity"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/stores"
)

func init() {
	httpcaddyfile.RegisterGlobalOption(directive, parseApp)
}

// parseApp parses the global option:
//
//	distributed_ratelimit {
//	    store memory|redis ...
//	    trusted_proxies <ip source module> ... | hops <n>
//	    client_ip_headers <header>
//	    on_store_error local|allow|deny
//	    budget <duration>
//	    body_limit <size>
//	    body_timeout <duration>
//	    body_memory <size>
//	}
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // the option
	if existing != nil {
		return nil, d.Err("distributed_ratelimit is configured twice in the global options; merge the blocks")
	}
	if d.NextArg() {
		return nil, d.Errf("the global option %s takes a block, not %q; limits belong into sites", directive, d.Val())
	}
	app, at := new(App), make(settings.Places)
	for d.NextBlock(0) {
		if err := at.Once(d, ""); err != nil {
			return nil, err
		}
		var err error
		switch d.Val() {
		case "store":
			app.StoreRaw, err = stores.Parse(d)
		case "trusted_proxies":
			err = identity.ParseTrustedProxies(d, &app.ClientAddress)
		case "client_ip_headers":
			err = identity.ParseClientIPHeaders(d, &app.ClientAddress)
		case "on_store_error":
			err = settings.ParseWord(d, &app.OnStoreError)
		case "budget":
			err = settings.ParseDuration(d, &app.Budget)
		case "body_limit":
			err = settings.ParseSize(d, &app.BodyLimit)
		case "body_timeout":
			err = settings.ParseDuration(d, &app.BodyTimeout)
		case "body_memory":
			err = settings.ParseSize(d, &app.BodyMemory)
		case "zone":
			err = d.Err("zone belongs into a site's distributed_ratelimit; the global option has what all sites share")
		default:
			err = unknownOption(d, "store, trusted_proxies, client_ip_headers, on_store_error, budget, body_limit, body_timeout or body_memory")
		}
		if err != nil {
			return nil, err
		}
	}
	if mistake := app.check(); mistake != nil {
		return nil, at.Locate(d, mistake)
	}
	return httpcaddyfile.App{Name: appID, Value: caddyconfig.JSON(app, nil)}, nil
}
