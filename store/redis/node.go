package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// node is one server: the calls that wait for it, the connections to it, and
// what is known of how it fares. Nodes share nothing that one could keep from
// another, so that a server that is away slows none of the others.
//
// Its keeper, a goroutine, sends a heartbeat every second. It loads the script
// and makes the first connection before there is a request, notices when the
// server is away though nobody asks, and when it is back.
type node struct {
	store *Store
	name  string // for people
	dial  dialer
	// key is the list of instances, and changes with the slots of a node of a
	// Cluster.
	key     atomic.Pointer[string]
	breaker breaker
	slow    atomic.Bool   // the latest round trip took more than slowBatch
	wake    chan struct{} // of the keeper; holds one

	longest atomic.Int64 // wait of the calls, ns: a heartbeat is as patient
	late    atomic.Int64 // how long the latest late round trip took, ns

	mu      sync.Mutex
	queue   queue
	workers int       // goroutines sending batches, on whichever connections
	began   time.Time // when the latest batch was taken
	client  *client   // the connections to use, nil if there are none yet
	origin  int64     // that calls were tagged with last, see origin.go
	heard   int64     // the identity that a heartbeat brought last, or unheard
	closed  bool
}

type dialer func(ctx context.Context) (net.Conn, error)

// background is the context of everything that is sent: no request's, so that
// one that is given up is counted all the same.
var background = context.Background()

// newNode returns a server and starts its keeper, which ends with ctx.
func newNode(ctx context.Context, s *Store, name, key string, dial dialer) *node {
	n := &node{store: s, name: name, dial: dial, heard: unheard, wake: make(chan struct{}, 1)}
	n.key.Store(&key)
	go n.keep(ctx)
	return n
}

// useLocked returns the connections to the server, to be released.
func (n *node) useLocked() *client {
	if n.client == nil {
		n.client = newClient(n.store.options, n.store.secrets, n.dial)
		n.client.heard = n.heard
		n.client.origin.Store(n.origin)
	}
	n.client.users++
	return n.client
}

// releaseLocked closes connections that nobody is going to use any more.
// While somebody does, the library would write of it to standard error.
func (n *node) releaseLocked(client *client) {
	if client.users--; client.users > 0 {
		return
	}
	if n.closed && n.client == client {
		n.client = nil
	}
	if n.client != client {
		_ = client.Close() // there is nothing to be done about it
	}
}

// use and release are for who does not hold the lock.
func (n *node) use() *client {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.useLocked()
}

func (n *node) release(client *client) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.releaseLocked(client)
}

// hangUp is called by a user of connections behind which nobody answers, or
// somebody who should not any more. Everything that is sent from now on goes
// over new ones; calls that are under way on the old ones may yet be answered.
// If another user hung up already, nothing happens.
func (n *node) hangUp(old *client) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client != old {
		return
	}
	n.client = nil
	if n.queue.size > 0 {
		n.startLocked() // those on the old ones may be stuck
	}
}

// close lets go of the connections as soon as the calls under way are done.
// Calls that come later still work: they open a connection of their own.
func (n *node) close() {
	n.breaker.retire()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.releaseLocked(n.useLocked())
}

// patientFor notes how long a request waits.
func (n *node) patientFor(wait time.Duration) {
	if n.longest.Load() < int64(wait) {
		n.longest.Store(int64(wait))
	}
}

// notAsked is the failure of a call that the breaker does not let pass.
func (n *node) notAsked() *store.Error {
	err := errors.New("not asked, since it is away")
	if _, reason := n.breaker.isOpen(); reason != nil {
		err = fmt.Errorf("not asked, since it is away: %w", reason)
	}
	return &store.Error{Kind: store.KindAway, Unexecuted: true, Err: err}
}

// failed notes that a round trip failed or, if wait is not 0, was late.
func (n *node) failed(err error, wait time.Duration) {
	if n.breaker.failed(time.Now(), err, wait) {
		n.wakeUp()
	}
}

func (n *node) wakeUp() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

const (
	// The pauses between attempts to reach a server that is away grow from
	// the first to the last, each up to half as long again. One that has just
	// begun when the server is back, and an attempt that was in vain before
	// it, are over within 2 s unless the timeouts are long.
	firstPause = 100 * time.Millisecond
	lastPause  = 700 * time.Millisecond
	// beatTime is for how long a heartbeat waits at most, unless the timeout is
	// longer: on a connection that is dead, it keeps the keeper from trying
	// another one.
	beatTime = time.Second
	// hiccupTime is for how long a server counts as in trouble whose breaker
	// opens again, see hiccups: else there would be two reports for each time.
	hiccupTime = 10 * time.Second
)

