package identity

import (
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
)

// ParseTrustedProxies parses:
//
//	trusted_proxies <ip source module> ... | hops <n>
func ParseTrustedProxies(d *caddyfile.Dispenser, into *ClientAddress) error {
	if !d.NextArg() {
		return d.Err("trusted_proxies needs an IP source; write for example: trusted_proxies static private_ranges")
	}
	at, name := *d, d.Val()
	if name == "hops" {
		if err := settings.ParseInteger(d, &into.TrustedHops); err != nil {
			return err
		}
		if into.TrustedHops == 0 {
			return d.Err("hops 0 are not between 1 and 32; write how many proxies a request passes")
		}
		return nil
	}
	if settings.LooksLikeRange(name) {
		rest := append([]string{name}, d.RemainingArgs()...)
		return d.Errf("%q is not an IP source; write: trusted_proxies static %s", name, strings.Join(rest, " "))
	}
	id := "http.ip_sources." + name
	if _, err := caddy.GetModule(id); err != nil {
		return d.Errf("there is no IP source %q; write for example: trusted_proxies static private_ranges, or build Caddy with the plugin that has the module %s", name, id)
	}
	module, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	ipSource, ok := module.(caddyhttp.IPRangeSource)
	if !ok {
		return d.Errf("module %q is not an IP source; write for example: trusted_proxies static private_ranges", name)
	}
	if err := checkStaticRanges(ipSource); err != nil {
		return at.Errf("trusted_proxies: %v", err)
	}
	into.TrustedProxiesRaw = caddyconfig.JSONModuleObject(ipSource, "source", name, nil)
	return nil
}

// checkStaticRanges finds mistakes in ranges that are written out. The ranges of
// other IP sources are only known to the server.
func checkStaticRanges(ipSource caddyhttp.IPRangeSource) error {
	static, ok := ipSource.(*caddyhttp.StaticIPRange)
	if !ok {
		return nil
	}
	module, err := settings.ProvisionAlone("http.ip_sources.static", caddyconfig.JSON(static, nil))
	switch {
	case err != nil && slices.ContainsFunc(static.Ranges, settings.HasPlaceholder):
		return fmt.Errorf("%v; the IP source static knows no placeholders, but environment variables can be written as {$PROXIES}", err)
	case err != nil:
		return fmt.Errorf("%v; %s", err, settings.WriteRanges)
	}
	return checkTrustable(module.(caddyhttp.IPRangeSource))
}

// ParseClientIPHeaders parses:
//
//	client_ip_headers <header>...
func ParseClientIPHeaders(d *caddyfile.Dispenser, into *ClientAddress) error {
	if into.ClientIPHeaders = d.RemainingArgs(); len(into.ClientIPHeaders) == 0 {
		return d.Err("client_ip_headers needs the name of a header; write for example: client_ip_headers X-Forwarded-For")
	}
	return nil
}
