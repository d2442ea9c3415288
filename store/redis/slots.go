package redis

import (
	"fmt"
	"slices"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// servers is one server, or a Cluster, on which a call is divided by the slots of
// its keys.
type servers struct {
	keys    *keys
	timeout time.Duration // of refunds that nobody waits for
	one     *node         // nil on a Cluster
	cluster *cluster
}

// take decides requests.
func (s *servers) take(wait time.Duration, requests []store.Request, decisions []store.Decision) *store.Error {
	began := time.Now()
	n, table := s.one, (*slotTable)(nil)
	if s.cluster != nil {
		var err *store.Error
		if table, err = s.cluster.layout(wait); err != nil {
			return err
		}
		for i := 1; i < len(requests); i++ {
			if requests[i].Key.Client != requests[0].Key.Client {
				return s.takeDivided(table, wait, wait-time.Since(began), requests, decisions, false)
			}
		}
		if n, err = s.cluster.owner(table, s.keys.slot(requests[0].Key.Client)); err != nil {
			return err
		}
	}
	n.patientFor(wait)
	c := s.keys.takeCall(wait, requests)
	c.awaited = isAwaited(requests)
	reply, err := n.run(c, wait-time.Since(began))
	switch {
	case isSplitError(err) && len(requests) > 1:
		return s.takeDivided(table, wait, wait-time.Since(began), requests, decisions, true)
	case err != nil && err.Kind == store.KindTimeout && !err.Unexecuted:
		return &store.Error{Kind: err.Kind, Err: err.Err, Pending: pendingCall(c, len(requests))}
	case err != nil:
		return err
	}
	return c.read(reply, decisions)
}

// isAwaited reports whether an HTTP request waits for a call, which is then
// neither a refill of a lease nor a report of what is unreported.
func isAwaited(requests []store.Request) bool {
	return slices.ContainsFunc(requests, func(r store.Request) bool { return r.Units > 0 })
}

// pendingCall delivers the decisions of a call that was given up, if they come.
func pendingCall(c *call, count int) *store.Pending {
	pending := new(store.Pending)
	c.afterwards(func(reply string, failure *store.Error) {
		decisions := make([]store.Decision, count)
		if failure != nil || c.read(reply, decisions) != nil {
			decisions = nil
		}
		pending.Deliver(decisions)
	})
	return pending
}

// takeDivided decides requests whose keys are not all in one slot, or each by
// itself: they are decided side by side, and if one is refused, what the others
// were charged is refunded. A refusal stands whatever has become of the others;
// else, if some failed, the error tells what the others have decided. rest is
// what is left of wait.
func (s *servers) takeDivided(table *slotTable, wait, rest time.Duration, requests []store.Request, decisions []store.Decision, each bool) *store.Error {
	timer := time.NewTimer(rest)
	defer timer.Stop()
	subcalls := s.takeSubcalls(table, wait, requests, upTo(len(requests)), each)
	for _, sub := range subcalls {
		if sub.err == nil && !sub.node.breaker.admits(wait) {
			sub.err = sub.node.notAsked()
		}
	}
	subcalls = runAll(subcalls, timer.C, func(index []int) []*subcall {
		return s.takeSubcalls(table, wait, requests, index, true)
	})
	return s.conclude(subcalls, requests, decisions)
}

// takeSubcalls are the calls that decide some requests.
func (s *servers) takeSubcalls(table *slotTable, wait time.Duration, requests []store.Request, index []int, each bool) []*subcall {
	subcalls, of := s.divide(index, each, func(i int) string { return requests[i].Key.Client })
	for i, sub := range subcalls {
		if sub.node, sub.err = s.cluster.owner(table, of[i]); sub.err == nil {
			sub.node.patientFor(wait)
			sub.call = s.keys.takeCall(wait, pick(requests, sub.index))
			sub.call.awaited = isAwaited(requests)
		}
	}
	return subcalls
}

// divide divides requests or refunds by the slots of their keys, or makes each
// a subcall of its own. It returns the slot of each subcall, too.
func (s *servers) divide(index []int, each bool, client func(i int) string) (subcalls []*subcall, of []uint16) {
	for _, i := range index {
		slot := s.keys.slot(client(i))
		at := slices.Index(of, slot)
		if at < 0 || each {
			at = len(subcalls)
			subcalls, of = append(subcalls, new(subcall)), append(of, slot)
		}
		subcalls[at].index = append(subcalls[at].index, i)
	}
	return subcalls, of
}

// conclude decides a call whose subcalls have been decided, or have failed.
func (s *servers) conclude(subcalls []*subcall, requests []store.Request, decisions []store.Decision) *store.Error {
	failed, known, fates := gather(subcalls, len(requests))
	refused := false
	for i := range requests {
		refused = refused || fates[i] == store.FateDecided && !known[i].Granted && !requests[i].Shadow
	}
	if refused {
		// Nobody is charged, whatever the others have said or may yet say.
		s.refundAll(requests, known)
	}
	copy(decisions, known) // before a pending reply is written there
	if refused {
		mine := slices.Clone(requests) // callers use theirs again
		pendingSubcalls(subcalls, known).Then(func(decisions []store.Decision) { s.refundAll(mine, decisions) })
	}
	if failed == nil || refused && (failed.Unexecuted || !anyUnreported(requests)) {
		return nil
	}
	// Decisions cannot tell what has been reported; fates can.
	e := &store.Error{Kind: failed.Kind, Err: failed.Err, Fates: fates}
	e.Unexecuted = !slices.ContainsFunc(fates, func(f store.Fate) bool { return f != store.FateUnexecuted })
	if !refused && !e.Unexecuted {
		e.Pending = pendingSubcalls(subcalls, known)
	}
	return e
}

// anyUnreported reports whether anything is to be counted whatever is decided.
func anyUnreported(requests []store.Request) bool {
	return slices.ContainsFunc(requests, func(r store.Request) bool { return len(r.Unreported) > 0 })
}

// refund refunds units, and waits for it.
func (s *servers) refund(wait time.Duration, refunds []store.Refund) *store.Error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	subcalls := runAll(s.refundSubcalls(wait, refunds, upTo(len(refunds)), false), timer.C, func(index []int) []*subcall {
		return s.refundSubcalls(wait, refunds, index, true)
	})
	var failed *store.Error
	executed := false
	for _, sub := range subcalls {
		switch {
		case sub.err != nil:
			failed = sub.err
			executed = executed || !failed.Unexecuted
		case len(sub.reply) != refundReply*len(sub.index):
			failed = &store.Error{Kind: store.KindReply, Err: fmt.Errorf("%w: %d bytes for %d refunds", errReply, len(sub.reply), len(sub.index))}
			executed = true
		default:
			executed = true
		}
	}
	if failed != nil && failed.Unexecuted && executed {
		failed = &store.Error{Kind: failed.Kind, Err: failed.Err} // some of it
	}
	return failed
}

