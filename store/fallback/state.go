package fallback

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// failuresToAway is how many calls in a row must fail before a store that
	// has answered, and does not report by itself, counts as away: fewer, and
	// a store that loses one reply in twenty would be reported away and back
	// all the time.
	failuresToAway = 3
	// sameLoss is the time within which losses of one server are one: each
	// guard's store may notice it.
	sameLoss = 5 * time.Second
	// flushTime is how long the store has for each call that reports what was
	// spent without it.
	flushTime = time.Second
)

// Observer is told what a guard notices, for logs and metrics. Its methods must
// neither block nor call the guard. All but Called are called one at a time.
type Observer interface {
	// Called: a call to the store is over. It took so long; err is nil, or why
	// there was no answer.
	Called(took time.Duration, err error)
	// ServerChanged: a server of the store fares differently from before, which
	// is Unknown if nothing was known of it.
	ServerChanged(before store.Condition, now store.Report)
	// ServerRemoved: a server does not belong to the store any more.
	ServerRemoved(server string)
	// Lost: a server has lost counts.
	Lost(store.Report)
	// Instances: so many processes share the store, by a report on any of its
	// servers; inTouch if that server answers.
	Instances(n int, inTouch bool)
	// Alone: the store is away, and nobody knows how many processes share it,
	// so that each takes itself for the only one. It is told once.
	Alone()
}

// Settings are what an operator chooses about a store's guard.
type Settings struct {
	// Cautious: until a window has passed since the store lost counts, the
	// process also holds clients to its own share of their limits.
	Cautious bool
	// Instances is how many processes share the store, as the operator says; 0
	// if he says nothing.
	Instances int
	// Infallible: the store lives in this process and never fails, so that
	// nothing is kept for the case that it does.
	Infallible bool
}

// Configured is a store that knows the settings of its guard. Others have the zero
// Settings.
type Configured interface{ FallbackSettings() Settings }

// State is what outlives a guard: local counts, what is unreported, losses, and
// how servers fare. All guards of one store's data share it, above all the guards
// of the configurations before and after a reload, so that each change is told
// once, by the guard that was started last. It is safe for concurrent use.
type State struct {
	local     *Local
	lost      atomic.Pointer[time.Time] // the last loss, nil if there was none
	away      atomic.Bool               // servers are known, and none of them is up
	instances atomic.Int64              // when a server answered last, or as recalled; 0 if not known
	// When this process last decided something because the store did not, and when it
	// last let something pass uncounted, in ns; 0 if never.
	decided, allowed atomic.Int64

	// calm: the last call of a store that does not report went well, and that
	// is known.
	calm   atomic.Bool
	paying atomic.Bool // what the store has not heard is soon told again

	mu       sync.Mutex
	guards   []*Guard // the last one leads: its reports count
	servers  map[string]*server
	failures int  // in a row, of a store that does not report
	alone    bool // that was told
	flushing bool
	again    bool // another server has come back meanwhile
}

// server is what is known of one server.
type server struct {
	condition store.Condition
	since     time.Time    // it has had the condition
	last      store.Report // that changed the condition
	lost      time.Time
	how       string // the loss showed
	losses    int
}

// NewState returns a state in which nothing is known.
func NewState() *State {
	return &State{local: NewLocal(), servers: make(map[string]*server)}
}

// Known is how many processes shared the store when a server answered last, or
// as recalled; 0 if nobody knows.
func (s *State) Known() int { return int(s.instances.Load()) }

// Recall says how many processes shared the store, as a process before this one
// knew. It counts unless the store has told already; then Recall reports false.
func (s *State) Recall(instances int) bool {
	return s.instances.CompareAndSwap(0, int64(instances))
}

