// Package distributedratelimit gives many Caddy instances one set of rate
// limits: in every interval of one window, all instances together grant at
// most the limit.
//
// Its HTTP handler, directive distributed_ratelimit, limits requests by zones
// (limits with a name); its app, the global option of the same name, holds
// the store that the instances share. What the package does not promise: a
// store that loses acknowledged writes forgets what it had granted, and while
// the store is away each zone follows its on_store_error.
package distributedratelimit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/identity"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// Handler limits the rate of requests. Requests that would exceed the limit
// of a zone are refused with status 429 and a true Retry-After; a request is
// charged to all the zones that apply to it, or, when one refuses, to none.
// What a handler has charged stays charged when a later handler refuses.
//
// The access log tells the outcome, the zone, the reason and the source of the decision
// in the field rate_limit, without configuration.
//
// These placeholders are set for what runs after the handler, for error
// routes and for the access log:
//
// Placeholder | Description
// ------------|---------------
// `{http.distributed_ratelimit.client_ip}` | The client's address, as the handler decided it
// `{http.distributed_ratelimit.outcome}` | `granted`, `refused`, `dry_run` (granted, but a zone in dry run would have refused) or `exempt`; empty if no zone applied
// `{http.distributed_ratelimit.reason}` | Why it was refused, or would have been in the dry run: `limit`, `blocked` (the key is banned), `busy`, `zero` (the limit is 0), `too_costly` (it takes more than the limit), `empty_key`, `store_away`, `body_memory` or `slow_body`; of budgets also `unbounded`, `unmetered`, `malformed`, `encoded` or `too_long`
// `{http.distributed_ratelimit.zone}` | The zone that refused, else the one nearest to its limit; a zone in dry run only if no zone in force applied
// `{http.distributed_ratelimit.limit}` | The limit of that zone, in requests, units of its cost, tokens or micro-dollars
// `{http.distributed_ratelimit.remaining}` | What is left of it
// `{http.distributed_ratelimit.reset}` | Seconds until all of it is free again
// `{http.distributed_ratelimit.retry_after}` | Seconds until a retry can succeed, if refused
// `{http.distributed_ratelimit.source}` | What decided: `store`, `lease` (this instance, with units that the store had granted it), `cache` (this instance, which remembers a refusal), `local` (the store was away) or `policy` (nothing was counted)
// `{http.distributed_ratelimit.zones.<name>.limit}`, and `remaining`, `reset` and `reason` in its place | The same of a zone by its name; empty if it did not apply
type Handler struct {
	// The limits, in the order in which they are checked and reported.
	// A request is limited by all the zones whose matchers match it.
	Zones []*Zone `json:"zones,omitempty"`

	// Which requests are neither limited nor counted by any of the zones: requests
	// that match any of these matcher sets, which are like those of a zone.
	ExemptRaw caddyhttp.RawMatcherSets `json:"exempt,omitempty" caddy:"namespace=http.matchers"`

	// Where the client's address comes from, for this handler. Default: what
	// the app has, else what the HTTP server has.
	identity.ClientAddress

	// What to do with a request while the store is away: `local` limits it in
	// this process alone, to its share of the limit among the instances that
	// are known, at least 1; `allow` lets it pass uncounted; `deny` responds
	// with 503.
	// Default: the app's, else `local`.
	OnStoreError string `json:"on_store_error,omitempty"`

	// The longest time that a request may wait for stores, in all handlers
	// together. Default: the app's, else 100ms.
	Budget caddy.Duration `json:"budget,omitempty"`

	// How bodies are read, for zones that look into them. It takes no part of
	// the budget.
	BodyReading

	// Which response headers tell clients about their limits, and when. At most
	// one version of draft-ietf-httpapi-ratelimit-headers: `draft` (8 and later:
	// RateLimit and RateLimit-Policy tell of every zone, by its name), `draft7`
	// (RateLimit: limit=30, remaining=29, reset=60) or `draft6` (RateLimit-Limit,
	// -Remaining and -Reset). At most one of `legacy` (X-RateLimit-Limit,
	// -Remaining and -Reset, which is in seconds from now) and `legacy_epoch` (the
	// same, but that -Reset is in seconds since 1970, by this machine's clock: a
	// client with another time waits too long or too short). Where one zone only
	// can be told of, it is the one that refused, else the one nearest to its
	// limit. When: `refused` or `always`. Or `off` alone. With `always`, shared
	// caches may keep one client's numbers for another; a draft, or the legacy
	// fields, are left out if the upstream has set one of them. The policy of a zone
	// with usage names its unit, as the draft's parameter `qu`: tokens or
	// micro-dollars. Default: `draft`, `refused`.
	RateLimitHeaders []string `json:"ratelimit_headers,omitempty"`

	// What the names of the legacy fields begin with: `X-Rate-Limit` stands for
	// X-Rate-Limit-Limit, X-Rate-Limit-Remaining and X-Rate-Limit-Reset. An error
	// without `legacy` or `legacy_epoch`. Default: `X-RateLimit`.
	RateLimitHeadersPrefix string `json:"ratelimit_headers_prefix,omitempty"`

	// How a refusal is rendered: `error` returns an error to the error routes
	// (handle_errors), `problem` writes application/problem+json, and `auto`
	// does the former if an error route matches the request and the latter
	// otherwise. Inside an error route it is always written. Default: `auto`.
	Refusal string `json:"refusal,omitempty"`

	// The status of a refusal, 400 to 599. Default: 429.
	Status int `json:"status,omitempty"`

	// Lengthens Retry-After at random by up to this share of it, 0 to 1 (0.2
	// is 20 %), so that refused clients do not all come back at the same
	// moment. It is never shortened. Default: 0.
	Jitter float64 `json:"jitter,omitempty"`

	// Adds the key to the log lines of refusals. Keys may be secrets, such
	// as API keys: by default they are not logged.
	LogKey bool `json:"log_key,omitempty"`

	// A store for this handler alone. Default: the app's store, which is
	// what makes several handlers and several instances share their limits.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=distributed_ratelimit.stores inline_key=module"`

	logger     *zap.Logger
	app        *App
	server     *caddyhttp.Server // that it belongs to, nil if none
	backend    *backend
	identity   *identity.Finder
	headers    headerStyle
	budget     time.Duration
	bodyLimits body.Limits
	policy     string // default of the zones' on_store_error
	exempt     caddyhttp.MatcherSets
	about      matchersText
	held       []string // zones whose metrics this handler holds
	matchers   bool     // some zone, or the handler, has matchers
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.distributed_ratelimit",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler. It does not need the store to be reachable.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	if mistake := h.check(); mistake != nil {
		return mistake
	}

	app, err := ctx.App(appID)
	if err != nil {
		return fmt.Errorf("loading the %s app: %v", appID, err)
	}
	h.app = app.(*App)
	h.server, _ = ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)

	if err := registerMetrics(ctx); err != nil {
		return err
	}
	if err := h.provisionBackend(ctx); err != nil {
		return err
	}
	h.identity, err = identity.New(ctx, &h.ClientAddress, &h.app.ClientAddress, h.app.ipSource, &h.app.forwarding, h.logger)
	if err != nil {
		return err
	}
	h.bodyLimits = h.bodyLimitsOf(h.app)
	h.budget = time.Duration(cmp.Or(h.Budget, h.app.Budget, caddy.Duration(defaultBudget)))
	h.policy = cmp.Or(h.OnStoreError, h.app.OnStoreError, policyLocal)
	h.headers = parseHeaderStyle(h.RateLimitHeaders, h.RateLimitHeadersPrefix)
	if h.Status == 0 {
		h.Status = http.StatusTooManyRequests
	}

	h.warnOfKeys(ctx)
	h.warnOfRemoteIP("", "exempt", h.ExemptRaw)
	h.about.exempt = shortMatchers(h.ExemptRaw)
	if h.exempt, err = loadMatchers(ctx, h, "ExemptRaw", h.ExemptRaw); err != nil {
		return fmt.Errorf("exempt: %v", err)
	}
	h.matchers = len(h.exempt) > 0
	for _, zone := range h.Zones {
		if err := zone.provision(ctx, h); err != nil {
			return fmt.Errorf("zone %q: %v", zone.Name, err)
		}
		if err := h.app.registerZone(h.backend.store.String(), zone); err != nil {
			return err
		}
		h.backend.has(zone)
		if err := h.provisionUsage(zone); err != nil {
			return fmt.Errorf("zone %q: %v", zone.Name, err)
		}
		if zone.Concurrent != nil {
			if err := h.provisionConcurrent(zone); err != nil {
				return fmt.Errorf("zone %q: %v", zone.Name, err)
			}
		}
		h.matchers = h.matchers || len(zone.match) > 0 || len(zone.exempt) > 0
		zoneSeries.retain(zone.Name)
		h.held = append(h.held, zone.Name)
		if zone.Concurrent != nil {
			inFlight.show(zone.Name, true)
		}
		_, shared := h.backend.store.(store.Shared)
		zone.counters.show(zone, shared, len(h.exempt) > 0)
	}
	h.provisionTop()
	h.app.registerHandler(h)
	return nil
}

