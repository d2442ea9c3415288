package distributedratelimit

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/identity"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/replay"
)

// replayEvaluator evaluates requests of a log as the handlers of a configuration do. It
// is safe for concurrent use.
type replayEvaluator struct {
	servers []*replayServer
	zones   []replay.Zone
	index   map[*Zone]int32 // zones of one limit have one index
	reads   replayReads
	host    string // of requests whose log has none
	fresh   bool   // each request needs a context of its own
	redacts map[*Zone][]string
	numbers map[*Handler]int16
	known   *replayShape

	limits []replayLimit
	// countsResponses: some zone judges responses.
	countsResponses bool

	redacted atomic.Int64 // requests whose headers are redacted
	headless atomic.Int64 // requests whose log has no headers
}

// replayLimit is a zone that the log may not tell enough about.
type replayLimit struct {
	zone     int
	headers  []string // that its key, tier or cost read
	redacts  []string // those of them that logs redact
	matchers []string // that logs redact, and its matchers read
}

// credentialHeaders are what Caddy's logs redact.
var credentialHeaders = []string{"Authorization", "Cookie", "Proxy-Authorization"}

const redactedValue = "REDACTED"

// newReplayEvaluator loads the limits of a configuration.
func newReplayEvaluator(c *replayConfig, host string) (*replayEvaluator, error) {
	app, _, err := c.load()
	if err != nil {
		return nil, err
	}
	e := &replayEvaluator{
		reads: c.reads, host: host, fresh: c.reads.original,
		index: make(map[*Zone]int32), redacts: make(map[*Zone][]string), numbers: make(map[*Handler]int16),
	}
	if host == "" && len(c.reads.hosts) == 1 {
		for only := range c.reads.hosts {
			e.host = only
		}
	}
	for _, name := range slices.Sorted(maps.Keys(app.Servers)) {
		server := &replayServer{Server: app.Servers[name]}
		server.ports, server.tls = replayPorts(server.Server, cmp.Or(app.HTTPSPort, caddyhttp.DefaultHTTPSPort))
		e.fresh = e.fresh || identity.HasTrustedProxies(server.Server)
		e.servers = append(e.servers, server)
		e.collect(c, server.Routes)
		for _, name := range slices.Sorted(maps.Keys(server.NamedRoutes)) {
			e.collect(c, caddyhttp.RouteList{*server.NamedRoutes[name]})
		}
	}
	if len(e.zones) == 0 {
		return nil, fmt.Errorf("the configuration has no limits; write for example: distributed_ratelimit 30 1m, with dry_run if it is not to be in force yet")
	}
	e.known = e.shape()
	return e, nil
}

// collect finds the handlers of routes.
func (e *replayEvaluator) collect(c *replayConfig, routes caddyhttp.RouteList) {
	for i := range routes {
		for _, h := range routes[i].Handlers {
			switch h := h.(type) {
			case *Handler:
				e.handler(c, h)
			case *caddyhttp.Subroute:
				e.collect(c, h.Routes)
			}
		}
	}
}

func (e *replayEvaluator) handler(c *replayConfig, h *Handler) {
	if _, known := e.numbers[h]; known {
		return
	}
	e.numbers[h] = int16(len(e.numbers))
	if h.identity.TrustsProxies() {
		e.reads.headers[h.identity.Header()] = true
	}
	for _, zone := range h.Zones {
		e.redacts[zone] = zone.credentials()
		if i, known := e.index[zone.same]; known {
			e.index[zone] = i
			continue
		}
		i := int32(len(e.zones))
		e.index[zone], e.index[zone.same] = i, i
		e.zones = append(e.zones, zone.forReplay())
		e.countsResponses = e.countsResponses || len(zone.CountIf) > 0
		e.limits = append(e.limits, replayLimit{
			zone: int(i), headers: zone.headersRead(), redacts: zone.credentials(), matchers: c.redacted[zone.Name],
		})
	}
}

// forReplay describes the zone.
func (z *Zone) forReplay() replay.Zone {
	described := replay.Zone{
		Name: z.Name, StoreName: z.storeName, Window: z.window, Block: time.Duration(z.BlockFor), DryRun: z.DryRun,
		Concurrent: z.Concurrent != nil, Limit: z.limitForReplay(), Key: "the client's address", Show: keys.Values,
	}
	if z.Key != "" && !z.key.OnlyClient() {
		described.Key = z.Key
	}
	switch {
	case z.Usage != nil:
		described.Unknown = "it counts tokens or money, which are not in an access log; try it with dry_run instead"
	case z.needsBody:
		described.Unknown = "it reads the bodies of requests, which are not in an access log; try it with dry_run instead"
	}
	return described
}

// limitForReplay is the limit as people write it.
func (z *Zone) limitForReplay() string {
	var b strings.Builder
	switch {
	case z.Concurrent != nil:
		return fmt.Sprintf("%d at once", *z.Concurrent)
	case z.Tier != nil:
		fmt.Fprintf(&b, "%s in %s", z.Tier.text(), windowText(z.window))
	default:
		fmt.Fprintf(&b, "%d in %s", z.limit, windowText(z.window))
	}
	if z.Cost != nil {
		fmt.Fprintf(&b, ", %s", z.Cost.text())
	}
	if z.BlockFor > 0 {
		fmt.Fprintf(&b, ", %s", z.blockText())
	}
	return b.String()
}

// templates are what the zone reads of a request to tell clients, plans and costs apart.
func (z *Zone) templates() []*keys.Template {
	list := []*keys.Template{&z.key.Template, &z.cost.from}
	if z.tier != nil {
		list = append(list, &z.tier.plan)
	}
	return list
}

