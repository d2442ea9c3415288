package redis

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
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
	timer := timers.Get().(*time.Timer)
	timer.Reset(rest)
	defer func() {
		timer.Stop()
		timers.Put(timer)
	}()
	return c.await(timer.C)
}

// timers are stopped. They are used again: each call needs one.
var timers = sync.Pool{New: func() any {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return timer
}}

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

// send has a batch decided in one round trip, and finishes every call in it. Another
// one follows for runs whose keys are not all in one place, and another one if the
// server does not have the script. It returns a failure of the server's if there is
// one.
func (n *node) send(client *client, life time.Duration, batch []*call) *store.Error {
	missing, split, failure := n.exec(client, life, n.runs(batch))
	if len(split) > 0 {
		// Each call by itself is here, or elsewhere, or is told so. Only then does
		// it turn out whether the server has the script.
		more, _, err := n.exec(client, life, singly(split))
		missing, failure = append(missing, more...), cmp.Or(err, failure)
	}
	if len(missing) > 0 {
		// These were certainly not executed. Now they come after the script
		// itself, on one connection; singly, so that none of them is split.
		loads := loadsOf(missing)
		forgotten, _, err := n.exec(client, life, singly(missing), loads...)
		failure = cmp.Or(err, failure)
		reason := errForgotten
		for _, load := range loads {
			if load.Err() != nil {
				reason = fmt.Errorf("the server does not take the script: %w", load.Err())
			}
		}
		for _, c := range forgotten {
			c.fail(reason)
			failure = c.err
		}
	}
	return failure
}

// loadsOf are the commands that load the scripts of some calls.
func loadsOf(calls []*call) (loads []redis.Cmder) {
	for _, s := range []*script{windowScript, inflightScript, amendScript, boardScript} {
		if slices.ContainsFunc(calls, func(c *call) bool { return c.script() == s }) {
			loads = append(loads, redis.NewStringCmd(background, "script", "load", s.source))
		}
	}
	return loads
}

var errForgotten = errors.New("the server forgot the script at once")

// maxRun is how much work the script does in one run, see call.work, unless a single
// call is more. While it runs, the server does nothing else.
const maxRun = 64

// runs divides a batch into what the script decides in one run: on a server that
// has slots, calls of one slot. A call that must be told that this server is meant
// is a run by itself. Claims and other calls are runs of different scripts.
func (n *node) runs(batch []*call) [][]*call {
	var runs [][]*call
	var sizes []int
	type group struct {
		script *script
		slot   uint16
	}
	open := make(map[group]int) // the run that a slot's next call may join
	bySlot := n.env.redirect != nil || n.bySlot.Load()
	for _, c := range batch {
		of := group{script: c.script()}
		if bySlot {
			of.slot = slotOf(c.items[0].key)
		}
		i, ok := open[of]
		if ok && !c.asking && sizes[i]+c.work() <= maxRun {
			runs[i], sizes[i] = append(runs[i], c), sizes[i]+c.work()
			continue
		}
		runs, sizes = append(runs, []*call{c}), append(sizes, c.work())
		if !c.asking {
			open[of] = len(runs) - 1
		}
	}
	return runs
}

// singly makes each call a run by itself.
func singly(calls []*call) [][]*call { return slices.Collect(slices.Chunk(calls, 1)) }

