package distributedratelimit

import (
	"errors"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// ServeHTTP limits the request: who is it, may it pass, what do we answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	p := chargesOf(r)
	if p.refused {
		// An error route is rendering the refusal. What a limit refused is
		// charged nowhere else: a client that is over its limit would use up
		// the limit on failed logins, and be refused for that. (Other refusals
		// are errors like any: a client may bring them about at will, and what
		// renders them may have limits.)
		return next.ServeHTTP(w, r)
	}
	p.client = h.identity.client(r)

	d := newEvaluation(h, r, p)
	if err := d.gather(); err != nil {
		d.release()
		return err
	}
	d.decide()
	d.report()
	if !d.passes() {
		p.refused = d.reason == reasonLimit
		err := h.refuse(w, r, d)
		d.release()
		return err
	}
	if h.headers.when == headersAlways {
		w = p.announce(w, h.headers, d)
	}
	d.release()

	err := next.ServeHTTP(w, r)
	p.finishHeaders(w)
	return err
}

// evaluation is the work on one request in one handler. It is charged to all of
// the handler's zones that apply, or to none; what it has charged when it lets
// the request pass stays charged, whatever later handlers say: between them a
// password may have been checked, or an upstream asked. Evaluations are reused.
type evaluation struct {
	h    *Handler
	r    *http.Request
	p    *charges
	keys keyBuilder

	verdicts []verdict
	call     fallback.Call // for the verdicts that need the store
	index    []int         // verdict of each of its requests
	exempt   []*Zone
	reason   reason // why the request is refused, if not for a limit
}

// verdict is what one zone says. It is silent if another zone refused before
// anybody was asked about this one.
type verdict struct {
	zone *Zone
	store.Decision
	counted bool // the decision holds numbers
}

func (v *verdict) silent() bool { return !v.counted && v.Source != store.FromPolicy }

// reason is a reason to refuse other than a limit.
type reason uint8

const (
	reasonLimit     reason = iota
	reasonStoreAway        // the store is away, and a zone denies then
	reasonEmptyKey         // the request has nothing of a zone's key
)

var evaluations = sync.Pool{New: func() any { return new(evaluation) }}

func newEvaluation(h *Handler, r *http.Request, p *charges) *evaluation {
	d := evaluations.Get().(*evaluation)
	d.h, d.r, d.p = h, r, p
	d.keys.repl = p.repl
	d.keys.request = r
	return d
}

func (d *evaluation) release() {
	clear(d.verdicts)
	clear(d.exempt)
	d.call.Reset()
	d.verdicts, d.index, d.exempt = d.verdicts[:0], d.index[:0], d.exempt[:0]
	d.h, d.r, d.p, d.reason = nil, nil, nil, reasonLimit
	d.keys.repl = nil
	d.keys.request = nil
	evaluations.Put(d)
}

// byPolicy is the decision of a zone that refuses whatever the store says.
var byPolicy = store.Decision{Source: store.FromPolicy}

// gather finds out which zones apply, and what to ask the store for.
func (d *evaluation) gather() error {
	if d.h.matchers {
		// The matcher client_ip reads this variable. The server's answer may
		// have been chosen by the client: `exempt { client_ip private_ranges }`
		// must not believe a forged header.
		ctx := d.r.Context()
		before := caddyhttp.GetVar(ctx, caddyhttp.ClientIPVarKey)
		caddyhttp.SetVar(ctx, caddyhttp.ClientIPVarKey, d.p.client.String())
		defer caddyhttp.SetVar(ctx, caddyhttp.ClientIPVarKey, before)
		// The matcher remote_ip reads this one. A Unix socket's may look like
		// an address of the client's choice.
		peer := d.r.RemoteAddr
		d.r.RemoteAddr = remoteAddr(d.r)
		defer func() { d.r.RemoteAddr = peer }()
	}
	for _, zone := range d.h.Zones {
		applies, exempt, err := zone.applies(d.r)
		if err != nil {
			return err
		}
		if exempt {
			d.exempt = append(d.exempt, zone)
		}
		if !applies {
			continue
		}
		if zone.keyedOnAddress() && isEarlyData(d.r) {
			d.p.tooEarly(zone)
			return caddyhttp.Error(http.StatusTooEarly,
				errors.New("the address of a client that sends early data is not verified yet"))
		}
		if zone.limit == 0 {
			d.verdicts = append(d.verdicts, verdict{zone: zone, Decision: byPolicy, counted: true})
			continue
		}

		var request store.Request
		limited, err := zone.request(&request, &d.keys, d.p.client)
		switch {
		case err == errEmptyKey && zone.DryRun:
			d.verdicts = append(d.verdicts, verdict{zone: zone, Decision: byPolicy})
			continue
		case err == errEmptyKey:
			d.verdicts = append(d.verdicts, verdict{zone: zone, Decision: byPolicy})
			d.reason = reasonEmptyKey
			continue
		case err != nil:
			return err
		case !limited:
			continue
		}
		if d.p.has(d.h.backend.name, &request.Key) {
			continue
		}
		d.index = append(d.index, len(d.verdicts))
		d.verdicts = append(d.verdicts, verdict{zone: zone})
		d.call.Requests = append(d.call.Requests, request)
		d.call.Policies = append(d.call.Policies, zone.policy)
	}
	return nil
}

