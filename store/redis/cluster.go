package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// cluster knows which server of a Redis Cluster has which slot. A goroutine
// asks the servers for it now and then, and whenever a server says that a slot
// is elsewhere or does not answer.
type cluster struct {
	store *Store
	table atomic.Pointer[slotTable] // nil until it is known
	known chan struct{}             // closed when it is
	stale chan struct{}             // holds one wish to ask again

	mu    sync.Mutex
	nodes map[string]*member // by address
}

// member is a server of a Cluster.
type member struct {
	*node
	end context.CancelFunc // of its keeper
}

// slotTable holds the master of each slot, nil if there is none.
type slotTable [slots]*node

const (
	// layoutEvery is the usual time between two questions for the slots, and
	// layoutPause the least time.
	layoutEvery = 30 * time.Second
	layoutPause = 100 * time.Millisecond
)

func newCluster(s *Store) *cluster {
	return &cluster{store: s, known: make(chan struct{}), stale: make(chan struct{}, 1), nodes: make(map[string]*member)}
}

// moved asks for the slots to be asked for again.
func (c *cluster) moved() {
	select {
	case c.stale <- struct{}{}:
	default:
	}
}

// keep keeps the table up to date until ctx ends.
func (c *cluster) keep(ctx context.Context) {
	pause := firstPause
	for {
		err := c.refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		next := layoutEvery*3/4 + rand.N(layoutEvery/2)
		if err != nil {
			next = pause + rand.N(pause/2)
			pause = min(2*pause, lastPause)
			if c.table.Load() == nil {
				c.store.report(c.store.String(), store.Report{Condition: store.Away, Err: err})
			}
		} else {
			pause = firstPause
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.stale:
			// Many servers may have said so at once.
			time.Sleep(layoutPause)
		}
		timer.Stop()
	}
}

// refresh asks the servers, one after the other, until one knows the slots.
func (c *cluster) refresh(ctx context.Context) error {
	var failures []error
	for _, address := range c.informants() {
		layout, err := c.ask(ctx, address)
		if err == nil {
			err = c.apply(ctx, layout)
		}
		if err == nil {
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", address, err))
		if ctx.Err() != nil {
			break
		}
	}
	return c.store.redact(errors.Join(failures...))
}

// informants are the servers to ask: those that answer, in any order, then
// those that the operator named.
func (c *cluster) informants() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for address, m := range c.nodes {
		if m.breaker.admits(c.store.options.Timeout) {
			list = append(list, address)
		}
	}
	for _, address := range c.store.options.Cluster {
		if _, ok := c.nodes[address]; !ok {
			list = append(list, address)
		}
	}
	for address, m := range c.nodes {
		if !m.breaker.admits(c.store.options.Timeout) {
			list = append(list, address)
		}
	}
	return list
}

// ask asks one server for the slots, over a connection of its own: the others
// may be busy, or dead.
func (c *cluster) ask(ctx context.Context, address string) ([]redis.ClusterSlot, error) {
	o := c.store.options
	o.PoolSize = 1
	client := newClient(o, c.store.secrets, dialTo(o, c.store.secrets, "tcp", address))
	defer client.Close()
	layout, err := client.ClusterSlots(ctx).Result()
	if err != nil {
		return nil, err
	}
	// A server that does not know its own address leaves it out.
	host, _, _ := net.SplitHostPort(address)
	for i := range layout {
		for j := range layout[i].Nodes {
			n := &layout[i].Nodes[j]
			if strings.HasPrefix(n.Addr, ":") {
				n.Addr = net.JoinHostPort(host, n.Addr[1:])
			}
		}
	}
	if len(layout) == 0 {
		return nil, errors.New("it knows of no slots")
	}
	return layout, nil
}

