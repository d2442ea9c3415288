package distributedratelimit

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// maxExplain bounds what is read of a POST to explain, in bytes.
const maxExplain = 16 << 20

// explainRequest is the body of POST explain: a request as this server would get it.
type explainRequest struct {
	// Method is GET if it is empty.
	Method string `json:"method"`
	// URL is the whole of it, such as https://example.com/login?next=/.
	URL string `json:"url"`
	// Headers are what the server gets, including what proxies in front of it add.
	Headers map[string]oneOrMore `json:"headers"`
	// RemoteAddr is who is connected: an address, with a port or without, of the proxy
	// in front if there is one; or "unix" for a Unix socket.
	RemoteAddr string `json:"remote_addr"`
	Body       string `json:"body"`
	// Vars are placeholders, such as http.auth.user.id, http.vars.plan or
	// http.request.header.X-User, that handlers would set which are not run here.
	Vars map[string]any `json:"vars"`
	// Server is the name of the HTTP server, if the URL leaves a doubt.
	Server string `json:"server"`
}

// oneOrMore is the values of a header, in JSON a text or a list of them.
type oneOrMore []string

// UnmarshalJSON implements json.Unmarshaler.
func (m *oneOrMore) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*m = oneOrMore{one}
		return nil
	}
	var more []string
	if err := json.Unmarshal(data, &more); err != nil {
		return errors.New("a header is neither a text nor a list of texts")
	}
	*m = more
	return nil
}

const explainForm = `{"method":"POST","url":"https://example.com/login","headers":{"X-Forwarded-For":"203.0.113.7"},"remote_addr":"10.0.0.1"}`

// adminExplain answers POST explain.
func adminExplain(c *adminCall) (answer any, err error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(c.Body, maxExplain+1))
	switch {
	case err != nil:
		return nil, adminError(http.StatusBadRequest, "reading the request to explain: %v", err)
	case len(text) > maxExplain:
		return nil, adminError(http.StatusRequestEntityTooLarge, "the request to explain is longer than %d MiB; leave out a part of its body", maxExplain>>20)
	}
	var asked explainRequest
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&asked); err != nil {
		return nil, adminError(http.StatusBadRequest, "the request to explain cannot be read (%v); send for example: %s", err, explainForm)
	}
	server, r, dropped, err := asked.request(c.Context(), app)
	if err != nil {
		return nil, err
	}
	// Other people's matchers and handlers look at a request that did not come through
	// the server: if one of them cannot cope with that, the server goes on.
	defer func() {
		if p := recover(); p != nil {
			err = adminError(http.StatusInternalServerError, "explaining the request failed in a handler or a matcher: %v", p)
		}
	}()
	x := newWalk(app, server, &asked)
	for _, name := range dropped {
		x.assume("the server drops the header %s, whose name is not safe behind it", name)
	}
	x.run(r)
	return x.answer, nil
}

func (x *walk) assume(format string, args ...any) {
	x.answer.Assumed = append(x.answer.Assumed, fmt.Sprintf(format, args...))
}

// request makes a request to a server of the app of what was asked, as the server hands
// it to its routes, and returns the headers that the server drops.
func (q *explainRequest) request(ctx context.Context, app *App) (server *namedServer, r *http.Request, dropped []string, err error) {
	u, err := url.Parse(q.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || !isHost(u.Host) {
		return nil, nil, nil, adminError(http.StatusBadRequest, "url %q is not a whole URL; write for example https://example.com/login", q.URL)
	}
	peer, local, err := q.peer()
	if err != nil {
		return nil, nil, nil, err
	}
	if server, err = app.serverFor(u, q.Server); err != nil {
		return nil, nil, nil, err
	}
	r = &http.Request{
		Method: strings.ToUpper(q.Method), Host: u.Host, RequestURI: u.RequestURI(), RemoteAddr: peer,
		URL:   &url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery, ForceQuery: u.ForceQuery},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header),
		Body: http.NoBody, ContentLength: int64(len(q.Body)),
	}
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	if !isToken(r.Method) || len(r.Method) > 32 {
		return nil, nil, nil, adminError(http.StatusBadRequest, "method %q is none; write for example GET", q.Method)
	}
	if r.URL.Path == "" {
		r.URL.Path = "/"
	}
	if q.Body != "" {
		r.Body = io.NopCloser(strings.NewReader(q.Body))
	}
	if dropped, err = q.setHeaders(r, server.Server); err != nil {
		return nil, nil, nil, err
	}
	if u.Scheme == "https" {
		r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: u.Hostname(), NegotiatedProtocol: "h2"}
		r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
	}
	r = r.WithContext(context.WithValue(ctx, http.LocalAddrContextKey, local))
	return server, r, dropped, nil
}

