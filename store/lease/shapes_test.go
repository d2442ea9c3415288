package lease

import (
	"math"
	"testing"
	"time"
)

// Bursts that use up the limit every few seconds are the worst there is, with short
// leases as with long ones: what is held a little longer misses the burst for which an
// exact log has it back in time.
var leastOf = map[string]float64{"on5/15": 0.94, "on2/20": 0.84}

// rises is a load that is small for a while and then more than the limit allows: what
// was leased for long while little was used must not be missing then.
func rises(name string, until, small float64) shape {
	return shape{name, func(windows float64) float64 {
		if windows < until {
			return small
		}
		return 4
	}}
}

// comesAndGoes is a load for on seconds of every period, of a window of a minute.
func comesAndGoes(name string, on, period, rate float64) shape {
	return shape{name, func(windows float64) float64 {
		if math.Mod(windows*60, period) < on {
			return rate
		}
		return 0
	}}
}

// However the load changes, nearly all is granted that an exact log would grant, and
// nobody is refused for long while others have what he needs.
func TestLeasesUtilisationOfShapes(t *testing.T) {
	shapes := []shape{
		rises("slow25", 1, .25), rises("slow50", 1, .5), rises("slow90", 1, .9), rises("quick50", .25, 2),
		comesAndGoes("on5/15", 5, 15, 4), comesAndGoes("on2/20", 2, 20, 12), comesAndGoes("on1/7", 1, 7, 6),
		rises("all", 0, 0),
	}
	limits := []int64{600, 6000}
	if full() {
		limits = []int64{100, 600, 6000, 36000}
	}
	least, worst, stranded := 1.0, time.Duration(0), 0.0
	var idle, refused int64
	for _, limit := range limits {
		for _, processes := range []int{1, 4} {
			for _, uneven := range []bool{false, true} {
				for _, shape := range shapes {
					if uneven && processes == 1 {
						continue
					}
					l := load{processes: processes, limit: limit, rate: 1, window: time.Minute, windows: 4, uneven: uneven, trip: 500 * time.Microsecond, shape: shape}
					m := l.measure(t)
					t.Logf("%v, uneven %v: %.4f of an exact log; %d refused, %d while others have units, for %.2fs at most; in hand at most %.1f%%; %.0f calls for 1000 granted",
						l, uneven, m.share(), m.refused, m.idle, m.longest.Seconds(), 100*float64(m.stranded)/float64(limit), m.perGranted())
					want := leastOf[shape.name]
					if want == 0 {
						want = 0.97
					}
					if m.share() < want {
						t.Errorf("%v: %.4f of an exact log, want %g", l, m.share(), want)
					}
					if m.longest > time.Second {
						t.Errorf("%v: refused for %v while others have units", l, m.longest)
					}
					least, worst = min(least, m.share()), max(worst, m.longest)
					stranded = max(stranded, float64(m.stranded)/float64(limit))
					idle, refused = idle+m.idle, refused+m.refused
				}
			}
		}
	}
	t.Logf("in all: %.4f at least; %.2f%% of refusals while others have units, for %.2fs at most; in hand at most %.2f%% of the limit",
		least, 100*float64(idle)/float64(refused), worst.Seconds(), 100*stranded)
}

// Far from the store, few decisions of a busy client wait.
func TestLeasesFarFromTheStore(t *testing.T) {
	for _, processes := range []int{1, 4} {
		l := load{processes: processes, limit: 6000, rate: 0.2, window: time.Minute, windows: 3, trip: 40 * time.Millisecond}
		m := l.measure(t)
		waited := float64(m.waited) / float64(m.granted)
		t.Logf("%v, 80 ms from the store: %.1f%% wait; %.0f calls for 1000 granted", l, 100*waited, m.perGranted())
		if waited > 0.05 {
			t.Errorf("%v: %.1f%% of the decisions wait, want 5%% at most", l, 100*waited)
		}
	}
}
