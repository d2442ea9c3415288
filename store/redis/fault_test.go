package redis

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const plenty = 1_000_000

// tally counts what became of calls for one unit each.
type tally struct {
	granted    atomic.Int64
	unknown    atomic.Int64 // errors after which the call may have run
	resolved   atomic.Int64 // of these, pending calls that turned out to be granted
	unexecuted atomic.Int64
	kinds      sync.Map // of all errors
}

func (c *tally) take(t testing.TB, s *Store, client string, wait time.Duration) error {
	var decisions [1]store.Decision
	err := s.Take(time.Now(), wait, []store.Request{one(client, plenty)}, decisions[:])
	var e *store.Error
	switch {
	case err == nil && decisions[0].Granted:
		c.granted.Add(1)
	case errors.As(err, &e) && e.Unexecuted:
		c.unexecuted.Add(1)
		if e.Pending != nil {
			t.Errorf("Take: %v: not executed, but pending", err)
		}
	case errors.As(err, &e):
		c.unknown.Add(1)
		if e.Pending != nil {
			e.Pending.Then(func(decisions []store.Decision) {
				if len(decisions) == 1 && decisions[0].Granted {
					c.resolved.Add(1)
				} else {
					t.Errorf("a pending decision is %+v", decisions)
				}
			})
		}
	default:
		t.Errorf("Take: %v, %+v", err, decisions[0])
	}
	if e != nil {
		c.kinds.Store(e.Kind, true)
	}
	return err
}

// check compares the tally with the server's count: it holds every granted unit
// once, an unknown one once or not at all, and no others.
func (c *tally) check(t testing.TB, s *Store, client string) {
	t.Helper()
	got := used(t, s, client, plenty)
	granted, unknown, resolved := c.granted.Load(), c.unknown.Load(), c.resolved.Load()
	t.Logf("%d granted, %d unknown, %d of them known later, %d unexecuted; %d units used",
		granted, unknown, resolved, c.unexecuted.Load(), got)
	if got < granted+resolved || got > granted+unknown {
		t.Errorf("%d units used by %d granted and %d unknown calls, of which %d were granted", got, granted, unknown, resolved)
	}
}

// TestScriptFlush forgets the script again and again.
func TestScriptFlush(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, Options{Address: server.Addr})
	stop := make(chan struct{})
	var flusher, group sync.WaitGroup
	flusher.Go(func() {
		conn := server.Dial(t)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if _, err := conn.Do("SCRIPT", "FLUSH"); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var c tally
	for range 16 {
		group.Go(func() {
			for range 200 {
				c.take(t, s, "client", patience)
			}
		})
	}
	group.Wait()
	close(stop)
	flusher.Wait()
	c.check(t, s, "client")
	if c.unknown.Load() != 0 {
		t.Errorf("%d calls of unknown fate", c.unknown.Load())
	}
	if c.granted.Load() < 16*200*9/10 {
		t.Errorf("only %d of %d granted", c.granted.Load(), 16*200)
	}
}

// TestStoppedServer freezes the server under load: calls return when their
// wait is over, and afterwards the counts are right.
func TestStoppedServer(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr, Timeout: 200 * time.Millisecond})
	var c tally
	var slowest atomic.Int64
	const wait = 50 * time.Millisecond
	run := func(until time.Duration) {
		var group sync.WaitGroup
		end := time.Now().Add(until)
		for range 32 {
			group.Go(func() {
				for time.Now().Before(end) {
					start := time.Now()
					c.take(t, s, "client", wait)
					took := int64(time.Since(start))
					for old := slowest.Load(); took > old && !slowest.CompareAndSwap(old, took); old = slowest.Load() {
					}
				}
			})
		}
		group.Wait()
	}
	run(100 * time.Millisecond)
	server.Stop()
	run(700 * time.Millisecond)
	if c.unexecuted.Load() == 0 || c.unknown.Load() == 0 {
		t.Errorf("%d calls unexecuted, %d unknown; want some of each", c.unexecuted.Load(), c.unknown.Load())
	}
	server.Cont()
	eventually(t, "the server answers again", func() bool { return c.take(t, s, "client", wait) == nil })
	run(100 * time.Millisecond)
	c.check(t, s, "client")
	// Generous: the race detector and other work are to blame for the rest.
	if got := time.Duration(slowest.Load()); got > wait+2*time.Second {
		t.Errorf("a call that waits %v took %v", wait, got)
	}
}

