package inflight

import (
	"time"
)

// waiter is a request that waits for a slot. The table's mutex guards it.
type waiter struct {
	request  *Request
	wait     time.Duration
	deadline time.Time
	in       int64         // the claim that asks for it, 0 if none does yet
	told     chan struct{} // closed when there is a decision, or it is the leader
	decided  bool
	slot     *Slot
	decision Decision

	queued     bool
	prev, next *waiter
}

// line is the requests that wait for slots of a key, in the order in which they came.
// It is a list, so that one of many leaves at once.
type line struct {
	first, last *waiter
	size        int64
}

func (l *line) push(w *waiter) {
	w.queued, w.prev = true, l.last
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
	l.size++
}

func (l *line) remove(w *waiter) {
	if !w.queued {
		return
	}
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.queued, w.prev, w.next = false, nil, nil
	l.size--
}
