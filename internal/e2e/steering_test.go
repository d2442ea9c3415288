package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// steer makes a change with the admin API.
func (p *process) steer(t *testing.T, method, path string) {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+p.admin+"/distributed_ratelimit/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: status %d, %s", method, path, resp.StatusCode, answer)
	}
}

// What an operator does on one of three Caddys holds on the other two, about a second
// later, though they have leases of the key in hand. It is logged how much later.
func TestSteeringHoldsElsewhere(t *testing.T) {
	redis := redistest.Start(t)
	const config = `{
	admin ADMIN
	distributed_ratelimit {
		store redis {env.REDIS_URL} {
			dial_timeout 20s
		}
		budget 30s
	}
}
ADDR {
	distributed_ratelimit {
		ratelimit_headers always
		zone busy {
			key {header.Client}
			events 6400
			window 1m
		}
		zone scarce {
			match header Zone scarce
			key {header.Client}
			events 3
			window 1h
			block_for 2h
		}
	}
	respond ok
}
`
	var caddys []*process
	for range 3 {
		caddys = append(caddys, startProcess(t, config, redisEnv(redis)))
	}
	get := func(c *process, zone string) reply { return c.get(t, "/", "Client", "x", "Zone", zone) }
	policy := func(r reply, want string) bool {
		return strings.Contains(r.header.Get("RateLimit-Policy"), want)
	}
	for range 300 { // until there are leases
		for _, c := range caddys {
			if r := get(c, ""); !r.granted() {
				t.Fatalf("status %d before anything is done", r.status)
			}
		}
	}

	// holds waits until something is so on the others, and wants it to stay so.
	holds := func(what, zone string, is func(reply) bool) {
		t.Helper()
		began := time.Now()
		for i, c := range caddys[1:] {
			for !is(get(c, zone)) {
				if time.Since(began) > 30*time.Second {
					t.Fatalf("%s: not on the others within 30 s", what)
				}
			}
			t.Logf("%s: on instance %d after %v", what, i+2, time.Since(began).Round(time.Millisecond))
		}
		for i := range 50 {
			if r := get(caddys[i%3], zone); !is(r) {
				t.Fatalf("%s: status %d, %q on instance %d after all that", what, r.status, r.header.Get("RateLimit-Policy"), i%3+1)
			}
		}
	}
	banned := func(r reply) bool {
		return r.status == http.StatusTooManyRequests && r.retryAfter > 8*time.Minute && r.retryAfter <= 10*time.Minute
	}

	caddys[0].steer(t, "PUT", "zones/busy/bans?key=x&for=10m")
	if r := get(caddys[0], ""); !banned(r) {
		t.Errorf("status %d, Retry-After %v where the ban was set", r.status, r.retryAfter)
	}
	holds("ban", "", banned)
	if keys := fmt.Sprint(redis.Keys(t)); !strings.Contains(keys, "drl:board:1") {
		t.Errorf("no board among %s", keys)
	}

	caddys[0].steer(t, "DELETE", "zones/busy/bans?key=x")
	holds("unban", "", reply.granted)

	for range 5 {
		get(caddys[1], "scarce")
		get(caddys[2], "scarce")
	}
	if r := get(caddys[1], "scarce"); r.retryAfter < time.Hour {
		t.Errorf("status %d, Retry-After %v; want a ban by its rule", r.status, r.retryAfter)
	}
	caddys[0].steer(t, "DELETE", "zones/scarce/keys?key=x")
	began, granted := time.Now(), 0
	for granted < 3 && time.Since(began) < 30*time.Second {
		if get(caddys[1+granted%2], "scarce").granted() {
			granted++
			t.Logf("reset: %d granted on the others after %v", granted, time.Since(began).Round(time.Millisecond))
		}
	}
	if r := get(caddys[0], "scarce"); granted != 3 || r.granted() {
		t.Errorf("%d granted after a reset, and then %d; want 3, and no more", granted, r.status)
	}

	caddys[0].steer(t, "PUT", "zones/busy/override?events=100000&for=10m")
	holds("override", "", func(r reply) bool { return r.granted() && policy(r, `"busy";q=100000;`) })
	caddys[0].steer(t, "PUT", "zones/busy/override?events=10&for=10m")
	holds("lowered override", "", func(r reply) bool { return !r.granted() && policy(r, `"busy";q=10;`) })
	caddys[0].steer(t, "DELETE", "zones/busy/override")
	holds("end of an override", "", func(r reply) bool { return policy(r, `"busy";q=6400;`) })
}
