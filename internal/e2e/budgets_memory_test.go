package e2e

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// heap is the memory of a Caddy that the collector has found in use.
func (p *process) heap(t *testing.T) float64 {
	t.Helper()
	for _, collect := range []bool{true, false} { // a heap profile with gc=1 collects first
		url := "http://" + p.admin + "/metrics"
		if collect {
			url = "http://" + p.admin + "/debug/pprof/heap?gc=1"
		}
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "go_memstats_heap_inuse_bytes "); ok {
				bytes, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
				return bytes
			}
		}
	}
	t.Fatal("no go_memstats_heap_inuse_bytes")
	return 0
}

// TestBudgetMemory: what a thousand open streams, and a thousand uploads that do
// not come to an end, take of memory beside what they take without the module.
func TestBudgetMemory(t *testing.T) {
	const n = 1000
	redis, backend := redistest.Start(t), llmtest.Start(t)
	sites := map[string]*process{
		"without": startProcess(t, passing(backend.Addr)),
		"with":    budgeted{events: "1000000000", window: "1h", upstream: backend.Addr}.start(t, redis),
	}
	each := make(map[string]float64)
	for name, site := range sites {
		before := site.heap(t)
		ctx, cancel := context.WithCancel(t.Context())
		var open sync.WaitGroup
		crowd(n, func(int) {
			resp, err := llmPost(ctx, site.url(), "/v1/chat/completions", "break=stall,events=20,huge=100000", llmEndpoints[0].request(100, "stream", true), caseHeader, "streams")
			if err != nil {
				t.Error(err)
				return
			}
			open.Go(func() { _, _ = io.Copy(io.Discard, resp.Body); resp.Body.Close() })
		})
		each[name+", a stream"] = (site.heap(t) - before) / n
		cancel()
		open.Wait()

		site.kill() // what is left of the streams would count
		site.start(t)
		before = site.heap(t)
		ctx, cancel = context.WithCancel(t.Context())
		sent := make(chan struct{}, n)
		for range n {
			reader, writer := io.Pipe()
			open.Go(func() {
				_, _ = io.WriteString(writer, `{"model":"gpt-5","messages":[{"role":"user","content":"`+strings.Repeat("x", 4000))
				sent <- struct{}{}
				<-ctx.Done()
				writer.CloseWithError(ctx.Err())
			})
			open.Go(func() {
				r, _ := http.NewRequestWithContext(ctx, http.MethodPost, site.url()+"/v1/chat/completions", reader)
				r.Header.Set(caseHeader, "uploads")
				if resp, err := http.DefaultClient.Do(r); err == nil {
					resp.Body.Close()
				}
			})
		}
		for range n {
			<-sent
		}
		each[name+", an upload"] = (site.heap(t) - before) / n
		cancel()
		open.Wait()
	}
	for name, bytes := range each {
		t.Logf("%s: %.0f kB", name, bytes/1000)
	}
	if more := each["with, a stream"] - each["without, a stream"]; more > 100_000 {
		t.Errorf("a stream takes %.0f kB more", more/1000)
	}
	if more := each["with, an upload"] - each["without, an upload"]; more > 100_000 {
		t.Errorf("an upload of 4 kB takes %.0f kB more", more/1000)
	}
}

// TestBudgetFailover: a replica becomes the master while streams are open. What
// was reserved on the old master is not given back on the new one, where the
// entry may be somebody else's.
func TestBudgetFailover(t *testing.T) {
	sentinel, backend := redistest.StartSentinel(t, redistest.SentinelOptions{}), llmtest.Start(t)
	caddy := startProcess(t, budgeted{
		events: "1000000", window: "1h", upstream: backend.Addr,
		servers: []string{"sentinel", "master_name " + sentinel.Name, "address " + strings.Join(sentinel.Addrs, " ")},
	}.caddyfile())
	rest := openStreams(t, 10, caddy.url(), "output=50,events=40,every=500ms", llmEndpoints[0].request(100, "stream", true))
	old := sentinel.Master(t)
	reserved := charged(t, old)
	for _, server := range sentinel.Servers {
		if server != old {
			old.WaitReplicated(t, server)
		}
	}
	old.Kill()
	master := sentinel.WaitFailover(t, old)
	rest()
	spent, _ := llmtest.Spent(backend.Since(0))
	units := chargedUntil(t, master, func(units int64) bool { return units == reserved })
	t.Logf("a failover: reserved %d, spent %d, charged %d, given back %d", reserved, spent, units, reserved-units)
	if units != reserved {
		t.Errorf("reserved %d, spent %d, charged %d after a failover", reserved, spent, units)
	}
}
