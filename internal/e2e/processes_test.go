package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// site is a Caddyfile for a process: one limit, one Redis, a budget.
func site(limit int, window, budget string) string {
	return fmt.Sprintf(`{
	admin ADMIN
	distributed_ratelimit {
		store redis {env.REDIS_URL} {
			dial_timeout 20s
		}
		budget %s
	}
}
ADDR {
	distributed_ratelimit %d %s
	respond ok
}
`, budget, limit, window)
}

// logKeys are the keys in Redis that hold counts.
func logKeys(t *testing.T, redis *redistest.Server) []string {
	t.Helper()
	return slices.DeleteFunc(redis.Keys(t), func(key string) bool { return strings.Contains(key, ":instances") })
}

func redisEnv(s *redistest.Server) string { return "REDIS_URL=redis://" + s.Addr }

// Three Caddys on one Redis grant 30 of 180 requests that come at once; one
// of them is killed and comes back, and its clients are still refused.
func TestThreeCaddys(t *testing.T) {
	redis := redistest.Start(t)
	var caddys []*process
	for range 3 {
		caddys = append(caddys, startProcess(t, site(30, "1m", "30s"), redisEnv(redis)))
	}
	var rec record
	crowd(180, func(i int) { rec.add(caddys[i%3].get(t, "/")) })
	if len(rec.spans) != 30 || rec.refused != 150 {
		t.Errorf("%d granted and %d refused of 180, want 30 and 150; others: %v", len(rec.spans), rec.refused, rec.other)
	}

	caddys[1].kill()
	caddys[1].start(t)
	if r := caddys[1].get(t, "/"); time.Since(rec.spans[0].From) < 55*time.Second && r.status != http.StatusTooManyRequests {
		t.Errorf("after a restart: status %d, want 429", r.status)
	}
}

// The same over several windows: real processes, one of them killed and
// started again on the way, and every interval checked.
func TestEveryWindowOfProcesses(t *testing.T) {
	redis := redistest.Start(t)
	const (
		limit  = 30
		window = 3 * time.Second
	)
	var caddys []*process
	for range 3 {
		caddys = append(caddys, startProcess(t, site(limit, "3s", "30s"), redisEnv(redis)))
	}
	var rec record
	began := time.Now()
	crowd(7, func(i int) {
		if i == 6 {
			time.Sleep(window + window/2)
			caddys[2].kill()
			caddys[2].start(t)
			return
		}
		for time.Since(began) < 4*window+window/4 {
			// The third one is out of service for a while: leave it to
			// those that are ready for it.
			if i%3 == 2 && time.Since(began) > window {
				time.Sleep(window / 4)
				continue
			}
			rec.add(caddys[i%3].get(t, "/"))
			time.Sleep(5 * time.Millisecond)
		}
	})
	rec.add(caddys[2].get(t, "/"))
	rec.strict(t, limit, window)
	if got := rec.utilisation(limit, window); got < 0.97 || len(rec.spans) <= 4*limit {
		t.Errorf("%d granted, at %.1f %% of the rate of an exact log", len(rec.spans), 100*got)
	}
}

// With Redis stopped no request fails, and none waits longer than the budget
// allows for. When it runs again the limit is shared again.
func TestRedisStops(t *testing.T) {
	redis := redistest.Start(t)
	const budget = 500 * time.Millisecond
	caddy := startProcess(t, site(30, "1m", budget.String()), redisEnv(redis))
	if r := caddy.get(t, "/"); r.status != http.StatusOK {
		t.Fatalf("before: status %d", r.status)
	}

	redis.Stop()
	var rec record
	var longest time.Duration
	for stopped := time.Now(); time.Since(stopped) < 6*budget; {
		crowd(30, func(int) {
			r := caddy.get(t, "/")
			rec.add(r)
			rec.mu.Lock()
			longest = max(longest, r.span.To.Sub(r.span.From))
			rec.mu.Unlock()
		})
	}
	redis.Cont()
	if len(rec.other) > 0 {
		t.Errorf("statuses other than 200 and 429 while Redis was stopped: %v", rec.other)
	}
	if len(rec.spans) > 30 {
		t.Errorf("%d granted by one instance on its own, limit 30", len(rec.spans))
	}
	// Twice the budget: a busy machine schedules late, but nothing waits for
	// a second budget or for a connection's time-out.
	if longest > 2*budget {
		t.Errorf("the slowest request took %v with a budget of %v", longest, budget)
	}
	if log := caddy.output.String(); strings.Count(log, "the store gives no answer") != 1 {
		t.Errorf("want one line in the log that the store is away:\n%s", log)
	}

	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(caddy.output.String(), "the store is back"); {
		if time.Now().After(deadline) {
			t.Fatalf("the store is not found to be back:\n%s", caddy.output)
		}
		caddy.get(t, "/")
		time.Sleep(50 * time.Millisecond)
	}
	up := fmt.Sprintf("store_up{server=%q,store=%q} 1", redis.Addr, "redis "+redis.Addr+" db 0")
	if m := caddy.metrics(t); !strings.Contains(m, up) {
		t.Errorf("metrics do not tell that the store is up:\n%s", m)
	}
}

