package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// Shares of the limit that may be granted in any interval of one window.
const (
	strictly = 1.0 // the limit holds
	// While the store is away each instance has its part of the limit, beside
	// what the store had granted before.
	locally = 2.0
	// If the store comes back empty, it grants once more.
	forgetfully = 3.0
)

// otherFaults are measured by tests of their own.
var otherFaults = []string{
	"100 reloads under load",
	"five instances restart together",
	"many new clients",
	"clients that abort at once",
	"one client far over its limit, at full speed",
	"a thousand zones on each request",
	"keys of 60 kB, of any bytes",
}

// proxied is a fault of the network: a setting of the proxy, and back.
func proxied(on, off func(p *redistest.Proxy)) func(*testing.T, *rig) func() {
	return func(_ *testing.T, r *rig) func() {
		r.proxies.each(on)
		return func() { r.proxies.each(off) }
	}
}

// repeated does something again and again until the fault ends.
func repeated(pause time.Duration, do func(t *testing.T, r *rig)) func(*testing.T, *rig) func() {
	return func(t *testing.T, r *rig) func() {
		stop := make(chan struct{})
		var running sync.WaitGroup
		running.Go(func() {
			for {
				do(t, r)
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
			}
		})
		return func() {
			close(stop)
			running.Wait()
		}
	}
}

