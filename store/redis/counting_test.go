package redis

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// rig is a store under load, behind a proxy.
type rig struct {
	server *redistest.Server
	proxy  *redistest.Proxy
	admin  *redistest.Conn // to the server
	store  *Store
	tally  tally

	quiet sync.RWMutex // held by calls; locking it stops the load
	stop  chan struct{}
	group sync.WaitGroup
}

const (
	rigPool = 4
	rigWait = 100 * time.Millisecond
)

// newRig starts one. The load is calls for one unit each.
func newRig(t *testing.T, server *redistest.Server, o Options) *rig {
	t.Helper()
	r := &rig{server: server, proxy: redistest.NewProxy(t, server.Addr), admin: server.Dial(t), stop: make(chan struct{})}
	o.Address, o.PoolSize, o.Timeout = r.proxy.Addr, rigPool, 200*time.Millisecond
	r.store = warmed(t, o)
	for range 2 * rigPool {
		r.group.Go(func() {
			for {
				r.quiet.RLock()
				err := r.tally.take(t, r.store, "client", rigWait)
				r.quiet.RUnlock()
				pause := 500 * time.Microsecond
				if err != nil {
					pause = 5 * time.Millisecond
				}
				select {
				case <-r.stop:
					return
				case <-time.After(pause):
				}
			}
		})
	}
	return r
}

// do sends a command, and does not mind an error.
func (r *rig) do(args ...any) { _, _ = r.admin.Do(args...) }

// recovered waits until calls are granted again, and returns how long that
// took.
func (r *rig) recovered(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	before := r.tally.granted.Load()
	eventually(t, "calls are granted again", func() bool { return r.tally.granted.Load() > before+2*rigPool })
	return time.Since(start)
}

// end ends the load.
func (r *rig) end() {
	close(r.stop)
	r.group.Wait()
}

// fault is a trouble, which is begun and ended.
type fault struct {
	name       string
	args       []string // of the server
	options    Options
	begin, end func(t *testing.T, r *rig)
	// again is done again and again in between.
	again func(t *testing.T, r *rig)
	every time.Duration
	kind  store.Kind // of errors that there must be, "" if there need be none
	sure  bool       // all of which are known not to have been executed
	keeps bool       // no connection is lost
}

