package redis

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// The states of a call. A waiting call becomes either sent or left, in one
// step: if its caller left before it was sent, it never is, and if it was sent,
// that is known.
const (
	waiting int32 = iota
	sent
	left
)

// call is what the script decides as a whole. It owns the memory of its reply,
// since the reply may come long after its caller has gone.
type call struct {
	kind  byte
	items []item
	first [1]item // there is usually one
	wait  time.Duration
	// awaited: an HTTP request waits for it. How long other callers wait says
	// nothing about the time that a server has.
	awaited bool
	state   atomic.Int32
	done    chan struct{} // closed when reply and err are set
	then    atomic.Pointer[func(reply string, err *store.Error)]

	reply string
	err   *store.Error
	// origin is the identity of the server's data, as far as it was known when
	// the call was written. It is the origin of what the reply charges.
	origin int64

	// A server of a Cluster has sent it elsewhere; if asking, to a server that
	// executes it only when told that it is meant.
	redirected, asking bool

	// at is the queue that it is in, or was in last. The other fields are
	// guarded by that queue's mu, as is the step to another queue.
	at         atomic.Pointer[queue]
	queued     bool
	prev, next *call
	trip       *trip
}

// newCall returns a call of so many items, which are still to be filled in.
func newCall(kind byte, wait time.Duration, items int) *call {
	c := &call{kind: kind, wait: wait, done: make(chan struct{})}
	c.items = c.first[:]
	if items != 1 {
		c.items = make([]item, items)
	}
	return c
}

// trip is a round trip.
type trip struct {
	failed  func(err error, wait time.Duration) // tells its server
	overdue atomic.Bool                         // a call was given up before it was over
}

// send reports whether the call is to be sent. It counts as sent from then on.
func (c *call) send() bool {
	return c.state.CompareAndSwap(waiting, sent) || c.state.Load() == sent
}

// finished is in the place of call.then once the call is finished.
var finished = func(string, *store.Error) {}

func (c *call) finish(reply string, err *store.Error) {
	c.reply, c.err = reply, err
	close(c.done)
	if then := c.then.Swap(&finished); then != nil {
		(*then)(reply, err)
	}
}

// fail finishes a call that was certainly not executed.
func (c *call) fail(err error) {
	c.finish("", &store.Error{Kind: store.KindReply, Unexecuted: true, Err: err})
}

// work is how much the script has to do for the call: its requests or refunds, and
// what they report.
func (c *call) work() int {
	switch c.kind {
	case kindClaim:
		return 1
	case kindAmend, kindBoard:
		return maxRun // by itself
	}
	work := len(c.items)
	for i := range c.items {
		work += len(c.items[i].spent) / spentSize
	}
	return work
}

// script is the one that decides the call.
func (c *call) script() *script {
	switch c.kind {
	case kindClaim:
		return inflightScript
	case kindAmend:
		return amendScript
	case kindBoard:
		return boardScript
	}
	return windowScript
}

// replySize is how many bytes of the script's reply, from its beginning, are the
// call's, -1 if that does not show.
func (c *call) replySize(reply string) int {
	switch c.kind {
	case kindClaim:
		return claimSize(reply)
	case kindAmend, kindBoard:
		return len(reply) // it is a run by itself
	case kindRefund:
		return refundReply * len(c.items)
	}
	return takeSize(c.items, len(c.items))
}

// read reads the reply to a finished call that takes.
func (c *call) read(reply string, decisions []store.Decision) *store.Error {
	if err := readDecisions(reply, c.items, decisions); err != nil {
		return &store.Error{Kind: store.KindReply, Err: err}
	}
	for i := range decisions {
		if decisions[i].Charged() {
			decisions[i].Origin = c.origin
		}
		if decisions[i].Reported.Charged() {
			decisions[i].Reported.Origin = c.origin
		}
	}
	return nil
}

// afterwards sets what is done when the call is finished, or does it now if it
// is. It is called once at most.
func (c *call) afterwards(then func(reply string, err *store.Error)) {
	if !c.then.CompareAndSwap(nil, &then) {
		<-c.done
		then(c.reply, c.err)
	}
}

// await waits for the reply to a call until time is up.
func (c *call) await(up <-chan time.Time) (string, *store.Error) {
	select {
	case <-c.done:
		return c.reply, c.err
	case <-up:
	}
	return c.giveUp()
}

// giveUp is called when a call has waited for long enough. If it has not been
// sent, it never will be.
func (c *call) giveUp() (string, *store.Error) {
	unsent := c.state.Swap(left) == waiting
	trip := c.leave()
	select {
	case <-c.done:
		if c.err == nil || c.err.Err != errGivenUp {
			return c.reply, c.err
		}
		unsent = true // it was about to be sent again, or elsewhere
	default:
	}
	e := &store.Error{Kind: store.KindTimeout, Unexecuted: unsent, Err: fmt.Errorf("no answer within %v", c.wait)}
	if unsent {
		e.Err = fmt.Errorf("not sent within %v", c.wait)
	}
	if trip != nil && c.awaited && !trip.overdue.Swap(true) {
		// One round trip is one failure, however many calls share it.
		trip.failed(e.Err, c.wait)
	}
	return "", e
}

// leave takes a call out of the queue it is in, and returns its round trip if
// it is on one.
func (c *call) leave() *trip {
	for {
		q := c.at.Load()
		q.mu.Lock()
		if c.at.Load() == q {
			defer q.mu.Unlock()
			q.remove(c)
			return c.trip
		}
		q.mu.Unlock() // it was redirected
	}
}

// moveTo notes that a call is about to enter a queue.
func (c *call) moveTo(q *queue) {
	before := c.at.Load()
	if before == nil {
		c.at.Store(q)
		return
	}
	before.mu.Lock()
	defer before.mu.Unlock()
	c.trip = nil
	c.at.Store(q)
}

// queue is the calls that wait for a server. It is a list, so that a call that
// is given up leaves its place at once.
type queue struct {
	mu          sync.Mutex
	first, last *call
	size        int
}

func (q *queue) push(c *call) {
	c.queued, c.prev, c.next = true, q.last, nil
	if q.last == nil {
		q.first = c
	} else {
		q.last.next = c
	}
	q.last = c
	q.size++
}

func (q *queue) remove(c *call) {
	if !c.queued {
		return
	}
	if c.prev == nil {
		q.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		q.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.queued, c.prev, c.next = false, nil, nil
	q.size--
}
