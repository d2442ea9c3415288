package distributedratelimit

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// evaluation is the work on one HTTP request in one handler. The request is
// charged to all of the handler's zones that apply, or to none. If it passes,
// the charges stay, whatever later handlers say: in between, a password may have
// been checked, or an upstream called. Evaluations are reused.
type evaluation struct {
	h       *Handler
	r       *http.Request
	charges *charges
	keys    reader

	verdicts []verdict
	call     fallback.Call // for the verdicts that need the store
	index    []int         // verdict of each of its requests
	later    []*Zone       // need the request's body
	reserved []reservation // what depends on the response
	slots    []int         // verdicts of zones that limit requests in flight, and are not decided
	flight   *flight       // what they have granted, nil for nothing
	exempt   []*Zone
	reason   reason // of the refusal, by zones that are in force

	// For zones with usage.
	api     llm.API   // of the first one; empty if none applies
	priced  bool      // text is set
	text    []byte    // the request's body, as it was rewritten so far
	written bool      // it was
	metered []metered // what waits for the response
}

// verdict is what one zone says. It is silent if another zone refused, so that
// nobody was asked about this one.
type verdict struct {
	zone *Zone
	store.Decision
	client  string // that the log is of
	limit   int64  // that holds for the request
	counted bool   // the decision holds numbers
	charged bool   // or may have been
	reason  reason // reasonNone unless the zone refuses

	price   *llm.Reservation // of a zone with usage, or nil
	refusal *llm.Refusal     // why it has none, or nil
}

func (v *verdict) silent() bool { return !v.counted && v.Source != store.FromPolicy }

var evaluations = sync.Pool{New: func() any { return new(evaluation) }}

func newEvaluation(h *Handler, r *http.Request, c *charges) *evaluation {
	e := evaluations.Get().(*evaluation)
	e.h, e.r, e.charges = h, r, c
	e.keys.Replacer = c.repl
	e.keys.Request = r
	return e
}

func (e *evaluation) release() {
	for i := range e.verdicts {
		e.verdicts[i] = verdict{}
	}
	clear(e.exempt)
	clear(e.later)
	clear(e.reserved)
	clear(e.metered)
	e.api, e.priced, e.text, e.written, e.metered = "", false, nil, false, e.metered[:0]
	e.call.Reset()
	e.verdicts, e.index, e.exempt, e.later = e.verdicts[:0], e.index[:0], e.exempt[:0], e.later[:0]
	e.slots, e.flight, e.reserved = e.slots[:0], nil, e.reserved[:0]
	e.h, e.r, e.charges, e.reason = nil, nil, nil, reasonNone
	e.keys.Replacer = nil
	e.keys.Request = nil
	e.keys.Body = nil
	e.keys.probe = nil
	evaluations.Put(e)
}

// gather finds out which zones apply, and what to request from the store.
func (e *evaluation) gather() error {
	if e.h.matchers {
		defer e.showAddresses()()
	}
	exempt, err := anyMatches(e.h.exempt, e.r)
	if err != nil {
		return err
	}
	for _, zone := range e.h.Zones {
		applies, free, err := zone.applies(e.r)
		if err != nil {
			return err
		}
		if free || applies && exempt {
			e.exempt = append(e.exempt, zone)
			e.keys.probe.absent(zone, absentExempt)
			continue
		}
		if !applies {
			e.keys.probe.absent(zone, absentUnmatched)
			continue
		}
		if zone.keyedOnAddress() && isEarlyData(e.r) {
			e.charges.tooEarly(zone)
			return caddyhttp.Error(http.StatusTooEarly,
				errors.New("the address of a client that sends early data is not verified yet"))
		}
		if zone.meter != nil && e.api == "" {
			e.api = llm.API(zone.Usage.API)
		}
		switch {
		case zone.refusesAll():
			e.refuse(zone, 0, reasonZero)
		case !zone.needsBody:
			e.add(zone)
		case zone.meter == nil || e.meets(zone):
			e.later = append(e.later, zone)
		}
	}
	return nil
}

