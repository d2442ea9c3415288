package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// requests sums the requests that a process decided in some way, out of its
// metrics.
func requests(metrics, outcome, source string) (sum float64) {
	line := regexp.MustCompile(`requests_total\{outcome="` + outcome + `",source="` + source + `",zone="[^"]*"\} (\S+)`)
	for _, m := range line.FindAllStringSubmatch(metrics, -1) {
		n, _ := strconv.ParseFloat(m[1], 64)
		sum += n
	}
	return sum
}

// With leases no interval holds more than the limit either: not when a
// process is killed with units in hand, and not when one is paused with units
// in hand and wakes after their time.
func TestLeasesOfProcesses(t *testing.T) {
	redis := redistest.Start(t)
	const (
		limit  = 1280 // leases of up to 20 units
		window = 4 * time.Second
	)
	caddys := make([]*process, 4)
	for i := range caddys {
		caddys[i] = startProcess(t, site(limit, window.String(), "30s"), redisEnv(redis))
	}

	var rec record
	var down [4]atomic.Bool
	began := time.Now()
	crowd(10, func(i int) {
		switch i {
		case 8: // killed and started again
			time.Sleep(window + window/4)
			down[1].Store(true)
			caddys[1].kill()
			caddys[1].start(t)
			down[1].Store(false)
		case 9: // paused for far longer than a lease lasts
			for range 3 {
				time.Sleep(window / 2)
				_ = caddys[2].cmd.Process.Signal(redistest.SIGSTOP)
				time.Sleep(window / 4)
				_ = caddys[2].cmd.Process.Signal(redistest.SIGCONT)
			}
		default:
			for n := 0; time.Since(began) < 3*window; n++ {
				caddy := caddys[i%4]
				if down[i%4].Load() {
					time.Sleep(window / 100)
					continue
				}
				r, err := caddy.try("/")
				if err != nil && i%4 == 1 {
					continue // while it is being killed
				}
				if err != nil {
					t.Errorf("a request: %v", err)
					return
				}
				rec.add(r)
			}
		}
	})
	rec.strict(t, limit, window)
	leased, asked := 0.0, 0.0
	for _, caddy := range caddys {
		m := caddy.metrics(t)
		leased += requests(m, "granted", "lease")
		asked += requests(m, "granted", "store")
	}
	t.Logf("%d granted and %d refused in %v; by what is left of the metrics %v out of leases and %v by Redis",
		len(rec.spans), rec.refused, time.Since(began), leased, asked)
	if leased == 0 {
		t.Error("no request was granted out of a lease")
	}
	if len(rec.spans) < limit {
		t.Errorf("only %d granted: the limit was never reached", len(rec.spans))
	}
}

// Under leases most decisions stay in the process; with lease off none does.
func TestLeaseOption(t *testing.T) {
	redis := redistest.Start(t)
	config := func(lease string) string {
		return fmt.Sprintf(`{
	admin ADMIN
	distributed_ratelimit {
		store redis {env.REDIS_URL} {
			dial_timeout 20s
			key_prefix lease-%[1]s
			lease %[1]s
		}
		budget 30s
	}
}
ADDR {
	distributed_ratelimit 1000000 1m
	respond {http.distributed_ratelimit.source}
}
`, lease)
	}
	const n = 2000
	byStore := make(map[string]*atomic.Int64)
	for _, lease := range []string{"on", "off"} {
		caddy := startProcess(t, config(lease), redisEnv(redis))
		byStore[lease] = new(atomic.Int64)
		crowd(4, func(int) {
			for range n / 4 {
				if r := caddy.get(t, "/"); r.status != http.StatusOK {
					t.Errorf("status %d", r.status)
				} else if r.body == "store" {
					byStore[lease].Add(1)
				}
			}
		})
		caddy.kill()
	}
	if on, off := byStore["on"].Load(), byStore["off"].Load(); off != n || on > n/4 {
		t.Errorf("of %d requests Redis decided %d with leases, %d without", n, on, off)
	}
}
