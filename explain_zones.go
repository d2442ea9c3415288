package distributedratelimit

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// explain tells what a handler would do with the request, and goes on as it would.
func (x *walk) explain(h *Handler, w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	c := chargesOf(r.Context(), vars)
	c.client = h.identity.Find(r, vars)
	answer := explainedHandler{
		Client:  explainedClient{IP: c.client.String(), Rule: c.client.Reason.String(), Because: because(c.client.Reason, h.identity.Header())},
		Granted: true, Zones: []explainedZone{},
	}
	e := newEvaluation(h, r, c)
	defer e.release()
	e.keys.probe = new(probe)
	if err := e.gather(); err != nil {
		answer.Granted, answer.Error = false, err.Error()
		x.answer.Handlers, x.answer.Granted = append(x.answer.Handlers, answer), false
		return err
	}
	e.decide()
	e.decideByBody(w)
	if !e.passes() {
		for _, z := range e.later {
			if e.verdictOf(z) == nil {
				e.keys.probe.absent(z, absentUnread)
			}
		}
		answer.Granted, answer.Reason = false, e.reason.String()
		answer.Status = cmp.Or(refusals[e.reason].status, h.Status)
		x.answer.Granted = false
		x.ends("distributed_ratelimit, which refuses")
	}
	if err := e.keys.probe.err; err != nil {
		answer.StoreError = err.Error()
	}
	now := time.Now()
	for _, z := range h.Zones {
		answer.Zones = append(answer.Zones, e.explainZone(z, now))
	}
	x.answer.Handlers = append(x.answer.Handlers, answer)
	if !answer.Granted {
		return nil
	}
	e.settleLook()
	return next.ServeHTTP(w, r)
}

func (e *evaluation) verdictOf(z *Zone) *verdict {
	i := slices.IndexFunc(e.verdicts, func(v verdict) bool { return v.zone == z })
	if i < 0 {
		return nil
	}
	return &e.verdicts[i]
}

// explainZone tells what a zone says to the request.
func (e *evaluation) explainZone(z *Zone, now time.Time) explainedZone {
	answer := explainedZone{Zone: z.Name, Store: e.h.backend.name, DryRun: z.DryRun, Window: seconds(z.window)}
	for _, short := range e.keys.probe.short {
		if short.zone == z {
			answer.Lacks = append(answer.Lacks, explainedLack{short.word, short.lack.String()})
		}
	}
	if v := e.verdictOf(z); v != nil {
		e.explainVerdict(v, &answer, now)
		return answer
	}
	for _, gone := range e.keys.probe.gone {
		if gone.zone == z {
			answer.Because, answer.Exempt = string(gone.why), e.exemptBy(z, gone.why)
		}
	}
	if cost, ok := e.keys.probe.costOf(z); ok {
		answer.Unlimited = cost.limit == unlimited
		answer.Plan = e.planOf(z)
	}
	return answer
}

// explainVerdict tells what a zone that applies says.
func (e *evaluation) explainVerdict(v *verdict, answer *explainedZone, now time.Time) {
	z := v.zone
	granted := v.reason == reasonNone
	answer.Applies, answer.Granted, answer.Reason, answer.Source = true, &granted, v.reason.String(), v.Source.String()
	answer.Key, answer.Plan = z.readable(&e.keys, e.charges.client, v.client), e.planOf(z)
	if limit := v.limit; limit > 0 || v.reason == reasonZero {
		answer.Limit = &limit
	}
	if z.Concurrent != nil {
		answer.Units = 1
	} else if cost, ok := e.keys.probe.costOf(z); ok {
		answer.Units = cost.units
	}
	if v.refusal != nil {
		answer.Detail = v.refusal.Message
	}
	answer.Override = overridden(z, answer)
	if ban, ok := z.bannedByHand(v.client); ok && v.client != "" {
		e.bannedByHand(v, ban.until, answer)
		return
	}
	if !v.counted || v.reason == reasonZero {
		return
	}
	of := v.limit
	if v.Source == store.FromLocal {
		of = min(of, max(1, of/int64(e.h.backend.Guard.Instances())))
		answer.Share = &of
	}
	used, remaining := max(0, of-v.Remaining), v.Remaining
	if remaining == 0 && v.Source == store.FromStore && z.Concurrent == nil {
		// More may be used than the limit, if that has become less.
		if d, ok := e.lookAtAll(v); ok {
			used = store.MaxEvents - d.Remaining
		}
	}
	answer.Used, answer.Remaining = &used, &remaining
	if z.Concurrent == nil {
		reset := seconds(v.Reset)
		answer.Reset = &reset
	}
	if v.Blocked {
		answer.BlockedUntil, answer.BlockedBy = momentOf(now.Add(v.RetryAfter)), blockedByRule
	}
	answer.MayBan = !granted && !v.Blocked && z.BlockFor > 0
}

