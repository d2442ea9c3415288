package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// The ledger: what is asked of a window of 64 seconds, and what stands in it
// afterwards. Times are in seconds since the start; a log reads "stamp:units".
// A sixty-fourth of the window is one second.
const (
	start  = int64(1_700_000_000_000_000)
	window = 64 * time.Second
)

type row struct {
	at          float64
	limit       int64 // 0: as in the row before
	need, lease int64
	span        float64
	unreported  []earlier
	back        int // refunds units of the grant of that row; the first one is 1
	units       int64

	left  int64
	retry float64 // refused, and granted after so long
	got   int64   // lease units
	log   string
}

// earlier is units spent so many seconds ago.
type earlier struct {
	age   float64
	units int64
}

func micros(seconds float64) int64 { return int64(seconds*1e6 + 0.5) }

func seconds(d time.Duration) float64 { return d.Seconds() }

// text is the log with stamps as seconds since the start.
func (w *Window) text() string {
	var parts []string
	for _, e := range w.entries {
		parts = append(parts, fmt.Sprintf("%g:%d", float64(e.stamp-start)/1e6, e.units))
	}
	return strings.Join(parts, " ")
}

// sound reports what must never be wrong with a log.
func (w *Window) sound() error {
	if len(w.entries) > maxEntries {
		return fmt.Errorf("%d entries, want at most %d", len(w.entries), maxEntries)
	}
	sum := int64(0)
	for i, e := range w.entries {
		sum += e.units
		if e.units <= 0 {
			return fmt.Errorf("entry %d has %d units", i, e.units)
		}
		if e.first > e.stamp {
			return fmt.Errorf("entry %d is stamped %d, but its first stamp is %d", i, e.stamp, e.first)
		}
		if i > 0 && e.first <= w.entries[i-1].stamp {
			return fmt.Errorf("entry %d begins at %d, and the one before it ends at %d", i, e.first, w.entries[i-1].stamp)
		}
	}
	switch last := len(w.entries) - 1; {
	case sum != w.total:
		return fmt.Errorf("total %d, but the entries have %d", w.total, sum)
	case w.total > maxTotal:
		return fmt.Errorf("total %d, want at most %d", w.total, int64(maxTotal))
	case (last < 0) != (w.mark == 0):
		return fmt.Errorf("mark %d with %d entries", w.mark, len(w.entries))
	}
	return nil
}

// call decides one request as a store does.
func (w *Window) call(now int64, a *Request) Decision {
	w.Advance(now, a.Window)
	w.CountUnreported(now, a)
	decision := w.Check(now, a)
	if decision.Granted {
		w.Charge(now, a, &decision)
	} else {
		w.Ban(now, a, &decision)
	}
	return decision
}

func runLedger(t *testing.T, rows []row) {
	t.Helper()
	var w Window
	limit := int64(0)
	refunds := make([]Refund, len(rows)+1)
	for i, r := range rows {
		now := start + micros(r.at)
		if r.limit > 0 {
			limit = r.limit
		}
		if r.back > 0 {
			g := refunds[r.back]
			g.Units = r.units
			w.Advance(now, window)
			w.Refund(now, &g)
		} else {
			a := Request{Key: Key{Window: window}, Limit: limit, Units: r.need, Lease: r.lease, LeaseSpan: time.Duration(micros(r.span)) * time.Microsecond}
			for _, d := range r.unreported {
				a.Unreported = append(a.Unreported, Spent{time.Duration(micros(d.age)) * time.Microsecond, d.units})
			}
			decision := w.call(now, &a)
			if decision.Granted != (r.retry == 0) || decision.Lease != r.got || decision.Remaining != r.left ||
				seconds(decision.RetryAfter) != r.retry {
				t.Errorf("row %d: %+v, want %+v", i+1, decision, r)
			}
			refunds[i+1] = Refund{Key: Key{Window: window}, Charge: decision.Charge}
		}
		if got := w.text(); got != r.log {
			t.Errorf("row %d: log %q, want %q", i+1, got, r.log)
		}
		if err := w.sound(); err != nil {
			t.Errorf("row %d: %v", i+1, err)
		}
	}
}

