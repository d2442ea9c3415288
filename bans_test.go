package distributedratelimit

import (
	"strconv"
	"testing"
	"time"
)

// A flood of banned clients makes room once for many of them: looking through all that is
// kept for each request would hold up every other one.
func TestBansMakeRoomForMany(t *testing.T) {
	var b bans
	looks, before := 0, 0
	for i := range 4 * bansKept {
		if !b.meets(strconv.Itoa(i), time.Hour) {
			t.Fatalf("ban %d is not new", i)
		}
		if len(b.known) > bansKept {
			t.Fatalf("%d bans are kept, want %d at most", len(b.known), bansKept)
		}
		if len(b.known) <= before {
			looks++
		}
		before = len(b.known)
	}
	if looks == 0 || looks > 8 {
		t.Errorf("room was made %d times for %d bans, want 1 to 8", looks, 4*bansKept)
	}
}
