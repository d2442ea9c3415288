package redistest

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"
)

const (
	// standInTime is how long servers have to agree on something among
	// themselves: a failover takes a few seconds, and more on a busy machine.
	standInTime = 30 * time.Second

	// downAfter is when a server that does not answer is taken for dead. Were it
	// less, a busy machine would look like an outage.
	downAfter = time.Second
)

// replicaArgs returns arguments for servers that may become replicas of each
// other, and ask each other for a password unless it is empty.
func replicaArgs(password string) []string {
	// Without a disk a replica takes part up to a second later than it says,
	// and what is written meanwhile is lost with the master.
	args := []string{"--repl-diskless-sync", "no"}
	if password != "" {
		args = append(args, "--requirepass", password, "--masterauth", password)
	}
	return args
}

// await waits until there is no error any more.
func await(t testing.TB, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(standInTime); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("redistest: not within %v: %s: %v", standInTime, what, err)
		}
	}
}

// follows returns an error unless the server is a replica with its master's
// data.
func (s *Server) follows() error {
	reply, err := s.ask("INFO", "replication")
	if err != nil {
		return fmt.Errorf("%s: %w", s.Addr, err)
	}
	info := fields(reply.(string))
	if info["role"] != "slave" || info["master_link_status"] != "up" {
		return fmt.Errorf("%s: role %s, link to its master %q", s.Addr, info["role"], info["master_link_status"])
	}
	return nil
}

// running returns those of servers that can answer.
func running(servers []*Server) []*Server {
	return slices.DeleteFunc(slices.Clone(servers), func(s *Server) bool { return !s.running() })
}

// WaitReplicated waits until replicas of the server have all that it has at the
// call, so that nothing of it is lost if one stands in for it.
func (s *Server) WaitReplicated(t testing.TB, replicas ...*Server) {
	t.Helper()
	offset := func(s *Server) (int64, error) {
		reply, err := s.ask("INFO", "replication")
		if err != nil {
			return 0, err
		}
		// Of a replica this is how far it is in its master's writes.
		return strconv.ParseInt(fields(reply.(string))["master_repl_offset"], 10, 64)
	}
	want, err := offset(s)
	if err != nil {
		t.Fatalf("redistest: replication of %s: %v", s.Addr, err)
	}
	for _, replica := range replicas {
		await(t, replica.Addr+" has what its master has", func() error {
			if err := replica.follows(); err != nil {
				return err
			}
			got, err := offset(replica)
			if err == nil && got < want {
				err = fmt.Errorf("it is at %d, want %d", got, want)
			}
			return err
		})
	}
}
