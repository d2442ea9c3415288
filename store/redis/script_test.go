package redis

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// step is one call of a history, with what the model says about it.
type step struct {
	now       int64
	requests  []store.Request
	decisions []store.Decision
	refunds   []store.Refund
	units     []int64
	amended   *store.Key
	amendment store.Amendment
	logs      []state
	joins     bool // the run of the call before
}

// state is what is stored of a log after a step.
type state struct {
	name    string
	value   string
	expires int64
	written bool
}

func (s *step) String() string {
	switch {
	case s.amended != nil:
		return fmt.Sprintf("at %d: amend %+v: %+v", s.now, *s.amended, s.amendment)
	case s.requests != nil:
		return fmt.Sprintf("at %d: take %+v", s.now, s.requests)
	}
	return fmt.Sprintf("at %d: refund %+v", s.now, s.refunds)
}

// TestScriptAgainstModel drives the script and store.Window with the same
// random histories, and compares every decision, every stored byte and every
// time to live. Clocks run, stand still and step back; limits change; what is
// refunded was charged, or not, or twice. Calls have runs of their own or share one.
func TestScriptAgainstModel(t *testing.T) {
	if !sameInnards() {
		t.Fatal("store.Window has changed; so must innards, and surely the script")
	}
	server := redistest.Start(t)
	script := newClocked(t, server)
	histories := 0
	rapid.Check(t, func(t *rapid.T) {
		histories++
		h := newHistory(script, fmt.Sprintf("h%d", histories))
		h.draw(t)
		replay(t, script, h.steps)
	})
}

// TestScriptAgainstModelRaised does the same where limits are raised and lowered,
// from 60 and below to above 64: the log is full of close entries then, and is
// made room in.
func TestScriptAgainstModelRaised(t *testing.T) {
	script := newClocked(t, redistest.Start(t))
	const window = 10 * time.Second
	compacted, withReports := 0, 0
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		h := newHistory(script, fmt.Sprintf("raised%d", seed))
		h.now = 1_700_000_000_000_000
		key := store.Key{Zone: h.zone, Client: "c", Window: window}
		name := h.model.name(key)
		entries := func() []entry {
			if log := h.model.logs[name]; log != nil {
				return slices.Clone(inside(log).entries)
			}
			return nil
		}
		for limit := int64(60); len(h.steps) < 400; {
			before := entries()
			span := window.Microseconds() / 64
			if limit < 64 {
				span /= 10
			}
			h.now += 1 + rng.Int64N(span)
			a := store.Request{Key: key, Limit: limit, Units: 1}
			if rng.IntN(40) == 0 || len(before) == 68 && rng.IntN(2) == 0 {
				a.Unreported = []store.Spent{{Age: time.Duration(rng.Int64N(5)) * time.Millisecond, Units: 3}}
			}
			if limit > 64 && rng.IntN(8) == 0 {
				a.Lease, a.LeaseSpan = rng.Int64N(5), time.Duration(rng.Int64N(int64(window/6)))
				a.LeaseSpan = a.LeaseSpan.Truncate(time.Microsecond)
			}
			if limit > 64 && rng.IntN(60) == 0 {
				limit = 60
				h.now += window.Microseconds() * (1 + rng.Int64N(2))
			} else if limit < 64 && len(entries()) >= 50 {
				limit = 1000
			}
			h.addTake(a)
			// Room was made if a full log has a new entry, and has lost none to time.
			if len(before) == 68 && before[0].stamp+window.Microseconds() > h.now && len(entries()) == 68 {
				begins := func(at int64) bool {
					return slices.ContainsFunc(entries(), func(e entry) bool { return e.first == at }) &&
						!slices.ContainsFunc(before, func(e entry) bool { return e.first <= at && at <= e.stamp })
				}
				if begins(h.now) {
					compacted++
				}
				if len(a.Unreported) > 0 && begins(h.now-a.Unreported[0].Age.Microseconds()) {
					withReports++
				}
			}
			if len(h.refunds) > 0 && rng.IntN(10) == 0 {
				h.addRefund(h.refunds[rng.IntN(len(h.refunds))])
			}
		}
		replay(t, script, h.steps)
	}
	t.Logf("room was made %d times for a charge, %d times for a report", compacted, withReports)
	if compacted == 0 || withReports == 0 {
		t.Error("this tests nothing")
	}
}

