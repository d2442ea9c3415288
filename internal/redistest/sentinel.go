package redistest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	sentinels = 3
	quorum    = 2
)

// Sentinel is a master with replicas, and three sentinels that watch them and
// make a replica the master when the master does not answer for a second.
type Sentinel struct {
	// Name is what the sentinels call the master.
	Name string
	// Addrs are the addresses of the sentinels.
	Addrs []string
	// Sentinels are the sentinels themselves. Any two of them suffice for a
	// failover.
	Sentinels []*Server
	// Servers are those that hold data. The first is the master at the start.
	Servers []*Server
}

// SentinelOptions says how StartSentinel does. The zero value is of use.
type SentinelOptions struct {
	// Replicas is how many there are; 0 means 1.
	Replicas int
	// Password is that of the servers that hold data; empty for none.
	Password string
	// SentinelPassword is that of the sentinels; empty for none.
	SentinelPassword string
	// Args are further arguments for the servers that hold data.
	Args []string
}

// StartSentinel starts them all, and waits until they are ready for a failover.
func StartSentinel(t testing.TB, o SentinelOptions) *Sentinel {
	t.Helper()
	s := &Sentinel{Name: "redistest"}
	args := slices.Concat(replicaArgs(o.Password), o.Args)
	for range 1 + max(1, o.Replicas) {
		s.Servers = append(s.Servers, start(t, &Server{args: args}))
	}
	// By command and not by argument: who is the master changes, and a server
	// that is started again must not insist on what it was.
	master := s.Servers[0]
	for _, replica := range s.Servers[1:] {
		replica.Do(t, "REPLICAOF", "127.0.0.1", master.port())
	}
	// A sentinel asks a master for its replicas when it first sees it, and then
	// every ten seconds.
	await(t, "replicas follow the master", func() error {
		for _, replica := range s.Servers[1:] {
			if err := replica.follows(); err != nil {
				return err
			}
		}
		return nil
	})

	config := fmt.Sprintf(`sentinel monitor %[1]s 127.0.0.1 %[2]s %[3]d
sentinel down-after-milliseconds %[1]s %[4]d
sentinel failover-timeout %[1]s %[5]d
sentinel parallel-syncs %[1]s 1
`, s.Name, master.port(), quorum, downAfter.Milliseconds(), 3*downAfter.Milliseconds())
	if o.Password != "" {
		config += fmt.Sprintf("sentinel auth-pass %s %s\n", s.Name, o.Password)
	}
	var sentinelArgs []string
	if o.SentinelPassword != "" {
		sentinelArgs = []string{"--requirepass", o.SentinelPassword} // they ask each other, too
	}
	for range sentinels {
		sentinel := start(t, &Server{sentinel: config, args: sentinelArgs})
		s.Sentinels = append(s.Sentinels, sentinel)
		s.Addrs = append(s.Addrs, sentinel.Addr)
		// How often they ask and tell, so that they find each other and what
		// changed sooner; and how long they do nothing after a hitch of the
		// machine, half a minute otherwise. Those before 7.0 do not have the
		// command, and take longer.
		_, _ = sentinel.ask("SENTINEL", "DEBUG", "info-period", 500, "publish-period", 500,
			"ask-period", 200, "ping-period", 200, "tilt-period", 2000)
	}
	s.WaitStable(t)
	return s
}

// Master returns the server that is the master, says the sentinel with the
// latest news. Right after a fault that is the old one still, see WaitFailover.
func (s *Sentinel) Master(t testing.TB) *Server {
	t.Helper()
	var master *Server
	await(t, "a sentinel names the master", func() error {
		var newest int64 = -1
		for _, sentinel := range running(s.Sentinels) {
			named, epoch, err := s.named(sentinel)
			if err != nil {
				return err
			}
			if epoch > newest {
				master, newest = named, epoch
			}
		}
		if master == nil {
			return errors.New("no sentinel runs")
		}
		return nil
	})
	return master
}

// named returns the master that a sentinel names, and of which epoch.
func (s *Sentinel) named(sentinel *Server) (*Server, int64, error) {
	// The epoch first: news that come in between are then only taken for older.
	about, err := s.about(sentinel, "MASTER")
	if err != nil {
		return nil, 0, err
	}
	epoch, err := strconv.ParseInt(about[0]["config-epoch"], 10, 64)
	if err != nil {
		return nil, 0, err
	}
	reply, err := sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", s.Name)
	if err != nil {
		return nil, 0, err
	}
	pair, _ := reply.([]any)
	if len(pair) != 2 {
		return nil, 0, fmt.Errorf("sentinel %s: master %v", sentinel.Addr, reply)
	}
	addr := net.JoinHostPort(pair[0].(string), pair[1].(string))
	for _, server := range s.Servers {
		if server.Addr == addr {
			return server, epoch, nil
		}
	}
	return nil, 0, fmt.Errorf("sentinel %s: master %s is none of ours", sentinel.Addr, addr)
}

