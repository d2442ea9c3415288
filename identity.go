package distributedratelimit

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// ClientAddress says where the address of a client comes from when it is not
// the peer that is connected.
type ClientAddress struct {
	// The proxies that are trusted to name the client in a header, as a
	// module of Caddy's namespace http.ip_sources. Ranges that hold every
	// address are an error: they would trust whatever anyone writes.
	TrustedProxiesRaw json.RawMessage `json:"trusted_proxies,omitempty" caddy:"namespace=http.ip_sources inline_key=source"`

	// The one header in which they name it. X-Forwarded-For and Forwarded are
	// lists, read from the right up to the first address that is not a
	// trusted proxy; any other header must hold a single address.
	// Default: X-Forwarded-For.
	ClientIPHeaders []string `json:"client_ip_headers,omitempty"`
}

func (c *ClientAddress) check() *configError {
	switch len(c.ClientIPHeaders) {
	case 0:
		return nil
	case 1:
		if c.ClientIPHeaders[0] == "" {
			return wrong("client_ip_headers", "client_ip_headers has an empty name; name the header that your proxies set, or remove it")
		}
		if _, err := ipident.NewRules(c.ClientIPHeaders[0]); err != nil {
			return wrong("client_ip_headers", "%v", err)
		}
		return nil
	}
	return wrong("client_ip_headers", "client_ip_headers has %d headers; name the one that your proxies set: "+
		"a client could write any other one itself", len(c.ClientIPHeaders))
}

// identity decides who the client of a request is, by the rules of one
// handler.
type identity struct {
	rules  ipident.Rules
	trust  truster
	logger *zap.Logger
	log    logLimiter
	unix   sync.Once
}

// truster answers whether a hop of a request is a trusted proxy.
type truster interface {
	// trusts is asked with an unmapped address without zone, or with the
	// zero Addr for a Unix-socket peer. peer tells whether it is about who is
	// connected, or about an address in the header, which may be the same.
	trusts(r *http.Request, hop netip.Addr, peer bool) bool
}

// provisionIdentity finds the rules: those of the handler, else those of the
// app, else those of the server. Trusted proxies and the header are looked
// for separately.
func provisionIdentity(ctx caddy.Context, own, shared *ClientAddress, sharedSource caddyhttp.IPRangeSource, logger *zap.Logger) (*identity, error) {
	server, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	id := &identity{logger: logger}

	source := sharedSource
	if own.TrustedProxiesRaw != nil {
		var err error
		if source, err = loadIPSource(ctx, own); err != nil {
			return nil, err
		}
	}
	if source != nil {
		trust, err := newSourceTrust(source)
		if err != nil {
			return nil, err
		}
		id.trust = trust
	} else {
		id.trust = newServerTrust(server, logger)
	}

	header := "X-Forwarded-For"
	switch {
	case len(own.ClientIPHeaders) > 0:
		header = own.ClientIPHeaders[0]
	case len(shared.ClientIPHeaders) > 0:
		header = shared.ClientIPHeaders[0]
	case source == nil && server != nil && len(server.ClientIPHeaders) > 0:
		header = server.ClientIPHeaders[0]
		if len(server.ClientIPHeaders) > 1 {
			logger.Warn("only the first of the server's client_ip_headers is read, because a client could write the others itself; "+
				"set client_ip_headers of distributed_ratelimit to choose another one",
				zap.String("header", header), zap.Strings("client_ip_headers", server.ClientIPHeaders))
		}
	}
	var err error
	id.rules, err = ipident.NewRules(header)
	return id, err
}

func loadIPSource(ctx caddy.Context, c *ClientAddress) (caddyhttp.IPRangeSource, error) {
	module, err := ctx.LoadModule(c, "TrustedProxiesRaw")
	if err != nil {
		return nil, fmt.Errorf("loading trusted_proxies: %v", err)
	}
	source, ok := module.(caddyhttp.IPRangeSource)
	if !ok {
		return nil, fmt.Errorf("trusted_proxies: %T is not a source of IP ranges", module)
	}
	return source, nil
}

