package lease

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// The simulation: several processes, each with its own Store and its own
// idea of the time, ask one central store over links that delay and lose
// calls. Time is a synctest bubble's. Every unit spent is recorded at its
// time by the store's clock, and every interval of one window is checked.
//
// A schedule is drawn from its seed. Goroutines that are ready at the same
// moment run in any order, so that a seed gives nearly the same history, not
// quite. LEASE_SEED=n plays one schedule, LEASE_SCHEDULES=n that many;
// LEASE_FULL=1 measures more loads.

// central is the store of a simulation. It has a clock of its own, which is
// only ever stepped back: what the clock would show without the steps tells
// how much time has passed by it, and is the bubble's time.
type central struct {
	mu    sync.Mutex
	logs  map[store.Key]*store.Window
	back  time.Duration // the clock has been stepped back by
	takes int           // calls executed
	gives int
	// origin is the identity of the data. It is never 0, so that a layer which
	// loses it on the way is found out.
	origin int64
}

func newCentral() *central { return &central{logs: make(map[store.Key]*store.Window), origin: 1} }

func (c *central) String() string { return "central" }

func passed() int64 { return time.Now().UnixMicro() }

func (c *central) now() int64 { return passed() - c.back.Microseconds() }

func (c *central) step(back time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.back += back
}

// evict forgets a key, as a store does that has no room left.
func (c *central) evict(key store.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.logs, key)
}

// failOver has another server stand in, which has all the data.
func (c *central) failOver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.origin++
}

func (c *central) log(key store.Key) *store.Window {
	w := c.logs[key]
	if w == nil {
		w = &store.Window{}
		c.logs[key] = w
	}
	w.Advance(c.now(), key.Window)
	return w
}

func (c *central) Take(_ time.Time, _ time.Duration, requests []store.Request, decisions []store.Decision) error {
	if err := store.Validate(requests, decisions); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takes++
	for i := range requests {
		decisions[i] = c.log(requests[i].Key).Check(c.now(), &requests[i])
		c.log(requests[i].Key).Ban(c.now(), &requests[i], &decisions[i])
	}
	if !store.Granted(requests, decisions) {
		return nil
	}
	for i := range requests {
		if decisions[i].Granted {
			c.log(requests[i].Key).Charge(c.now(), &requests[i], &decisions[i])
			if decisions[i].Charged() {
				decisions[i].Origin = c.origin
			}
		}
	}
	return nil
}

func (c *central) Refund(_ time.Duration, refunds []store.Refund) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gives++
	for i := range refunds {
		switch refunds[i].Origin {
		case 0:
			panic("a charge whose origin was lost")
		case c.origin:
			c.log(refunds[i].Key).Refund(c.now(), &refunds[i])
		}
	}
	return nil
}

// total is what counts for a key now.
func (c *central) total(key store.Key) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log(key).Total()
}

// machine is where a process runs: its clocks.
type machine struct {
	mu      sync.Mutex
	rate    float64       // how fast its clocks run
	wall    time.Duration // its wall clock is wrong by this
	stopped time.Duration // how long its monotonic clock did not run, so far
	asleep  time.Time     // until when it does not
	slept   time.Time     // since when
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (m *machine) clock() moment {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Since(epoch)
	wall := time.Duration(float64(now)*m.rate) + m.wall
	if time.Now().Before(m.asleep) {
		now = m.slept.Sub(epoch)
	}
	return moment{mono: time.Duration(float64(now-m.stopped)*m.rate) + time.Hour, wall: wall}
}

func (m *machine) stepWall(by time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wall += by
}

// sleep stops the monotonic clock for a time, and returns when it runs again.
func (m *machine) sleep(d time.Duration) {
	m.mu.Lock()
	m.slept, m.asleep = time.Now(), time.Now().Add(d)
	m.mu.Unlock()
	time.Sleep(d)
	m.mu.Lock()
	m.stopped += d
	m.mu.Unlock()
}

// faults are what links do, each with its share of the calls.
type faults struct {
	delay       time.Duration // usual, one way
	slow        float64       // take up to 100 times as long
	loseRequest float64
	loseReply   float64
	late        float64 // replies come after whoever waits has refunded up
}

// link is the way of one process to the central store.
type link struct {
	sim  *simulation
	dead atomic.Bool // the process has crashed; nothing leaves it or reaches it
	mu   sync.Mutex
	rng  *rand.Rand
}

// budget is how long calls of a simulation wait. Nanoseconds on top number
// the request, so that a link knows whose call it is.
const budget = 100 * time.Millisecond

// errLost is never wrapped: tests that see it know that the link did it.
var errLost = errors.New("simulated")

func (n *link) String() string { return "link" }

// fate draws what happens to a call.
func (n *link) fate() (there, back time.Duration, executed, answered bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, calm := &n.sim.faults, n.sim.calm.Load()
	way := func() time.Duration {
		d := f.delay/2 + time.Duration(n.rng.Int64N(int64(f.delay)+1))
		if n.rng.Float64() < f.slow && !calm {
			d *= time.Duration(1 + n.rng.IntN(100))
		}
		return d
	}
	there, back = way(), way()
	if n.rng.Float64() < f.late && !calm {
		back += time.Duration(n.rng.Int64N(int64(10 * budget)))
	}
	executed = calm || n.rng.Float64() >= f.loseRequest
	answered = calm || executed && n.rng.Float64() >= f.loseReply
	return there, back, executed, answered
}

// call executes a call. If its reply comes late, deliver is called then.
func (n *link) call(wait time.Duration, execute, deliver func()) error {
	there, back, executed, answered := n.fate()
	if answered && there+back <= wait {
		time.Sleep(there)
		if n.dead.Load() {
			// It was on its way when the process died.
			execute()
			return &store.Error{Kind: store.KindBroken, Err: errLost}
		}
		execute()
		time.Sleep(back)
		return nil
	}
	if executed {
		go func() {
			time.Sleep(there)
			execute()
			time.Sleep(back)
			if answered && !n.dead.Load() {
				deliver()
			}
		}()
	}
	time.Sleep(wait)
	return &store.Error{Kind: store.KindTimeout, Err: errLost}
}

func (n *link) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	if n.dead.Load() {
		return &store.Error{Kind: store.KindUnavailable, Unexecuted: true, Err: errLost}
	}
	n.sim.takes.Add(1)
	requests = slices.Clone(requests) // it may be executed after the caller has gone
	replies := make([]store.Decision, len(requests))
	var at int64
	decided := func() {
		if id := wait - budget; requests[0].Units > 0 && id >= 0 {
			n.sim.mu.Lock()
			n.sim.decided[id] = decision{at, requests}
			n.sim.mu.Unlock()
		}
	}
	late := new(store.Pending)
	err := n.call(wait,
		func() { at = passed(); _ = n.sim.central.Take(time.Now(), 0, requests, replies) },
		func() { decided(); late.Deliver(replies) })
	if e, ok := err.(*store.Error); ok {
		if e.Kind == store.KindTimeout {
			e.Pending = late // which may never be delivered
		}
		return err
	}
	copy(decisions, replies)
	decided()
	return nil
}

func (n *link) Refund(wait time.Duration, refunds []store.Refund) error {
	if n.dead.Load() {
		return &store.Error{Kind: store.KindUnavailable, Unexecuted: true, Err: errLost}
	}
	n.sim.gives.Add(1)
	refunds = slices.Clone(refunds)
	return n.call(wait, func() { _ = n.sim.central.Refund(0, refunds) }, func() {})
}
