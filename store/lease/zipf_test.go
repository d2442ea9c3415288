package lease

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// crowd is a measurement: many clients, of which a few ask for much and most for
// little.
type crowd struct {
	processes int
	clients   int
	perSecond float64
	limit     int64 // a minute, for each
	seed      uint64
}

func (c crowd) String() string {
	return fmt.Sprintf("%d clients, %.0f decisions a second, %d a minute, %d processes", c.clients, c.perSecond, c.limit, c.processes)
}

type crowded struct{ decisions, takes, gives, refused, waited int64 }

func (m crowded) per(n int64) float64 { return 1000 * float64(n) / float64(m.decisions) }

// measure lets the crowd ask for a window, and counts what it asks for then.
func (c crowd) measure(t *testing.T, length time.Duration) (m crowded) {
	const window, warm = time.Minute, 75 * time.Second
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(c.seed, faults{delay: 500 * time.Microsecond})
		share, sum := make([]float64, c.clients), 0.0
		for i := range share {
			sum += math.Pow(float64(i+1), -1.1)
			share[i] = sum
		}
		var processes []*process
		for range c.processes {
			processes = append(processes, s.process(&machine{rate: 1}, Options{}))
		}
		rng := rand.New(rand.NewPCG(c.seed, 9))
		var decisions, refused, waited atomic.Int64
		began, counting := time.Now(), false
		var takes, gives int64
		for due := 0.0; due < (warm + length).Seconds(); due += rng.ExpFloat64() / c.perSecond {
			time.Sleep(time.Until(began.Add(time.Duration(due * float64(time.Second)))))
			if !counting && time.Since(began) >= warm {
				counting = true
				takes, gives = s.takes.Load(), s.gives.Load()
				decisions.Store(0)
				refused.Store(0)
				waited.Store(0)
			}
			client := sort.SearchFloat64s(share, rng.Float64()*sum)
			p := processes[rng.IntN(len(processes))]
			s.wg.Go(func() {
				request := store.Request{Key: store.Key{Zone: "zone", Client: fmt.Sprint(client), Window: window}, Limit: c.limit, Units: 1}
				var decision [1]store.Decision
				if err := p.Take(time.Now(), budget-1, []store.Request{request}, decision[:]); err != nil {
					t.Error(err)
				}
				decisions.Add(1)
				if !decision[0].Granted {
					refused.Add(1)
				}
				if decision[0].Source == store.FromStore {
					waited.Add(1)
				}
			})
		}
		m = crowded{decisions.Load(), s.takes.Load() - takes, s.gives.Load() - gives, refused.Load(), waited.Load()}
		s.wg.Wait()
		time.Sleep(time.Minute)
	})
	return m
}

// What a crowd costs the store.
func TestLeasesCallsForACrowd(t *testing.T) {
	type row struct {
		crowd
		most float64 // calls for 1000 decisions
	}
	rows := []row{{crowd{1, 1000, 1000, 6000, 1}, 175}, {crowd{4, 1000, 1000, 600, 1}, 600}}
	if full() {
		rows = nil
		for seed := range uint64(setting("LEASE_SEEDS", 3)) {
			rows = append(rows,
				row{crowd{1, 10_000, 10_000, 6000, seed}, 150},
				row{crowd{4, 10_000, 10_000, 6000, seed}, 300},
				row{crowd{1, 10_000, 10_000, 600, seed}, 230},
				row{crowd{4, 10_000, 10_000, 600, seed}, 420})
		}
	}
	for _, test := range rows {
		c := test.crowd
		m := c.measure(t, 10*time.Second)
		t.Logf("%v: for 1000 decisions %.0f calls and %.0f refunds; %.1f%% are refused, %.1f%% wait", c, m.per(m.takes), m.per(m.gives), m.per(m.refused)/10, m.per(m.waited)/10)
		if calls := m.per(m.takes + m.gives); calls > test.most {
			t.Errorf("%v: %.0f calls for 1000 decisions, want at most %g", c, calls, test.most)
		}
	}
}
