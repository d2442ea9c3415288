package redistest

import (
	"bufio"
	"crypto/tls"
	"net"
	"slices"
	"testing"
	"time"
)

// ping asks a server over its own network and returns what it says.
func ping(t *testing.T, conn net.Conn) (string, error) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(replyTime)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

func dialTCP(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestServer(t *testing.T) {
	s := Start(t)
	if reply, err := ping(t, dialTCP(t, s.Addr)); err != nil || reply != "+PONG\r\n" {
		t.Errorf("PING: %q, %v", reply, err)
	}
	s.Do(t, "SET", "key", "value")
	s.Do(t, "SET", "number", 7)
	if got := s.Do(t, "MGET", "key", "number", "none"); !slices.Equal(got.([]any), []any{"value", "7", nil}) {
		t.Errorf("MGET: %v", got)
	}
	if got := s.Keys(t); len(got) != 2 {
		t.Errorf("keys %q", got)
	}
	if got := s.Calls(t, "set"); got != 2 {
		t.Errorf("%d calls of SET", got)
	}
	if _, err := s.Dial(t).Do("NONSENSE"); err == nil {
		t.Error("no error for a command that does not exist")
	}

	s.Stop()
	conn := dialTCP(t, s.Addr)
	conn.SetDeadline(time.Now().Add(50 * time.Millisecond))
	conn.Write([]byte("PING\r\n"))
	if n, err := conn.Read(make([]byte, 10)); err == nil {
		t.Errorf("a stopped server says %d bytes", n)
	}
	s.Cont()
	if got := s.Do(t, "GET", "key"); got != "value" {
		t.Errorf("afterwards: %v", got)
	}

	old := s.Addr
	s.Restart(t)
	if got := s.Keys(t); s.Addr != old || len(got) != 0 {
		t.Errorf("restarted at %s, was %s, with keys %q", s.Addr, old, got)
	}
	s.Kill()
	if conn, err := net.Dial("tcp", s.Addr); err == nil {
		conn.Close()
		t.Error("a killed server takes connections")
	}
}

func TestTLS(t *testing.T) {
	a := NewAuthority(t)
	s := StartTLS(t, a)
	conn, err := tls.Dial("tcp", s.Addr, a.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if reply, err := ping(t, conn); err != nil || reply != "+PONG\r\n" {
		t.Errorf("PING: %q, %v", reply, err)
	}
	if got := s.Do(t, "PING"); got != "PONG" { // over the socket
		t.Errorf("PING: %v", got)
	}
}
