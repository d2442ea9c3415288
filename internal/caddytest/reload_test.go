package caddytest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// validate provisions a Caddyfile next to the one that runs, as an API does
// that checks a configuration before it is loaded.
func (e *edge) validate(caddyfile string) error {
	e.t.Helper()
	names := e.names
	config := e.config(caddyfile)
	e.names = names
	var cfg caddy.Config
	if err := json.Unmarshal(config, &cfg); err != nil {
		e.t.Fatal(err)
	}
	return caddy.Validate(&cfg)
}

func limited(events int, global string) string {
	return fmt.Sprintf(`
{
	distributed_ratelimit {
		store memory {
			%s
		}
	}
}
http://a.test {
	distributed_ratelimit %d 1h z
	respond "{http.distributed_ratelimit.remaining}"
}`, global, events)
}

// A reload forgets no count, whatever it changes about the memory.
func TestCountsSurviveReloads(t *testing.T) {
	e := start(t, limited(10, ""))
	e.body("9", alice, "http://a.test/")
	for i, next := range []string{limited(10, ""), limited(10, "max_keys 500"), limited(10, "max_keys 5"), limited(10, "")} {
		e.reload(next)
		e.body(fmt.Sprint(8-i), alice, "http://a.test/")
	}
	// Without the global option it is the same memory, and a lowered limit
	// counts what was granted.
	e.reload("http://a.test {\n\tdistributed_ratelimit 3 1h z\n}")
	e.refused(alice, "http://a.test/")
	e.reload(limited(6, ""))
	e.body("0", alice, "http://a.test/")
}

// The bound of the memory is that of the configuration that runs.
func TestMaxKeysChangeWithTheConfiguration(t *testing.T) {
	site := func(zone, global string) string {
		return strings.Replace(limited(1, global), "1h z", "1h "+zone, 1)
	}
	network := 0
	granted := func(e *edge) int { // of 300 clients that are new
		network++
		n := 0
		for i := range 300 {
			if e.get(fmt.Sprintf("203.%d.%d.%d", network, i/250, i%250+1), "http://a.test/").StatusCode == http.StatusOK {
				n++
			}
		}
		return n
	}
	e := start(t, site("x", "max_keys 1"))
	if n := granted(e); n > 17 {
		t.Errorf("300 clients with room for one key: got %d granted, want at most 17", n)
	}
	e.reload(site("y", ""))
	if n := granted(e); n != 300 {
		t.Errorf("300 clients after a reload that makes room: got %d granted, want all", n)
	}
	// A configuration that is only validated, or fails, changes nothing.
	if err := e.validate(site("v", "max_keys 1")); err != nil {
		t.Fatalf("validating: %v", err)
	}
	if err := e.tryReload(site("v", "max_keys 1") + "\nhttp://b.test {\ndistributed_ratelimit 1 1h {\ntrusted_proxies guarded\n}\n}"); err == nil {
		t.Fatal("loading a configuration without its trusted proxies: got no error")
	}
	if n := granted(e); n != 300 {
		t.Errorf("300 clients after a validation with max_keys 1: got %d granted, want all", n)
	}
}

// A configuration that fails leaves the running one and its counts, wherever
// it fails; and holds on to nothing.
func TestFailedConfigurationsChangeNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const good = `
http://a.test {
	distributed_ratelimit 10 1h z
	respond "{http.distributed_ratelimit.remaining}"
}`
	e := start(t, good)
	e.body("9", alice, "http://a.test/")
	bad := map[string]string{
		"the app":            "{\ndistributed_ratelimit {\ntrusted_proxies guarded\n}\n}" + good,
		"the app's store":    "{\ndistributed_ratelimit {\nstore redis {env.DRL_NOT_SET}\n}\n}" + good,
		"a handler's store":  good + "\nhttp://b.test {\ndistributed_ratelimit 1 1h {\nstore redis {env.DRL_NOT_SET}\n}\n}",
		"a handler's source": good + "\nhttp://b.test {\ndistributed_ratelimit 1 1h {\ntrusted_proxies guarded\n}\n}",
		"a zone's matcher":   good + "\nhttp://b.test {\ndistributed_ratelimit 1 1h {\nmatch guarded\n}\n}",
		"another handler":    good + "\nhttp://b.test {\nrespond ok {\nclose\n}\nreverse_proxy /x 127.0.0.1:1 {\nlb_policy random_choose 1\n}\n}",
		"an address in use":  good + "\nhttp://b.test:8089 {\ndistributed_ratelimit 1 1h other\n}",
	}
	e.ports["8089"] = taken.Addr().String()
	left := 8
	for where, caddyfile := range bad {
		names := e.names
		err := e.tryReload(caddyfile)
		e.names = names
		if err == nil {
			t.Errorf("loading a configuration that fails in %s: got no error", where)
			continue
		}
		e.body(fmt.Sprint(left), alice, "http://a.test/")
		left--
	}
	e.sample("requests_total", "granted store z", float64(9-left))

	// Nothing is held: when Caddy stops, the memory is released.
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	e.reload(good)
	e.body("9", alice, "http://a.test/")
}

func TestValidatingDisturbsNothing(t *testing.T) {
	e := start(t, limited(5, ""))
	e.body("4", alice, "http://a.test/")
	// Other numbers for the same zone: no conflict with what runs.
	if err := e.validate(limited(50, "max_keys 7")); err != nil {
		t.Errorf("validating: %v", err)
	}
	if err := e.validate("http://a.test {\n\tdistributed_ratelimit 5 2h z {\n\t\tkey all\n\t}\n}"); err != nil {
		t.Errorf("validating: %v", err)
	}
	e.body("3", alice, "http://a.test/")
	e.reload(strings.Replace(limited(5, ""), "1h z", "2h z", 1))
	e.body("4", alice, "http://a.test/")
}

