package redis

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// node is one server: the calls that wait for it, the connections to it, and
// how it fares. Nodes share nothing that one could keep from another, so that a
// server that is away slows none of the others.
//
// Its keeper, a goroutine, sends a heartbeat every second. It loads the script
// and makes the first connection before there is a call, notices when the
// server is away although no call is sent, and when it is back.
type node struct {
	env  *environment
	name string // for people
	dial dialer
	// key is that of the list of instances, and changes with the slots of a
	// node of a Cluster.
	key     atomic.Pointer[string]
	breaker breaker
	slow    atomic.Bool   // the latest round trip took more than slowBatch
	bySlot  atomic.Bool   // it wants the keys of a run in one slot
	wake    chan struct{} // of the keeper; holds one

	longest atomic.Int64 // wait of the calls, ns: a heartbeat is as patient
	overdue atomic.Int64 // how long the latest overdue round trip took, ns

	queue             // its mu guards the fields below, too
	workers int       // goroutines sending batches, on whichever connections
	began   time.Time // when the latest batch was taken
	client  *client   // the connections to use, nil if there are none yet
	origin  int64     // the latest tag of calls, see origin.go
	heard   int64     // the identity that a heartbeat brought last, or unheard
	closed  bool
}

// unheard stands for the identity of the data before the first heartbeat.
const unheard = -1

// bareNode returns a server without a keeper.
func bareNode(env *environment, name, key string, dial dialer) *node {
	n := &node{env: env, name: name, dial: dial, heard: unheard, wake: make(chan struct{}, 1)}
	n.key.Store(&key)
	return n
}

// useLocked returns the connections to the server, to be released.
func (n *node) useLocked() *client {
	if n.client == nil {
		n.client = newClient(n.env.options, n.env.secrets, n.dial)
		n.client.heard = n.heard
		n.client.origin.Store(n.origin)
	}
	n.client.users++
	return n.client
}

// releaseLocked closes connections that will not be used any more. If they were
// closed while in use, the library would write to standard error.
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

// use is useLocked for callers that do not hold the lock, and release is
// releaseLocked for them.
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

// close closes the connections as soon as the calls under way are done. Later
// calls still work: they open a connection of their own.
func (n *node) close() {
	n.breaker.retire()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.releaseLocked(n.useLocked())
}

// patientFor notes how long a call waits.
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

// failed notes that a round trip failed or, if wait is not 0, is overdue.
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
