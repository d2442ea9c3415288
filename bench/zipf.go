package main

import (
	"strconv"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// siteCalls is what the many clients of a site cost the store when leases are on:
// few clients ask for most, and those reach a limit that people really set.
type siteCalls struct {
	Limit     int64 // in a minute
	Instances int   // that clients are spread over, each with leases of its own
	Decisions int64
	Granted   float64 // share
	Calls     float64 // of the store for 1000 decisions, refunds included
}

// siteWarm is how long a site runs before it is measured: leases follow what was
// granted in the window before.
const siteWarm = time.Minute + 10*time.Second

// siteRun is how long a site is measured.
const siteRun = 20 * time.Second

// measureSites measures all sites at once, near and far from Redis, since each needs
// more than a minute, and what is counted does not depend on the machine.
func measureSites(r *rig, rep *report) {
	for _, limit := range []int64{6000, 600} {
		for _, instances := range []int{1, 4} {
			rep.Sites = append(rep.Sites, siteCalls{Limit: limit, Instances: instances})
		}
	}
	for _, instances := range farInstances {
		rep.Far = append(rep.Far, farCalls{Instances: instances})
	}
	r.empty()
	r.proxy.Delay(farTrip)
	defer r.proxy.Delay(0)
	warm, run := pick(r, siteWarm, time.Second), pick(r, siteRun, time.Second)
	var wg sync.WaitGroup
	errs := make([]error, len(rep.Sites)+len(rep.Far))
	for i := range rep.Sites {
		wg.Go(func() { errs[i] = rep.Sites[i].measure(r, i, warm, run) })
	}
	for i := range rep.Far {
		wg.Go(func() { errs[len(rep.Sites)+i] = rep.Far[i].measure(r, warm, run) })
	}
	wg.Wait()
	r.goOn()
	for _, err := range errs {
		r.must(err)
	}
}

func (s *siteCalls) measure(r *rig, number int, warm, length time.Duration) error {
	q := quota{s.Limit, time.Minute}
	below := make([]*counted, s.Instances)
	limiters := make([]limiter, s.Instances)
	for i := range limiters {
		var err error
		limiters[i], err = openLeases(r.redis.Addr, q, func(of store.Store) store.Store {
			below[i] = &counted{Store: of}
			return below[i]
		})
		if err != nil {
			return err
		}
		defer limiters[i].close()
	}
	names := zipfNames("site" + strconv.Itoa(number) + "-")
	run := func(run time.Duration) (decisions, granted int64, err error) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i, lim := range limiters {
			wg.Go(func() {
				d, g, e := pace(lim, callWorkers, callRate/s.Instances, run, func(worker int) func() string {
					return zipfKeys(names, i*callWorkers+worker)
				})
				mu.Lock()
				defer mu.Unlock()
				decisions, granted = decisions+d, granted+g
				if e != nil {
					err = e
				}
			})
		}
		wg.Wait()
		return decisions, granted, err
	}
	if _, _, err := run(warm); err != nil {
		return err
	}
	for _, c := range below {
		c.reset()
	}
	decisions, granted, err := run(length)
	if err != nil {
		return err
	}
	calls := int64(0)
	for _, c := range below {
		calls += c.calls()
	}
	s.Decisions, s.Granted = decisions, float64(granted)/float64(decisions)
	s.Calls = 1000 * float64(calls) / float64(decisions)
	return nil
}
