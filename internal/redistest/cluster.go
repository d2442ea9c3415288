package redistest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// slots is how many a cluster has.
const slots = 16384

// Cluster is a Redis Cluster. A master that does not answer for a second is
// replaced by a replica if it has one and most masters are left: to replace one
// takes three at the start.
type Cluster struct {
	// Nodes are its servers: first those that are masters at the start, in the
	// order of their slots, then the replicas of the first, and so on.
	Nodes []*Server

	args []string
	ids  map[string]*Server // by what they call each other

	mu     sync.Mutex
	moving map[int]migration // by slot
}

type migration struct{ from, to *Server }

// StartCluster starts a cluster whose masters share the slots evenly, with
// further arguments for redis-server, and waits until all nodes agree on it.
func StartCluster(t testing.TB, masters, replicasPerMaster int, args ...string) *Cluster {
	t.Helper()
	if masters < 1 || replicasPerMaster < 0 {
		t.Fatalf("redistest: a cluster of %d masters with %d replicas each", masters, replicasPerMaster)
	}
	c := &Cluster{ids: make(map[string]*Server), moving: make(map[int]migration)}
	args = slices.Concat(replicaArgs(passwordOf(args)), []string{
		"--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1",
		"--cluster-node-timeout", strconv.FormatInt(downAfter.Milliseconds(), 10),
		"--cluster-require-full-coverage", "no", // a slot without a node is its clients' trouble only
		"--cluster-replica-validity-factor", "0", // a replica stands in however old its data is
		"--cluster-allow-replica-migration", "no", // and stays with its master even if that has no slots left
	}, args)
	c.args = args
	for range masters * (1 + replicasPerMaster) {
		c.Nodes = append(c.Nodes, start(t, &Server{args: args, bus: true}))
	}
	for i, node := range c.Nodes {
		c.ids[node.Do(t, "CLUSTER", "MYID").(string)] = node
		// Of two nodes with the same epoch one takes another, later.
		node.Do(t, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
	}
	for i, master := range c.Nodes[:masters] {
		add := []any{"CLUSTER", "ADDSLOTS"}
		for slot := i * slots / masters; slot < (i+1)*slots/masters; slot++ {
			add = append(add, slot)
		}
		master.Do(t, add...)
	}
	// They would hear of each other from the first, but later.
	for i, node := range c.Nodes {
		for _, other := range c.Nodes[:i] {
			node.Do(t, "CLUSTER", "MEET", "127.0.0.1", other.port())
		}
	}
	c.WaitStable(t)
	for i, replica := range c.Nodes[masters:] {
		replica.Do(t, "CLUSTER", "REPLICATE", c.id(c.Nodes[i/replicasPerMaster]))
	}
	c.WaitStable(t)
	return c
}

// Join starts a node that joins the cluster as a master without slots.
func (c *Cluster) Join(t testing.TB) *Server {
	t.Helper()
	node := start(t, &Server{args: c.args, bus: true})
	c.ids[node.Do(t, "CLUSTER", "MYID").(string)] = node
	for _, other := range running(c.Nodes) {
		node.Do(t, "CLUSTER", "MEET", "127.0.0.1", other.port())
	}
	c.Nodes = append(c.Nodes, node)
	c.WaitStable(t)
	return node
}

// Slot returns the slot of a key: of what stands between the first { and the
// next }, if that is something.
func Slot(key string) int {
	if _, tail, found := strings.Cut(key, "{"); found {
		if tag, _, found := strings.Cut(tail, "}"); found && tag != "" {
			key = tag
		}
	}
	var crc uint16 // CRC-16/XMODEM
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return int(crc % slots)
}

// Slot is the function Slot.
func (c *Cluster) Slot(key string) int { return Slot(key) }

// id returns what the nodes call a node.
func (c *Cluster) id(node *Server) string {
	for id, s := range c.ids {
		if s == node {
			return id
		}
	}
	return "" // the node is of another cluster, and an error will follow
}

// member is what a node thinks of a node.
type member struct {
	node   *Server
	flags  []string
	master string // the identity of the master of a replica, "-" of a master
	epoch  int64
	linked bool
	slots  string // ranges, without those that are being moved
}

func (m member) is(flag string) bool { return slices.Contains(m.flags, flag) }

// owns reports whether the slot is in the member's ranges.
func (m member) owns(slot int) bool {
	for _, span := range strings.Fields(m.slots) {
		first, last, found := strings.Cut(span, "-")
		if !found {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 == nil && err2 == nil && from <= slot && slot <= to {
			return true
		}
	}
	return false
}

// view returns what a node thinks of all.
func (c *Cluster) view(node *Server) ([]member, error) {
	reply, err := node.ask("CLUSTER", "NODES")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node.Addr, err)
	}
	var members []member
	for line := range strings.Lines(reply.(string)) {
		words := strings.Fields(line)
		if len(words) < 8 || c.ids[words[0]] == nil {
			continue // a node that is only being met has a name of its own yet
		}
		epoch, err := strconv.ParseInt(words[6], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", node.Addr, line, err)
		}
		ranges := slices.DeleteFunc(words[8:], func(s string) bool { return strings.HasPrefix(s, "[") })
		members = append(members, member{
			node: c.ids[words[0]], flags: strings.Split(words[2], ","), master: words[3],
			epoch: epoch, linked: words[7] == "connected", slots: strings.Join(ranges, " "),
		})
	}
	return members, nil
}