// showAddresses lets the matchers see the addresses that the handler has
// decided on, until restore is called.
func (e *evaluation) showAddresses() (restore func()) {
	// The matcher client_ip reads this variable. The client may have chosen
	// what the server put there: `exempt { client_ip private_ranges }` must not
	// believe a forged header.
	ctx := e.r.Context()
	client := caddyhttp.GetVar(ctx, caddyhttp.ClientIPVarKey)
	caddyhttp.SetVar(ctx, caddyhttp.ClientIPVarKey, e.charges.client.String())
	// The matcher remote_ip reads this field. That of a Unix socket may look
	// like an address of the client's choice.
	peer := e.r.RemoteAddr
	e.r.RemoteAddr = ipident.RemoteAddr(e.r)
	return func() {
		e.r.RemoteAddr = peer
		caddyhttp.SetVar(ctx, caddyhttp.ClientIPVarKey, client)
	}
}

// add adds the verdict of a zone that applies, and the request for it unless it
// is clear without the store.
func (e *evaluation) add(zone *Zone) {
	client, found := zone.client(&e.keys, e.charges)
	switch {
	case found == keyDenied:
		e.refuse(zone, zone.limitShown(), reasonEmptyKey)
		return
	case found == keySkipped:
		e.keys.probe.absent(zone, absentEmptyKey)
		return
	case e.charges.has(zone.same, client):
		e.keys.probe.absent(zone, absentCharged)
		return
	}
	limit := zone.limitOf(&e.keys, e.charges.client)
	if rest := zone.bannedFor(client); rest > 0 {
		e.refuseBanned(zone, client, limit, rest)
		return
	}
	if limit == 0 {
		e.refuse(zone, 0, reasonZero)
		return
	}
	if zone.Concurrent != nil {
		e.slots = append(e.slots, len(e.verdicts))
		e.verdicts = append(e.verdicts, verdict{zone: zone, limit: limit, client: client})
		return
	}
	var units int64
	var price *llm.Reservation
	switch {
	case limit == unlimited:
	case zone.meter != nil:
		if price = e.price(zone, limit); price == nil {
			return
		}
		units = max(price.Units, 1) // the model that answers may be dearer
	default:
		units = zone.unitsOf(&e.keys, e.charges.client)
	}
	e.keys.probe.costs(zone, limit, units)
	switch {
	case units == 0:
		e.exempt = append(e.exempt, zone)
		e.keys.probe.absent(zone, absentFree)
		return
	case units > limit:
		e.refuse(zone, limit, reasonTooCostly)
		return
	}
	e.index = append(e.index, len(e.verdicts))
	e.verdicts = append(e.verdicts, verdict{zone: zone, limit: limit, client: client, price: price})
	e.call.Policies = append(e.call.Policies, zone.policy)
	// A request is large: it is filled in where it lies.
	e.call.Requests = append(e.call.Requests, store.Request{})
	request := &e.call.Requests[len(e.call.Requests)-1]
	request.Key = store.Key{Zone: zone.storeName, Client: client, Window: zone.window}
	request.Limit, request.Units, request.Shadow, request.Exact = limit, units, zone.DryRun, zone.exact()
	request.Block = time.Duration(zone.BlockFor)
}

// refuse adds the verdict of a zone that refuses whatever the store says. A limit of
// 0 is known to have nothing left.
func (e *evaluation) refuse(zone *Zone, limit int64, why reason) {
	e.verdicts = append(e.verdicts, verdict{
		zone: zone, limit: limit, reason: why, counted: why == reasonZero,
		Decision: store.Decision{Source: store.FromPolicy},
	})
	e.heed(zone, why)
}

// refuseBanned adds the verdict of a zone whose key is banned by hand, for some time yet. It is
// known without the store, and whatever is in hand of a lease.
func (e *evaluation) refuseBanned(zone *Zone, client string, limit int64, rest time.Duration) {
	e.verdicts = append(e.verdicts, verdict{
		zone: zone, client: client, limit: max(limit, 0), reason: reasonBlocked, counted: true,
		Decision: store.Decision{Blocked: true, RetryAfter: rest, Reset: rest, Source: store.FromCache},
	})
	e.heed(zone, reasonBlocked)
}