// about returns what a sentinel has to say of the MASTER, or of each of its
// REPLICAS or of the other SENTINELS.
func (s *Sentinel) about(sentinel *Server, whom string) ([]map[string]string, error) {
	reply, err := sentinel.ask("SENTINEL", whom, s.Name)
	if err != nil {
		return nil, fmt.Errorf("sentinel %s: %w", sentinel.Addr, err)
	}
	list, _ := reply.([]any)
	if whom == "MASTER" {
		list = []any{list}
	}
	var all []map[string]string
	for _, item := range list {
		one := make(map[string]string)
		for pair := range slices.Chunk(item.([]any), 2) {
			one[pair[0].(string)] = pair[1].(string)
		}
		all = append(all, one)
	}
	return all, nil
}

// WaitFailover waits until every sentinel that runs names another master than
// the old one, which is one indeed, and returns it.
func (s *Sentinel) WaitFailover(t testing.TB, old *Server) *Server {
	t.Helper()
	var master *Server
	await(t, "another master than "+old.Addr, func() error {
		var err error
		master, err = s.agreed()
		if err == nil && master == old {
			err = errors.New("it is still the old one")
		}
		return err
	})
	return master
}

// agreed returns the master if all sentinels that run name the same, and it
// says so itself.
func (s *Sentinel) agreed() (*Server, error) {
	var master *Server
	for _, sentinel := range running(s.Sentinels) {
		named, _, err := s.named(sentinel)
		switch {
		case err != nil:
			return nil, err
		case master != nil && named != master:
			return nil, fmt.Errorf("masters %s and %s", master.Addr, named.Addr)
		}
		master = named
	}
	switch {
	case master == nil:
		return nil, errors.New("no sentinel runs")
	case !master.running():
		return nil, fmt.Errorf("the master %s does not run", master.Addr)
	}
	reply, err := master.ask("INFO", "replication")
	if err != nil {
		return nil, err
	}
	if role := fields(reply.(string))["role"]; role != "master" {
		return nil, fmt.Errorf("the master %s says it is a %s", master.Addr, role)
	}
	return master, nil
}

// Failover makes a replica the master as an administrator does, while the old
// one works, and returns the new one.
func (s *Sentinel) Failover(t testing.TB) *Server {
	t.Helper()
	old := s.Master(t)
	// Another failover may have to be over first.
	await(t, "a sentinel begins a failover", func() error {
		for _, sentinel := range running(s.Sentinels) {
			_, err := sentinel.ask("SENTINEL", "FAILOVER", s.Name)
			return err
		}
		return errors.New("no sentinel runs")
	})
	return s.WaitFailover(t, old)
}

// WaitStable waits until all servers and sentinels that run are in order, and
// know that of each other: there is one master, the others follow it, no
// failover is under way, and one could be.
func (s *Sentinel) WaitStable(t testing.TB) {
	t.Helper()
	await(t, "the sentinels are ready for a failover", func() error {
		master, err := s.agreed()
		if err != nil {
			return err
		}
		for _, replica := range running(s.Servers) {
			if replica == master {
				continue
			}
			if err := replica.follows(); err != nil {
				return err
			}
		}
		for _, sentinel := range running(s.Sentinels) {
			if err := s.ready(sentinel, master); err != nil {
				return fmt.Errorf("sentinel %s: %w", sentinel.Addr, err)
			}
		}
		return nil
	})
}

// ready returns an error unless a sentinel sees all servers and sentinels that
// run in order.
func (s *Sentinel) ready(sentinel, master *Server) error {
	// What it says of those that do not run is not looked at.
	want := map[string]string{"MASTER " + master.Addr: "master"}
	for _, server := range running(s.Servers) {
		if server != master {
			want["REPLICAS "+server.Addr] = "slave"
		}
	}
	for _, other := range running(s.Sentinels) {
		if other != sentinel {
			want["SENTINELS "+other.Addr] = "sentinel"
		}
	}
	got := make(map[string]string)
	for _, whom := range []string{"MASTER", "REPLICAS", "SENTINELS"} {
		all, err := s.about(sentinel, whom)
		if err != nil {
			return err
		}
		for _, one := range all {
			key := whom + " " + net.JoinHostPort(one["ip"], one["port"])
			if want[key] == "" {
				continue
			}
			// Valkey's keep what they once thought of the master.
			got[key] = strings.TrimSuffix(one["flags"], ",master_down")
			if status, ok := one["master-link-status"]; ok && status != "ok" {
				got[key] += ", link to its master " + status
			}
		}
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("it sees %v, want %v", got, want)
	}
	return nil
}
