package main

import (
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// load is many goroutines that ask for decisions, each as fast as it gets
// them.
type load struct {
	workers   int
	warm, run time.Duration
	// keys returns the function that names a worker's next key.
	keys func(worker int) func() string
}

// sample is what came of a load while it was measured.
type sample struct {
	decisions, granted, errors int64
	err                        error // one of the errors
	elapsed                    time.Duration
	latencies                  []time.Duration // of every 32nd decision
	mallocs, bytes             float64         // for one decision, of the whole process
}

func (s *sample) perSecond() float64 { return float64(s.decisions) / s.elapsed.Seconds() }

const (
	// timedEvery: reading the clock twice would double the time of the
	// fastest decisions.
	timedEvery = 32
	// mostTimed bounds the latencies that a worker notes; they are allocated
	// before it begins.
	mostTimed = 8192
)

const (
	warming int32 = iota
	measuring
	stopping
)

// drive puts a load on limiters, the workers taking turns over them.
func drive(limiters []limiter, l load) sample {
	var phase atomic.Int32
	var wg sync.WaitGroup
	samples := make([]sample, l.workers)
	for w := range samples {
		s := &samples[w]
		s.latencies = make([]time.Duration, 0, mostTimed)
		wg.Go(func() { work(limiters[w%len(limiters)].session(), l.keys(w), &phase, s) })
	}
	var before, after runtime.MemStats
	time.Sleep(l.warm)
	runtime.ReadMemStats(&before)
	began := time.Now()
	phase.Store(measuring)
	time.Sleep(l.run)
	phase.Store(stopping)
	elapsed := time.Since(began)
	runtime.ReadMemStats(&after)
	wg.Wait()

	sum := sample{elapsed: elapsed}
	for i := range samples {
		s := &samples[i]
		sum.decisions += s.decisions
		sum.granted += s.granted
		sum.errors += s.errors
		sum.latencies = append(sum.latencies, s.latencies...)
		if s.err != nil {
			sum.err = s.err
		}
	}
	if n := float64(sum.decisions + sum.errors); n > 0 {
		sum.mallocs = float64(after.Mallocs-before.Mallocs) / n
		sum.bytes = float64(after.TotalAlloc-before.TotalAlloc) / n
	}
	return sum
}

// work is one worker. Calls that fail are no decisions.
func work(decide decide, key func() string, phase *atomic.Int32, result *sample) {
	s := *result // not shared with the neighbours
	defer func() { *result = s }()
	for {
		p := phase.Load()
		if p == stopping {
			return
		}
		timed := p == measuring && s.decisions%timedEvery == 0 && len(s.latencies) < mostTimed
		var began time.Time
		if timed {
			began = time.Now()
		}
		granted, err := decide(key())
		if timed {
			s.latencies = append(s.latencies, time.Since(began))
		}
		switch {
		case p != measuring:
		case err != nil:
			s.errors++
			s.err = err
		default:
			s.decisions++
			if granted {
				s.granted++
			}
		}
	}
}

// oneKey is the same key for all.
func oneKey(int) func() string { return func() string { return "203.0.113.7" } }

// freshKeys are keys that nobody has seen before. Making one costs one
// allocation, which is the same for all that are compared.
func freshKeys(worker int) func() string {
	buf := make([]byte, 0, 64)
	n := int64(0)
	return func() string {
		n++
		buf = strconv.AppendInt(buf[:0], int64(worker), 10)
		buf = append(buf, '/')
		buf = strconv.AppendInt(buf, n, 10)
		return string(buf)
	}
}

// pace has workers ask for decisions at a steady rate, together, whatever the
// limiter takes for them; it returns how many were made and granted.
func pace(lim limiter, workers, perSecond int, run time.Duration, keys func(worker int) func() string) (decisions, granted int64, err error) {
	const tick = 2 * time.Millisecond
	var wg sync.WaitGroup
	var made, passed atomic.Int64
	var failed atomic.Pointer[error]
	began := time.Now()
	for w := range workers {
		wg.Go(func() {
			decide, key := lim.session(), keys(w)
			done := 0
			for {
				since := time.Since(began)
				if since >= run {
					return
				}
				for due := int(since.Seconds() * float64(perSecond) / float64(workers)); done < due; done++ {
					ok, err := decide(key())
					if err != nil {
						failed.Store(&err)
						continue
					}
					made.Add(1)
					if ok {
						passed.Add(1)
					}
				}
				time.Sleep(tick)
			}
		})
	}
	wg.Wait()
	if p := failed.Load(); p != nil {
		err = *p
	}
	return made.Load(), passed.Load(), err
}

// median is the middle of values, 0 if there are none.
func median[T ~int64 | ~float64](values []T) T {
	values = slices.Clone(values)
	slices.Sort(values)
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}

// quantile is the value below which a share q of the values lies, 0 if there
// are none.
func quantile[T ~int64 | ~float64](values []T, q float64) T {
	if len(values) == 0 {
		return 0
	}
	values = slices.Clone(values)
	slices.Sort(values)
	return values[min(len(values)-1, int(q*float64(len(values))))]
}
