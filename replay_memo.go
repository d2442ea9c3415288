package distributedratelimit

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/replay"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// A log repeats itself: which limits a request meets often follows from its host, method
// and path, and its keys from its address. Where that is so without doubt, it is found
// out once. Where a matcher, a handler or a key looks at anything else, each request is
// taken through the routes.

const (
	// maxMemos bounds the requests, maxMemoAddresses the addresses, that one worker
	// remembers. When there are more, it begins anew.
	maxMemos         = 1 << 14
	maxMemoAddresses = 1 << 16
	// maxMemoBytes bounds the text of one request that is remembered.
	maxMemoBytes = 512
)

// replayShape is what of a configuration is known without its requests.
type replayShape struct {
	steady bool // routes look at nothing but host, method, path, port, and whether somebody is logged in
	path   bool // some matcher looks at the path
	simple map[*Handler]bool
	masks  map[keys.Mask]int // of the keys; each has a number
}

// shape finds out what the routes of all servers look at.
func (e *replayEvaluator) shape() *replayShape {
	s := &replayShape{steady: !e.reads.allHeaders, simple: make(map[*Handler]bool), masks: make(map[keys.Mask]int)}
	for _, name := range credentialHeaders {
		// Requests in which the log redacts them are counted.
		s.steady = s.steady && !e.reads.headers[name]
	}
	for _, server := range e.servers {
		s.steady = s.steady && s.routes(server.Routes)
	}
	return s
}

func (s *replayShape) routes(routes caddyhttp.RouteList) bool {
	for i := range routes {
		for _, set := range routes[i].MatcherSets {
			if !s.matchers(set) {
				return false
			}
		}
		for _, h := range routes[i].Handlers {
			if !s.handler(h) {
				return false
			}
		}
	}
	return true
}

// matchers reports whether a set looks at nothing but host, method and path.
func (s *replayShape) matchers(set caddyhttp.MatcherSet) bool {
	for _, m := range set {
		var words []string
		switch m := m.(type) {
		case *caddyhttp.MatchHost:
			words = *m
		case *caddyhttp.MatchPath:
			words, s.path = *m, true
		case *caddyhttp.MatchMethod:
		case *caddyhttp.MatchNot:
			for _, set := range m.MatcherSets {
				if !s.matchers(set) {
					return false
				}
			}
		default:
			return false
		}
		for _, word := range words {
			if strings.Contains(word, "{") {
				return false // a placeholder, which may stand for anything
			}
		}
	}
	return true
}

// handler reports whether what a handler does follows from host, method and path.
func (s *replayShape) handler(h caddyhttp.MiddlewareHandler) bool {
	switch h := h.(type) {
	case *Handler:
		s.simple[h] = s.limits(h)
		return true
	case *caddyhttp.Subroute:
		return s.routes(h.Routes)
	case *caddyhttp.VarsMiddleware:
		does := (*h)[replayMark]
		return len(*h) == 1 && (does == markResponds || does == markAuthenticate)
	}
	return handlerName(h) == "rewrite" && stripsOnly(h)
}

// stripsOnly reports whether a rewrite does nothing but cut off a prefix of the path, as
// handle_path does.
func stripsOnly(h caddyhttp.MiddlewareHandler) bool {
	text, err := json.Marshal(h)
	if err != nil {
		return false
	}
	var fields map[string]string
	if json.Unmarshal(text, &fields) != nil {
		return false
	}
	prefix, ok := fields["strip_path_prefix"]
	return ok && len(fields) == 1 && !strings.Contains(prefix, "{")
}

// limits reports whether the matchers of a handler and of its zones look at nothing but
// host, method and path, and its clients are peers.
func (s *replayShape) limits(h *Handler) bool {
	sets := append(caddyhttp.MatcherSets(nil), h.exempt...)
	for _, zone := range h.Zones {
		sets = append(append(sets, zone.match...), zone.exempt...)
		if _, known := s.masks[zone.key.Mask]; !known {
			s.masks[zone.key.Mask] = len(s.masks)
		}
	}
	for _, set := range sets {
		if !s.matchers(set) {
			return false
		}
	}
	return !h.identity.TrustsProxies()
}

// addressOnly reports whether what the zone makes of a request that it applies to
// follows from the client's address.
func (z *Zone) addressOnly() bool {
	return z.key.OnlyClient() && z.tier == nil && z.cost.fixed > 0 && !z.needsBody && z.Usage == nil
}

func newReplayMemo(shape *replayShape) replayMemo {
	return replayMemo{
		shape: shape, requests: make(map[string]*replayOutcome),
		clients: make(map[string][]string), portless: make(map[string][]string),
	}
}

// replayMemo is what one worker remembers.
type replayMemo struct {
	shape    *replayShape
	requests map[string]*replayOutcome
	clients  map[string][]string // keys of addresses, by the number of their mask
	portless map[string][]string // the same for logs without ports
	builder  keys.Builder
	buf      []byte
	// zones are those of the parts of the request that is evaluated; open is set if
	// these follow from more than what is remembered.
	zones []*Zone
	open  bool
}

