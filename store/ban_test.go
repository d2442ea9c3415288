package store

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A day in the life of a key of 3 units an hour that is banned for ten minutes, or two
// hours, in minutes.
func TestBan(t *testing.T) {
	type row struct {
		at      float64       // minutes
		block   time.Duration // of a request for a unit
		units   int64         // of it, if not 1
		back    int           // a refund of what the row with this number was charged, from 1
		lost    bool          // the refund is of another life
		granted bool
		blocked bool
		retry   float64 // minutes
	}
	const short, long = 10 * time.Minute, 2 * time.Hour
	for name, rows := range map[string][]row{
		"once refused": {
			{at: 0, block: short, granted: true}, {at: 1, block: short, granted: true}, {at: 2, block: short, granted: true},
			{at: 53, block: short, blocked: true, retry: 10},
			{at: 54, block: short, blocked: true, retry: 9}, // not extended
			{at: 62, blocked: true, retry: 1},               // nor does it depend on a Block
			{at: 62.5, units: -1, blocked: true, retry: 0.5},
			{at: 63, block: short, granted: true}, {at: 63, block: short, granted: true},
			{at: 63, block: short, granted: true}, {at: 63, block: short, blocked: true, retry: 60},
		},
		"room comes later than the end": {
			{at: 0, units: 3, granted: true}, {at: 1, block: short, blocked: true, retry: 59},
			{at: 10.9, block: short, blocked: true, retry: 49.1},
			{at: 11, block: short, retry: 49}, // it has ended, and one filling bans once
			{at: 59, block: short, retry: 1},
			{at: 60, block: short, granted: true},
			{at: 60, units: 3, block: short, blocked: true, retry: 60}, // units were granted since
		},
		"longer than the window": {
			{at: 0, units: 3, granted: true}, {at: 1, block: long, blocked: true, retry: 120},
			{at: 100, blocked: true, retry: 21}, {at: 121, block: long, granted: true},
			{at: 122, units: 3, block: long, blocked: true, retry: 120},
		},
		"refund": {
			{at: 0, granted: true}, {at: 0, granted: true}, {at: 0, granted: true},
			{at: 1, block: short, blocked: true, retry: 59},
			{at: 2, back: 1, lost: true}, {at: 2, block: short, blocked: true, retry: 58},
			{at: 3, back: 1}, {at: 3, units: 2, block: short, retry: 57}, // no unit was granted since
			{at: 3, block: short, granted: true}, {at: 3, block: short, blocked: true, retry: 57},
			{at: 4, back: 2}, {at: 4, back: 2}, {at: 4, back: 9}, {at: 4, units: 3, granted: true},
		},
		"more than the limit": {
			{at: 0, units: 4, block: short, retry: 60}, {at: 0, units: 3, granted: true},
			{at: 1, units: 4, block: short, retry: 60}, {at: 1, block: short, blocked: true, retry: 59},
		},
	} {
		var w Window
		refunds := make([]Refund, len(rows)+1)
		for i, r := range rows {
			now := start + micros(60*r.at)
			if r.back > 0 {
				refund := refunds[r.back]
				if r.lost {
					refund.Mark++
				}
				w.Advance(now, time.Hour)
				w.Refund(now, &refund)
				continue
			}
			a := Request{Key: Key{Window: time.Hour}, Limit: 3, Units: r.units, Block: r.block}
			switch r.units {
			case 0:
				a.Units = 1
			case -1:
				a.Units = 0
			}
			d := w.call(now, &a)
			if d.Granted != r.granted || d.Blocked != r.blocked || micros(d.RetryAfter.Minutes()) != micros(r.retry) {
				t.Errorf("%s, row %d: %+v, want %+v", name, i+1, d, r)
			}
			refunds[i+1] = Refund{Key: a.Key, Charge: d.Charge, Units: a.Units}
		}
	}
}

// A ban that was set by hand is not ended by refunds.
func TestBanByHand(t *testing.T) {
	var w Window
	a := Request{Key: Key{Window: time.Hour}, Limit: 3, Units: 1}
	d := w.call(start, &a)
	w.banned, w.byHand = start+micros(7200), true
	refund := Refund{Key: a.Key, Charge: d.Charge, Units: 1}
	w.Advance(start, a.Window)
	if w.Refund(start, &refund); w.Empty() || w.Total() != 0 {
		t.Errorf("%+v, want the ban alone", w)
	}
	for at, blocked := range map[int64]bool{0: true, 3601: true, 7199: true, 7200: false} {
		copied := w
		if d := copied.call(start+micros(float64(at)), &a); d.Blocked != blocked || d.Granted == blocked {
			t.Errorf("after %d seconds: %+v, want it blocked: %v", at, d, blocked)
		}
	}
}

