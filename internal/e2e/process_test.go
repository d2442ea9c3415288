package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
)

// builtIn is the directory of caddyBinary, once there is one.
var builtIn string

// caddyBinary is built once, by the first test that needs it.
var caddyBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		return "", err
	}
	builtIn = dir
	path := filepath.Join(dir, "caddy")
	out, err := exec.Command("go", "build", "-race", "-o", path, "../../cmd/caddy").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if *update {
		if err := writeTable(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	if builtIn != "" {
		_ = os.RemoveAll(builtIn)
	}
	llmtest.RemoveSDKs()
	os.Exit(code)
}

// process is a Caddy of its own.
type process struct {
	addr   string // of its site
	admin  string // of its admin endpoint
	config string
	env    []string
	cmd    *exec.Cmd
	output *lockedBuffer
	client *http.Client
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startProcess runs Caddy on a Caddyfile, in which ADDR stands for the
// address of the site. The admin endpoint is set up for it.
func startProcess(t *testing.T, caddyfile string, env ...string) *process {
	t.Helper()
	p := &process{addr: freeAddr(t), admin: freeAddr(t), env: env, output: new(lockedBuffer)}
	p.config = filepath.Join(t.TempDir(), "Caddyfile")
	p.write(t, caddyfile)
	p.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}, Timeout: time.Minute}
	p.start(t)
	t.Cleanup(func() { p.kill() })
	return p
}

// write puts a Caddyfile in place, for the start or for a reload.
func (p *process) write(t *testing.T, caddyfile string) {
	t.Helper()
	text := strings.NewReplacer("ADDR", "http://"+p.addr, "ADMIN", p.admin).Replace(caddyfile)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *process) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	binary, err := caddyBinary()
	if err != nil {
		t.Fatalf("building Caddy: %v", err)
	}
	cmd := exec.Command(binary, args...)
	home := filepath.Dir(p.config)
	cmd.Env = append(os.Environ(), append(p.env, "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home)...)
	return cmd
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = p.command(t, "run", "--adapter", "caddyfile", "--config", p.config)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := net.DialTimeout("tcp", p.addr, time.Second)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) || p.cmd.ProcessState != nil {
			t.Fatalf("Caddy does not start:\n%s", p.output)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kill ends the process without warning.
func (p *process) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

// reload makes the process take its Caddyfile anew.
func (p *process) reload(t *testing.T) error {
	t.Helper()
	out, err := p.command(t, "reload", "--adapter", "caddyfile", "--config", p.config, "--address", p.admin).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v\n%s", err, out)
	}
	return nil
}

// get sends a request over real HTTP.
func (p *process) get(t *testing.T, path string, header ...string) reply {
	t.Helper()
	r, err := p.try(path, header...)
	if err != nil {
		t.Errorf("GET %s: %v", path, err)
	}
	return r
}

// try is get for a process that may not be there.
func (p *process) try(path string, header ...string) (reply, error) {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+p.addr+path, nil)
	if err != nil {
		return reply{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	sent := time.Now()
	resp, err := p.client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return newReply(resp.StatusCode, resp.Header, string(body), sent), err
}

// metrics returns the lines of this module's metrics.
func (p *process) metrics(t *testing.T) string {
	t.Helper()
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "caddy_distributed_ratelimit_") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func replaceName(text, name string) string {
	return strings.ReplaceAll(text, "NAME", strings.ReplaceAll(name, " ", "-"))
}
