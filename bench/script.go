package main

import (
	"fmt"
	"sync"
	"time"
)

// scriptPoint is the server's own time for a call of a script: ours, with a
// log that has been charged in so many passes, and redis_rate's. In each pass
// both are called once for every key, one after the other, so that whatever
// else the machine does hits both.
type scriptPoint struct {
	Pass         int     // counted from 1; the log has that many entries, until it is full
	Ours, Theirs float64 // microseconds
}

// scriptCost is what follows from the points.
type scriptCost struct {
	Points    []scriptPoint // medians over the rounds
	Few, Full scriptRow     // with 1 to 5 entries, and with a full log
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

	var all []scriptPoint
	rounds := func(n, passes int) {
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
					p.Ours, p.Theirs = scriptPass(r, ours), scriptPass(r, theirs)
				} else {
					p.Theirs, p.Ours = scriptPass(r, theirs), scriptPass(r, ours)
				}
				all = append(all, p)
			}
		}
	}
	rounds(pick(r, 12, 4), fewEntries)
	rounds(pick(r, 2, 1), scriptFull+pick(r, 64, 24))

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

// The callers are many enough to keep the server busy: waking up costs more
// than a script does.
const scriptWorkers, scriptKeys = 16, 8

// scriptPass has a limiter decide once for each of its keys, and returns
// the server's microseconds for a call.
func scriptPass(r *rig, lim limiter) float64 {
	// The server has slept since the last pass: a script must not pay for
	// waking up.
	scriptCalls(lim, "awake")
	r.resetCommands()
	scriptCalls(lim, "measured")
	c := r.commandStats()["evalsha"]
	if c.calls != scriptWorkers*scriptKeys {
		r.Fatalf("%d calls of a script, want %d", c.calls, scriptWorkers*scriptKeys)
	}
	return c.usec / float64(c.calls)
}

func scriptCalls(lim limiter, prefix string) {
	var wg sync.WaitGroup
	for w := range scriptWorkers {
		wg.Go(func() {
			decide := lim.session()
			for k := range scriptKeys {
				_, _ = decide(fmt.Sprint(prefix, w, "/", k)) // what failed is not counted by the server either
			}
		})
	}
	wg.Wait()
}
