package lease

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// onset is a measurement: clients that do nothing but ask begin all at once, in every
// process, for a key of which nothing is known yet or that was in little use.
type onset struct {
	processes int
	limit     int64
	window    time.Duration
	faults    faults
	before    int  // windows of little use before it
	stalls    bool // of clients: the machines have too much to do
	rough     bool // clocks are set, and the key is evicted once
	seed      uint64
}

func (o onset) String() string {
	return fmt.Sprintf("%d processes, limit %d in %v, %d quiet windows before, stalls %v, seed %d", o.processes, o.limit, o.window, o.before, o.stalls, o.seed)
}

// measure returns the time that an exact log takes for the same requests to grant as
// many of them, as a share of the time that it took: a few units that come late count
// as much as if all did.
func (o onset) measure(t *testing.T) (share float64) {
	const (
		clients = 2 // in each process
		pause   = 2 * time.Millisecond
	)
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(o.seed, o.faults)
		request := store.Request{Key: store.Key{Zone: "zone", Client: "client", Window: o.window}, Limit: o.limit, Units: 1}
		rng := rand.New(rand.NewPCG(o.seed, 4))
		processes := make([]*process, o.processes)
		for i := range processes {
			processes[i] = s.process(&machine{rate: 1}, Options{})
		}
		var sent, granted []time.Time
		for range 20 * o.before {
			time.Sleep(time.Duration(2 * rng.Float64() * float64(o.window) / 20))
			at := time.Now()
			sent = append(sent, at)
			if s.request(processes[rng.IntN(len(processes))], []store.Request{request}, -1) != nil {
				granted = append(granted, at)
			}
		}
		began := time.Now()
		end := began.Add(4*o.window + o.window/4)
		for i, p := range processes {
			for j := range clients {
				s.wg.Go(func() {
					rng := rand.New(rand.NewPCG(o.seed, uint64(100*i+j)))
					for time.Now().Before(end) {
						at := time.Now()
						decisions := s.request(p, []store.Request{request}, -1)
						s.mu.Lock()
						sent = append(sent, at)
						if decisions != nil {
							granted = append(granted, at)
						}
						s.mu.Unlock()
						time.Sleep(pause)
						if o.stalls && rng.IntN(20) == 0 {
							time.Sleep(time.Duration(rng.Int64N(int64(o.window / 20))))
						}
					}
				})
			}
		}
		most := o.limit
		if o.rough {
			most *= 2 // as much again after a loss
			for _, p := range processes {
				s.wg.Go(func() {
					for time.Now().Before(end) {
						time.Sleep(o.window / 8)
						p.machine.stepWall(time.Duration((rand.Float64() - 0.5) * float64(o.window)))
						s.central.step(o.window / 64)
					}
				})
			}
			time.Sleep(o.window + o.window/4)
			s.central.evict(request.Key)
		}
		s.wg.Wait()
		time.Sleep(time.Minute) // the latest decisions
		synctest.Wait()
		if units, _ := mostIn(s.spent[request.Key], o.window); units > most {
			t.Errorf("%v: %d units in a window", o, units)
		}
		share = timeOfExactLog(began, sent, granted, o.limit, o.window)
	})
	return share
}

func timeOfExactLog(began time.Time, sent, granted []time.Time, limit int64, window time.Duration) float64 {
	slices.SortFunc(sent, time.Time.Compare)
	var exact []time.Time
	for _, at := range sent {
		if n := len(exact) - int(limit); n < 0 || !at.Before(exact[n].Add(window)) {
			exact = append(exact, at)
		}
	}
	last := slices.MaxFunc(granted, time.Time.Compare)
	// An exact log that forgets nothing may not grant as many.
	return float64(exact[min(len(granted), len(exact))-1].Sub(began)) / float64(last.Sub(began))
}

// A load that begins in all processes at once uses the limit, too: what is leased before
// it is known must not be held for long. Where the key was in little use before, some
// units are in hand as long as they were then; few, but the measure is the last one.
func TestLeasesOnset(t *testing.T) {
	seeds, windows := uint64(2), []time.Duration{2 * time.Second}
	limits, counts := []int64{64, 65, 300}, []int{3, 8}
	if full() {
		seeds, windows = 4, append(windows, 10*time.Second)
		limits, counts = append(limits, 640, 3000), append(counts, 1, 2)
	}
	for _, window := range windows {
		for _, limit := range limits {
			for _, processes := range counts {
				for _, test := range []struct {
					before int
					stalls bool
					want   float64
				}{{0, false, 0.975}, {0, true, 0.97}, {2, false, 0.965}} {
					least, sum := 1.0, 0.0
					for seed := range seeds {
						o := onset{
							processes: processes, limit: limit, window: window, faults: faults{delay: 300 * time.Microsecond},
							before: test.before, stalls: test.stalls, seed: seed,
						}
						share := o.measure(t)
						if share < test.want {
							t.Errorf("%v: %.4f of an exact log, want %g", o, share, test.want)
						}
						least, sum = min(least, share), sum+share
					}
					t.Logf("%v window, limit %d, %d processes, %d quiet windows before, stalls %v: %.4f of an exact log at least, %.4f on average",
						window, limit, processes, test.before, test.stalls, least, sum/float64(seeds))
				}
			}
		}
	}
}

// The same while calls are lost and late, keys are evicted and clocks are set: nothing
// but the limit is kept.
func TestLeasesOnsetWithFaults(t *testing.T) {
	for seed := range uint64(setting("LEASE_SCHEDULES", 24)) {
		rng := rand.New(rand.NewPCG(seed, 5))
		onset{
			processes: 1 + rng.IntN(8), limit: pick[int64](rng, 64, 65, 300, 640, 3000), window: pick(rng, time.Second, 2*time.Second, 10*time.Second),
			faults: faults{
				delay: pick(rng, 300*time.Microsecond, 5*time.Millisecond, 40*time.Millisecond),
				slow:  pick(rng, 0, 0.1), loseRequest: pick(rng, 0, 0.1), loseReply: pick(rng, 0, 0.1), late: pick(rng, 0, 0.1, 0.95),
			},
			before: rng.IntN(3), seed: seed, rough: true,
		}.measure(t)
	}
}
