package loglimit

import (
	"testing"
	"testing/synctest"
	"time"
)

// A warning that bots can bring about for ever becomes rarer, never stops, and tells how
// often it was left out.
func TestFading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Fading
		began := time.Now()
		var lines []time.Duration
		var suppressed int64
		for range 6 * 60 * 60 { // each second
			if n, ok := l.Allow(); ok {
				lines = append(lines, time.Since(began))
				suppressed += n
			}
			time.Sleep(time.Second)
		}
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303}
		if len(lines) != len(want) {
			t.Fatalf("lines after %v, want %d minutes", lines, want)
		}
		for i := range want {
			if lines[i] != want[i]*time.Minute {
				t.Errorf("line %d comes after %v, want %d minutes", i, lines[i], want[i])
			}
		}
		if last := int64(lines[len(lines)-1] / time.Second); suppressed != last-int64(len(lines))+1 {
			t.Errorf("%d lines were told to be suppressed, want %d", suppressed, last-int64(len(lines))+1)
		}
	})
}