type history struct {
	model   model
	zone    string
	dense   bool // as many entries as there can be
	joins   bool // the next call is in the run of the one before
	reports int  // one request in so many and one reports units, none if it is 0
	hands   int  // one step in so many and one is by hand, none if it is 0
	bans    int  // so many requests of so many and one ban, none if it is 0
	now     int64
	steps   []step
	refunds []store.Refund // of what was charged
}

func newHistory(script *clocked, zone string) *history {
	return &history{model: model{logs: make(map[string]*store.Window), name: script.keyOf, origin: script.origin}, zone: zone}
}

func (h *history) draw(t *rapid.T) {
	h.now = 1_700_000_000_000_000 + rapid.Int64Range(0, 2_000_000).Draw(t, "start")
	window := rapid.SampledFrom([]time.Duration{
		time.Second, 1500*time.Millisecond + time.Microsecond, 10 * time.Second, time.Minute, time.Hour, store.MaxWindow,
	}).Draw(t, "window")
	limits := []int64{rapid.SampledFrom([]int64{1, 3, 64, 65, 100, 1000, 1_000_000, store.MaxEvents}).Draw(t, "limit")}
	if rapid.Bool().Draw(t, "limits change") {
		limits = append(limits, rapid.SampledFrom([]int64{0, 2, limits[0] / 2, limits[0] * 2 % store.MaxEvents}).Draw(t, "other limit"))
	}
	least, most := 1, 150
	if h.dense = rapid.IntRange(0, 5).Draw(t, "dense") == 5; h.dense {
		least, most, limits = 150, 300, []int64{1_000_000}
	}
	h.reports = rapid.SampledFrom([]int{0, 0, 1, 4}).Draw(t, "reports")
	h.bans = rapid.SampledFrom([]int{0, 1, 5}).Draw(t, "bans")
	h.hands = rapid.SampledFrom([]int{0, 1, 5, 20}).Draw(t, "by hand")
	share := rapid.SampledFrom([]int{0, 0, 1, 10}).Draw(t, "calls that share a run")
	for i := range rapid.IntRange(least, most).Draw(t, "steps") {
		if i > 0 && rapid.IntRange(0, 10).Draw(t, "joins") < share {
			h.joins = true // at the same moment
		} else {
			h.tick(t, window)
		}
		refunds := []bool{true, false, false, false}
		if h.dense {
			refunds = []bool{false, false, false, false, false, true}
		}
		switch {
		case !h.joins && h.hands > 0 && rapid.IntRange(0, h.hands).Draw(t, "hands") == 0:
			h.amend(t, window)
		case rapid.SampledFrom(refunds).Draw(t, "refund") && len(h.refunds) > 0:
			h.refund(t)
		default:
			h.take(t, window, limits)
		}
	}
}

// amend adds what an operator does.
func (h *history) amend(t *rapid.T, window time.Duration) {
	key := store.Key{Zone: h.zone, Client: fmt.Sprint("client", rapid.IntRange(0, 1).Draw(t, "client")), Window: window}
	a := store.Amendment{
		Unban: rapid.IntRange(0, 2).Draw(t, "unban") == 0,
		Empty: rapid.IntRange(0, 2).Draw(t, "empty") == 0,
		Ban:   rapid.SampledFrom([]time.Duration{0, 0, time.Microsecond, time.Second, window / 10, 2 * window, store.MaxWindow}).Draw(t, "ban"),
	}
	a.Ban = min(a.Ban.Truncate(time.Microsecond), store.MaxWindow)
	s := step{now: h.now, amended: &key, amendment: a}
	h.add(s, h.model.amend(h.now, key, a))
}

