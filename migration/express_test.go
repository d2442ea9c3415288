package migration

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// express runs a site with express-rate-limit.
func express(t *testing.T, options string, use ...string) string {
	t.Helper()
	return node(t, "express.mjs", "OPTIONS="+options, "USE="+strings.Join(append(use, "nothing")[:1], ""))
}

func with(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func TestExpressRows(t *testing.T) {
	installed(t)
	// fields are names of header fields that a first answer has.
	fields := func(options string, names ...string) func(t *testing.T) {
		return func(t *testing.T) {
			a := get(t, one, express(t, options)+"/")
			for _, name := range names {
				if a.header.Get(name) == "" {
					t.Errorf("no %s in %v", name, a.header)
				}
			}
		}
	}
	rows(t, "express-rate-limit", map[string]func(t *testing.T){
		"windowMs": func(t *testing.T) {
			// 1 at the beginning of the window, 4 at its end, 5 after it: 9 in two seconds.
			url := express(t, `{"windowMs": 60000, "limit": 5}`)
			want(t, "the first", granted(t, 1, 429, one, url+"/"), 1)
			get(t, one, url+"/clock?ms=59000")
			want(t, "at the end of the window", granted(t, 6, 429, one, url+"/"), 4)
			get(t, one, url+"/clock?ms=2000")
			want(t, "two seconds later", granted(t, 8, 429, one, url+"/"), 5)
		},
		"limit": func(t *testing.T) {
			want(t, "limit 0", granted(t, 2, 429, one, express(t, `{"limit": 0}`)+"/"), 0)
		},
		"limit as a function": func(t *testing.T) {
			url := express(t, `{}`, "limitByPlan")
			want(t, "pro", granted(t, 6, 429, one, url+"/", with("X-Plan", "pro")), 4)
		},
		"message": func(t *testing.T) {
			if a := get(t, one, express(t, `{"limit": 0}`)+"/"); a.body != "Too many requests, please try again later." {
				t.Errorf("the body is %q", a.body)
			}
		},
		"statusCode": func(t *testing.T) {
			want(t, "429 unless set", granted(t, 2, 429, one, express(t, `{"limit": 1}`)+"/"), 1)
		},
		"standardHeaders: true":      fields(`{"standardHeaders": true}`, "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy"),
		"standardHeaders: 'draft-7'": fields(`{"standardHeaders": "draft-7"}`, "RateLimit", "RateLimit-Policy"),
		"standardHeaders: 'draft-8'": fields(`{"standardHeaders": "draft-8"}`, "RateLimit", "RateLimit-Policy"),
		"legacyHeaders: true": func(t *testing.T) {
			a := get(t, one, express(t, `{}`)+"/")
			n, err := strconv.ParseInt(a.header.Get("X-RateLimit-Reset"), 10, 64)
			if left := time.Until(time.Unix(n, 0)); err != nil || left < 0 || left > 62*time.Second {
				t.Errorf("X-RateLimit-Reset %q is no moment within a minute", a.header.Get("X-RateLimit-Reset"))
			}
		},
		"req.rateLimit": func(t *testing.T) {
			if a := get(t, one, express(t, `{"limit": 3}`)+"/numbers"); !strings.Contains(a.body, `"remaining":2`) {
				t.Errorf("req.rateLimit is %s", a.body)
			}
		},
		"skipFailedRequests": func(t *testing.T) {
			url := express(t, `{"limit": 2, "skipFailedRequests": true}`)
			for range 4 {
				get(t, one, url+"/bad")
			}
			if a := get(t, one, url+"/"); a.status != http.StatusOK {
				t.Errorf("after four failures: status %d", a.status)
			}
		},
		"skipSuccessfulRequests": func(t *testing.T) {
			url := express(t, `{"limit": 2, "skipSuccessfulRequests": true}`)
			want(t, "successful", granted(t, 5, 429, one, url+"/"), 5)
		},
		"keyGenerator": func(t *testing.T) {
			url := express(t, `{"limit": 2}`, "keyOfHeader")
			want(t, "a key", granted(t, 4, 429, one, url+"/", with("X-Api-Key", "a")), 2)
			want(t, "another", granted(t, 4, 429, one, url+"/", with("X-Api-Key", "b")), 2)
		},
		"skip": func(t *testing.T) {
			url := express(t, `{"limit": 2}`, "skipHealth")
			want(t, "skipped", granted(t, 5, 429, one, url+"/health"), 5)
		},
		"ipv6Subnet": func(t *testing.T) {
			facts := expressFacts(t)
			if facts["sameNetwork"] != true || facts["otherNetwork"] != false {
				t.Errorf("networks of 56 bits: %v", facts)
			}
		},
		"prefix": func(t *testing.T) {
			if facts := expressFacts(t); facts["prefix"] != "rl:" {
				t.Errorf("the prefix is %v", facts["prefix"])
			}
		},
		"passOnStoreError": func(t *testing.T) {
			if a := get(t, one, express(t, `{}`, "brokenStore")+"/"); a.status != 500 {
				t.Errorf("without it: status %d", a.status)
			}
			if a := get(t, one, express(t, `{}`, "brokenStorePasses")+"/"); a.status != 200 {
				t.Errorf("with it: status %d", a.status)
			}
		},
	})
}

func expressFacts(t *testing.T) map[string]any {
	t.Helper()
	var facts map[string]any
	if err := json.Unmarshal([]byte(get(t, one, express(t, `{}`)+"/facts").body), &facts); err != nil {
		t.Fatal(err)
	}
	return facts
}

// A client reads the same from this limiter's fields and from those that
// express-rate-limit sends, in every shape that the client knows. (It does not know
// drafts 8 and later.)
func TestClientsReadTheShapes(t *testing.T) {
	installed(t)
	for _, row := range []struct{ name, options, words string }{
		{"draft 6", `{"limit": 30, "standardHeaders": true, "legacyHeaders": false}`, "ratelimit_headers draft6 always"},
		{"draft 7", `{"limit": 30, "standardHeaders": "draft-7", "legacyHeaders": false}`, "ratelimit_headers draft7 always"},
		{"the legacy fields", `{"limit": 30}`, "ratelimit_headers legacy_epoch always"},
		{"legacy in seconds", `{"limit": 30}`, "ratelimit_headers legacy always"},
		{"another prefix", `{"limit": 30}`, "ratelimit_headers legacy_epoch always\nratelimit_headers_prefix X-Rate-Limit"},
	} {
		t.Run(row.name, func(t *testing.T) {
			theirs := get(t, one, express(t, row.options)+"/")
			url := site(t, ":8080 {\ndistributed_ratelimit 30 1m {\n"+row.words+"\n}\nrespond hello\n}")
			ours := get(t, one, url+"/")
			granted(t, 29, 429, one, url+"/")
			refused := get(t, one, url+"/")
			for i, found := range parsed(t, theirs, ours, refused) {
				remaining := []float64{29, 29, 0}[i]
				// The two clocks differ by what this machine makes the test wait.
				if found == nil || found.Limit != 30 || found.Remaining != remaining || found.Reset < 30 || found.Reset > 63 {
					t.Errorf("answer %d is read as %+v, want 30, %v and a minute", i, found, remaining)
				}
			}
		})
	}
}

// The two configurations of the page: a hundred for /api/, but for its /health.
func TestFromExpressPage(t *testing.T) {
	script := "import express from 'express'\nimport { rateLimit } from 'express-rate-limit'\nconst app = express()\n" +
		block(t, "express-rate-limit", "js") +
		"\napp.use((request, response) => response.send('hello'))\napp.listen(Number(process.env.PORT), '127.0.0.1')\n"
	if err := os.WriteFile(filepath.Join(installed(t), "page.mjs"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
	run := map[string]func(t *testing.T) string{
		"there": func(t *testing.T) string { return node(t, "page.mjs") },
		"here":  func(t *testing.T) string { return site(t, greeting(block(t, "express-rate-limit", "caddyfile"))) },
	}
	for name, start := range run {
		t.Run(name, func(t *testing.T) {
			url, began := start(t), time.Now()
			a := get(t, one, url+"/api/x")
			for name, value := range map[string]string{"RateLimit-Policy": "100;w=60", "X-RateLimit-Remaining": "99"} {
				if got := a.header.Get(name); got != value {
					t.Errorf("%s is %q, want %q", name, got, value)
				}
			}
			if got := a.header.Get("RateLimit"); !strings.HasPrefix(got, "limit=100, remaining=99, reset=") {
				t.Errorf("RateLimit is %q", got)
			}
			wantIn(t, "/api/x", 1+granted(t, 105, 429, one, url+"/api/x"), 100, began, time.Minute)
			want(t, "/api/health", granted(t, 3, 429, one, url+"/api/health"), 3)
			want(t, "/elsewhere", granted(t, 3, 429, one, url+"/elsewhere"), 3)
		})
	}
}
