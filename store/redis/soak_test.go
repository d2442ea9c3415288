//go:build soak

package redis

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// TestEvictionPolicies floods a server that is full with new clients, and
// counts what clients at their limit are granted again: clients that keep asking,
// and clients that come back after the flood.
func TestEvictionPolicies(t *testing.T) {
	const (
		flood   = 200_000
		clients = 100
		limit   = 10
	)
	for _, policy := range []string{
		"noeviction", "volatile-lfu", "volatile-lru", "volatile-ttl", "volatile-random", "allkeys-lfu", "allkeys-lru",
	} {
		server := redistest.Start(t, "--maxmemory", "16mb", "--maxmemory-policy", policy)
		s := warmed(t, Options{Address: server.Addr})
		request := func(client string) store.Request {
			a := one(client, limit)
			a.Window = 10 * time.Minute
			return a
		}
		again := func(kind string) (granted int) {
			for i := range clients {
				var decisions [1]store.Decision
				if s.Take(time.Now(), patience, []store.Request{request(fmt.Sprint(kind, i))}, decisions[:]) == nil && decisions[0].Granted {
					granted++
				}
			}
			return granted
		}
		for i := range clients {
			for _, kind := range []string{"asking", "quiet"} {
				a := request(fmt.Sprint(kind, i))
				a.Units = limit
				granted(t, s, a)
			}
		}

		var next, failed atomic.Int64
		var asking int
		stop := make(chan struct{})
		var flooding, hammering sync.WaitGroup
		hammering.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					asking += again("asking")
				}
			}
		})
		for range 32 {
			flooding.Go(func() {
				for n := next.Add(1); n <= flood; n = next.Add(1) {
					var decisions [1]store.Decision
					err := s.Take(time.Now(), patience, []store.Request{request(strconv.FormatInt(n, 10))}, decisions[:])
					var e *store.Error
					if errors.As(err, &e) {
						failed.Add(1)
						if e.Kind == store.KindAway {
							time.Sleep(time.Millisecond)
						}
					}
				}
			})
		}
		flooding.Wait()
		close(stop)
		hammering.Wait()
		quiet := again("quiet")
		t.Logf("| `%s` | %s | %d of %d | %d | %d |", policy, server.Info(t, "stats", "evicted_keys"),
			quiet, clients, asking, failed.Load())
		s.Close()
		server.Kill()
	}
}

// TestMemoryOfKeys fills a server with clients, and measures what they take.
func TestMemoryOfKeys(t *testing.T) {
	for _, c := range []struct {
		name  string
		keys  int
		units int
		limit int64
	}{
		{"one request each", 200_000, 1, 1000},
		{"eight requests each, some time apart", 50_000, 8, 1000},
		{"as many entries as there can be", 5_000, 64, 64},
	} {
		server := redistest.Start(t)
		s := warmed(t, Options{Address: server.Addr})
		memory := func() int {
			n, err := strconv.Atoi(server.Info(t, "memory", "used_memory"))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		before := memory()
		var next atomic.Int64
		var group sync.WaitGroup
		for range 32 {
			group.Go(func() {
				for n := next.Add(1); n <= int64(c.keys*c.units); n = next.Add(1) {
					a := one(strconv.FormatInt(n%int64(c.keys), 10), c.limit)
					if c.units > 1 {
						a.Limit, a.Window = 64, time.Hour // entries are kept apart
					}
					var decisions [1]store.Decision
					if err := s.Take(time.Now(), patience, []store.Request{a}, decisions[:]); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		t.Logf("| %s | %d | %d bytes |", c.name, c.keys, (memory()-before)/c.keys)
		server.Kill()
	}
}
