package migration

import (
	"net/http"
	"strconv"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

const (
	one = "127.0.0.1"
	two = "127.0.0.2"
)

// The two configurations of the page grant the same, to a client that comes once.
func TestFromCaddyRatelimit(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
	for name, language := range map[string]string{"there": "caddy-ratelimit", "here": "caddyfile"} {
		t.Run(name, func(t *testing.T) {
			url := site(t, greeting(block(t, "caddy-ratelimit", language)))
			want(t, "GET /api/ by one client", granted(t, 105, 429, one, url+"/api/"), 100)
			want(t, "GET /api/ by another", granted(t, 3, 429, two, url+"/api/"), 3)
			want(t, "GET /", granted(t, 3, 429, one, url+"/"), 3)
			want(t, "POST /login by one client", granted(t, 15, 429, one, url+"/login", post), 15)
			want(t, "POST /login by another", granted(t, 10, 429, two, url+"/login", post), 5)
			n, err := strconv.Atoi(get(t, one, url+"/login", post).header.Get("Retry-After"))
			if err != nil || n < 1 || n > 73 {
				t.Errorf("Retry-After %d, %v; want up to a minute and a fifth", n, err)
			}
		})
	}
}

func TestCaddyRatelimitRows(t *testing.T) {
	limited := func(t *testing.T, zones, more string) string {
		t.Helper()
		return site(t, ":8080 {\nrate_limit {\n"+zones+"\n}\n"+more+"\nrespond hello\n}")
	}
	rows(t, "caddy-ratelimit", map[string]func(t *testing.T){
		"zone": func(t *testing.T) {
			// Five requests to /b use up the wide zone, although four of them are refused.
			url := limited(t, "zone wide {\nkey x\nevents 5\nwindow 1h\n}\nzone tight {\nmatch {\npath /b\n}\nkey x\nevents 1\nwindow 1h\n}", "")
			want(t, "/b", granted(t, 5, 429, one, url+"/b"), 1)
			want(t, "/, after what was refused", granted(t, 5, 429, one, url+"/"), 0)
		},
		"key": func(t *testing.T) {
			url := limited(t, "zone z {\nevents 2\nwindow 1h\n}", "")
			want(t, "one client", granted(t, 1, 429, one, url+"/"), 1)
			want(t, "another", granted(t, 3, 429, two, url+"/"), 1)
		},
		"events": func(t *testing.T) {
			if _, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(":8080 {\nrate_limit {\nzone z {\nevents 0\nwindow 1h\n}\n}\n}"), nil); err == nil {
				t.Error("events 0 is taken")
			}
		},
		"{http.rate_limit.exceeded.name}": func(t *testing.T) {
			url := limited(t, "zone z {\nkey x\nevents 1\nwindow 1h\n}", "handle_errors {\nrespond {http.rate_limit.exceeded.name} 429\n}")
			granted(t, 1, 429, one, url+"/")
			if a := get(t, one, url+"/"); a.body != "z" {
				t.Errorf("the placeholder is %q", a.body)
			}
		},
		"handle_errors": func(t *testing.T) {
			url := limited(t, "zone z {\nkey x\nevents 1\nwindow 1h\n}", "")
			granted(t, 1, 429, one, url+"/")
			if a := get(t, one, url+"/"); a.status != 429 || a.body != "" {
				t.Errorf("without an error route: status %d, body %q", a.status, a.body)
			}
		},
		"Retry-After": func(t *testing.T) {
			url := limited(t, "zone z {\nkey x\nevents 1\nwindow 1h\n}", "")
			granted(t, 1, 429, one, url+"/")
			a := get(t, one, url+"/")
			if a.header.Get("Retry-After") == "" || a.header.Get("RateLimit") != "" {
				t.Errorf("a refusal has %v", a.header)
			}
		},
		"jitter": func(t *testing.T) {
			url := limited(t, "zone z {\nkey x\nevents 1\nwindow 1h\n}\njitter 0.2", "")
			granted(t, 1, 429, one, url+"/")
			n, err := strconv.Atoi(get(t, one, url+"/").header.Get("Retry-After"))
			if err != nil || n < 3500 || n > 4321 {
				t.Errorf("Retry-After %d, %v", n, err)
			}
		},
		"distributed": func(t *testing.T) {
			// As long as they have not read each other's counts, two instances grant twice
			// the limit; here they never do.
			caddyfile := "{\nstorage file_system " + t.TempDir() + "\n}\n:8080 {\nrate_limit {\ndistributed {\nread_interval 1h\nwrite_interval 1h\n}\nzone z {\nkey x\nevents 10\nwindow 1h\n}\n}\nrespond hello\n}"
			a, b := instance(t, caddyfile), instance(t, caddyfile)
			want(t, "two instances", granted(t, 15, 429, one, a+"/")+granted(t, 15, 429, one, b+"/"), 20)
		},
		"order rate_limit": func(t *testing.T) {
			url := limited(t, "zone z {\nmatch {\npath /asked\n}\nkey x\nevents 1\nwindow 1h\n}", "rewrite /asked /rewritten")
			granted(t, 1, 429, one, url+"/asked")
			if a := get(t, one, url+"/asked"); a.status != http.StatusOK {
				t.Errorf("status %d: the zone saw the path that was asked for", a.status)
			}
		},
	})
}
