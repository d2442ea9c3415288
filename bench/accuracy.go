package main

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// outcome is what a limiter let through under an attack.
type outcome struct {
	Subject   string
	Instances int
	Attack    string
	Limit     int64
	Window    time.Duration
	Attempts  int
	Granted   int
	Killed    int
	Most      int64 // units that were certainly granted within one interval of the window
	// Utilisation is how long an exact log takes to grant as many of the
	// same attempts, as a share of the time it took; above 1 it is how many
	// were granted, as a share of what an exact log grants.
	Utilisation float64
	Errors      int

	curve []curvePoint // units in the window that ends at a moment
}

type curvePoint struct{ Windows, Share float64 }

// attack is when requests are made, in windows since the first one. Limiters
// with fixed windows begin theirs at it.
type attack struct {
	name   string
	lasts  float64
	pause  time.Duration // of an attacker between requests: a burst holds more than L
	active func(windows float64) bool
}

// The names of attacks, by which goals and plots find them.
const (
	attackAll   = "all the time"
	attackEdges = "end of a window, start of the next"
	attackHalf  = "every half window"
)

var attacks = []attack{
	{attackAll, 3.5, 6 * time.Millisecond, func(float64) bool { return true }},
	{attackEdges, 3.3, 2 * time.Millisecond, func(w float64) bool {
		// One request begins the window, the rest comes around its end.
		return w < 0.001 || w > 0.5 && (fraction(w) > 0.84 && fraction(w) < 0.98 || fraction(w) > 0.01 && fraction(w) < 0.16)
	}},
	{attackHalf, 3.3, 2 * time.Millisecond, func(w float64) bool { return fraction(2*w) < 0.2 }},
}

func fraction(f float64) float64 { return f - float64(int64(f)) }

// victim is a limiter with several instances under attack.
type victim struct {
	name  string
	kills time.Duration // one instance dies and is replaced that often; never if 0
	open  func() (limiter, error)
}

const nameKilled = nameLeases + ", instances killed"

// accuracyInstances share the key, if they share anything.
const (
	accuracyInstances = 8
	attackers         = 16 // goroutines, two for each instance
	killEvery         = 300 * time.Millisecond
)

func measureAccuracy(r *rig, rep *report) {
	q := quota{int64(pick(r, 1500, 500)), pick(r, 3*time.Second, 1*time.Second)}
	kill := func() (limiter, error) {
		var cord severed
		lim, err := openLeases(r.redis.Addr, q, func(s store.Store) store.Store {
			cord.Store = s
			return &cord
		})
		return &mortal{lim, &cord}, err
	}
	victims := []victim{{name: nameKilled, kills: killEvery, open: kill}}
	for _, s := range subjects {
		if s.name == nameMemory {
			continue // eight of them are eight limits, by their manual
		}
		victims = append(victims, victim{name: s.name, open: func() (limiter, error) { return s.open(r.redis.Addr, q) }})
	}
	if node, err := r.startNode(map[string]string{"limit": "redis", "events": itoa(q.limit), "window": itoa(q.window.Milliseconds())}); err != nil {
		rep.missing("express-rate-limit + rate-limit-redis: %v", err)
	} else {
		defer node.kill()
		victims = append(victims, victim{name: nameExpress, open: openHTTP(node.url)})
	}

	for _, a := range attacks {
		// Ours by themselves: they are to be tried hard. A quick run does not
		// care.
		split := pick(r, slices.IndexFunc(victims, func(v victim) bool { return v.name == nameRate }), 0)
		for _, batch := range [][]victim{victims[:split], victims[split:]} {
			if len(batch) == 0 {
				continue
			}
			r.goOn()
			r.empty()
			r.log("accuracy: %s, %d limiters", a.name, len(batch))
			results := make([]outcome, len(batch))
			var wg sync.WaitGroup
			errs := make([]error, len(batch))
			for i, v := range batch {
				wg.Go(func() {
					// Their bursts do not coincide.
					time.Sleep(time.Duration(i) * q.window / 16)
					results[i], errs[i] = assault(v, q, a)
				})
			}
			wg.Wait()
			r.must(errors.Join(errs...))
			rep.Accuracy = append(rep.Accuracy, results...)
		}
	}
}

// slot holds an instance that may be replaced.
type slot struct{ current atomic.Pointer[limiter] }

