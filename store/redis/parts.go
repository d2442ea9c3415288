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
func (s *Store) takeParts(table *slotTable, wait time.Duration, asks []store.Ask, index []int, each bool) []*part {
	parts, of := s.parts(index, each, func(i int) string { return asks[i].Key.Client })
	for i, p := range parts {
		if p.node, p.err = s.cluster.owner(table, of[i]); p.err == nil {
			p.node.patientFor(wait)
			p.call = newCall(wait, s.keys.takeCommand(pick(asks, p.index)))
			p.call.request = isRequest(asks)
		}
	}
	return parts
}

// isRequest reports whether a request waits for a call, and not a refill or a
// report of what is owed.
func isRequest(asks []store.Ask) bool {
	return slices.ContainsFunc(asks, func(a store.Ask) bool { return a.Need > 0 })
}

// giveParts are the calls that give some grants back.
func (s *Store) giveParts(wait time.Duration, grants []store.Grant, index []int, each bool) []*part {
	if s.cluster == nil {
		return []*part{{node: s.one, call: newCall(wait, s.keys.giveCommand(grants)), index: index}}
	}
	parts, of := s.parts(index, each, func(i int) string { return grants[i].Key.Client })
	table, err := s.cluster.layout(0)
	for i, p := range parts {
		if p.err = err; err == nil {
			p.node, p.err = s.cluster.owner(table, of[i])
		}
		if p.err == nil {
			p.call = newCall(wait, s.keys.giveCommand(pick(grants, p.index)))
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
func (s *Store) takeApart(table *slotTable, wait, rest time.Duration, asks []store.Ask, answers []store.Answer, each bool) *store.Error {
	timer := time.NewTimer(rest)
	defer timer.Stop()
	parts := s.takeParts(table, wait, asks, upTo(len(asks)), each)
	for _, p := range parts {
		if p.err == nil && !p.node.breaker.admits(wait) {
			p.err = p.node.notAsked()
		}
	}
	parts = together(parts, timer.C, func(index []int) []*part {
		return s.takeParts(table, wait, asks, index, true)
	})

	var failed *store.Error
	known := make([]store.Answer, len(asks))
	counted := make([]bool, len(asks))
	refused := false
	for _, p := range parts {
		if p.err == nil {
			p.err = p.read(p.reply, known)
		}
		if p.err != nil && (failed == nil || failed.Unexecuted) {
			failed = p.err
		}
		for _, i := range p.index {
			counted[i] = p.err == nil || !p.err.Unexecuted
			known[i].Undecided = p.err != nil
			refused = refused || p.err == nil && !known[i].Granted && !asks[i].Advisory
		}
	}
	if failed == nil {
		copy(answers, known)
		if refused {
			s.undo(asks, answers)
		}
		return nil
	}
	if refused && (failed.Unexecuted || !owesAny(asks)) {
		// Nobody is charged, whatever the others would have said or may yet
		// say. (Of what is owed an answer cannot tell that it may have been
		// counted; the error can.)
		s.undo(asks, known)
		copy(answers, known)
		mine := slices.Clone(asks) // callers use theirs again
		lateParts(parts, known).Then(func(late []store.Answer) { s.undo(mine, late) })
		return nil
	}
	e := &store.Error{Kind: failed.Kind, Unexecuted: failed.Unexecuted, Err: failed.Err, Counted: counted}
	switch {
	case refused:
		s.undo(asks, known)
		e.Late = lateParts(parts, known)
	case slices.ContainsFunc(known, func(a store.Answer) bool { return !a.Undecided }):
		e.Unexecuted, e.Known = false, slices.Clone(known)
		e.Late = lateParts(parts, known)
	case !failed.Unexecuted:
		e.Late = lateParts(parts, known)
	}
	return e
}

// owesAny reports whether anything is to be counted whatever is decided.
func owesAny(asks []store.Ask) bool {
	return slices.ContainsFunc(asks, func(a store.Ask) bool { return len(a.Owed) > 0 })
}

// lateParts lets the answers to a call be heard of which some are known, when
// it is known whether others will come.
func lateParts(parts []*part, known []store.Answer) *store.Late {
	late := new(store.Late)
	var mu sync.Mutex // guards known and outstanding
	outstanding := 1
	done := func() {
		mu.Lock()
		outstanding--
		over := outstanding == 0
		mu.Unlock()
		switch {
		case !over:
		case slices.ContainsFunc(known, func(a store.Answer) bool { return !a.Undecided }):
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
func (p *part) read(reply string, answers []store.Answer) *store.Error {
	some := make([]store.Answer, len(p.index))
	if err := p.call.read(reply, some); err != nil {
		return &store.Error{Kind: store.KindReply, Err: err}
	}
	for i, at := range p.index {
		answers[at] = some[i]
	}
	return nil
}

// undo gives back what some of the asks of a call were charged, without
// waiting for it, and makes the answers those of a call that was refused.
func (s *Store) undo(asks []store.Ask, answers []store.Answer) {
	var grants []store.Grant
	for i := range asks {
		a := &answers[i]
		if !a.Charged() {
			continue
		}
		units := asks[i].Need + a.Extra
		grants = append(grants, store.Grant{
			Key: asks[i].Key, Window: asks[i].Window, Stamp: a.Stamp, Mark: a.Mark, Origin: a.Origin, Units: units,
		})
		a.Remaining += units
		a.Extra, a.Stamp, a.Mark, a.Origin = 0, 0, 0, 0
	}
	s.giveSoon(grants, false)
}

// giveSoon gives grants back without waiting for it. What fails stays spent
// until its window has passed.
func (s *Store) giveSoon(grants []store.Grant, each bool) {
	for _, p := range s.giveParts(s.options.Timeout, grants, upTo(len(grants)), each) {
		if p.err != nil || p.node.submit(p.call) != nil {
			continue
		}
		p.call.afterwards(func(_ string, err *store.Error) {
			if isSplitError(err) && !each {
				s.giveSoon(pick(grants, p.index), true)
			}
		})
	}
}
