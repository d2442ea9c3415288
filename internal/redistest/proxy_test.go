package redistest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestProxy(t *testing.T) {
	s := Start(t)
	p := NewProxy(t, s.Addr)
	conn := dialTCP(t, p.Addr)
	if reply, err := ping(t, conn); err != nil || reply != "+PONG\r\n" {
		t.Errorf("PING: %q, %v", reply, err)
	}
	const delay = 30 * time.Millisecond
	p.Delay(delay)
	start := time.Now()
	if reply, err := ping(t, conn); err != nil || time.Since(start) < delay {
		t.Errorf("PING with a delay: %q, %v after %v", reply, err, time.Since(start))
	}
	p.Delay(0)
	before := s.Calls(t, "ping")
	p.LoseReplies(1)
	if reply, err := ping(t, conn); err == nil {
		t.Errorf("a lost reply: %q", reply)
	}
	if got := s.Calls(t, "ping"); got != before+1 {
		t.Errorf("%d executions of a PING whose reply was lost", got-before)
	}
	conn = dialTCP(t, p.Addr)
	if reply, err := ping(t, conn); err != nil || reply != "+PONG\r\n" {
		t.Errorf("PING after a lost reply: %q, %v", reply, err)
	}
	if p.Accepted() != 2 {
		t.Errorf("%d connections", p.Accepted())
	}
	p.Cut()
	if reply, err := ping(t, conn); err == nil {
		t.Errorf("on a connection that was cut: %q", reply)
	}
	for deadline := time.Now().Add(replyTime); p.Open() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections left", p.Open())
		}
	}
}

// pong fails the test unless a connection works.
func pong(t *testing.T, conn net.Conn) {
	t.Helper()
	if reply, err := ping(t, conn); err != nil || reply != "+PONG\r\n" {
		t.Errorf("PING: %q, %v", reply, err)
	}
}

// silent fails the test if a connection says anything, or that it is closed,
// for a little while.
func silent(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := conn.Read(make([]byte, 100))
	if e, ok := err.(net.Error); n > 0 || !ok || !e.Timeout() {
		t.Errorf("read %d bytes, %v; want nothing and no end", n, err)
	}
}

func send(t *testing.T, conn net.Conn, command string) {
	t.Helper()
	if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
		t.Errorf("send %s: %v", command, err)
	}
}

// receive reads as many bytes as there are in want, and compares.
func receive(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(replyTime))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("received %q, %v; want %q", got[:n], err, want)
	}
}

// received reads to the end.
func received(t *testing.T, conn net.Conn) (string, error) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(replyTime))
	got, err := io.ReadAll(conn)
	return string(got), err
}

func throughProxy(t *testing.T) (*Server, *Proxy) {
	t.Helper()
	s := Start(t)
	return s, NewProxy(t, s.Addr)
}

func TestDropRequests(t *testing.T) {
	s, p := throughProxy(t)
	p.DropRequests(2)
	for range 2 {
		conn := dialTCP(t, p.Addr)
		send(t, conn, "SET key value")
		if got, err := received(t, conn); got != "" {
			t.Errorf("the reply to a dropped request is %q, %v", got, err)
		}
	}
	if got := s.Calls(t, "set"); got != 0 {
		t.Errorf("%d requests executed that were dropped", got)
	}
	pong(t, dialTCP(t, p.Addr))
}

func TestBlackhole(t *testing.T) {
	s, p := throughProxy(t)
	old := dialTCP(t, p.Addr)
	pong(t, old)
	calls := s.Calls(t, "ping")

	p.Blackhole(true, false)
	send(t, old, "PING")
	silent(t, old)
	fresh := dialTCP(t, p.Addr)
	pong(t, fresh)

	p.Blackhole(false, true)
	taken := s.Connections(t)
	swallowed := dialTCP(t, p.Addr)
	send(t, swallowed, "PING")
	silent(t, swallowed)
	pong(t, fresh)
	if got := s.Connections(t); got != taken {
		t.Errorf("%d connections reached the server", got-taken)
	}

	p.Blackhole(true, true)
	send(t, fresh, "PING")
	silent(t, fresh)

	p.Blackhole(false, false)
	last := dialTCP(t, p.Addr)
	pong(t, last)
	for _, conn := range []net.Conn{old, swallowed, fresh} {
		send(t, conn, "PING")
		silent(t, conn)
	}
	if got := s.Calls(t, "ping") - calls; got != 3 {
		t.Errorf("%d executions, want 3 of what was not swallowed", got)
	}
	if got := p.Accepted(); got != 4 {
		t.Errorf("%d connections, want 4", got)
	}

	// Nobody is told of the server's end, either. The client that leaves by
	// itself is forgotten.
	s.Kill()
	if got, err := received(t, last); got != "" || err != nil {
		t.Errorf("of a killed server: %q, %v; want the end", got, err)
	}
	for _, conn := range []net.Conn{old, swallowed, fresh} {
		silent(t, conn)
		conn.Close()
	}
	eventually(t, "no connection is left", func() bool { return p.Open() == 0 })
}

