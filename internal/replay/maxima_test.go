package replay

import (
	"math/rand/v2"
	"testing"
	"time"
)

var testWindows = []time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute, time.Hour, 24 * time.Hour}

// taken is the reference: all that a client took, and nothing forgotten.
type taken []moment

// most is the largest number of units in any interval of a window that ends with one of
// the moments. It adds them up for each of them anew.
func (t taken) most(window int64) (most int64) {
	for i := range t {
		var sum int64
		for j := i; j >= 0 && t[j].stamp > t[i].stamp-window; j-- {
			sum += t[j].units
		}
		for j := i + 1; j < len(t) && t[j].stamp == t[i].stamp; j++ {
			sum += t[j].units
		}
		most = max(most, sum)
	}
	return most
}

// Up to 512 moments the maxima are exact, and above them they are bounded from both sides.
func TestMaximaAgainstReference(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 1))
		n := 1 + random.IntN(exactUpTo)
		if seed%3 == 0 {
			n = 1200 + random.IntN(800)
		}
		m := newMaxima(testWindows)
		var all taken
		now := int64(1_700_000_000_000_000)
		for range n {
			switch random.IntN(4) {
			case 0:
				now += random.Int64N(2_000)
			case 1:
				now += random.Int64N(300_000)
			case 2:
				now += random.Int64N(int64(1) << (10 + random.IntN(27))) // up to 19 hours
			}
			units := 1 + random.Int64N(3)
			all = append(all, moment{now, now, units})
			m.add(testWindows, now, units)
		}
		for i, window := range testWindows {
			width := window.Microseconds()
			got, want := m.of[i].most, all.most(width)
			most := want
			if n > exactUpTo {
				most = all.most(width + width/mergeParts)
			}
			if got < want || got > most {
				t.Errorf("seed %d: %d moments, window %v: most is %d, want %d to %d", seed, n, window, got, want, most)
			}
		}
		if len(m.moments) > 2*exactUpTo {
			t.Errorf("seed %d: %d moments are kept of %d", seed, len(m.moments), n)
		}
	}
}

// Steady load must not extend one entry for ever, and the memory is bounded.
func TestMaximaSteadyLoad(t *testing.T) {
	m := newMaxima(testWindows)
	now := int64(1_700_000_000_000_000)
	most := 0
	for i := range 150_000 {
		// 10 in a second, and then 20: what was merged before the maximum came counts.
		now += 100_000
		if i >= 75_000 {
			now -= 50_000
		}
		m.add(testWindows, now, 1)
		most = max(most, len(m.moments))
	}
	for i, want := range []int64{20, 200, 1200, 12_000, 72_000, 150_000} {
		if got := m.of[i].most; got < want || got > want+want/mergeParts+1 {
			t.Errorf("window %v: most is %d, want %d", testWindows[i], got, want)
		}
	}
	if most > 2*exactUpTo {
		t.Errorf("%d moments are kept", most)
	}
}

// What was merged counts as long as any of it does: a burst that comes when a part of an
// entry has left the window meets the rest of it.
func TestMaximaBurstAfterMerge(t *testing.T) {
	const (
		began = 1_700_000_000_000_000
		step  = 55_000_000 // many within a 64th of the longest window, so that they are merged
		burst = 1_000
	)
	windows := []time.Duration{time.Second, time.Hour, 24 * time.Hour}
	merged := false
	for later := range int64(40) {
		m := newMaxima(windows)
		var all taken
		take := func(now, units int64) {
			all = append(all, moment{now, now, units})
			m.add(windows, now, units)
		}
		for i := range int64(3 * exactUpTo) {
			take(began+i*step, 1)
		}
		merged = merged || len(m.moments) < len(all)/2
		take(began+24*3600_000_000+later*step, burst)
		for i, window := range windows {
			width := window.Microseconds()
			if got, want, most := m.of[i].most, all.most(width), all.most(width+width/mergeParts); got < want || got > most {
				t.Fatalf("burst %d steps after a day, window %v: most is %d, want %d to %d", later, window, got, want, most)
			}
		}
	}
	if !merged {
		t.Error("nothing was merged")
	}
}

// Units that are given back are not among what counts afterwards.
func TestMaximaGiveBack(t *testing.T) {
	m := newMaxima(testWindows)
	for i := range int64(100) {
		now := 1_700_000_000_000_000 + i*10_000
		m.add(testWindows, now, 5)
		m.giveBack(testWindows, now, 5)
	}
	for i := range testWindows {
		if m.of[i].most != 5 || m.of[i].sum != 0 {
			t.Errorf("window %v: most is %d and the sum %d, want 5 and 0", testWindows[i], m.of[i].most, m.of[i].sum)
		}
	}
}

// Units that had left all windows before they are given back are no longer there, and are
// not taken from later ones instead.
func TestMaximaGiveBackTooLate(t *testing.T) {
	windows := []time.Duration{time.Second}
	const began = 1_700_000_000_000_000
	m := newMaxima(windows)
	m.add(windows, began, 5)
	m.add(windows, began+1_500_000, 3)
	m.giveBack(windows, began, 5)
	m.add(windows, began+1_600_000, 4)
	if got := m.of[0].most; got != 7 {
		t.Errorf("most is %d, want 7", got)
	}
}
