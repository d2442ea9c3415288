package distributedratelimit

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/replay"
)

// replayServer is a server whose requests are replayed.
type replayServer struct {
	*caddyhttp.Server
	ports map[string]bool
	tls   bool // its clients use TLS
}

// replayRequest is a request of the log on its way through the routes of one server. It is
// used again for the next one.
type replayRequest struct {
	eval   *replayEvaluator
	server *replayServer
	// handlers is what a walk comes by; it is called for each handler with limits.
	meets func(h *Handler)

	request *http.Request // with the context of Caddy's requests
	vars    map[string]any
	repl    *caddy.Replacer
	header  http.Header
	url     url.URL
	tls     tls.ConnectionState
	groups  map[string]bool
	status  int64
	user    bool
	last    struct{ host, proto, alpn, name lastText }
}

// set makes the request that of a line.
func (q *replayRequest) set(line *replay.Line) {
	uri := string(line.URI)
	q.parseURL(uri)
	if q.eval.reads.anyHeader() {
		clear(q.header)
		replay.EachHeader(line.Headers, q.eval.wants, func(name, value []byte) {
			q.header[string(name)] = append(q.header[string(name)], string(value))
		})
	}
	fresh := q.request == nil || q.eval.fresh
	if fresh {
		q.request = new(http.Request)
	}
	r := q.request
	r.Method, r.RequestURI, r.URL, r.Header, r.Body = method(line.Method), uri, &q.url, q.header, http.NoBody
	if r.Host = q.last.host.of(line.Host); r.Host == "" {
		r.Host = q.eval.host
	}
	remote, ip := remoteOf(line)
	r.RemoteAddr = remote
	if proto := q.last.proto.of(line.Proto); proto != r.Proto {
		r.Proto = proto
		r.ProtoMajor, r.ProtoMinor, _ = http.ParseHTTPVersion(proto)
	}
	if r.TLS = nil; line.TLS != nil {
		q.tls = tls.ConnectionState{
			HandshakeComplete: true, Version: line.TLS.Version, CipherSuite: line.TLS.CipherSuite, DidResume: line.TLS.Resumed,
			NegotiatedProtocol: q.last.alpn.of(line.TLS.Proto), ServerName: q.last.name.of(line.TLS.ServerName),
		}
		r.TLS = &q.tls
	}
	if fresh {
		q.repl = caddy.NewReplacer()
		q.request = caddyhttp.PrepareRequest(r, q.repl, nil, q.server.Server)
		q.vars = q.request.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
		*q.request = *q.request.WithContext(varsFirst{q.request.Context(), q.vars})
	} else {
		clear(q.vars)
		q.vars[caddyhttp.TrustedProxyVarKey] = false
		q.vars[caddyhttp.ClientIPVarKey] = addressText(ip)
	}
	if q.eval.reads.user {
		q.repl.Set("http.auth.user.id", string(line.UserID))
	}
	clear(q.groups)
	q.status, q.user = line.Status, len(line.UserID) > 0
}

// varsFirst is a context that knows the variables of its request at once: they are looked
// for many times, and lie below six other values.
type varsFirst struct {
	context.Context
	vars map[string]any
}

// Value implements context.Context.
func (c varsFirst) Value(key any) any {
	if key == caddyhttp.VarsCtxKey {
		return c.vars
	}
	return c.Context.Value(key)
}

// remoteOf is the peer as servers write it, and its address alone.
func remoteOf(line *replay.Line) (remote, ip string) {
	if len(line.RemotePort) == 0 {
		remote = string(line.RemoteIP)
		return remote, remote
	}
	var buf [64]byte
	b, start := buf[:0], 0
	if bytes.IndexByte(line.RemoteIP, ':') >= 0 {
		b, start = append(b, '['), 1
	}
	b = append(b, line.RemoteIP...)
	end := len(b)
	if start > 0 {
		b = append(b, ']')
	}
	remote = string(append(append(b, ':'), line.RemotePort...))
	return remote, remote[start:end]
}

// lastText is a text that is often the same as in the line before.
type lastText string

func (l *lastText) of(text []byte) string {
	if string(text) != string(*l) {
		*l = lastText(text)
	}
	return string(*l)
}

