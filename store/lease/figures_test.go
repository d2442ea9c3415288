package lease

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// wholeSeconds is the wait that a client is told.
func wholeSeconds(d time.Duration) time.Duration {
	return max(time.Second, (d + time.Second - 1).Truncate(time.Second))
}

// exactLog is an exact sliding log of single units: when each was granted.
type exactLog []int64

// takes grants a unit if it fits.
func (x *exactLog) takes(now int64, window time.Duration, limit int64) bool {
	expired := 0
	for expired < len(*x) && (*x)[expired]+window.Microseconds() <= now {
		expired++
	}
	*x = (*x)[expired:]
	if int64(len(*x)) >= limit {
		return false
	}
	*x = append(*x, now)
	return true
}

// entry is units that were spent at one moment, in microseconds.
type entry struct{ stamp, units int64 }

// mostIn is the largest number of units spent in one interval of a window, and
// where it begins.
func mostIn(spent []entry, window time.Duration) (units, at int64) {
	spans := make([]storetest.Span, len(spent))
	for i, e := range spent {
		spans[i] = storetest.Span{From: time.UnixMicro(e.stamp), To: time.UnixMicro(e.stamp), Units: e.units}
	}
	units, from := storetest.Most(spans, window)
	return units, from.UnixMicro()
}

func setting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

func TestLeasesSchedules(t *testing.T) {
	first, count := 1, setting("LEASE_SCHEDULES", 180)
	if seed := setting("LEASE_SEED", 0); seed > 0 {
		first, count = seed, 1
	}
	var granted, refused, failed, byLease, byCache, late int64
	for seed := first; seed < first+count && !t.Failed(); seed++ {
		synctest.Test(t, func(t *testing.T) {
			s := newPlan(uint64(seed)).play(t)
			granted += s.granted.Load()
			refused += s.refused.Load()
			failed += s.failed.Load()
			byLease += s.byLease.Load()
			byCache += s.byCache.Load()
			late += s.late.Load()
		})
	}
	t.Logf("%d schedules: %d granted, %d of them from leases; %d refused, %d of them from memory; %d failed, %d of them were decided late",
		count, granted, byLease, refused, byCache, failed, late)
}

// load is a measurement: one key, asked for by several processes.
type load struct {
	processes int
	limit     int64
	window    time.Duration
	rate      float64 // asked for, of what the limit allows
	first     float64 // what is asked for in the first window, if not the same
	uneven    bool
	windows   int
	length    time.Duration // if it is not a number of windows
	trip      time.Duration // one way, usual
	shape     shape         // of the rate, over time; none: it is constant
}

// shape is by how much a rate is multiplied, so many windows after the beginning.
type shape struct {
	name string
	at   func(windows float64) float64
}

type measured struct {
	granted, refused, exact, takes, gives, leased int64
	shares                                        []int64
	grantedSum, exactSum                          int64         // of what was granted at many moments of the last window
	waited                                        int64         // decisions that the store made
	idle                                          int64         // refusals while another process had units in hand
	longest                                       time.Duration // of those in a row, with no grant in between
	stranded                                      int64         // the most that one process had in hand
}

// share is how much is granted of what an exact log grants. It is an average
// over a window: in bursts both may be at different ends of one.
func (m measured) share() float64      { return float64(m.grantedSum) / float64(max(1, m.exactSum)) }
func (m measured) perGranted() float64 { return 1000 * float64(m.takes) / float64(max(1, m.granted)) }
func (l load) String() string {
	text := fmt.Sprintf("%d processes, limit %d, load %g", l.processes, l.limit, l.rate)
	if l.shape.name != "" {
		text += " " + l.shape.name
	}
	return text
}

func (l load) measure(t *testing.T) (m measured) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(7, faults{delay: l.trip})
		a := store.Request{Key: store.Key{Zone: "zone", Client: "client", Window: l.window}, Limit: l.limit, Units: 1}
		var mu sync.Mutex
		var exact exactLog
		m.shares = make([]int64, l.processes)
		length := time.Duration(l.windows) * l.window
		if l.length > 0 {
			length = l.length
		}
		end := time.Now().Add(length)
		weights, sum := make([]float64, l.processes), 0.0
		for i := range weights {
			weights[i] = 1
			if l.uneven {
				weights[i] = float64(int(1) << i)
			}
			sum += weights[i]
		}
		perSecond := l.rate * float64(l.limit) / l.window.Seconds()
		var running sync.WaitGroup
		processes := make([]*process, l.processes)
		for i := range processes {
			processes[i] = s.process(&machine{rate: 1}, Options{})
		}
		hand := func(i int) int64 {
			p := processes[i]
			shard, known := p.of(a.Key)
			shard.mu.Lock()
			defer shard.mu.Unlock()
			if k := known(); k != nil {
				return k.first.units + k.second.units
			}
			return 0
		}
		var since time.Time // when refusals began while another one had units
		decided := func(i int, decisions []store.Decision) {
			own, others := hand(i), int64(0)
			for j := range processes {
				if j != i {
					others += hand(j)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			m.stranded = max(m.stranded, own)
			if decisions != nil && decisions[0].Source == store.FromStore {
				m.waited++
			}
			if decisions != nil || others == 0 {
				since = time.Time{}
				return
			}
			m.idle++
			if since.IsZero() {
				since = time.Now()
			}
			m.longest = max(m.longest, time.Since(since))
		}
		for i, p := range processes {
			rng := rand.New(rand.NewPCG(uint64(i), 6))
			running.Go(func() {
				for {
					gap := float64(time.Second) / (perSecond * weights[i] / sum)
					if l.first > 0 && time.Since(epoch) < l.window {
						gap *= l.rate / l.first
					}
					if l.shape.at != nil {
						now := float64(time.Since(epoch)) / float64(l.window)
						if factor := l.shape.at(now); factor > 0 {
							gap /= factor
						} else {
							time.Sleep(l.window / 500)
							if time.Now().After(end) {
								return
							}
							continue
						}
					}
					time.Sleep(time.Duration(min(rng.ExpFloat64()*gap, float64(l.window/50))))
					if time.Now().After(end) {
						return
					}
					mu.Lock()
					if exact.takes(passed(), l.window, l.limit) {
						m.exact++
					}
					mu.Unlock()
					s.wg.Go(func() {
						decisions := s.request(p, []store.Request{a}, -1)
						if decisions != nil {
							atomic.AddInt64(&m.shares[i], 1)
						}
						decided(i, decisions)
					})
				}
			})
		}
		running.Go(func() {
			const samples = 50
			time.Sleep(length - l.window)
			for range samples {
				time.Sleep(l.window / samples)
				mu.Lock()
				m.exactSum += m.exact
				mu.Unlock()
				m.grantedSum += s.granted.Load()
			}
		})
		running.Wait()
		s.wg.Wait()
		m.granted, m.refused, m.leased = s.granted.Load(), s.refused.Load(), s.byLease.Load()
		m.takes, m.gives = s.takes.Load(), s.gives.Load()
		if units, _ := mostIn(s.spent[a.Key], l.window); units > l.limit {
			t.Errorf("%v: %d units in a window", l, units)
		}
		time.Sleep(time.Minute)
	})
	return m
}

