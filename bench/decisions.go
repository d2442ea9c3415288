package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"
)

// situation is what a decision is about.
type situation string

const (
	hot     situation = "hot"     // one key, asked for by all, granted
	cold    situation = "cold"    // a key that was never seen before, granted
	refused situation = "refused" // one key, over its limit
	alone   situation = "alone"   // one key, asked for by one goroutine
)

// speed is how fast a subject decides in one situation: medians of the
// rounds.
type speed struct {
	Subject   string
	Situation situation
	Delayed   bool // 1 ms between the process and Redis
	Shared    bool // counts in Redis

	PerSecond      float64
	Time           time.Duration // of all cores' wall clock for one decision: 1 / PerSecond
	Median, P99    time.Duration // until one decision is made, waiting included
	Mallocs, Bytes float64       // for one decision
	Failed         float64       // share of the calls that returned an error
}

// callers is how many goroutines ask at once.
const callers = 64

// proxyDelay is what the proxy adds to a round trip.
const proxyDelay = time.Millisecond

// tight is a limit that is reached at once, and stays so.
var tight = quota{10, time.Hour}

// tightUsed is how many decisions use it up for certain.
const tightUsed = 40

func measureDecisions(r *rig, rep *report) {
	for _, delayed := range []bool{false, true} {
		list, situations := subjects, []situation{hot, cold, refused, alone}
		if delayed {
			list, situations = sharedSubjects(), situations[:3]
		}
		for _, what := range situations {
			r.log("decisions: %s, delayed %v", what, delayed)
			rep.Speeds = append(rep.Speeds, compare(r, rep, list, what, delayed)...)
		}
	}
}

// compare measures subjects in turns. A rival that does not work is named as
// missing.
func compare(r *rig, rep *report, list []subject, what situation, delayed bool) []speed {
	rounds := pick(r, 3, 1)
	if delayed {
		rounds = pick(r, 2, 1)
	}
	samples := make([][]sample, len(list))
	for round := range rounds {
		for i, s := range list {
			r.goOn()
			got, err := once(r, s, what, delayed, round == 0)
			switch {
			case err == nil:
				samples[i] = append(samples[i], got)
			case isOurs(s.name):
				r.must(err)
			default:
				rep.missing("a round of %s: %v", s.name, err)
			}
		}
	}
	var speeds []speed
	for i, s := range list {
		if len(samples[i]) == 0 {
			continue
		}
		of := summarize(samples[i])
		of.Subject, of.Situation, of.Delayed, of.Shared = s.name, what, delayed, s.shared
		speeds = append(speeds, of)
	}
	return speeds
}

// once is one round of one subject.
func once(r *rig, s subject, what situation, delayed, first bool) (sample, error) {
	r.empty()
	runtime.GC() // what the others left behind
	address := r.redis.Addr
	if delayed {
		r.proxy.Delay(proxyDelay)
		address = r.proxy.Addr
	}
	l := load{workers: callers, warm: pick(r, 200*time.Millisecond, 100*time.Millisecond), run: pick(r, 500*time.Millisecond, 150*time.Millisecond), keys: oneKey}
	q := plenty
	switch what {
	case cold:
		l.keys = freshKeys
	case refused:
		q = tight
	case alone:
		l.workers = 1
	}
	lim, err := s.open(address, q)
	if err != nil {
		return sample{}, err
	}
	defer lim.close()
	if what == refused {
		decide := lim.session()
		for range tightUsed {
			if _, err := decide(oneKey(0)()); err != nil {
				return sample{}, err
			}
		}
	}
	if first && r.profiles != "" && strings.HasPrefix(s.name, "this module") && !delayed {
		defer r.profile(s.name + " " + string(what))()
	}
	result := drive([]limiter{lim}, l)
	for tries := 0; result.decisions+result.errors == 0 && tries < 3; tries++ {
		l.run *= 4 // the machine was busy with something else
		result = drive([]limiter{lim}, l)
	}
	if result.decisions == 0 {
		return result, fmt.Errorf("%s: no decision in %v: %v", what, l.run, result.err)
	}
	expected := result.decisions
	if what == refused {
		expected = 0
	}
	if result.granted != expected {
		return result, fmt.Errorf("%s: %d of %d granted, want %d", what, result.granted, result.decisions, expected)
	}
	return result, nil
}

func summarize(samples []sample) (s speed) {
	var perSecond, mallocs, bytes, failed []float64
	var half, p99 []time.Duration
	for i := range samples {
		of := &samples[i]
		perSecond = append(perSecond, of.perSecond())
		mallocs, bytes = append(mallocs, of.mallocs), append(bytes, of.bytes)
		failed = append(failed, float64(of.errors)/float64(of.errors+of.decisions))
		half, p99 = append(half, quantile(of.latencies, 0.5)), append(p99, quantile(of.latencies, 0.99))
	}
	s.PerSecond = median(perSecond)
	s.Time = time.Duration(float64(time.Second) / s.PerSecond)
	s.Mallocs, s.Bytes, s.Failed = median(mallocs), median(bytes), median(failed)
	s.Median, s.P99 = median(half), median(p99)
	return s
}

// profile begins a CPU profile and returns what ends it.
func (r *rig) profile(name string) func() {
	file, err := os.Create(filepath.Join(r.profiles, strings.NewReplacer(" ", "-", ",", "").Replace(name)+".pprof"))
	r.must(err)
	r.must(pprof.StartCPUProfile(file))
	return func() {
		pprof.StopCPUProfile()
		r.must(file.Close())
	}
}