// A clock that steps back by a year does not ban for a year.
func TestBanAfterClockStepsBack(t *testing.T) {
	var w Window
	a := Request{Key: Key{Window: time.Hour}, Limit: 1, Units: 1, Block: time.Hour}
	w.call(start, &a)
	w.call(start, &a)
	now := start - micros(365*86400)
	if d := w.call(now, &a); !d.Blocked || d.RetryAfter != MaxWindow {
		t.Errorf("%+v, want a retry after %v", d, MaxWindow)
	}
	if d := w.call(now+MaxWindow.Microseconds(), &a); d.Blocked || !d.Granted {
		t.Errorf("%+v, want it granted", d)
	}
}

// banModel is bans as the rules say, beside an exact log.
type banModel struct {
	log     model
	ends    int64 // of the last ban
	granted bool  // units, since it began
	byHand  bool
}

func (m *banModel) call(now int64, a *Request) (d Decision) {
	if m.log.expire(now, a.Window); len(m.log.entries) == 0 && m.ends <= now {
		m.granted = true // whatever filled the log is gone
	}
	d = m.log.request(now, a)
	fits := d.Granted
	if !fits && m.ends <= now && a.Block > 0 && m.granted && a.Units <= a.Limit {
		m.ends, m.granted, m.byHand = now+a.Block.Microseconds(), false, false
	}
	if rest := time.Duration(m.ends-now) * time.Microsecond; rest > 0 {
		d.Granted, d.Blocked = false, true
		d.RetryAfter, d.Reset = max(d.RetryAfter, rest), max(d.Reset, rest)
	} else if fits && a.Units > 0 {
		m.log.add(now, a.Units)
		m.granted = true
		d.Remaining -= a.Units
		d.Reset = a.Window
	}
	return d
}

func (m *banModel) refund(now int64, g *Refund) {
	m.log.expire(now, g.Window)
	before := m.log.total
	if g.Stamp+g.Window.Microseconds() > now {
		m.log.remove(g.Stamp, g.Units)
	}
	if m.log.total < before && m.ends > now && !m.byHand {
		m.ends = now
	}
}

// Whatever happens, a log bans as the rules say, which are written down here once
// more, and grants what an exact log would grant when no ban goes on.
func TestBansByTheRules(t *testing.T) {
	begun, lifted, plain := 0, 0, 0
	check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.limit = constantLimit(t, 1, 2, 3, 10, 64)
		if rapid.Bool().Draw(t, "limits change") {
			h.limit = func() int64 { return rapid.Int64Range(0, 5).Draw(t, "limit") }
		}
		h.back = rapid.Bool().Draw(t, "refund")
		h.block = func() time.Duration {
			if rapid.IntRange(0, 3).Draw(t, "no ban") == 0 {
				return 0
			}
			block := rapid.SampledFrom([]time.Duration{1000, h.window / 50, h.window / 3, h.window - 1000, h.window + 1000, 3 * h.window}).Draw(t, "block")
			return min(block, MaxWindow).Truncate(time.Microsecond)
		}
		reference := banModel{granted: true}
		h.seen = func(a *Request, got Decision) {
			ends := reference.ends
			want := reference.call(h.now, a)
			switch {
			case want.Blocked && reference.ends != ends:
				begun++
			case !want.Granted && !want.Blocked && a.Block > 0:
				plain++
			}
			if got.Charge = (Charge{}); got != want {
				t.Fatalf("%+v = %+v, by the rules %+v; log %s, banned until %d", a, got, want, h.w.text(), h.w.banned-start)
			}
		}
		h.returned = func(g *Refund) {
			banned := reference.ends > h.now
			if reference.refund(h.now, g); banned && reference.ends <= h.now {
				lifted++
			}
		}
		h.hand = func(until int64) {
			reference.log.expire(h.now, h.window)
			reference.ends, reference.byHand, reference.granted = until, true, false
		}
		h.play(200)
	})
	if begun == 0 || lifted == 0 || plain == 0 {
		t.Errorf("%d bans have begun, %d were lifted, %d refusals did not ban; want some of each", begun, lifted, plain)
	}
}
