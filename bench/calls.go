package main

import (
	"math/rand"
	"strconv"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// callCount is what a thousand decisions cost the store.
type callCount struct {
	Subject   string
	Traffic   string
	Decisions int64
	Granted   float64 // share
	// For 1000 decisions:
	Calls    float64       // of the store below the leases; -1 where there are none
	Scripts  float64       // EVALSHA at the server
	Commands float64       // all at the server, those inside scripts included
	CPU      time.Duration // of the server, for all it does
}

// The names of traffics, by which goals find them.
const (
	trafficHot     = "one hot client"
	trafficZipf    = "10,000 clients, Zipf"
	trafficRefused = "one client, refused"
)

// callRate is a load of a busy site: with it, a lease of a minute's window is
// worth thousands of units.
const (
	callRate    = 10_000
	callWorkers = 16
)

func measureCalls(r *rig, rep *report) {
	zipf := zipfNames("")
	traffics := []struct {
		name  string
		quota quota
		keys  func(worker int) func() string
	}{
		{trafficHot, quota{2_000_000, time.Minute}, oneKey},
		{trafficZipf, quota{2_000_000, time.Minute}, func(worker int) func() string { return zipfKeys(zipf, worker) }},
		{trafficRefused, tight, oneKey},
	}
	for _, t := range traffics {
		for _, s := range sharedSubjects() {
			r.goOn()
			r.log("calls: %s, %s", t.name, s.name)
			rep.Calls = append(rep.Calls, countCalls(r, s, t.name, t.quota, t.keys))
		}
	}
}

func countCalls(r *rig, s subject, traffic string, q quota, keys func(worker int) func() string) callCount {
	r.empty()
	inner := &counted{}
	open := s.open
	run := pick(r, 1000*time.Millisecond, 200*time.Millisecond)
	if s.name == nameLeases {
		run *= 3 // calls are few, so they are counted for longer
		open = func(address string, q quota) (limiter, error) {
			return openLeases(address, q, func(below store.Store) store.Store {
				inner.Store = below
				return inner
			})
		}
	}
	lim, err := open(r.redis.Addr, q)
	r.must(err)
	defer lim.close()
	// Connections and leases are warm.
	_, _, _ = pace(lim, callWorkers, callRate, pick(r, 600*time.Millisecond, 150*time.Millisecond), keys)
	inner.reset()
	r.resetCommands()
	busy := r.serverCPU()
	decisions, granted, err := pace(lim, callWorkers, callRate, run, keys)
	busy = r.serverCPU() - busy
	stats := r.commandStats()
	if decisions == 0 {
		r.Fatalf("%s, %s: no decision: %v", s.name, traffic, err)
	}

	c := callCount{Subject: s.name, Traffic: traffic, Decisions: decisions, Granted: float64(granted) / float64(decisions), Calls: -1}
	thousands := float64(decisions) / 1000
	if inner.Store != nil {
		c.Calls = float64(inner.calls()) / thousands
	}
	c.CPU = time.Duration(float64(busy) / thousands)
	for name, of := range stats {
		c.Commands += float64(of.calls) / thousands
		if name == "evalsha" || name == "eval" {
			c.Scripts += float64(of.calls) / thousands
		}
	}
	return c
}

// zipfNames are ten thousand clients.
func zipfNames(prefix string) []string {
	names := make([]string, 10_000)
	for i := range names {
		names[i] = prefix + "198.51." + strconv.Itoa(i/100) + "." + strconv.Itoa(i%100)
	}
	return names
}

// zipfKeys draws clients of whom few ask for most.
func zipfKeys(names []string, worker int) func() string {
	zipf := rand.NewZipf(rand.New(rand.NewSource(int64(worker))), 1.1, 1, uint64(len(names)-1))
	return func() string { return names[zipf.Uint64()] }
}
