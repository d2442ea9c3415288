package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// cluster knows which server of a Redis Cluster has which slot. A goroutine
// asks the servers for it now and then, and whenever a server says that a slot
// is elsewhere or does not answer.
type cluster struct {
	env   *environment
	life  context.Context           // of the keepers
	table atomic.Pointer[slotTable] // nil until it is known
	away  atomic.Pointer[error]     // why it is not known, if an attempt has failed
	tried chan struct{}             // closed after the first attempt
	stale chan struct{}             // holds one wish to ask again

	mu    sync.Mutex
	nodes map[string]*member // by address
}

// member is a server of a Cluster.
type member struct {
	*node
	end   context.CancelFunc // of its keeper
	named time.Time          // when another server last sent a call to it
}

// slotTable holds the master of each slot, nil if there is none.
type slotTable [slots]*node

const (
	// layoutEvery is the usual time between two questions for the slots, and
	// layoutPause the least time.
	layoutEvery = 30 * time.Second
	layoutPause = 100 * time.Millisecond
	// guestTime is how long a server without slots is kept after calls were
	// sent to it: a server that joins has none until the first has been moved.
	guestTime = layoutEvery
)

// newCluster returns a cluster, and starts a goroutine that finds its servers.
// It ends with ctx, as do the servers' keepers.
func newCluster(ctx context.Context, env *environment) *cluster {
	c := &cluster{
		env: env, life: ctx, nodes: make(map[string]*member),
		tried: make(chan struct{}), stale: make(chan struct{}, 1),
	}
	env.moved, env.redirect = c.moved, c.redirect
	go c.keep()
	return c
}

// moved has the servers asked for the slots again.
func (c *cluster) moved() {
	select {
	case c.stale <- struct{}{}:
	default:
	}
}

// keep keeps the table up to date.
func (c *cluster) keep() {
	pause := firstPause
	for first := true; ; first = false {
		err := c.refresh()
		if first {
			close(c.tried)
		}
		if c.life.Err() != nil {
			return
		}
		next := layoutEvery*3/4 + rand.N(layoutEvery/2)
		if err == nil {
			pause = firstPause
		} else {
			next = pause + rand.N(pause/2)
			pause = min(2*pause, lastPause)
		}
		timer := time.NewTimer(next)
		select {
		case <-c.life.Done():
		case <-timer.C:
		case <-c.stale:
			// Many servers may have said so at once.
			time.Sleep(layoutPause)
		}
		timer.Stop()
	}
}

// refresh asks the servers, one after the other, until one knows the slots.
func (c *cluster) refresh() error {
	var failures []error
	for _, address := range c.informants() {
		spans, err := c.spansFrom(address)
		if c.life.Err() != nil {
			return c.life.Err()
		}
		if err == nil {
			c.apply(spans)
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", address, explained(err)))
	}
	err := c.env.secrets.redacted(joined(failures))
	if c.table.Load() == nil {
		c.away.Store(&err)
		c.env.watchers.report(c.life, c.name(), store.Report{Condition: store.Away, Err: err})
	}
	return err
}

// name is what the whole cluster is called while its servers are not known.
func (c *cluster) name() string { return c.env.options.name() }

// informants are the servers to ask: first those that answer, in any order,
// and the ones that the operator named; then the others.
func (c *cluster) informants() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var answering, others []string
	for address, m := range c.nodes {
		if m.breaker.admits(c.env.options.Timeout) {
			answering = append(answering, address)
		} else {
			others = append(others, address)
		}
	}
	for _, address := range c.env.options.Cluster {
		if c.nodes[address] == nil {
			answering = append(answering, address)
		}
	}
	return append(answering, others...)
}

// spansFrom asks one server for the slots, over a connection of its own: the
// others may be busy, or dead.
func (c *cluster) spansFrom(address string) ([]span, error) {
	o := c.env.options
	o.PoolSize = 1
	client := newClient(o, c.env.secrets, dialTo(o, c.env.secrets, "tcp", address))
	defer client.Close()
	reply, err := client.Do(c.life, "cluster", "slots").Slice()
	if err != nil {
		return nil, err
	}
	return readSpans(reply, address)
}

