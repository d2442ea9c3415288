package redis

import (
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// TestSentinel has one set of servers for all, since a failover takes a while.
func TestSentinel(t *testing.T) {
	t.Parallel()
	r := redistest.StartSentinel(t, redistest.SentinelOptions{Password: "of-data", SentinelPassword: "of-sentinels"})

	t.Run("conformance", func(t *testing.T) {
		shared := func(t *testing.T) store.Store { return open(t, behind(r)) }
		storetest.Run(t, shared)
		t.Run("shared", func(t *testing.T) { storetest.RunShared(t, shared) })
		t.Run("steered", func(t *testing.T) {
			storetest.RunSteered(t, func(t *testing.T) store.Steered { return warmed(t, behind(r)) })
		})
	})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *redistest.Sentinel)
	}{
		{"errors", sentinelErrors},
		{"least rights", sentinelRights},
		{"closed", sentinelClosed},
		{"some are away", sentinelsAway},
		{"planned failover", sentinelFailover},
		{"slots in flight over a failover", sentinelInflight},
		{"master is killed", masterKilled},
		{"master is stopped", masterStopped},
		{"failover to a replica that lags", sentinelLags},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, r) })
	}
}

// behind are the options for servers that Sentinels watch over.
func behind(r *redistest.Sentinel) Options {
	return Options{
		DialTimeout: patience, Sentinels: r.Addrs, MasterName: r.Name, Password: "of-data", SentinelPassword: "of-sentinels"}
}

func sentinelErrors(t *testing.T, r *redistest.Sentinel) {
	for _, test := range []struct {
		what   string
		change func(*Options)
		want   []string
	}{
		{"master name", func(o *Options) { o.MasterName = "other" }, []string{`no master of the name "other"`, r.Addrs[0], r.Addrs[2]}},
		{"password", func(o *Options) { o.SentinelPassword = "hunter2" }, []string{"WRONGPASS", "sentinel " + r.Addrs[0]}},
		{"no password", func(o *Options) { o.SentinelPassword = "" }, []string{"NOAUTH", "sentinel " + r.Addrs[0]}},
		{"password of the servers", func(o *Options) { o.Password = "hunter2" }, []string{"WRONGPASS"}},
		{"no Sentinel", func(o *Options) { o.Sentinels, o.SentinelPassword = []string{r.Servers[0].Addr}, o.Password }, []string{r.Servers[0].Addr, "no Sentinel"}},
	} {
		o := behind(r)
		test.change(&o)
		s := open(t, o)
		// A call while the keeper hangs up is told that only.
		var e *store.Error
		eventually(t, fmt.Sprintf("%s: the error says %q", test.what, test.want), func() bool {
			e = errorOf(t, s, one("client", 10))
			return !slices.ContainsFunc(test.want, func(want string) bool { return !strings.Contains(e.Error(), want) })
		})
		if !e.Unexecuted || strings.Contains(e.Error(), "hunter2") || strings.Contains(e.Error(), "\n") {
			t.Errorf("%s: %v, unexecuted %v", test.what, e, e.Unexecuted)
		}
	}
}

// sentinelRights: a user needs the same rights as on a single server, and a
// Sentinel's own user needs one command.
func sentinelRights(t *testing.T, r *redistest.Sentinel) {
	for _, server := range r.Servers {
		server.Do(t, "ACL", "SETUSER", "limiter", "on", ">hunter2", "resetkeys", "~drl:*", "-@all",
			"+evalsha", "+eval", "+script|load", "+time", "+get", "+mget", "+set", "+del", "+info")
	}
	o := behind(r)
	o.Username, o.Password = "limiter", "hunter2"
	if info := r.Sentinels[0].Info(t, "server", "redis_version"); !strings.HasPrefix(info, "6.0") {
		for _, sentinel := range r.Sentinels {
			sentinel.Do(t, "ACL", "SETUSER", "asker", "on", ">hunter3", "-@all", "+sentinel|get-master-addr-by-name")
		}
		o.SentinelUsername, o.SentinelPassword = "asker", "hunter3"
	}
	warmed(t, o).Close()
}

