package redis

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// maxBatch is the most calls that share a round trip. It bounds what one lost
// connection can take with it.
const maxBatch = 128

// The states of a call. What is waiting becomes either sent or left, in one
// step: a call that its waiter left before it was sent never is, and one that
// was sent is known to have been.
const (
	waiting int32 = iota
	sent
	left
)

// call is one run of the script. It owns the memory of its reply, since the
// reply may come long after its waiter has gone.
type call struct {
	args []any
	wait time.Duration
	// request: it is a request that waits. How long others wait has nothing
	// to do with the budget.
	request bool
	state   atomic.Int32
	done    chan struct{} // closed when reply and err are set
	then    atomic.Pointer[func(reply string, err *store.Error)]

	reply string
	err   *store.Error
	// origin is the identity of the server's data, as far as it was known when
	// the call was written. It is whose the reply is.
	origin int64

	// A server of a Cluster has sent it elsewhere: to one that must be told
	// that it is meant, if asking.
	redirected, asking bool

	// node is where it is, or was last. Its place in the queue there, and then
	// its round trip, are guarded by that node's mu, as is the step to another
	// node.
	node       atomic.Pointer[node]
	queued     bool
	prev, next *call
	trip       *trip
}

func newCall(wait time.Duration, args []any) *call {
	return &call{args: args, wait: wait, done: make(chan struct{})}
}

// trip is a round trip.
type trip struct {
	node *node
	late atomic.Bool // a call was given up before it was over
}

// send reports whether the call is to be sent, which it then counts as.
func (c *call) send() bool {
	return c.state.CompareAndSwap(waiting, sent) || c.state.Load() == sent
}

// finished stands for what is to be done once it has been done.
var finished = func(string, *store.Error) {}

func (c *call) finish(reply string, err *store.Error) {
	c.reply, c.err = reply, err
	close(c.done)
	if then := c.then.Swap(&finished); then != nil {
		(*then)(reply, err)
	}
}

