package distributedratelimit

import (
	"slices"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// probe makes an evaluation one that only explains: it looks at what is counted where
// others decide, and keeps what nobody else asks for. An evaluation with a probe
// charges nothing, bans nobody, takes no slots, and counts in no metric. A nil probe, of
// all other evaluations, keeps nothing.
type probe struct {
	gone  []absentZone
	short []shortWord
	cost  []zoneCost
	err   error // why the store has decided nothing, or not all
}

// absentZone is a zone that does not apply, and why.
type absentZone struct {
	zone *Zone
	why  absence
}

// absence is why a zone does not apply to a request.
type absence string

const (
	absentUnmatched absence = "not_matched" // none of its matchers matches
	absentExempt    absence = "exempt"
	absentEmptyKey  absence = "empty_key" // on_empty_key skip
	absentCharged   absence = "charged"   // by an earlier handler, to the same log
	absentFree      absence = "free"      // it costs nothing, or its plan is unlimited
	absentUnread    absence = "unread"    // another zone refuses before the body is read
)

// shortWord is a word of a zone for which the request has no value.
type shortWord struct {
	zone *Zone
	word string
	lack keys.Lack
}

// zoneCost is the limit that holds for a request, and how many units it takes.
type zoneCost struct {
	zone         *Zone
	limit, units int64
}

// absent notes that a zone does not apply.
func (p *probe) absent(z *Zone, why absence) {
	if p != nil {
		p.gone = append(p.gone, absentZone{z, why})
	}
}

// lacks notes what a word of a zone is short of, and reports whether it did: else that
// is counted.
func (p *probe) lacks(z *Zone, word string, l keys.Lack) bool {
	if p != nil {
		p.short = append(p.short, shortWord{z, word, l})
	}
	return p != nil
}

// costs notes how many units a request takes.
func (p *probe) costs(z *Zone, limit, units int64) {
	if p != nil {
		p.cost = append(p.cost, zoneCost{z, limit, units})
	}
}

// costOf is what was noted last for a zone.
func (p *probe) costOf(z *Zone) (zoneCost, bool) {
	for _, c := range slices.Backward(p.cost) {
		if c.zone == z {
			return c, true
		}
	}
	return zoneCost{}, false
}

// lookTime is how long an explanation waits for a store.
const lookTime = 2 * time.Second

// inHandOf is a store that counts some units as spent that this process may still spend.
type inHandOf interface {
	InHand(key store.Key, limit int64) int64
}

// look stands in for decide: it says what would be decided, and changes nothing.
func (e *evaluation) look() {
	e.lookAtSlots()
	requests := e.call.Requests
	if len(requests) == 0 {
		return
	}
	decisions := make([]store.Decision, len(requests))
	err := e.h.backend.Look(lookTime, slices.Clone(requests), decisions)
	if err != nil {
		e.keys.probe.err = err
	}
	for i := range requests {
		v := &e.verdicts[e.index[i]]
		v.Decision, v.counted = decisions[i], true
		e.judge(v, &requests[i], err)
		e.heed(v.zone, v.reason)
	}
}

// judge finds out whether a request would be granted by what a look has shown.
func (e *evaluation) judge(v *verdict, request *store.Request, err error) {
	hand := int64(0)
	if s, ok := e.h.backend.store.(inHandOf); ok && !request.Exact {
		hand = s.InHand(request.Key, request.Limit)
	}
	if v.Source == store.FromLocal && err != nil {
		switch {
		case hand >= request.Units:
			v.Granted, v.Source, v.Remaining = true, store.FromLease, hand
			return
		case v.zone.policy != fallback.Decide:
			v.Decision = store.Decision{Source: store.FromPolicy, Granted: v.zone.policy == fallback.Allow}
			v.counted = false
		}
	}
	if v.Source == store.FromStore {
		v.Remaining = min(v.Remaining+hand, v.limit)
	}
	v.Granted = v.Granted && (!v.counted || v.Remaining >= request.Units)
	switch {
	case v.Granted:
	case v.Blocked:
		v.reason = reasonBlocked
	case v.counted:
		v.reason = reasonLimit
	default:
		v.reason = reasonStoreAway
	}
}

// lookAtSlots is look for zones that limit how many requests are in flight.
func (e *evaluation) lookAtSlots() {
	for _, i := range e.slots {
		v := &e.verdicts[i]
		b := e.h.backend
		d, err := b.limiter.Look(lookTime, inflight.Request{
			Key:   inflight.Key{Zone: v.zone.storeName, Client: v.client},
			Limit: v.limit, Alone: v.zone.alone(v.limit, b.Guard.Instances()),
		})
		if err != nil {
			e.keys.probe.err = err
		}
		v.Decision = store.Decision{Granted: d.Granted, Remaining: max(0, v.limit-d.InFlight), Source: d.Source}
		v.counted = true
		if d.Source == store.FromLocal && v.zone.policy != fallback.Decide {
			v.counted, v.Source = false, store.FromPolicy
		}
		switch {
		case v.Granted:
		case v.counted:
			v.reason = reasonBusy
		default:
			v.reason = reasonStoreAway
		}
		e.heed(v.zone, v.reason)
	}
	e.slots = e.slots[:0]
}

// settleLook takes in what would have been charged, for the handlers behind this one.
func (e *evaluation) settleLook() {
	passes := e.passes()
	for i := range e.verdicts {
		v := &e.verdicts[i]
		if v.charged = passes && v.Granted; v.charged && v.counted {
			cost, _ := e.keys.probe.costOf(v.zone)
			if v.zone.Concurrent != nil {
				cost.units = 1
			}
			v.Remaining -= cost.units
		}
		if v.charged || !v.silent() {
			e.charges.record(v)
		}
	}
	e.charges.publish(e)
}