// replayOutcome is what requests meet that are alike.
type replayOutcome struct {
	parts []replay.Part // without their clients
	zones []*Zone
	masks []int // -1 for a part without a client
	open  bool  // it has to be found out for each request
}

// gather takes from memory what requests like this one meet, or else finds it out.
func (w *replayWorker) gather(before int) {
	m := &w.memo
	m.zones, m.open = m.zones[:0], false
	request := m.request(w.line)
	if request == nil {
		w.serve(before)
		return
	}
	of, known := m.requests[string(request)]
	if known && !of.open {
		if clients := m.client(w.line); clients != nil {
			m.recall(w, of, clients)
			return
		}
	}
	w.serve(before)
	if !known {
		m.keep(request, w.parts[before:])
	}
}

// request is what tells requests apart, nil if that cannot be told.
func (m *replayMemo) request(line *replay.Line) []byte {
	path := line.URI
	if end := bytes.IndexByte(path, '?'); end >= 0 {
		path = path[:end]
	}
	if !m.shape.steady || len(line.Method) > 255 || len(line.Method)+len(line.Host)+len(path) > maxMemoBytes {
		return nil
	}
	var flags byte
	for i, is := range [...]bool{line.TLS != nil, line.Common, len(line.UserID) > 0, line.Status == http.StatusUnauthorized} {
		if is {
			flags |= 1 << i
		}
	}
	// No two requests have the same text: the method has its length in front, and a path
	// that needs no decoding has no zero in it.
	m.buf = append(append(append(m.buf[:0], flags, byte(len(line.Method))), line.Method...), line.Host...)
	if !m.shape.path {
		return m.buf
	}
	if !plainPath(path) {
		return nil // Go's parser has to tell what its path is
	}
	m.buf = append(append(m.buf, 0), path...)
	return m.buf
}

// plainPath reports whether a path needs no decoding.
func plainPath(path []byte) bool {
	if len(path) == 0 || path[0] != '/' || len(path) > 1 && path[1] == '/' {
		return false
	}
	for _, c := range path {
		if c <= ' ' || c >= 0x7f || c == '%' || c == '#' {
			return false
		}
	}
	return true
}

// client are the keys of the line's peer, nil if it is no usual one.
func (m *replayMemo) client(line *replay.Line) []string {
	known := m.clients
	if len(line.RemotePort) == 0 {
		known = m.portless
	}
	if byMask, ok := known[string(line.RemoteIP)]; ok && plainPort(line.RemotePort) {
		return byMask
	}
	if !plainPort(line.RemotePort) || len(line.RemoteIP) > maxMemoBytes {
		return nil
	}
	if len(known) >= maxMemoAddresses {
		clear(known)
	}
	byMask := make([]string, len(m.shape.masks))
	remote, _ := remoteOf(line)
	peer := ipident.Peer(remote)
	for mask, i := range m.shape.masks {
		byMask[i] = string(m.builder.Address(peer, mask))
	}
	known[string(line.RemoteIP)] = byMask
	return byMask
}

// plainPort reports whether a port is a number of up to four digits, or five that are no
// more than a port can be, or the log has none. Any of them leaves the address as it is.
func plainPort(port []byte) bool {
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(port) < 5 || len(port) == 5 && string(port) <= "65535"
}

// recall appends what is remembered of such a request.
func (m *replayMemo) recall(w *replayWorker, of *replayOutcome, clients []string) {
	for i := range of.parts {
		w.parts = append(w.parts, of.parts[i])
		p := &w.parts[len(w.parts)-1]
		if of.masks[i] >= 0 {
			p.Client = clients[of.masks[i]]
		}
		if p.Kind == replay.Counts && len(of.zones[i].CountIf) > 0 {
			p.Back = !w.counted(of.zones[i])
		}
	}
}

// keep remembers what a request has met, under the text that request has returned.
func (m *replayMemo) keep(request []byte, parts []replay.Part) {
	if len(m.requests) >= maxMemos {
		clear(m.requests)
	}
	of := &replayOutcome{open: m.open}
	m.requests[string(request)] = of
	if of.open {
		return
	}
	of.zones = append(of.zones, m.zones...)
	for i := range parts {
		p, mask := parts[i], -1
		if p.Client != "" {
			mask = m.shape.masks[m.zones[i].key.Mask]
		}
		p.Client, p.Back = "", false
		of.parts, of.masks = append(of.parts, p), append(of.masks, mask)
	}
}

// met takes in that the request has met a handler.
func (m *replayMemo) met(w *replayWorker, h *Handler) {
	if m.open = m.open || !m.shape.simple[h]; m.open {
		return
	}
	for _, zone := range h.Zones {
		if zone.addressOnly() {
			continue
		}
		applies, _, err := zone.applies(w.now.request)
		m.open = m.open || applies || err != nil
	}
}
