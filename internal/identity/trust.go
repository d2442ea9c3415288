package identity

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/loglimit"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// rangesTrust trusts the ranges of an IP source.
type rangesTrust struct {
	ipSource caddyhttp.IPRangeSource
	logger   *zap.Logger
	log      loglimit.Limiter

	compiling sync.Mutex
	// last is the newest list of the IP source, in compiled form.
	last atomic.Pointer[compiledRanges]
}

type compiledRanges struct {
	of     []netip.Prefix
	ranges ipident.Ranges // empty if err is not nil
	err    error
}

// checkTrustable rejects ranges that never change and hold nearly every address.
func checkTrustable(ipSource caddyhttp.IPRangeSource) error {
	static, ok := ipSource.(*caddyhttp.StaticIPRange)
	if !ok {
		return nil
	}
	_, err := ipident.NewRanges(static.GetIPRanges(nil))
	return err
}

// of returns the ranges for a request, and compiles them if they are new.
func (t *rangesTrust) of(r *http.Request) ipident.Ranges {
	prefixes := t.ipSource.GetIPRanges(r)
	last := t.last.Load()
	if !last.is(prefixes) {
		last = t.compile(prefixes)
	}
	if last.err != nil {
		if suppressed, ok := t.log.Allow(1, time.Minute); ok {
			t.logger.Warn("the IP source of trusted_proxies holds ranges that cannot be trusted; until that changes no proxy is trusted, and clients behind one share a limit",
				zap.Error(last.err), zap.Int("ranges", len(prefixes)), zap.Int64("suppressed", suppressed))
		}
	}
	return last.ranges
}

// compile is done once for each list, however many requests meet it first.
func (t *rangesTrust) compile(prefixes []netip.Prefix) *compiledRanges {
	t.compiling.Lock()
	defer t.compiling.Unlock()
	if last := t.last.Load(); last.is(prefixes) {
		return last
	}
	now := &compiledRanges{of: prefixes}
	now.ranges, now.err = ipident.NewRanges(prefixes)
	t.last.Store(now)
	return now
}

// is reports whether the list was compiled. Most IP sources hand out one slice
// until they refresh. Some make a new one each time; to compare it costs a
// hundredth of compiling it.
func (c *compiledRanges) is(prefixes []netip.Prefix) bool {
	if c == nil || len(c.of) != len(prefixes) {
		return false
	}
	return len(prefixes) == 0 || &c.of[0] == &prefixes[0] || slices.Equal(c.of, prefixes)
}

// HasTrustedProxies reports whether the server has trusted_proxies. The field is
// not exported, but it can be seen whether it is set.
func HasTrustedProxies(server *caddyhttp.Server) bool {
	if server == nil {
		return false
	}
	field := reflect.ValueOf(server).Elem().FieldByName("trustedProxies")
	return server.TrustedProxiesUnix || field.Kind() == reflect.Interface && !field.IsNil()
}

// trustsUnix reports whether peers on Unix sockets are trusted. The server itself
// goes by the name of the socket, which the client chooses.
func trustsUnix(r *http.Request) bool {
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	return server != nil && server.TrustedProxiesUnix
}

// serverTrustsPeer reports whether the server trusts the peer of a request with
// these variables.
func serverTrustsPeer(vars map[string]any) bool {
	trusted, _ := vars[caddyhttp.TrustedProxyVarKey].(bool)
	return trusted
}

// serverTrust trusts what the HTTP server trusts. The server's ranges are not
// exported, but when it prepares a request it judges the peer. So a hop is
// judged by preparing a request that comes from it.
type serverTrust struct {
	// everybody: the server trusts nearly every address. Then a header proves
	// only what the peer itself saw.
	everybody bool
}

func newServerTrust(server *caddyhttp.Server, logger *zap.Logger) *serverTrust {
	t := new(serverTrust)
	if server == nil {
		return t
	}
	if nobody, everybody := trustsEverybody(server); everybody {
		t.everybody = true
		logger.Warn("the server's trusted_proxies hold every address, or nearly, so that any client could choose its address in a header; "+
			"only the address nearest to this server is believed. Change trusted_proxies in the servers option to the addresses of your proxies",
			zap.Stringer("trusts", nobody))
	}
	return t
}

// trustsEverybody probes what the server trusts. No proxy has an address that is
// reserved for documentation, so one of them is enough. Ranges may hold all
// others: so there is also a probe in each sixteenth of IPv4 and of 2000::/3, and
// more than a quarter of either is too much, as it is for ranges that can be
// seen. It returns a trusted probe.
func trustsEverybody(server *caddyhttp.Server) (netip.Addr, bool) {
	request := &http.Request{Method: http.MethodGet, URL: new(url.URL), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	for _, text := range []string{"192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"} {
		if nobody := netip.MustParseAddr(text); serverTrusts(server, request, nobody) {
			return nobody, true
		}
	}
	for _, probe := range []func(i byte) netip.Addr{
		func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{i<<4 | 7, 201, 77, 13}) },
		func(i byte) netip.Addr { return netip.AddrFrom16([16]byte{0x20 + i<<1, 1, 0x7f, 0x3b, 15: 13}) },
	} {
		trusted := 0
		for i := range byte(16) {
			if nobody := probe(i); serverTrusts(server, request, nobody) {
				if trusted++; trusted > 4 {
					return nobody, true
				}
			}
		}
	}
	return netip.Addr{}, false
}

// trusts takes an unmapped address without zone. peer tells whether it is the
// peer, or an address in the header, which may be the same.
func (t *serverTrust) trusts(r *http.Request, vars map[string]any, hop netip.Addr, peer bool) bool {
	trusted := peer && serverTrustsPeer(vars)
	if peer && !trusted && !strings.Contains(r.RemoteAddr, "::ffff:") {
		return false // as for most requests
	}
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if server == nil || trusted {
		return server != nil
	}
	if t.everybody && !peer {
		return false
	}
	return serverTrusts(server, r, hop)
}

func serverTrusts(server *caddyhttp.Server, r *http.Request, hop netip.Addr) bool {
	from := r.WithContext(r.Context())
	from.RemoteAddr = net.JoinHostPort(hop.String(), "0")
	from.Header = nil
	from = caddyhttp.PrepareRequest(from, caddy.NewReplacer(), nil, server)
	vars, _ := from.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	return serverTrustsPeer(vars)
}