// read reads the reply to a call that takes, once it is there.
func (c *call) read(reply string, decisions []store.Decision) error {
	if err := readDecisions(reply, decisions); err != nil {
		return err
	}
	for i := range decisions {
		if decisions[i].Charged() {
			decisions[i].Origin = c.origin
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

// queue is a list of calls, so that a call whose waiter leaves gives up its
// place at once.
type queue struct {
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

// run sends a call together with others, and waits for its reply for what is
// left of its wait.
func (n *node) run(c *call, rest time.Duration) (string, *store.Error) {
	if err := n.submit(c); err != nil {
		return "", err
	}
	timer := time.NewTimer(rest)
	defer timer.Stop()
	return n.await(c, timer.C)
}

// await waits for the reply to a call until time is up.
func (n *node) await(c *call, up <-chan time.Time) (string, *store.Error) {
	select {
	case <-c.done:
		return c.reply, c.err
	case <-up:
	}
	return giveUp(c)
}

// leave takes a call out of the queue it is in, and returns its round trip if
// it is on one.
func (c *call) leave() *trip {
	for {
		n := c.node.Load()
		n.mu.Lock()
		if c.node.Load() == n {
			defer n.mu.Unlock()
			n.queue.remove(c)
			return c.trip
		}
		n.mu.Unlock() // it was redirected
	}
}

// giveUp is called when a call has waited for long enough. One that has not
// been sent never will be.
func giveUp(c *call) (string, *store.Error) {
	unsent := c.state.Swap(left) == waiting
	trip := c.leave()
	select {
	case <-c.done:
		if !unsent || c.err != nil {
			return c.reply, c.err
		}
		// That was the reply to what was sent in its place.
	default:
	}
	e := &store.Error{Kind: store.KindTimeout, Unexecuted: unsent, Err: fmt.Errorf("no answer within %v", c.wait)}
	if unsent {
		e.Err = fmt.Errorf("not sent within %v", c.wait)
	}
	if trip != nil && c.request && !trip.late.Swap(true) {
		// One round trip is one failure, however many calls share it.
		trip.node.failed(e.Err, c.wait)
	}
	return "", e
}

// slowBatch is when a round trip takes long. While they are short, calls that
// come meanwhile better wait for the next one and share it: on one machine,
// that is twice the throughput of several connections at work. While they are
// long, be it the distance or trouble, every connection is put to work.
const slowBatch = 2 * time.Millisecond

// submit puts a call in the queue and sees to it that somebody works on it. If
// it fails, the call has not been sent and never will be.
func (n *node) submit(c *call) *store.Error {
	if !n.breaker.admits(c.wait) {
		return n.notAsked()
	}
	if before := c.node.Load(); before == nil {
		c.node.Store(n)
	} else {
		before.mu.Lock()
		c.trip = nil
		c.node.Store(n)
		before.mu.Unlock()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queue.size >= n.store.options.QueueSize {
		return &store.Error{
			Kind: store.KindOverload, Unexecuted: true,
			Err: fmt.Errorf("%d calls are waiting already", n.queue.size),
		}
	}
	n.queue.push(c)
	workers := 0
	if n.client != nil {
		workers = n.client.workers
	}
	if workers == 0 || workers < n.store.options.PoolSize &&
		(n.slow.Load() || n.queue.size >= maxBatch || time.Since(n.began) > slowBatch) {
		n.startLocked()
	}
	return nil
}

// startLocked starts another worker.
func (n *node) startLocked() {
	client := n.useLocked()
	client.workers++
	n.workers++
	go n.work(client)
}

// work sends batches until the queue is empty, or these connections are not
// to be used any more.
func (n *node) work(client *client) {
	for batch := n.begin(client, nil); len(batch) > 0; batch = n.begin(client, batch[:0]) {
		life := n.store.options.Timeout
		for _, c := range batch {
			life = max(life, 3*c.wait)
		}
		trip := batch[0].trip
		start := time.Now()
		err := n.send(client, life, batch)
		took := time.Since(start)
		n.slow.Store(took > slowBatch)
		if err == nil {
			n.store.took(took) // a failure, such as a refused connection, is none
		}
		switch {
		case trip.late.Load():
			n.late.Store(int64(took)) // as a failure it has been counted
		case err != nil:
			n.failed(err.Err, 0)
		default:
			n.breaker.answered(start.Add(took))
		}
		clear(batch)
	}
}

// begin moves calls from the queue to batch. If there are none to be sent by
// this worker, it is no more.
func (n *node) begin(client *client, batch []*call) []*call {
	n.mu.Lock()
	defer n.mu.Unlock()
	trip := &trip{node: n}
	for n.client == client && n.queue.first != nil && len(batch) < maxBatch {
		c := n.queue.first
		n.queue.remove(c)
		c.trip = trip
		batch = append(batch, c)
	}
	if len(batch) == 0 {
		client.workers--
		n.workers--
		n.releaseLocked(client)
		return nil
	}
	n.began = time.Now()
	return batch
}

// send runs a batch in one round trip, in two if the server has not got the
// script, and finishes every call in it. It returns a failure that is the
// server's, if there is one.
func (n *node) send(client *client, life time.Duration, batch []*call) *store.Error {
	missing, failure := n.exec(client, life, batch, nil)
	if len(missing) == 0 {
		return failure
	}
	// These were certainly not executed. A second time they come after the
	// script itself, on one connection.
	load := redis.NewStringCmd(background, "script", "load", source)
	missing, failure = n.exec(client, life, missing, load)
	for _, c := range missing {
		err := errors.New("the server forgot the script at once")
		if load.Err() != nil {
			err = fmt.Errorf("the server does not take the script: %w", load.Err())
		}
		failure = &store.Error{Kind: store.KindReply, Unexecuted: true, Err: err}
		c.finish("", failure)
	}
	return failure
}

// exec sends a batch once, after the command before if there is one. It
// finishes all calls but those for which the server had no script, and returns
// these.
func (n *node) exec(client *client, life time.Duration, batch []*call, before redis.Cmder) (missing []*call, failure *store.Error) {
	pipe := client.living(life).Pipeline()
	if before != nil {
		_ = pipe.Process(background, before) // never fails: it only collects
	}
	commands := make([]*command, len(batch))
	for i, c := range batch {
		commands[i] = newCommand(c, client)
		if c.asking {
			commands[i].asking = redis.NewStatusCmd(background, "asking")
			_ = pipe.Process(background, commands[i].asking)
		}
		_ = pipe.Process(background, commands[i])
	}
	_, execErr := pipe.Exec(background)
	for i, c := range batch {
		reply, err := commands[i].Result()
		if asking := commands[i].asking; asking != nil && asking.Err() != nil && isRedirect(err) {
			err = asking.Err() // for want of that it is sent away again
		}
		switch {
		case !commands[i].written:
			// Not so its own error: if a server refuses the handshake, the
			// library leaves the commands with neither error nor reply.
			failure = n.store.failure(execErr, false)
			c.finish("", failure)
		case err == nil:
			c.finish(reply, nil)
		case noScript(err):
			missing = append(missing, c)
		case isRedirect(err) && n.store.cluster != nil:
			n.store.redirect(n, c, err)
		case isSplit(err):
			c.finish("", &store.Error{Kind: store.KindReply, Unexecuted: true, Err: errSplit})
		default:
			failure = n.store.failure(err, true)
			if isReadOnly(err) {
				n.hangUp(client) // the master is elsewhere by now
			}
			c.finish("", failure)
		}
	}
	return missing, failure
}
