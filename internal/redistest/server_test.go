package redistest

import (
	"strings"
	"testing"
	"time"
)

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(replyTime); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", replyTime, what)
		}
	}
}

func TestPassword(t *testing.T) {
	s := Start(t, "--requirepass", "secret")
	if reply, err := ping(t, dialTCP(t, s.Addr)); err != nil || !strings.HasPrefix(reply, "-NOAUTH") {
		t.Errorf("PING of a stranger: %q, %v", reply, err)
	}
	if got := s.Do(t, "PING"); got != "PONG" {
		t.Errorf("PING: %v", got)
	}
}

func TestInfo(t *testing.T) {
	s := Start(t)
	if got := s.Info(t, "replication", "role"); got != "master" {
		t.Errorf("role %q", got)
	}
	if got := s.Info(t, "server", "none"); got != "" {
		t.Errorf("a field that does not exist is %q", got)
	}
	if got := s.Connections(t); got != 0 {
		t.Errorf("%d connections before the first", got)
	}
	for range 3 {
		conn := dialTCP(t, s.Addr)
		if _, err := ping(t, conn); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	if _, err := ping(t, dialTCP(t, s.Addr)); err != nil {
		t.Error(err)
	}
	s.Dial(t)
	if got := s.Connections(t); got != 4 {
		t.Errorf("%d connections, want 4", got)
	}
	eventually(t, "only the connection that is open counts as a client", func() bool { return s.Clients(t) == 1 })
	s.Restart(t)
	if taken, clients := s.Connections(t), s.Clients(t); taken != 0 || clients != 0 {
		t.Errorf("%d connections and %d clients after a restart", taken, clients)
	}
}

func TestRestartLoading(t *testing.T) {
	s := Start(t)
	s.Do(t, "SET", "key", "value")
	s.RestartLoading(t, 2*time.Second)
	if reply, err := ping(t, dialTCP(t, s.Addr)); err != nil || !strings.HasPrefix(reply, "-LOADING") {
		t.Errorf("PING: %q, %v", reply, err)
	}
	// Several times: it goes on answering, not only before it begins.
	for range 5 {
		if _, err := s.Dial(t).Do("GET", "key"); err == nil || !strings.HasPrefix(err.Error(), "LOADING") {
			t.Errorf("GET: %v", err)
		}
	}
	eventually(t, "it has loaded", func() bool { return s.Info(t, "persistence", "loading") == "0" })
	if got := s.Do(t, "GET", "key"); got != "value" {
		t.Errorf("afterwards: %v", got)
	}
	if keys := s.Keys(t); len(keys) != 1 {
		t.Errorf("%d keys in database 0, want 1", len(keys))
	}
	s.Restart(t)
	if keys := s.Keys(t); len(keys) != 0 {
		t.Errorf("keys %q after a restart", keys)
	}
}