func faults() []fault {
	nothing := func(*testing.T, *rig) {}
	return []fault{
		{
			name: "a little delay", keeps: true,
			begin: func(_ *testing.T, r *rig) { r.proxy.Delay(15 * time.Millisecond) },
			end:   func(_ *testing.T, r *rig) { r.proxy.Delay(0) },
		}, {
			name: "delay", kind: store.KindTimeout, keeps: true,
			begin: func(_ *testing.T, r *rig) { r.proxy.Delay(150 * time.Millisecond) },
			end:   func(_ *testing.T, r *rig) { r.proxy.Delay(0) },
		}, {
			name: "one byte at a time", keeps: true,
			begin: func(_ *testing.T, r *rig) { r.proxy.Trickle(true) },
			end:   func(_ *testing.T, r *rig) { r.proxy.Trickle(false) },
		}, {
			name: "replies held", kind: store.KindTimeout, keeps: true,
			again: func(_ *testing.T, r *rig) {
				r.proxy.HoldReplies()
				time.Sleep(150 * time.Millisecond)
				r.proxy.ReleaseReplies()
			},
			every: 50 * time.Millisecond, begin: nothing, end: nothing,
		}, {
			name: "connections cut", kind: store.KindBroken,
			again: func(_ *testing.T, r *rig) { r.proxy.Cut() },
			every: 20 * time.Millisecond, begin: nothing, end: nothing,
		}, {
			name: "requests lost", kind: store.KindBroken,
			again: func(_ *testing.T, r *rig) { r.proxy.DropRequests(2) },
			every: 20 * time.Millisecond, begin: nothing,
			end: func(_ *testing.T, r *rig) { r.proxy.DropRequests(0) },
		}, {
			name: "replies lost", kind: store.KindBroken,
			again: func(_ *testing.T, r *rig) { r.proxy.LoseReplies(2) },
			every: 20 * time.Millisecond, begin: nothing,
			end: func(_ *testing.T, r *rig) { r.proxy.LoseReplies(0) },
		}, {
			name: "reset in mid-reply", kind: store.KindBroken,
			again: func(_ *testing.T, r *rig) { r.proxy.CutReplies(2) },
			every: 20 * time.Millisecond, begin: nothing,
			end: func(_ *testing.T, r *rig) { r.proxy.CutReplies(0) },
		}, {
			name: "connections black-holed", kind: store.KindTimeout,
			begin: func(_ *testing.T, r *rig) { r.proxy.Blackhole(true, false) }, end: nothing,
		}, {
			name: "connects black-holed", kind: store.KindTimeout,
			begin: func(_ *testing.T, r *rig) { r.proxy.Blackhole(true, true) },
			end:   func(_ *testing.T, r *rig) { r.proxy.Blackhole(false, false) },
		}, {
			name: "connections refused", kind: store.KindAway,
			begin: func(_ *testing.T, r *rig) { r.proxy.Refuse(true) },
			again: func(_ *testing.T, r *rig) { r.proxy.Cut() }, // one may just have been made
			every: 20 * time.Millisecond,
			end:   func(_ *testing.T, r *rig) { r.proxy.Refuse(false) },
		}, {
			name: "stopped", kind: store.KindTimeout,
			begin: func(_ *testing.T, r *rig) { r.server.Stop() },
			end:   func(_ *testing.T, r *rig) { r.server.Cont() },
		}, {
			name:  "clients killed",
			again: func(_ *testing.T, r *rig) { r.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") },
			every: 200 * time.Millisecond, begin: nothing, end: nothing,
		}, {
			name: "clients paused", kind: store.KindTimeout,
			begin: func(_ *testing.T, r *rig) { r.do("CLIENT", "PAUSE", 600, "ALL") }, end: nothing,
		}, {
			name: "another's script", args: []string{"--lua-time-limit", "20"}, kind: store.KindReply,
			begin: func(_ *testing.T, r *rig) { _ = r.admin.Send("EVAL", "while true do end", 0); go r.do("PING") },
			end:   func(t *testing.T, r *rig) { r.server.Do(t, "SCRIPT", "KILL") },
		}, {
			name: "loading", kind: store.KindReply,
			begin: func(t *testing.T, r *rig) {
				r.quiet.Lock() // what is written after the snapshot is lost
				defer r.quiet.Unlock()
				idle(t, r.store)
				r.server.RestartLoading(t, 600*time.Millisecond)
			},
			end: nothing,
		}, {
			name: "out of memory", kind: store.KindReply, sure: true, keeps: true,
			begin: func(_ *testing.T, r *rig) { r.do("CONFIG", "SET", "maxmemory", 1) },
			end:   func(_ *testing.T, r *rig) { r.do("CONFIG", "SET", "maxmemory", 0) },
		}, {
			name: "too many clients", kind: store.KindBroken,
			begin: func(_ *testing.T, r *rig) {
				r.do("CONFIG", "SET", "maxclients", 1)
				r.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			},
			end: func(_ *testing.T, r *rig) { r.do("CONFIG", "SET", "maxclients", 1000) },
		}, {
			name: "wrong password", args: []string{"--requirepass", "right-one"},
			options: Options{Password: "right-one"}, kind: store.KindUnavailable,
			begin: func(_ *testing.T, r *rig) {
				r.do("CONFIG", "SET", "requirepass", "another")
				r.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			},
			end: func(_ *testing.T, r *rig) { r.do("CONFIG", "SET", "requirepass", "right-one") },
		}, {
			name: "rights revoked", kind: store.KindReply, sure: true, keeps: true,
			begin: func(_ *testing.T, r *rig) { r.do("ACL", "SETUSER", "default", "-evalsha", "-eval") },
			end:   func(_ *testing.T, r *rig) { r.do("ACL", "SETUSER", "default", "+@all") },
		}, {
			name: "made a replica", kind: store.KindReply,
			begin: func(_ *testing.T, r *rig) {
				r.do("CONFIG", "SET", "repl-diskless-load", "disabled")
				r.do("REPLICAOF", "127.0.0.1", 1)
			},
			end: func(_ *testing.T, r *rig) { r.do("REPLICAOF", "NO", "ONE") },
		},
	}
}

// idle waits until nothing is under way.
func idle(t *testing.T, s *Store) {
	t.Helper()
	eventually(t, "nothing is under way", func() bool {
		s.one.mu.Lock()
		defer s.one.mu.Unlock()
		return s.one.workers == 0
	})
}

// TestCounting makes every kind of trouble while calls are under way. Each call
// that is granted is counted once, each that was certainly not executed not at
// all, the others once or not at all, and if pending calls turn out to be granted, once.
// When the trouble is over, calls are granted again.
func TestCounting(t *testing.T) {
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, redistest.Start(t, f.args...), f.options)
			r.recovered(t)
			f.begin(t, r)
			for end := time.Now().Add(700 * time.Millisecond); time.Now().Before(end); {
				if f.again == nil {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				f.again(t, r)
				time.Sleep(f.every)
			}
			f.end(t, r)
			t.Logf("granted again after %v", r.recovered(t))
			r.end()
			idle(t, r.store)

			o := f.options
			o.Address = r.server.Addr
			r.tally.check(t, warmed(t, o), "client")
			if _, ok := r.tally.kinds.Load(f.kind); !ok && f.kind != "" {
				t.Errorf("no error was of kind %v; was there trouble?", f.kind)
			}
			if r.tally.granted.Load() == 0 || f.sure && r.tally.unknown.Load() != 0 {
				t.Errorf("%d granted, %d of unknown fate", r.tally.granted.Load(), r.tally.unknown.Load())
			}
			if got := r.proxy.Accepted(); f.keeps && got > rigPool+1 {
				t.Errorf("%d connections were made; want no more than %d", got, rigPool+1)
			}
			eventually(t, "no more connections than ever", func() bool { return r.proxy.Open() <= rigPool+1 })
			r.store.Close()
			eventually(t, "no connection remains", func() bool { return r.proxy.Open() == 0 })
		})
	}
}

// TestFaultsLeaveNothing: what trouble leaves behind does not add up.
func TestFaultsLeaveNothing(t *testing.T) {
	server := redistest.Start(t)
	warmed(t, Options{Address: server.Addr}).Close() // goroutines that the library starts once
	before := runtime.NumGoroutine()
	r := newRig(t, server, Options{})
	r.recovered(t)
	eventually(t, "connections are there", func() bool { return r.proxy.Open() > 1 })
	for range 5 {
		r.proxy.Blackhole(true, true)
		time.Sleep(150 * time.Millisecond)
		r.proxy.Blackhole(false, false)
		r.recovered(t)
		r.proxy.LoseReplies(3)
		r.recovered(t)
		r.proxy.Cut()
		r.recovered(t)
	}
	r.end()
	idle(t, r.store)
	r.tally.check(t, r.store, "client")
	r.store.Close()
	r.proxy.Cut()
	settled(t, before+1) // the proxy's
}
