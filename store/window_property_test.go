package store

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is an exact sliding log: every grant with its own stamp, in order.
type model struct {
	entries []exactEntry
	total   int64
}

type exactEntry struct{ stamp, units int64 }

func (m *model) add(stamp, units int64) {
	m.entries = append(m.entries, exactEntry{stamp, units})
	m.total += units
}

func (m *model) expire(now int64, held time.Duration) {
	width := held.Microseconds()
	for len(m.entries) > 0 && m.entries[0].stamp+width <= now {
		m.total -= m.entries[0].units
		m.entries = m.entries[1:]
	}
}

// remove takes back units of the grant with a stamp. Grants with one stamp
// are one.
func (m *model) remove(stamp, units int64) {
	for i := range m.entries {
		if e := &m.entries[i]; e.stamp == stamp {
			n := min(units, e.units)
			e.units -= n
			m.total -= n
			units -= n
		}
	}
	m.entries = slices.DeleteFunc(m.entries, func(e exactEntry) bool { return e.units == 0 })
}

// check decides like Window.Check.
func (m *model) request(now int64, a *Request) Decision {
	free := a.Limit - m.total
	decision := Decision{Granted: a.Units <= max(free, 0), Remaining: max(free, 0)}
	if n := len(m.entries); n > 0 {
		decision.Reset = time.Duration(m.entries[n-1].stamp-now)*time.Microsecond + a.Window
	}
	if decision.Granted {
		return decision
	}
	decision.RetryAfter = a.Window
	for _, e := range m.entries {
		if free += e.units; a.Units <= free {
			decision.RetryAfter = time.Duration(e.stamp-now)*time.Microsecond + a.Window
			break
		}
	}
	return decision
}

// most is the largest number of units spent in one interval [t, t+window).
func most(spent []exactEntry, window time.Duration) (units, at int64) {
	slices.SortFunc(spent, func(a, b exactEntry) int { return int(a.stamp - b.stamp) })
	sum, from := int64(0), 0
	for _, e := range spent {
		for ; spent[from].stamp+window.Microseconds() <= e.stamp; from++ {
			sum -= spent[from].units
		}
		if sum += e.units; sum > units {
			units, at = sum, spent[from].stamp
		}
	}
	return units, at
}

// past is a grant of a history.
type past struct {
	Refund
	request Request
	at      int64
	life    int          // how often the log had been emptied by hand
	spent   []exactEntry // what is left of it, by when it is spent
}

// take refunds units of a grant: those spent last have not been spent.
func (p *past) take(units int64) {
	for i := len(p.spent) - 1; i >= 0 && units > 0; i-- {
		n := min(units, p.spent[i].units)
		p.spent[i].units -= n
		units -= n
	}
}

func (p *past) left() (sum int64) {
	for _, e := range p.spent {
		sum += e.units
	}
	return sum
}

// history draws and plays random calls. What it may draw is set by the test;
// seen is told of every call.
type history struct {
	t          *rapid.T
	w          Window
	now        int64
	window     time.Duration
	past       []*past
	unreported []exactEntry // when units were spent without asking

	limit    func() int64
	back     bool                 // units are refunded
	stepping bool                 // the clock steps back
	reports  bool                 // units are spent without asking, and told later
	lease    bool                 // lease units are asked for
	span     time.Duration        // and stamped ahead by at most this
	block    func() time.Duration // requests ban, if it is set
	hand     func(until int64)    // is told of bans that are set by hand, if it is set
	amend    func() *Amendment    // what else is done by hand, nil for nothing, if it is set
	life     int                  // how often the log was emptied by hand
	seen     func(a *Request, decision Decision)
	returned func(g *Refund)
}

func (h *history) play(steps int) {
	for range rapid.IntRange(1, steps).Draw(h.t, "steps") {
		h.step()
		if err := h.w.sound(); err != nil {
			h.t.Fatalf("after %d: %v; log %s", h.now-start, err, h.w.text())
		}
	}
}

