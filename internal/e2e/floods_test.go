package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// reloadTo makes the process take a Caddyfile over its admin endpoint, and
// returns the answer if it does not.
func (p *process) reloadTo(t *testing.T, caddyfile string) error {
	t.Helper()
	p.write(t, caddyfile)
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post("http://"+p.admin+"/load", "text/caddyfile", bytes.NewReader(text))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(body))
	}
	return nil
}

var goroutineTotal = regexp.MustCompile(`goroutine profile: total (\d+)`)

// holds returns how many goroutines the process has, and how many files it has
// open, sockets included.
func (p *process) holds(t *testing.T) (goroutines, files int) {
	t.Helper()
	resp, err := http.Get("http://" + p.admin + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	m := goroutineTotal.FindSubmatch(body)
	if err != nil || m == nil {
		t.Fatalf("goroutines: %v %.100s", err, body)
	}
	goroutines, _ = strconv.Atoi(string(m[1]))
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		return goroutines, 0 // not Linux
	}
	return goroutines, len(entries)
}

// settled waits until the process holds no more than it did, give or take the
// connections of the test itself.
func (p *process) settled(t *testing.T, goroutines, files int) {
	t.Helper()
	const few = 12 // connections to Redis, made when there is much to do
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		p.client.CloseIdleConnections()
		http.DefaultClient.CloseIdleConnections()
		g, f := p.holds(t)
		if g <= goroutines+few && f <= files+few {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%d goroutines and %d open files; %d and %d before", g, f, goroutines, files)
			return
		}
	}
}

// A hundred reloads under load, with limits, zones, settings and the address
// of Redis changing, and broken configurations in between: no request fails,
// no count is lost, nothing is left over.
func TestFaultReloads(t *testing.T) {
	servers := []*redistest.Server{redistest.Start(t), redistest.Start(t)}
	config := func(i int) string {
		extra := ""
		if i%3 == 1 {
			extra = "zone extra {\n\t\t\tevents 100000\n\t\t\twindow 1m\n\t\t}"
		}
		return fmt.Sprintf(`{
	admin ADMIN
	distributed_ratelimit {
		store redis %s {
			dial_timeout 20s
			queue_size %d
		}
		budget 5s
	}
}
ADDR {
	distributed_ratelimit {
		zone hard {
			match path /hard
			events 5
			window 1h
		}
		zone soft {
			events %d
			window 1m
		}
		%s
	}
	respond ok
}
`, "redis://"+servers[i/10%2].Addr, 1000+i%4, 1_000_000+i, extra)
	}
	caddy := startProcess(t, config(0))
	const client = "X-Test"
	hard := func() int { return caddy.get(t, "/hard", client, "1").status }
	for range 5 {
		if status := hard(); status != http.StatusOK {
			t.Fatalf("before the reloads: status %d", status)
		}
	}
	caddy.get(t, "/")
	time.Sleep(time.Second)
	goroutines, files := caddy.holds(t)

	stop := make(chan struct{})
	var rec record
	var closed atomic.Int64
	crowd(5, func(i int) {
		if i == 0 {
			defer close(stop)
			for n := 1; n <= 100; n++ {
				if n%10 == 5 {
					broken := strings.Replace(config(n), "events 5", "events five", 1)
					if n%20 == 5 {
						broken = strings.Replace(config(n), "queue_size", "tls {\n\t\t\t\tca /does/not/exist\n\t\t\t}\n\t\t\tqueue_size", 1)
					}
					if err := caddy.reloadTo(t, broken); err == nil {
						t.Error("a broken configuration was taken")
					}
					continue
				}
				if err := caddy.reloadTo(t, config(n)); err != nil {
					t.Errorf("reload %d: %v", n, err)
				}
				// The limit is used up on the first server, and is known to
				// be after each reload that goes there.
				if n/10%2 == 0 {
					if status := hard(); status != http.StatusTooManyRequests {
						t.Errorf("after reload %d: status %d for a client over its limit", n, status)
					}
				}
			}
			return
		}
		for {
			select {
			case <-stop:
				return
			default:
			}
			r, err := caddy.try("/")
			if err != nil {
				// Caddy closes a connection that was just being made to the
				// listener of the old configuration, whatever its handlers.
				closed.Add(1)
				r = caddy.get(t, "/")
			}
			rec.add(r)
			time.Sleep(2 * time.Millisecond)
		}
	})
	t.Logf("%d connections closed at once, %d requests answered", closed.Load(), len(rec.spans))
	if closed.Load() > 10 {
		t.Errorf("%d connections closed at once over 100 reloads", closed.Load())
	}
	if len(rec.other) > 0 || rec.refused > 0 {
		t.Errorf("over the reloads: %d granted, %d refused, others %v", len(rec.spans), rec.refused, rec.other)
	}
	if err := caddy.reloadTo(t, config(0)); err != nil {
		t.Error(err)
	}
	caddy.settled(t, goroutines, files)
	open := servers[0].Clients(t) + servers[1].Clients(t)
	var took []time.Duration
	for _, s := range rec.spans {
		took = append(took, s.To.Sub(s.From))
	}
	note(row{
		name: "100 reloads under load", decisions: fmt.Sprintf("%d × 200", len(rec.spans)),
		added:       max(0, percentile(took, 0.99)-percentile(took, 0.5)),
		connections: fmt.Sprintf("%d open afterwards", open), recovery: "none needed",
	})
}

