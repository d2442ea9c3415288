package distributedratelimit

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

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

func (c *ClientAddress) check() *settings.Mistake {
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

// identity decides who the client of a request is, by the rules of one
// handler.
type identity struct {
	rules  ipident.Rules
	ranges *rangesTrust // nil if the server decides, or hops are counted
	server *serverTrust // nil unless the server decides
	// trustsProxies: some peers may be proxies, as far as is known at load.
	trustsProxies bool

	logger     *zap.Logger
	log        logLimiter
	unix       sync.Once
	forwarding *fadingLimiter // of all handlers, see warnOfForwarding
}

// provisionIdentity finds the rules of the handler, else of the app, else of the
// server. Trusted proxies and the header are looked for separately.
func provisionIdentity(ctx caddy.Context, own, shared *ClientAddress, sharedIPSource caddyhttp.IPRangeSource, logger *zap.Logger) (*identity, error) {
	server, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	id := &identity{logger: logger}

	ipSource, hops := sharedIPSource, shared.TrustedHops
	switch {
	case own.TrustedHops != 0:
		ipSource, hops = nil, own.TrustedHops
	case own.TrustedProxiesRaw != nil:
		hops = 0
		var err error
		if ipSource, err = loadIPSource(ctx, own); err != nil {
			return nil, err
		}
	}
	if ipSource != nil {
		var err error
		if id.ranges, err = newRangesTrust(ipSource, logger); err != nil {
			return nil, err
		}
	} else if hops == 0 {
		id.server = newServerTrust(server, logger)
	}
	id.trustsProxies = ipSource != nil || hops > 0 || hasTrustedProxies(server)

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

func loadIPSource(ctx caddy.Context, c *ClientAddress) (caddyhttp.IPRangeSource, error) {
	module, err := ctx.LoadModule(c, "TrustedProxiesRaw")
	if err != nil {
		return nil, fmt.Errorf("loading trusted_proxies: %v", err)
	}
	ipSource, ok := module.(caddyhttp.IPRangeSource)
	if !ok {
		return nil, fmt.Errorf("trusted_proxies: module %T is not an IP source: it must implement caddyhttp.IPRangeSource", module)
	}
	return ipSource, nil
}

// forwardingHeaders are what proxies name their clients in, in canonical form.
var forwardingHeaders = []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "Cf-Connecting-Ip", "True-Client-Ip"}

// warnOfForwarding warns of a peer that is not trusted but names its client in a
// header. It may be a bot that tries its luck; or the site's own proxy, all of whose
// visitors share one limit then, and nothing else tells. What a stranger wrote is not
// logged. Bots never end, so the lines become rarer.
func (id *identity) warnOfForwarding(r *http.Request, peer ipident.Result) {
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
	suppressed, ok := id.forwarding.allow()
	if !ok {
		return
	}
	id.logger.Warn("a peer that is not trusted names its client in a header, which is not believed: if it is your proxy or CDN, all of its visitors share one limit; "+
		"name its addresses in trusted_proxies, and this header in client_ip_headers. If it is a client, nothing needs to be done",
		zap.Stringer("peer", peer), zap.String("header", name), zap.Int64("suppressed", suppressed))
}

// client decides who the client of r is, which has these variables. It counts and tells
// how it was found.
func (id *identity) client(r *http.Request, vars map[string]any) ipident.Result {
	client := id.find(r, vars)
	identityMetric(client.Reason).Inc()
	switch client.Reason {
	case ipident.ReasonMalformed, ipident.ReasonDuplicate, ipident.ReasonTooLong, ipident.ReasonTooFewHops, ipident.ReasonBadPeer:
		if suppressed, ok := id.log.allow(1, logMinute); ok {
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

// find decides who the client of r is.
func (id *identity) find(r *http.Request, vars map[string]any) ipident.Result {
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