// exec sends runs once, after other commands if there are any. It finishes all
// calls but two kinds, which it returns: those for which the server had no script,
// and those of runs of several calls whose keys are not all in one place.
func (n *node) exec(client *client, life time.Duration, runs [][]*call, first ...redis.Cmder) (missing, split []*call, failure *store.Error) {
	pipe := client.living(life).Pipeline()
	for _, cmd := range first {
		_ = pipe.Process(background, cmd) // never fails: it only collects
	}
	commands := make([]*command, len(runs))
	for i, calls := range runs {
		c := newCommand(calls, client)
		if calls[0].asking {
			c.asking = redis.NewStatusCmd(background, "asking")
			_ = pipe.Process(background, c.asking)
		}
		_ = pipe.Process(background, c)
		commands[i] = c
	}
	_, execErr := pipe.Exec(background)
	for _, c := range commands {
		err := c.conclude()
		switch {
		case !c.written:
			// execErr and not the command's own error: if a server refuses the
			// handshake, the library leaves the commands with neither error nor
			// reply.
			failure = classify(n.env.secrets, execErr, false)
			c.finish(failure)
		case err == nil:
		case noScript(err):
			missing = append(missing, c.sent...)
		case isRedirect(err) && n.env.redirect != nil:
			for _, call := range c.sent {
				n.env.redirect(n.name, call, err)
			}
		case isSplit(err) && len(c.sent) > 1:
			split = append(split, c.sent...)
		case isCrossSlot(err) && len(c.sent) > 1:
			n.bySlot.Store(true) // it is a Cluster of one server
			split = append(split, c.sent...)
		case isSplit(err):
			for _, call := range c.sent {
				call.fail(errSplit)
			}
		default:
			failure = classify(n.env.secrets, err, true)
			if isReadOnly(err) {
				n.hangUp(client) // the master is elsewhere by now
			}
			c.finish(failure)
		}
	}
	return missing, split, failure
}

// command is a run of the script in a pipeline. The library asks for its arguments
// once, when it writes them, which is after there is a connection. At that moment
// its calls are either sent or, if nobody waits for them any more, left out. Those
// end too: the call may be part of another one, of which more is pending.
type command struct {
	*redis.StringCmd
	calls   []*call
	client  *client          // the connections over which it is sent
	written bool             // a command that was not written was not executed
	asking  *redis.StatusCmd // what is sent right before it, nil for nothing
	sent    []*call          // the calls that were not left out
	left    []*call          // the others
	run     *run             // what was written, until that is over
}

func newCommand(calls []*call, over *client) *command {
	// The library looks at the name and the first key before it asks for the rest.
	cmd := redis.NewStringCmd(background, "evalsha", calls[0].script().sha, 1, &calls[0].items[0].key)
	return &command{StringCmd: cmd, calls: calls, client: over}
}

// Args overrides the library's.
func (c *command) Args() []any {
	c.written = true
	// Not the identity that is known when the reply is here: the server that
	// executes the calls may be another one by then.
	origin := c.client.origin.Load()
	c.run = runPool.Get().(*run)
	for _, call := range c.calls {
		if call.send() {
			call.origin = origin
			c.run.add(call)
			c.sent = append(c.sent, call)
		} else {
			c.left = append(c.left, call)
		}
	}
	return c.run.command()
}

// NoRetry overrides the library's: it keeps every kind of its clients from
// sending the command again after a timeout, when it may have been executed.
func (*command) NoRetry() bool { return true }

// conclude is called when the round trip is over. It gives each call its part of
// the reply, or returns why there is none.
func (c *command) conclude() error {
	if c.run != nil {
		c.run.release()
		c.run = nil
	}
	for _, call := range c.left {
		call.fail(errGivenUp)
	}
	reply, err := c.Result()
	if c.asking != nil && c.asking.Err() != nil && isRedirect(err) {
		return c.asking.Err() // without it the calls are sent away again
	}
	if err != nil || !c.written {
		return err
	}
	return c.divide(reply)
}

// divide gives each call its part of a reply.
func (c *command) divide(reply string) error {
	rest := reply
	for i, call := range c.sent {
		n := call.replySize(rest)
		if n < 0 || n > len(rest) || n < len(rest) && i == len(c.sent)-1 {
			return fmt.Errorf("%w: %d bytes for %d calls", errReply, len(reply), len(c.sent))
		}
		rest = rest[n:]
	}
	for _, call := range c.sent {
		n := call.replySize(reply)
		call.finish(reply[:n], nil)
		reply = reply[n:]
	}
	return nil
}

// finish ends the calls with a failure.
func (c *command) finish(err *store.Error) {
	calls := c.sent
	if !c.written {
		calls = c.calls
	}
	for _, call := range calls {
		call.finish("", err)
	}
}