// client decides who the client of r is.
func (id *identity) client(r *http.Request) ipident.Result {
	peer := true // is asked about first, and once
	client := id.rules.Client(r.RemoteAddr, r.Header, func(hop netip.Addr) bool {
		trusted := id.trust.trusts(r, hop, peer)
		peer = false
		return trusted
	})
	identityMetric(client.Reason).Inc()
	switch client.Reason {
	case ipident.ReasonMalformed, ipident.ReasonDuplicate, ipident.ReasonTooLong, ipident.ReasonBadPeer:
		if suppressed, ok := id.log.allow(1, logMinute); ok {
			id.logger.Warn("the client's address could not be read from the header; using the nearest address that a trusted proxy vouched for",
				zap.String("header", id.rules.Header()), zap.Stringer("reason", client.Reason),
				zap.Stringer("client_ip", client), zap.Int64("suppressed", suppressed))
		}
	case ipident.ReasonUnix:
		id.unix.Do(func() {
			id.logger.Warn("clients on a Unix socket have no address and share one limit; " +
				"to tell them apart, trust the proxy in front with the server's trusted_proxies_unix")
		})
	}
	return client
}

// sourceTrust trusts the ranges of an IP source.
type sourceTrust struct {
	source caddyhttp.IPRangeSource
	// cache holds the ranges last seen in digested form: most sources hand
	// out the same slice until they refresh.
	cache atomic.Pointer[digestedRanges]
}

type digestedRanges struct {
	of     []netip.Prefix
	ranges ipident.Ranges
}

// newSourceTrust fails if the source holds every address; one that changes
// later is not believed in such ranges.
func newSourceTrust(source caddyhttp.IPRangeSource) (*sourceTrust, error) {
	t := &sourceTrust{source: source}
	if static, ok := source.(*caddyhttp.StaticIPRange); ok {
		if _, err := ipident.NewRanges(static.GetIPRanges(nil)); err != nil {
			return nil, fmt.Errorf("trusted_proxies: %v", err)
		}
	}
	return t, nil
}

func (t *sourceTrust) trusts(r *http.Request, hop netip.Addr, _ bool) bool {
	if !hop.IsValid() {
		// No list of ranges holds a Unix socket: that is the server's
		// trusted_proxies_unix.
		return serverTrustsPeer(r)
	}
	prefixes := t.source.GetIPRanges(r)
	digest := t.cache.Load()
	if digest == nil || !sameSlice(digest.of, prefixes) {
		ranges, err := ipident.NewRanges(prefixes)
		if err != nil {
			return false
		}
		digest = &digestedRanges{of: prefixes, ranges: ranges}
		t.cache.Store(digest)
	}
	return digest.ranges.Contains(hop)
}

func sameSlice(a, b []netip.Prefix) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// serverTrustsPeer is the server's own verdict on who is connected.
func serverTrustsPeer(r *http.Request) bool {
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return trusted
}

// serverTrust asks the HTTP server. Its ranges are not exported, but it
// prepares a request by judging the peer: so a hop is judged by preparing a
// request that comes from it.
type serverTrust struct {
	// everybody: the server trusts every address. Then a header proves no
	// more than what the peer itself saw.
	everybody bool
}

func newServerTrust(server *caddyhttp.Server, logger *zap.Logger) *serverTrust {
	t := new(serverTrust)
	if server == nil {
		return t
	}
	probe := &http.Request{Method: http.MethodGet, URL: new(url.URL), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	// These addresses are reserved for documentation: no proxy has them, so
	// a server that trusts them trusts everybody.
	for _, nobody := range []string{"192.0.2.1", "2001:db8::1"} {
		if serverTrusts(server, probe, netip.MustParseAddr(nobody)) {
			t.everybody = true
			logger.Warn("the server's trusted_proxies hold every address, so that any client could choose its address in a header; "+
				"only the address nearest to this server is believed. Change trusted_proxies in the servers option to the addresses of your proxies",
				zap.String("trusts", nobody))
			break
		}
	}
	return t
}

func (t *serverTrust) trusts(r *http.Request, hop netip.Addr, peer bool) bool {
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if server == nil {
		return false
	}
	if peer && (serverTrustsPeer(r) || !strings.Contains(r.RemoteAddr, "::ffff:")) {
		return serverTrustsPeer(r)
	}
	if t.everybody && !peer {
		return false
	}
	return hop.IsValid() && serverTrusts(server, r, hop)
}

func serverTrusts(server *caddyhttp.Server, r *http.Request, hop netip.Addr) bool {
	from := r.WithContext(r.Context())
	from.RemoteAddr = net.JoinHostPort(hop.String(), "0")
	from.Header = nil
	from = caddyhttp.PrepareRequest(from, caddy.NewReplacer(), nil, server)
	return serverTrustsPeer(from)
}
