package fallback_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// outage is how a call of the shared store fares.
type outage int

const (
	none   outage = iota // it is answered
	away                 // it is certainly not executed
	mute                 // it is executed, and the decision is lost
	vanish               // it is lost, which nobody can tell from mute
)

// event is something that happens in a history of several processes.
type event struct {
	after   time.Duration
	becomes outage // from here on, if it is not negative
	flush   bool   // all processes flush
	process int
	client  int
	need    int64
	shadow  bool // another zone's limit is asked for as well, with this
	back    bool // the units are refunded if this process granted them
}

// world is several processes with local counts each, and one shared store.
type world struct {
	limit     int64
	processes []*fallback.Local
	shared    *store.Memory
	outage    outage
	reliable  bool // no report was lost so far
	spent     map[store.Key][]storetest.Span
	exact     int // grants of the store that were held against the limit
	alone     int // grants of local counts
}

const (
	worldWindow = 10 * time.Second
	otherLimit  = 2
)

var errAway = &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errors.New("away")}

// call asks the shared store, if it is there.
func (w *world) call(requests []store.Request, decisions []store.Decision) error {
	switch w.outage {
	case none:
		return w.shared.Take(time.Now(), 0, requests, decisions)
	case away:
		return errAway
	case mute:
		_ = w.shared.Take(time.Now(), 0, requests, decisions)
	}
	w.reliable = false
	return &store.Error{Kind: store.KindTimeout, Err: errors.New("late")}
}

// request is one request, served as a caller of a Local does.
func (w *world) request(e event) error {
	s := w.processes[e.process]
	requests := []store.Request{{Key: store.Key{Zone: "zone", Client: fmt.Sprint(e.client), Window: worldWindow}, Limit: w.limit, Units: e.need}}
	if e.shadow {
		weak := requests[0]
		weak.Key.Zone, weak.Limit, weak.Units, weak.Shadow = "weak", otherLimit, 1, true
		requests = append(requests, weak)
	}
	decisions := make([]store.Decision, len(requests))
	s.BeginReport(requests)
	err := w.call(requests, decisions)
	end(s, requests, err == errAway)
	if err == nil {
		s.Observe(requests, decisions)
		w.note(requests, decisions)
		return w.counted(requests, decisions)
	}
	if err := take(s, requests, decisions, len(w.processes), err == errAway); err != nil {
		return err
	}
	if e.back {
		var refunds []store.Refund
		for i, a := range decisions {
			if a.Charged() {
				refunds = append(refunds, store.Refund{Key: requests[i].Key, Charge: a.Charge, Units: requests[i].Units})
			}
		}
		s.Refund(refunds)
		return nil
	}
	w.alone++
	w.note(requests, decisions)
	return nil
}

// note notes what was spent.
func (w *world) note(requests []store.Request, decisions []store.Decision) {
	for i := range requests {
		if decisions[i].Charged() {
			w.spent[requests[i].Key] = append(w.spent[requests[i].Key], storetest.Span{From: time.Now(), To: time.Now(), Units: requests[i].Units})
		}
	}
}

// counted holds what the store has granted against everything that was spent
// in the window before, alone or not: once nothing is unreported the store
// knows all of it.
func (w *world) counted(requests []store.Request, decisions []store.Decision) error {
	for _, s := range w.processes {
		if !w.reliable || s.Unreported() > 0 {
			return nil
		}
	}
	for i := range requests {
		if !decisions[i].Charged() {
			continue
		}
		w.exact++
		sum := int64(0)
		for _, span := range w.spent[requests[i].Key] {
			if time.Since(span.From) < worldWindow {
				sum += span.Units
			}
		}
		if sum > requests[i].Limit {
			return fmt.Errorf("the store granted %v unit %d of %d in a window", requests[i].Key, sum, requests[i].Limit)
		}
	}
	return nil
}

func (w *world) run(events []event) error {
	for i, e := range events {
		time.Sleep(e.after)
		if e.becomes >= 0 {
			w.outage = e.becomes
		}
		if e.flush {
			for _, s := range w.processes {
				s.Flush(w.call)
			}
		}
		if err := w.request(e); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
	}
	instances := int64(len(w.processes))
	for key, spans := range w.spent {
		limit := w.limit
		if key.Zone == "weak" {
			limit = otherLimit
		}
		if units, at := storetest.Most(spans, worldWindow); units > limit+max(limit, instances) {
			return fmt.Errorf("%d units of %v in the window from %v, with a limit of %d and %d processes", units, key, at, limit, instances)
		}
	}
	return nil
}

