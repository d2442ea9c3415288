// Package identity decides who the client of an HTTP request is, as it is configured: by the
// trusted proxies and the header of a handler, else of the app, else of the server.
//
// The rules themselves are package ipident's. Here is what they need of Caddy: its IP
// sources, what its server trusts, and the Caddyfile; and warnings about headers that are
// not believed.
package identity

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/loglimit"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// ClientAddress says where the address of a client comes from when it is not
// the peer that is connected.
type ClientAddress struct {
	// The proxies that are trusted to name the client in a header, as a
	// module of Caddy's namespace http.ip_sources. Ranges that hold every
	// address are an error: anyone could name any client.
	TrustedProxiesRaw json.RawMessage `json:"trusted_proxies,omitempty" caddy:"namespace=http.ip_sources inline_key=source"`

	// Instead of trusted_proxies, for load balancers whose addresses are not
	// known: how many proxies each request passes, 1 to 32. The client is
	// exactly the element of the list that many places from the right, or the
	// peer if it has fewer. A client that reaches Caddy without passing through
	// all of them chooses its address; each of them must append to the header.
	TrustedHops int `json:"trusted_hops,omitempty"`

	// The one header in which they name it. X-Forwarded-For and Forwarded are
	// lists, read from the right up to the first address that is not a
	// trusted proxy; any other header must hold a single address.
	// Default: X-Forwarded-For.
	ClientIPHeaders []string `json:"client_ip_headers,omitempty"`
}

// Check finds the first mistake in the settings that shows without the server. It is a
// function, so that what embeds the settings has no such method.
func Check(c *ClientAddress) *settings.Mistake {
	if c.TrustedHops != 0 {
		if c.TrustedProxiesRaw != nil {
			return settings.Wrong("trusted_proxies", "trusted_hops and trusted_proxies exclude each other; remove one")
		}
		header := "X-Forwarded-For"
		if len(c.ClientIPHeaders) > 0 {
			header = c.ClientIPHeaders[0]
		}
		if rules, err := ipident.NewRules(header); err == nil {
			if _, err := rules.WithHops(c.TrustedHops); err != nil {
				return settings.Wrong("trusted_proxies", "trusted_proxies: %v", err)
			}
		}
	}
	switch len(c.ClientIPHeaders) {
	case 0:
		return nil
	case 1:
		if c.ClientIPHeaders[0] == "" {
			return settings.Wrong("client_ip_headers", "client_ip_headers has an empty name; name the header that your proxies set, or remove it")
		}
		if _, err := ipident.NewRules(c.ClientIPHeaders[0]); err != nil {
			return settings.Wrong("client_ip_headers", "%v", err)
		}
		return nil
	}
	return settings.Wrong("client_ip_headers", "client_ip_headers has %d headers; name the one that your proxies set: "+
		"a client could write any other one itself", len(c.ClientIPHeaders))
}

// Finder decides who the client of a request is, by the rules of one handler. It is safe for
// concurrent use.
type Finder struct {
	rules  ipident.Rules
	ranges *rangesTrust // nil if the server decides, or hops are counted
	server *serverTrust // nil unless the server decides
	// trustsProxies: some peers may be proxies, as far as is known at load.
	trustsProxies bool

	logger     *zap.Logger
	log        loglimit.Limiter
	unix       sync.Once
	forwarding *loglimit.Fading // see warnOfForwarding
}

// New finds the rules of the handler, else of the app, else of the server, which is that of
// the context. Trusted proxies and the header are looked for separately. sharedIPSource is
// the app's, of LoadIPSource, nil if it has none; forwarding limits what all handlers
// together log of headers that are not believed.
func New(ctx caddy.Context, own, shared *ClientAddress, sharedIPSource caddyhttp.IPRangeSource, forwarding *loglimit.Fading, logger *zap.Logger) (*Finder, error) {
	server, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	id := &Finder{logger: logger, forwarding: forwarding}

	ipSource, hops := sharedIPSource, shared.TrustedHops
	switch {
	case own.TrustedHops != 0:
		ipSource, hops = nil, own.TrustedHops
	case own.TrustedProxiesRaw != nil:
		hops = 0
		var err error
		if ipSource, err = LoadIPSource(ctx, own); err != nil {
			return nil, err
		}
	}
	if ipSource != nil {
		id.ranges = &rangesTrust{ipSource: ipSource, logger: logger}
	} else if hops == 0 {
		id.server = newServerTrust(server, logger)
	}
	id.trustsProxies = ipSource != nil || hops > 0 || HasTrustedProxies(server)

	header := "X-Forwarded-For"
	switch {
	case len(own.ClientIPHeaders) > 0:
		header = own.ClientIPHeaders[0]
	case len(shared.ClientIPHeaders) > 0:
		header = shared.ClientIPHeaders[0]
	case ipSource == nil && hops == 0 && server != nil && len(server.ClientIPHeaders) > 0:
		header = server.ClientIPHeaders[0]
		if len(server.ClientIPHeaders) > 1 {
			logger.Warn("only the first of the server's client_ip_headers is read, because a client could write the others itself; "+
				"set client_ip_headers of distributed_ratelimit to choose another one",
				zap.String("header", header), zap.Strings("client_ip_headers", server.ClientIPHeaders))
		}
	}
	var err error
	if id.rules, err = ipident.NewRules(header); err == nil && hops > 0 {
		id.rules, err = id.rules.WithHops(hops)
	}
	return id, err
}