var faults = []fault{
	{
		name: "none", most: strictly, quiet: true,
		inject: func(*testing.T, *rig) func() { return func() {} },
	},
	{
		name: "down at start", most: locally, absent: true,
		before: func(_ *testing.T, r *rig) { r.proxies.each(func(p *redistest.Proxy) { p.Refuse(true) }) },
		inject: proxied(func(*redistest.Proxy) {}, func(p *redistest.Proxy) { p.Refuse(false) }),
	},
	{
		name: "killed, restarted empty", most: forgetfully,
		inject: func(t *testing.T, r *rig) func() {
			r.server.Kill()
			return func() { r.server.Restart(t) }
		},
	},
	{
		name: "stopped for 10 s (SIGSTOP)", long: 10 * time.Second, most: locally,
		inject: func(_ *testing.T, r *rig) func() {
			r.server.Stop()
			return r.server.Cont
		},
	},
	{
		name: "established connections black-holed", most: locally,
		inject: proxied(
			func(p *redistest.Proxy) { p.Blackhole(true, false) },
			func(p *redistest.Proxy) { p.Blackhole(false, false) }),
	},
	{
		name: "all connections black-holed, new ones too", most: locally,
		inject: proxied(
			func(p *redistest.Proxy) { p.Blackhole(true, true) },
			func(p *redistest.Proxy) { p.Blackhole(false, false) }),
	},
	{
		name: "connections reset in mid-reply", most: locally,
		inject: repeated(100*time.Millisecond, func(_ *testing.T, r *rig) { r.proxies.each(func(p *redistest.Proxy) { p.CutReplies(1) }) }),
	},
	{
		name: "replies lost after execution", most: locally,
		inject: repeated(100*time.Millisecond, func(_ *testing.T, r *rig) { r.proxies.each(func(p *redistest.Proxy) { p.LoseReplies(1) }) }),
	},
	{
		name: "requests lost before execution", most: locally,
		inject: repeated(100*time.Millisecond, func(_ *testing.T, r *rig) { r.proxies.each(func(p *redistest.Proxy) { p.DropRequests(1) }) }),
	},
	{
		name: "replies 15 ms later", most: strictly, quiet: true,
		inject: proxied(
			func(p *redistest.Proxy) { p.Delay(15 * time.Millisecond) },
			func(p *redistest.Proxy) { p.Delay(0) }),
	},
	{
		name: "replies 150 ms later", most: locally,
		inject: proxied(
			func(p *redistest.Proxy) { p.Delay(150 * time.Millisecond) },
			func(p *redistest.Proxy) { p.Delay(0) }),
	},
	{
		name: "one reply in twenty 200 ms later", most: locally,
		inject: proxied(
			func(p *redistest.Proxy) { p.DelayEvery(20, 200*time.Millisecond) },
			func(p *redistest.Proxy) { p.DelayEvery(0, 0) }),
	},
	{
		name: "replies one byte at a time", most: locally,
		inject: proxied(
			func(p *redistest.Proxy) { p.Trickle(true) },
			func(p *redistest.Proxy) { p.Trickle(false) }),
	},
	{
		name: "SCRIPT FLUSH every 100 ms", most: strictly, quiet: true,
		inject: repeated(100*time.Millisecond, func(t *testing.T, r *rig) { r.server.Do(t, "SCRIPT", "FLUSH") }),
	},
	{
		name: "a script of somebody else's (BUSY)", most: locally,
		servers: func(t *testing.T) *rig { return oneServer(t, "--lua-time-limit", "500") },
		inject: func(t *testing.T, r *rig) func() {
			other := r.server.Dial(t)
			killed := make(chan struct{})
			go func() {
				defer close(killed)
				_, _ = other.Do("EVAL", "while true do end", 0)
			}()
			return func() {
				r.server.Do(t, "SCRIPT", "KILL")
				<-killed
			}
		},
	},
	{
		name: "CLIENT PAUSE", most: locally,
		inject: func(t *testing.T, r *rig) func() {
			r.server.Do(t, "CLIENT", "PAUSE", faultTime.Milliseconds())
			return func() {}
		},
	},
	{
		name: "restarted, loading for 3 s", most: forgetfully,
		inject: func(t *testing.T, r *rig) func() {
			r.server.RestartLoading(t, faultTime)
			return func() {
				for r.server.Info(t, "persistence", "loading") != "0" {
					time.Sleep(20 * time.Millisecond)
				}
			}
		},
	},
	{
		name: "out of memory (noeviction)", most: locally,
		inject: func(t *testing.T, r *rig) func() {
			r.server.Do(t, "CONFIG", "SET", "maxmemory-policy", "noeviction")
			r.server.Do(t, "CONFIG", "SET", "maxmemory", "1")
			return func() { r.server.Do(t, "CONFIG", "SET", "maxmemory", "0") }
		},
	},
	{
		name: "FLUSHALL", most: 2 * strictly,
		inject: func(t *testing.T, r *rig) func() {
			r.server.Do(t, "FLUSHALL")
			return func() {}
		},
	},
	{
		name: "maxclients reached, connections killed", most: locally,
		inject: func(t *testing.T, r *rig) func() {
			// The one that asks stays.
			conn := r.server.Dial(t)
			for _, args := range [][]any{{"CONFIG", "SET", "maxclients", 1}, {"CLIENT", "KILL", "TYPE", "normal"}} {
				if _, err := conn.Do(args...); err != nil {
					t.Fatalf("%v: %v", args, err)
				}
			}
			return func() {
				if _, err := conn.Do("CONFIG", "SET", "maxclients", 1000); err != nil {
					t.Error(err)
				}
			}
		},
	},
	{
		name: "CLIENT KILL every 200 ms", most: locally,
		inject: repeated(200*time.Millisecond, func(t *testing.T, r *rig) {
			r.server.Do(t, "CLIENT", "KILL", "TYPE", "normal")
		}),
	},
	{
		name: "password changed, connections killed", most: locally,
		inject: func(t *testing.T, r *rig) func() {
			conn := r.server.Dial(t)
			do := func(args ...any) {
				if _, err := conn.Do(args...); err != nil {
					t.Errorf("%v: %v", args, err)
				}
			}
			do("CONFIG", "SET", "requirepass", "another")
			do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			return func() { do("CONFIG", "SET", "requirepass", "") }
		},
	},
	{
		name: "an expired certificate", most: locally,
		servers: withTLS,
		inject:  impostor((*redistest.Authority).Expired),
	},
	{
		name: "a certificate of another authority", most: locally,
		servers: withTLS,
		inject: impostor(func(_ *redistest.Authority, t testing.TB) *redistest.Authority {
			return redistest.NewAuthority(t)
		}),
	},
	{
		name: "rights of the user revoked", most: locally,
		inject: func(t *testing.T, r *rig) func() {
			conn := r.server.Dial(t) // over the Unix socket, as another user
			do := func(args ...any) {
				if _, err := conn.Do(args...); err != nil {
					t.Errorf("%v: %v", args, err)
				}
			}
			do("ACL", "SETUSER", "operator", "on", ">pw", "~*", "&*", "+@all")
			do("AUTH", "operator", "pw")
			do("ACL", "SETUSER", "default", "-evalsha", "-eval")
			return func() { do("ACL", "SETUSER", "default", "+@all") }
		},
	},
	{
		name: "all keys overwritten with lists and garbage", most: 2 * strictly,
		inject: func(t *testing.T, r *rig) func() {
			for i, key := range r.server.Keys(t) {
				if i%2 == 0 {
					r.server.Do(t, "SET", key, "garbage")
				} else {
					r.server.Do(t, "DEL", key)
					r.server.Do(t, "LPUSH", key, "a", "list")
				}
			}
			return func() {}
		},
	},
	{
		name: "the master killed (Sentinel)", most: forgetfully, failover: true,
		servers: sentinels,
		inject:  failover(func(s *redistest.Server) { s.Kill() }, func(t *testing.T, s *redistest.Server) { s.Restart(t) }),
	},
	{
		name: "the master stopped, and back after the failover (Sentinel)", most: forgetfully, failover: true,
		servers: sentinels,
		inject:  failover(func(s *redistest.Server) { s.Stop() }, func(_ *testing.T, s *redistest.Server) { s.Cont() }),
	},
	{
		name: "a master killed (Cluster)", most: forgetfully, failover: true,
		servers: clusters(3, 1),
		inject: func(t *testing.T, r *rig) func() {
			old := r.cluster.Owner(t, redistest.Slot(r.hot))
			old.Kill()
			r.cluster.WaitFailover(t, redistest.Slot(r.hot), old)
			return func() {}
		},
	},
	{
		name: "a master without a replica stopped (Cluster)", most: locally,
		servers: clusters(3, 0),
		inject: func(t *testing.T, r *rig) func() {
			old := r.cluster.Owner(t, redistest.Slot(r.hot))
			old.Stop()
			return old.Cont
		},
	},
	{
		name: "the client's slot moved to another master (Cluster)", most: strictly, quiet: true,
		servers: clusters(3, 0),
		inject: func(t *testing.T, r *rig) func() {
			slot := redistest.Slot(r.hot)
			from := r.cluster.Owner(t, slot)
			for _, to := range r.cluster.Nodes {
				if to != from {
					r.cluster.StartMigration(t, slot, from, to)
					time.Sleep(faultTime / 6)
					for r.cluster.MoveKeys(t, slot, 1) > 0 {
						time.Sleep(faultTime / 6)
					}
					r.cluster.FinishMigration(t, slot)
					break
				}
			}
			return func() {}
		},
	},
}