func drawEvents(t *rapid.T, processes int, limit int64) []event {
	n := rapid.IntRange(1, 200).Draw(t, "number of events")
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) event {
		e := event{
			becomes: -1,
			process: rapid.IntRange(0, processes-1).Draw(t, "process"),
			client:  rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "client"),
			need:    rapid.OneOf(rapid.Just(int64(1)), rapid.Int64Range(1, max(1, limit/8))).Draw(t, "need"),
			shadow:  rapid.IntRange(0, 3).Draw(t, "shadow") == 0,
			back:    rapid.IntRange(0, 9).Draw(t, "back") == 0,
			flush:   rapid.IntRange(0, 9).Draw(t, "flush") == 0,
		}
		width := worldWindow.Microseconds() // the clocks of the stores know no less than one
		after := int64(0)
		switch rapid.IntRange(0, 9).Draw(t, "pass") {
		case 0, 1, 2:
		case 3, 4, 5, 6:
			after = rapid.Int64Range(0, width/64).Draw(t, "after")
		case 7, 8:
			after = rapid.Int64Range(0, width/8).Draw(t, "after")
		case 9:
			after = width + rapid.Int64Range(-1, 1).Draw(t, "near")
		}
		e.after = time.Duration(after) * time.Microsecond
		if rapid.IntRange(0, 11).Draw(t, "change") == 0 {
			e.becomes = rapid.SampledFrom([]outage{none, none, away, away, mute, vanish}).Draw(t, "becomes")
		}
		return e
	}), n, n).Draw(t, "events")
}

// Whatever fails and however, no interval of a window has more units than the
// limit and what the local counts may grant on top of it. And as long as every
// report is either made or known not to be, the store grants nothing that the
// units granted without it leave no room for, once they are all reported.
func TestLocalIsBounded(t *testing.T) {
	exact, alone := 0, 0
	property := func(rt *rapid.T) {
		processes := rapid.IntRange(1, 5).Draw(rt, "processes")
		limit := rapid.SampledFrom([]int64{1, 2, 5, 12, 64, 65, 200}).Draw(rt, "limit")
		events := drawEvents(rt, processes, limit)
		if rapid.Bool().Draw(rt, "reliable") {
			for i := range events {
				if events[i].becomes > away {
					events[i].becomes = away
				}
			}
		}
		var err error
		synctest.Test(t, func(t *testing.T) {
			w := &world{limit: limit, shared: store.NewMemory(0), reliable: true, spent: make(map[store.Key][]storetest.Span)}
			for range processes {
				w.processes = append(w.processes, fallback.NewLocal())
			}
			err = w.run(events)
			exact, alone = exact+w.exact, alone+w.alone
		})
		if err != nil {
			rt.Fatal(err)
		}
	}
	for range 10 { // histories are cheap
		rapid.Check(t, property)
	}
	if exact < 100 || alone < 100 {
		t.Errorf("%d grants of the store and %d of local counts are too few to tell", exact, alone)
	}
}

// The bound is reached: the processes spend their shares alone, and what they
// were to report is lost with the store's decisions.
func TestLocalBoundIsReached(t *testing.T) {
	for _, test := range []struct {
		limit     int64
		processes int
	}{{12, 3}, {2, 5}, {5, 1}} {
		w := &world{limit: test.limit, shared: store.NewMemory(0), outage: vanish, spent: make(map[store.Key][]storetest.Span)}
		for range test.processes {
			w.processes = append(w.processes, fallback.NewLocal())
		}
		var events []event
		for _, o := range []outage{vanish, none} {
			for p := range test.processes {
				for range test.limit {
					events = append(events, event{becomes: o, process: p, need: 1})
				}
			}
		}
		if err := w.run(events); err != nil {
			t.Error(err)
		}
		want := test.limit + max(test.limit, int64(test.processes))
		if n := len(w.spent[store.Key{Zone: "zone", Client: "0", Window: worldWindow}]); int64(n) != want {
			t.Errorf("%d processes with a limit of %d were granted %d units, want %d", test.processes, test.limit, n, want)
		}
	}
}
