package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// rig is what a run stands on: the servers, and a place for files. It is the
// test that redistest's servers belong to, so that they are started and ended
// here as they are there; whatever a test would fail on ends the run, by a
// panic with a failure that main reports. It is used by one goroutine.
type rig struct {
	testing.TB // nil: what redistest calls is below

	ctx      context.Context
	quick    bool
	root     string // of the module under test
	profiles string // directory for CPU profiles, empty for none
	dir      string // for files of the run
	began    time.Time
	cleanups []func()

	redis *redistest.Server
	proxy *redistest.Proxy // to redis
	admin *redistest.Conn  // to redis, for what is not measured

	webOnce  bool   // Express has been installed, or that was tried
	nodeDir  string // where it is, empty if it could not be installed
	nodeFail error
}

func newRig(ctx context.Context, quick bool, root, profiles string) (*rig, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if profiles != "" {
		if err := os.MkdirAll(profiles, 0o755); err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp("", "ratelimit-bench")
	if err != nil {
		return nil, err
	}
	r := &rig{ctx: ctx, quick: quick, root: root, profiles: profiles, dir: dir, began: time.Now()}
	r.Cleanup(func() { os.RemoveAll(dir) })
	return r, nil
}

// start starts the servers that most sections need.
func (r *rig) start() {
	r.redis = redistest.Start(r)
	r.proxy = redistest.NewProxy(r, r.redis.Addr)
	r.admin = r.redis.Dial(r)
}

// end undoes what was started, the latest first.
func (r *rig) end() {
	for len(r.cleanups) > 0 {
		last := len(r.cleanups) - 1
		f := r.cleanups[last]
		r.cleanups = r.cleanups[:last]
		f()
	}
}

// What redistest asks of a test.

func (r *rig) Helper()                   {}
func (r *rig) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *rig) Fatal(args ...any)         { panic(failure{errors.New(fmt.Sprint(args...))}) }
func (r *rig) Fatalf(f string, a ...any) { panic(failure{fmt.Errorf(f, a...)}) }

func (r *rig) TempDir() string {
	dir, err := os.MkdirTemp(r.dir, "")
	r.must(err)
	return dir
}

// must ends the run if there is an error.
func (r *rig) must(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// goOn ends the run if somebody wants it to end.
func (r *rig) goOn() {
	switch {
	case r.ctx.Err() == nil:
	case errors.Is(r.ctx.Err(), context.Canceled):
		panic(failure{errInterrupted})
	default:
		panic(failure{context.Cause(r.ctx)})
	}
}

// log tells whoever waits what is being done.
func (r *rig) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// pick returns the first value, or the second in a quick run.
func pick[T any](r *rig, full, quick T) T {
	if r.quick {
		return quick
	}
	return full
}

// do sends a command to the server, not through the proxy.
func (r *rig) do(args ...any) any {
	reply, err := r.admin.Do(args...)
	r.must(err)
	return reply
}

// empty drops all data of the server; its scripts stay.
func (r *rig) empty() { r.do("FLUSHALL") }

// commands is what a server has executed of one command.
type commands struct {
	calls int64
	usec  float64 // of its time, for all of them
}

// resetCommands makes the server's counts begin anew.
func (r *rig) resetCommands() { r.do("CONFIG", "RESETSTAT") }

// commandStats returns the server's counts, without what was asked by the rig
// itself.
func (r *rig) commandStats() map[string]commands {
	stats := make(map[string]commands)
	for line := range strings.Lines(r.do("INFO", "commandstats").(string)) {
		name, fields, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "cmdstat_"), ":")
		if !ok || strings.HasPrefix(name, "config") || name == "info" || name == "flushall" {
			continue
		}
		var c commands
		for field := range strings.SplitSeq(fields, ",") {
			key, value, _ := strings.Cut(field, "=")
			n, err := strconv.ParseFloat(value, 64)
			switch {
			case err != nil:
			case key == "calls":
				c.calls = int64(n)
			case key == "usec":
				c.usec = n
			}
		}
		stats[name] = c
	}
	return stats
}

// serverCPU is the CPU time that the server has used.
func (r *rig) serverCPU() time.Duration {
	seconds := 0.0
	for line := range strings.Lines(r.do("INFO", "cpu").(string)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_sys" || name == "used_cpu_user" {
			n, err := strconv.ParseFloat(value, 64)
			r.must(err)
			seconds += n
		}
	}
	return time.Duration(seconds * float64(time.Second))
}

// process is a server that is measured from outside.
type process struct {
	cmd    *exec.Cmd
	url    string
	output safeBuffer
	exited chan struct{}
}

// launch starts a server and waits until it answers a request with 200. It
// ends with the run.
func (r *rig) launch(cmd *exec.Cmd, url string) (*process, error) {
	p := &process{cmd: cmd, url: url, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.output, &p.output
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait() // how it ended shows in the output
		close(p.exited)
	}()
	r.Cleanup(p.kill)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.exited:
			return nil, fmt.Errorf("%s ended: %s", filepath.Base(cmd.Path), &p.output)
		default:
		}
		response, err := http.Get(url)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return p, nil
			}
		}
	}
	p.kill()
	return nil, fmt.Errorf("%s does not answer: %s", filepath.Base(cmd.Path), &p.output)
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.exited
}

// safeBuffer is a buffer that a process writes while we read.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b.Len() > 1<<16 {
		return len(p), nil // the beginning tells why it failed
	}
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// freePort returns a port of the loopback interface that is not in use.
func (r *rig) freePort() int {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}