func (h *Handler) provisionBackend(ctx caddy.Context) error {
	if h.StoreRaw == nil {
		var err error
		h.backend, err = h.app.sharedBackend()
		return err
	}
	module, err := ctx.LoadModule(h, "StoreRaw")
	if err != nil {
		return fmt.Errorf("loading the handler's store: %v", err)
	}
	h.backend, err = h.app.newBackend(module, h.logger)
	return err
}

// Cleanup releases what Provision loaded, and only that: it also runs after a
// Provision that failed midway. Requests still in the handler go on: what they
// use is closed by its owner when it is idle.
func (h *Handler) Cleanup() error {
	for _, zone := range h.held {
		zoneSeries.release(zone)
	}
	h.held = nil
	return nil
}

const (
	refusalAuto    = "auto"
	refusalError   = "error"
	refusalProblem = "problem"

	maxJitter = 1.0
)

// check finds the first mistake in the configuration. The Caddyfile's parser
// and Provision both use it, so that JSON is held to the same rules. It
// returns nil if all is well.
func (h *Handler) check() *settings.Mistake {
	if len(h.Zones) == 0 {
		return settings.Wrong("zone", "no limit given; write for example: distributed_ratelimit 30 1m, or a zone with events and window")
	}
	names := make(map[string]bool, len(h.Zones))
	for i, zone := range h.Zones {
		if zone == nil {
			return settings.Wrong("zone", "zone %d is null; give it a name, events and window, or remove it", i)
		}
		if mistake := zone.check(); mistake != nil {
			mistake.Zone = zone.Name
			return mistake
		}
		if names[zone.Name] {
			return &settings.Mistake{Zone: zone.Name, Field: "zone", Err: fmt.Errorf("the handler has two zones of this name; rename one or merge them")}
		}
		names[zone.Name] = true
	}
	if mistake := checkMatcherSets("exempt", h.ExemptRaw); mistake != nil {
		return mistake
	}
	if mistake := identity.Check(&h.ClientAddress); mistake != nil {
		return mistake
	}
	if mistake := checkStoreUse(h.OnStoreError, h.Budget); mistake != nil {
		return mistake
	}
	if mistake := h.checkBodyReading(); mistake != nil {
		return mistake
	}
	if mistake := checkHeaderStyle(h.RateLimitHeaders, h.RateLimitHeadersPrefix); mistake != nil {
		return mistake
	}
	switch h.Refusal {
	case "", refusalAuto, refusalError, refusalProblem:
	default:
		return settings.Wrong("refusal", "unknown refusal %q; write auto, error or problem", h.Refusal)
	}
	if h.Status != 0 && (h.Status < 400 || h.Status > 599) {
		return settings.Wrong("status", "status %d is not an error status; write 400 to 599, normally 429", h.Status)
	}
	if !(h.Jitter >= 0 && h.Jitter <= maxJitter) {
		return settings.Wrong("jitter", "jitter %v is not between 0 and %v; write for example 20%%, or 0.2, which is the same", h.Jitter, maxJitter)
	}
	return nil
}

