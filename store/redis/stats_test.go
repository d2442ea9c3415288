package redis

import (
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Calls to a server that does not answer are seen: one round trip, and what waits for it.
func TestStats(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr, PoolSize: 1, Timeout: 30 * time.Second})
	eventually(t, "nothing is under way", func() bool { return s.Stats() == Stats{} })

	server.Stop()
	var over sync.WaitGroup
	call := func() {
		over.Go(func() {
			_ = s.Take(time.Now(), 30*time.Second, []store.Request{one("client", 1000)}, make([]store.Decision, 1))
		})
	}
	call()
	eventually(t, "a round trip is under way", func() bool { return s.Stats() == Stats{Trips: 1} })
	call()
	call()
	eventually(t, "calls wait behind it", func() bool { return s.Stats() == Stats{Trips: 1, Queued: 2} })
	server.Cont()
	over.Wait()
	eventually(t, "nothing is under way any more", func() bool { return s.Stats() == Stats{} })
}
