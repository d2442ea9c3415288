package migration

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// upstash is what Upstash offers: a Redis to which commands are sent as JSON, over
// HTTP. It returns the environment that finds it.
func upstash(t *testing.T) []string {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: redistest.Start(t).Addr})
	t.Cleanup(func() { client.Close() })
	execute := func(r *http.Request, command []any) map[string]any {
		result, err := client.Do(r.Context(), command...).Result()
		if err != nil && err != redis.Nil {
			return map[string]any{"error": err.Error()}
		}
		return map[string]any{"result": result}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		decoder := json.NewDecoder(r.Body)
		decoder.UseNumber()
		var answer any
		if r.URL.Path == "/pipeline" {
			var commands [][]any
			if err := decoder.Decode(&commands); err != nil {
				t.Errorf("a pipeline that is none: %v", err)
			}
			var answers []any
			for _, command := range commands {
				answers = append(answers, execute(r, arguments(command)))
			}
			answer = answers
		} else {
			var command []any
			if err := decoder.Decode(&command); err != nil {
				t.Errorf("a command that is none: %v", err)
			}
			one := execute(r, arguments(command))
			if one["error"] != nil {
				w.WriteHeader(http.StatusBadRequest)
			}
			answer = one
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	return []string{"UPSTASH_REDIS_REST_URL=" + server.URL, "UPSTASH_REDIS_REST_TOKEN=token", "UPSTASH_DISABLE_TELEMETRY=1"}
}

// arguments makes numbers of a command text, as on the wire. A flag of scripts that
// Upstash alone knows is left out.
func arguments(command []any) []any {
	for i, argument := range command {
		switch argument := argument.(type) {
		case json.Number:
			command[i] = argument.String()
		case string:
			if strings.HasPrefix(argument, "#!lua") {
				command[i] = strings.Replace(argument, "allow-key-locking", "no-cluster", 1)
			}
		}
	}
	return command
}

// The two configurations of the page: thirty in a minute for each user.
func TestFromUpstashPage(t *testing.T) {
	script := "import express from 'express'\nimport { Ratelimit } from '@upstash/ratelimit'\nimport { Redis } from '@upstash/redis'\nconst app = express()\n" +
		block(t, "@upstash/ratelimit", "js") +
		"\napp.use((request, response) => response.send('hello'))\napp.listen(Number(process.env.PORT), '127.0.0.1')\n"
	if err := os.WriteFile(filepath.Join(installed(t), "upstash-page.mjs"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	run := map[string]func(t *testing.T) string{
		"there": func(t *testing.T) string { return node(t, "upstash-page.mjs", upstash(t)...) },
		"here": func(t *testing.T) string {
			t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
			return site(t, greeting(block(t, "@upstash/ratelimit", "caddyfile")))
		},
	}
	for name, start := range run {
		t.Run(name, func(t *testing.T) {
			url := start(t)
			began := untilAWindow(time.Minute, 20*time.Second)
			wantIn(t, "one user", granted(t, 33, 429, one, url+"/api/chat", with("X-User", "carol")), 30, began, 20*time.Second)
			want(t, "another", granted(t, 3, 429, one, url+"/api/chat", with("X-User", "dave")), 3)
			want(t, "elsewhere", granted(t, 3, 429, one, url+"/", with("X-User", "carol")), 3)
		})
	}
}

// untilAWindow waits until a window of the clock has some time left: Upstash's windows
// begin at multiples of their length.
func untilAWindow(length, left time.Duration) time.Time {
	for {
		now := time.Now()
		if now.Truncate(length).Add(length).Sub(now) > left {
			return now
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestUpstashRows(t *testing.T) {
	installed(t)
	limiter := func(t *testing.T, name string) string {
		t.Helper()
		url := node(t, "upstash.mjs", append(upstash(t), "LIMITER="+name)...)
		get(t, one, url+"/clock?at=59000")
		return url
	}
	rows(t, "@upstash/ratelimit", map[string]func(t *testing.T){
		"slidingWindow(30, '60 s')": func(t *testing.T) {
			// 30 at the end of one window, and as good as all again 59 s later.
			url := limiter(t, "sliding")
			want(t, "at 59 s", granted(t, 33, 429, one, url+"/"), 30)
			get(t, one, url+"/clock?at=118000")
			if got := granted(t, 33, 429, one, url+"/"); got < 25 {
				t.Errorf("59 s later %d granted, want nearly all", got)
			}
		},
		"fixedWindow(30, '60 s')": func(t *testing.T) {
			url := limiter(t, "fixed")
			want(t, "at 59 s", granted(t, 33, 429, one, url+"/"), 30)
			get(t, one, url+"/clock?at=61000")
			want(t, "two seconds later", granted(t, 33, 429, one, url+"/"), 30)
		},
		"tokenBucket(5, '10 s', 20)": func(t *testing.T) {
			want(t, "at once", granted(t, 23, 429, one, limiter(t, "bucket")+"/"), 20)
		},
		"limit(id, { rate })": func(t *testing.T) {
			want(t, "of 10 units each", granted(t, 5, 429, one, limiter(t, "sliding")+"/?rate=10"), 3)
		},
		"reset": func(t *testing.T) {
			var said struct{ Reset float64 }
			a := get(t, one, limiter(t, "sliding")+"/")
			if err := json.Unmarshal([]byte(a.body), &said); err != nil || said.Reset < 900 || said.Reset > 60000 {
				t.Errorf("the reset is %s, want milliseconds", a.body)
			}
		},
		"timeout": func(t *testing.T) {
			end := make(chan struct{})
			hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
			t.Cleanup(hangs.Close)
			t.Cleanup(func() { close(end) })
			url := node(t, "upstash.mjs", "UPSTASH_REDIS_REST_URL="+hangs.URL, "UPSTASH_REDIS_REST_TOKEN=x", "LIMITER=sliding", "TIMEOUT=1000")
			if a := get(t, one, url+"/"); a.status != 200 || !strings.Contains(a.body, `"timeout"`) {
				t.Errorf("status %d: %s, want it to pass for the timeout", a.status, a.body)
			}
		},
	})
}