// ServeHTTP limits the request: who is the client, does it pass, and what is
// the response.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	ctx := r.Context()
	vars := ctx.Value(caddyhttp.VarsCtxKey).(map[string]any)
	c := chargesOf(ctx, vars)
	if c.refused {
		// An error route is rendering the refusal. What a limit refused is
		// charged nowhere else: a client that is over its limit would use up
		// the limit on failed logins, and be refused for that.
		return next.ServeHTTP(w, r)
	}
	c.client = h.identity.Client(r, vars)
	identityMetric(c.client.Reason).Inc()

	e := newEvaluation(h, r, c)
	if err := e.gather(); err != nil {
		e.release()
		return err
	}
	e.decide()
	e.decideByBody(w)
	e.keepSlots()
	e.report()
	if !e.passes() {
		c.refused = refusals[e.reason].limit
		err := h.refuse(w, r, e)
		e.release()
		return err
	}
	if h.headers.when == headersAlways {
		w = c.announce(w, h.headers, e)
	}
	if e.flight != nil {
		next = e.flight.around(next)
	}
	announced := w
	awaiting := e.await(w)
	if awaiting != nil {
		w = awaiting
		defer awaiting.broken()
	}
	e.release()

	err := next.ServeHTTP(w, r)
	awaiting.end(err)
	c.finishHeaders(announced)
	return err
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