// Five instances that are killed and start together find the limit as it was.
func TestFaultRestartTogether(t *testing.T) {
	redis := redistest.Start(t)
	const (
		limit  = 60
		window = 6 * time.Second
	)
	caddys := make([]*process, 5)
	for i := range caddys {
		caddys[i] = startProcess(t, site(limit, window.String(), "5s"), redisEnv(redis))
	}
	before := redis.Connections(t)
	var rec record
	var down atomic.Bool
	stop := make(chan struct{})
	var recovery time.Duration
	crowd(len(caddys)+1, func(i int) {
		if i == len(caddys) {
			defer close(stop)
			time.Sleep(window / 2)
			down.Store(true)
			crowd(len(caddys), func(i int) { caddys[i].kill() })
			began := time.Now()
			crowd(len(caddys), func(i int) { caddys[i].start(t) })
			recovery = time.Since(began)
			down.Store(false)
			time.Sleep(window)
			return
		}
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			if down.Load() {
				continue
			}
			r, err := caddys[i].try("/")
			if err != nil {
				continue // while it is being killed
			}
			rec.add(r)
		}
	})
	rec.strict(t, limit, window)
	most, _ := storetest.Most(rec.spans, window)
	if most < limit*9/10 {
		t.Errorf("at most %d granted in a window, limit %d: the limit was never reached", most, limit)
	}
	note(row{
		name: "five instances restart together", decisions: fmt.Sprintf("%d × 200, %d × 429", len(rec.spans), rec.refused),
		share: float64(most) / limit, connections: fmt.Sprint(redis.Connections(t) - before),
		recovery: fmt.Sprintf("%.1f s until all are up", recovery.Seconds()),
	})
}

// *newClients is how many clients TestFaultManyClients invents. make soak has
// a million.
var newClients = flag.Int("clients", 50_000, "how many new clients come in TestFaultManyClients")

