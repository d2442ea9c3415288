package redis

import (
	"slices"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// subcall is the requests of a call, or the refunds, that go to one server
// together: their keys are in one slot.
type subcall struct {
	index []int // of them
	node  *node
	call  *call
	reply string
	err   *store.Error
}

// read reads the reply to its requests, which are some of a call's.
func (s *subcall) read(reply string, decisions []store.Decision) *store.Error {
	some := make([]store.Decision, len(s.index))
	if err := s.call.read(reply, some); err != nil {
		return err
	}
	for i, at := range s.index {
		decisions[at] = some[i]
	}
	return nil
}

// runAll runs subcalls side by side, and waits for all replies until time is
// up. If half of a subcall's keys are on their way to another server, it is sent
// again as singly returns it: each key by itself is either here or there.
func runAll(subcalls []*subcall, up <-chan time.Time, singly func(index []int) []*subcall) []*subcall {
	for _, sub := range subcalls {
		if sub.err == nil {
			sub.err = sub.node.submit(sub.call)
		}
	}
	var whole []*subcall
	var split []int
	for _, sub := range subcalls {
		if sub.err == nil {
			sub.reply, sub.err = sub.call.await(up)
		}
		switch {
		case isSplitError(sub.err) && len(sub.index) > 1:
			split = append(split, sub.index...)
			continue
		case sub.err != nil && sub.err.Kind == store.KindTimeout:
			up = elapsed // for the others, too
		}
		whole = append(whole, sub)
	}
	if len(split) > 0 {
		whole = append(whole, runAll(singly(split), up, nil)...)
	}
	return whole
}

// elapsed is a time that is up.
var elapsed = func() <-chan time.Time {
	up := make(chan time.Time)
	close(up)
	return up
}()

// gather puts together what the subcalls say. failed is nil if all have been
// decided; a failure after which a subcall may have been executed goes first.
func gather(subcalls []*subcall, count int) (failed *store.Error, known []store.Decision, fates []store.Fate) {
	known, fates = make([]store.Decision, count), make([]store.Fate, count)
	for _, sub := range subcalls {
		if sub.err == nil {
			sub.err = sub.read(sub.reply, known)
		}
		fate := store.FateDecided
		if sub.err != nil {
			fate = sub.err.Fate(0)
			if failed == nil || failed.Unexecuted {
				failed = sub.err
			}
		}
		for _, i := range sub.index {
			fates[i], known[i].Skipped = fate, sub.err != nil
		}
	}
	return failed, known, fates
}

// pendingSubcalls delivers the decisions of a call of which some are known, as
// soon as all others have come or have failed.
func pendingSubcalls(subcalls []*subcall, known []store.Decision) *store.Pending {
	pending := new(store.Pending)
	var mu sync.Mutex // guards known and outstanding
	outstanding := 1
	done := func() {
		mu.Lock()
		outstanding--
		over := outstanding == 0
		mu.Unlock()
		switch {
		case !over:
		case slices.ContainsFunc(known, func(d store.Decision) bool { return !d.Skipped }):
			pending.Deliver(known)
		default:
			pending.Deliver(nil)
		}
	}
	for _, sub := range subcalls {
		if sub.err == nil || sub.err.Unexecuted || sub.err.Kind != store.KindTimeout {
			continue
		}
		mu.Lock()
		outstanding++
		mu.Unlock()
		sub.call.afterwards(func(reply string, err *store.Error) {
			if err == nil {
				mu.Lock()
				_ = sub.read(reply, known) // a wrong reply leaves them unknown
				mu.Unlock()
			}
			done()
		})
	}
	done()
	return pending
}

// upTo are the indices of so many.
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
