package main

import (
	"strconv"
	"sync"
	"time"
)

// scriptPoint is the server's own time for a decision by a script: ours, with a
// log that has been charged in so many passes, and redis_rate's. Ours decides what
// waits together. In each pass both decide once for every key, one after the
// other, so that whatever else the machine does hits both.
type scriptPoint struct {
	Pass         int     // counted from 1; the log has that many entries, until it is full
	Ours, Theirs float64 // microseconds
}

// scriptCost is what follows from the points.
type scriptCost struct {
	Points    []scriptPoint // medians over the rounds
	Few, Full scriptRow     // with 1 to 5 entries, and with a full log
	Alone     scriptRow     // with 1 to 5 entries, and one caller
}

// scriptRow compares the scripts, in microseconds. What a busy machine adds
// to the median is missing in the best tenth of the passes.
type scriptRow struct {
	Ours, Theirs         float64
	OursBest, TheirsBest float64
}

const (
	// scriptFull is when the oldest entries begin to expire: from there on
	// the log has as many entries as it can have.
	scriptFull = 64
	fewEntries = 5
)

func measureScript(r *rig, rep *report) {
	q := quota{1_000_000, 4 * time.Second}
	// A little more than a 64th of the window, so that every pass makes an
	// entry of its own.
	step := q.window/64 + time.Millisecond/2
	ours, err := openDirect(r.redis.Addr, q)
	r.must(err)
	defer ours.close()
	theirs, err := openRedisRate(r.redis.Addr, q)
	r.must(err)
	defer theirs.close()

	rounds := func(n, passes, workers int) (all []scriptPoint) {
		for range n {
			r.empty()
			next := time.Now()
			for pass := 1; pass <= passes; pass++ {
				r.goOn()
				next = next.Add(step)
				time.Sleep(time.Until(next))
				p := scriptPoint{Pass: pass}
				// Whatever the first leaves in the caches helps the other.
				if pass%2 == 0 {
					p.Ours, p.Theirs = scriptPass(r, ours, workers), scriptPass(r, theirs, workers)
				} else {
					p.Theirs, p.Ours = scriptPass(r, theirs, workers), scriptPass(r, ours, workers)
				}
				all = append(all, p)
			}
		}
		return all
	}
	alone := rounds(pick(r, 12, 4), fewEntries, 1)
	all := rounds(pick(r, 12, 4), fewEntries, scriptWorkers)
	all = append(all, rounds(pick(r, 2, 1), scriptFull+pick(r, 64, 24), scriptWorkers)...)

	rep.Script.Alone = summarizeScript(alone, func(scriptPoint) bool { return true })
	rep.Script.Few = summarizeScript(all, func(p scriptPoint) bool { return p.Pass <= fewEntries })
	rep.Script.Full = summarizeScript(all, func(p scriptPoint) bool { return p.Pass >= scriptFull })
	for pass := 1; ; pass++ {
		row := summarizeScript(all, func(p scriptPoint) bool { return p.Pass == pass })
		if row.Ours == 0 {
			return
		}
		rep.Script.Points = append(rep.Script.Points, scriptPoint{pass, row.Ours, row.Theirs})
	}
}

func summarizeScript(points []scriptPoint, of func(scriptPoint) bool) scriptRow {
	var a, b []float64
	for _, p := range points {
		if of(p) {
			a, b = append(a, p.Ours), append(b, p.Theirs)
		}
	}
	return scriptRow{median(a), median(b), quantile(a, 0.1), quantile(b, 0.1)}
}

// Each pass makes as many decisions for each script. Many callers keep the server
// busy, and let ours decide together what waits.
const scriptWorkers, scriptKeys = 64, 128

// scriptPass has so many callers decide once for each key, and returns the
// server's microseconds for a decision.
func scriptPass(r *rig, lim limiter, workers int) float64 {
	// The server has slept since the last pass: a script must not pay for
	// waking up.
	scriptCalls(r, lim, workers, "awake")
	r.resetCommands()
	scriptCalls(r, lim, workers, "measured")
	return r.commandStats()["evalsha"].usec / scriptKeys
}

func scriptCalls(r *rig, lim limiter, workers int, prefix string) {
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			decide := lim.session()
			for k := w; k < scriptKeys; k += workers {
				if _, err := decide(prefix + strconv.Itoa(k)); err != nil {
					errs[w] = err
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		r.must(err)
	}
}
