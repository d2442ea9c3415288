package redis

// Stats is what is under way to the servers at some moment, for people.
type Stats struct {
	Queued int // calls that wait to be sent
	Trips  int // round trips under way, each of them with up to 128 calls
}

// Stats counts what is under way to all servers.
func (s *Store) Stats() (sum Stats) {
	for _, n := range s.nodes() {
		n.count(&sum)
	}
	return sum
}

func (s *servers) nodes() (list []*node) {
	if s.cluster == nil {
		return []*node{s.one}
	}
	s.cluster.mu.Lock()
	defer s.cluster.mu.Unlock()
	for _, m := range s.cluster.nodes {
		list = append(list, m.node)
	}
	return list
}

func (n *node) count(sum *Stats) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sum.Queued += n.queue.size
	sum.Trips += n.workers
}