func assault(v victim, q quota, a attack) (outcome, error) {
	o := outcome{Subject: v.name, Instances: accuracyInstances, Attack: a.name, Limit: q.limit, Window: q.window}
	slots := make([]slot, accuracyInstances)
	for i := range slots {
		lim, err := v.open()
		if err != nil {
			return o, err
		}
		slots[i].current.Store(&lim)
	}
	began := time.Now()
	logs := make([]attempts, attackers)
	var wg sync.WaitGroup
	for w := range logs {
		wg.Go(func() { logs[w].run(&slots[w%accuracyInstances], v.name, q.window, a, began) })
	}
	if v.kills > 0 {
		for end := began.Add(time.Duration(a.lasts * float64(q.window))); time.Until(end) > v.kills; o.Killed++ {
			time.Sleep(v.kills)
			next, err := v.open()
			if err != nil {
				return o, err
			}
			old := slots[o.Killed%accuracyInstances].current.Swap(&next)
			(*old).(*mortal).kill()
		}
	}
	wg.Wait()
	for i := range slots {
		(*slots[i].current.Load()).close()
	}
	o.judge(logs, began)
	return o, nil
}

// attempts is what one attacker has done.
type attempts struct {
	sent   []time.Time
	spans  []storetest.Span // granted
	errors int
}

func (t *attempts) run(at *slot, key string, window time.Duration, a attack, began time.Time) {
	var known *limiter
	var decide decide
	for {
		since := time.Since(began).Seconds() / window.Seconds()
		if since >= a.lasts {
			return
		}
		if !a.active(since) {
			time.Sleep(time.Millisecond)
			continue
		}
		if lim := at.current.Load(); lim != known {
			known, decide = lim, (*lim).session()
		}
		from := time.Now()
		granted, err := decide(key)
		t.sent = append(t.sent, from)
		switch {
		case err != nil:
			t.errors++
		case granted:
			t.spans = append(t.spans, storetest.Span{From: from, To: time.Now(), Units: 1})
		}
		time.Sleep(a.pause)
	}
}

// judge compares what happened with an exact log of the same requests.
func (o *outcome) judge(logs []attempts, began time.Time) {
	var sent []time.Time
	var spans []storetest.Span
	for i := range logs {
		sent = append(sent, logs[i].sent...)
		spans = append(spans, logs[i].spans...)
		o.Errors += logs[i].errors
	}
	o.Attempts, o.Granted = len(sent), len(spans)
	o.Most, _ = storetest.Most(spans, o.Window)
	slices.SortFunc(sent, time.Time.Compare)
	slices.SortFunc(spans, func(a, b storetest.Span) int { return a.From.Compare(b.From) })
	limit := int(o.Limit)
	var exact []time.Time
	for _, at := range sent {
		if n := len(exact); n < limit || !at.Before(exact[n-limit].Add(o.Window)) {
			exact = append(exact, at)
		}
	}
	switch n := len(spans); {
	case n == 0 || len(exact) == 0:
	case n > len(exact):
		o.Utilisation = float64(n) / float64(len(exact))
	default:
		o.Utilisation = float64(exact[n-1].Sub(sent[0])) / float64(spans[n-1].From.Sub(sent[0]))
	}

	first, last := 0, 0
	for at := time.Duration(0); ; at += o.Window / 50 {
		now := began.Add(at)
		for last < len(spans) && !spans[last].From.After(now) {
			last++
		}
		for first < last && !spans[first].From.After(now.Add(-o.Window)) {
			first++
		}
		o.curve = append(o.curve, curvePoint{at.Seconds() / o.Window.Seconds(), float64(last-first) / float64(o.Limit)})
		if last == len(spans) && first == last {
			return
		}
	}
}

// severed is a store that a process has lost by dying: nothing of it reaches
// Redis any more, not even leases that would be given back.
type severed struct {
	store.Store
	dead atomic.Bool
}

var errDead = &store.Error{Kind: store.KindUnavailable, Unexecuted: true, Err: errors.New("this instance was killed")}

func (s *severed) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	if s.dead.Load() {
		return errDead
	}
	return s.Store.Take(time.Now(), wait, requests, decisions)
}

func (s *severed) Refund(wait time.Duration, refunds []store.Refund) error {
	if s.dead.Load() {
		return errDead
	}
	return s.Store.Refund(wait, refunds)
}

// mortal is an instance that can be killed.
type mortal struct {
	limiter
	cord *severed
}

func (m *mortal) kill() {
	m.cord.dead.Store(true)
	m.close()
}