// pass lets some time pass: none, an instant, a share of the window, near a
// merged span, near the window.
func (h *history) pass() {
	width := h.window.Microseconds()
	near := func(n int64) int64 { return n + rapid.Int64Range(-2, 2).Draw(h.t, "near") }
	switch rapid.IntRange(0, 7).Draw(h.t, "pass") {
	case 0, 1:
	case 2:
		h.now++
	case 3:
		h.now += rapid.Int64Range(0, width/mergeParts).Draw(h.t, "short")
	case 4:
		h.now += rapid.Int64Range(0, width/8).Draw(h.t, "long")
	case 5:
		h.now += near(width / mergeParts)
	case 6:
		h.now += near(width - width/mergeParts)
	case 7:
		// To when something expires.
		if n := len(h.w.entries); n > 0 {
			e := h.w.entries[rapid.IntRange(0, n-1).Draw(h.t, "entry")]
			h.now = max(h.now, near(e.stamp+width))
		}
	}
	if h.stepping && rapid.IntRange(0, 15).Draw(h.t, "steps back") == 0 {
		by := rapid.SampledFrom([]time.Duration{time.Microsecond, time.Second, 2 * time.Second, 3 * time.Second, h.window, time.Hour}).Draw(h.t, "by")
		h.now -= by.Microseconds()
	}
}

func (h *history) step() {
	h.pass()
	h.w.Advance(h.now, h.window)
	if h.back && len(h.past) > 0 && rapid.IntRange(0, 2).Draw(h.t, "back") == 0 {
		h.refund()
		return
	}
	limit := h.limit()
	a := &Request{Key: Key{Window: h.window}, Limit: limit}
	a.Units = rapid.OneOf(rapid.Just(int64(1)), rapid.Int64Range(0, max(1, limit/8)), rapid.Int64Range(0, limit+1)).Draw(h.t, "need")
	a.Units = min(a.Units, MaxEvents)
	if h.lease {
		a.Lease = rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, max(1, limit/16))).Draw(h.t, "lease")
		a.LeaseSpan = time.Duration(rapid.Int64Range(0, h.span.Microseconds()).Draw(h.t, "span")) * time.Microsecond
	}
	if h.reports && rapid.IntRange(0, 2).Draw(h.t, "unreported") == 0 {
		h.report(a)
		h.w.CountUnreported(h.now, a)
		a.Unreported = nil
	}
	if h.block != nil {
		a.Block = h.block()
	}
	if h.hand != nil && rapid.IntRange(0, 30).Draw(h.t, "by hand") == 0 {
		ban := rapid.Int64Range(1, h.window.Microseconds()).Draw(h.t, "ban")
		h.w.Amend(h.now, &Amendment{Ban: time.Duration(ban) * time.Microsecond})
		h.hand(h.w.banned)
	}
	if h.amend != nil {
		if a := h.amend(); a != nil {
			h.amended(a)
			if a.Empty {
				h.now++ // a log is named by the time of its first charge: no store has two calls at one
				h.w.Advance(h.now, h.window)
			}
		}
	}
	before := h.w
	before.entries = slices.Clone(before.entries)
	decision := h.w.call(h.now, a)
	if !decision.Granted {
		h.refused(&before, a, decision)
	}
	if h.seen != nil {
		h.seen(a, decision)
	}
	if decision.Charged() {
		p := &past{request: *a, at: h.now, life: h.life, Refund: Refund{Key: Key{Window: h.window}, Charge: decision.Charge, Units: a.Units + decision.Lease}}
		h.spend(p, decision.Lease > 0)
		h.past = append(h.past, p)
	}
}

// amended does something by hand, and wants of the log what it is then to be.
func (h *history) amended(a *Amendment) {
	before := h.w
	before.entries = slices.Clone(before.entries)
	h.w.Amend(h.now, a)
	if a.Empty {
		h.life++
	}
	look := &Request{Key: Key{Window: h.window}, Limit: MaxEvents}
	was, is := before.Check(h.now, look), h.w.Check(h.now, look)
	blocked := a.Ban > 0 || was.Blocked && !a.Unban && (before.byHand || !a.Empty)
	switch {
	case a.Empty && h.w.total != 0, !a.Empty && !slices.Equal(before.entries, h.w.entries), is.Blocked != blocked,
		a.Ban > 0 && is.RetryAfter != a.Ban:
		h.t.Fatalf("%+v made %+v\nof %+v", a, h.w, before)
	}
	once := h.w
	once.entries = slices.Clone(once.entries)
	if h.w.Amend(h.now, a); !slices.Equal(once.entries, h.w.entries) || once.banned != h.w.banned || once.mark != h.w.mark {
		h.t.Fatalf("%+v twice made %+v\nof %+v", a, h.w, once)
	}
}