// LoadIPSource loads the IP source of the settings, which must have one. It fails if that
// holds nearly every address. If it comes to hold them later, they are not trusted.
func LoadIPSource(ctx caddy.Context, c *ClientAddress) (caddyhttp.IPRangeSource, error) {
	module, err := ctx.LoadModule(c, "TrustedProxiesRaw")
	if err != nil {
		return nil, fmt.Errorf("loading trusted_proxies: %v", err)
	}
	ipSource, ok := module.(caddyhttp.IPRangeSource)
	if !ok {
		return nil, fmt.Errorf("trusted_proxies: module %T is not an IP source: it must implement caddyhttp.IPRangeSource", module)
	}
	if err := checkTrustable(ipSource); err != nil {
		return nil, fmt.Errorf("trusted_proxies: %v", err)
	}
	return ipSource, nil
}

// forwardingHeaders are what proxies name their clients in, in canonical form.
var forwardingHeaders = []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "Cf-Connecting-Ip", "True-Client-Ip"}

// warnOfForwarding warns of a peer that is not trusted but names its client in a
// header. It may be a bot that tries its luck; or the site's own proxy, all of whose
// visitors share one limit then, and nothing else tells. What a stranger wrote is not
// logged. Bots never end, so the lines become rarer.
func (id *Finder) warnOfForwarding(r *http.Request, peer ipident.Result) {
	if len(r.Header) == 0 {
		return
	}
	name := id.rules.Header()
	if len(r.Header[name]) == 0 {
		i := slices.IndexFunc(forwardingHeaders, func(h string) bool { return len(r.Header[h]) > 0 })
		if i < 0 {
			return
		}
		name = forwardingHeaders[i]
	}
	suppressed, ok := id.forwarding.Allow()
	if !ok {
		return
	}
	id.logger.Warn("a peer that is not trusted names its client in a header, which is not believed: if it is your proxy or CDN, all of its visitors share one limit; "+
		"name its addresses in trusted_proxies, and this header in client_ip_headers. If it is a client, nothing needs to be done",
		zap.Stringer("peer", peer), zap.String("header", name), zap.Int64("suppressed", suppressed))
}

// Header is the name of the header that proxies name the client in, in canonical form.
func (id *Finder) Header() string { return id.rules.Header() }

// TrustsProxies reports whether some peers may be proxies, as far as is known at load.
func (id *Finder) TrustsProxies() bool { return id.trustsProxies }

// Client decides who the client of r is, which has these variables. It logs what may be a
// mistake in the configuration, a few lines a minute.
func (id *Finder) Client(r *http.Request, vars map[string]any) ipident.Result {
	client := id.Find(r, vars)
	switch client.Reason {
	case ipident.ReasonMalformed, ipident.ReasonDuplicate, ipident.ReasonTooLong, ipident.ReasonTooFewHops, ipident.ReasonBadPeer:
		if suppressed, ok := id.log.Allow(1, time.Minute); ok {
			id.logger.Warn("the client's address could not be read from the header; using the nearest address that a trusted proxy vouched for",
				zap.String("header", id.rules.Header()), zap.Stringer("reason", client.Reason),
				zap.Stringer("client_ip", client), zap.Int64("suppressed", suppressed))
		}
	case ipident.ReasonPeer, ipident.ReasonUntrustedPeer:
		id.warnOfForwarding(r, client)
	case ipident.ReasonUnix:
		id.unix.Do(func() {
			id.logger.Warn("clients on a Unix socket have no address and share one limit; " +
				"to tell them apart, trust the proxy in front with the server's trusted_proxies_unix")
		})
	}
	return client
}

// Find decides who the client of r is, and logs nothing.
func (id *Finder) Find(r *http.Request, vars map[string]any) ipident.Result {
	peer := true // comes first, and once
	var ranges ipident.Ranges
	return id.rules.Client(ipident.RemoteAddr(r), r.Header, func(hop netip.Addr) bool {
		first := peer
		peer = false
		switch {
		case !hop.IsValid():
			// No list of ranges holds a Unix socket.
			return trustsUnix(r)
		case id.ranges == nil:
			return id.server.trusts(r, vars, hop, first)
		case first:
			// Once for all hops: a list that changes in between would lead to
			// an address that neither list yields.
			ranges = id.ranges.of(r)
		}
		return ranges.Contains(hop)
	})
}
