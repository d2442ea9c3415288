package redis

import (
	"context"
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
	args  []any
	wait  time.Duration
	state atomic.Int32
	done  chan struct{} // closed when reply and err are set

	reply string
	err   *store.Error

	// Its place in the queue, guarded by Store.mu.
	queued     bool
	prev, next *call
}

// send reports whether the call is to be sent, which it then counts as.
func (c *call) send() bool {
	return c.state.CompareAndSwap(waiting, sent) || c.state.Load() == sent
}

func (c *call) finish(reply string, err *store.Error) {
	c.reply, c.err = reply, err
	close(c.done)
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

// run sends a command together with those of other calls, and waits for its
// reply no longer than wait.
func (s *Store) run(wait time.Duration, args []any) (string, error) {
	c := &call{args: args, wait: wait, done: make(chan struct{})}
	if !s.enqueue(c) {
		return "", &store.Error{
			Kind: store.KindOverload, Unexecuted: true,
			Err: fmt.Errorf("%d calls are waiting already", s.options.QueueSize),
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-c.done:
		return c.result()
	case <-timer.C:
	}
	if c.state.Swap(left) == waiting {
		s.mu.Lock()
		s.queue.remove(c)
		s.mu.Unlock()
		return "", &store.Error{
			Kind: store.KindTimeout, Unexecuted: true,
			Err: fmt.Errorf("not sent within %v", wait),
		}
	}
	select {
	case <-c.done:
		return c.result()
	default:
		return "", &store.Error{Kind: store.KindTimeout, Err: fmt.Errorf("no answer within %v", wait)}
	}
}

func (c *call) result() (string, error) {
	if c.err != nil {
		return "", c.err
	}
	return c.reply, nil
}

// slowBatch is when a round trip takes long. While they are short, calls that
// come meanwhile better wait for the next one and share it: on one machine,
// that is twice the throughput of several connections at work. While they are
// long, be it the distance or trouble, every connection is put to work.
const slowBatch = 2 * time.Millisecond

// enqueue puts a call in the queue and sees to it that somebody works on it.
// It reports false if the queue is full.
func (s *Store) enqueue(c *call) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue.size >= s.options.QueueSize {
		return false
	}
	s.queue.push(c)
	if s.workers == 0 || s.workers < s.options.PoolSize &&
		(s.slow.Load() || s.queue.size >= maxBatch || time.Since(s.began) > slowBatch) {
		s.workers++
		if s.client == nil {
			s.client = newClient(s.options)
		}
		go s.work(s.client)
	}
	return true
}

// work sends batches until the queue is empty.
func (s *Store) work(client *client) {
	for batch := s.begin(nil); len(batch) > 0; batch = s.begin(batch[:0]) {
		life := s.options.Timeout
		for _, c := range batch {
			life = max(life, 3*c.wait)
		}
		start := time.Now()
		send(client.living(life), batch, s.failure)
		s.slow.Store(time.Since(start) > slowBatch)
		clear(batch)
	}
}

// begin moves calls from the queue to batch. If there are none, the worker is
// no more, and the connections of a closed store go with its last one.
func (s *Store) begin(batch []*call) []*call {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.queue.first != nil && len(batch) < maxBatch {
		c := s.queue.first
		s.queue.remove(c)
		batch = append(batch, c)
	}
	if len(batch) == 0 {
		s.workers--
		s.closeIdleLocked()
		return nil
	}
	s.began = time.Now()
	return batch
}

// send runs a batch in one round trip, in two if the server has not got the
// script, and finishes every call in it.
func send(client *redis.Client, batch []*call, failure func(error, bool) *store.Error) {
	missing := exec(client, batch, nil, failure)
	if len(missing) == 0 {
		return
	}
	// These were certainly not executed. A second time they come after the
	// script itself, on one connection.
	load := redis.NewStringCmd(context.Background(), "script", "load", source)
	for _, c := range exec(client, missing, load, failure) {
		err := errors.New("the server forgot the script at once")
		if load.Err() != nil {
			err = fmt.Errorf("the server does not take the script: %w", load.Err())
		}
		c.finish("", &store.Error{Kind: store.KindReply, Unexecuted: true, Err: err})
	}
}

// exec sends a batch once, after the command before if there is one. It
// finishes all calls but those for which the server had no script, and returns
// these.
func exec(client *redis.Client, batch []*call, before redis.Cmder, failure func(error, bool) *store.Error) (missing []*call) {
	ctx := context.Background() // a request that is given up is counted
	pipe := client.Pipeline()
	if before != nil {
		_ = pipe.Process(ctx, before) // never fails: it only collects
	}
	commands := make([]*command, len(batch))
	for i, c := range batch {
		commands[i] = newCommand(c)
		_ = pipe.Process(ctx, commands[i])
	}
	_, execErr := pipe.Exec(ctx)
	for i, c := range batch {
		reply, err := commands[i].Result()
		switch {
		case !commands[i].written:
			// Not so its own error: if a server refuses the handshake, the
			// library leaves the commands with neither error nor reply.
			c.finish("", failure(execErr, false))
		case err == nil:
			c.finish(reply, nil)
		case noScript(err):
			missing = append(missing, c)
		default:
			c.finish("", failure(err, true))
		}
	}
	return missing
}