// tick moves the clock.
func (h *history) tick(t *rapid.T, window time.Duration) {
	w := window.Microseconds()
	if h.dense {
		h.now += rapid.SampledFrom([]int64{w/64 + 1, w/64 + 1, w / 64, w / 65, w / 300}).Draw(t, "ahead")
		return
	}
	switch rapid.IntRange(0, 11).Draw(t, "tick") {
	case 0, 1:
	case 2, 3, 4:
		h.now += rapid.Int64Range(0, w/64).Draw(t, "ahead")
	case 5, 6, 7:
		h.now += rapid.Int64Range(w/100, w/30).Draw(t, "ahead")
	case 8:
		h.now += rapid.SampledFrom([]int64{1, w / 64, w - 1, w, w + 1, 3 * w}).Draw(t, "ahead")
	case 9:
		h.now += rapid.Int64Range(0, w).Draw(t, "ahead")
	case 10:
		h.now -= rapid.Int64Range(0, 15_000_000).Draw(t, "back")
	case 11:
		if rapid.IntRange(0, 5).Draw(t, "far") == 0 {
			h.now -= rapid.Int64Range(0, 5*3600*1_000_000).Draw(t, "back")
		}
	}
}

func (h *history) take(t *rapid.T, window time.Duration, limits []int64) {
	n := rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(t, "requests")
	if h.dense {
		n = 1
	}
	var requests []store.Request
	for i := range n {
		limit := rapid.SampledFrom(limits).Draw(t, "limit")
		a := store.Request{
			Key:    store.Key{Zone: h.zone, Client: fmt.Sprint("client", i), Window: window},
			Limit:  limit,
			Units:  rapid.OneOf(rapid.Just(int64(1)), rapid.Int64Range(0, min(limit/8+1, store.MaxEvents))).Draw(t, "units"),
			Shadow: rapid.IntRange(0, 3).Draw(t, "shadow") == 0,
		}
		if i == 2 {
			a.Key.Client, a.Key.Zone = "client0", h.zone+"b"
		}
		if rapid.IntRange(0, 2).Draw(t, "more") == 0 {
			a.Lease = rapid.Int64Range(0, min(limit/4+1, store.MaxEvents)).Draw(t, "lease")
			a.LeaseSpan = time.Duration(rapid.Int64Range(0, store.MaxLeaseSpan.Microseconds()).Draw(t, "span")) * time.Microsecond
		}
		if h.bans > 0 && rapid.IntRange(0, h.bans).Draw(t, "bans") > 0 {
			a.Block = rapid.SampledFrom([]time.Duration{time.Microsecond, time.Second, window / 10, window - time.Second, 2 * window, store.MaxWindow}).Draw(t, "block")
			a.Block = min(max(a.Block.Truncate(time.Microsecond), time.Microsecond), store.MaxWindow)
		}
		if h.reports > 0 && rapid.IntRange(0, h.reports).Draw(t, "reports") == 0 {
			a.Unreported = h.unreported(t, window, limit)
			if rapid.IntRange(0, 3).Draw(t, "look") == 0 {
				a.Units, a.Lease = 0, 0
			}
		}
		requests = append(requests, a)
	}
	h.addTake(requests...)
}

// unreported draws what is unreported: of any age up to a window and beyond, in
// any order.
func (h *history) unreported(t *rapid.T, window time.Duration, limit int64) (list []store.Spent) {
	w := window.Microseconds()
	age := rapid.OneOf(rapid.SampledFrom([]int64{0, 1, w - 1, w, w + 1, 1<<63/1000 - 1}), rapid.Int64Range(0, w/64), rapid.Int64Range(0, w))
	units := rapid.OneOf(rapid.Just(int64(1)), rapid.Int64Range(1, limit/8+1))
	if rapid.IntRange(0, 3).Draw(t, "a lot") == 0 {
		units = rapid.Just(int64(store.MaxEvents))
	}
	for range rapid.OneOf(rapid.Just(1), rapid.Just(store.MaxUnreported), rapid.IntRange(1, store.MaxUnreported)).Draw(t, "entries") {
		list = append(list, store.Spent{
			Age:   time.Duration(age.Draw(t, "age")) * time.Microsecond,
			Units: min(units.Draw(t, "units"), store.MaxEvents),
		})
	}
	return list
}

