// Package redistest starts real Redis servers for tests, and the faults that
// befall them.
//
//	server := redistest.Start(t)
//	server.Do(t, "SET", "key", "value")
//	server.Stop() // answers nothing any more, until Cont
//
// A server listens on a free port of the loopback interface and on a Unix
// socket, keeps its data in memory, and ends with its test. Where there is no
// redis-server, tests fail; they do not skip.
//
// [StartSentinel] and [StartCluster] start servers that stand in for each
// other. A [Proxy] makes the trouble that a network makes.
package redistest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	startTime = 20 * time.Second // on a busy machine
	replyTime = 20 * time.Second
)

// Server is a running redis-server.
type Server struct {
	// Addr is its address: 127.0.0.1 and a port, with TLS if StartTLS
	// started it.
	Addr string
	// Socket is the path of its Unix socket, never with TLS.
	Socket string

	args     []string
	password string // empty: none
	dir      string
	output   bytes.Buffer
	tls      bool
	bus      bool         // it needs the port for a cluster's bus, too
	sentinel string       // the configuration of a sentinel, empty if it is none
	dials    atomic.Int64 // connections to the socket since it was started

	mu      sync.Mutex // guards the rest
	cmd     *exec.Cmd
	exited  chan struct{} // closed when cmd has ended
	stopped bool          // by Stop
}

// Start starts a server with further arguments for redis-server, such as
// "--requirepass", "secret".
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, &Server{args: args})
}

// start starts a server of which what it is to be is known.
func start(t testing.TB, s *Server) *Server {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatalf("redistest: no redis-server in PATH; install it (apt-get install redis-server, brew install redis): %v", err)
	}
	// Not t.TempDir: the path of a socket is at most 107 bytes long.
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		t.Fatal(err)
	}
	s.dir, s.Socket, s.password = dir, filepath.Join(dir, "redis.sock"), passwordOf(s.args)
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(dir)
	})

	if s.sentinel != "" {
		if err := os.WriteFile(s.sentinelFile(), []byte(s.sentinel), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// Somebody else may take a port between finding it free and using it.
	for attempt := 1; ; attempt++ {
		s.Addr = freeAddr(t, s.bus)
		err := s.launch(program)
		if err == nil {
			return s
		}
		if attempt == 5 {
			t.Fatalf("redistest: redis-server does not start: %v\n%s", err, s.output.String())
		}
	}
}

// passwordOf returns the password that arguments for redis-server set, if any.
func passwordOf(args []string) string {
	if i := slices.Index(args, "--requirepass"); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// busOffset is how far a cluster's bus is from the port for clients.
const busOffset = 10000

// freeAddr returns an address on the loopback interface that is not in use,
// and not Redis's own; with a bus, the port for it is not in use either.
func freeAddr(t testing.TB, bus bool) string {
	t.Helper()
	for {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := listener.Addr().(*net.TCPAddr)
		listener.Close()
		if addr.Port != 6379 && (!bus || free(addr.Port+busOffset)) {
			return addr.String()
		}
	}
}

func free(port int) bool {
	if port > 65535 {
		return false
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return false
	}
	listener.Close()
	return true
}

func (s *Server) snapshotFile() string { return filepath.Join(s.dir, "dump.rdb") }
func (s *Server) sentinelFile() string { return filepath.Join(s.dir, "sentinel.conf") }

// port returns the number in Addr.
func (s *Server) port() string {
	_, port, _ := net.SplitHostPort(s.Addr)
	return port
}

// launch starts the process, with arguments for this time, and waits until it
// answers.
func (s *Server) launch(program string, once ...string) error {
	plain, secure := s.port(), "0"
	if s.tls {
		plain, secure = secure, plain
	}
	args := []string{
		"--bind", "127.0.0.1", "--port", plain, "--unixsocket", s.Socket,
		"--dir", s.dir, "--daemonize", "no", "--loglevel", "warning",
	}
	if s.sentinel != "" {
		// It keeps what it learns in its file, and finds it there again.
		args = append([]string{s.sentinelFile(), "--sentinel"}, args...)
	} else {
		args = append(args, "--save", "", "--appendonly", "no")
	}
	if s.tls {
		args = append(args, "--tls-port", secure)
	}
	args = append(append(args, s.args...), once...)

	os.Remove(s.Socket)
	s.output.Reset()
	s.dials.Store(0)
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	s.mu.Lock()
	s.cmd, s.exited, s.stopped = cmd, exited, false
	s.mu.Unlock()
	go func() {
		_ = cmd.Wait() // how it ended shows in the output
		close(exited)
	}()
	deadline := time.Now().Add(startTime)
	for time.Now().Before(deadline) {
		select {
		case <-exited:
			return errors.New("it exited")
		case <-time.After(10 * time.Millisecond):
		}
		if s.answers() {
			return nil
		}
	}
	s.Kill()
	return fmt.Errorf("no answer within %v", startTime)
}

// answers reports whether the server answers a PING, be it that it wants a
// password.
func (s *Server) answers() bool {
	_, err := s.ask("PING")
	var reply Error
	return err == nil || errors.As(err, &reply)
}

// ask is Do for whoever is prepared for an error.
func (s *Server) ask(args ...any) (any, error) {
	conn, err := s.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Do(args...)
}

// dial connects to the Unix socket, and gives the password if one was set from
// the start.
func (s *Server) dial() (*Conn, error) {
	conn, err := dial("unix", s.Socket)
	if err != nil {
		return nil, err
	}
	s.dials.Add(1)
	if s.password == "" {
		return conn, nil
	}
	var reply Error
	if _, err := conn.Do("AUTH", s.password); err != nil && !errors.As(err, &reply) {
		conn.Close()
		return nil, err
	}
	return conn, nil // what was refused may have been changed by a test
}

// Stop freezes the server, as a machine that is overloaded or gone does:
// connections stay open, and the kernel accepts new ones, but nothing answers.
func (s *Server) Stop() { s.signal(SIGSTOP) }

// Cont lets a stopped server go on; it works off what was sent meanwhile.
func (s *Server) Cont() { s.signal(SIGCONT) }

// running reports whether the server can answer: it was neither stopped nor
// killed.
func (s *Server) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil || s.stopped {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// Kill ends the server at once. Its data is gone.
func (s *Server) Kill() {
	s.signal(syscall.SIGKILL)
	s.mu.Lock()
	exited := s.exited
	s.mu.Unlock()
	if exited != nil {
		<-exited
	}
}

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(sig) // it may have ended
		s.stopped = sig == SIGSTOP
	}
}

// Restart kills the server and starts it again, empty, on the same port. In a
// cluster it is still who it was. A sentinel still knows what it knew.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	os.Remove(s.snapshotFile()) // a replica writes one
	s.relaunch(t)
}

