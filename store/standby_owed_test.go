package store

import (
	"testing"
	"time"
)

// Whatever a key comes to owe, it can be asked for.
func TestDebtIsValid(t *testing.T) {
	const width = int64(time.Hour / time.Microsecond)
	var d debt
	for i := range int64(100) {
		at := start + i*width/20
		d.add(owed{at, at, MaxEvents}, time.Hour)
		d.add(owed{at + 1, at + 1, 1}, time.Hour)
	}
	if n := len(d.entries); n != MaxOwed || d.entries[n-1].last != start+99*width/20+1 {
		t.Errorf("%d entries %v, want %d, and the last as late as the last units", n, d.entries, MaxOwed)
	}
	for _, o := range d.entries {
		if o.units != MaxEvents {
			t.Errorf("%d units owed in one entry, want %d", o.units, int64(MaxEvents))
		}
	}
}
