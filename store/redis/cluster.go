package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// cluster knows which server of a Redis Cluster has which slot. A goroutine
// asks the servers for it now and then, and whenever a server says that a slot
// is elsewhere or does not answer.
type cluster struct {
	store *Store
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
	// sent to it: one that joins has none until the first has been moved.
	guestTime = layoutEvery
)

// newCluster returns a cluster whose servers are known once its goroutine,
// keep, runs. Both end with ctx.
func newCluster(ctx context.Context, s *Store) *cluster {
	return &cluster{
		store: s, life: ctx, nodes: make(map[string]*member),
		tried: make(chan struct{}), stale: make(chan struct{}, 1),
	}
}

// moved asks for the slots to be asked for again.
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
		spans, err := c.request(address)
		if c.life.Err() != nil {
			return c.life.Err()
		}
		if err == nil {
			c.apply(spans)
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", address, explained(err)))
	}
	err := c.store.redact(joined(failures))
	if c.table.Load() == nil {
		c.away.Store(&err)
		c.store.report(c.life, c.store.String(), store.Report{Condition: store.Away, Err: err})
	}
	return err
}

// informants are the servers to ask: those that answer, in any order, then
// those that the operator named.
func (c *cluster) informants() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var those, others []string
	for address, m := range c.nodes {
		if m.breaker.admits(c.store.options.Timeout) {
			those = append(those, address)
		} else {
			others = append(others, address)
		}
	}
	for _, address := range c.store.options.Cluster {
		if c.nodes[address] == nil {
			those = append(those, address)
		}
	}
	return append(those, others...)
}

// ask asks one server for the slots, over a connection of its own: the others
// may be busy, or dead.
func (c *cluster) request(address string) ([]span, error) {
	o := c.store.options
	o.PoolSize = 1
	client := newClient(o, c.store.secrets, dialTo(o, c.store.secrets, "tcp", address))
	defer client.Close()
	reply, err := client.Do(c.life, "cluster", "slots").Slice()
	if err != nil {
		return nil, err
	}
	return readSpans(reply, address)
}

// span is a range of slots, and the address of their master.
type span struct {
	first, last uint16
	master      string
}

// readSpans reads the reply of a server to CLUSTER SLOTS. The library's reader
// knows no server that leaves its host out.
func readSpans(reply []any, from string) ([]span, error) {
	var spans []span
	for _, entry := range reply {
		fields, _ := entry.([]any)
		if len(fields) < 3 {
			return nil, errReply
		}
		first, ok1 := fields[0].(int64)
		last, ok2 := fields[1].(int64)
		master, ok3 := fields[2].([]any)
		if !ok1 || !ok2 || !ok3 || len(master) < 2 || first < 0 || last < first || last >= slots {
			return nil, errReply
		}
		host, _ := master[0].(string)
		port, ok := master[1].(int64)
		if !ok {
			return nil, errReply
		}
		if host == "?" && len(master) > 3 {
			// It prefers the name of a host that has been given none.
			more, _ := master[3].([]any)
			for i := 0; i+1 < len(more); i += 2 {
				if more[i] == "ip" {
					host, _ = more[i+1].(string)
				}
			}
		}
		if address := addressOf(host, strconv.FormatInt(port, 10), from); address != "" {
			spans = append(spans, span{uint16(first), uint16(last), address})
		}
	}
	if len(spans) == 0 {
		return nil, errors.New("it knows of no slots; create the cluster, or have it join one")
	}
	return spans, nil
}

// addressOf is the address of a server of which another one, from, speaks. It
// has the same host if none is said: a server may not know its own, or not the
// one by which it is to be reached. It is empty if nobody knows.
func addressOf(host, port, from string) string {
	switch host {
	case "?":
		return ""
	case "":
		host, _, _ = net.SplitHostPort(from)
	}
	return net.JoinHostPort(host, port)
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
		key := c.store.listKey(tagOf(of))
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
		c.store.gone(m.name)
		return true
	})
	c.store.presence.keep(used)
	if c.table.Swap(table) == nil {
		c.away.Store(nil)
		c.store.gone(c.store.String())
	}
}

// memberLocked returns the server of an address; it becomes one if it was not.
func (c *cluster) memberLocked(address, key string) *member {
	if m := c.nodes[address]; m != nil {
		return m
	}
	ctx, end := context.WithCancel(c.life)
	m := &member{
		node: newNode(ctx, c.store, address, key, dialTo(c.store.options, c.store.secrets, "tcp", address)),
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

// at returns the server of an address to which another one redirects. It may
// be one that has just joined and has no slot yet.
func (c *cluster) at(address string) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.memberLocked(address, c.store.listKey("0"))
	m.named = time.Now()
	return m.node
}

// redirect sends a call on to the server that another one named, once.
func (s *Store) redirect(from *node, c *call, redirection error) {
	fail := func(err error) {
		c.finish("", &store.Error{Kind: store.KindReply, Unexecuted: true, Err: err})
	}
	kind, address := parseRedirect(redirection.Error(), from.name)
	if kind == "MOVED" {
		s.cluster.moved()
	}
	switch {
	case c.redirected, address == "":
		fail(s.redact(redirection))
		return
	case !c.state.CompareAndSwap(sent, waiting):
		fail(errors.New("given up")) // nobody waits for it any more
		return
	}
	c.redirected, c.asking = true, kind == "ASK"
	if err := s.cluster.at(address).submit(c); err != nil {
		c.finish("", err)
	}
}

// parseRedirect splits the reply "MOVED 3999 127.0.0.1:6381" of a server. The
// host of an address of version 6 is in no brackets.
func parseRedirect(reply, from string) (kind, address string) {
	fields := strings.Fields(reply)
	if len(fields) != 3 {
		return "", ""
	}
	colon := strings.LastIndexByte(fields[2], ':')
	if colon < 0 {
		return "", ""
	}
	host := strings.Trim(fields[2][:colon], "[]")
	return fields[0], addressOf(host, fields[2][colon+1:], from)
}

// joined is several errors in one line.
func joined(failures []error) error {
	var texts []string
	for _, err := range failures {
		texts = append(texts, err.Error())
	}
	return errors.New(strings.Join(texts, "; "))
}