// sentinelClosed: a store that is closed leaves nothing behind, neither at the
// servers nor at the Sentinels.
func sentinelClosed(t *testing.T, r *redistest.Sentinel) {
	master := r.Master(t)
	settle := func(what string, before int) {
		t.Helper()
		eventually(t, what+": nothing remains", func() bool {
			for _, server := range append(r.Sentinels, master) {
				if server.Clients(t) > 0 {
					return false
				}
			}
			return runtime.NumGoroutine() <= before
		})
	}
	settle("of other tests", 1<<30)
	before := runtime.NumGoroutine()
	open(t, behind(r)).Close()
	settle("at once", before)
	s := warmed(t, behind(r))
	s.Close()
	granted(t, s, one("closed", 10))
	settle("used after it was closed", before)

	master.Stop()
	defer master.Cont()
	s = open(t, behind(r))
	failedBy(t, s, one("closed", 10), 50*time.Millisecond)
	s.Close()
	eventually(t, "the master is stopped: goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	master.Cont()
	settle("the master was stopped", before)
	r.WaitStable(t)
}

// sentinelsAway: one Sentinel that answers is enough, wherever it stands in the
// list.
func sentinelsAway(t *testing.T, r *redistest.Sentinel) {
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	dead := redistest.Start(t)
	dead.Kill()
	o := behind(r)
	o.DialTimeout = 0
	o.Sentinels = []string{mute.Addr().String(), dead.Addr, mute.Addr().String(), mute.Addr().String(), r.Addrs[1]}
	start := time.Now()
	warmed(t, o).Close()
	t.Logf("the first call was granted after %v", time.Since(start))

	o = o.withDefaults()
	m := newSentinels(o, newSecrets(o))
	dial := func() time.Duration {
		start := time.Now()
		conn, err := m.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(m.conns) != 1 {
			t.Errorf("%d connections are known", len(m.conns))
		}
		conn.Close()
		if len(m.conns) != 0 {
			t.Error("a closed connection is known")
		}
		return time.Since(start)
	}
	took := dial()
	if got := m.first.Load(); got != 4 {
		t.Errorf("Sentinel %d will be asked first, want the one that answers", got)
	}
	t.Logf("connections took %v and %v", took, dial())
	m.first.Store(0)
	m.options.Sentinels = o.Sentinels[:4]
	_, err = m.dial(t.Context())
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), mute.Addr().String()) {
		t.Errorf("no Sentinel answers: %v", err)
	}
}

// recovers runs a load through a failover, and returns the counts, and when the
// last call was granted by the old master and the first by the new one.
func recovers(t *testing.T, r *redistest.Sentinel, s *Store, client string, fail func(old *redistest.Server, c *tally) *redistest.Server) *tally {
	t.Helper()
	c := new(tally)
	var latest atomic.Int64
	stop := under(4, func(int) {
		if c.take(t, s, client, 100*time.Millisecond) == nil {
			latest.Store(time.Now().UnixNano())
		} else {
			time.Sleep(time.Millisecond)
		}
	})
	defer stop()
	time.Sleep(200 * time.Millisecond)
	began := time.Now()
	master := fail(r.Master(t), c)
	failover := time.Now()
	before := master.Calls(t, "evalsha")
	eventually(t, "calls are granted by the new master", func() bool {
		return latest.Load() > failover.UnixNano() && master.Calls(t, "evalsha") > before+100
	})
	t.Logf("failover after %v, calls granted %v after that", failover.Sub(began), time.Since(failover))
	time.Sleep(500 * time.Millisecond)
	stop()
	return c
}

// ending ends the work of a master under load, and returns how many of the units
// granted by it its replica may lack: what it granted since the replica had all.
// How far behind a replica is depends on how busy the machine is.
func ending(t *testing.T, r *redistest.Sentinel, master *redistest.Server, c *tally, end func()) int64 {
	t.Helper()
	before := c.granted.Load()
	master.WaitReplicated(t, r.Servers[(slices.Index(r.Servers, master)+1)%2])
	end()
	return c.granted.Load() - before + 4 // each caller may be about to count one
}

// lost checks the counts, and logs what was granted and is not in them: what the
// replica had not got yet.
func lost(t *testing.T, s *Store, c *tally, client string, most int64) {
	t.Helper()
	got, granted, unknown := used(t, s, client, plenty), c.granted.Load(), c.unknown.Load()
	t.Logf("%d granted, %d unknown, %d unexecuted; %d units used, of which %d may be lost", granted, unknown, c.unexecuted.Load(), got, most)
	if got > granted+unknown || got < granted-most {
		t.Errorf("%d units used by %d grants and %d unknown calls, %d may be lost", got, granted, unknown, most)
	}
}