// owner returns the node that owns a slot: what a node says of which the
// configuration is the newest. It is nil if nobody knows one.
func (c *Cluster) owner(slot int) (*Server, error) {
	nodes := running(c.Nodes)
	if len(nodes) == 0 {
		return nil, errors.New("no node runs")
	}
	var owner *Server
	var newest int64 = -1
	for _, node := range nodes {
		members, err := c.view(node)
		if err != nil {
			return nil, err
		}
		for _, m := range members {
			if m.is("master") && m.owns(slot) && m.epoch > newest {
				owner, newest = m.node, m.epoch
			}
		}
	}
	return owner, nil
}

// Owner returns the node that owns a slot, by the newest configuration that a
// node has. Right after a fault that may be one which is gone, see
// WaitFailover.
func (c *Cluster) Owner(t testing.TB, slot int) *Server {
	t.Helper()
	var owner *Server
	await(t, fmt.Sprintf("slot %d has an owner", slot), func() error {
		var err error
		owner, err = c.owner(slot)
		if err == nil && owner == nil {
			err = errors.New("nobody knows one")
		}
		return err
	})
	return owner
}

// Replicas returns the replicas of a node that run, as it sees them.
func (c *Cluster) Replicas(t testing.TB, master *Server) []*Server {
	t.Helper()
	members, err := c.view(master)
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	id := c.id(master)
	var replicas []*Server
	for _, m := range members {
		if m.master == id && m.node.running() {
			replicas = append(replicas, m.node)
		}
	}
	return replicas
}

// WaitFailover waits until all nodes that run agree that a slot is owned by
// another than the old one, and returns that.
func (c *Cluster) WaitFailover(t testing.TB, slot int, old *Server) *Server {
	t.Helper()
	var owner *Server
	await(t, fmt.Sprintf("another owner of slot %d than %s", slot, old.Addr), func() error {
		var err error
		owner, err = c.agreed(slot)
		switch {
		case err != nil:
			return err
		case owner == old:
			return errors.New("it is still the old one")
		}
		return nil
	})
	return owner
}

// agreed returns the owner of a slot if all nodes that run name the same, it
// runs, and they take the cluster for one that works.
func (c *Cluster) agreed(slot int) (*Server, error) {
	var owner *Server
	for _, node := range running(c.Nodes) {
		if err := node.clusterWorks(); err != nil {
			return nil, err
		}
		members, err := c.view(node)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(members, func(m member) bool { return m.is("master") && m.owns(slot) })
		switch {
		case i < 0:
			return nil, fmt.Errorf("%s knows no owner of slot %d", node.Addr, slot)
		case !members[i].node.running():
			return nil, fmt.Errorf("the owner %s of slot %d does not run", members[i].node.Addr, slot)
		case owner != nil && members[i].node != owner:
			return nil, fmt.Errorf("owners %s and %s of slot %d", owner.Addr, members[i].node.Addr, slot)
		}
		owner = members[i].node
	}
	if owner == nil {
		return nil, errors.New("no node runs")
	}
	return owner, nil
}

// clusterWorks returns an error unless the node takes its cluster for one that
// works.
func (s *Server) clusterWorks() error {
	reply, err := s.ask("CLUSTER", "INFO")
	if err != nil {
		return fmt.Errorf("%s: %w", s.Addr, err)
	}
	if state := fields(reply.(string))["cluster_state"]; state != "ok" {
		return fmt.Errorf("%s: cluster_state:%s", s.Addr, state)
	}
	return nil
}

// WaitStable waits until all nodes that run take the cluster for one that
// works, agree on who has which slots and who is whose replica, and replicas
// have their masters' data. A node that a test has just stopped or killed may
// not be missed yet, see WaitFailover.
func (c *Cluster) WaitStable(t testing.TB) {
	t.Helper()
	await(t, "the nodes of the cluster agree", func() error {
		nodes := running(c.Nodes)
		var agreed string
		for _, node := range nodes {
			if err := node.clusterWorks(); err != nil {
				return err
			}
			members, err := c.view(node)
			if err != nil {
				return err
			}
			known := make(map[*Server]string)
			for _, m := range members {
				for _, bad := range []string{"handshake", "noaddr", "fail", "fail?"} {
					if m.node.running() && m.is(bad) {
						return fmt.Errorf("%s says of %s: %s", node.Addr, m.node.Addr, bad)
					}
				}
				if m.node.running() && !m.linked {
					return fmt.Errorf("%s is not connected to %s", node.Addr, m.node.Addr)
				}
				if m.node == node && m.is("slave") {
					if err := node.follows(); err != nil {
						return err
					}
				}
				known[m.node] = fmt.Sprintf("%s %s %s", m.node.Addr, m.master, m.slots)
			}
			var seen []string
			for _, other := range nodes {
				if known[other] == "" {
					return fmt.Errorf("%s does not know %s", node.Addr, other.Addr)
				}
				seen = append(seen, known[other])
			}
			all := strings.Join(seen, "\n")
			if agreed != "" && all != agreed {
				return fmt.Errorf("one sees\n%s\nand %s sees\n%s", agreed, node.Addr, all)
			}
			agreed = all
		}
		if agreed == "" {
			return errors.New("no node runs")
		}
		return nil
	})
}