// keep sends heartbeats until ctx ends. Then it leaves, and closes the node.
func (n *node) keep(ctx context.Context) {
	defer n.close()
	var r store.Report // the last one
	var h hiccups
	listed := false // the latest heartbeat was heard
	pause := firstPause
	for {
		client := n.use()
		took, lost, replied, err := n.heartbeat(client, r.Condition != store.Up)
		listed = err == nil
		if ctx.Err() != nil {
			n.release(client)
			break
		}
		now := time.Now()
		if lost != "" {
			// Before calls pass again.
			n.store.report(ctx, n.name, store.Report{Condition: r.Condition, Lost: lost})
		}
		next := store.Report{Condition: store.Up}
		if errors.Is(err, errMoved) {
			n.store.moved() // it is there, without the list
			err = nil
		}
		if err != nil {
			n.store.presence.silent(*n.key.Load())
			n.breaker.failed(now, err, 0)
			next = store.Report{Condition: store.Away, Err: err}
			if !n.breaker.isAway() {
				next = r // it is too early to tell
			} else if !replied {
				// Nobody answers on these connections, in time or ever.
				n.hangUp(client)
			}
			n.store.moved()
		} else if open, reason := n.breaker.isOpen(); open {
			wait := n.breaker.disappointed()
			if n.breaker.close(took) > 0 {
				h.held = false
				next = store.Report{Condition: store.Slow, Took: took, Wait: wait}
			} else if r.Condition == store.Up || h.held {
				// It answers when it is tried. It was away for a moment, or it
				// is late under load, or refuses what calls need.
				trouble := store.Report{Condition: store.Away, Err: reason}
				if wait > 0 {
					trouble = store.Report{Condition: store.Slow, Took: max(wait, time.Duration(n.late.Load())), Wait: wait}
				}
				if h.again(now) {
					next = trouble
				} else {
					n.store.report(ctx, n.name, trouble)
				}
			}
		} else if h.holds(now) {
			next = r
		}
		n.release(client)
		n.store.report(ctx, n.name, next)
		r = next

		if open, _ := n.breaker.isOpen(); err == nil && !open {
			pause = firstPause
			if !n.rest(ctx, beatEvery*3/4+rand.N(beatEvery/2), n.wake) {
				break
			}
			if open, _ := n.breaker.isOpen(); !open {
				continue
			}
		}
		// Not all instances at once, and nobody can end it early.
		if !n.rest(ctx, pause+rand.N(pause/2), nil) {
			break
		}
		pause = min(2*pause, lastPause)
	}
	if listed {
		n.leave()
	}
}

// hiccups are times when the breaker opened though the server answers whenever
// it is tried. If they come again soon, it is in trouble until they have not
// for hiccupTime.
type hiccups struct {
	last time.Time
	held bool // a report of trouble
}

// again notes a hiccup, and reports whether it came soon after the last one.
func (h *hiccups) again(now time.Time) bool {
	h.held = now.Sub(h.last) < hiccupTime
	h.last = now
	return h.held
}

// holds reports whether it is too early to report that all is well.
func (h *hiccups) holds(now time.Time) bool {
	h.held = h.held && now.Sub(h.last) < hiccupTime
	return h.held
}

// rest sleeps, or reports false if ctx ends before that is over.
func (n *node) rest(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-timer.C:
	}
	return true
}

// heartbeat tells the server that this instance is alive. It loads the script
// with it if the server may not have it. It returns what [census.heard] does,
// how long the server took to answer, and whether it has, be it with an error.
func (n *node) heartbeat(client *client, load bool) (took time.Duration, lost string, replied bool, err error) {
	wait := n.breaker.disappointed()
	if wait == 0 {
		wait = time.Duration(n.longest.Load())
	}
	life := max(n.store.options.Timeout, min(3*wait, beatTime))
	key := *n.key.Load()
	cmd, beat := n.store.presence.command(key, false)
	reply, failure := n.exchange(client, life, load, cmd)
	if failure != nil {
		return 0, "", failure.Kind == store.KindReply, failure.Err
	}
	n.breaker.seen.Store(true)
	now := time.Now()
	if lost, err = n.store.presence.heard(key, reply, beat, now); err == nil {
		n.found(client, originIn(reply))
	}
	return now.Sub(cmd.written), lost, true, err
}

// leave tells the server that this instance is no more.
func (n *node) leave() {
	client := n.use()
	defer n.release(client)
	cmd, _ := n.store.presence.command(*n.key.Load(), true)
	_, _ = n.exchange(client, n.store.options.Timeout, false, cmd) // it would be dead anyway in a while
}

// exchange sends a beat and returns the reply to it.
func (n *node) exchange(client *client, life time.Duration, load bool, cmd *beatCommand) (string, *store.Error) {
	pipe := client.living(life).Pipeline()
	var loaded *redis.StringCmd
	if load {
		loaded = redis.NewStringCmd(background, "script", "load", source)
		_ = pipe.Process(background, loaded) // never fails: it only collects
	}
	_ = pipe.Process(background, cmd)
	_, err := pipe.Exec(background)
	switch {
	case cmd.written.IsZero():
		return "", n.store.failure(err, false)
	case isRedirect(cmd.Err()) && n.store.cluster != nil:
		return "", &store.Error{Kind: store.KindReply, Unexecuted: true, Err: errMoved}
	case isReadOnly(cmd.Err()):
		n.hangUp(client) // the master is elsewhere by now
		return "", n.store.failure(cmd.Err(), true)
	case cmd.Err() != nil:
		return "", n.store.failure(cmd.Err(), true)
	case loaded != nil && loaded.Err() != nil:
		return "", n.store.failure(loaded.Err(), true)
	}
	return cmd.Val(), nil
}