// sentinelFailover has another master named while the old one works. The old
// one is told ten seconds later; until then it would go on granting.
func sentinelFailover(t *testing.T, r *redistest.Sentinel) {
	period := func(ms int) bool {
		for _, sentinel := range r.Sentinels {
			if reply, err := sentinel.Dial(t).Do("SENTINEL", "DEBUG", "publish-period", ms); err != nil {
				t.Logf("publish-period: %v %v", reply, err)
				return false
			}
		}
		return true
	}
	period(2000) // the default
	s := warmed(t, behind(r))
	idle := warmed(t, behind(r))
	var old *redistest.Server
	var parted time.Duration
	c := recovers(t, r, s, "planned", func(master *redistest.Server, _ *tally) *redistest.Server {
		old = master
		now := r.Failover(t)
		start := time.Now()
		eventually(t, "the old master is not asked any more", func() bool { return old.Clients(t) == 0 })
		parted = time.Since(start)
		t.Logf("the old master, %s by role, was asked for %v", old.Info(t, "replication", "role"), parted)
		return now
	})
	if parted > 5*time.Second {
		t.Errorf("the old master was asked for %v", parted)
	}
	granted(t, idle, one("warm", plenty))
	if got := old.Clients(t); got > 0 {
		t.Errorf("%d connections to the old master", got)
	}
	period(500)
	r.WaitStable(t)
	lost(t, s, c, "planned", plenty)
}

// masterKilled ends the master under load.
func masterKilled(t *testing.T, r *redistest.Sentinel) {
	s := warmed(t, behind(r))
	var old *redistest.Server
	var most int64
	c := recovers(t, r, s, "killed", func(master *redistest.Server, c *tally) *redistest.Server {
		old = master
		most = ending(t, r, master, c, master.Kill)
		return r.WaitFailover(t, master)
	})
	lost(t, s, c, "killed", most)
	old.Restart(t)
	r.WaitStable(t)
	granted(t, s, one("warm", plenty))
}

// masterStopped freezes the master under load. It comes back when another one
// works in its place, works off what it was sent, and becomes a replica. If it
// came back earlier, it would grant what is lost then, and nobody could say how much.
func masterStopped(t *testing.T, r *redistest.Sentinel) {
	s := warmed(t, behind(r))
	idle := warmed(t, behind(r)) // has connections to the old master, too
	var old *redistest.Server
	var most int64
	c := recovers(t, r, s, "stopped", func(master *redistest.Server, c *tally) *redistest.Server {
		old = master
		most = ending(t, r, master, c, master.Stop)
		now := r.WaitFailover(t, master)
		before := now.Calls(t, "evalsha")
		eventually(t, "the new master is asked", func() bool { return now.Calls(t, "evalsha") > before+100 })
		master.Cont()
		return now
	})
	for range 10 {
		c.take(t, idle, "stopped", patience)
	}
	r.WaitStable(t)
	if role := old.Info(t, "replication", "role"); role != "slave" {
		t.Errorf("the old master is a %s", role)
	}
	lost(t, s, c, "stopped", most)
}

// sentinelLags has a replica without its master's latest writes stand in for
// it, which is reported.
func sentinelLags(t *testing.T, r *redistest.Sentinel) {
	s := warmed(t, behind(r))
	reports := make(chan store.Report, 1000)
	defer s.Watch(func(r store.Report) { reports <- r })()
	master := r.Master(t)
	replica := r.Servers[(slices.Index(r.Servers, master)+1)%2]
	granted(t, s, one("lags", 10))
	master.WaitReplicated(t, replica)
	cutOff(t, master, replica)
	granted(t, s, one("lags", 10))
	time.Sleep(2 * beatEvery)
	master.Kill()
	r.WaitFailover(t, master)
	deadline := time.After(20 * time.Second)
	for {
		select {
		case r := <-reports:
			if r.Lost == "" {
				continue
			}
			t.Logf("lost: %s", r.Lost)
		case <-deadline:
			t.Error("it is not reported that writes are lost")
		}
		break
	}
	if got := used(t, s, "lags", 10); got != 1 {
		t.Errorf("%d units used, want the one that was not lost", got)
	}
}