// TestFaults makes everything go wrong, one thing after the other.
func TestFaults(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			note(f.run(t))
		})
	}
}

// withTLS is a rig of a server that speaks TLS, and asks for certificates.
func withTLS(t *testing.T) *rig {
	a := redistest.NewAuthority(t)
	r := behindProxies(t, redistest.StartTLS(t, a), fmt.Sprintf(
		"tls {\n\t\t\t\tca %s\n\t\t\t\tcert %s\n\t\t\t\tkey %s\n\t\t\t}", a.CAFile, a.CertFile, a.KeyFile))
	r.authority = a
	return r
}

// impostor leads all connections to a server with another certificate.
func impostor(other func(*redistest.Authority, testing.TB) *redistest.Authority) func(*testing.T, *rig) func() {
	return func(t *testing.T, r *rig) func() {
		to := func(s *redistest.Server) {
			r.proxies.each(func(p *redistest.Proxy) {
				p.Redirect(s.Addr)
				p.Cut()
			})
		}
		to(redistest.StartTLS(t, other(r.authority, t)))
		return func() { to(r.server) }
	}
}

// sentinels is a rig of a master, a replica and three Sentinels.
func sentinels(t *testing.T) *rig {
	s := redistest.StartSentinel(t, redistest.SentinelOptions{})
	return &rig{
		sentinel: s,
		options: func(i int) string { // two of them, others for each
			return fmt.Sprintf("sentinel\n\t\t\tmaster_name %s\n\t\t\taddress %s %s", s.Name, s.Addrs[i%3], s.Addrs[(i+1)%3])
		},
	}
}

// failover takes the master out, and brings it back when the Sentinels have
// found another.
func failover(out func(*redistest.Server), in func(*testing.T, *redistest.Server)) func(*testing.T, *rig) func() {
	return func(t *testing.T, r *rig) func() {
		old := r.sentinel.Master(t)
		out(old)
		r.sentinel.WaitFailover(t, old)
		return func() { in(t, old) }
	}
}

// clusters returns a rig of a Cluster.
func clusters(masters, replicas int) func(*testing.T) *rig {
	return func(t *testing.T) *rig {
		c := redistest.StartCluster(t, masters, replicas)
		return &rig{cluster: c, options: func(i int) string {
			return fmt.Sprintf("cluster\n\t\t\taddress %s %s", c.Nodes[i%3].Addr, c.Nodes[(i+1)%3].Addr)
		}}
	}
}
