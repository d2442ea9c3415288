package redis

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// watcher notes what is reported of a store.
type watcher struct {
	mu   sync.Mutex
	list []store.Report
}

func watch(t testing.TB, s *Store) *watcher {
	t.Helper()
	w := &watcher{}
	t.Cleanup(s.Watch(func(r store.Report) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.list = append(w.list, r)
	}))
	return w
}

func (w *watcher) all() []store.Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}

// conditions are the ones reported, one after the other.
func (w *watcher) conditions() []store.Condition {
	var list []store.Condition
	for _, r := range w.all() {
		list = append(list, r.Condition)
	}
	return list
}

// losses are the ones reported.
func (w *watcher) losses() []string {
	var list []string
	for _, r := range w.all() {
		if r.Lost != "" {
			list = append(list, r.Lost)
		}
	}
	return list
}

// last waits for a report of a condition that is the last one for now.
func (w *watcher) last(t testing.TB, want store.Condition) store.Report {
	t.Helper()
	var r store.Report
	eventually(t, fmt.Sprintf("the condition is %d", want), func() bool {
		list := w.all()
		if len(list) == 0 || list[len(list)-1].Condition != want {
			return false
		}
		r = list[len(list)-1]
		return true
	})
	return r
}

// lost waits for a loss, and reports how long that took.
func (w *watcher) lost(t testing.TB, want string) {
	t.Helper()
	start, before := time.Now(), len(w.losses())
	eventually(t, want, func() bool { return len(w.losses()) > before })
	t.Logf("noticed after %v: %s", time.Since(start), want)
	if got := w.losses()[before:]; len(got) != 1 || got[0] != want {
		t.Errorf("losses %q; want %q", got, want)
	}
}

const (
	unknown = store.Unknown
	up      = store.Up
	slow    = store.Slow
	away    = store.Away
)

// TestHungServer: once it is known, no call waits for a server that hangs, and
// none is sent to it. When it goes on, calls are sent again.
func TestHungServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	w := watch(t, s)
	var c tally
	proxy.Delay(5 * time.Millisecond) // for then there are several connections
	for range 8 {
		var group sync.WaitGroup
		for range 64 {
			group.Go(func() {
				time.Sleep(rand.N(30 * time.Millisecond))
				c.take(t, s, "client", patience)
			})
		}
		group.Wait()
	}
	proxy.Delay(0)
	if proxy.Open() < 3 {
		t.Errorf("only %d connections", proxy.Open())
	}
	server.Stop()
	eventually(t, "the server is away", func() bool { return store.ErrorKind(c.take(t, s, "client", brief)) == store.KindAway })
	r := w.last(t, away)
	if r.Err == nil || r.Server != proxy.Addr || r.Instances != 1 {
		t.Errorf("report %+v; want the reason, the server and one instance", r)
	}
	s.one.mu.Lock()
	if s.one.client != nil && s.one.client.PoolStats().TotalConns > 1 {
		t.Errorf("%d connections are kept on which nobody answers", s.one.client.PoolStats().TotalConns)
	}
	s.one.mu.Unlock()
	eventually(t, "no connection is kept on which nobody answers", func() bool { return proxy.Open() <= 1 })

	const calls = 1000
	unsure := c.unknown.Load()
	start := time.Now()
	for range calls {
		if err := c.take(t, s, "client", brief); store.ErrorKind(err) != store.KindAway || !strings.Contains(err.Error(), "is away: ") {
			t.Fatalf("Take: %v; want that the server is away, and why", err)
		}
	}
	if took := time.Since(start); took > calls*brief/20 {
		t.Errorf("%d calls that wait %v took %v to fail", calls, brief, took)
	}
	if c.unknown.Load() != unsure {
		t.Error("calls that were not sent are of unknown fate")
	}
	if got := w.conditions(); !slices.Equal(got, []store.Condition{up, away}) {
		t.Errorf("reports %v", got)
	}

	server.Cont()
	start = time.Now()
	eventually(t, "a call is granted", func() bool { return c.take(t, s, "client", brief) == nil })
	t.Logf("granted again after %v", time.Since(start))
	w.last(t, up)
	c.check(t, s, "client")
	if len(w.losses()) != 0 {
		t.Errorf("losses %q of a server that hung", w.losses())
	}
}

