package distributedratelimit

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// This file is about zones that read the request's body: {form.<field>} and
// {json.<path>} in key, cost or tier.

// BodyReading bounds the reading of bodies.
type BodyReading struct {
	// The longest body, in bytes, in which `{form.<field>}` and `{json.<path>}`
	// are looked for, 1 KiB to 1 MiB. A longer one is passed on whole, but has no
	// fields: a zone with such a key refuses it. Default: the app's, else 64 KiB. In a
	// handler that has a zone with usage, it is also the longest request to an LLM API,
	// which is refused if it is longer: up to 64 MiB there, and 8 MiB by default,
	// whatever the app's is.
	BodyLimit int64 `json:"body_limit,omitempty"`

	// How long a client may take to send a body that is read, 100ms to 5m; later
	// it gets 408. Default: the app's, else 10s.
	BodyTimeout caddy.Duration `json:"body_timeout,omitempty"`
}

const (
	defaultBodyLimit   = 64 << 10
	minBodyLimit       = 1 << 10
	maxBodyLimit       = 1 << 20
	defaultUsageLimit  = 8 << 20 // with usage
	maxUsageLimit      = 64 << 20
	defaultBodyTimeout = 10 * time.Second
	minBodyTimeout     = 100 * time.Millisecond
	maxBodyTimeout     = 5 * time.Minute
	defaultBodyMemory  = 256 << 20
	minBodyMemory      = 1 << 20
)

// bodyMemory is what all bodies in the process may hold, whatever configuration
// their requests belong to.
var bodyMemory = body.NewMemory(defaultBodyMemory)

// bodyMemoryUsed is a metric.
var bodyMemoryUsed = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
	Namespace: "caddy", Subsystem: "distributed_ratelimit", Name: "body_memory_bytes",
	Help: "What bodies that are being read hold in memory, of body_memory at most.",
}, func() float64 { return float64(bodyMemory.Used()) })

func (b *BodyReading) check(most int64) *settings.Mistake {
	if b.BodyLimit != 0 && (b.BodyLimit < minBodyLimit || b.BodyLimit > most) {
		return settings.Wrong("body_limit", "body_limit of %d bytes is not between 1KiB and %dMiB", b.BodyLimit, most>>20)
	}
	if t := time.Duration(b.BodyTimeout); t != 0 && (t < minBodyTimeout || t > maxBodyTimeout) {
		return settings.Wrong("body_timeout", "body_timeout %v is not between %v and %v", t, minBodyTimeout, maxBodyTimeout)
	}
	return nil
}

func checkBodyMemory(bytes int64) *settings.Mistake {
	if bytes != 0 && bytes < minBodyMemory {
		return settings.Wrong("body_memory", "body_memory of %d bytes is less than 1MiB, which is too little for one long body; write for example 256MiB", bytes)
	}
	return nil
}

// checkBodyReading rejects settings of a handler that reads no body.
func (h *Handler) checkBodyReading() *settings.Mistake {
	most := int64(maxBodyLimit)
	if h.hasUsage() {
		most = maxUsageLimit
	}
	if mistake := h.BodyReading.check(most); mistake != nil {
		return mistake
	}
	if slices.ContainsFunc(h.Zones, (*Zone).writtenWithBody) {
		return nil
	}
	for _, word := range []struct {
		name string
		set  bool
	}{{"body_limit", h.BodyLimit != 0}, {"body_timeout", h.BodyTimeout != 0}} {
		if word.set {
			return settings.Wrong(word.name, "no zone here reads a body; remove %s, or write usage, or {form.<field>} or {json.<path>} in key, cost or tier", word.name)
		}
	}
	return nil
}

// hasUsage reports whether some zone is a budget in front of an LLM API.
func (h *Handler) hasUsage() bool {
	return slices.ContainsFunc(h.Zones, func(z *Zone) bool { return z != nil && z.Usage != nil })
}

