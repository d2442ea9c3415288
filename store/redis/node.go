package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

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
