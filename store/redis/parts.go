package redis

import (
	"slices"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// part is those of the asks of a call, or of the grants that are given back,
// that a server of a Cluster can be asked about together: their keys are in
// one slot.
type part struct {
	index []int // of them
	node  *node
	call  *call
	reply string
	err   *store.Error
}

// parts divides asks or grants by the slots of their keys, or makes each a part
// of its own.
func (s *Store) parts(index []int, each bool, client func(i int) string) (parts []*part, of []uint16) {
	for _, i := range index {
		slot := s.keys.slot(client(i))
		at := slices.Index(of, slot)
		if at < 0 || each {
			at = len(parts)
			parts, of = append(parts, new(part)), append(of, slot)
		}
		parts[at].index = append(parts[at].index, i)
	}
	return parts, of
}

// takeParts are the calls that decide some asks.
func (s *Store) takeParts(table *slotTable, wait time.Duration, requests []store.Request, index []int, each bool) []*part {
	parts, of := s.parts(index, each, func(i int) string { return requests[i].Key.Client })
	for i, p := range parts {
		if p.node, p.err = s.cluster.owner(table, of[i]); p.err == nil {
			p.node.patientFor(wait)
			p.call = newCall(wait, s.keys.takeCommand(pick(requests, p.index)))
			p.call.request = isRequest(requests)
		}
	}
	return parts
}

// isRequest reports whether a request waits for a call, and not a refill or a
// report of what is owed.
func isRequest(requests []store.Request) bool {
	return slices.ContainsFunc(requests, func(a store.Request) bool { return a.Units > 0 })
}

// giveParts are the calls that give some grants back.
func (s *Store) refundParts(wait time.Duration, refunds []store.Refund, index []int, each bool) []*part {
	if s.cluster == nil {
		return []*part{{node: s.one, call: newCall(wait, s.keys.refundCommand(refunds)), index: index}}
	}
	parts, of := s.parts(index, each, func(i int) string { return refunds[i].Key.Client })
	table, err := s.cluster.layout(0)
	for i, p := range parts {
		if p.err = err; err == nil {
			p.node, p.err = s.cluster.owner(table, of[i])
		}
		if p.err == nil {
			p.call = newCall(wait, s.keys.refundCommand(pick(refunds, p.index)))
		}
	}
	return parts
}

// together sends parts side by side, and waits for all replies until time is
// up. If half of a part's keys are on their way to another server, it is sent
// again as singly returns it: each key by itself is either here or there.
func together(parts []*part, up <-chan time.Time, singly func(index []int) []*part) []*part {
	for _, p := range parts {
		if p.err == nil {
			p.err = p.node.submit(p.call)
		}
	}
	var whole []*part
	var split []int
	for _, p := range parts {
		if p.err == nil {
			p.reply, p.err = p.node.await(p.call, up)
		}
		switch {
		case isSplitError(p.err) && len(p.index) > 1:
			split = append(split, p.index...)
			continue
		case p.err != nil && p.err.Kind == store.KindTimeout:
			up = elapsed // for the others, too
		}
		whole = append(whole, p)
	}
	if len(split) > 0 {
		whole = append(whole, together(singly(split), up, nil)...)
	}
	return whole
}

// elapsed is a time that is up.
var elapsed = func() <-chan time.Time {
	up := make(chan time.Time)
	close(up)
	return up
}()

// takeApart decides asks whose keys are not all in one slot, or each by itself:
// they are asked side by side, and if one refuses, what the others granted is
// given back. A refusal is one whatever has become of the other parts; else, if
// some failed, the error tells what the others have decided. rest is what is left
// of wait.
func (s *Store) takeApart(table *slotTable, wait, rest time.Duration, requests []store.Request, decisions []store.Decision, each bool) *store.Error {
	timer := time.NewTimer(rest)
	defer timer.Stop()
	parts := s.takeParts(table, wait, requests, upTo(len(requests)), each)
	for _, p := range parts {
		if p.err == nil && !p.node.breaker.admits(wait) {
			p.err = p.node.notAsked()
		}
	}
	parts = together(parts, timer.C, func(index []int) []*part {
		return s.takeParts(table, wait, requests, index, true)
	})

	return s.conclude(parts, requests, decisions)
}

// conclude decides a call whose parts have been decided, or have failed.
func (s *Store) conclude(parts []*part, requests []store.Request, decisions []store.Decision) *store.Error {
	failed, known, fates := gather(parts, len(requests))
	refused := false
	for i := range requests {
		refused = refused || fates[i] == store.FateDecided && !known[i].Granted && !requests[i].Shadow
	}
	if refused {
		// Nobody is charged, whatever the others have said or may yet say.
		s.refundAll(requests, known)
	}
	copy(decisions, known) // before a late reply is written there
	if refused {
		mine := slices.Clone(requests) // callers use theirs again
		pendingParts(parts, known).Then(func(late []store.Decision) { s.refundAll(mine, late) })
	}
	if failed == nil || refused && (failed.Unexecuted || !anyUnreported(requests)) {
		return nil
	}
	// What has been reported, decisions cannot tell; fates can.
	e := &store.Error{Kind: failed.Kind, Err: failed.Err, Fates: fates}
	e.Unexecuted = !slices.ContainsFunc(fates, func(f store.Fate) bool { return f != store.FateUnexecuted })
	if !refused && !e.Unexecuted {
		e.Pending = pendingParts(parts, known)
	}
	return e
}

// gather puts together what the parts of a call say. failed is nil if all
// have been decided; a failure after which a part may have been executed goes
// first.
func gather(parts []*part, count int) (failed *store.Error, known []store.Decision, fates []store.Fate) {
	known, fates = make([]store.Decision, count), make([]store.Fate, count)
	for _, p := range parts {
		if p.err == nil {
			p.err = p.read(p.reply, known)
		}
		fate := store.FateDecided
		if p.err != nil {
			fate = p.err.Fate(0)
			if failed == nil || failed.Unexecuted {
				failed = p.err
			}
		}
		for _, i := range p.index {
			fates[i], known[i].Skipped = fate, p.err != nil
		}
	}
	return failed, known, fates
}

// owesAny reports whether anything is to be counted whatever is decided.
func anyUnreported(requests []store.Request) bool {
	return slices.ContainsFunc(requests, func(a store.Request) bool { return len(a.Unreported) > 0 })
}

// lateParts lets the answers to a call be heard of which some are known, when
// it is known whether others will come.
func pendingParts(parts []*part, known []store.Decision) *store.Pending {
	late := new(store.Pending)
	var mu sync.Mutex // guards known and outstanding
	outstanding := 1
	done := func() {
		mu.Lock()
		outstanding--
		over := outstanding == 0
		mu.Unlock()
		switch {
		case !over:
		case slices.ContainsFunc(known, func(a store.Decision) bool { return !a.Skipped }):
			late.Deliver(known)
		default:
			late.Deliver(nil)
		}
	}
	for _, p := range parts {
		if p.err == nil || p.err.Unexecuted || p.err.Kind != store.KindTimeout {
			continue
		}
		mu.Lock()
		outstanding++
		mu.Unlock()
		p.call.afterwards(func(reply string, err *store.Error) {
			if err == nil {
				mu.Lock()
				_ = p.read(reply, known) // what cannot be read stays unknown
				mu.Unlock()
			}
			done()
		})
	}
	done()
	return late
}

// upTo are the indices of that many.
func upTo(count int) []int {
	index := make([]int, count)
	for i := range index {
		index[i] = i
	}
	return index
}

// pick returns some of a list.
func pick[T any](list []T, index []int) []T {
	some := make([]T, len(index))
	for i, at := range index {
		some[i] = list[at]
	}
	return some
}

// read reads the reply to its asks, which are some of those of a call.
func (p *part) read(reply string, decisions []store.Decision) *store.Error {
	some := make([]store.Decision, len(p.index))
	if err := p.call.read(reply, some); err != nil {
		return &store.Error{Kind: store.KindReply, Err: err}
	}
	for i, at := range p.index {
		decisions[at] = some[i]
	}
	return nil
}

// undo gives back what some of the asks of a call were charged, without
// waiting for it, and makes the answers those of a call that was refused.
func (s *Store) refundAll(requests []store.Request, decisions []store.Decision) {
	var refunds []store.Refund
	for i := range requests {
		a := &decisions[i]
		if !a.Charged() {
			continue
		}
		units := requests[i].Units + a.Lease
		refunds = append(refunds, store.Refund{
			Key: requests[i].Key, Charge: a.Charge, Units: units,
		})
		a.Remaining += units
		a.Lease, a.Charge = 0, store.Charge{}
	}
	s.refundSoon(refunds, false)
}

// giveSoon gives grants back without waiting for it. What fails stays spent
// until its window has passed.
func (s *Store) refundSoon(refunds []store.Refund, each bool) {
	for _, p := range s.refundParts(s.options.Timeout, refunds, upTo(len(refunds)), each) {
		if p.err != nil || p.node.submit(p.call) != nil {
			continue
		}
		p.call.afterwards(func(_ string, err *store.Error) {
			if isSplitError(err) && !each {
				s.refundSoon(pick(refunds, p.index), true)
			}
		})
	}
}
