package store

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A board that nobody watches has no timer, which would hold it until its notices end, and
// one that is watched again tells of each end.
func TestBoardHasATimerWhileItIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Board
		post := func(name string, lasts time.Duration) {
			if err := b.Post(Notice{Class: 'b', Name: name, Lasts: lasts}, 10); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		var told [][]Notice
		watch := func() (stop func()) {
			return b.Watch(func(notices []Notice) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, notices)
			})
		}
		last := func(times, want int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(told) != times || len(told[times-1]) != want {
				t.Errorf("told %v, want %d times, of %d notices at last", told, times, want)
			}
		}
		post("before", MaxWindow)
		if b.timer != nil {
			t.Error("a board that nobody has watched yet has a timer")
		}
		stop, other := watch(), watch()
		post("minute", time.Minute)
		last(4, 2)
		stop()
		if b.timer == nil {
			t.Error("a board that somebody watches has no timer")
		}
		other()
		if b.timer != nil {
			t.Error("a board that nobody watches any more has a timer")
		}
		time.Sleep(time.Hour)
		last(4, 2)
		stop = watch()
		last(5, 1)
		time.Sleep(MaxWindow)
		last(6, 0)
		stop()
	})
}
