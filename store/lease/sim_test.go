package lease

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// decision is when the store decided a request, and on what.
type decision struct {
	at       int64
	requests []store.Request
}

// simulation is one run.
type simulation struct {
	central *central
	faults  faults
	calm    atomic.Bool  // no more faults
	takes   atomic.Int64 // calls sent
	gives   atomic.Int64

	mu       sync.Mutex
	rng      *rand.Rand
	requests time.Duration // so far, in nanoseconds
	decided  map[time.Duration]decision
	spent    map[store.Key][]entry

	granted, refused, failed, byLease, byCache, late atomic.Int64

	wg sync.WaitGroup
}

func newSimulation(seed uint64, f faults) *simulation {
	return &simulation{
		central: newCentral(), faults: f, rng: rand.New(rand.NewPCG(seed, 1)),
		decided: make(map[time.Duration]decision), spent: make(map[store.Key][]entry),
	}
}

// process is one Leases, and what it runs on.
type process struct {
	*Store
	link    *link
	machine *machine
}

func (s *simulation) process(m *machine, o Options) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := &link{sim: s, rng: rand.New(rand.NewPCG(s.rng.Uint64(), 2))}
	return &process{newStore(n, o, m.clock), n, m}
}

// request makes one request of a process, and returns its decisions if it was
// granted. If later is 0 or more, a handler behind refuses it after so long,
// and its units are refunded.
func (s *simulation) request(p *process, requests []store.Request, later time.Duration) []store.Decision {
	s.mu.Lock()
	s.requests++
	id := s.requests
	s.mu.Unlock()
	decisions := make([]store.Decision, len(requests))
	began := passed()
	err := p.Take(time.Now(), budget+id, requests, decisions)
	if p.link.dead.Load() {
		return nil
	}
	if err != nil {
		s.failed.Add(1)
		s.mu.Lock()
		stands := s.rng.IntN(2) == 0
		s.mu.Unlock()
		if e, ok := err.(*store.Error); ok && e.Pending != nil {
			e.Pending.Then(func(decisions []store.Decision) { s.late.Add(1); s.decidedLate(p, id, requests, decisions, stands) })
		}
		return nil
	}
	if !store.Granted(requests, decisions) {
		s.refused.Add(1)
		for i := range decisions {
			if decisions[i].Source == store.FromCache {
				s.byCache.Add(1)
			}
		}
		return nil
	}
	s.granted.Add(1)
	if later >= 0 {
		time.Sleep(later)
		var refunds []store.Refund
		for i := range requests {
			if decisions[i].Granted && decisions[i].Charged() {
				refunds = append(refunds, store.Refund{Key: requests[i].Key, Charge: decisions[i].Charge, Units: requests[i].Units, Source: decisions[i].Source})
			}
		}
		if !p.link.dead.Load() {
			_ = p.Refund(budget-1, refunds)
		}
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	by := s.decided[id]
	delete(s.decided, id)
	for i := range requests {
		a := &requests[i]
		if !decisions[i].Granted {
			continue
		}
		key := a.Key
		leased := a.Units
		for _, request := range by.requests {
			if request.Key == a.Key {
				leased -= request.Units
				s.spent[key] = append(s.spent[key], entry{by.at, request.Units})
			}
		}
		if leased > 0 {
			s.spent[key] = append(s.spent[key], entry{began, leased})
			s.byLease.Add(1)
		}
	}
	return decisions
}

// decidedLate is told what became of a request that was refunded up. Either it was
// let pass, and what was granted stands, or that is refunded.
func (s *simulation) decidedLate(p *process, id time.Duration, requests []store.Request, decisions []store.Decision, stands bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	by := s.decided[id]
	delete(s.decided, id)
	var refunds []store.Refund
	for i := range requests {
		a, decision := &requests[i], &decisions[i]
		if !decision.Charged() {
			continue
		}
		whole := false
		for _, request := range by.requests {
			whole = whole || request.Key == a.Key && request.Units == a.Units
		}
		switch {
		case !whole || decision.Lease != 0:
			panic(fmt.Sprintf("%+v of %+v is granted late: %+v", a, by, decision))
		case stands:
			key := a.Key
			s.spent[key] = append(s.spent[key], entry{by.at, a.Units})
		default:
			refunds = append(refunds, store.Refund{Key: a.Key, Charge: decision.Charge, Units: a.Units, Source: decision.Source})
		}
	}
	if len(refunds) > 0 {
		go func() { _ = p.Refund(budget-1, refunds) }()
	}
}

// plan is a random schedule.
type plan struct {
	seed      uint64
	processes int
	window    time.Duration
	limits    []int64 // of the keys
	faults    faults
	requests  int
	burst     int     // requests at one moment, at most
	waves     bool    // a fifth of the time has all requests
	several   bool    // zones at once
	larger    bool    // needs above one
	undone    float64 // refused by a handler behind
	crashes   float64 // for each process in each 20th of the run
	reloads   float64
	changes   bool // of limits
	stepping  bool // of the central clock
	walls     bool // steps of wall clocks, else machines sleep
	drift     bool
	maxKeys   int
	evictions int // of keys at the store
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

func newPlan(seed uint64) plan {
	rng := rand.New(rand.NewPCG(seed, 3))
	often := func(share float64) bool { return rng.Float64() < share }
	p := plan{
		seed: seed, processes: 1 + rng.IntN(8),
		window:   pick(rng, time.Second, 10*time.Second, time.Minute, time.Hour, store.MaxWindow),
		requests: 500 + rng.IntN(2500), waves: often(0.6), burst: pick(rng, 1, 1, 3, 30, 200),
		several: often(0.4), larger: often(0.4), changes: often(0.2), stepping: often(0.3), walls: often(0.5), drift: often(0.5),
		maxKeys: pick(rng, 0, 0, 0, 1),
	}
	for range 1 + rng.IntN(3) {
		p.limits = append(p.limits, pick[int64](rng, 1, 2, 5, 20, 63, 64, 65, 100, 128, 200, 300, 300, 500, 500, 1000, 1000, 2000, 1_000_000_000))
	}
	span := shortest(p.window)
	p.faults.delay = pick(rng, 0, span/1000, span/200, span/50, span/16, span/3)
	p.faults.delay = min(p.faults.delay, budget/3)
	p.faults.late = pick(rng, 0, 0, 0, 0.02, 0.3, 0.95)
	if often(0.5) {
		p.faults.slow = pick(rng, 0, 0.01, 0.1)
		p.faults.loseRequest = pick(rng, 0, 0.02, 0.2)
		p.faults.loseReply = pick(rng, 0, 0.02, 0.2)
		p.undone = pick(rng, 0, 0.05, 0.5)
		p.crashes = pick(rng, 0, 0.02, 0.2)
		p.reloads = pick(rng, 0, 0.02, 0.2)
	}
	if often(0.2) {
		p.evictions = 1 + rng.IntN(3)
	}
	return p
}

// harmless reports whether nothing happens that leaves units spent by nobody.
func (p *plan) harmless() bool {
	f := p.faults
	return f.slow+f.loseRequest+f.loseReply+p.crashes == 0 && !p.stepping && !p.changes && p.undone == 0 && p.evictions == 0
}

// key does not read the limits, which may be changing.
func (p *plan) key(zone int) store.Key {
	return store.Key{Zone: fmt.Sprint("zone ", zone), Client: "client", Window: p.window}
}

func (p *plan) request(zone int) store.Request {
	return store.Request{Key: p.key(zone), Limit: p.limits[zone], Units: 1}
}

// play runs a schedule and checks it.
func (p plan) play(t *testing.T) (s *simulation) {
	s = newSimulation(p.seed, p.faults)
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("seed %d: %s; %+v", p.seed, fmt.Sprintf(format, args...), p)
	}
	most := slices.Clone(p.limits)
	var changing sync.Mutex

	length := 3 * p.window
	processes := make([]atomic.Pointer[process], p.processes)
	machines := make([]*machine, p.processes)
	var running sync.WaitGroup
	weights, sum := make([]float64, p.processes), 0.0
	for i := range processes {
		m := &machine{rate: 1, wall: time.Duration(s.rng.Int64N(int64(200*time.Hour))) - 100*time.Hour}
		if p.drift {
			m.rate += (s.rng.Float64() - 0.5) * 0.015
		}
		machines[i] = m
		processes[i].Store(s.process(m, Options{MaxKeys: p.maxKeys}))
		weights[i] = s.rng.Float64() + 0.02
		if s.rng.IntN(3) == 0 {
			weights[i] *= 10
		}
		sum += weights[i]
	}
	for i := range processes {
		rng := rand.New(rand.NewPCG(p.seed, uint64(100+i)))
		// Clients.
		running.Go(func() {
			count := int(float64(p.requests) * weights[i] / sum)
			gap := length / time.Duration(max(1, count))
			end := time.Now().Add(length)
			if p.waves {
				gap /= 5
			}
			wave := count
			for left := count; left > 0 && time.Now().Before(end); {
				n := min(left, 1+rng.IntN(p.burst))
				left -= n
				if p.waves && left < wave {
					wave -= count / 8
					time.Sleep(length / 10)
				}
				time.Sleep(time.Duration(rng.ExpFloat64() * float64(gap) * float64(n)))
				for range n {
					changing.Lock()
					requests := []store.Request{p.request(rng.IntN(len(p.limits)))}
					if p.several && len(p.limits) > 1 && rng.IntN(2) == 0 {
						other := p.request(rng.IntN(len(p.limits)))
						other.Shadow = rng.IntN(4) == 0
						if other.Key != requests[0].Key {
							requests = append(requests, other)
						}
					}
					changing.Unlock()
					for j := range requests {
						if a := &requests[j]; p.larger && rng.IntN(3) == 0 {
							a.Units = 1 + rng.Int64N(pick(rng, 3, min(20, a.Limit), a.Limit+2))
						}
					}
					later := time.Duration(-1)
					if rng.Float64() < p.undone {
						later = pick(rng, 0, time.Duration(rng.Int64N(int64(2*pick(rng, shortest(p.window), longest(p.window))))))
					}
					s.wg.Go(func() { s.request(processes[i].Load(), requests, later) })
				}
			}
		})
		// Mishaps.
		mishaps := rand.New(rand.NewPCG(p.seed, uint64(200+i)))
		running.Go(func() {
			for range 20 {
				time.Sleep(time.Duration(mishaps.Float64() * 2 * float64(length) / 20))
				m, old := machines[i], processes[i].Load()
				switch {
				case mishaps.Float64() < p.crashes:
					old.link.dead.Store(true)
					processes[i].Store(s.process(m, Options{MaxKeys: p.maxKeys}))
				case mishaps.Float64() < p.reloads:
					processes[i].Store(s.process(m, Options{MaxKeys: p.maxKeys}))
					_ = old.Close(time.Second)
				}
				if p.walls && mishaps.IntN(2) == 0 {
					m.stepWall(time.Duration((mishaps.Float64() - 0.5) * float64(pick(mishaps, 10*time.Millisecond, time.Second, 5*time.Hour))))
				} else if !p.walls && mishaps.IntN(4) == 0 {
					m.sleep(time.Duration(mishaps.Float64() * 3 * float64(pick(mishaps, shortest(p.window), longest(p.window)))))
				}
			}
		})
	}
	if p.stepping {
		rng := rand.New(rand.NewPCG(p.seed, 7))
		running.Go(func() {
			for range 1 + rng.IntN(8) {
				time.Sleep(time.Duration(rng.Float64() * float64(length) / 4))
				most := pick(rng, time.Millisecond, time.Second, 3*time.Second, p.window, 5*time.Hour)
				s.central.step(time.Duration(rng.Float64() * float64(most)))
			}
		})
	}
	evicted := make([]int64, len(p.limits)) // how often each key was
	if p.evictions > 0 {
		rng := rand.New(rand.NewPCG(p.seed, 9))
		running.Go(func() {
			for range p.evictions {
				time.Sleep(time.Duration(rng.Float64() * float64(length) / float64(p.evictions)))
				zone := rng.IntN(len(p.limits))
				evicted[zone]++
				s.central.evict(p.key(zone))
			}
		})
	}
	if p.changes {
		rng := rand.New(rand.NewPCG(p.seed, 8))
		running.Go(func() {
			for range 5 {
				time.Sleep(time.Duration(rng.Float64() * float64(length) / 4))
				changing.Lock()
				for i := range p.limits {
					p.limits[i] = max(1, int64(float64(most[i])*rng.Float64()))
				}
				changing.Unlock()
			}
			changing.Lock()
			copy(p.limits, most)
			changing.Unlock()
		})
	}
	running.Wait()
	s.wg.Wait()
	time.Sleep(longest(p.window) + 5*time.Second)
	if p.faults.slow > 0 {
		time.Sleep(10 * time.Second) // the latest decisions
	}
	synctest.Wait()

	for zone := range p.limits {
		a := p.request(zone)
		key := a.Key
		spent := s.spent[key]
		if units, at := mostIn(spent, p.window); units > most[zone]*(1+evicted[zone]) { // as much again, once for each loss
			fail("%d units of %d in the window from %v", units, most[zone], time.UnixMicro(at).Sub(epoch))
		}
		if p.harmless() {
			recent := int64(0)
			for _, e := range spent {
				// They count from the end of their lease.
				if e.stamp > passed()-int64(1.03*float64(p.window.Microseconds()))-longest(p.window).Microseconds() {
					recent += e.units
				}
			}
			if total := s.central.total(a.Key); total > recent {
				fail("%d units count, %d were spent in the last window: the others are lost", total, recent)
			}
		}
	}
	for i := range processes {
		proc := processes[i].Load()
		if n := proc.background.Load(); n != 0 {
			fail("process %d has %d goroutines left", i, n)
		}
		for j := range proc.shards {
			for _, k := range proc.shards[j].ring {
				if !k.first.empty() || !k.second.empty() || k.refilling || k.timer != nil {
					fail("process %d still holds %v: %+v", i, k.key, k)
				}
			}
		}
	}
	// Nobody else asks any more: who waits as told is granted.
	s.calm.Store(true)
	for zone := range p.limits {
		a := p.request(zone)
		a.Units = 1 + s.rng.Int64N(a.Limit)
		proc := processes[s.rng.IntN(p.processes)].Load()
		decisions := make([]store.Decision, 1)
		for i := 0; ; i++ {
			if err := proc.Take(time.Now(), time.Minute, []store.Request{a}, decisions); err != nil {
				fail("after the end: %v", err)
				break
			}
			if decisions[0].Granted {
				break
			}
			if i == 4 {
				fail("zone %d: %d units were refused again and again: %+v", zone, a.Units, decisions[0])
				break
			}
			if i%2 == 0 {
				continue // the next decision is remembered
			}
			if i == 3 {
				time.Sleep(wholeSeconds(decisions[0].RetryAfter))
			}
		}
	}
	time.Sleep(5 * time.Second)
	return s
}