func TestBlackholeSwallowsReplies(t *testing.T) {
	s, p := throughProxy(t)
	conn := dialTCP(t, p.Addr)
	p.HoldReplies()
	send(t, conn, "SET key value")
	eventually(t, "it is executed", func() bool { return s.Calls(t, "set") == 1 })
	p.Blackhole(true, false)
	p.ReleaseReplies()
	silent(t, conn)
}

func TestCutReplies(t *testing.T) {
	s, p := throughProxy(t)
	s.Do(t, "SET", "key", strings.Repeat("x", 100))
	whole := "$100\r\n" + strings.Repeat("x", 100) + "\r\n"
	p.CutReplies(2)
	for range 2 {
		conn := dialTCP(t, p.Addr)
		send(t, conn, "GET key")
		got, err := received(t, conn)
		if got != whole[:len(whole)/2] || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("received %q, %v; want half of it and a reset", got, err)
		}
	}
	conn := dialTCP(t, p.Addr)
	send(t, conn, "GET key")
	receive(t, conn, whole)
	if got := s.Calls(t, "get"); got != 3 {
		t.Errorf("%d executions, want 3", got)
	}
}

func TestDelayEvery(t *testing.T) {
	_, p := throughProxy(t)
	conn := dialTCP(t, p.Addr)
	const delay = 300 * time.Millisecond
	p.DelayEvery(3, delay)
	for i := 1; i <= 6; i++ {
		start := time.Now()
		pong(t, conn)
		// One that is not delayed may be late by itself, so that is not tested.
		if took := time.Since(start); i%3 == 0 && took < delay {
			t.Errorf("reply %d came after %v, want %v at least", i, took, delay)
		}
	}
	p.DelayEvery(0, delay)
	start := time.Now()
	for range 60 {
		pong(t, conn)
	}
	if took := time.Since(start); took > 20*delay {
		t.Errorf("60 replies took %v after the end of the delay", took)
	}
}

func TestTrickle(t *testing.T) {
	s, p := throughProxy(t)
	s.Do(t, "SET", "key", strings.Repeat("x", 500))
	whole := "$500\r\n" + strings.Repeat("x", 500) + "\r\n"
	conn := dialTCP(t, p.Addr)
	reads := func() int {
		send(t, conn, "GET key")
		conn.SetReadDeadline(time.Now().Add(replyTime))
		var got bytes.Buffer
		n := 0
		for buf := make([]byte, 1000); got.Len() < len(whole); n++ {
			m, err := conn.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got.Write(buf[:m])
		}
		if got.String() != whole {
			t.Errorf("received %q, want %q", got.String(), whole)
		}
		return n
	}
	p.Trickle(true)
	if n := reads(); n < 5 {
		t.Errorf("%d reads for %d bytes that come one by one", n, len(whole))
	}
	p.Trickle(false)
	if n := reads(); n > 2 {
		t.Errorf("%d reads for %d bytes that come at once", n, len(whole))
	}
}

func TestHoldReplies(t *testing.T) {
	s, p := throughProxy(t)
	a, b := dialTCP(t, p.Addr), dialTCP(t, p.Addr)
	p.HoldReplies()
	send(t, a, "INCR number")
	eventually(t, "one is executed", func() bool { return s.Calls(t, "incr") == 1 })
	send(t, a, "INCR number")
	eventually(t, "two are executed", func() bool { return s.Calls(t, "incr") == 2 })
	send(t, b, "INCR number")
	eventually(t, "all are executed", func() bool { return s.Calls(t, "incr") == 3 })
	silent(t, a)
	silent(t, b)
	p.ReleaseReplies()
	receive(t, a, ":1\r\n:2\r\n")
	receive(t, b, ":3\r\n")
	pong(t, a)

	// What a server said before it died arrives, and then the end.
	p.HoldReplies()
	send(t, a, "INCR number")
	eventually(t, "the last is executed", func() bool { return s.Calls(t, "incr") == 4 })
	silent(t, a)
	s.Kill()
	silent(t, a)
	p.ReleaseReplies()
	if got, err := received(t, a); got != ":4\r\n" || err != nil {
		t.Errorf("received %q, %v", got, err)
	}
}

