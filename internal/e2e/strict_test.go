package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// strictConfig is a site with one limit on a Redis. The long budget keeps a
// busy machine from looking like an outage, which would be limited locally.
func strictConfig(redis *redistest.Server, limit int, window time.Duration) string {
	return fmt.Sprintf(`{
	admin off
	log {
		level ERROR
	}
	distributed_ratelimit {
		store redis redis://%s {
			pool_size %%d
			dial_timeout 20s
			timeout 20s
		}
		budget 30s
	}
}
:80 {
	distributed_ratelimit %d %v
	respond ok
}
`, redis.Addr, limit, window)
}

// alignTo sleeps until d before the next multiple of window by the wall
// clock, where a calendar window ends.
func alignTo(window, d time.Duration) {
	now := time.Now()
	at := now.Truncate(window).Add(window - d)
	if at.Before(now) {
		at = at.Add(window)
	}
	time.Sleep(at.Sub(now))
}

// In no interval of one window do several instances together grant more than
// the limit, whatever the timing: not where a calendar window ends, at which
// fixed windows grant twice the limit, and not in the middle of one, where
// two weighted buckets do.
func TestEveryWindow(t *testing.T) {
	redis := redistest.Start(t)
	const window = 2 * time.Second

	tests := []struct {
		name  string
		limit int
		// attack sends requests for about four windows.
		attack func(send func(requests int))
	}{
		{"the end of calendar windows", 40, func(send func(int)) {
			for range 4 {
				alignTo(window, 60*time.Millisecond)
				send(60)
				alignTo(window, 0)
				send(60)
			}
		}},
		{"the middle of calendar windows", 40, func(send func(int)) {
			for range 8 {
				alignTo(window/2, 10*time.Millisecond)
				send(50)
			}
		}},
		{"a slow start, then a burst", 200, func(send func(int)) {
			for range 2 {
				alignTo(window, 0)
				for range 20 {
					send(4)
					time.Sleep(window / 40)
				}
				alignTo(window, 20*time.Millisecond)
				send(250)
				time.Sleep(window / 4)
				send(250)
			}
		}},
		{"random bursts", 100, func(send func(int)) {
			rng := rand.New(rand.NewPCG(1, 2))
			for began := time.Now(); time.Since(began) < 4*window; {
				send(1 + rng.IntN(40))
				time.Sleep(time.Duration(rng.Int64N(int64(window / 8))))
			}
		}},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			instances := newInstances(t, 4, strictConfig(redis, test.limit, window))
			client := fmt.Sprintf("192.0.2.%d", i+1)
			var rec record
			test.attack(func(requests int) {
				crowd(requests, func(i int) { rec.add(instances[i%len(instances)].get(client)) })
			})
			rec.strict(t, int64(test.limit), window)
			if len(rec.spans) < 2*test.limit {
				t.Errorf("only %d of %d requests granted: the attack did not reach the limit in several windows", len(rec.spans), len(rec.spans)+rec.refused)
			}
		})
	}
}

// Under saturation the limit is used: the requests that are granted come at
// least at 97 % of the rate at which an exact log would have granted them out
// of the same requests.
func TestSaturation(t *testing.T) {
	redis := redistest.Start(t)
	const (
		window  = 2 * time.Second
		windows = 4
	)
	for i, limit := range []int{1, 30, 64, 65, 300} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			instances := newInstances(t, 3, strictConfig(redis, limit, window))
			client := fmt.Sprintf("192.0.2.%d", i+1)
			var rec record
			began := time.Now()
			crowd(6, func(i int) {
				for time.Since(began) < windows*window+window/4 {
					rec.add(instances[i%len(instances)].get(client))
					time.Sleep(2 * time.Millisecond)
				}
			})
			rec.strict(t, int64(limit), window)
			if got := rec.utilisation(limit, window); got < 0.97 || len(rec.spans) <= windows*limit {
				t.Errorf("%d granted, at %.1f %% of the rate of an exact log", len(rec.spans), 100*got)
			}
		})
	}
}

// Retry-After is true: a client that waits so long is served, and one that
// comes a second earlier is not.
func TestRetryAfter(t *testing.T) {
	redis := redistest.Start(t)
	const window = 4 * time.Second
	instances := newInstances(t, 2, strictConfig(redis, 3, window))
	const client = "192.0.2.1"

	for range 2 {
		instances[0].get(client)
		time.Sleep(window / 8)
	}
	instances[0].get(client)
	refused := instances[1].get(client)
	if refused.granted() || refused.retryAfter < time.Second || refused.retryAfter > window {
		t.Fatalf("a fourth request: status %d, Retry-After %v", refused.status, refused.retryAfter)
	}

	early := refused.span.From.Add(refused.retryAfter - time.Second - 100*time.Millisecond)
	time.Sleep(time.Until(early))
	again := instances[0].get(client)
	if again.granted() && again.span.To.Before(refused.span.From.Add(refused.retryAfter-time.Second)) {
		t.Errorf("granted more than a second before Retry-After %v had passed", refused.retryAfter)
	}
	time.Sleep(time.Until(refused.span.To.Add(refused.retryAfter)))
	if late := instances[1].get(client); !late.granted() {
		t.Errorf("refused after Retry-After %v, again with %v", refused.retryAfter, late.retryAfter)
	}
}

// A client that is refused by its own limit does not eat at a shared one in the
// same handler: six
// clients of two each under a total of ten, one after the other, each asking
// for far more.
func TestSharedTotal(t *testing.T) {
	redis := redistest.Start(t)
	config := func(site string) string {
		return fmt.Sprintf(`{
	admin off
	log {
		level ERROR
	}
	distributed_ratelimit {
		store redis redis://%s {
			pool_size %%d
			dial_timeout 20s
		}
		budget 30s
	}
}
:80 {
	%s
	respond ok
}
`, redis.Addr, site)
	}
	sites := map[string]struct {
		site string
		want []int
	}{
		// A client over its own limit cannot eat at the total.
		"one handler": {want: []int{2, 2, 2, 2, 2, 0}, site: `distributed_ratelimit {
		zone NAME-total {
			key everybody
			events 10
			window 1h
		}
		zone NAME-each {
			events 2
			window 1h
		}
	}`},
		// Handlers decide one after another: what the first has charged stays.
		"two handlers": {want: []int{2, 0, 0, 0, 0, 0}, site: `route {
		distributed_ratelimit {
			zone NAME-total {
				key everybody
				events 10
				window 1h
			}
		}
		distributed_ratelimit {
			zone NAME-each {
				events 2
				window 1h
			}
		}
	}`},
	}
	for name, s := range sites {
		t.Run(name, func(t *testing.T) {
			instances := newInstances(t, 3, config(replaceName(s.site, name)))
			var got []int
			for client := range 6 {
				granted := 0
				for try := range 20 {
					if instances[try%len(instances)].get(fmt.Sprintf("192.0.2.%d", client+1)).granted() {
						granted++
					}
				}
				got = append(got, granted)
			}
			if fmt.Sprint(got) != fmt.Sprint(s.want) {
				t.Errorf("granted %v, want %v", got, s.want)
			}
		})
	}
}
