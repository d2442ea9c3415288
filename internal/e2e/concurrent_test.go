package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// streamer is a backend that counts the streams that are open.
type streamer struct {
	*httptest.Server
	open, most atomic.Int64
}

func newStreamer(t *testing.T) *streamer {
	s := new(streamer)
	end := make(chan struct{})
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := s.open.Add(1)
		defer s.open.Add(-1)
		for m := s.most.Load(); n > m && !s.most.CompareAndSwap(m, n); m = s.most.Load() {
		}
		if r.URL.Path == "/quick" {
			return
		}
		fmt.Fprintln(w, "begun")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-end:
		}
	}))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(end) })
	return s
}

// opens opens a stream, nil if it is refused.
func (p *process) opens(t *testing.T) *http.Response {
	response, err := p.client.Get("http://" + p.addr + "/")
	if err != nil {
		t.Errorf("%v", err)
		return nil
	}
	if response.StatusCode == http.StatusOK {
		return response
	}
	response.Body.Close()
	if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") != "1" {
		t.Errorf("status %d", response.StatusCode)
	}
	return nil
}

func within(t *testing.T, d time.Duration, what string, holds func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !holds() {
		if time.Since(began) > d {
			t.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

// TestConcurrentOverProcesses: several Caddys together let five streams through at any
// time. Each end frees one, a killed Caddy's are free again soon, and requests that
// are broken off leave none.
func TestConcurrentOverProcesses(t *testing.T) {
	const limit = 5
	redis, backend := redistest.Start(t), newStreamer(t)
	config := fmt.Sprintf(`{
	admin ADMIN
	grace_period 100ms
	distributed_ratelimit {
		store redis redis://%s
		budget 5s
	}
}
ADDR {
	distributed_ratelimit {
		zone streams {
			concurrent %d
		}
	}
	reverse_proxy %s
}
`, redis.Addr, limit, backend.Listener.Addr())
	var processes []*process
	for range 3 {
		processes = append(processes, startProcess(t, config))
	}

	var mu sync.Mutex
	open := make([][]*http.Response, len(processes))
	crowd(40, func(i int) {
		if response := processes[i%3].opens(t); response != nil {
			mu.Lock()
			defer mu.Unlock()
			open[i%3] = append(open[i%3], response)
		}
	})
	if got := len(open[0]) + len(open[1]) + len(open[2]); got != limit || backend.open.Load() != limit {
		t.Fatalf("%d streams are open, and %d at the backend, want %d", got, backend.open.Load(), limit)
	}

	// One ends, and another process has its slot.
	for i := range open {
		if len(open[i]) == 0 {
			continue
		}
		open[i][0].Body.Close()
		open[i] = open[i][1:]
		took := within(t, 5*time.Second, "the slot is free", func() bool {
			response := processes[(i+1)%3].opens(t)
			if response != nil {
				open[(i+1)%3] = append(open[(i+1)%3], response)
			}
			return response != nil
		})
		t.Logf("a slot was free after %v", took)
		break
	}
	if processes[0].opens(t) != nil {
		t.Error("more than the limit")
	}

	// One is killed.
	time.Sleep(5 * time.Second)
	victim := 0
	for i := range open {
		if len(open[i]) > len(open[victim]) {
			victim = i
		}
	}
	lost := len(open[victim])
	processes[victim].kill()
	for _, response := range open[victim] {
		response.Body.Close()
	}
	other := processes[(victim+1)%3]
	free := 0
	took := within(t, 25*time.Second, "a killed instance's slots are free", func() bool {
		if other.opens(t) != nil {
			free++
		}
		return free == lost
	})
	if other.opens(t) != nil {
		t.Error("slots of others were freed")
	}
	t.Logf("%d slots of a killed instance were free after %v", lost, took)
	if backend.most.Load() > limit {
		t.Errorf("%d streams were open at once", backend.most.Load())
	}
}

// TestConcurrentAborted: ten thousand requests that their clients break off leave no
// slot.
func TestConcurrentAborted(t *testing.T) {
	redis, backend := redistest.Start(t), newStreamer(t)
	p := startProcess(t, fmt.Sprintf(`{
	admin ADMIN
	distributed_ratelimit {
		store redis redis://%s
	}
}
ADDR {
	distributed_ratelimit {
		zone streams {
			concurrent 20
		}
	}
	reverse_proxy %s
}
`, redis.Addr, backend.Listener.Addr()))
	crowd(50, func(i int) {
		client := &http.Client{Transport: &http.Transport{}, Timeout: time.Duration(i+1) * 200 * time.Microsecond}
		for range 200 {
			if response, err := client.Get("http://" + p.addr + "/"); err == nil {
				response.Body.Close()
			}
		}
	})
	within(t, 20*time.Second, "the backend is idle", func() bool { return backend.open.Load() == 0 })
	open := 0
	within(t, 20*time.Second, "all slots are free", func() bool {
		if p.opens(t) != nil {
			open++
		}
		return open == 20
	})
}