func TestRefuse(t *testing.T) {
	_, p := throughProxy(t)
	old := dialTCP(t, p.Addr)
	pong(t, old)
	for range 3 {
		p.Refuse(true)
		p.Refuse(true) // once is enough
		if conn, err := net.Dial("tcp", p.Addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v, want that it is refused", err)
			if err == nil {
				conn.Close()
			}
		}
		pong(t, old)
		p.Refuse(false)
		p.Refuse(false)
		pong(t, dialTCP(t, p.Addr))
	}
}

func TestRedirect(t *testing.T) {
	a, p := throughProxy(t)
	b := Start(t)
	old := dialTCP(t, p.Addr)
	pong(t, old)
	pings := a.Calls(t, "ping")
	p.Redirect(b.Addr)
	fresh := dialTCP(t, p.Addr)
	send(t, fresh, "SET key value")
	receive(t, fresh, "+OK\r\n")
	pong(t, old)
	if pings, sets := a.Calls(t, "ping")-pings, b.Calls(t, "set"); pings != 1 || sets != 1 {
		t.Errorf("%d PINGs to the old target, %d SETs to the new; want one each", pings, sets)
	}
	b.Kill()
	if got, err := received(t, dialTCP(t, p.Addr)); got != "" {
		t.Errorf("from nobody: %q, %v", got, err)
	}
	if p.Accepted() != 2 {
		t.Errorf("%d connections, want 2: nobody took the third", p.Accepted())
	}
}

// TestCutWhileConnecting: once the proxy was redirected and all connections were cut,
// none leads to the old target, not even one that was just being made.
func TestCutWhileConnecting(t *testing.T) {
	a, p := throughProxy(t)
	b := Start(t)
	before := a.Calls(t, "ping")
	for i := range 500 {
		conn := dialTCP(t, p.Addr)
		time.Sleep(time.Duration(i%20) * 10 * time.Microsecond) // the proxy is as far as it gets
		p.Redirect(b.Addr)
		p.Cut()
		_, _ = ping(t, conn) // it was cut, or leads to b
		conn.Close()
		p.Redirect(a.Addr)
	}
	if got := a.Calls(t, "ping") - before; got > 0 {
		t.Errorf("%d connections of 500 led to the old target after they were cut", got)
	}
}

// TestProxyUnderLoad switches everything while there are clients. The race
// detector watches.
func TestProxyUnderLoad(t *testing.T) {
	s, p := throughProxy(t)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := net.Dial("tcp", p.Addr)
				if err != nil {
					continue
				}
				conn.SetDeadline(time.Now().Add(20 * time.Millisecond))
				for err == nil {
					if _, err = io.WriteString(conn, "PING\r\n"); err == nil {
						_, err = io.ReadFull(conn, make([]byte, 7))
					}
				}
				conn.Close()
			}
		})
	}
	for i := range 100 {
		on := i%2 == 0
		p.Delay(time.Duration(i%3) * time.Millisecond)
		p.DelayEvery(i%4, time.Millisecond)
		p.Trickle(on)
		p.HoldReplies()
		p.DropRequests(2)
		p.LoseReplies(2)
		p.CutReplies(2)
		p.Blackhole(i%8 == 0, i%16 == 0)
		p.Refuse(on)
		p.Redirect(s.Addr)
		time.Sleep(2 * time.Millisecond)
		p.ReleaseReplies()
		if i%10 == 0 {
			p.Cut()
		}
	}
	close(stop)
	clients.Wait()
	eventually(t, "no connection is left", func() bool { return p.Open() == 0 })
	p.Delay(0)
	p.DelayEvery(0, 0)
	p.DropRequests(0)
	p.LoseReplies(0)
	p.CutReplies(0)
	p.Blackhole(false, false)
	p.Refuse(false)
	pong(t, dialTCP(t, p.Addr))
}
