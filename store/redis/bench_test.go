package redis

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// callers runs take in n goroutines, b.N times altogether.
func callers(b *testing.B, n int, take func(request store.Request)) {
	var group sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for i := range n {
		group.Go(func() {
			for j := i; j < b.N; j += n {
				a := one(fmt.Sprint("client", rand.IntN(10_000)), 1_000_000)
				a.Window = time.Minute
				take(a)
			}
		})
	}
	group.Wait()
}

// BenchmarkTake is a call from several goroutines at once.
func BenchmarkTake(b *testing.B) {
	server := redistest.Start(b)
	for _, connections := range []int{1, 2, 4, 8} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("connections=%d/callers=%d", connections, n), func(b *testing.B) {
				s := warmed(b, Options{Address: server.Addr, PoolSize: connections})
				callers(b, n, func(a store.Request) {
					var decisions [1]store.Decision
					if err := s.Take(time.Now(), patience, []store.Request{a}, decisions[:]); err != nil {
						b.Error(err)
					}
				})
			})
		}
	}
}

// BenchmarkAlternatives is the same without sharing round trips, and with the
// library's way to share them.
func BenchmarkAlternatives(b *testing.B) {
	server := redistest.Start(b)
	k := newKeys(DefaultKeyPrefix, nil)
	o := Options{Address: server.Addr, PoolSize: 64}.withDefaults()
	c := newClient(o, newSecrets(o), dialTo(o, newSecrets(o), "tcp", o.Address))
	defer c.Close()
	ctx := context.Background()
	if err := c.ScriptLoad(ctx, source).Err(); err != nil {
		b.Fatal(err)
	}
	run := func(b *testing.B, process func(context.Context, redis.Cmder) error) {
		callers(b, 64, func(a store.Request) {
			cmd := redis.NewStringCmd(ctx, k.takeCommand([]store.Request{a})...)
			if err := process(ctx, cmd); err != nil {
				b.Error(err)
			}
			var decisions [1]store.Decision
			if reply, err := cmd.Result(); err != nil || readDecisions(reply, nil, decisions[:]) != nil {
				b.Error(err)
			}
		})
	}
	b.Run("single", func(b *testing.B) { run(b, c.Process) })
	b.Run("autopipeline", func(b *testing.B) {
		ap, err := c.AutoPipeline()
		if err != nil {
			b.Fatal(err)
		}
		defer ap.Close()
		run(b, ap.Process)
	})
}

// BenchmarkScript is what a call costs the server, whose time in the best of
// several rounds is reported as us/call: other work on the machine adds to it.
func BenchmarkScript(b *testing.B) {
	server := redistest.Start(b)
	const keys = 100
	window := time.Minute
	full := window.Microseconds()/64 + 1 // between entries that do not merge
	for _, test := range []struct {
		name     string
		entries  int
		limit    int64
		step     int64 // between the rounds that are measured
		requests int
	}{
		{"entries=1", 1, 1_000_000, 0, 1},
		{"entries=5", 5, 1_000_000, 0, 1},
		{"entries=64", 64, 1_000_000, 0, 1},
		{"entries=64/append", 64, 1_000_000, full, 1},
		{"entries=64/refused", 64, 64, 0, 1},
		{"entries=5/zones=3", 5, 1_000_000, 0, 3},
	} {
		b.Run(test.name, func(b *testing.B) {
			script := newClocked(b, server)
			server.Do(b, "FLUSHALL")
			now := int64(1_700_000_000_000_000)
			round := func(calls int) {
				for key := range calls {
					var requests []store.Request
					for zone := range test.requests {
						a := one(fmt.Sprint("client", key), test.limit)
						a.Key.Zone, a.Window = fmt.Sprint("zone", zone), window
						requests = append(requests, a)
					}
					if err := script.send(now, script.keys.takeCommand(requests)); err != nil {
						b.Fatal(err)
					}
				}
				for range calls {
					if _, err := script.conn.Receive(); err != nil {
						b.Fatal(err)
					}
				}
			}
			for range test.entries {
				now += full
				round(keys)
			}
			best := math.Inf(1)
			for calls := 0; calls < b.N; calls += keys {
				now += test.step
				server.Do(b, "CONFIG", "RESETSTAT")
				round(min(keys, b.N-calls))
				best = min(best, usec(b, server, "evalsha"))
			}
			b.ReportMetric(best, "us/call")
		})
	}
}

// usec is the server's time for a call of a command.
func usec(b *testing.B, server *redistest.Server, command string) float64 {
	info := server.Do(b, "INFO", "commandstats").(string)
	_, after, _ := strings.Cut(info, "cmdstat_"+command+":")
	_, after, _ = strings.Cut(after, "usec_per_call=")
	text, _, _ := strings.Cut(after, ",")
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// BenchmarkRun is what a decision costs the server when so many calls are decided
// in one run.
func BenchmarkRun(b *testing.B) {
	server := redistest.Start(b)
	const keys = 640
	for _, known := range []bool{false, true} {
		for _, calls := range []int{1, 4, 16, 64} {
			b.Run(fmt.Sprintf("known=%v/calls=%d", known, calls), func(b *testing.B) {
				script := newClocked(b, server)
				server.Do(b, "FLUSHALL")
				now := int64(1_700_000_000_000_000)
				round := func(serial int) {
					for key := 0; key < keys; key += calls {
						var run []*call
						for i := range calls {
							a := one(fmt.Sprint("client", serial, "/", key+i), 1_000_000)
							a.Window = time.Minute
							run = append(run, script.keys.takeCall(patience, []store.Request{a}))
						}
						if err := script.send(now, commandOf(run...)); err != nil {
							b.Fatal(err)
						}
					}
					for range keys / calls {
						if _, err := script.conn.Receive(); err != nil {
							b.Fatal(err)
						}
					}
				}
				if known {
					round(0)
				}
				best, serial := math.Inf(1), 1
				for done := 0; done < b.N; done += keys {
					now += 1000
					server.Do(b, "CONFIG", "RESETSTAT")
					if known {
						round(0)
					} else {
						round(serial)
						serial++
					}
					best = min(best, usec(b, server, "evalsha")/float64(calls))
				}
				b.ReportMetric(best, "us/decision")
			})
		}
	}
}
