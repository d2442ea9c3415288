package main

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// farCalls is how many decisions of a busy client wait for a Redis that is far away.
type farCalls struct {
	Instances int // that the client is spread over
	Decisions int64
	Granted   float64 // share
	Waited    float64 // share that Redis decided while the client waited
}

const (
	farTrip      = 80 * time.Millisecond // there and back
	farPerSecond = 20                    // decisions, on all instances together
	farLimit     = 6000                  // in a minute
)

// farInstances are the numbers of instances that are measured.
var farInstances = []int{1, 4}

// measure asks for decisions through a proxy that delays. It counts who decided, not
// how long that took: other sections may keep the machine busy at the same time.
func (f *farCalls) measure(r *rig, warm, run time.Duration) error {
	limiters := make([]*ours, f.Instances)
	for i := range limiters {
		lim, err := openLeases(r.proxy.Addr, quota{farLimit, time.Minute}, nil)
		if err != nil {
			return err
		}
		defer lim.close()
		var ok bool
		if limiters[i], ok = lim.(*ours); !ok {
			return fmt.Errorf("a %T", lim)
		}
	}
	var decisions, granted, waited atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	began := time.Now()
	for i, lim := range limiters {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(f.Instances), uint64(i)))
			for due := time.Duration(0); ; {
				due += time.Duration(rng.ExpFloat64() * float64(time.Second) * float64(f.Instances) / farPerSecond)
				if due > warm+run {
					return
				}
				time.Sleep(time.Until(began.Add(due)))
				wg.Go(func() { // the next request does not wait for this one
					d, err := lim.decideOne(fmt.Sprint("far", f.Instances))
					switch {
					case err != nil:
						failed.Store(&err)
					case due > warm:
						decisions.Add(1)
						if d.Granted {
							granted.Add(1)
						}
						if d.Source == store.FromStore {
							waited.Add(1)
						}
					}
				})
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	if f.Decisions = decisions.Load(); f.Decisions > 0 {
		f.Granted = float64(granted.Load()) / float64(f.Decisions)
		f.Waited = float64(waited.Load()) / float64(f.Decisions)
	}
	return nil
}

// decideOne makes one decision, and tells who made it.
func (o *ours) decideOne(key string) (store.Decision, error) {
	requests := []store.Request{{Key: store.Key{Zone: zone, Client: key, Window: o.quota.window}, Limit: o.quota.limit, Units: 1}}
	decisions := make([]store.Decision, 1)
	err := o.store.Take(time.Now(), patience, requests, decisions)
	return decisions[0], err
}

func farGoal(rep *report, instances int) goal {
	g := goal{
		What: fmt.Sprintf("decisions that wait for a Redis %s away, %d/s of one client, L = %s in 1m, %d %s",
			span(farTrip), farPerSecond, whole(farLimit), instances, plural(instances, "instance")),
		Want: "<= 5 %", Verdict: notTested,
	}
	for _, f := range rep.Far {
		if f.Instances == instances && f.Decisions > 0 {
			return decided(g, f.Waited <= 0.05, "%s", percent(f.Waited))
		}
	}
	return g
}

func (d *document) far(rep *report) {
	if len(rep.Far) == 0 {
		return
	}
	d.title("Far from Redis")
	d.text(fmt.Sprintf("Redis is %s away, there and back. One client asks for %d decisions/s altogether, L = %s in 1m, leases on, after more than a window of the same traffic. "+
		"*Waited* is the share that Redis decided while the client waited; the others were decided in the process.", span(farTrip), farPerSecond, whole(farLimit)))
	var rows [][]string
	for _, f := range rep.Far {
		rows = append(rows, []string{whole(float64(f.Instances)), whole(float64(f.Decisions)), percent(f.Granted), percent(f.Waited)})
	}
	d.table("", []string{"instances", "decisions", "granted", "waited"}, rows)
}