// TestHangUp: new calls after a hang-up, and calls that wait in the queue by then,
// go over new connections. Calls under way are answered on the old ones, which
// are then closed.
func TestHangUp(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr, PoolSize: 1, Timeout: 10 * time.Second})
	old := s.one.use()
	proxy.HoldReplies()
	late := pendingTake(t, s, one("late", 10))
	got := make(heard, 1)
	late.Then(got.then)
	queued := make(chan error)
	go func() {
		queued <- s.Take(time.Now(), patience, []store.Request{one("queued", 10)}, make([]store.Decision, 1))
	}()
	waiting := func() bool {
		s.one.mu.Lock()
		defer s.one.mu.Unlock()
		return s.one.queue.size > 0
	}
	eventually(t, "a call is in the queue", waiting)
	before := proxy.Accepted()
	s.one.hangUp(old)
	eventually(t, "it goes over another connection", func() bool { return !waiting() && proxy.Accepted() > before })

	// A user that is late to notice has nothing to hang up.
	fresh := s.one.use()
	s.one.hangUp(old)
	again := s.one.use()
	if fresh == old || again != fresh {
		t.Error("connections were hung up twice")
	}
	s.one.release(fresh)
	s.one.release(again)

	proxy.ReleaseReplies()
	if err := <-queued; err != nil {
		t.Errorf("the call that was in the queue: %v", err)
	}
	select {
	case decisions := <-got:
		if !decisions[0].Granted {
			t.Errorf("decisions %+v", decisions)
		}
	case <-time.After(patience):
		t.Error("the call that was under way is not answered")
	}
	// The keeper's, a worker's.
	eventually(t, "the old connections are closed", func() bool {
		s.one.mu.Lock()
		defer s.one.mu.Unlock()
		return old.users == 1 && s.one.workers == 0
	})
	s.one.release(old)
	if err := old.Ping(t.Context()).Err(); err != redis.ErrClosed {
		t.Errorf("ping on the old connections: %v", err)
	}
	granted(t, s, one("client", 10))
}

// TestEmptyServer: a server that was killed comes back empty. It is given the
// script before it is sent a call.
func TestEmptyServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	w := watch(t, s)
	stop := make(chan struct{})
	var group sync.WaitGroup
	var granted atomic.Int64
	for range 8 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var decisions [1]store.Decision
				if err := s.Take(time.Now(), brief, []store.Request{one("client", plenty)}, decisions[:]); err == nil {
					granted.Add(1)
				} else {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	eventually(t, "calls are granted", func() bool { return granted.Load() > 10 })
	server.Kill()
	w.last(t, away)
	server.Restart(t)
	start := time.Now()
	w.lost(t, "the data is gone")
	w.last(t, up)
	t.Logf("up again after %v", time.Since(start))
	before := granted.Load()
	eventually(t, "calls are granted again", func() bool { return granted.Load() > before+10 })
	close(stop)
	group.Wait()
	if got := server.Info(t, "errorstats", "errorstat_NOSCRIPT"); got != "" {
		t.Errorf("calls came before the script: %s", got)
	}
	time.Sleep(2 * beatEvery)
	if got := w.losses(); len(got) != 1 {
		t.Errorf("losses %q; want it reported once", got)
	}
	if got := watch(t, s).losses(); len(got) != 0 {
		t.Errorf("losses %q are told to a later watcher", got)
	}
	if got := w.conditions(); !slices.Equal(slices.Compact(got), []store.Condition{up, away, up}) {
		t.Errorf("reports %v", got)
	}
}