// addressText is an address as the server writes it, "" if it is none.
func addressText(text string) string {
	text, _, _ = strings.Cut(text, "%")
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return ""
	}
	if addr.Is4() {
		return text // it has one spelling
	}
	return addr.String()
}

// method is a method without an allocation for the usual ones.
func method(name []byte) string {
	switch string(name) {
	case http.MethodGet:
		return http.MethodGet
	case http.MethodPost:
		return http.MethodPost
	case http.MethodHead:
		return http.MethodHead
	}
	return string(name)
}

// parseURL parses what stands in the first line of a request. Most need no decoding.
func (q *replayRequest) parseURL(uri string) {
	plain := len(uri) > 0 && uri[0] == '/' && !(len(uri) > 1 && uri[1] == '/')
	for i := 0; plain && i < len(uri); i++ {
		plain = uri[i] > ' ' && uri[i] < 0x7f && uri[i] != '%' && uri[i] != '#'
	}
	if plain {
		path, query, asks := strings.Cut(uri, "?")
		q.url = url.URL{Path: path, RawQuery: query, ForceQuery: asks && query == ""}
		return
	}
	parsed, err := url.ParseRequestURI(uri)
	if err != nil {
		q.url = url.URL{Path: uri}
		return
	}
	q.url = *parsed
}

// portOf is the port that a request came to, as far as is known.
func portOf(line *replay.Line) string {
	host := string(line.Host)
	if at := strings.LastIndexByte(host, ':'); at >= 0 && strings.LastIndexByte(host, ']') < at {
		port := host[at+1:]
		// The client has written it: whether it used TLS is for certain.
		switch secure := line.TLS != nil; {
		case secure && port == "80":
			return "443"
		case !secure && port == "443":
			return "80"
		}
		return port
	}
	switch {
	case line.TLS != nil:
		return "443"
	case host == "":
		return ""
	}
	return "80"
}

// walk takes the request through the routes of its server.
func (q *replayRequest) walk() { q.routes(q.server.Routes) }

// routes takes the request through routes, as Caddy's compiled routes do. It returns
// false if no more of them follow, inside or outside of these.
func (q *replayRequest) routes(routes caddyhttp.RouteList) (goes bool) {
	for i := range routes {
		if !q.route(&routes[i]) {
			return false
		}
	}
	return true
}

func (q *replayRequest) route(route *caddyhttp.Route) (goes bool) {
	if route.Group != "" && q.groups[route.Group] {
		return true
	}
	matches, err := route.MatcherSets.AnyMatchWithError(q.request)
	if err != nil {
		return false
	}
	if !matches {
		return true
	}
	if route.Group != "" {
		q.groups[route.Group] = true
	}
	for _, h := range route.Handlers {
		if !q.handler(h) {
			return false
		}
	}
	return !route.Terminal
}

func (q *replayRequest) handler(h caddyhttp.MiddlewareHandler) (goes bool) {
	switch h := h.(type) {
	case *Handler:
		q.meets(h)
		return true
	case *caddyhttp.Subroute:
		return q.routes(h.Routes)
	case *caddyhttp.Invoke:
		route, ok := q.server.NamedRoutes[h.Name]
		return ok && q.route(route)
	case *caddyhttp.VarsMiddleware:
		switch (*h)[replayMark] {
		case markResponds:
			return false
		case markAuthenticate:
			return q.user || q.status != http.StatusUnauthorized
		}
	}
	goes = false
	err := h.ServeHTTP(discard{}, q.request, caddyhttp.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		goes = true
		return nil
	}))
	return goes && err == nil
}

// discard is a response that nobody reads.
type discard struct{}

func (discard) Header() http.Header       { return make(http.Header) }
func (discard) Write([]byte) (int, error) { return 0, errors.New("there is no response") }
func (discard) WriteHeader(int)           {}

// replayPorts are the ports that a server listens on.
func replayPorts(server *caddyhttp.Server, httpsPort int) (ports map[string]bool, tls bool) {
	ports = make(map[string]bool)
	for _, listen := range server.Listen {
		address, err := caddy.ParseNetworkAddress(listen)
		if err != nil {
			continue
		}
		for port := address.StartPort; port <= address.EndPort && port-address.StartPort < 100; port++ {
			ports[strconv.FormatUint(uint64(port), 10)] = true
			tls = tls || int(port) == httpsPort
		}
	}
	return ports, tls
}