// Guard returns a guard of a store, to be closed. Its reports do not count before
// it is started, if another one is: its configuration may only be validated.
func (s *State) Guard(of store.Store, observer Observer) *Guard {
	g := &Guard{State: s, store: of, observer: observer, reports: make(map[string]store.Report), unwatch: func() {}}
	g.shared, _ = of.(store.Shared)
	if c, ok := of.(Configured); ok {
		g.settings = c.FallbackSettings()
	}
	s.mu.Lock()
	if n := len(s.guards); n > 0 && s.guards[n-1].started {
		s.guards = slices.Insert(s.guards, 0, g)
	} else {
		s.guards = append(s.guards, g)
	}
	s.mu.Unlock()
	if g.shared != nil {
		g.unwatch = g.shared.Watch(g.heard) // not under the mutex, see heard
	}
	return g
}

// Start makes the guard the one whose reports count.
func (g *Guard) Start() {
	s := g.State
	s.mu.Lock()
	defer s.mu.Unlock()
	g.started = true
	i := slices.Index(s.guards, g)
	if i < 0 {
		return
	}
	s.guards = append(slices.Delete(s.guards, i, i+1), g)
	s.replayLocked()
}

// Close ends a guard. If its reports counted, the reports of another one do now.
// Calls under way go on, but nothing is told of them.
func (g *Guard) Close() {
	g.unwatch()
	s := g.State
	s.mu.Lock()
	defer s.mu.Unlock()
	led := s.leaderLocked() == g
	s.guards = slices.DeleteFunc(s.guards, func(other *Guard) bool { return other == g })
	if led {
		s.replayLocked()
	}
	s.pruneLocked()
}

// Leads reports whether the guard's reports count and it has been started.
func (g *Guard) Leads() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.started && g.leaderLocked() == g
}

// leaderLocked is the guard whose reports count, nil if none is left.
func (s *State) leaderLocked() *Guard {
	if n := len(s.guards); n > 0 {
		return s.guards[n-1]
	}
	return nil
}

// replayLocked takes in what the leader has heard before it was that.
func (s *State) replayLocked() {
	if g := s.leaderLocked(); g != nil {
		for _, r := range g.reports {
			s.followLocked(g, r)
		}
	}
}

// pruneLocked forgets the servers that no store reports on any more: the servers
// of a store that was replaced at a reload.
func (s *State) pruneLocked() {
	g := s.leaderLocked()
	if g == nil || len(g.reports) == 0 {
		return // there are no reports, or none yet
	}
	for name := range s.servers {
		spokenOf := func(g *Guard) bool { _, ok := g.reports[name]; return ok }
		if !slices.ContainsFunc(s.guards, spokenOf) {
			delete(s.servers, name)
			g.observer.ServerRemoved(name)
		}
	}
	s.updateAwayLocked()
}

// updateAwayLocked finds out from the servers whether the store is away.
func (s *State) updateAwayLocked() {
	known, up := false, false
	for _, of := range s.servers {
		known = known || of.condition != store.Unknown
		up = up || of.condition == store.Up
	}
	s.away.Store(known && !up)
}

// heard takes in a report of the guard's store. The store may hold locks of its
// own meanwhile, so that it must not be called under the state's mutex.
func (g *Guard) heard(r store.Report) {
	s := g.State
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.guards, g) {
		return // it was closed
	}
	if r.Lost != "" {
		s.loseLocked(r)
		r.Lost = ""
	}
	if r.Condition == store.Up || r.Condition == store.Slow {
		g.inTouch.Store(true)
		s.instances.Store(int64(r.Instances))
	}
	g.reports[r.Server] = r
	if r.Condition == store.Removed {
		delete(g.reports, r.Server)
	}
	if s.leaderLocked() == g {
		s.followLocked(g, r)
		s.pruneLocked()
	}
}

// called takes in how a call to the store ended. Of a shared store it says no more
// than that: how its servers fare, they report themselves.
func (g *Guard) called(took time.Duration, err error) {
	g.observer.Called(took, err)
	if g.shared == nil && store.ErrorKind(err) != store.KindBudget {
		g.judge(err)
	}
}

