package redistest

import (
	"slices"
	"testing"
)

// TestSentinel kills the master, and another that is started again, and then
// has one replaced that works.
func TestSentinel(t *testing.T) {
	t.Parallel() // it mostly waits
	s := StartSentinel(t, SentinelOptions{})
	if len(s.Servers) != 2 || len(s.Sentinels) != 3 || len(s.Addrs) != 3 {
		t.Fatalf("%d servers, %d sentinels at %q", len(s.Servers), len(s.Sentinels), s.Addrs)
	}
	old := s.Master(t)
	if old != s.Servers[0] {
		t.Errorf("the master is %s, want the first", old.Addr)
	}
	old.Do(t, "SET", "key", "value")
	old.WaitReplicated(t, s.Servers[1])

	old.Kill()
	master := s.WaitFailover(t, old)
	if got := s.Master(t); got != master || got == old {
		t.Errorf("the master is %s, want %s", got.Addr, master.Addr)
	}
	if got := master.Do(t, "GET", "key"); got != "value" {
		t.Errorf("the new master has %v", got)
	}
	master.Do(t, "SET", "key", "later")

	old.Restart(t)
	s.WaitStable(t)
	if got := old.Info(t, "replication", "role"); got != "slave" {
		t.Errorf("the old master has come back as a %s", got)
	}
	master.WaitReplicated(t, old)
	if got := s.Failover(t); got != old {
		t.Errorf("the master is %s, want the only other, %s", got.Addr, old.Addr)
	}
	if got := old.Do(t, "GET", "key"); got != "later" {
		t.Errorf("the first master has %v when it is it again", got)
	}
	s.WaitStable(t)
}

// TestSentinelStopped: a master that was only frozen comes back, and has to
// become a replica.
func TestSentinelStopped(t *testing.T) {
	t.Parallel() // it mostly waits
	s := StartSentinel(t, SentinelOptions{Replicas: 2, Password: "of-data", SentinelPassword: "of-sentinels"})
	s.Sentinels[0].Kill() // two are enough
	old := s.Master(t)
	old.Stop()
	master := s.WaitFailover(t, old)
	if !slices.Contains(s.Servers[1:], master) {
		t.Errorf("the master is %s, want a replica", master.Addr)
	}
	master.Do(t, "SET", "key", "value")
	old.Cont()
	s.WaitStable(t)
	master.WaitReplicated(t, old)
	if got := old.Do(t, "GET", "key"); got != "value" {
		t.Errorf("the old master has %v, want its master's data", got)
	}
	if got := s.Master(t); got != master {
		t.Errorf("the master is %s, want %s still", got.Addr, master.Addr)
	}
	if reply, err := ping(t, dialTCP(t, s.Addrs[1])); err != nil || reply[:7] != "-NOAUTH" {
		t.Errorf("PING of a stranger to a sentinel: %q, %v", reply, err)
	}
}