// writtenWithBody reports whether a zone that has no mistakes reads the body.
func (z *Zone) writtenWithBody() bool {
	if z.Usage != nil {
		return true
	}
	if key, _ := keys.Parse(z.Key); key.ReadsBody() {
		return true
	}
	if z.Tier != nil {
		if plan, _ := keys.ParseValue(readTier.String(), z.Tier.Plan); plan.ReadsBody() {
			return true
		}
	}
	if z.Cost != nil && z.Cost.From != "" {
		from, _ := keys.ParseValue(readCost.String(), z.Cost.From)
		return from.ReadsBody()
	}
	return false
}

// bodyLimits are the limits of a handler.
func (h *Handler) bodyLimitsOf(app *App) body.Limits {
	bytes := cmp.Or(app.BodyLimit, defaultBodyLimit)
	if h.hasUsage() {
		bytes = defaultUsageLimit
	}
	return body.Limits{
		Bytes:   cmp.Or(h.BodyLimit, bytes),
		Timeout: time.Duration(cmp.Or(h.BodyTimeout, app.BodyTimeout, caddy.Duration(defaultBodyTimeout))),
		Memory:  bodyMemory,
	}
}

// decideByBody decides the zones that need the request's body, after all others:
// nobody makes this process read bodies who is over another limit. If one of them
// refuses, the others get their units back, as nothing was done in between.
func (e *evaluation) decideByBody(w http.ResponseWriter) {
	if len(e.later) == 0 || !e.passes() {
		return
	}
	first := e.reservations()
	e.call.Reset()
	e.index = e.index[:0]

	read, err := e.openBody(w)
	e.keys.Body = read
	switch err {
	case nil:
		e.orderUsage()
		for _, zone := range e.later {
			e.add(zone)
		}
		e.rewrite()
		e.decide()
	case body.ErrMemory:
		e.h.app.warnOfBodyMemory()
		for _, zone := range e.later {
			e.refuse(zone, zone.limitShown(), reasonBodyMemory)
		}
	default:
		for _, zone := range e.later {
			e.refuse(zone, zone.limitShown(), reasonSlowBody)
		}
		// Nor can a dry run let the request pass: its body is lost.
		e.reason = max(e.reason, reasonSlowBody)
	}
	if e.passes() || read.Failed() && err != body.ErrMemory {
		// A client that hangs or breaks off keeps what it has been charged: else
		// it could make us read half bodies without end, and for nothing.
		return
	}
	for i := range e.verdicts {
		e.verdicts[i].charged = false
	}
	if len(first) == 0 {
		return
	}
	began := time.Now()
	e.h.backend.Settle(e.charges.rest(e.h.budget), first)
	e.charges.waited += time.Since(began)
}

// openBody reads the body. Whoever has put a reader of his own before it may make
// that panic: then nobody else would release the slots.
func (e *evaluation) openBody(w http.ResponseWriter) (read *body.Body, err error) {
	held := e.flight
	defer func() {
		if held != nil {
			held.giveUp()
		}
	}()
	read, err = body.Open(w, e.r, e.h.bodyLimits)
	held = nil
	return read, err
}

// reservations are what the evaluation has charged so far, as none of it were spent.
func (e *evaluation) reservations() []fallback.Settlement {
	if len(e.call.Requests) == 0 || e.keys.probe != nil {
		return nil
	}
	settlements := make([]fallback.Settlement, len(e.call.Requests))
	for i := range settlements {
		settlements[i].Reservation = e.call.Reservation(i)
	}
	return settlements
}

// unread reports whether the request's body, or a part of it, is still to come.
func (e *evaluation) unread() bool {
	return e.r.ContentLength != 0 && (e.keys.Body == nil || !e.keys.Body.Complete())
}

// warnOfBodyMemory warns that requests are refused for want of memory.
func (a *App) warnOfBodyMemory() {
	if suppressed, ok := a.bodyWarnings.Allow(1, time.Minute); ok {
		a.logger.Warn("bodies hold all of body_memory, and requests whose body is needed are refused with 503; put a zone with concurrent on the address beside those that read bodies, shorten body_timeout, or raise body_memory",
			zap.Int64("body_memory", bodyMemory.Limit()), zap.Int64("suppressed", suppressed))
	}
}