// apply makes a layout the one that holds.
func (c *cluster) apply(ctx context.Context, layout []redis.ClusterSlot) error {
	owned := make(map[string]map[uint16]bool)
	for _, r := range layout {
		if r.Start < 0 || r.End >= slots || len(r.Nodes) == 0 {
			return errReply
		}
		master := r.Nodes[0].Addr
		if owned[master] == nil {
			owned[master] = make(map[uint16]bool)
		}
		for slot := r.Start; slot <= r.End; slot++ {
			owned[master][uint16(slot)] = true
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	table := new(slotTable)
	used := make(map[string]bool)
	for address, of := range owned {
		key := c.store.listKey("{" + tagOf(func(slot uint16) bool { return of[slot] }) + "}")
		used[key] = true
		m := c.memberLocked(ctx, address, key)
		for slot := range of {
			table[slot] = m.node
		}
	}
	for address, m := range c.nodes {
		if owned[address] == nil {
			delete(c.nodes, address)
			m.end() // and its keeper closes it
			c.store.gone(m.name)
		}
	}
	c.store.census.keep(used)
	if c.table.Swap(table) == nil {
		close(c.known)
		c.store.gone(c.store.String())
	}
	return nil
}

func (c *cluster) memberLocked(ctx context.Context, address, key string) *member {
	if m := c.nodes[address]; m != nil {
		m.key.Store(&key)
		return m
	}
	ctx, end := context.WithCancel(ctx)
	m := &member{
		node: newNode(ctx, c.store, address, key, dialTo(c.store.options, c.store.secrets, "tcp", address)),
		end:  end,
	}
	c.nodes[address] = m
	return m
}

// quick is owner, if there is nothing to wait for; else it returns nil.
func (c *cluster) quick(key string) *node {
	if table := c.table.Load(); table != nil {
		return table[slotOf(key)]
	}
	return nil
}

// owner returns the server of a key, as far as is known; it waits for that to
// be known.
func (c *cluster) owner(key string, up <-chan time.Time) (*node, *store.Error) {
	table := c.table.Load()
	if table == nil {
		select {
		case <-c.known:
			table = c.table.Load()
		case <-up:
			return nil, &store.Error{Kind: store.KindUnavailable, Unexecuted: true, Err: errors.New("the cluster's slots are not known yet")}
		}
	}
	n := table[slotOf(key)]
	if n == nil {
		return nil, &store.Error{Kind: store.KindUnavailable, Unexecuted: true, Err: fmt.Errorf("no server of the cluster has slot %d", slotOf(key))}
	}
	return n, nil
}

// at returns the server of an address to which another one redirects.
func (c *cluster) at(address string) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.nodes[address]; m != nil {
		return m.node
	}
	return nil
}

// redirect sends a call on to the server that another one named, once.
//
// A server that is not known yet, since it has just joined, is not asked: the
// call fails, and the table is brought up to date.
func (s *Store) redirect(c *call, redirection error) {
	kind, address := parseRedirect(redirection)
	fail := func(err error) {
		c.finish("", &store.Error{Kind: store.KindReply, Unexecuted: true, Err: err})
	}
	if s.cluster == nil {
		fail(errors.New("the server is part of a Redis Cluster; configure it as a cluster"))
		return
	}
	if kind == "MOVED" {
		s.cluster.moved()
	}
	n := s.cluster.at(address)
	switch {
	case c.redirected, n == nil:
		fail(s.redact(redirection))
		return
	case !c.state.CompareAndSwap(sent, waiting):
		fail(errors.New("given up")) // nobody waits for it any more
		return
	}
	c.redirected, c.asking = true, kind == "ASK"
	if err := n.submit(c); err != nil {
		c.finish("", err)
	}
}

// parseRedirect splits the reply "MOVED 3999 127.0.0.1:6381".
func parseRedirect(err error) (kind, address string) {
	fields := strings.Fields(err.Error())
	if len(fields) != 3 {
		return "", ""
	}
	return fields[0], fields[2]
}

// together are asks or grants of one slot, in one call.
type together struct {
	node  *node
	call  *call
	index []int // of the asks
	err   *store.Error
}

// apart divides the keys of a call by their slots, or all of them.
func apart(count int, key func(i int) string, each bool) [][]int {
	var groups [][]int
	var of []uint16
	for i := range count {
		slot := slotOf(key(i))
		at := slices.Index(of, slot)
		if at < 0 || each {
			of, groups = append(of, slot), append(groups, nil)
			at = len(groups) - 1
		}
		groups[at] = append(groups[at], i)
	}
	return groups
}

// takeApart decides asks whose keys are not all in one slot, or each by itself:
// they are asked side by side, and if one refuses, what the others granted is
// given back.
func (s *Store) takeApart(wait time.Duration, asks []store.Ask, answers []store.Answer, each bool) *store.Error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var calls []*together
	for _, index := range apart(len(asks), func(i int) string { return s.keys.of(&asks[i].Key, asks[i].Window) }, each) {
		g := &together{index: index}
		some := pick(asks, index)
		if g.node, g.err = s.cluster.owner(s.keys.of(&some[0].Key, some[0].Window), timer.C); g.err == nil {
			g.node.patientFor(wait)
			if !g.node.breaker.admits(wait) {
				g.err = g.node.notAsked()
			}
		}
		if g.err != nil {
			return g.err // before anything is sent
		}
		g.call = newCall(wait, s.keys.takeCommand(some))
		calls = append(calls, g)
	}

	for _, g := range calls {
		g.err = g.node.submit(g.call)
	}
	unknown, failed := false, (*store.Error)(nil)
	up := timer.C
	for _, g := range calls {
		if g.err == nil {
			var reply string
			reply, g.err = g.node.await(g.call, up)
			if g.err == nil {
				g.err = readSome(reply, answers, g.index)
			} else if g.err.Kind == store.KindTimeout {
				up = elapsed // for the others, too
			}
		}
		if g.err != nil {
			failed = g.err
			unknown = unknown || !g.err.Unexecuted
		}
	}
	if failed == nil {
		s.settleApart(asks, answers)
		return nil
	}

	// What was granted is given back, since the call is not, unless it may
	// yet turn out that all of it was.
	e := &store.Error{Kind: failed.Kind, Unexecuted: !unknown, Err: failed.Err}
	some := make([]store.Answer, len(asks))
	for _, g := range calls {
		if g.err == nil {
			for _, i := range g.index {
				some[i] = answers[i]
			}
		}
	}
	if !unknown {
		s.undo(asks, some)
		return e
	}
	e.Late = new(store.Late)
	var mu sync.Mutex
	outstanding := 1
	done := func() {
		mu.Lock()
		defer mu.Unlock()
		if outstanding--; outstanding == 0 {
			e.Late.Deliver(some)
		}
	}
	for _, g := range calls {
		if g.err == nil || g.err.Unexecuted || g.err.Kind != store.KindTimeout {
			continue
		}
		mu.Lock()
		outstanding++
		mu.Unlock()
		g.call.afterwards(func(reply string, err *store.Error) {
			if err == nil {
				mu.Lock()
				_ = readSome(reply, some, g.index) // what cannot be read is not known
				mu.Unlock()
			}
			done()
		})
	}
	done()
	return e
}