// report draws units that were spent without asking.
func (h *history) report(a *Request) {
	width := h.window.Microseconds()
	for range rapid.IntRange(1, MaxUnreported).Draw(h.t, "unreported") {
		s := Spent{Units: rapid.Int64Range(1, max(1, a.Limit/8)).Draw(h.t, "units")}
		age := rapid.OneOf(rapid.Int64Range(0, width/mergeParts), rapid.Int64Range(0, width+1)).Draw(h.t, "age")
		s.Age = time.Duration(age) * time.Microsecond
		a.Unreported = append(a.Unreported, s)
		h.unreported = append(h.unreported, exactEntry{h.now - age, s.Units})
	}
}

// spend decides when the units of a grant are spent: at once, or if there are
// lease units whenever that is worst until the stamp.
func (h *history) spend(p *past, leased bool) {
	if !leased {
		p.spent = []exactEntry{{p.at, p.Units}}
		return
	}
	early := rapid.OneOf(rapid.Just(int64(0)), rapid.Just(p.Units), rapid.Int64Range(0, p.Units)).Draw(h.t, "early")
	late := p.Stamp
	if rapid.Bool().Draw(h.t, "between") {
		late = rapid.Int64Range(p.at, p.Stamp).Draw(h.t, "late")
	}
	p.spent = []exactEntry{{p.at, early}, {late, p.Units - early}}
}

// refund refunds units of any grant, never more than it has left.
func (h *history) refund() {
	p := h.past[rapid.IntRange(max(0, len(h.past)-20), len(h.past)-1).Draw(h.t, "grant")]
	left := p.left()
	if left == 0 {
		return
	}
	g := p.Refund
	g.Units = rapid.OneOf(rapid.Just(left), rapid.Int64Range(1, left)).Draw(h.t, "units")
	if g.Stamp+h.window.Microseconds() > h.now {
		p.take(g.Units)
	} // else it comes too late, and is as good as spent
	h.w.Refund(h.now, &g)
	if h.returned != nil {
		h.returned(&g)
	}
}

// refused holds a refusal against its word: it changed nothing, and a retry
// succeeds when it says, and no microsecond earlier.
func (h *history) refused(before *Window, a *Request, decision Decision) {
	if !slices.Equal(before.entries, h.w.entries) || before.mark != h.w.mark || before.total != h.w.total {
		h.t.Fatalf("a refusal changed the log from %s to %s", before.text(), h.w.text())
	}
	if decision.Lease != 0 || decision.Stamp != 0 || decision.Mark != 0 {
		h.t.Fatalf("refused, but charged: %+v", decision)
	}
	if a.Units > a.Limit {
		if decision.RetryAfter != a.Window && !decision.Blocked {
			h.t.Fatalf("retry after %v of a need above the limit, want %v", decision.RetryAfter, a.Window)
		}
		return
	}
	before.banned, before.byHand = h.w.banned, h.w.byHand
	retry := decision.RetryAfter.Microseconds()
	for _, test := range []struct {
		after int64
		want  bool
	}{{retry - 1, false}, {retry, true}} {
		w := *before
		w.entries = slices.Clone(w.entries)
		if got := w.call(h.now+test.after, a); got.Granted != test.want {
			h.t.Fatalf("%+v of %+v: granted %v after %dµs; log %s", decision, a, got.Granted, test.after, before.text())
		}
	}
}

func (h *history) spent() (spent []exactEntry) {
	for _, p := range h.past {
		spent = append(spent, p.spent...)
	}
	return spent
}

// check runs a property more often than rapid does by default; histories are
// cheap.
func check(t *testing.T, property func(t *rapid.T)) {
	t.Helper()
	for range 10 {
		rapid.Check(t, property)
	}
}

func newHistory(t *rapid.T) *history {
	return &history{
		t:      t,
		now:    start,
		window: rapid.SampledFrom([]time.Duration{MinWindow, MinWindow + 7*time.Microsecond, window, time.Hour, MaxWindow}).Draw(t, "window"),
	}
}

func constantLimit(t *rapid.T, limits ...int64) func() int64 {
	limit := rapid.SampledFrom(limits).Draw(t, "limit")
	return func() int64 { return limit }
}

// No interval of one window has more units than the limit, whenever within
// their time the units of a grant are spent, whatever is refunded.
func TestWindowIsStrict(t *testing.T) {
	check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.limit = constantLimit(t, 1, 2, 5, 64, 65, 100, 1000, 1_000_000, MaxEvents)
		h.back = rapid.Bool().Draw(t, "refund")
		h.lease = rapid.Bool().Draw(t, "leases")
		h.span = MaxLeaseSpan
		if rapid.Bool().Draw(t, "bans") {
			h.block = func() time.Duration { return h.window / 3 }
		}
		h.play(200)
		if units, at := most(h.spent(), h.window); units > h.limit() {
			t.Fatalf("%d units of %d in the window from %d", units, h.limit(), at-start)
		}
	})
}

