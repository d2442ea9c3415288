package distributedratelimit

import (
	"strings"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// placeholders is what the handlers have to tell about the request.
type placeholders struct {
	zone       *Zone // nil if none applied
	limit      int64
	remaining  int64
	reset      int64 // s
	retryAfter int64 // s, 0 if not refused
	outcome    outcome
	counted    bool // there are numbers
	source     store.Source
}

const placeholderPrefix = "http.distributed_ratelimit."

// publish takes over what placeholders tell from an evaluation. They are about
// the request, not about the last handler: a handler that has nothing to say
// leaves what an earlier one said. One that grants leaves a refusal, also one of
// a dry run, and a zone that is nearer to its limit.
func (c *charges) publish(e *evaluation) {
	shown := e.shown()
	if shown == nil {
		if len(e.exempt) > 0 && c.told.outcome == outcomeNone {
			c.told = placeholders{outcome: outcomeExempt, zone: e.exempt[0], source: store.FromPolicy}
		}
		return
	}
	told := placeholders{
		outcome: outcomeGranted, zone: shown.zone, source: shown.Source,
		counted: shown.counted, limit: shown.limit, remaining: shown.Remaining, reset: wholeSeconds(shown.Reset),
	}
	switch {
	case !e.passes():
		told.outcome = outcomeRefused
		told.retryAfter = wholeSeconds(shown.RetryAfter)
	case shown.reason != reasonNone:
		told.outcome = outcomeDryRun
	}
	switch c.told.outcome {
	case outcomeRefused:
		if told.outcome != outcomeRefused {
			return
		}
	case outcomeDryRun:
		if told.outcome == outcomeGranted {
			return
		}
	case outcomeGranted:
		if told.outcome == outcomeGranted && c.told.share() <= told.share() {
			return
		}
	}
	c.told = told
}

// shown is the verdict that placeholders are about: the one that refuses, or
// would without the dry run, with the longest wait; else the one nearest to its
// limit. It is nil if no zone applied.
func (e *evaluation) shown() *verdict {
	passes := e.passes()
	var shown *verdict
	for i := range e.verdicts {
		v := &e.verdicts[i]
		refused := v.reason != reasonNone && (passes || !v.zone.DryRun)
		switch {
		case v.silent(), !passes && !refused:
			continue
		case shown == nil,
			refused && shown.reason == reasonNone,
			refused && (v.reason > shown.reason || v.reason == shown.reason && v.wait() > shown.wait()),
			v.reason == reasonNone && shown.reason == reasonNone && v.share() < shown.share():
			shown = v
		}
	}
	return shown
}

// tooEarly is what is told of a request that a zone refuses for its early data,
// whatever earlier handlers granted.
func (c *charges) tooEarly(zone *Zone) {
	c.told = placeholders{outcome: outcomeRefused, zone: zone, source: store.FromPolicy}
	c.forgetHeaders()
}

// share is what is left of the limit, as that of a verdict.
func (t *placeholders) share() float64 { return share(t.counted, t.remaining, t.limit) }

// placeholder implements caddy.ReplacerFunc.
func (c *charges) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, placeholderPrefix)
	if !ok {
		return nil, false
	}
	told := &c.told
	switch name {
	case "client_ip":
		return c.client.String(), true
	case "outcome":
		return told.outcome.String(), true
	case "zone":
		if told.zone == nil {
			return "", true
		}
		return told.zone.Name, true
	case "limit":
		return numberIf(told.counted, told.limit), true
	case "remaining":
		return numberIf(told.counted, told.remaining), true
	case "reset":
		return numberIf(told.counted, told.reset), true
	case "retry_after":
		return numberIf(told.retryAfter > 0, told.retryAfter), true
	case "source":
		if told.outcome == outcomeNone {
			return "", true
		}
		return told.source.String(), true
	}
	return nil, false
}

func numberIf(known bool, n int64) any {
	if !known {
		return ""
	}
	return n
}