// TestLosses makes a server lose what it had.
func TestLosses(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	w := watch(t, s)
	w.last(t, up)
	beats := func() int { return server.Calls(t, "eval") }
	pause := func() {
		t.Helper()
		before := beats()
		eventually(t, "heartbeats", func() bool { return beats() > before })
	}
	key := listKey(DefaultKeyPrefix, "")

	pause()
	server.Do(t, "FLUSHALL")
	w.lost(t, "the data is gone")

	pause()
	old := server.Do(t, "DUMP", key).(string)
	pause()
	server.Do(t, "RESTORE", key, 0, old, "REPLACE")
	w.lost(t, "writes that were confirmed are gone")

	pause()
	server.Do(t, "DEL", key)
	server.Do(t, "HSET", key, "field", "value")
	w.lost(t, "the data is gone")

	pause()
	if got := w.losses(); len(got) != 3 {
		t.Errorf("losses %q; want each reported once", got)
	}
	server.Do(t, "CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", "4mb")
	server.Do(t, "SETRANGE", "flood", 3<<20, "x")
	for i := range 30 {
		server.Do(t, "SETRANGE", fmt.Sprint("flood", i), 1<<18, "x")
	}
	eventually(t, "eviction is noticed", func() bool { return len(w.losses()) > 3 })
	if got := w.losses()[3]; got != "keys were evicted" && got != "the data is gone" {
		t.Errorf("eviction was taken for: %s", got)
	}
}

// TestNoLosses is what is no loss.
func TestNoLosses(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	w := watch(t, s)
	var others []*watcher
	for range 3 {
		other := warmed(t, Options{Address: server.Addr})
		others = append(others, watch(t, other))
		server.Do(t, "SCRIPT", "FLUSH")
		time.Sleep(300 * time.Millisecond)
		other.Close()
		server.Do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		time.Sleep(300 * time.Millisecond)
	}
	server.Stop()
	eventually(t, "the server is away", func() bool {
		return store.ErrorKind(s.Take(time.Now(), brief, []store.Request{one("client", plenty)}, make([]store.Decision, 1))) == store.KindAway
	})
	server.Cont()
	w.last(t, up)
	others = append(others, watch(t, warmed(t, Options{Address: server.Addr})), w)
	time.Sleep(2 * beatEvery)
	for _, w := range others {
		if got := w.losses(); len(got) != 0 {
			t.Errorf("losses %q", got)
		}
	}
}

// TestInstances: an instance is counted when it opens a store, and struck off the
// list when it closes it.
func TestInstances(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var stores []*Store
	for range 3 {
		stores = append(stores, warmed(t, Options{Address: server.Addr}))
	}
	w := watch(t, stores[0])
	for _, s := range stores {
		eventually(t, "three instances", func() bool { return s.Instances() == 3 })
	}
	eventually(t, "a report of three instances", func() bool { list := w.all(); return list[len(list)-1].Instances == 3 })
	length := func() int64 { return server.Do(t, "STRLEN", listKey(DefaultKeyPrefix, "")).(int64) }
	eventually(t, "three on the list", func() bool { return length() == 7+3*22 })
	// Long before it would be taken for dead.
	left := func() {
		t.Helper()
		start := time.Now()
		eventually(t, "two on the list", func() bool { return length() == 7+2*22 })
		if took := time.Since(start); took > aliveFor*3/4 {
			t.Errorf("it left after %v", took)
		}
	}
	stores[2].Close()
	left()
	if got := stores[0].Instances(); got != 3 {
		t.Errorf("%d instances as soon as one has left, want 3 for a while", got)
	}
	// One that is closed before it knows of the server.
	proxy := redistest.NewProxy(t, server.Addr)
	proxy.Delay(100 * time.Millisecond)
	s := open(t, Options{Address: proxy.Addr})
	eventually(t, "one more on the list", func() bool { return length() == 7+3*22 })
	s.Close()
	left()

	server.Kill()
	if got := open(t, Options{Address: server.Addr, Instances: 7}).Instances(); got != 7 {
		t.Errorf("%d instances of a server that was never seen, want 7 as the option says", got)
	}
}