// bannedByHand tells of a ban that was set by hand. It is known without the store, which
// is asked for the numbers all the same.
func (e *evaluation) bannedByHand(v *verdict, until time.Time, answer *explainedZone) {
	answer.BlockedUntil, answer.BlockedBy = momentOf(until), blockedByHand
	if v.zone.Concurrent != nil {
		return
	}
	d, ok := e.lookAtAll(v)
	if !ok {
		return
	}
	used := store.MaxEvents - d.Remaining
	answer.Used, answer.Source = &used, d.Source.String()
	if answer.Limit != nil {
		remaining := max(0, v.limit-used)
		answer.Remaining = &remaining
	}
}

// lookAtAll asks the store for all that counts for the key of a verdict, whatever its limit
// is.
func (e *evaluation) lookAtAll(v *verdict) (d store.Decision, ok bool) {
	requests := []store.Request{{Key: store.Key{Zone: v.zone.storeName, Client: v.client, Window: v.zone.window}, Limit: store.MaxEvents, Exact: true}}
	decisions := make([]store.Decision, 1)
	err := e.h.backend.Look(lookTime, requests, decisions)
	return decisions[0], err == nil && decisions[0].Source == store.FromStore
}

// overridden reports whether the limit of an answer was set by hand.
func overridden(z *Zone, answer *explainedZone) bool {
	_, byHand := z.limitByHand(answer.Plan)
	return answer.Limit != nil && byHand
}

// planOf is the plan that the request has, empty if it has none or the zone has no tier.
func (e *evaluation) planOf(z *Zone) string {
	if z.tier == nil {
		return ""
	}
	plan, _ := e.keys.Value(&z.tier.plan, e.charges.client, z.key.Mask)
	return string(plan)
}

// exemptBy tells which matchers exempt the request, those of the zone or of the handler.
func (e *evaluation) exemptBy(z *Zone, why absence) string {
	if why != absentExempt {
		return ""
	}
	defer e.showAddresses()()
	for _, by := range []struct {
		sets caddyhttp.MatcherSets
		text []string
		of   string
	}{{z.exempt, z.about.exempt, "the zone's"}, {e.h.exempt, e.h.about.exempt, "the handler's"}} {
		for i, set := range by.sets {
			if matches, err := set.MatchWithError(e.r); err == nil && matches && i < len(by.text) {
				return fmt.Sprintf("%s exempt %s", by.of, by.text[i])
			}
		}
	}
	return ""
}

// because tells in a sentence how the client's address was found.
func because(reason ipident.Reason, header string) string {
	switch reason {
	case ipident.ReasonUntrustedPeer, ipident.ReasonPeer:
		return "it is connected, and no trusted proxy: what a header says is not believed"
	case ipident.ReasonNoHeader:
		return "it is connected, and a trusted proxy, but has sent no " + header
	case ipident.ReasonHeader:
		return "a trusted proxy says so in " + header
	case ipident.ReasonAllTrusted:
		return "all addresses in " + header + " are trusted proxies; this is the first"
	case ipident.ReasonMalformed:
		return header + " has an element that is no address; this is the nearest one that a trusted proxy vouches for"
	case ipident.ReasonDuplicate:
		return header + " comes more than once, and is not believed"
	case ipident.ReasonTooLong:
		return header + " is too long; this is the last address within the bounds"
	case ipident.ReasonTooFewHops:
		return header + " names fewer proxies than there are, and is not believed"
	case ipident.ReasonUnix:
		return "it is connected through a Unix socket, and has no address"
	}
	return "no address can be read"
}