// addTake adds a call, and notes what it is charged.
func (h *history) addTake(requests ...store.Request) []store.Decision {
	s := step{now: h.now, requests: requests}
	var written map[string]time.Duration
	s.decisions, written = h.model.take(h.now, requests)
	for i, a := range s.decisions {
		if a.Charged() {
			h.refunds = append(h.refunds, store.Refund{
				Key: requests[i].Key, Charge: a.Charge, Units: requests[i].Units + a.Lease,
			})
		}
	}
	h.add(s, written)
	return s.decisions
}

// addRefund adds a call that refunds.
func (h *history) addRefund(refunds ...store.Refund) {
	s := step{now: h.now, refunds: refunds}
	var written map[string]time.Duration
	s.units, written = h.model.refund(h.now, refunds)
	h.add(s, written)
}

func (h *history) refund(t *rapid.T) {
	var refunds []store.Refund
	for range rapid.SampledFrom([]int{1, 1, 2, 4}).Draw(t, "refunds") {
		if h.dense {
			// The last entry goes, and another one begins sooner.
			refunds = append(refunds, h.refunds[len(h.refunds)-1])
			h.refunds = h.refunds[:len(h.refunds)-1]
			break
		}
		// Most of the time a recent one.
		i := len(h.refunds) - 1 - min(rapid.IntRange(0, 30).Draw(t, "which"), len(h.refunds)-1)
		g := h.refunds[i]
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			g.Mark++
		case 1:
			g.Stamp -= rapid.Int64Range(0, g.Window.Microseconds()).Draw(t, "earlier")
		case 2:
			g.Stamp += rapid.Int64Range(0, g.Window.Microseconds()).Draw(t, "later")
		case 3:
			g.Units = min(g.Units*2, store.MaxEvents)
		case 4, 5, 6:
			g.Units = rapid.Int64Range(1, g.Units).Draw(t, "units")
		}
		here := h.model.origin
		g.Origin = rapid.SampledFrom([]int64{0, here, here, here - 1, here + 1}).Draw(t, "origin")
		refunds = append(refunds, g)
	}
	h.addRefund(refunds...)
}

// add notes what is stored after a step.
func (h *history) add(s step, written map[string]time.Duration) {
	note := func(key store.Key) {
		st := state{name: h.model.name(key)}
		if log := h.model.logs[st.name]; log != nil && !log.Empty() {
			st.value, st.expires = packed(log, key.Window), log.Expires(key.Window)
		}
		_, st.written = written[st.name]
		s.logs = append(s.logs, st)
	}
	for i := range s.requests {
		note(s.requests[i].Key)
	}
	for i := range s.refunds {
		note(s.refunds[i].Key)
	}
	if s.amended != nil {
		note(*s.amended)
	}
	s.joins, h.joins = h.joins, false
	h.steps = append(h.steps, s)
}

// result is what the server says about a step.
type result struct {
	reply  string
	err    error
	values []any // of its logs, after the run
	ttls   []any
}

// replay runs a history and compares.
func replay(t rapid.TB, script *clocked, steps []step) {
	start := time.Now()
	for i := 0; i < len(steps); {
		n := sharing(steps[i:])
		var calls []*call
		for _, s := range steps[i : i+n] {
			switch {
			case s.amended != nil:
				calls = append(calls, script.keys.amendCall(patience, s.amended, &s.amendment))
			case s.requests != nil:
				calls = append(calls, script.keys.takeCall(patience, s.requests))
			default:
				calls = append(calls, script.keys.refundCall(patience, s.refunds))
			}
		}
		if err := script.send(steps[i].now, commandOf(calls...)); err != nil {
			t.Fatal(err)
		}
		for _, s := range steps[i : i+n] {
			for _, log := range s.logs {
				_ = script.conn.Send("GET", log.name)
				_ = script.conn.Send("PTTL", log.name)
			}
		}
		i += n
	}
	// Everything is received before anything is compared: what is left would
	// be taken for the replies to the next history.
	results := make([]result, len(steps))
	for i := 0; i < len(steps); {
		n := sharing(steps[i:])
		receive(script, steps[i:i+n], results[i:i+n])
		i += n
	}
	// The clock of the test is not the one by which the server lets keys
	// expire, which are kept for a second at least.
	took := time.Since(start)
	if took > 900*time.Millisecond {
		t.Skip("the machine was too slow for this history")
	}
	for i := range steps {
		compare(t, script, &steps[i], &results[i], took)
		if t.Failed() {
			t.Fatalf("step %d of %d", i, len(steps))
		}
	}
}