// heed takes in why a zone refuses.
func (e *evaluation) heed(zone *Zone, why reason) {
	if !zone.DryRun {
		e.reason = max(e.reason, why)
	}
}

// isEarlyData reports whether the request came before its TLS handshake was
// complete, in a packet whose source address anyone can write. On HTTP/1 and
// HTTP/2 an unfinished handshake has other reasons: there the address is that
// of a TCP connection.
func isEarlyData(r *http.Request) bool {
	return r.ProtoMajor == 3 && r.TLS != nil && !r.TLS.HandshakeComplete
}

// decide has the store decide, or its fallback. Slots come first: a request that finds
// none takes nothing of a window, and a request that a window refuses gives its
// slots back.
func (e *evaluation) decide() {
	if e.keys.probe != nil {
		e.look()
		return
	}
	e.takeSlots()
	requests := e.call.Requests
	if len(requests) == 0 || !e.passes() {
		// A zone that refuses whatever the store says spares the call, and
		// nothing is charged.
		return
	}
	now := time.Now()
	if e.charges.at == 0 {
		e.charges.at = now.UnixMicro()
	}
	e.h.backend.Decide(now, e.charges.rest(e.h.budget), &e.call)
	e.charges.waited += e.call.Waited
	for i := range requests {
		v := &e.verdicts[e.index[i]]
		if decision := &e.call.Decisions[i]; !decision.Skipped {
			v.Decision, v.counted = *decision, decision.Source != store.FromPolicy
			if !v.Granted {
				v.reason = reasonStoreAway
				switch {
				case v.Blocked:
					v.reason = reasonBlocked
				case v.counted:
					v.reason = reasonLimit
				}
				e.heed(v.zone, v.reason)
			}
			e.noteBan(v)
		}
		if v.charged = e.call.Charged(i); v.charged {
			e.reserve(v.zone, i)
		}
		if v.price != nil {
			e.metered = append(e.metered, metered{reservation: reservation{v.zone, e.call.Reservation(i)}, price: v.price})
		}
	}
	e.traceCall(e.call.Waited, e.index)
}

// passes reports whether no zone that is in force refuses.
func (e *evaluation) passes() bool { return e.reason == reasonNone }

// report shows the verdicts in placeholders, metrics, and, for a refusal, a line
// in the log.
func (e *evaluation) report() {
	passes := e.passes()
	for i := range e.verdicts {
		v := &e.verdicts[i]
		if v.charged || !v.silent() {
			e.charges.record(v)
		}
		switch {
		case v.silent():
		case v.reason == reasonNone && passes:
			v.zone.counters.grant(v)
			e.countKey(v, false)
		case v.reason == reasonNone:
			// Another zone refused: this one was not charged.
		case v.zone.DryRun:
			v.zone.counters.refuse(outcomeDryRun, v.Source, v.reason)
			e.countKey(v, true)
			e.logRefusal(v)
		default:
			v.zone.counters.refuse(outcomeRefused, v.Source, v.reason)
			e.countKey(v, true)
			e.logRefusal(v)
		}
	}
	for _, zone := range e.exempt {
		zone.counters.request(outcomeExempt, store.FromPolicy)
	}
	e.charges.publish(e)
	e.charges.traceDecision(e)
}

// wait is how long a refused client has to wait, useless if that does not help.
func (v *verdict) wait() time.Duration {
	if wait := refusals[v.reason].wait; wait > 0 {
		return wait
	}
	return v.RetryAfter
}

// share is what is left of the zone's limit, 0 to 1; a zone that was not
// counted has all of it.
func (v *verdict) share() float64 { return share(v.counted, v.Remaining, v.limit) }

// share is what is left of a limit, 0 to 1; a limit that was not counted has
// all of it.
func share(counted bool, remaining, limit int64) float64 {
	if !counted {
		return 1
	}
	return float64(remaining) / float64(max(limit, 1))
}