// A configuration starts, validates and reloads while Redis is down, and uses
// it as soon as it is there.
func TestRedisDownAtStart(t *testing.T) {
	redis := redistest.Start(t)
	redis.Kill()
	caddy := startProcess(t, site(5, "1h", "1s"), redisEnv(redis))
	if out, err := caddy.command(t, "validate", "--adapter", "caddyfile", "--config", caddy.config).CombinedOutput(); err != nil {
		t.Errorf("validating while Redis is down: %v\n%s", err, out)
	}
	var rec record
	crowd(10, func(int) { rec.add(caddy.get(t, "/")) })
	if len(rec.spans) != 5 || len(rec.other) > 0 {
		t.Errorf("while Redis is down: %d granted, others %v; want 5 granted locally", len(rec.spans), rec.other)
	}
	if err := caddy.reload(t); err != nil {
		t.Errorf("reloading while Redis is down: %v", err)
	}
	if r := caddy.get(t, "/"); r.status != http.StatusTooManyRequests {
		t.Errorf("after a reload: status %d; what was counted locally is forgotten", r.status)
	}

	redis.Restart(t)
	deadline := time.Now().Add(30 * time.Second)
	for !strings.Contains(caddy.output.String(), "the store is back") {
		if time.Now().After(deadline) {
			t.Fatalf("the store is not found:\n%s", caddy.output)
		}
		caddy.get(t, "/")
		time.Sleep(50 * time.Millisecond)
	}
	if keys := logKeys(t, redis); len(keys) != 1 {
		t.Errorf("keys in Redis: %q, want one", keys)
	}
}

// Counts and connections survive a reload, and so does a request that is on
// its way through the handler.
func TestReloadOfAProcess(t *testing.T) {
	redis := redistest.Start(t)
	caddy := startProcess(t, site(100000, "1h", "30s"), redisEnv(redis))
	caddy.get(t, "/")
	before := redis.Do(t, "client", "list").(string)

	stop := make(chan struct{})
	var rec record
	crowd(5, func(i int) {
		if i == 0 {
			for range 5 {
				// A comment makes the configuration differ.
				caddy.write(t, site(100000, "1h", "30s")+fmt.Sprintf("# %d\n", time.Now().UnixNano()))
				if err := caddy.reload(t); err != nil {
					t.Errorf("reloading: %v", err)
				}
			}
			close(stop)
			return
		}
		for {
			select {
			case <-stop:
				return
			default:
				rec.add(caddy.get(t, "/"))
			}
		}
	})
	if len(rec.other) > 0 || rec.refused > 0 {
		t.Errorf("over reloads: %d granted, %d refused, others %v", len(rec.spans), rec.refused, rec.other)
	}
	counted := len(rec.spans) + 1
	r := caddy.get(t, "/")
	if got := strings.TrimSpace(r.body); got != "ok" {
		t.Errorf("body %q", got)
	}
	m := caddy.metrics(t)
	if got, want := requests(m, "granted", "store")+requests(m, "granted", "lease"), float64(counted+1); got != want {
		t.Errorf("metrics after reloads tell of %v granted requests, want %v:\n%s", got, want, m)
	}
	first, _, _ := strings.Cut(before, " ") // id=N
	if after := redis.Do(t, "client", "list").(string); !strings.Contains(after, first+" ") {
		t.Errorf("the connection %s is gone after reloads:\n%s", first, after)
	}
}

// A key in Redis stays small however many requests it counts.
func TestKeySize(t *testing.T) {
	redis := redistest.Start(t)
	// At most 400 requests in a window, so that most of the limit is used: otherwise
	// leases are long, and the entries few.
	caddy := startProcess(t, site(500, "2s", "30s"), redisEnv(redis))
	began := time.Now()
	crowd(4, func(int) {
		for time.Since(began) < 5*time.Second {
			caddy.get(t, "/")
			time.Sleep(20 * time.Millisecond)
		}
	})
	keys := logKeys(t, redis)
	if len(keys) != 1 {
		t.Fatalf("keys %q, want one", keys)
	}
	size := redis.Do(t, "memory", "usage", keys[0]).(int64)
	length := redis.Do(t, "strlen", keys[0]).(int64)
	if size >= 2048 {
		t.Errorf("the key takes %d bytes", size)
	}
	if entries := (length - 13) / 18; entries < 32 {
		t.Errorf("the log has %d entries: the load was not steady enough for the test to mean anything", entries)
	}
	if ttl := redis.Do(t, "pttl", keys[0]).(int64); ttl <= 0 {
		t.Errorf("the key's time to live is %d ms", ttl)
	}
}