// TestNotSentWhileConnecting: a call whose waiter left while there was still no
// connection is not sent when there is one, as its error says.
func TestNotSentWhileConnecting(t *testing.T) {
	server := redistest.Start(t)
	server.Stop() // its port takes connections, and says nothing
	s := open(t, Options{Address: server.Addr, Timeout: 20 * time.Second})
	var c tally
	for range 5 {
		err := c.take(t, s, "client", 20*time.Millisecond)
		if kind := store.ErrorKind(err); kind != store.KindTimeout && kind != store.KindAway {
			t.Errorf("Take: %v, want a timeout", err)
		}
	}
	if c.unexecuted.Load() != 5 {
		t.Errorf("%d calls certainly unexecuted, want 5", c.unexecuted.Load())
	}
	server.Cont()
	granted(t, s, one("other", 10))
	c.check(t, s, "client")
}

func TestRestartedServer(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	granted(t, s, one("client", 10))
	server.Kill()
	eventually(t, "a call fails for certain", func() bool {
		var e *store.Error
		err := s.Take(time.Now(), patience, []store.Request{one("client", 10)}, make([]store.Decision, 1))
		return errors.As(err, &e) && e.Kind == store.KindUnavailable && e.Unexecuted
	})
	server.Restart(t)
	// At the first attempt, for nothing stands in the way of dialling.
	if got := take(t, s, one("client", 10))[0]; !got.Granted || got.Remaining != 9 {
		t.Errorf("after a restart: %+v", got)
	}
}

func TestRefusedConnection(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	s := open(t, Options{Address: address})
	for range 20 {
		e := failed(t, s, patience, store.KindUnavailable)
		if !e.Unexecuted {
			t.Errorf("%v: not certain that it was not executed", e)
		}
	}
}

func TestFullQueue(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr, PoolSize: 1, QueueSize: 4, Timeout: 20 * time.Second})
	server.Stop()
	var c tally
	var group sync.WaitGroup
	var overload atomic.Int64
	for range 40 {
		group.Go(func() {
			if err := c.take(t, s, "client", 500*time.Millisecond); store.ErrorKind(err) == store.KindOverload {
				overload.Add(1)
			}
		})
	}
	group.Wait()
	// One batch is under way, of one call or of what came with it.
	if got := overload.Load(); got < 40-4-maxBatch/2 || got == 40 {
		t.Errorf("%d of 40 calls were too many for a queue of 4", got)
	}
	// The calls that left made room.
	failed(t, s, time.Millisecond, store.KindTimeout)
	server.Cont()
	granted(t, s, one("other", 10))
	c.check(t, s, "client")
}

// TestLostReplies executes every call and loses the reply. A call that was
// repeated would count twice.
func TestLostReplies(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	direct := warmed(t, Options{Address: server.Addr})
	var c tally
	const calls = 30
	for range calls {
		granted(t, s, one("warm", plenty)) // there is a connection
		proxy.LoseReplies(1)
		// Unless it was a heartbeat's reply that was lost.
		if err := c.take(t, s, "client", patience); err != nil && store.ErrorKind(err) != store.KindBroken {
			t.Errorf("Take: %v, want a broken connection", err)
		}
	}
	if got := used(t, direct, "client", plenty); got != calls || c.unknown.Load() < calls*2/3 {
		t.Errorf("%d executions of %d calls, %d of unknown fate", got, calls, c.unknown.Load())
	}
}

// TestLostRepliesUnderLoad does so to whole batches.
func TestLostRepliesUnderLoad(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	var c tally
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			for range 100 {
				c.take(t, s, "client", patience)
			}
		})
	}
	for range 20 {
		proxy.LoseReplies(2)
		time.Sleep(5 * time.Millisecond)
	}
	group.Wait()
	if c.unknown.Load() == 0 || c.granted.Load() == 0 {
		t.Errorf("%d granted, %d unknown; want some of each", c.granted.Load(), c.unknown.Load())
	}
	c.check(t, warmed(t, Options{Address: server.Addr}), "client")
}