// judge makes a report of how a call ended, for a store that sends none. Its one
// server has the name of the store.
func (g *Guard) judge(err error) {
	s := g.State
	if err == nil && s.calm.Load() {
		return
	}
	r := store.Report{Server: g.store.String(), Condition: store.Up, Err: err}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.guards, g) {
		return
	}
	s.calm.Store(err == nil)
	if err == nil {
		s.failures = 0
	} else {
		if s.failures++; s.serverLocked(r.Server).condition == store.Up && s.failures < failuresToAway {
			return
		}
		r.Condition = store.Away
	}
	s.followLocked(s.leaderLocked(), r)
}

func (s *State) serverLocked(name string) *server {
	of := s.servers[name]
	if of == nil {
		of = new(server)
		s.servers[name] = of
	}
	return of
}

// followLocked tells of what the leader g heard, if it is news.
func (s *State) followLocked(g *Guard, r store.Report) {
	if r.Instances > 0 {
		g.observer.Instances(r.Instances, r.Condition == store.Up || r.Condition == store.Slow)
	}
	if r.Condition == store.Removed {
		delete(s.servers, r.Server)
		s.updateAwayLocked()
		g.observer.ServerRemoved(r.Server)
		return
	}
	of := s.serverLocked(r.Server)
	before := of.condition
	if r.Condition == before || r.Condition == store.Unknown {
		return
	}
	of.condition, of.since, of.last = r.Condition, time.Now(), r
	s.updateAwayLocked()
	g.observer.ServerChanged(before, r)
	switch r.Condition {
	case store.Up:
		s.flushLocked()
	case store.Away:
		s.aloneLocked(g, r.Instances)
	}
}

// aloneLocked tells, once, that nobody knows how many instances there are. The
// store has said that there are so many; it is not asked, since it may hold its own
// locks while it reports.
func (s *State) aloneLocked(g *Guard, instances int) {
	known := instances > 1 || g.settings.Instances > 0 || g.inTouch.Load() || s.Known() > 0
	if g.shared == nil || known || s.alone {
		return
	}
	s.alone = true
	g.observer.Alone()
}

// loseLocked notes that a server has lost counts.
func (s *State) loseLocked(r store.Report) {
	now := time.Now()
	s.lost.Store(&now)
	of := s.serverLocked(r.Server)
	if !of.lost.IsZero() && now.Sub(of.lost) < sameLoss {
		return
	}
	of.lost, of.how = now, r.Lost
	of.losses++
	s.leaderLocked().observer.Lost(r)
}

var errClosed = errors.New("no configuration uses the store any more")

// flushLocked reports what was spent without the store, and makes the refunds that
// wait for it, in the background.
func (s *State) flushLocked() {
	if s.flushing || s.local.Unreported() == 0 && s.local.owed.count.Load() == 0 {
		s.again = s.flushing
		return
	}
	s.flushing = true
	go func() {
		s.local.Flush(func(requests []store.Request, decisions []store.Decision) error {
			return s.leading(func(g *Guard) error { return g.store.Take(time.Now(), flushTime, requests, decisions) })
		})
		s.local.pay(func(refunds []store.Refund) error {
			return s.leading(func(g *Guard) error { return g.store.Refund(flushTime, refunds) })
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		again := s.again
		s.flushing, s.again = false, false
		if again {
			s.flushLocked()
		}
	}()
}

// leading asks the store of the guard that leads.
func (s *State) leading(ask func(g *Guard) error) error {
	s.mu.Lock()
	g := s.leaderLocked()
	s.mu.Unlock()
	if g == nil {
		return &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errClosed}
	}
	return ask(g)
}

// asError is the failure that an error of a store is.
func asError(err error) *store.Error {
	if e, ok := errors.AsType[*store.Error](err); ok {
		return e
	}
	return &store.Error{Kind: store.KindReply, Err: err}
}