// elapsed is a time that is up.
var elapsed = func() <-chan time.Time {
	up := make(chan time.Time)
	close(up)
	return up
}()

func pick(asks []store.Ask, index []int) []store.Ask {
	some := make([]store.Ask, len(index))
	for i, at := range index {
		some[i] = asks[at]
	}
	return some
}

// readSome reads the reply to some of the asks of a call.
func readSome(reply string, answers []store.Answer, index []int) *store.Error {
	some := make([]store.Answer, len(index))
	if err := readAnswers(reply, some); err != nil {
		return &store.Error{Kind: store.KindReply, Err: err}
	}
	for i, at := range index {
		answers[at] = some[i]
	}
	return nil
}

// settleApart makes the answers of a call that was asked in parts those of one
// call.
func (s *Store) settleApart(asks []store.Ask, answers []store.Answer) {
	for i := range asks {
		if !answers[i].Granted && !asks[i].Advisory {
			s.undo(asks, answers)
			return
		}
	}
}

// undo gives back what some of the asks of a call were charged, without
// waiting for it.
func (s *Store) undo(asks []store.Ask, answers []store.Answer) {
	var grants []store.Grant
	for i := range asks {
		a := &answers[i]
		if !a.Charged() {
			continue
		}
		units := asks[i].Need + a.Extra
		grants = append(grants, store.Grant{
			Key: asks[i].Key, Window: asks[i].Window, Stamp: a.Stamp, Mark: a.Mark, Units: units,
		})
		a.Remaining += units
		a.Extra, a.Stamp, a.Mark = 0, 0, 0
	}
	if len(grants) == 0 {
		return
	}
	calls, err := s.giveCalls(s.options.Timeout, grants)
	if err != nil {
		return // they stay spent until their window has passed
	}
	for _, g := range calls {
		_ = g.node.submit(g.call) // likewise
	}
}
