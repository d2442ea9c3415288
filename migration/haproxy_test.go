package migration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// haproxy runs a configuration, whose port 8080 and backend app:3000 are replaced, and
// returns its URL.
func haproxy(t *testing.T, config string, b *backend) string {
	t.Helper()
	found, port := debian(t, "haproxy"), freePort(t)
	config = strings.NewReplacer("bind :8080", "bind 127.0.0.1:"+port, "app:3000", b.addr()).Replace(config)
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	const defaults = "defaults\n\tmode http\n\ttimeout connect 30s\n\ttimeout client 1m\n\ttimeout server 1m\n\n"
	if err := os.WriteFile(path, []byte(defaults+config), 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, port, exec.Command(found, "-db", "-f", path))
	return "http://127.0.0.1:" + port
}

// The two configurations of the page: a hundred in a minute, five in flight.
func TestFromHAProxy(t *testing.T) {
	run := map[string]func(t *testing.T, b *backend) string{
		"there": func(t *testing.T, b *backend) string { return haproxy(t, block(t, "HAProxy", "haproxy"), b) },
		"here": func(t *testing.T, b *backend) string {
			t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
			return site(t, strings.ReplaceAll(block(t, "HAProxy", "caddyfile"), "app:3000", b.addr()))
		},
	}
	for name, start := range run {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t)
			url, began := start(t, b), time.Now()
			for range 5 {
				held(t, b, one, url+"/wait")
			}
			if a := get(t, one, url+"/"); a.status != 429 {
				t.Errorf("the sixth in flight: status %d, want 429", a.status)
			}
			wantIn(t, "another client", granted(t, 105, 429, two, url+"/"), 100, began, time.Minute)
		})
	}
}

func TestHAProxyRows(t *testing.T) {
	frontend := func(stored string, rules ...string) string {
		return "frontend web\n\tbind :8080\n\tstick-table type string len 64 size 100k expire 2h store " + stored + "\n\t" +
			strings.Join(rules, "\n\t") + "\n\tdefault_backend app\nbackend app\n\tserver app app:3000\n"
	}
	const rate = "http_req_rate(1h)"
	const track = "http-request track-sc0 src"
	rows(t, "HAProxy", map[string]func(t *testing.T){
		"http_req_rate(60s)": func(t *testing.T) {
			// What is refused counts: the rate goes on to rise.
			url := haproxy(t, frontend(rate, track,
				"http-request return status 429 hdr X-Rate %[sc_http_req_rate(0)] if { sc_http_req_rate(0) gt 2 }"), newBackend(t))
			want(t, "gt 2", granted(t, 5, 429, one, url+"/"), 2)
			if got := get(t, one, url+"/").header.Get("X-Rate"); got != "6" {
				t.Errorf("after two granted and four refused the rate is %q, want 6", got)
			}
		},
		"deny_status": func(t *testing.T) {
			url := haproxy(t, frontend(rate, track, "http-request deny if { sc_http_req_rate(0) gt 2 }"), newBackend(t))
			want(t, "403 unless set", granted(t, 4, 403, one, url+"/"), 2)
		},
		"track-sc0 req.hdr(X-Api-Key)": func(t *testing.T) {
			url := haproxy(t, frontend(rate, "http-request track-sc0 req.hdr(X-Api-Key)", "http-request deny deny_status 429 if { sc_http_req_rate(0) gt 2 }"), newBackend(t))
			want(t, "without the header", granted(t, 5, 429, one, url+"/"), 5)
			want(t, "with it", granted(t, 5, 429, one, url+"/", with("X-Api-Key", "k")), 2)
		},
		"conn_cur": func(t *testing.T) {
			b := newBackend(t)
			url := haproxy(t, frontend("conn_cur", track, "http-request deny deny_status 429 if { sc_conn_cur(0) gt 1 }"), b)
			want(t, "one after the other", granted(t, 3, 429, one, url+"/"), 3)
			held(t, b, one, url+"/wait")
			want(t, "while one is in flight", granted(t, 2, 429, one, url+"/"), 0)
		},
	})
}