func TestWindow(t *testing.T) {
	tests := []struct {
		name string
		rows []row
	}{
		{"an exact log up to 64", []row{
			{at: 0, limit: 3, need: 1, left: 2, log: "0:1"},
			{at: 0.000001, need: 1, left: 1, log: "0:1 1e-06:1"},
			{at: 63, need: 1, left: 0, log: "0:1 1e-06:1 63:1"},
			{at: 63.5, need: 1, retry: 0.5, log: "0:1 1e-06:1 63:1"},
			{at: 63.999999, need: 1, retry: 0.000001, log: "0:1 1e-06:1 63:1"},
			{at: 64, need: 1, left: 0, log: "1e-06:1 63:1 64:1"},
			{at: 64, need: 2, retry: 63, log: "1e-06:1 63:1 64:1"},
			{at: 64.000001, need: 1, left: 0, log: "63:1 64:1 64.000001:1"},
			{at: 200, left: 3, log: ""},
		}},
		{"equal stamps join", []row{
			{at: 1, limit: 10, need: 1, left: 9, log: "1:1"},
			{at: 1, need: 2, left: 7, log: "1:3"},
			{at: 2, need: 1, left: 6, log: "1:3 2:1"},
			{at: 65, left: 9, log: "2:1"},
		}},
		{"above 64, stamps near the first one join the later one", []row{
			{at: 0, limit: 65, need: 1, left: 64, log: "0:1"},
			{at: 0.4, need: 1, left: 63, log: "0.4:2"},
			{at: 0.999999, need: 1, left: 62, log: "0.999999:3"},
			{at: 1, need: 1, left: 61, log: "0.999999:3 1:1"}, // one second after the first, 0: not near
			{at: 1.9, need: 1, left: 60, log: "0.999999:3 1.9:2"},
			{at: 2, need: 1, left: 59, log: "0.999999:3 1.9:2 2:1"},
			{at: 64.9, left: 59, log: "0.999999:3 1.9:2 2:1"}, // the unit of 0 is held until here
			{at: 64.999999, left: 62, log: "1.9:2 2:1"},
		}},
		{"a refusal changes nothing", []row{
			{at: 0, limit: 1, need: 1, left: 0, log: "0:1"},
			{at: 10, need: 1, retry: 54, log: "0:1"},
			{at: 63, need: 1, retry: 1, log: "0:1"},
			{at: 64, need: 1, left: 0, log: "64:1"},
		}},
		{"need and lease", []row{
			{at: 0, limit: 10, need: 1, lease: 3, got: 3, left: 6, log: "0:4"},
			{at: 1, need: 6, lease: 9, left: 0, log: "0:4 1:6"},
			{at: 2, lease: 9, left: 0, log: "0:4 1:6"},
			{at: 2, need: 1, lease: 9, retry: 62, log: "0:4 1:6"},
			{at: 64, need: 1, lease: 9, got: 3, left: 0, log: "1:6 64:4"},
			{at: 64, need: 11, retry: 64, log: "1:6 64:4"},
		}},
		{"units ahead", []row{
			{at: 0, limit: 10, need: 1, lease: 2, span: 0.5, got: 2, left: 7, log: "0.5:3"},
			{at: 0.1, need: 1, left: 6, log: "0.1:1 0.5:3"},
			{at: 0.2, need: 1, span: 0.9, left: 5, log: "0.1:1 0.2:1 0.5:3"}, // no lease, no span
			{at: 0.5, need: 1, left: 4, log: "0.1:1 0.2:1 0.5:4"},
			{at: 0.6, need: 1, span: 0.9, left: 3, log: "0.1:1 0.2:1 0.5:4 0.6:1"},
			{at: 64.1, need: 5, retry: 0.1, left: 4, log: "0.2:1 0.5:4 0.6:1"},
			{at: 64.4, need: 6, retry: 0.1, left: 5, log: "0.5:4 0.6:1"},
			{at: 64.5, need: 6, left: 3, log: "0.6:1 64.5:6"},
		}},
		{"a long lease delays no unit after it", []row{
			{at: 0, limit: 100, need: 1, lease: 1, span: 10, got: 1, left: 98, log: "10:2"},
			{at: 1, need: 50, left: 48, log: "1:50 10:2"},
			{at: 1, need: 1, lease: 1, span: 3, got: 1, left: 46, log: "1:50 4:2 10:2"},
			{at: 65, need: 90, left: 6, log: "4:2 10:2 65:90"},
		}},
		{"stamps join in any order above 64", []row{
			{at: 0, limit: 100, need: 0, lease: 1, span: 5, got: 1, left: 99, log: "5:1"},
			{at: 0, need: 0, lease: 1, span: 4.000001, got: 1, left: 98, log: "5:2"},            // the later one's first stamp is 4.000001 now
			{at: 0, need: 0, lease: 1, span: 4.5, got: 1, left: 97, log: "5:3"},                 // within its span
			{at: 0, need: 0, lease: 1, span: 5.000002, got: 1, left: 96, log: "5:3 5.000002:1"}, // a second after its first
			{at: 0, need: 0, lease: 1, span: 4, got: 1, left: 95, log: "4:1 5:3 5.000002:1"},    // a second before its stamp
			{at: 0, need: 0, lease: 1, span: 3.5, got: 1, left: 94, log: "4:2 5:3 5.000002:1"},
			{at: 3, need: 1, left: 93, log: "3:1 4:2 5:3 5.000002:1"}, // a second before its stamp
			{at: 3.2, need: 1, left: 92, log: "3.2:2 4:2 5:3 5.000002:1"},
			{at: 3.3, need: 1, left: 91, log: "3.3:3 4:2 5:3 5.000002:1"}, // rather the earlier one, while both are near
			{at: 67.3, need: 1, left: 93, log: "4:2 5:3 5.000002:1 67.3:1"},
		}},
		{"a stamp within an entry joins it, whatever the limit", []row{
			{at: 0, limit: 100, need: 1, left: 99, log: "0:1"},
			{at: 0.9, need: 1, left: 98, log: "0.9:2"},
			{at: 1, unreported: []earlier{{0.5, 1}}, limit: 10, left: 7, log: "0.9:3"},
			{at: 1, unreported: []earlier{{1.1, 1}}, left: 6, log: "-0.1:1 0.9:3"},
		}},
		{"the clock steps back by a second", []row{
			{at: 100, limit: 3, need: 1, left: 2, log: "100:1"},
			{at: 99, need: 1, left: 1, log: "99:1 100:1"},
			{at: 99, need: 2, retry: 64, left: 1, log: "99:1 100:1"},
			{at: 89, left: 1, log: "99:1 100:1"},
			{at: 88.999999, left: 1, log: "99:1 99.999999:1"}, // more than eleven seconds
		}},
		{"units that are lowered keep what the clock left", []row{
			{at: 100, limit: 100, need: 1, left: 99, log: "100:1"},
			{at: 100.9, need: 1, left: 98, log: "100.9:2"},
			{at: 89.5, left: 98, log: "100.5:2"},
			{at: 91.4, need: 0, lease: 1, span: 9.5, got: 1, left: 97, log: "100.9:3"}, // its first stamp is 100
			{at: 91.4, need: 0, lease: 1, span: 9.6, got: 1, left: 96, log: "100.9:3 101:1"},
		}},
		{"the clock steps back by an hour", []row{
			{at: 3600, limit: 4, need: 1, left: 3, log: "3600:1"},
			{at: 3601, need: 1, left: 2, log: "3600:1 3601:1"},
			{at: 0, need: 1, left: 1, log: "0:1 11:2"}, // they count from the lowered stamp
			{at: 0, need: 3, retry: 75, left: 1, log: "0:1 11:2"},
			{at: 1, back: 1, units: 1, log: "0:1 11:2"}, // of the old life
			{at: 1, back: 2, units: 1, log: "0:1 11:2"},
			{at: 1, back: 3, units: 1, log: "11:2"}, // of the new one
			{at: 3, need: 1, left: 1, log: "3:1 11:2"},
			{at: 75, left: 4, log: ""},
		}},
		{"a charge from before the clock stepped back is not refunded", []row{
			{at: 3600, limit: 4, need: 1, left: 3, log: "3600:1"},
			{at: 3580, left: 3, log: "3591:1"},
			{at: 3601, need: 1, left: 2, log: "3591:1 3601:1"},
			{at: 3601, back: 1, units: 1, log: "3591:1 3601:1"}, // 3601 is another's
			{at: 3601, back: 3, units: 1, log: "3591:1"},
		}},
		{"a refusal lowers too", []row{
			{at: 3600, limit: 2, need: 2, left: 0, log: "3600:2"},
			{at: 10, need: 1, retry: 75, log: "21:2"},
			{at: 85, need: 1, left: 1, log: "85:1"},
		}},
		{"only what lies too far ahead is lowered", []row{
			{at: 0, limit: 9, need: 1, left: 8, log: "0:1"},
			{at: 8, need: 1, left: 7, log: "0:1 8:1"},
			{at: 21, need: 1, left: 6, log: "0:1 8:1 21:1"},
			{at: 50, need: 1, left: 5, log: "0:1 8:1 21:1 50:1"},
			{at: 10, need: 1, left: 4, log: "0:1 8:1 10:1 21:2"},
		}},
		{"the clock steps back twice", []row{
			{at: 3600, limit: 4, need: 1, left: 3, log: "3600:1"},
			{at: 1800, need: 1, left: 2, log: "1800:1 1811:1"},
			{at: 0, need: 1, left: 1, log: "0:1 11:2"},
			{at: 1, back: 1, units: 1, log: "0:1 11:2"},
			{at: 1, back: 2, units: 1, log: "0:1 11:2"},
			{at: 1, back: 3, units: 1, log: "11:2"},
		}},
		{"the limit is lowered", []row{
			{at: 0, limit: 10, need: 4, left: 6, log: "0:4"},
			{at: 1, need: 4, left: 2, log: "0:4 1:4"},
			{at: 2, need: 2, left: 0, log: "0:4 1:4 2:2"},
			{at: 3, limit: 5, need: 1, retry: 62, left: 0, log: "0:4 1:4 2:2"}, // 6 of 10 must go
			{at: 3, limit: 7, need: 1, retry: 61, left: 0, log: "0:4 1:4 2:2"}, // 4 of 10
			{at: 3, limit: 1, need: 1, retry: 63, left: 0, log: "0:4 1:4 2:2"}, // all
			{at: 3, limit: 1, need: 2, retry: 64, left: 0, log: "0:4 1:4 2:2"}, // never
			{at: 64, limit: 5, need: 1, retry: 1, left: 0, log: "1:4 2:2"},
			{at: 65, limit: 5, need: 1, left: 2, log: "2:2 65:1"},
		}},
		{"the limit is raised", []row{
			{at: 0, limit: 2, need: 2, left: 0, log: "0:2"},
			{at: 0.5, limit: 100, need: 1, left: 97, log: "0.5:3"},
			{at: 0.6, limit: 64, need: 1, left: 60, log: "0.5:3 0.6:1"},
			{at: 0.7, limit: 100, need: 1, left: 95, log: "0.5:3 0.7:2"},
		}},
		{"units are refunded to their own entry", []row{
			{at: 0, limit: 10, need: 2, left: 8, log: "0:2"},
			{at: 1, need: 3, left: 5, log: "0:2 1:3"},
			{at: 2, need: 4, left: 1, log: "0:2 1:3 2:4"},
			{at: 3, back: 2, units: 1, log: "0:2 1:2 2:4"},
			{at: 3, back: 1, units: 2, log: "1:2 2:4"},
			{at: 3, back: 3, units: 9, log: "1:2"}, // no more than it holds, and none of another's
			{at: 3, back: 3, units: 9, log: "1:2"}, // later than all
			{at: 3, back: 2, units: 2, log: ""},
			{at: 3, back: 2, units: 2, log: ""},
		}},
		{"units are refunded to the entry they were merged into", []row{
			{at: 0, limit: 100, need: 2, left: 98, log: "0:2"},
			{at: 0.5, need: 3, left: 95, log: "0.5:5"},
			{at: 1, need: 1, left: 94, log: "0.5:5 1:1"},
			{at: 1.5, need: 1, left: 93, log: "0.5:5 1.5:2"},
			{at: 2, back: 1, units: 2, log: "0.5:3 1.5:2"},
			{at: 2, back: 3, units: 1, log: "0.5:3 1.5:1"},
		}},
		{"expired units are not refunded", []row{
			{at: 0, limit: 100, need: 2, left: 98, log: "0:2"},
			{at: 0.5, need: 3, left: 95, log: "0.5:5"},
			{at: 63.9, back: 1, units: 1, log: "0.5:4"},
			{at: 64, back: 1, units: 1, log: "0.5:4"}, // held still, but not this grant's any more
			{at: 64.4, back: 2, units: 1, log: "0.5:3"},
		}},
		{"another life begins when the log is empty", []row{
			{at: 0, limit: 10, need: 2, left: 8, log: "0:2"},
			{at: 1, back: 1, units: 2, log: ""},
			{at: 2, need: 2, left: 8, log: "2:2"},
			{at: 3, back: 1, units: 2, log: "2:2"},
			{at: 3, back: 3, units: 1, log: "2:1"},
		}},
		{"an entry takes in what is near its own first stamp once a later one was refunded", []row{
			{at: 0, limit: 100, need: 1, left: 99, log: "0:1"},
			{at: 1, need: 1, left: 98, log: "0:1 1:1"},
			{at: 1, back: 2, units: 1, log: "0:1"},
			{at: 1.5, need: 1, left: 98, log: "0:1 1.5:1"},
			{at: 1.6, need: 1, left: 97, log: "0:1 1.6:2"},
		}},
		{"what is reported counts from when it was spent", []row{
			{at: 100, limit: 5, unreported: []earlier{{10, 2}}, left: 3, log: "90:2"},
			{at: 100, need: 3, left: 0, log: "90:2 100:3"},
			{at: 101, need: 1, retry: 53, log: "90:2 100:3"},
			{at: 154, need: 1, left: 1, log: "100:3 154:1"},
			{at: 155, unreported: []earlier{{0, 1}}, need: 1, retry: 9, left: 0, log: "100:3 154:1 155:1"},
		}},
		{"what is reported stands in its place", []row{
			{at: 100, limit: 20, need: 1, left: 19, log: "100:1"},
			{at: 110, need: 1, left: 18, log: "100:1 110:1"},
			{at: 120, need: 1, left: 17, log: "100:1 110:1 120:1"},
			{at: 121, unreported: []earlier{{21, 2}}, left: 15, log: "100:3 110:1 120:1"},
			{at: 121, unreported: []earlier{{20.999999, 2}}, left: 13, log: "100:3 100.000001:2 110:1 120:1"},
			{at: 121, unreported: []earlier{{11.5, 1}, {50, 1}}, left: 11, log: "71:1 100:3 100.000001:2 109.5:1 110:1 120:1"},
			{at: 121, unreported: []earlier{{1, 1}, {2, 1}}, left: 9, log: "71:1 100:3 100.000001:2 109.5:1 110:1 119:1 120:2"},
			{at: 135, unreported: []earlier{{0.5, 1}}, left: 9, log: "100:3 100.000001:2 109.5:1 110:1 119:1 120:2 134.5:1"},
		}},
		{"what is reported is forgotten after a window", []row{
			{at: 100, limit: 5, unreported: []earlier{{64, 2}, {1e6, 2}}, left: 5, log: ""},
			{at: 100, unreported: []earlier{{63.999999, 2}}, left: 3, log: "36.000001:2"},
			{at: 100, unreported: []earlier{{64, 2}}, left: 3, log: "36.000001:2"},
			{at: 100.000001, left: 5, log: ""},
		}},
		{"what is reported may exceed the limit", []row{
			{at: 100, limit: 5, need: 4, left: 1, log: "100:4"},
			{at: 110, unreported: []earlier{{5, 3}, {2, 4}}, need: 1, retry: 59, left: 0, log: "100:4 105:3 108:4"},
			{at: 110, lease: 3, left: 0, log: "100:4 105:3 108:4"}, // a refill is granted nothing
			{at: 168.999999, need: 1, retry: 0.000001, left: 0, log: "105:3 108:4"},
			{at: 169, need: 1, left: 0, log: "108:4 169:1"},
		}},
		{"what is reported merges above 64", []row{
			{at: 100, limit: 100, unreported: []earlier{{10, 1}, {9.5, 1}, {9.000001, 1}, {9, 1}}, left: 96, log: "90.999999:3 91:1"},
			{at: 100, unreported: []earlier{{9.9, 1}, {8.1, 2}}, left: 93, log: "90.999999:4 91.9:3"},
			{at: 100, unreported: []earlier{{9, 1}}, left: 92, log: "90.999999:4 91.9:4"},
		}},
		{"what is reported leaves other entries as they are", []row{
			{at: 100, limit: 100, need: 1, left: 99, log: "100:1"},
			{at: 100.1, unreported: []earlier{{40, 1}}, left: 98, log: "60.1:1 100:1"},
			{at: 100.9, need: 1, left: 97, log: "60.1:1 100.9:2"},
			{at: 101, unreported: []earlier{{0.5, 1}, {1.5, 1}}, left: 95, log: "60.1:1 99.5:1 100.9:3"},
			{at: 101, need: 1, left: 94, log: "60.1:1 99.5:1 100.9:3 101:1"},
		}},
		{"a grant is refunded next to what was reported", []row{
			{at: 100, limit: 9, unreported: []earlier{{9, 1}}, need: 1, left: 7, log: "91:1 100:1"},
			{at: 101, unreported: []earlier{{5, 2}, {1, 1}}, left: 4, log: "91:1 96:2 100:2"},
			{at: 101, back: 1, units: 1, log: "91:1 96:2 100:1"},
			{at: 155, left: 6, log: "96:2 100:1"},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { runLedger(t, test.rows) })
	}
}

// Giving back the last entry again and again must not make the one before it
// grow for ever: its units would never expire.
func TestWindowRefundedAgainAndAgain(t *testing.T) {
	var w Window
	a := Request{Key: Key{Window: window}, Limit: 1000, Units: 1}
	now := start
	w.call(now, &a)
	for range 1000 {
		now += micros(1)
		last := w.call(now, &a)
		w.Refund(now, &Refund{Key: Key{Window: window}, Charge: last.Charge, Units: 1})
		now += micros(0.01)
		w.call(now, &a)
		// A unit a second is kept: no more than 65 of them may count.
		if err := w.sound(); err != nil || w.total > 66 {
			t.Fatalf("%d units counted, %v; log %s", w.total, err, w.text())
		}
	}
}

// holds compares what counts with the units by when they were spent: each counts for a
// window, and for no longer than another 34th of the time that a log may span.
func (w *Window) holds(now int64, spent *model) error {
	longer := (window + maxSkew) / 34
	least, most := int64(0), int64(0)
	for _, e := range spent.entries {
		if e.stamp+window.Microseconds() > now {
			least += e.units
		}
		if e.stamp+(window+longer).Microseconds() > now {
			most += e.units
		}
	}
	if w.total < least || w.total > most {
		return fmt.Errorf("%d units count, want %d to %d; log %s", w.total, least, most, w.text())
	}
	return w.sound()
}

// report reports units that were spent at a moment.
func (w *Window) report(t *testing.T, spent *model, limit, now, at, units int64) {
	t.Helper()
	a := Request{Key: Key{Window: window}, Limit: limit, Unreported: []Spent{{time.Duration(now-at) * time.Microsecond, units}}}
	w.call(now, &a)
	spent.add(at, units)
	if err := w.holds(now, spent); err != nil {
		t.Fatalf("at %d: %v", now-start, err)
	}
}

// Stamps in an unlucky order leave entries closer together than merging would have
// them: each begins when the one before it spans all that it may, and ends too late for
// what is stamped in between. The number of entries is bounded all the same.
func TestWindowOfUnluckyStamps(t *testing.T) {
	var w Window
	var spent model
	const entries = 60
	apart, now := micros(1)+2, start
	first := now - entries*apart
	for i := range int64(entries) {
		w.report(t, &spent, 1000, now, first+i*apart, 1)
		w.report(t, &spent, 1000, now, first+i*apart+micros(1)-1, 1)
	}
	if len(w.entries) != entries {
		t.Fatalf("log %s, want %d entries", w.text(), entries)
	}
	full := false
	for i := range int64(entries) {
		w.report(t, &spent, 1000, now, first+i*apart+micros(1), 1)
		full = full || len(w.entries) == maxEntries
	}
	if !full {
		t.Errorf("%d entries, want it full once", len(w.entries))
	}
	for range 70 {
		now += micros(1)
		w.Advance(now, window)
		if err := w.holds(now, &spent); err != nil {
			t.Fatal(err)
		}
	}
}

// Reports are held back by no limit, and those of a small one are kept apart: the log
// is full all the time. If room was made where two stamps are closest, the oldest entry
// would grow for ever.
func TestWindowOfEndlessReports(t *testing.T) {
	for _, step := range []float64{0.01, 0.5, 0.9} {
		var w Window
		var spent model
		for now := start; now < start+4*window.Microseconds(); now += micros(step) {
			spent.expire(now, 2*window)
			w.report(t, &spent, 10, now, now, 1)
		}
	}
}

// What is reported is held back by no limit; what does not fit the bytes that a
// store has for it is dropped.
func TestWindowReportedWithoutEnd(t *testing.T) {
	var w Window
	a := Request{Key: Key{Window: window}, Limit: 5}
	for i := range MaxUnreported {
		a.Unreported = append(a.Unreported, Spent{time.Duration(MaxUnreported-i) * time.Second, MaxEvents})
	}
	for range 50 {
		w.call(start, &a)
		if err := w.sound(); err != nil {
			t.Fatalf("%v; log %s", err, w.text())
		}
	}
	if w.total != maxTotal {
		t.Errorf("%d units counted, want %d", w.total, int64(maxTotal))
	}
	a.Unreported, a.Units = nil, 1
	if decision := w.call(start, &a); decision.Granted || decision.RetryAfter != window-time.Second {
		t.Errorf("%+v, want it refused until the last unit expires", decision)
	}
}

// However large the limit and whatever the load, a log stays short, and under
// steady load its oldest units leave on time.
func TestWindowStaysShort(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	loads := []struct {
		name string
		step func() int64
	}{
		{"steady", func() int64 { return 1000 }},
		{"a third of a merged span", func() int64 { return micros(1) / 3 }},
		{"just under a merged span", func() int64 { return micros(1) - 1 }},
		{"just a merged span", func() int64 { return micros(1) }},
		{"random", func() int64 { return rng.Int64N(micros(2)) }},
		{"bursts", func() int64 { return rng.Int64N(2) * rng.Int64N(micros(10)) }},
	}
	for _, load := range loads {
		t.Run(load.name, func(t *testing.T) {
			var w Window
			a := Request{Key: Key{Window: window}, Limit: 1_000_000, Units: 1}
			var exact model
			most := 0
			for now := start; now < start+5*micros(64); now += load.step() {
				if a := w.call(now, &a); !a.Granted {
					t.Fatalf("refused: %+v", a)
				}
				exact.add(now, 1)
				exact.expire(now, window+window/mergeParts)
				if w.total > exact.total {
					t.Fatalf("%d units counted after %ds, of %d in a window and a merged span", w.total, (now-start)/1e6, exact.total)
				}
				most = max(most, len(w.entries))
			}
			t.Logf("at most %d entries", most)
			if err := w.sound(); err != nil || most > mergeParts+2 {
				t.Errorf("at most %d entries, want %d; %v", most, mergeParts+2, err)
			}
		})
	}
}

// A client that asks for more than it may have gets nearly what an exact log
// would give it.
func TestWindowUtilisation(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, limit := range []int64{1, 10, 64, 65, 100, 1000, 5000} {
		for _, load := range []float64{1.02, 1.5, 10} { // asked for, of what the limit allows
			var w Window
			var exact model
			a := Request{Key: Key{Window: window}, Limit: limit, Units: 1}
			granted, want := 0, 0
			step := max(2, int64(float64(2*window.Microseconds())/float64(limit)/load))
			// Delays add up; it takes many windows to see them.
			end := start + max(20, 6400/limit)*window.Microseconds()
			for now := start; now < end; now += 1 + rng.Int64N(step) {
				if w.call(now, &a).Granted {
					granted++
				}
				if exact.expire(now, window); exact.total < limit {
					exact.add(now, 1)
					want++
				}
			}
			share := float64(granted) / float64(want)
			t.Logf("limit %d, load %g: %d of %d, %.4f", limit, load, granted, want, share)
			if share < 0.97 || share > 1.01 {
				t.Errorf("limit %d, load %g: %d granted, %.4f of the %d of an exact log", limit, load, granted, share, want)
			}
		}
	}
}

// A log that was filled at a limit of up to 64 has an entry for each unit. When
// the limit was raised, all that came joined the last of them, which was held for
// ever longer: from 60 to 1000 in 10 s, the next window granted 250.
func TestWindowOfARaisedLimit(t *testing.T) {
	const window = 10 * time.Second
	var w Window
	now := start
	request := func(limit int64) bool {
		a := Request{Key: Key{Window: window}, Limit: limit, Units: 1}
		return w.call(now, &a).Granted
	}
	for range 60 {
		if now += 5000; !request(60) {
			t.Fatal("60 of 60 are not granted")
		}
	}
	total := 0
	for i := range 4 {
		granted := 0
		for end := now + window.Microseconds(); now < end; now += 9500 {
			if request(1000) {
				granted++
			}
		}
		t.Logf("window %d after the limit was raised to 1000: %d granted", i+1, granted)
		total += granted
	}
	if total < 3970*97/100 { // 60 are used up in the first one
		t.Errorf("four windows after the limit was raised to 1000: %d granted, want 97 %% at least", total)
	}
}

// The same with limits that change, as plans do: those who ask with the highest
// one get nearly what an exact log would give them, and nobody is granted what
// exceeds his limit with all that was granted in the window before.
func TestWindowUtilisationOfChangingLimits(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, limits := range [][]int64{{60, 1000}, {10, 63, 64, 65, 300}, {30, 5000}, {64, 65}} {
		for _, load := range []float64{1.02, 3} { // asked for, of what the highest limit allows
			var w Window
			var exact, spent model // spent is what w granted
			granted, want := 0, 0
			top := slices.Max(limits)
			step := max(2, int64(float64(2*window.Microseconds())/float64(top)/load))
			limit, change := limits[0], start
			for now := start; now < start+max(100, 6400/top)*window.Microseconds(); now += 1 + rng.Int64N(step) {
				if now > change {
					limit = limits[rng.IntN(len(limits))]
					change += rng.Int64N(3 * window.Microseconds())
				}
				a := Request{Key: Key{Window: window}, Limit: limit, Units: 1}
				if w.call(now, &a).Granted {
					granted++
					spent.expire(now, window)
					if spent.add(now, 1); spent.total > limit {
						t.Fatalf("limits %d, load %g: %d granted in the window that ends at %d, limit %d", limits, load, spent.total, now, limit)
					}
				}
				if exact.expire(now, window); exact.total < limit {
					exact.add(now, 1)
					want++
				}
				if err := w.sound(); err != nil {
					t.Fatal(err)
				}
			}
			share := float64(granted) / float64(want)
			t.Logf("limits %d, load %g: %d of %d, %.4f", limits, load, granted, want, share)
			if share < 0.97 || share > 1.01 {
				t.Errorf("limits %d, load %g: %d granted, %.4f of the %d of an exact log", limits, load, granted, share, want)
			}
		}
	}
}

func BenchmarkWindow(b *testing.B) {
	for _, limit := range []int64{10, 64, 1_000_000} {
		b.Run(fmt.Sprint("limit ", limit), func(b *testing.B) {
			var w Window
			a := Request{Key: Key{Window: window}, Limit: limit, Units: 1}
			now := start
			b.ReportAllocs()
			for b.Loop() {
				now += window.Microseconds() / 64
				w.call(now, &a)
			}
		})
	}
}
