package store

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The simulation: several processes, each with its own Leases and its own
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
	logs  map[logKey]*Window
	back  time.Duration // the clock has been stepped back by
	takes int           // calls executed
	gives int
	// origin is the identity of the data. It is never 0, so that a layer which
	// loses it on the way is found out.
	origin int64
}

func newCentral() *central { return &central{logs: make(map[logKey]*Window), origin: 1} }

func (c *central) String() string { return "central" }

func passed() int64 { return time.Now().UnixMicro() }

func (c *central) now() int64 { return passed() - c.back.Microseconds() }

func (c *central) step(back time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.back += back
}

// failOver has another server stand in, which has all the data.
func (c *central) failOver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.origin++
}

func (c *central) log(key Key, window time.Duration) *Window {
	w := c.logs[logKey{key, window}]
	if w == nil {
		w = &Window{}
		c.logs[logKey{key, window}] = w
	}
	w.Advance(c.now(), window)
	return w
}

func (c *central) Take(_ time.Duration, asks []Ask, answers []Answer) error {
	if err := Validate(asks, answers); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takes++
	for i := range asks {
		answers[i] = c.log(asks[i].Key, asks[i].Window).Ask(c.now(), &asks[i])
	}
	if !Granted(asks, answers) {
		return nil
	}
	for i := range asks {
		if answers[i].Granted {
			c.log(asks[i].Key, asks[i].Window).Charge(c.now(), &asks[i], &answers[i])
			if answers[i].Charged() {
				answers[i].Origin = c.origin
			}
		}
	}
	return nil
}

func (c *central) Return(_ time.Duration, grants []Grant) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gives++
	for i := range grants {
		switch grants[i].Origin {
		case 0:
			panic("a grant whose origin was lost")
		case c.origin:
			c.log(grants[i].Key, grants[i].Window).Return(c.now(), &grants[i])
		}
	}
	return nil
}

// total is what counts for a key now.
func (c *central) total(key Key, window time.Duration) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log(key, window).total
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
	late        float64 // replies come after whoever waits has given up
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
			return &Error{Kind: KindBroken, Err: errLost}
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
	return &Error{Kind: KindTimeout, Err: errLost}
}

func (n *link) Take(wait time.Duration, asks []Ask, answers []Answer) error {
	if n.dead.Load() {
		return &Error{Kind: KindUnavailable, Unexecuted: true, Err: errLost}
	}
	n.sim.takes.Add(1)
	asks = slices.Clone(asks) // it may be executed after the caller has gone
	replies := make([]Answer, len(asks))
	var at int64
	decided := func() {
		if id := wait - budget; asks[0].Need > 0 && id >= 0 {
			n.sim.mu.Lock()
			n.sim.decided[id] = decision{at, asks}
			n.sim.mu.Unlock()
		}
	}
	late := new(Late)
	err := n.call(wait,
		func() { at = passed(); _ = n.sim.central.Take(0, asks, replies) },
		func() { decided(); late.Deliver(replies) })
	if e, ok := err.(*Error); ok {
		if e.Kind == KindTimeout {
			e.Late = late // which may never be delivered
		}
		return err
	}
	copy(answers, replies)
	decided()
	return nil
}

func (n *link) Return(wait time.Duration, grants []Grant) error {
	if n.dead.Load() {
		return &Error{Kind: KindUnavailable, Unexecuted: true, Err: errLost}
	}
	n.sim.gives.Add(1)
	grants = slices.Clone(grants)
	return n.call(wait, func() { _ = n.sim.central.Return(0, grants) }, func() {})
}
