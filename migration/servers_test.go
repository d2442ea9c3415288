package migration

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// debian finds a server that Debian has. make migration installs it.
func debian(t *testing.T, name string) string {
	t.Helper()
	for _, path := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatalf("no %s: run scripts/test-needs %s, or make migration", name, name)
	return ""
}

// backend answers requests; those for /wait wait until the test ends, or release.
type backend struct {
	*httptest.Server
	begun   chan struct{}
	release func()
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{begun: make(chan struct{}, 100)}
	end := make(chan struct{})
	b.release = func() {
		select {
		case <-end:
		default:
			close(end)
		}
	}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/wait") {
			b.begun <- struct{}{}
			<-end
		}
		_, _ = w.Write([]byte("hello"))
	}))
	t.Cleanup(func() { b.release(); b.Close() })
	return b
}

// addr is where the backend listens, without a scheme.
func (b *backend) addr() string { return strings.TrimPrefix(b.URL, "http://") }

// nginx runs what stands in its http block, whose port 8080 and backend app:3000 are
// replaced, and returns its URL.
func nginx(t *testing.T, config string, b *backend) string {
	t.Helper()
	found := debian(t, "nginx")
	dir, port := t.TempDir(), freePort(t)
	if os.Getuid() == 0 {
		// Its workers are of another user.
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config = strings.NewReplacer("listen 8080", "listen 127.0.0.1:"+port, "http://app:3000", b.URL).Replace(config)
	whole := "daemon off; master_process off; worker_processes 1; pid " + dir + "/pid; error_log " + dir + "/error.log info;\n" +
		"events { worker_connections 200; }\nhttp {\naccess_log off;\n"
	for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		whole += what + "_temp_path " + dir + "/" + what + ";\n"
	}
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(whole+config+"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, port, exec.Command(found, "-c", path, "-p", dir, "-e", dir+"/error.log"))
	return "http://127.0.0.1:" + port
}