// sharing is how many steps share the run of the first one.
func sharing(steps []step) int {
	n := 1
	for n < len(steps) && steps[n].joins && steps[0].amended == nil {
		n++
	}
	return n
}

// receive takes in what the server says about the steps of a run. What is stored
// can be seen only after all of it: it is what the last step says of a log that
// several have.
func receive(script *clocked, steps []step, results []result) {
	reply, err := script.conn.Receive()
	rest, _ := reply.(string)
	final := make(map[string]*state)
	for i := range steps {
		s, r := &steps[i], &results[i]
		size := takeSize(script.keys.takeCall(patience, s.requests).items, len(s.requests)) + refundReply*len(s.refunds)
		if s.amended != nil {
			size = 1
		}
		r.err = err
		r.reply, rest = rest[:min(size, len(rest))], rest[min(size, len(rest)):]
		for j := range s.logs {
			log := &s.logs[j]
			if before := final[log.name]; before != nil {
				log.written = log.written || before.written
			}
			final[log.name] = log
		}
	}
	if rest != "" {
		results[0].err = fmt.Errorf("%d bytes too many", len(rest))
	}
	for i := range steps {
		for j := range steps[i].logs {
			steps[i].logs[j] = *final[steps[i].logs[j].name]
			value, _ := script.conn.Receive()
			ttl, _ := script.conn.Receive()
			results[i].values, results[i].ttls = append(results[i].values, value), append(results[i].ttls, ttl)
		}
	}
}

func compare(t rapid.TB, script *clocked, s *step, r *result, took time.Duration) {
	if r.err != nil {
		t.Fatalf("%v\ngot %v", s, r.err)
	}
	switch {
	case s.amended != nil:
		if r.reply != "\x01" {
			t.Errorf("%v\ngot %q", s, r.reply)
		}
	case s.requests != nil:
		decisions := make([]store.Decision, len(s.requests))
		if err := readDecisions(r.reply, script.keys.takeCall(patience, s.requests).items, decisions); err != nil {
			t.Fatalf("%v\ngot %v", s, err)
		}
		if !slices.Equal(decisions, s.decisions) {
			t.Errorf("%v\ngot  %+v\nwant %+v", s, decisions, s.decisions)
		}
	default:
		var want []byte
		for _, units := range s.units {
			want = appendNumber(want, units, refundReply)
		}
		if r.reply != string(want) {
			t.Errorf("%v\nrefunded %x, want %x", s, r.reply, want)
		}
	}
	for i, log := range s.logs {
		value, _ := r.values[i].(string)
		if value != log.value {
			t.Errorf("%v\nstored at %s: %x\nwant   %x", s, log.name, value, log.value)
		}
		ttl, _ := r.ttls[i].(int64)
		switch {
		case log.value == "" && ttl != -2:
			t.Errorf("%v\nempty log %s has %d ms to live", s, log.name, ttl)
		case log.value != "" && ttl < 0:
			t.Errorf("%v\n%s lives for ever: %d", s, log.name, ttl)
		case log.value != "" && log.written:
			want := (log.expires-s.now+999)/1000 + 1000
			if ttl > want || ttl < want-took.Milliseconds()-1 {
				t.Errorf("%v\n%s has %d ms to live, want %d", s, log.name, ttl, want)
			}
		}
	}
}