// When units are granted, no more than the limit are spent in the window that
// ends there and after it, including what was reported.
func TestWindowCountsReports(t *testing.T) {
	check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.limit = constantLimit(t, 1, 2, 5, 64, 65, 100, 1000, 1_000_000, MaxEvents)
		h.back = rapid.Bool().Draw(t, "refund")
		h.lease = rapid.Bool().Draw(t, "leases")
		h.span = MaxLeaseSpan
		h.reports = true
		h.seen = func(a *Request, got Decision) {
			if !got.Charged() {
				return
			}
			sum, since := a.Units, h.now-h.window.Microseconds()
			for _, e := range append(h.spent(), h.unreported...) {
				if e.stamp > since {
					sum += e.units
				}
			}
			if sum > a.Limit {
				t.Fatalf("%d units of %d in the window up to %d; log %s", sum, a.Limit, h.now-start, h.w.text())
			}
		}
		h.play(150)
	})
}

// Each unit counts for a window from its stamp, and for no longer than another 34th of
// what a log may span, in whatever order the stamps come and however the limit changes.
func TestWindowHoldsEachUnitForItsTime(t *testing.T) {
	full := 0
	check(t, func(t *rapid.T) {
		var w Window
		var spent model
		limits := rapid.SampledFrom([][]int64{{64}, {65}, {1_000_000}, {10, 1_000_000}, {60, 65, 5000}}).Draw(t, "limits")
		now := start
		for range rapid.IntRange(50, 250).Draw(t, "steps") {
			now += rapid.SampledFrom([]int64{0, 1, 1000, micros(0.1), micros(0.7), micros(1)}).Draw(t, "pass")
			a := &Request{Key: Key{Window: window}, Limit: rapid.SampledFrom(limits).Draw(t, "limit")}
			if rapid.Bool().Draw(t, "reports") {
				age := rapid.Int64Range(0, window.Microseconds()-1).Draw(t, "age")
				a.Unreported = []Spent{{time.Duration(age) * time.Microsecond, 1}}
				spent.add(now-age, 1)
			} else {
				a.Lease, a.LeaseSpan = 1, time.Duration(rapid.Int64Range(0, MaxLeaseSpan.Microseconds()).Draw(t, "span"))*time.Microsecond
			}
			stamp := now + a.LeaseSpan.Microseconds()
			decision := w.call(now, a)
			if decision.Lease > 0 {
				spent.add(stamp, 1)
				if decision.Stamp < stamp {
					t.Fatalf("%+v of %+v is stamped too early", decision, a)
				}
			}
			if err := w.holds(now, &spent); err != nil {
				t.Fatal(err)
			}
			if len(w.entries) == maxEntries {
				full++
			}
		}
	})
	if full == 0 {
		t.Error("no log was ever full")
	}
}

// Up to 64 units, and for whatever is asked for without lease units, the log
// answers as an exact one, also when the limit changes.
func TestWindowIsExactUpTo64(t *testing.T) {
	check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.limit = func() int64 { return rapid.Int64Range(0, mergeAbove).Draw(t, "limit") }
		if rapid.Bool().Draw(t, "one limit") {
			h.limit = constantLimit(t, 1, 3, 10, 64)
		}
		h.back = true
		var exact model
		h.seen = func(a *Request, got Decision) {
			exact.expire(h.now, h.window)
			want := exact.request(h.now, a)
			if want.Granted && a.Units > 0 {
				exact.add(h.now, a.Units)
				want = Decision{Granted: true, Remaining: want.Remaining - a.Units, Reset: h.window}
			}
			got.Stamp, got.Mark = 0, 0
			if got != want {
				t.Fatalf("%+v = %+v, an exact log %+v", a, got, want)
			}
		}
		h.returned = func(g *Refund) {
			if exact.expire(h.now, h.window); g.Stamp+h.window.Microseconds() > h.now {
				exact.remove(g.Stamp, g.Units)
			}
		}
		h.play(200)
	})
}