// TestBrownOut: replies come later than anybody waits for. The connections
// survive, so that nothing is left to do when it is over.
func TestBrownOut(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	const pool = 4
	const wait = 300 * time.Millisecond
	s := warmed(t, Options{Address: proxy.Addr, PoolSize: pool, Timeout: MinTimeout})
	proxy.Delay(500 * time.Millisecond)
	var c tally
	var group sync.WaitGroup
	for i := range 32 {
		group.Go(func() {
			time.Sleep(time.Duration(i) * 3 * time.Millisecond)
			for range 4 {
				c.take(t, s, "client", wait)
			}
		})
	}
	group.Wait()
	if c.unknown.Load() == 0 {
		t.Error("no call was late")
	}
	proxy.Delay(0)
	c.check(t, s, "client")
	if got := proxy.Accepted(); got > pool+1 { // one is for heartbeats
		t.Errorf("%d connections were made; want no more than %d", got, pool+1)
	}
}

// TestLateReply: a reply that comes after its caller has gone is not written to
// the caller's memory.
func TestLateReply(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr, Timeout: 10 * time.Second})
	proxy.Delay(100 * time.Millisecond)
	decisions := make([]store.Decision, 1)
	if err := s.Take(time.Now(), 10*time.Millisecond, []store.Request{one("client", plenty)}, decisions); store.ErrorKind(err) != store.KindTimeout {
		t.Fatalf("Take: %v, want a timeout", err)
	}
	decisions[0].Remaining = -7
	take(t, s, one("other", plenty)) // comes after it
	if want := (store.Decision{Remaining: -7}); decisions[0] != want {
		t.Errorf("the decisions became %+v after Take had returned", decisions)
	}
}

// TestNoRetries: either of these keeps the library from sending a command to
// one server again; with several servers only the latter does.
func TestNoRetries(t *testing.T) {
	o := Options{Address: "localhost:1"}.withDefaults()
	c := newClient(o, newSecrets(o), dialTo(o, newSecrets(o), "tcp", o.Address))
	defer c.Close()
	if got := c.Options().MaxRetries; got != 0 {
		t.Errorf("a pipeline is retried %d times", got)
	}
	var cmder interface{ NoRetry() bool } = newCommand([]*call{newCall(kindTake, brief, 1)}, nil)
	if !cmder.NoRetry() {
		t.Error("a command may be retried")
	}
}

// TestOneDial: a call that gets no connection has tried once.
func TestOneDial(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var accepted atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			conn.Close()
		}
	}()
	s := open(t, Options{Address: listener.Addr().String()})
	eventually(t, "an attempt to warm up", func() bool { return accepted.Load() > 0 })
	s.Close() // it no longer makes attempts of its own
	atRest(t, s)
	before := accepted.Load()
	for range 10 {
		failed(t, s, patience, store.KindUnavailable)
	}
	if got := accepted.Load() - before; got != 10 {
		t.Errorf("%d connections for 10 calls", got)
	}
}

// TestPatience: a call that waits longer than the timeout is answered later, too.
func TestPatience(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := warmed(t, Options{Address: proxy.Addr, Timeout: MinTimeout})
	proxy.Delay(3 * MinTimeout)
	granted(t, s, one("client", plenty))
}

// TestLife: an operation outlives its request by far, but not for ever.
func TestLife(t *testing.T) {
	o := Options{Address: "localhost:1"}.withDefaults()
	c := newClient(o, newSecrets(o), dialTo(o, newSecrets(o), "tcp", o.Address))
	defer c.Close()
	for _, test := range []struct{ life, least, most time.Duration }{
		{DefaultTimeout, DefaultTimeout, DefaultTimeout},
		{DefaultTimeout + 1, DefaultTimeout + 1, 2 * DefaultTimeout},
		{15 * time.Second, 15 * time.Second, MaxTimeout},
		{time.Hour, MaxTimeout, MaxTimeout},
	} {
		if got := c.living(test.life).Options().ReadTimeout; got < test.least || got > test.most {
			t.Errorf("an operation of %v is given %v", test.life, got)
		}
	}
}