// isEarlyData reports whether the request came before its TLS handshake was
// complete, in a packet whose source address anyone can write. On HTTP/1 and
// HTTP/2 an unfinished handshake has other reasons: there the address is that
// of a TCP connection.
func isEarlyData(r *http.Request) bool {
	return r.ProtoMajor == 3 && r.TLS != nil && !r.TLS.HandshakeComplete
}

// decide has the store decide, or what stands in for it.
func (d *evaluation) decide() {
	requests := d.call.Requests
	if len(requests) == 0 || !d.passes() {
		// A zone that refuses whatever the store says spares the call, and
		// nothing is charged.
		return
	}
	d.h.backend.Decide(time.Now(), d.p.rest(d.h.budget), &d.call)
	d.p.waited += d.call.Waited
	if d.call.Denied {
		d.reason = reasonStoreAway
	}
	for i := range requests {
		v := &d.verdicts[d.index[i]]
		if decision := &d.call.Decisions[i]; !decision.Skipped {
			v.Decision, v.counted = *decision, decision.Source != store.FromPolicy
		}
		if d.call.Charged(i) {
			d.p.note(d.h.backend.name, &requests[i].Key)
		}
	}
}

// passes reports whether no zone in force refuses.
func (d *evaluation) passes() bool {
	if d.reason != reasonLimit {
		return false
	}
	for i := range d.verdicts {
		v := &d.verdicts[i]
		if !v.Granted && !v.zone.DryRun && !v.silent() {
			return false
		}
	}
	return true
}

// report makes the decision visible: placeholders, metrics, and a line in
// the log for a refusal.
func (d *evaluation) report() {
	passes := d.passes()
	for i := range d.verdicts {
		v := &d.verdicts[i]
		switch {
		case v.silent():
		case v.Granted && passes:
			v.zone.counters.inc(outcomeGranted, v.Source)
		case v.Granted:
			// Another zone refused: this one was not charged.
		case v.zone.DryRun:
			v.zone.counters.inc(outcomeDryRun, v.Source)
			d.logRefusal(v)
		default:
			v.zone.counters.inc(outcomeRefused, v.Source)
			d.logRefusal(v)
		}
	}
	for _, zone := range d.exempt {
		zone.counters.inc(outcomeExempt, store.FromPolicy)
	}
	d.p.publish(d)
}

// shown is the verdict that placeholders are about: the one that refused, or
// would have in force, with the longest wait; else the one nearest to its
// limit. It is nil if no zone applied.
func (d *evaluation) shown() *verdict {
	passes := d.passes()
	var shown *verdict
	for i := range d.verdicts {
		v := &d.verdicts[i]
		refused := !v.Granted && (passes || !v.zone.DryRun)
		switch {
		case v.silent(), !passes && !refused:
			continue
		case shown == nil,
			refused && shown.Granted,
			refused && v.wait() > shown.wait(),
			v.Granted && shown.Granted && v.share() < shown.share():
			shown = v
		}
	}
	return shown
}

// wait is how long a refused client has to wait: for ever if the zone lets
// nothing pass.
func (v *verdict) wait() time.Duration {
	if v.zone.limit == 0 {
		return math.MaxInt64
	}
	return v.RetryAfter
}

// share is what is left of the zone's limit, 0 to 1; a zone that was not
// counted has all of it.
func (v *verdict) share() float64 { return share(v.counted, v.Remaining, v.zone.limit) }

func share(counted bool, remaining, limit int64) float64 {
	if !counted {
		return 1
	}
	return float64(remaining) / float64(max(limit, 1))
}

func (d *evaluation) logRefusal(v *verdict) {
	if !d.h.logger.Core().Enabled(zap.InfoLevel) {
		return
	}
	suppressed, ok := v.zone.refusals.allow(refusalLines, logSecond)
	if !ok {
		return
	}
	fields := []zap.Field{
		zap.String("zone", v.zone.Name),
		zap.Stringer("client_ip", d.p.client),
		zap.Stringer("source", v.Source),
		zap.Duration("retry_after", v.RetryAfter),
		zap.Bool("dry_run", v.zone.DryRun),
		zap.Int64("suppressed", suppressed),
	}
	if d.h.LogKey {
		fields = append(fields, zap.String("key", d.keys.readable(&v.zone.key, d.p.client, v.zone.v4, v.zone.v6)))
	}
	d.h.logger.Info("request refused", fields...)
}