// relaunch starts a server that was killed, on the same port.
func (s *Server) relaunch(t testing.TB, once ...string) {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	// The port is free as soon as the old process is gone.
	for attempt := 1; ; attempt++ {
		err := s.launch(program, once...)
		if err == nil {
			return
		}
		if attempt == 20 {
			t.Fatalf("redistest: redis-server does not start again: %v\n%s", err, s.output.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// A server answers others between one key that it loads and the next if the
// former is at least as big as the least that can be set for this.
const (
	loadKeyTime  = 10 * time.Millisecond
	loadKeyBytes = 1024
)

// RestartLoading kills the server and starts it again with the keys it had, and
// returns while it loads them, which takes about d: until then it replies
// LOADING to nearly everything. To be that slow it loads keys from database 15
// too. A node of a cluster has no such database.
func (s *Server) RestartLoading(t testing.TB, d time.Duration) {
	t.Helper()
	conn := s.Dial(t)
	defer conn.Close()
	n := max(10, int(d/loadKeyTime))
	value := strings.Repeat("x", 2*loadKeyBytes)
	conn.Send("SELECT", 15)
	for i := range n {
		conn.Send("SET", "redistest:load:"+strconv.Itoa(i), value)
	}
	conn.Send("CONFIG", "SET", "rdbcompression", "no") // or a value is a few bytes
	conn.Send("SAVE")
	for range n + 3 {
		if _, err := conn.Receive(); err != nil {
			t.Fatalf("redistest: write a snapshot: %v", err)
		}
	}
	s.Kill()
	s.relaunch(t, "--key-load-delay", strconv.FormatInt((d/time.Duration(n)).Microseconds(), 10),
		"--loading-process-events-interval-bytes", strconv.Itoa(loadKeyBytes))
	if _, err := s.ask("PING"); err == nil || !strings.HasPrefix(err.Error(), "LOADING") {
		t.Fatalf("redistest: PING to a server that should load for %v: %v", d, err)
	}
}
