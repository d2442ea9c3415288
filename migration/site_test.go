package migration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/mholt/caddy-ratelimit"

	_ "github.com/caddy-distributed-ratelimit/distributed-ratelimit"
)

// patience is how long a test waits for what has to happen, on a busy machine.
const patience = 30 * time.Second

// asCaddy makes the test program a Caddy with both limiters, where several processes
// are needed.
const asCaddy = "MIGRATION_CADDY"

func TestMain(m *testing.M) {
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		return
	}
	code := m.Run()
	if installedIn != "" {
		_ = os.RemoveAll(installedIn)
	}
	os.Exit(code)
}

// answer is what a client gets.
type answer struct {
	status int
	header http.Header
	body   string
}

// clients are by their addresses. Tests do not run in parallel.
var clients = make(map[string]*http.Client)

// get sends a request over loopback from an address of 127.0.0.0/8.
func get(t *testing.T, from, url string, change ...func(*http.Request)) answer {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(r)
	}
	client, ok := clients[from]
	if !ok {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		client = &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}, Timeout: patience}
		clients[from] = client
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, url, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, url, err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

// granted counts how many of n requests are granted, one after the other. The others
// must be refused with a status.
func granted(t *testing.T, n, refused int, from, url string, change ...func(*http.Request)) int {
	t.Helper()
	count := 0
	for range n {
		switch a := get(t, from, url, change...); a.status {
		case http.StatusOK:
			count++
		case refused:
		default:
			t.Fatalf("%s: status %d %.300q, want 200 or %d", url, a.status, a.body, refused)
		}
	}
	return count
}

// want compares a number of granted requests.
func want(t *testing.T, what string, got, wanted int) {
	t.Helper()
	if got != wanted {
		t.Errorf("%s: %d granted, want %d", what, got, wanted)
	}
}

// wantIn is want for a limit in a window that began at some time: a machine on which
// the requests take longer than the window grants more.
func wantIn(t *testing.T, what string, got, wanted int, began time.Time, window time.Duration) {
	t.Helper()
	took := time.Since(began)
	if got < wanted || took < window && got > wanted {
		t.Errorf("%s: %d granted in %v, want %d in %v", what, got, took, wanted, window)
	}
}

func post(r *http.Request) { r.Method = http.MethodPost }

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// site runs a Caddyfile in this process, whose port 8080 is replaced by a free one, and
// returns its URL. There is one at a time.
func site(t *testing.T, caddyfile string) string {
	t.Helper()
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(strings.ReplaceAll(caddyfile, ":8080", ":"+port)), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("adapting: %v\n%s", err, caddyfile)
	}
	var cfg map[string]any
	if err := json.Unmarshal(adapted, &cfg); err != nil {
		t.Fatal(err)
	}
	cfg["admin"] = map[string]any{"disabled": true, "config": map[string]any{"persist": false}}
	cfg["storage"] = map[string]any{"module": "file_system", "root": t.TempDir()}
	cfg["logging"] = json.RawMessage(`{"logs": {"default": {"writer": {"output": "discard"}}}}`)
	if app, ok := cfg["apps"].(map[string]any)["distributed_ratelimit"].(map[string]any); ok {
		app["budget"] = "10s" // a busy machine is not an outage
	}
	config, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatalf("loading: %v\n%s", err, caddyfile)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("caddy.Stop: %v", err)
		}
	})
	return "http://127.0.0.1:" + port
}

// greeting is a Caddyfile of the page whose backend greets.
func greeting(caddyfile string) string {
	return strings.ReplaceAll(caddyfile, "reverse_proxy app:3000", "respond hello")
}

// program starts a program, which ends with the test, and waits until it listens on a
// port of loopback.
func program(t *testing.T, port string, cmd *exec.Cmd) {
	t.Helper()
	output, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		output.Close()
	})
	said := func() string {
		text, _ := os.ReadFile(output.Name())
		return string(text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("%v ended: %v\n%s", cmd.Args, err, said())
		case <-ctx.Done():
			t.Fatalf("%v does not listen on port %s: %v\n%s", cmd.Args, port, err, said())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// instance runs a Caddyfile in a process of its own, and returns its URL.
func instance(t *testing.T, caddyfile string, env ...string) string {
	t.Helper()
	dir, port := t.TempDir(), freePort(t)
	path := filepath.Join(dir, "Caddyfile")
	text := strings.Replace(strings.ReplaceAll(caddyfile, ":8080", ":"+port), "{\n", "{\n\tadmin off\n", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "run", "--config", path, "--adapter", "caddyfile")
	cmd.Env = append(os.Environ(), asCaddy+"=yes", "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "HOME="+dir)
	cmd.Env = append(cmd.Env, env...)
	program(t, port, cmd)
	return fmt.Sprintf("http://127.0.0.1:%s", port)
}
