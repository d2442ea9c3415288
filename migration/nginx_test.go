package migration

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// held begins a request that stays in flight until the backend releases it. It tries
// again if it is refused: what came before may not be over yet for the limiter.
func held(t *testing.T, b *backend, from, url string, change ...func(*http.Request)) {
	t.Helper()
	go func() {
		for range 100 {
			r, err := http.NewRequest(http.MethodGet, url, nil)
			if err != nil {
				return
			}
			for _, c := range change {
				c(r)
			}
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				return
			}
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	select {
	case <-b.begun:
	case <-time.After(patience):
		t.Fatalf("%s from %s does not reach the backend", url, from)
	}
}

// The two configurations of the page: a burst of 21, five in flight, status 429.
func TestFromNginx(t *testing.T) {
	run := map[string]func(t *testing.T, b *backend) string{
		"there": func(t *testing.T, b *backend) string { return nginx(t, block(t, "nginx", "nginx"), b) },
		"here": func(t *testing.T, b *backend) string {
			t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
			return site(t, strings.ReplaceAll(block(t, "nginx", "caddyfile"), "app:3000", b.addr()))
		},
	}
	for name, start := range run {
		t.Run(name+", a burst", func(t *testing.T) {
			b := newBackend(t)
			url := start(t, b)
			began := time.Now()
			got := granted(t, 50, 429, one, url+"/")
			// Both grant ten more in each second that this takes.
			if most := 21 + int(time.Since(began)/(100*time.Millisecond))*21; got < 21 || got > most {
				t.Errorf("%d of 50 granted, want 21 to %d", got, most)
			}
		})
		t.Run(name+", in flight", func(t *testing.T) {
			b := newBackend(t)
			url := start(t, b)
			for range 5 {
				held(t, b, one, url+"/wait")
			}
			if a := get(t, one, url+"/"); a.status != 429 {
				t.Errorf("the sixth in flight: status %d, want 429", a.status)
			}
		})
	}
}

func TestNginxRows(t *testing.T) {
	server := func(zones, location string) string {
		return zones + "\nserver {\nlisten 8080;\nlocation / {\n" + location + "\nproxy_pass http://app:3000;\n}\nlocation /b {\nlimit_req zone=b;\n" + location + "\nproxy_pass http://app:3000;\n}\n}"
	}
	const slow = "limit_req_zone $binary_remote_addr zone=a:1m rate=1r/m;\nlimit_req_zone $binary_remote_addr zone=b:1m rate=1r/m;\n"
	const open = slow + "limit_conn_zone $binary_remote_addr zone=c:1m;\n"
	rows(t, "nginx", map[string]func(t *testing.T){
		"rate": func(t *testing.T) {
			// A distance between requests: the second within the minute is refused.
			url := nginx(t, server(slow, "limit_req zone=a;"), newBackend(t))
			want(t, "rate=1r/m", granted(t, 3, 503, one, url+"/"), 1)
		},
		"limit_req_status": func(t *testing.T) {
			url := nginx(t, server(slow, "limit_req zone=a;"), newBackend(t))
			want(t, "503 unless set", granted(t, 3, 503, one, url+"/"), 1)
			url = nginx(t, server(slow+"limit_req_status 429;", "limit_req zone=a;"), newBackend(t))
			want(t, "429", granted(t, 3, 429, one, url+"/"), 1)
		},
		"limit_req_dry_run": func(t *testing.T) {
			url := nginx(t, server(slow+"limit_req_dry_run on;", "limit_req zone=a;"), newBackend(t))
			want(t, "dry run", granted(t, 3, 503, one, url+"/"), 3)
		},
		"delay": func(t *testing.T) {
			url := nginx(t, server(strings.ReplaceAll(slow, "1r/m", "2r/s"), "limit_req zone=a burst=2;"), newBackend(t))
			began := time.Now()
			want(t, "burst=2, one after the other", granted(t, 3, 503, one, url+"/"), 3)
			if took := time.Since(began); took < 900*time.Millisecond {
				t.Errorf("three requests took %v: they were not held back", took)
			}
		},
		"several limit_req": func(t *testing.T) {
			url := nginx(t, server(slow, "limit_req zone=a burst=2 nodelay;"), newBackend(t))
			want(t, "/b", granted(t, 5, 503, one, url+"/b"), 1)
			want(t, "/, after what was refused", granted(t, 5, 503, one, url+"/"), 2)
		},
		"empty key": func(t *testing.T) {
			url := nginx(t, server(strings.ReplaceAll(slow, "$binary_remote_addr", "$http_x_key"), "limit_req zone=a;"), newBackend(t))
			want(t, "without a key", granted(t, 5, 503, one, url+"/"), 5)
		},
		"limit_conn": func(t *testing.T) {
			b := newBackend(t)
			url := nginx(t, server(open, "limit_conn c 1;"), b)
			want(t, "one after the other", granted(t, 3, 503, one, url+"/"), 3)
			held(t, b, one, url+"/wait")
			want(t, "while one is in flight", granted(t, 2, 503, one, url+"/"), 0)
		},
		"limit_conn_status": func(t *testing.T) {
			b := newBackend(t)
			url := nginx(t, server(open+"limit_conn_status 429;", "limit_conn c 1;"), b)
			held(t, b, one, url+"/wait")
			want(t, "429", granted(t, 2, 429, one, url+"/"), 0)
		},
		"limit_conn_dry_run": func(t *testing.T) {
			b := newBackend(t)
			url := nginx(t, server(open+"limit_conn_dry_run on;", "limit_conn c 1;"), b)
			held(t, b, one, url+"/wait")
			want(t, "dry run", granted(t, 2, 503, one, url+"/"), 2)
		},
		"Retry-After": func(t *testing.T) {
			url := nginx(t, server(slow, "limit_req zone=a;"), newBackend(t))
			granted(t, 1, 503, one, url+"/")
			if a := get(t, one, url+"/"); a.status != 503 || a.header.Get("Retry-After") != "" {
				t.Errorf("status %d, %v", a.status, a.header)
			}
		},
	})
}