// Requests in flight are served by the configuration that they came to, before
// and after the limiter, also when the new one has nothing of it.
func TestRequestsInFlightOverAReload(t *testing.T) {
	arrived, goOn := make(chan string, 2), make(chan struct{})
	wait := act(func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		if r.URL.Path == r.Header.Get("X-Wait") {
			arrived <- r.URL.Path
			<-goOn
		}
		return next.ServeHTTP(w, r)
	})
	invite(t, "before", act(func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		if r.URL.Path == "/after" {
			return next.ServeHTTP(w, r)
		}
		return wait(w, r, next)
	}))
	invite(t, "after", act(func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
		if r.URL.Path == "/before" {
			return next.ServeHTTP(w, r)
		}
		return wait(w, r, next)
	}))
	e := start(t, `
http://a.test {
	route {
		stage before
		distributed_ratelimit 2 1h z {
			ratelimit_headers always
		}
		stage after
		distributed_ratelimit 20 1h y
		respond "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.zone} {http.distributed_ratelimit.remaining}"
	}
}`)
	var running sync.WaitGroup
	url := "http://" + e.ports["80"]
	for _, path := range []string{"/before", "/after"} {
		running.Go(func() {
			r, err := http.NewRequest(http.MethodGet, url+path, nil)
			if err != nil {
				t.Error(err)
				return
			}
			r.Host = "a.test"
			r.Header.Set("X-Wait", path)
			response, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Errorf("GET %s over a reload: %v", path, err)
				return
			}
			defer response.Body.Close()
			if response.StatusCode != http.StatusOK || response.Header.Get("RateLimit") == "" {
				t.Errorf("GET %s over a reload: got %v, want status 200 and the headers", path, response)
			}
		})
	}
	<-arrived
	<-arrived
	e.reload("http://a.test {\n\trespond \"nothing limited\"\n}")
	e.body("nothing limited", alice, "http://a.test/")
	close(goOn)
	running.Wait()
}

// Requests meanwhile see one configuration or the other, and the limit holds
// over all of them.
func TestReloadsUnderLoad(t *testing.T) {
	const limit = 200
	e := start(t, limited(limit, ""))
	url := "http://" + e.ports["80"] + "/"
	var granted, refused, other atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, _ := http.NewRequest(http.MethodGet, url, nil)
				r.Host = "a.test"
				r.Close = true
				response, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					continue // a listener that is being handed over
				}
				response.Body.Close()
				switch response.StatusCode {
				case http.StatusOK:
					granted.Add(1)
				case http.StatusTooManyRequests:
					refused.Add(1)
				default:
					other.Add(1)
				}
			}
		})
	}
	for i := range 10 {
		e.reload(limited(limit, fmt.Sprintf("max_keys %d", 1000+i)))
	}
	for deadline := time.Now().Add(10 * time.Second); refused.Load() == 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	close(stop)
	clients.Wait()
	if granted.Load() != limit || refused.Load() == 0 || other.Load() != 0 {
		t.Errorf("over 10 reloads: got %d granted, %d refused, %d other replies, want %d granted, some refused, no other",
			granted.Load(), refused.Load(), other.Load(), limit)
	}
}

func TestReloadsLeakNoGoroutines(t *testing.T) {
	site := func(i int) string {
		return fmt.Sprintf(`
{
	distributed_ratelimit {
		store memory {
			max_keys %d
		}
	}
}
http://a.test {
	distributed_ratelimit 1000 1h z
	respond "ok"
}
http://b.test {
	distributed_ratelimit 1000 1h y {
		store redis redis://127.0.0.1:1/%d
		budget 20ms
	}
	respond "ok"
}`, 1000+i, i)
	}
	e := start(t, site(0))
	settled := func() int {
		n := runtime.NumGoroutine()
		for range 40 {
			time.Sleep(25 * time.Millisecond)
			if m := runtime.NumGoroutine(); m < n {
				n = m
			}
		}
		return n
	}
	e.reload(site(1))
	e.granted(5, alice, "http://b.test/")
	before := settled()
	for i := range 20 {
		e.reload(site(2 + i))
		e.granted(1, alice, "http://a.test/")
		e.granted(1, alice, "http://b.test/")
	}
	if after := settled(); after > before+5 {
		buf := make([]byte, 1<<20)
		t.Errorf("goroutines after 20 reloads: got %d, want about %d\n%s", after, before, buf[:runtime.Stack(buf, true)])
	}
}

// The memory says once for each configuration that it is not shared.
func TestMemoryStoreWarns(t *testing.T) {
	e := start(t, "http://a.test {\n\tdistributed_ratelimit 1 1h\n\tdistributed_ratelimit 2 1h\n}")
	for _, line := range e.log.says(1, "every instance counts for itself") {
		if line["level"] != "warn" || !strings.Contains(line["msg"].(string), "store redis <url>") {
			t.Errorf("warning: got %v, want one that names the remedy", line)
		}
	}
}

// Many requests at once are granted exactly the limit.
func TestConcurrentRequests(t *testing.T) {
	e := start(t, limited(100, ""))
	server := e.server("80")
	var granted atomic.Int64
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 50 {
				if a := e.sendTo(server, alice, http.MethodGet, "http://a.test/"); a.StatusCode == http.StatusOK {
					granted.Add(1)
				}
			}
		})
	}
	clients.Wait()
	if got := granted.Load(); got != 100 {
		t.Errorf("400 requests at once: got %d granted, want 100", got)
	}
}
