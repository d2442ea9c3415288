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
package redistest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
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

	args   []string
	dir    string
	output bytes.Buffer
	tls    bool

	mu     sync.Mutex // guards the rest
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
}

// Start starts a server with further arguments for redis-server, such as
// "--requirepass", "secret".
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, false, args)
}

func start(t testing.TB, tls bool, args []string) *Server {
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
	s := &Server{args: args, dir: dir, tls: tls, Socket: filepath.Join(dir, "redis.sock")}
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(dir)
	})

	// Somebody else may take a port between finding it free and using it.
	for attempt := 1; ; attempt++ {
		s.Addr = freeAddr(t)
		err := s.launch(program)
		if err == nil {
			return s
		}
		if attempt == 5 {
			t.Fatalf("redistest: redis-server does not start: %v\n%s", err, s.output.String())
		}
	}
}

// freeAddr returns an address on the loopback interface that is not in use,
// and not Redis's own.
func freeAddr(t testing.TB) string {
	t.Helper()
	for {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := listener.Addr().(*net.TCPAddr)
		listener.Close()
		if addr.Port != 6379 {
			return addr.String()
		}
	}
}

// launch starts the process and waits until it answers.
func (s *Server) launch(program string) error {
	_, port, _ := net.SplitHostPort(s.Addr)
	plain, secure := port, "0"
	if s.tls {
		plain, secure = secure, plain
	}
	args := []string{
		"--bind", "127.0.0.1", "--port", plain, "--unixsocket", s.Socket,
		"--dir", s.dir, "--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning",
	}
	if s.tls {
		args = append(args, "--tls-port", secure)
	}
	args = append(args, s.args...)

	os.Remove(s.Socket)
	s.output.Reset()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
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
	conn, err := dial("unix", s.Socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	_, err = conn.Do("PING")
	var reply Error
	return err == nil || errors.As(err, &reply)
}

// Stop freezes the server, as a machine that is overloaded or gone does:
// connections stay open, and the kernel accepts new ones, but nothing answers.
func (s *Server) Stop() { s.signal(syscall.SIGSTOP) }

// Cont lets a stopped server go on; it works off what was sent meanwhile.
func (s *Server) Cont() { s.signal(syscall.SIGCONT) }

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
	}
}

// Restart kills the server and starts it again, empty, on the same port.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	// The port is free as soon as the old process is gone.
	for attempt := 1; ; attempt++ {
		err := s.launch(program)
		if err == nil {
			return
		}
		if attempt == 20 {
			t.Fatalf("redistest: redis-server does not start again: %v\n%s", err, s.output.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Do sends a command over the Unix socket and returns its reply, see
// [Conn.Do]. It fails the test if there is an error.
func (s *Server) Do(t testing.TB, args ...any) any {
	t.Helper()
	conn := s.Dial(t)
	defer conn.Close()
	reply, err := conn.Do(args...)
	if err != nil {
		t.Fatalf("redistest: %v: %v", args, err)
	}
	return reply
}

// Dial connects to the server's Unix socket. The connection is closed at the
// end of the test if not before.
func (s *Server) Dial(t testing.TB) *Conn {
	t.Helper()
	conn, err := dial("unix", s.Socket)
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Keys returns all keys of database 0.
func (s *Server) Keys(t testing.TB) []string {
	t.Helper()
	var keys []string
	for _, key := range s.Do(t, "KEYS", "*").([]any) {
		keys = append(keys, key.(string))
	}
	return keys
}

// Calls returns how often the server has executed a command, such as
// "evalsha", since it started or since CONFIG RESETSTAT.
func (s *Server) Calls(t testing.TB, command string) int {
	t.Helper()
	info := s.Do(t, "INFO", "commandstats").(string)
	_, after, found := bytes.Cut([]byte(info), []byte("cmdstat_"+command+":calls="))
	if !found {
		return 0
	}
	digits, _, _ := bytes.Cut(after, []byte(","))
	n, err := strconv.Atoi(string(digits))
	if err != nil {
		t.Fatalf("redistest: calls of %s: %v", command, err)
	}
	return n
}