// full reports whether the long measurements are wanted.
func full() bool { return os.Getenv("LEASE_FULL") != "" }

// Under saturation nearly everything is granted that an exact log would
// grant, however many processes share the limit and however unevenly, and
// each gets about its share of what is asked for.
func TestLeasesUtilisation(t *testing.T) {
	loads := []load{{processes: 8, limit: 100_000, rate: 1.02, windows: 3}}
	limits, counts, rates := []int64{64, 100, 640, 6400}, []int{1, 3, 8}, []float64{1.02, 1.5}
	if full() {
		limits, counts, rates = append(limits, 100_000), []int{1, 2, 3, 4, 5, 6, 7, 8}, append(rates, 1.2, 4)
	}
	for _, limit := range limits {
		for _, processes := range counts {
			for _, rate := range rates {
				l := load{processes: processes, limit: limit, rate: rate, windows: 5}
				if limit < 1000 {
					l.windows = 15
				}
				loads = append(loads, l)
			}
		}
	}
	for _, l := range loads {
		l.window, l.uneven, l.trip = time.Minute, true, 500*time.Microsecond
		m := l.measure(t)
		t.Logf("%v: %.4f of an exact log, %.0f%% from leases; for 1000 granted %.0f calls and %.0f refunds; granted to each %v",
			l, m.share(), 100*float64(m.leased)/float64(m.granted), m.perGranted(), 1000*float64(m.gives)/float64(m.granted), m.shares)
		if m.share() < 0.97 {
			t.Errorf("%v: %.4f of an exact log, want 0.97", l, m.share())
		}
	}
}

// In the first window leases are spent slowly, to their end; in the next ones
// every unit is taken the moment that it is free. It shows if units count
// from before they are spent.
func TestLeasesAreStrictAtTheirEnd(t *testing.T) {
	for _, limit := range []int64{300, 640, 1000, 2000} {
		for _, processes := range []int{1, 2, 4} {
			load{
				processes: processes, limit: limit, window: time.Minute, first: 0.97, rate: 20, windows: 2,
				trip: 500 * time.Microsecond,
			}.measure(t)
		}
	}
}

// Below the limit a lease is as large as what is spent in its time, so the
// more is spent the fewer calls are made.
func TestLeasesCalls(t *testing.T) {
	tests := []struct {
		load
		most float64 // calls for 1000 granted
	}{
		{load{processes: 1, limit: 6400, rate: 0.8}, 40},
		{load{processes: 4, limit: 6400, rate: 0.8}, 180},
		{load{processes: 1, limit: 100_000, rate: 0.5}, 10},
		{load{processes: 4, limit: 100_000, rate: 0.8}, 10},
	}
	for _, test := range tests {
		l := test.load
		l.window, l.windows, l.trip = time.Minute, 1, 500*time.Microsecond
		m := l.measure(t)
		t.Logf("%v: for 1000 granted %.1f calls and %.1f refunds", l, m.perGranted(), 1000*float64(m.gives)/float64(m.granted))
		if m.perGranted() > test.most || m.refused > 0 {
			t.Errorf("%v: %.1f calls for 1000 granted, want at most %g; %d refused", l, m.perGranted(), test.most, m.refused)
		}
	}
}

// Who hammers on costs next to nothing.
func TestLeasesCallsForRefused(t *testing.T) {
	for _, processes := range []int{1, 4} {
		perSecond := 2000 * float64(processes)
		l := load{processes: processes, limit: 10, window: time.Minute, rate: perSecond * 60 / 10, length: 20 * time.Second, trip: 500 * time.Microsecond}
		m := l.measure(t)
		calls := 1000 * float64(m.takes) / float64(m.refused)
		t.Logf("%v: for 1000 refused %.2f calls", l, calls)
		if calls > 1 {
			t.Errorf("%v: %.2f calls for 1000 refused, want at most 1", l, calls)
		}
	}
}
