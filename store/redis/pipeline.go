package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// maxBatch is the most calls that share a round trip. It bounds how many
	// one lost connection can take with it.
	maxBatch = 128
	// slowBatch is when a round trip takes long. While they are short, calls
	// that come meanwhile had better wait for the next one and share it: on one
	// machine, that is twice the throughput of several connections at work.
	// While they are long, because of the distance or of trouble, every
	// connection is put to work.
	slowBatch = 2 * time.Millisecond
)

// run sends a call together with others, and waits for its reply for what is
// left of its wait.
func (n *node) run(c *call, rest time.Duration) (string, *store.Error) {
	if err := n.submit(c); err != nil {
		return "", err
	}
	timer := time.NewTimer(rest)
	defer timer.Stop()
	return c.await(timer.C)
}

// submit puts a call in the queue and sees to it that a worker takes it. If
// submit fails, the call has not been sent and never will be.
func (n *node) submit(c *call) *store.Error {
	if !n.breaker.admits(c.wait) {
		return n.notAsked()
	}
	c.moveTo(&n.queue)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queue.size >= n.env.options.QueueSize {
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
	if workers == 0 || workers < n.env.options.PoolSize &&
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

// hangUp is called by a user of connections on which nobody answers, or a
// server that is not to be asked any more. Everything that is sent from now on
// goes over new connections; calls under way on the old ones may still be
// answered. If another user has hung up already, nothing happens.
func (n *node) hangUp(old *client) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client != old {
		return
	}
	n.client = nil
	if n.queue.size > 0 {
		n.startLocked() // the workers of the old connections may be stuck
	}
}

// work sends batches until the queue is empty, or these connections are not
// to be used any more.
func (n *node) work(client *client) {
	for batch := n.begin(client, nil); len(batch) > 0; batch = n.begin(client, batch[:0]) {
		life := n.env.options.Timeout
		for _, c := range batch {
			life = max(life, 3*c.wait)
		}
		trip := batch[0].trip
		start := time.Now()
		err := n.send(client, life, batch)
		took := time.Since(start)
		n.slow.Store(took > slowBatch)
		if err == nil {
			n.env.trip.took(took) // a failure, such as a refused connection, is no round trip
		}
		switch {
		case trip.overdue.Load():
			n.overdue.Store(int64(took)) // it has been counted as a failure
		case err != nil:
			n.failed(err.Err, 0)
		default:
			n.breaker.answered(start.Add(took))
		}
		clear(batch)
	}
}

// begin moves calls from the queue to batch. If there are none for this worker,
// it ends.
func (n *node) begin(client *client, batch []*call) []*call {
	n.mu.Lock()
	defer n.mu.Unlock()
	trip := &trip{failed: n.failed}
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

// send runs a batch in one round trip, in two if the server does not have the
// script, and finishes every call in it. It returns a failure of the server's
// if there is one.
func (n *node) send(client *client, life time.Duration, batch []*call) *store.Error {
	missing, failure := n.exec(client, life, batch, nil)
	if len(missing) == 0 {
		return failure
	}
	// These were certainly not executed. The second time they come after the
	// script itself, on one connection.
	load := redis.NewStringCmd(background, "script", "load", source)
	missing, failure = n.exec(client, life, missing, load)
	for _, c := range missing {
		err := errors.New("the server forgot the script at once")
		if load.Err() != nil {
			err = fmt.Errorf("the server does not take the script: %w", load.Err())
		}
		c.fail(err)
		failure = c.err
	}
	return failure
}

// exec sends a batch once, after the command first if there is one. It
// finishes all calls but those for which the server had no script, and returns
// these.
func (n *node) exec(client *client, life time.Duration, batch []*call, first redis.Cmder) (missing []*call, failure *store.Error) {
	pipe := client.living(life).Pipeline()
	if first != nil {
		_ = pipe.Process(background, first) // never fails: it only collects
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
			err = asking.Err() // without it the call is sent away again
		}
		switch {
		case !commands[i].written:
			// execErr and not the command's own error: if a server refuses the
			// handshake, the library leaves the commands with neither error nor
			// reply.
			failure = classify(n.env.secrets, execErr, false)
			c.finish("", failure)
		case err == nil:
			c.finish(reply, nil)
		case noScript(err):
			missing = append(missing, c)
		case isRedirect(err) && n.env.redirect != nil:
			n.env.redirect(n.name, c, err)
		case isSplit(err):
			c.fail(errSplit)
		default:
			failure = classify(n.env.secrets, err, true)
			if isReadOnly(err) {
				n.hangUp(client) // the master is elsewhere by now
			}
			c.finish("", failure)
		}
	}
	return missing, failure
}

// command is one call of the script in a pipeline. The library asks for its
// arguments once, when it writes them, which is after there is a connection.
// At that moment the call is either sent or, if nobody waits for it any more,
// replaced by one that does nothing.
type command struct {
	*redis.StringCmd
	call    *call
	client  *client          // the connections over which it is sent
	written bool             // a command that was not written was not executed
	asking  *redis.StatusCmd // what is sent right before it, nil for nothing
}

func newCommand(c *call, over *client) *command {
	return &command{StringCmd: redis.NewStringCmd(context.Background(), c.args...), call: c, client: over}
}

// Args overrides the library's.
func (c *command) Args() []any {
	c.written = true
	if !c.call.send() {
		return emptyCommand()
	}
	// Not the identity that is known when the reply is here: the server that
	// executes the call may be another one by then.
	c.call.origin = c.client.origin.Load()
	return c.call.args
}

// NoRetry overrides the library's: it keeps every kind of its clients from
// sending the command again after a timeout, when it may have been executed.
func (*command) NoRetry() bool { return true }