// refundAll refunds what some requests of a call were charged, without waiting
// for it, and makes the decisions those of a call that was refused.
func (s *servers) refundAll(requests []store.Request, decisions []store.Decision) {
	var refunds []store.Refund
	for i := range requests {
		d := &decisions[i]
		if !d.Charged() {
			continue
		}
		units := requests[i].Units + d.Lease
		refunds = append(refunds, store.Refund{
			Key: requests[i].Key, Charge: d.Charge, Units: units,
		})
		d.Remaining += units
		d.Lease, d.Charge = 0, store.Charge{}
	}
	s.refundSoon(refunds, false)
}

// refundSoon refunds units without waiting for it. If that fails, they stay spent
// until their window has passed.
func (s *servers) refundSoon(refunds []store.Refund, each bool) {
	for _, sub := range s.refundSubcalls(s.timeout, refunds, upTo(len(refunds)), each) {
		if sub.err != nil || sub.node.submit(sub.call) != nil {
			continue
		}
		sub.call.afterwards(func(_ string, err *store.Error) {
			if isSplitError(err) && !each {
				s.refundSoon(pick(refunds, sub.index), true)
			}
		})
	}
}

// refundSubcalls are the calls that refund some units.
func (s *servers) refundSubcalls(wait time.Duration, refunds []store.Refund, index []int, each bool) []*subcall {
	if s.cluster == nil {
		return []*subcall{{node: s.one, call: s.keys.refundCall(wait, refunds), index: index}}
	}
	subcalls, of := s.divide(index, each, func(i int) string { return refunds[i].Key.Client })
	table, err := s.cluster.layout(0)
	for i, sub := range subcalls {
		if sub.err = err; err == nil {
			sub.node, sub.err = s.cluster.owner(table, of[i])
		}
		if sub.err == nil {
			sub.call = s.keys.refundCall(wait, pick(refunds, sub.index))
		}
	}
	return subcalls
}