// TestSlowServer: its connections stay, replies that come too late are heard, and
// calls that wait for long are served.
func TestSlowServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	const pool = 4
	s := warmed(t, Options{Address: proxy.Addr, PoolSize: pool})
	w := watch(t, s)
	w.last(t, up)
	const delay = 150 * time.Millisecond
	proxy.Delay(delay)
	var c tally
	for range 2 { // it stays slow
		eventually(t, "not asked any more", func() bool { return store.ErrorKind(c.take(t, s, "client", brief)) == store.KindAway })
		r := w.last(t, slow)
		if r.Took < delay || r.Took > 10*delay || r.Wait != brief || r.Err != nil {
			t.Errorf("report %+v; want that it took %v where calls wait %v", r, delay, brief)
		}
		if err := c.take(t, s, "client", patience); err != nil {
			t.Errorf("a call that waits %v: %v", patience, err)
		}
		if err := c.take(t, s, "client", brief); store.ErrorKind(err) != store.KindAway {
			t.Errorf("a call that waits %v: %v", brief, err)
		}
		time.Sleep(beatEvery)
	}
	eventually(t, "pending decisions are heard", func() bool { return c.resolved.Load() == c.unknown.Load() })
	if c.resolved.Load() < failuresToOpen {
		t.Errorf("%d pending decisions; want at least %d", c.resolved.Load(), failuresToOpen)
	}
	proxy.Delay(0)
	start := time.Now()
	eventually(t, "a call is granted", func() bool { return c.take(t, s, "client", brief) == nil })
	t.Logf("granted again after %v", time.Since(start))
	w.last(t, up)
	if got := w.conditions(); !slices.Equal(got, []store.Condition{up, slow, up}) {
		t.Errorf("reports %v", got)
	}
	if got := proxy.Accepted(); got > pool+1 {
		t.Errorf("%d connections were made; want no more than %d", got, pool+1)
	}
	c.check(t, s, "client")
}

// TestSlowThenStopped: a slow server stops, and is away for calls that wait for
// long, too.
func TestSlowThenStopped(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	w := watch(t, s)
	w.last(t, up)
	proxy.Delay(150 * time.Millisecond)
	var c tally
	eventually(t, "slow", func() bool { c.take(t, s, "client", brief); return slices.Contains(w.conditions(), slow) })
	server.Stop()
	eventually(t, "not asked any more", func() bool {
		return store.ErrorKind(c.take(t, s, "client", 4*brief)) == store.KindAway
	})
	w.last(t, away)
	server.Cont()
	w.last(t, slow)
	c.check(t, s, "client")
}

// TestHiccups: a server is late under load, and well whenever it is tried. That
// is reported if it comes again soon, and is over when it has not for a while.
func TestHiccups(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	w := watch(t, s)
	w.last(t, up)
	n := s.one
	hiccup := func() {
		t.Helper()
		n.breaker.heard.Store(int64(time.Since(epoch) - brief))
		for range failuresToOpen {
			n.failed(errTrouble, brief)
		}
		if !n.breaker.isAway() {
			t.Error("the breaker did not open")
		}
		eventually(t, "the breaker closes", func() bool { return n.breaker.admits(brief) })
	}
	n.overdue.Store(int64(7 * brief))
	hiccup()
	time.Sleep(beatEvery / 2)
	if got := w.conditions(); !slices.Equal(got, []store.Condition{up, slow, up}) {
		t.Errorf("reports %v of the first hiccup", got)
	}
	// Now it is slow for a while.
	hiccup()
	r := w.last(t, slow)
	if r.Took != 7*brief || r.Wait != brief {
		t.Errorf("report %+v; want that it took %v where calls wait %v", r, 7*brief, brief)
	}
	start := time.Now()
	hiccup()
	w.last(t, up)
	if took := time.Since(start); took < hiccupTime*9/10 {
		t.Errorf("all was well %v after the last hiccup", took)
	}
	if got := w.conditions(); !slices.Equal(got, []store.Condition{up, slow, up, slow, up}) {
		t.Errorf("reports %v", got)
	}
}

