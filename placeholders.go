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
	reset      int32 // s
	retryAfter int32 // s, 0 if not refused
	outcome    outcome
	reason     reason
	counted    bool // there are numbers
	source     store.Source
}

const placeholderPrefix = "http.distributed_ratelimit."

// publish takes over what placeholders tell from an evaluation. They are about
// the request, not about the last handler: a handler that has nothing to say
// leaves what an earlier one said. One that grants leaves a refusal, and a zone that
// is nearer to its limit. A dry run leaves what a zone in force said.
func (c *charges) publish(e *evaluation) {
	shown := e.shown()
	if shown == nil {
		if len(e.exempt) > 0 && c.told.outcome == outcomeNone {
			c.told = placeholders{outcome: outcomeExempt, zone: e.exempt[0], source: store.FromPolicy}
		}
		return
	}
	told := placeholders{
		outcome: outcomeGranted, zone: shown.zone, source: shown.Source, reason: shown.reason,
		counted: shown.counted, limit: shown.limit, remaining: shown.Remaining, reset: int32(wholeSeconds(shown.Reset)),
	}
	switch {
	case !e.passes():
		told.outcome = outcomeRefused
		told.retryAfter = int32(wholeSeconds(shown.RetryAfter))
	case shown.reason != reasonNone:
		told.outcome = outcomeDryRun
	}
	if !c.told.stands(&told) {
		c.told = told
	}
}

// stands reports whether t goes on to be told, although a later handler would tell
// something else.
func (t *placeholders) stands(later *placeholders) bool {
	if t.outcome == outcomeNone || t.outcome == outcomeExempt {
		return false
	}
	if t.zone.DryRun != later.zone.DryRun {
		return later.zone.DryRun
	}
	switch t.outcome {
	case outcomeRefused:
		return later.outcome != outcomeRefused
	case outcomeDryRun:
		return later.outcome == outcomeGranted
	}
	return later.outcome == outcomeGranted && t.share() <= later.share()
}

// shown is the verdict that placeholders are about: the one that refuses, for the
// reason that the response gives, with the longest wait; else the one nearest to its
// limit. A dry run is shown only if no zone in force has a verdict, as if it were one.
// It is nil if no zone applied.
func (e *evaluation) shown() *verdict {
	var shown *verdict
	for i := range e.verdicts {
		v := &e.verdicts[i]
		switch {
		case v.silent():
		case shown == nil:
			shown = v
		case v.zone.DryRun != shown.zone.DryRun:
			if shown.zone.DryRun {
				shown = v
			}
		case v.reason > shown.reason,
			v.reason == shown.reason && v.reason != reasonNone && v.wait() > shown.wait(),
			v.reason == shown.reason && v.reason == reasonNone && v.share() < shown.share():
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
	if name, ok := strings.CutPrefix(name, "zones."); ok {
		return c.zonePlaceholder(name)
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
	case "reason":
		return told.reason.String(), true
	case "limit":
		return numberIf(told.counted, told.limit), true
	case "remaining":
		return numberIf(told.counted, told.remaining), true
	case "reset":
		return numberIf(told.counted, int64(told.reset)), true
	case "retry_after":
		return numberIf(told.retryAfter > 0, int64(told.retryAfter)), true
	case "source":
		if told.outcome == outcomeNone {
			return "", true
		}
		return told.source.String(), true
	}
	return nil, false
}

// zonePlaceholder is the placeholder of one zone: its name, which may hold dots, and
// what of it.
func (c *charges) zonePlaceholder(name string) (any, bool) {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return nil, false
	}
	z := c.of(name[:dot])
	if z == nil {
		z = new(zoneRecord)
	}
	switch name[dot+1:] {
	case "limit":
		return numberIf(z.counted, z.limit), true
	case "remaining":
		return numberIf(z.counted, z.remaining), true
	case "reset":
		return numberIf(z.counted, int64(z.reset)), true
	case "reason":
		return z.reason.String(), true
	}
	return nil, false
}

func numberIf(known bool, n int64) any {
	if !known {
		return ""
	}
	return n
}
