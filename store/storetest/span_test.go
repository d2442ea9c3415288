package storetest

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// span is a span in seconds after the epoch.
func span(from, to float64, units int64) Span {
	after := func(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }
	return Span{after(from), after(to), units}
}

func TestMost(t *testing.T) {
	tests := []struct {
		name  string
		spans []Span
		units int64
		at    float64
	}{
		{"nothing", nil, 0, 0},
		{"one", []Span{span(3, 3, 7)}, 7, 3},
		{"both ends of an interval", []Span{span(0, 0, 1), span(9.999, 9.999, 1)}, 2, 0},
		{"the end is open", []Span{span(0, 0, 1), span(10, 10, 1)}, 1, 10},
		{"several at once", []Span{span(5, 5, 1), span(5, 5, 1), span(5, 5, 1)}, 3, 5},
		{"one that began earlier is not certain", []Span{span(0, 6, 5), span(3, 3, 1), span(11, 11, 1)}, 6, 0},
		{"one that ends later is not certain", []Span{span(0, 0, 2), span(1, 10.5, 9)}, 9, 1},
		{"longer than the window", []Span{span(0, 10, 9), span(1, 1, 2)}, 2, 1},
		{"out of order", []Span{span(20, 20, 1), span(1, 1, 2), span(12, 12, 3), span(8, 9, 2)}, 5, 8},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			units, at := Most(test.spans, 10*time.Second)
			if units != test.units {
				t.Errorf("%d units from %v, want %d from %vs", units, at, test.units, test.at)
			}
			if want := span(test.at, 0, 0).From; units > 0 && !at.Equal(want) {
				t.Errorf("from %v, want %v", at, want)
			}
		})
	}
}

// The checker agrees with one that tries everything.
func TestMostExhaustive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spans := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Span {
			from := rapid.IntRange(0, 30).Draw(t, "from")
			return span(float64(from), float64(from+rapid.IntRange(0, 12).Draw(t, "length")), int64(rapid.IntRange(1, 9).Draw(t, "units")))
		}), 0, 30).Draw(t, "spans")
		window := time.Duration(rapid.IntRange(1, 12).Draw(t, "window")) * time.Second

		want := int64(0)
		for start := 0; start <= 42; start++ {
			begin := epoch.Add(time.Duration(start) * time.Second)
			sum := int64(0)
			for _, s := range spans {
				if !s.From.Before(begin) && s.To.Before(begin.Add(window)) {
					sum += s.Units
				}
			}
			want = max(want, sum)
		}
		if got, at := Most(spans, window); got != want {
			t.Fatalf("Most = %d at %v, want %d", got, at, want)
		}
	})
}

// Counters that only look like a sliding window let too much through, and the
// checker sees it.
func TestMostCatchesCounters(t *testing.T) {
	const limit, window = 100, time.Minute

	run := func(allow func(at time.Duration) bool, times []time.Duration) (spans []Span) {
		for _, at := range times {
			if allow(at) {
				spans = append(spans, Span{epoch.Add(at), epoch.Add(at), 1})
			}
		}
		return spans
	}
	burst := func(at ...time.Duration) (times []time.Duration) {
		for _, t := range at {
			for i := range 2 * limit {
				times = append(times, t+time.Duration(i)*time.Microsecond)
			}
		}
		return times
	}

	// A counter per calendar minute: everything at the end of one and again
	// at the start of the next.
	counts := map[time.Duration]int{}
	fixedWindow := func(at time.Duration) bool {
		bucket := at / window
		if counts[bucket] >= limit {
			return false
		}
		counts[bucket]++
		return true
	}
	// Two buckets: the last minute's count, weighted by how much of it the
	// window still covers, and this minute's. It takes the last minute's
	// units for evenly spread, which nobody is obliged to.
	weighted := map[time.Duration]float64{}
	twoBuckets := func(at time.Duration) bool {
		bucket, into := at/window, float64(at%window)/float64(window)
		if weighted[bucket-1]*(1-into)+weighted[bucket]+1 > limit {
			return false
		}
		weighted[bucket]++
		return true
	}

	tests := []struct {
		name  string
		spans []Span
		least int64
	}{
		{"fixed window", run(fixedWindow, burst(59*time.Second, 60*time.Second)), 2 * limit},
		{"two buckets", run(twoBuckets, burst(59*time.Second, 118*time.Second)), limit + 80},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			units, at := Most(test.spans, window)
			if units < test.least {
				t.Errorf("%d units from %v, want at least %d", units, at, test.least)
			}
		})
	}
}

func BenchmarkMost(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			spans := make([]Span, n)
			for i := range spans {
				at := epoch.Add(time.Duration(i*7919%n) * time.Millisecond)
				spans[i] = Span{at, at.Add(3 * time.Millisecond), 1}
			}
			for b.Loop() {
				Most(spans, time.Second)
			}
		})
	}
}