// headersRead are the headers that they read.
func (z *Zone) headersRead() (names []string) {
	for _, t := range z.templates() {
		names = append(names, t.Headers()...)
	}
	return names
}

// credentials are those of them that logs redact.
func (z *Zone) credentials() (names []string) {
	for _, name := range z.headersRead() {
		if slices.Contains(credentialHeaders, name) {
			names = append(names, name)
		}
	}
	return names
}

// Zones implements replay.Evaluator.
func (e *replayEvaluator) Zones() []replay.Zone { return e.zones }

// wants reports whether a header is read.
func (e *replayEvaluator) wants(name []byte) bool {
	return e.reads.allHeaders || e.reads.headers[string(name)]
}

// NewWorker implements replay.Evaluator.
func (e *replayEvaluator) NewWorker() replay.Worker {
	w := &replayWorker{eval: e, memo: newReplayMemo(e.known)}
	for _, server := range e.servers {
		w.requests = append(w.requests, &replayRequest{
			eval: e, server: server, meets: w.meets, header: make(http.Header), groups: make(map[string]bool),
		})
	}
	return w
}

// replayWorker implements replay.Worker.
type replayWorker struct {
	eval     *replayEvaluator
	requests []*replayRequest // one for each server
	charges  charges
	memo     replayMemo

	now   *replayRequest
	line  *replay.Line
	parts []replay.Part
}

// Gather implements replay.Worker.
func (w *replayWorker) Gather(line *replay.Line, parts []replay.Part) []replay.Part {
	w.line, w.parts = line, parts
	if line.Common || line.Headers == nil {
		w.eval.headless.Add(1)
	}
	w.gather(len(parts))
	parts, w.parts, w.line = w.parts, nil, nil
	return parts
}

// serve takes the request through the routes of its server. Nobody knows which one that
// is: the host and the port tell, and if they do not, the first one that has limits for it.
func (w *replayWorker) serve(before int) {
	line := w.line
	chosen := false
	port := portOf(line)
	for _, q := range w.requests {
		if q.server.ports[port] {
			chosen = true
			w.walk(q)
			break
		}
	}
	for _, q := range w.requests {
		if chosen || len(w.parts) > before {
			break
		}
		if line.TLS == nil && !line.Common && q.server.tls && port == "80" {
			continue // answered with a redirect to HTTPS
		}
		w.walk(q)
	}
}

func (w *replayWorker) walk(q *replayRequest) {
	q.set(w.line)
	w.now = q
	w.charges = charges{repl: q.repl}
	q.walk()
}

// meets evaluates the request in a handler. Whether earlier ones have refused it is
// decided later.
func (w *replayWorker) meets(h *Handler) {
	w.memo.met(w, h)
	c := &w.charges
	c.client = h.identity.Client(w.now.request, w.now.vars)
	e := newEvaluation(h, w.now.request, c)
	if e.gather() == nil {
		w.look()
		w.take(h, e)
	}
	e.release()
}

// take takes over what an evaluation has gathered.
func (w *replayWorker) take(h *Handler, e *evaluation) {
	number := w.eval.numbers[h]
	add := func(zone *Zone, kind replay.PartKind) *replay.Part {
		if w.unknowable(zone) {
			kind = replay.Unknown
		}
		w.memo.zones = append(w.memo.zones, zone)
		w.parts = append(w.parts, replay.Part{Zone: w.eval.index[zone], Handler: number, Kind: kind})
		return &w.parts[len(w.parts)-1]
	}
	for _, zone := range e.exempt {
		add(zone, replay.Exempt)
	}
	for _, zone := range e.later {
		add(zone, replay.Unknown)
	}
	counts := 0
	for i := range e.verdicts {
		v := &e.verdicts[i]
		kind := replay.Refused
		switch {
		case v.zone.Concurrent != nil && v.reason == reasonNone:
			kind = replay.Holds
		case v.reason == reasonNone:
			kind = replay.Counts
		}
		p := add(v.zone, kind)
		p.Client, p.Limit = v.client, v.limit
		if kind == replay.Counts {
			p.Units = e.call.Requests[counts].Units
			p.Back = len(v.zone.CountIf) > 0 && !w.counted(v.zone)
			counts++
		}
		if keys.Hashed(v.client) {
			p.Text = v.zone.readable(&e.keys, w.charges.client, v.client)
		}
	}
}

// look notes whether the log redacts anything that is read.
func (w *replayWorker) look() {
	if !w.eval.reads.anyHeader() {
		return
	}
	for _, name := range credentialHeaders {
		if lines := w.now.header[name]; len(lines) == 1 && lines[0] == redactedValue {
			w.eval.redacted.Add(1)
		}
	}
}

// unknowable reports whether a zone reads what the log redacts.
func (w *replayWorker) unknowable(zone *Zone) bool {
	for _, name := range w.eval.redacts[zone] {
		if lines := w.now.header[name]; len(lines) == 1 && lines[0] == redactedValue {
			return true
		}
	}
	return false
}

// counted reports whether the response in the log is one that the zone counts. What
// nobody has responded to counts.
func (w *replayWorker) counted(zone *Zone) bool {
	status := int(w.line.Status)
	if status == 0 || status == statusClientGone {
		return true
	}
	var header http.Header
	for i := range zone.CountIf {
		if len(zone.CountIf[i].Headers) > 0 && header == nil {
			header = make(http.Header)
			replay.EachHeader(w.line.RespHeaders, func([]byte) bool { return true }, func(name, value []byte) {
				header.Add(string(name), string(value))
			})
		}
	}
	return zone.counts(status, header)
}

// Interface guards
var (
	_ replay.Evaluator = (*replayEvaluator)(nil)
	_ replay.Worker    = (*replayWorker)(nil)
)
