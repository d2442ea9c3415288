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
)

// ServeHTTP limits the request: who is it, may it pass, what do we answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	p := passageOf(r)
	if p.refused {
		// An error route is rendering the refusal. What a limit refused is
		// charged nowhere else: a client that is over its limit would use up
		// the limit on failed logins, and be refused for that. (Other refusals
		// are errors like any: a client may bring them about at will, and what
		// renders them may have limits.)
		return next.ServeHTTP(w, r)
	}
	p.client = h.identity.client(r)

	d := newDecision(h, r, p)
	if err := d.gather(); err != nil {
		d.release()
		return err
	}
	d.decide()
	d.report()
	if !d.passes() {
		p.refused = d.problem == problemNone
		d.giveBack()
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

// decision is the work on one request in one handler. It is charged to all of
// the handler's zones that apply, or to none; what it has charged when it lets
// the request pass stays charged, whatever later handlers say: between them a
// password may have been checked, or an upstream asked. Decisions are reused.
type decision struct {
	h    *Handler
	r    *http.Request
	p    *passage
	keys keyBuilder

	verdicts []verdict
	asks     []store.Ask    // of the verdicts that need the store
	answers  []store.Answer // to asks
	index    []int          // verdict of each ask
	exempt   []*Zone
	problem  problem // why the request is refused, if it is not for a limit

	held []store.Grant // by the standby; goes back if the request is refused here
	late lateCall      // likewise, when its answers come
}

// verdict is what one zone says. It is silent if another zone refused before
// anybody was asked about this one.
type verdict struct {
	zone    *Zone
	source  source
	granted bool
	counted bool // answer holds numbers
	answer  store.Answer
}

func (v *verdict) silent() bool { return !v.counted && v.source != sourcePolicy }

// problem is a reason to refuse other than a limit.
type problem uint8

const (
	problemNone     problem = iota
	problemStore            // the store is away, and a zone denies then
	problemEmptyKey         // the request has nothing of a zone's key
)

var decisions = sync.Pool{New: func() any { return new(decision) }}

func newDecision(h *Handler, r *http.Request, p *passage) *decision {
	d := decisions.Get().(*decision)
	d.h, d.r, d.p = h, r, p
	d.keys.repl = p.repl
	d.keys.request = r
	return d
}

func (d *decision) release() {
	clear(d.verdicts)
	clear(d.asks)
	clear(d.exempt)
	clear(d.held)
	d.verdicts, d.asks, d.answers = d.verdicts[:0], d.asks[:0], d.answers[:0]
	d.index, d.exempt, d.held = d.index[:0], d.exempt[:0], d.held[:0]
	d.h, d.r, d.p, d.problem, d.late = nil, nil, nil, problemNone, lateCall{}
	d.keys.repl = nil
	d.keys.request = nil
	decisions.Put(d)
}

// gather finds out which zones apply, and what to ask the store for.
func (d *decision) gather() error {
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
			d.verdicts = append(d.verdicts, verdict{zone: zone, source: sourcePolicy, counted: true})
			continue
		}

		var ask store.Ask
		limited, err := zone.ask(&ask, &d.keys, d.p.client)
		switch {
		case err == errEmptyKey && zone.DryRun:
			d.verdicts = append(d.verdicts, verdict{zone: zone, source: sourcePolicy})
			continue
		case err == errEmptyKey:
			d.verdicts = append(d.verdicts, verdict{zone: zone, source: sourcePolicy})
			d.problem = problemEmptyKey
			continue
		case err != nil:
			return err
		case !limited:
			continue
		}
		if d.p.hasCharged(d.h.backend.name, &ask) {
			continue
		}
		d.index = append(d.index, len(d.verdicts))
		d.verdicts = append(d.verdicts, verdict{zone: zone})
		d.asks = append(d.asks, ask)
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

// decide asks the store, or follows the zones' policies if it is away.
func (d *decision) decide() {
	if len(d.asks) == 0 || !d.passes() {
		// A zone that refuses whatever the store says spares the call, and
		// nothing is charged.
		d.dropAsks()
		return
	}
	b := d.h.backend
	now := time.Now()
	if b.cautious && !d.consents(now) {
		return
	}
	d.answers = append(d.answers[:0], make([]store.Answer, len(d.asks))...)
	took, err := b.take(now, d.p.rest(d.h.budget), d.asks, d.answers)
	d.p.waited += took
	if err != nil {
		d.giveBackHeld()
		d.withoutStore(err)
		return
	}
	d.feed()
	d.settle(false)
}

// dropAsks removes the verdicts that were to come from the store.
func (d *decision) dropAsks() {
	kept := d.verdicts[:0]
	for _, v := range d.verdicts {
		if v.source == sourcePolicy {
			kept = append(kept, v)
		}
	}
	d.verdicts = kept
	d.asks, d.index = d.asks[:0], d.index[:0]
}

// settle takes the answers over into the verdicts, and takes note of what was
// charged. away tells that they are not the store's, but those of what stands
// in for it.
func (d *decision) settle(away bool) {
	for i := range d.asks {
		v := &d.verdicts[d.index[i]]
		if d.answers[i].Undecided {
			continue // it has nothing to say
		}
		source := sourceOf(d.answers[i].Source)
		if away {
			source = sourceLocal
		}
		d.adopt(v, &d.answers[i], source)
		if v.answer.Charged() {
			d.p.note(d.h.backend.name, &d.asks[i])
		}
	}
}

// adopt makes an answer the verdict of its zone.
func (d *decision) adopt(v *verdict, answer *store.Answer, source source) {
	v.source, v.counted, v.answer, v.granted = source, true, *answer, answer.Granted
}

// passes reports whether no zone in force refuses.
func (d *decision) passes() bool {
	if d.problem != problemNone {
		return false
	}
	for i := range d.verdicts {
		v := &d.verdicts[i]
		if !v.granted && !v.zone.DryRun && !v.silent() {
			return false
		}
	}
	return true
}

// report makes the decision visible: placeholders, metrics, and a line in
// the log for a refusal.
func (d *decision) report() {
	passes := d.passes()
	for i := range d.verdicts {
		v := &d.verdicts[i]
		switch {
		case v.silent():
		case v.granted && passes:
			v.zone.counters.inc(outcomeGranted, v.source)
		case v.granted:
			// Another zone refused: this one was not charged.
		case v.zone.DryRun:
			v.zone.counters.inc(outcomeDryRun, v.source)
			d.logRefusal(v)
		default:
			v.zone.counters.inc(outcomeRefused, v.source)
			d.logRefusal(v)
		}
	}
	for _, zone := range d.exempt {
		zone.counters.inc(outcomeExempt, sourcePolicy)
	}
	d.p.publish(d)
}

// shown is the verdict that placeholders are about: the one that refused, or
// would have in force, with the longest wait; else the one nearest to its
// limit. It is nil if no zone applied.
func (d *decision) shown() *verdict {
	passes := d.passes()
	var shown *verdict
	for i := range d.verdicts {
		v := &d.verdicts[i]
		refused := !v.granted && (passes || !v.zone.DryRun)
		switch {
		case v.silent(), !passes && !refused:
			continue
		case shown == nil,
			refused && shown.granted,
			refused && v.wait() > shown.wait(),
			v.granted && shown.granted && v.share() < shown.share():
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
	return v.answer.RetryAfter
}

// share is what is left of the zone's limit, 0 to 1; a zone that was not
// counted has all of it.
func (v *verdict) share() float64 { return share(v.counted, v.answer.Remaining, v.zone.limit) }

func share(counted bool, remaining, limit int64) float64 {
	if !counted {
		return 1
	}
	return float64(remaining) / float64(max(limit, 1))
}

func (d *decision) logRefusal(v *verdict) {
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
		zap.Stringer("source", v.source),
		zap.Duration("retry_after", v.answer.RetryAfter),
		zap.Bool("dry_run", v.zone.DryRun),
		zap.Int64("suppressed", suppressed),
	}
	if d.h.LogKey {
		fields = append(fields, zap.String("key", d.keys.readable(&v.zone.key, d.p.client, v.zone.v4, v.zone.v6)))
	}
	d.h.logger.Info("request refused", fields...)
}
