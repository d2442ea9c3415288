package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// replayed is what the command replay prints with --json, as far as tests look at it.
type replayed struct {
	Requests int64 `json:"requests"`
	Logged   struct {
		Compared int64 `json:"compared"`
		Refused  int64 `json:"refused"`
		Differ   int64 `json:"differ"`
	} `json:"logged"`
	Zones []struct {
		Zone     string `json:"zone"`
		Requests int64  `json:"requests"`
		Refused  int64  `json:"refused"`
		Clients  int    `json:"clients"`
	} `json:"zones"`
	Notes []string `json:"notes"`
}

// clients are sites' clients that record what became of each request. They send one
// after the other, and all at once.
type replayClients struct {
	t       *testing.T
	p       *process
	mu      sync.Mutex
	refused map[string]bool // by the request's own number
}

func (c *replayClients) send(client, path string, n int) int {
	id := fmt.Sprintf("%s-%d", client, n)
	r, err := http.NewRequest(http.MethodGet, "http://"+c.p.addr+path+"?id="+id, nil)
	if err != nil {
		c.t.Error(err)
		return 0
	}
	r.Header.Set("X-Forwarded-For", client)
	r.Header.Set("X-Plan", []string{"free", "pro"}[n%2])
	response, err := c.p.client.Do(r)
	if err != nil {
		c.t.Error(err)
		return 0
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[id] = response.StatusCode == http.StatusTooManyRequests
	return response.StatusCode
}

// logged waits for the line of each request, and returns whether it says that the
// request was refused.
func (c *replayClients) logged(log string) map[string]bool {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		found := make(map[string]bool)
		file, err := os.Open(log)
		if err != nil {
			c.t.Fatal(err)
		}
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var line struct {
				Request struct {
					URI string `json:"uri"`
				} `json:"request"`
				RateLimit struct {
					Outcome string `json:"outcome"`
				} `json:"rate_limit"`
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil {
				_, id, _ := strings.Cut(line.Request.URI, "?id=")
				found[id] = line.RateLimit.Outcome == "refused"
			}
		}
		file.Close()
		c.mu.Lock()
		n := len(c.refused)
		c.mu.Unlock()
		if len(found) >= n {
			return found
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%d requests are in the log, want %d", len(found), n)
		}
	}
}

// The log of a Caddy that was just under load, replayed with the same configuration,
// gives the refusals of the limiter, request by request.
func TestReplayGivesTheRefusals(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	p := startProcess(t, `{
	admin ADMIN
	servers {
		trusted_proxies static 127.0.0.1/32
	}
}
ADDR {
	log {
		output file `+log+`
	}
	route {
		distributed_ratelimit {
			zone everything {
				events 30
				window 1h
				exempt path /free
			}
			zone burst {
				match path /burst
				events 5
				window 2s
			}
			zone costly {
				match path /costly
				cost 7
				tier {header.X-Plan} {
					free 20
					pro 50
					default 0
				}
				window 30m
			}
			zone banned {
				match path /banned
				events 3
				window 3s
				block_for 1h
			}
		}
		distributed_ratelimit {
			zone later {
				match path /later /burst
				events 9
				window 1h
			}
		}
		respond ok
	}
}
`)
	c := &replayClients{t: t, p: p, refused: make(map[string]bool)}
	paths := []string{"/a", "/burst", "/costly", "/banned", "/later", "/free"}
	began := time.Now()
	crowd(12, func(i int) {
		client := fmt.Sprintf("198.51.100.%d", i)
		// Between the bursts the window of 2 s has passed, or half of it: what a slow
		// machine adds does not matter.
		for round, at := range []time.Duration{0, time.Second, 3500 * time.Millisecond} {
			time.Sleep(time.Until(began.Add(at)))
			for n := range 36 {
				c.send(client, paths[(n/(1+i%3)+i)%len(paths)], round*100+n)
			}
		}
	})
	inLog := c.logged(log)
	want := int64(0)
	for id, refused := range c.refused {
		if refused {
			want++
		}
		if inLog[id] != refused {
			t.Errorf("%s: refused %v, and the log says %v", id, refused, inLog[id])
		}
	}
	got := replayOf(t, p, log)
	if got.Requests != int64(len(c.refused)) || got.Logged.Refused != want || got.Logged.Differ != 0 || want < 100 {
		t.Errorf("the replay of %d requests has %d, of which %d were refused, want %d, and decides %d otherwise", len(c.refused), got.Requests, got.Logged.Refused, want, got.Logged.Differ)
	}
	for _, z := range got.Zones {
		if z.Refused == 0 || z.Clients != 12 {
			t.Errorf("zone %s: %d of %d requests of %d clients refused", z.Zone, z.Refused, z.Requests, z.Clients)
		}
	}
}

// replayOf replays a log with the configuration of a process.
func replayOf(t *testing.T, p *process, log string, args ...string) (r replayed) {
	t.Helper()
	out, err := p.command(t, append([]string{"distributed-ratelimit", "replay", "--config", p.config, "--json", log}, args...)...).Output()
	if err != nil {
		t.Fatalf("replay: %v\n%s", err, out)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}