// apply makes a layout the one that holds.
func (c *cluster) apply(spans []span) {
	owned := make(map[string]*[slots]bool)
	for _, r := range spans {
		if owned[r.master] == nil {
			owned[r.master] = new([slots]bool)
		}
		for slot := int(r.first); slot <= int(r.last); slot++ {
			owned[r.master][slot] = true
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	table := new(slotTable)
	used := make(map[string]bool)
	for address, of := range owned {
		key := listKey(c.env.options.KeyPrefix, tagOf(of))
		used[key] = true
		m := c.memberLocked(address, key)
		m.key.Store(&key)
		for slot := range of {
			if of[slot] {
				table[slot] = m.node
			}
		}
	}
	maps.DeleteFunc(c.nodes, func(address string, m *member) bool {
		if owned[address] != nil || time.Since(m.named) < guestTime {
			return false
		}
		m.end() // and its keeper closes it
		c.env.watchers.remove(m.name)
		return true
	})
	c.env.presence.keep(used)
	if c.table.Swap(table) == nil {
		c.away.Store(nil)
		c.env.watchers.remove(c.name())
	}
}

// memberLocked returns the server of an address; it becomes one if it was not.
func (c *cluster) memberLocked(address, key string) *member {
	if m := c.nodes[address]; m != nil {
		return m
	}
	ctx, end := context.WithCancel(c.life)
	m := &member{
		node: newNode(ctx, c.env, address, key, dialTo(c.env.options, c.env.secrets, "tcp", address)),
		end:  end,
	}
	c.nodes[address] = m
	return m
}

// layout returns the table. It waits for it to be known, unless it has turned
// out that no server tells.
func (c *cluster) layout(wait time.Duration) (*slotTable, *store.Error) {
	if table := c.table.Load(); table != nil {
		return table, nil
	}
	select {
	case <-c.tried:
	default:
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-c.tried:
		case <-timer.C:
			return nil, &store.Error{Kind: store.KindUnavailable, Unexecuted: true, Err: errors.New("the cluster's slots are not known yet")}
		}
	}
	if table := c.table.Load(); table != nil {
		return table, nil
	}
	err := errors.New("not asked, since the cluster is away")
	if reason := c.away.Load(); reason != nil {
		err = fmt.Errorf("not asked, since the cluster is away: %w", *reason)
	}
	return nil, &store.Error{Kind: store.KindAway, Unexecuted: true, Err: err}
}

// owner returns the server of a slot, as far as is known.
func (c *cluster) owner(table *slotTable, slot uint16) (*node, *store.Error) {
	n := table[slot]
	if n == nil {
		c.moved() // perhaps it has one by now
		return nil, &store.Error{Kind: store.KindUnavailable, Unexecuted: true, Err: fmt.Errorf("no server of the cluster has slot %d", slot)}
	}
	return n, nil
}

// at returns the server of an address that a redirection names. It may have
// just joined and have no slot yet.
func (c *cluster) at(address string) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.memberLocked(address, listKey(c.env.options.KeyPrefix, "0"))
	m.named = time.Now()
	return m.node
}

// redirect sends a call on to the server that another one, from, named, once.
func (c *cluster) redirect(from string, call *call, redirection error) {
	kind, address := parseRedirect(redirection.Error(), from)
	if kind == "MOVED" {
		c.moved()
	}
	switch {
	case call.redirected, address == "":
		call.fail(c.env.secrets.redacted(redirection))
		return
	case !call.state.CompareAndSwap(sent, waiting):
		call.fail(errGivenUp)
		return
	}
	call.redirected, call.asking = true, kind == "ASK"
	if err := c.at(address).submit(call); err != nil {
		call.finish("", err)
	}
}