// TestNowAndThenLate: one reply in twenty is late, which is no reason to stop
// asking, and nothing to report.
func TestNowAndThenLate(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	w := watch(t, s)
	w.last(t, up)
	proxy.DelayEvery(20, 200*time.Millisecond)
	var c tally
	var group sync.WaitGroup
	end := time.Now().Add(3 * time.Second)
	for range 4 {
		group.Go(func() {
			for time.Now().Before(end) {
				c.take(t, s, "client", brief)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	group.Wait()
	proxy.DelayEvery(0, 0)
	if c.resolved.Load()+c.unknown.Load() == 0 {
		t.Error("nothing was late")
	}
	if _, ok := c.kinds.Load(store.KindAway); ok {
		t.Error("the server was not asked for a while")
	}
	if got := w.conditions(); !slices.Equal(got, []store.Condition{up}) {
		t.Errorf("reports %v", got)
	}
	c.check(t, s, "client")
}

// TestWatch: a watcher is told the present state and then the changes, until it
// stops.
func TestWatch(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	first := watch(t, s)
	first.last(t, up)
	second := watch(t, s)
	if got := second.conditions(); !slices.Equal(got, []store.Condition{up}) {
		t.Errorf("at first, reports %v; want the present state", got)
	}
	var third watcher
	stop := s.Watch(func(r store.Report) { third.list = append(third.list, r) })
	stop()
	stop()
	server.Kill()
	for range failuresToOpen {
		_ = s.Take(time.Now(), brief, []store.Request{one("client", plenty)}, make([]store.Decision, 1))
	}
	first.last(t, away)
	second.last(t, away)
	if got := third.conditions(); !slices.Equal(got, []store.Condition{up}) {
		t.Errorf("reports %v to one that has stopped", got)
	}
	if got := watch(t, s).all(); len(got) != 1 || got[0].Condition != away || got[0].Err == nil {
		t.Errorf("at first, reports %+v; want that it is away, and why", got)
	}
}

// TestAwayFromTheStart: a server that was never there is reported once.
func TestAwayFromTheStart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Kill()
	s := open(t, Options{Address: server.Addr})
	w := watch(t, s)
	r := w.last(t, away)
	if r.Err == nil || !strings.Contains(r.Err.Error(), "refused") {
		t.Errorf("report %+v; want the reason", r)
	}
	for range 100 {
		err := s.Take(time.Now(), brief, []store.Request{one("client", plenty)}, make([]store.Decision, 1))
		var e *store.Error
		if !errors.As(err, &e) || e.Kind != store.KindAway || !e.Unexecuted || strings.Count(err.Error(), "away") != 2 {
			t.Fatalf("Take: %v; want that it is away, said once besides the kind", err)
		}
	}
	time.Sleep(2 * lastPause)
	if got := w.conditions(); !slices.Equal(got, []store.Condition{away}) {
		t.Errorf("reports %v", got)
	}
	server.Restart(t)
	w.last(t, up)
	if got := append(w.losses(), w.all()[len(w.all())-1].Server); !slices.Equal(got, []string{server.Addr}) {
		t.Errorf("losses and server %q", got)
	}
}

// TestHeartbeatsAlone: heartbeats are answered, and calls are not, for want of a
// right. That is trouble, and stays it until the right is there.
func TestHeartbeatsAlone(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do(t, "ACL", "SETUSER", "limiter", "on", ">hunter2", "resetkeys", "~drl:*", "-@all",
		"+eval", "+script|load", "+time", "+get", "+mget", "+set", "+del", "+info")
	s := open(t, Options{Address: server.Addr, Username: "limiter", Password: "hunter2"})
	w := watch(t, s)
	w.last(t, up)
	request := func() error {
		return s.Take(time.Now(), brief, []store.Request{one("client", 10)}, make([]store.Decision, 1))
	}
	for end := time.Now().Add(2 * beatEvery); time.Now().Before(end); time.Sleep(brief / 5) {
		if request() == nil {
			t.Fatal("granted without the right to")
		}
	}
	r := w.last(t, away)
	if r.Err == nil || !strings.Contains(r.Err.Error(), "+evalsha") {
		t.Errorf("report %+v; want the reason and the remedy", r)
	}
	// Once when it began, and then it stays.
	if got := w.conditions(); !slices.Equal(got, []store.Condition{up, away, up, away}) && !slices.Equal(got, []store.Condition{up, away}) {
		t.Errorf("reports %v", got)
	}
	server.Do(t, "ACL", "SETUSER", "limiter", "+evalsha")
	eventually(t, "granted", func() bool { return request() == nil })
	w.last(t, up)
}