// Whatever a client writes into headers, its key stays the same, and it never
// passes for a private address.
func TestForgedHeaders(t *testing.T) {
	redis := redistest.Start(t)
	for _, servers := range []string{
		"", // nobody is trusted
		"servers {\n\t\ttrusted_proxies static 127.0.0.1/32\n\t}",
		"servers {\n\t\ttrusted_proxies static 127.0.0.1/32\n\t\ttrusted_proxies_strict\n\t}",
	} {
		redis.Do(t, "flushall")
		caddy := startProcess(t, strings.Replace(`{
	admin ADMIN
	SERVERS
	distributed_ratelimit {
		store redis {env.REDIS_URL} {
			dial_timeout 20s
		}
		budget 30s
	}
}
ADDR {
	distributed_ratelimit 5 1h {
		exempt {
			client_ip 10.0.0.0/8 192.168.0.0/16
		}
	}
	respond {http.distributed_ratelimit.client_ip}
}
`, "SERVERS", servers, 1), redisEnv(redis))

		// What the attacker writes stands left of what the proxy appends.
		appended := ""
		want := "127.0.0.1"
		if servers != "" {
			appended = ", 203.0.113.7"
			want = "203.0.113.7"
		}
		granted := 0
		for i, forged := range []string{
			"10.1.2.3", "192.168.0.1", "198.51.100.9", "10.0.0.1, 10.0.0.2", "::ffff:10.0.0.1", " [::1]:80", "garbage", "10.0.0.1,garbage",
			"10.0.0.1:99999", "unknown", `"10.0.0.1`, "10.0.0.1, 127.0.0.1",
		} {
			r := caddy.get(t, "/", "X-Forwarded-For", forged+appended, "X-Real-IP", forged, "Forwarded", "for="+forged, "Client-IP", forged)
			if r.status == http.StatusOK {
				granted++
				if r.body != want {
					t.Errorf("%q: forged %q: the client is %q, want %q", servers, forged, r.body, want)
				}
			} else if i < 5 {
				t.Errorf("%q: request %d: status %d", servers, i, r.status)
			}
		}
		if granted != 5 {
			t.Errorf("%q: %d granted with forged headers, want 5", servers, granted)
		}
		if keys := logKeys(t, redis); len(keys) != 1 {
			t.Errorf("%q: keys %q, want one", servers, keys)
		}
		caddy.kill()
	}
}

// The password is in no log and in no adapted configuration.
func TestPasswordStaysSecret(t *testing.T) {
	const password = "pa55-w0rd-of-redis"
	redis := redistest.Start(t, "--requirepass", password)
	url := "REDIS_URL=redis://:" + password + "@" + redis.Addr
	caddy := startProcess(t, strings.Replace(site(3, "1h", "30s"), "{\n\tadmin", "{\n\tdebug\n\tadmin", 1), url)
	var rec record
	crowd(5, func(int) { rec.add(caddy.get(t, "/")) })
	if len(rec.spans) != 3 {
		t.Errorf("%d granted, want 3; others %v", len(rec.spans), rec.other)
	}
	redis.Kill()
	caddy.get(t, "/")
	adapted, err := caddy.command(t, "adapt", "--adapter", "caddyfile", "--config", caddy.config).CombinedOutput()
	if err != nil {
		t.Errorf("adapt: %v\n%s", err, adapted)
	}
	for where, text := range map[string]string{"log": caddy.output.String(), "adapted configuration": string(adapted), "metrics": caddy.metrics(t)} {
		if strings.Contains(text, password) {
			t.Errorf("the password stands in the %s:\n%s", where, text)
		}
	}

	wrong := startProcess(t, site(3, "1h", "1s"), "REDIS_URL=redis://:not-"+password+"@"+redis.Addr)
	redis.Restart(t)
	if r := wrong.get(t, "/"); r.status != http.StatusOK {
		t.Errorf("with a wrong password: status %d, want 200 from the local limit", r.status)
	}
	if strings.Contains(wrong.output.String(), password) {
		t.Errorf("the wrong password stands in the log:\n%s", wrong.output)
	}
	unset := wrong.command(t, "validate", "--adapter", "caddyfile", "--config", wrong.config)
	unset.Env = append(unset.Env, "REDIS_URL=")
	if out, err := unset.CombinedOutput(); err == nil || !strings.Contains(string(out), "env.REDIS_URL") {
		t.Errorf("an empty REDIS_URL: %v, and the output does not name it:\n%s", err, out)
	}
}