// peer is the address that is connected, as a server sees it, and the server's own.
func (q *explainRequest) peer() (peer string, local net.Addr, err error) {
	if q.RemoteAddr == "unix" || q.RemoteAddr == "@" {
		return "@", &net.UnixAddr{Net: "unix"}, nil
	}
	local = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
	if addr, err := netip.ParseAddr(strings.Trim(q.RemoteAddr, "[]")); err == nil {
		return netip.AddrPortFrom(addr, 40000).String(), local, nil
	}
	if both, err := netip.ParseAddrPort(q.RemoteAddr); err == nil {
		return both.String(), local, nil
	}
	return "", nil, adminError(http.StatusBadRequest, "remote_addr %q is no address; write who connects to this server, which is your proxy or CDN if there is one, for example 203.0.113.7, or unix for a Unix socket", q.RemoteAddr)
}

// setHeaders sets the headers of the request, and returns those that the server drops.
func (q *explainRequest) setHeaders(r *http.Request, server *caddyhttp.Server) (dropped []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(q.Headers)) {
		if !isToken(name) {
			return nil, adminError(http.StatusBadRequest, "%q is no name of a header; write for example User-Agent", name)
		}
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		for _, value := range q.Headers[name] {
			if strings.IndexFunc(value, func(c rune) bool { return c < 0x20 && c != 0x09 || c == 0x7f }) >= 0 {
				return nil, adminError(http.StatusBadRequest, "the value of the header %s has characters that no header has; remove line breaks", name)
			}
			r.Header[canonical] = append(r.Header[canonical], value)
		}
		switch {
		case canonical == "Host":
			if host := r.Header.Get("Host"); isHost(host) {
				r.Host = host
			}
			delete(r.Header, "Host")
		case strings.Contains(canonical, "_") && len(server.ExpectedUnderscoreHeaders) == 0,
			strings.Contains(canonical, ".") && len(server.ExpectedDotHeaders) == 0:
			delete(r.Header, canonical)
			dropped = append(dropped, canonical)
		}
	}
	return dropped, nil
}

// isToken reports whether a text may be a method or the name of a header.
func isToken(text string) bool {
	return text != "" && strings.IndexFunc(text, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	}) < 0
}

// isHost reports whether a text may be a Host header.
func isHost(text string) bool {
	return strings.Trim(text, ".") != "" && strings.IndexFunc(text, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"/<>?@\^`+"`{|}", c)
	}) < 0
}

// namedServer is an HTTP server with its name in the configuration.
type namedServer struct {
	*caddyhttp.Server
	name string
}

// serverFor finds the server that listens where a URL leads, or the one with this name.
func (a *App) serverFor(u *url.URL, name string) (*namedServer, error) {
	servers := a.servers()
	names := slices.Sorted(maps.Keys(servers))
	if name != "" {
		if server := servers[name]; server != nil {
			return &namedServer{server, name}, nil
		}
		return nil, adminError(http.StatusBadRequest, "no HTTP server is called %q; there are: %s", name, strings.Join(names, ", "))
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	var found []string
	for _, name := range names {
		if listensOn(servers[name], port) {
			found = append(found, name)
		}
	}
	switch {
	case len(found) == 1:
		return &namedServer{servers[found[0]], found[0]}, nil
	case len(found) == 0 && len(names) == 1 && u.Port() == "":
		return &namedServer{servers[names[0]], names[0]}, nil
	case len(found) > 1:
		return nil, adminError(http.StatusBadRequest, "several HTTP servers listen on port %s; say which one is meant, with server: %s", port, strings.Join(found, ", "))
	}
	return nil, adminError(http.StatusBadRequest, "no HTTP server listens on port %s; write another port into the url, or say which server is meant, with server: %s", port, strings.Join(names, ", "))
}

func listensOn(server *caddyhttp.Server, port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && slices.ContainsFunc(server.Listen, func(text string) bool {
		addr, err := caddy.ParseNetworkAddress(text)
		return err == nil && !addr.IsUnixNetwork() && uint64(addr.StartPort) <= n && n <= uint64(addr.EndPort)
	})
}