// Above 64 units, what refuses a request are units spent in a window and a
// merged span; with leases of up to a 128th of the window, a little more; and with
// longer ones, by so much more.
func TestWindowRefusesForAReason(t *testing.T) {
	for _, span := range []time.Duration{0, time.Second, MaxLeaseSpan} {
		check(t, func(t *rapid.T) {
			h := newHistory(t)
			h.limit = constantLimit(t, 65, 100, 1000, 1_000_000)
			h.back = rapid.Bool().Draw(t, "refund")
			held := h.window + h.window/mergeParts
			switch h.lease, h.span = span > 0, min(span, h.window/128); span {
			case time.Second:
				held = h.window * 103 / 100
			case MaxLeaseSpan:
				h.span = span
				held = h.window + span + (h.window+span)/34
			}
			h.seen = func(a *Request, got Decision) {
				if got.Granted {
					return
				}
				spent := int64(0)
				for _, p := range h.past {
					// Of what is leased only the end is known.
					if p.at+held.Microseconds() > h.now {
						spent += p.left()
					}
				}
				if spent+a.Units <= a.Limit {
					t.Fatalf("%+v refused with %d units spent in the last %v; log %s", a, spent, held, h.w.text())
				}
			}
			h.play(200)
		})
	}
}

// Whatever happens, a log is sound and short, and its refusals are true.
func TestWindowIsSound(t *testing.T) {
	check(t, func(t *rapid.T) {
		h := newHistory(t)
		limits := rapid.SampledFrom([][]int64{{0, 1, 2}, {60, 64, 65, 70}, {1, 1000}, {64, 1_000_000, MaxEvents}}).Draw(t, "limits")
		h.limit = func() int64 { return rapid.SampledFrom(limits).Draw(t, "limit") }
		h.back, h.lease, h.stepping, h.reports = true, true, true, true
		h.block = func() time.Duration {
			return rapid.SampledFrom([]time.Duration{0, h.window / 4, 2 * h.window}).Draw(t, "block")
		}
		h.span = MaxLeaseSpan
		h.play(300)
		// Grants that never were change nothing for the better or worse.
		for range 10 {
			g := &Refund{Key: Key{Window: h.window}, Charge: Charge{Mark: h.w.mark}, Units: rapid.Int64Range(1, MaxEvents).Draw(t, "units")}
			g.Stamp = h.now + rapid.Int64Range(-h.window.Microseconds(), h.window.Microseconds()).Draw(t, "stamp")
			h.w.Refund(h.now, g)
			if err := h.w.sound(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// What operators do never lets more through than they mean: a ban nothing, another limit
// at most the largest in force, and an empty log the limit once more.
func TestWindowIsStrictByHand(t *testing.T) {
	check(t, func(t *rapid.T) {
		h := newHistory(t)
		limits := rapid.SampledFrom([][]int64{{1, 2}, {5, 100}, {60, 70, 1000}, {0, 64, 65}, {1000, 1_000_000}}).Draw(t, "limits")
		limit, largest := limits[0], map[int]int64{}
		h.limit = func() int64 {
			if rapid.IntRange(0, 10).Draw(t, "override") == 0 {
				limit = rapid.SampledFrom(limits).Draw(t, "limit")
			}
			return limit
		}
		h.back = rapid.Bool().Draw(t, "refund")
		h.lease = rapid.Bool().Draw(t, "leases")
		h.span = MaxLeaseSpan
		if rapid.Bool().Draw(t, "bans") {
			h.block = func() time.Duration { return h.window / 3 }
		}
		banned := int64(0) // until then
		h.amend = func() *Amendment {
			if rapid.IntRange(0, 8).Draw(t, "by hand") > 0 {
				return nil
			}
			a := &Amendment{Unban: rapid.Bool().Draw(t, "unban"), Empty: rapid.IntRange(0, 3).Draw(t, "empty") == 0}
			if rapid.Bool().Draw(t, "ban") {
				a.Ban = time.Duration(rapid.Int64Range(1, h.window.Microseconds()).Draw(t, "for")) * time.Microsecond
			}
			if a.Unban {
				banned = 0
			}
			if a.Ban > 0 {
				banned = h.now + a.Ban.Microseconds()
			}
			return a
		}
		h.seen = func(a *Request, decision Decision) {
			if h.now < banned && (decision.Granted || !decision.Blocked) {
				t.Fatalf("%+v of %+v, %d µs before the end of a ban", decision, a, banned-h.now)
			}
			largest[h.life] = max(largest[h.life], a.Limit)
		}
		h.play(200)
		lives := make(map[int][]exactEntry)
		for _, p := range h.past {
			lives[p.life] = append(lives[p.life], p.spent...)
		}
		for life, spent := range lives {
			if units, at := most(spent, h.window); units > largest[life] {
				t.Fatalf("%d units of %d in the window from %d", units, largest[life], at-start)
			}
		}
	})
}