// A stranger who invents clients fills neither memory nor logs nor metrics,
// and a client that is over its limit stays over it.
func TestFaultManyClients(t *testing.T) {
	r := oneServer(t)
	for i := range faultInstances {
		r.instances = append(r.instances, newInstance(t, strings.NewReplacer(
			"budget "+faultBudget.String(), "budget 5s",
			fmt.Sprintf("%d %v", faultLimit, faultWindow), fmt.Sprintf("%d 1h", faultLimit),
		).Replace(faultConfig(r.options(i)))))
	}
	// The limit, by instances that have been told of each other.
	for range 3 * faultLimit {
		for _, in := range r.instances {
			in.get(hotClient)
		}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	memory := func() int {
		n, _ := strconv.Atoi(r.server.Info(t, "memory", "used_memory"))
		return n
	}
	goroutines, connections := runtime.NumGoroutine(), r.connections()
	heapBefore, memoryBefore := heap(), memory()

	var next, refused, local atomic.Int64
	var most atomic.Int64
	began := time.Now()
	crowd(16, func(i int) {
		in := r.instances[i%len(r.instances)]
		for n := next.Add(1); n <= int64(*newClients); n = next.Add(1) {
			reply := in.get(fmt.Sprintf("%d.%d.%d.%d", 11+n>>24, n>>16&255, n>>8&255, n&255))
			if !reply.granted() {
				refused.Add(1)
			} else if reply.body == "local" {
				local.Add(1)
			}
			if n%1000 == 0 {
				most.Store(max(most.Load(), int64(runtime.NumGoroutine())))
			}
		}
	})
	took := time.Since(began)
	perInstance := (int64(heap()) - int64(heapBefore)) / int64(len(r.instances))
	perKey := (memory() - memoryBefore) / *newClients
	t.Logf("%d clients in %v: %.1f MB of heap in each instance, %d goroutines at most (%d before), %d bytes of Redis for each, %d connections",
		*newClients, took, float64(perInstance)/1e6, most.Load(), goroutines, perKey, r.connections()-connections)
	if refused.Load() > 0 {
		t.Errorf("%d new clients were refused", refused.Load())
	}
	if local.Load() > 0 {
		t.Errorf("%d new clients were counted locally", local.Load())
	}
	if perInstance > 200e6 {
		t.Errorf("each instance holds %d bytes more", perInstance)
	}
	// Each connection of the instances, through the proxy, has a worker and
	// four goroutines of the proxy.
	if most.Load() > int64(goroutines+16+5*9*faultInstances) {
		t.Errorf("%d goroutines with 16 requests at a time, %d before", most.Load(), goroutines)
	}
	note(row{
		name:        "many new clients",
		decisions:   fmt.Sprintf("%d × 200 in %.0f s", *newClients, took.Seconds()),
		connections: fmt.Sprint(r.connections() - connections), recovery: "none needed",
	})
}

// Clients that send a request and go away at once are counted, each once, and
// leave nothing behind.
func TestFaultAbortingClients(t *testing.T) {
	redis := redistest.Start(t)
	caddy := startProcess(t, site(1_000_000, "1h", "30s"), redisEnv(redis))
	caddy.get(t, "/")
	time.Sleep(time.Second)
	goroutines, files := caddy.holds(t)
	const clients = 10_000
	var sent atomic.Int64
	crowd(20, func(int) {
		for range clients / 20 {
			conn, err := net.Dial("tcp", caddy.addr)
			if err != nil {
				if errors.Is(err, syscall.EADDRNOTAVAIL) {
					time.Sleep(10 * time.Millisecond)
				}
				continue
			}
			if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", caddy.addr); err == nil {
				sent.Add(1)
			}
			conn.Close()
		}
	})
	caddy.settled(t, goroutines, files)
	m := caddy.metrics(t)
	granted := requests(m, "granted", "store") + requests(m, "granted", "lease") - 1
	if granted > float64(sent.Load()) || granted < float64(sent.Load())*9/10 {
		t.Errorf("%v requests counted of %d that were sent", granted, sent.Load())
	}
	if other := requests(m, "granted", "local") + requests(m, "refused", `[a-z]*`); other > 0 {
		t.Errorf("%v requests were not granted by the store", other)
	}
	note(row{
		name: "clients that abort at once", decisions: fmt.Sprintf("nothing; %.0f of %d counted", granted, sent.Load()),
		connections: fmt.Sprint(redis.Clients(t)) + " open afterwards", recovery: "none needed",
	})
}

