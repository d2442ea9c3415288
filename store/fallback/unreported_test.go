package fallback

import (
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Whatever comes to be unreported of a key, it can be reported.
func TestReportIsValid(t *testing.T) {
	const start = int64(1_700_000_000_000_000)
	const width = int64(time.Hour / time.Microsecond)
	var d report
	for i := range int64(100) {
		at := start + i*width/20
		d.add(spent{at, at, store.MaxEvents, nil}, time.Hour)
		d.add(spent{at + 1, at + 1, 1, nil}, time.Hour)
	}
	if n := len(d.entries); n != store.MaxUnreported || d.entries[n-1].last != start+99*width/20+1 {
		t.Errorf("%d entries %v, want %d, and the last as late as the last units", n, d.entries, store.MaxUnreported)
	}
	for _, o := range d.entries {
		if o.units != store.MaxEvents {
			t.Errorf("%d units in one entry, want %d", o.units, int64(store.MaxEvents))
		}
	}
}