// A client far over its limit, as fast as it can, is refused from memory: it
// costs Redis about a call a second on each instance, and a few lines in the
// log.
func TestFaultHotClient(t *testing.T) {
	r := oneServer(t)
	r.start(t)
	for _, in := range r.instances {
		in.get("192.0.2.250")
	}
	connections, calls := r.connections(), r.server.Calls(t, "evalsha")
	goroutines := runtime.NumGoroutine()
	const load = 4 * faultWindow
	var rec record
	var took [2][]time.Duration
	crowd(2, func(i int) {
		for began := time.Now(); time.Since(began) < load; {
			for _, in := range r.instances {
				reply := in.get(hotClient)
				rec.add(reply)
				took[i] = append(took[i], reply.span.To.Sub(reply.span.From))
			}
		}
	})
	rec.strict(t, 2*faultLimit, faultWindow) // twice, if a busy machine looks like an outage
	most, _ := storetest.Most(rec.spans, faultWindow)
	perThousand := 1000 * float64(r.server.Calls(t, "evalsha")-calls) / float64(rec.refused)
	t.Logf("%d refused and %d granted in %v, %.1f calls of Redis for 1000 refusals", rec.refused, len(rec.spans), load, perThousand)
	if perThousand > 100 {
		t.Errorf("%.0f calls of Redis for 1000 refusals", perThousand)
	}
	if n := runtime.NumGoroutine(); n > goroutines+5*9*faultInstances {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	all := append(took[0], took[1]...)
	note(row{
		name:      "one client far over its limit, at full speed",
		decisions: fmt.Sprintf("%d × 200, %d × 429 in %v", len(rec.spans), rec.refused, load),
		share:     float64(most) / faultLimit, added: max(1, percentile(all, 0.99)-percentile(all, 0.5)),
		connections: fmt.Sprint(r.connections() - connections), recovery: "none needed",
	})
}

// A thousand zones that all apply to each request, and two thousand more in the
// configuration: one call of Redis decides them all (their leases come one by one),
// and the series of metrics are those of the configuration.
func TestFaultManyZones(t *testing.T) {
	redis := redistest.Start(t)
	const apply, others = 1000, 2000
	var zones strings.Builder
	for i := range apply + others {
		match := ""
		if i >= apply {
			match = fmt.Sprintf("match path /%d", i)
		}
		fmt.Fprintf(&zones, "zone z%d {\n%s\nevents %d\nwindow 1h\n}\n", i, match, 10+i)
	}
	caddy := startProcess(t, fmt.Sprintf(`{
	admin ADMIN
	distributed_ratelimit {
		store redis {env.REDIS_URL}
		budget 5s
	}
}
ADDR {
	distributed_ratelimit {
		%s
	}
	respond ok
}
`, zones.String()), redisEnv(redis))
	series := func() int { return strings.Count(caddy.metrics(t), "_requests_total{") }
	configured := series()
	caddy.get(t, "/")
	before := redis.Calls(t, "evalsha")
	var rec record
	var took []time.Duration
	for range 30 {
		r := caddy.get(t, "/")
		rec.add(r)
		took = append(took, r.span.To.Sub(r.span.From))
	}
	if len(rec.spans) != 9 || rec.refused != 21 {
		t.Errorf("%d granted and %d refused of 30, want 9 and 21; others %v", len(rec.spans), rec.refused, rec.other)
	}
	// A call for each zone would be 30,000; leases are refilled and given back
	// one by one.
	if calls := redis.Calls(t, "evalsha") - before; calls > 30*apply/4 {
		t.Errorf("%d calls of Redis for 30 requests", calls)
	}
	if keys := logKeys(t, redis); len(keys) != apply {
		t.Errorf("%d keys in Redis, want %d", len(keys), apply)
	}
	// The series of a zone are there from the beginning; one of addresses comes with the
	// first request.
	if n := series(); configured > 8*(apply+others) || n > configured+10 {
		t.Errorf("%d series of requests for %d zones, and %d after requests", configured, apply+others, n)
	}
	note(row{
		name: "a thousand zones on each request", decisions: fmt.Sprintf("%d × 200, %d × 429, the median in %s", len(rec.spans), rec.refused, milliseconds(percentile(took, 0.5))),
		connections: fmt.Sprint(redis.Clients(t)) + " open", recovery: "none needed",
	})
}

// Keys as long as a header can be, and of any bytes, cost no more than others.
func TestFaultOddKeys(t *testing.T) {
	redis := redistest.Start(t)
	in := newInstance(t, fmt.Sprintf(`{
	admin off
	log {
		level ERROR
	}
	distributed_ratelimit {
		store redis redis://%s
		budget 5s
	}
}
:80 {
	distributed_ratelimit 2 1h {
		key {header.X-Key}
		log_key
	}
	respond ok
}
`, redis.Addr))
	const clients = 2000
	key := func(i int) string {
		b := bytes.Repeat([]byte{byte(i), 0, '\r', '\n', '{', '}', 0xff, byte(i >> 8)}, 7500) // 60 kB
		return string(b) + strconv.Itoa(i)
	}
	in.get("192.0.2.1", "X-Key", "warm")
	var m runtime.MemStats
	heap := func() int64 {
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var rec record
	for i := range clients {
		for range 3 {
			rec.add(in.get("192.0.2.1", "X-Key", key(i)))
		}
	}
	perKey := (heap() - before) / clients
	if len(rec.spans) != 2*clients || rec.refused != clients {
		t.Errorf("%d granted and %d refused, want %d and %d; others %v", len(rec.spans), rec.refused, 2*clients, clients, rec.other)
	}
	keys := logKeys(t, redis)
	if len(keys) != clients+1 {
		t.Errorf("%d keys in Redis, want %d", len(keys), clients+1)
	}
	longest := 0
	for _, k := range keys {
		longest = max(longest, len(k))
	}
	if longest > 60 {
		t.Errorf("a key of %d bytes in Redis", longest)
	}
	if perKey > 4096 {
		t.Errorf("%d bytes of heap for each key", perKey)
	}
	note(row{
		name: "keys of 60 kB, of any bytes", decisions: fmt.Sprintf("%d × 200, %d × 429", len(rec.spans), rec.refused),
		connections: fmt.Sprintf("%d; %d bytes of heap for each key, names in Redis of %d", redis.Clients(t), perKey, longest), recovery: "none needed",
	})
}
