package storetest

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// pause makes sure that what comes next has another stamp and another mark.
func pause() { time.Sleep(2 * time.Millisecond) }

func giveBack(f *fixture) {
	ask := f.limit(2, long)
	a := f.granted(ask)
	pause()
	b := f.granted(ask)
	f.refused(ask)
	f.giveBack(grant(ask, a, 1))
	f.remaining(ask, 1)
	f.granted(ask)
	f.refused(ask)
	f.giveBack(grant(ask, b, 1))
	f.remaining(ask, 1)

	// The whole log; then it is as if the key was never used.
	ask = f.limit(1, long)
	f.giveBack(grant(ask, f.granted(ask), 1))
	if a := f.take(lookAt(ask))[0]; a.Remaining != 1 || a.Reset != 0 {
		f.Errorf("%+v, want 1 remaining and no reset", a)
	}
}

func giveBackPart(f *fixture) {
	for _, limit := range []int64{60, 1000} {
		ask := f.limit(limit, long)
		a := f.granted(need(ask, 10))
		pause()
		f.granted(need(ask, 10))
		f.giveBack(grant(ask, a, 3))
		f.remaining(ask, limit-17)
		f.giveBack(grant(ask, a, 7))
		f.remaining(ask, limit-10)
	}
}

func giveBackMany(f *fixture) {
	var asks []store.Ask
	for i, zone := range []string{"a", "b", "c", "d", "e", "f"} {
		asks = append(asks, need(of(f.zoned(zone, f.limit(1, long)), 10), int64(i)+1))
	}
	var grants []store.Grant
	for i, ask := range asks {
		a := f.granted(ask)
		if i != 2 {
			grants = append(grants, grant(ask, a, ask.Need))
		}
	}
	// Keys that hold nothing are no hindrance.
	grants = append(grants, grant(f.limit(1, long), store.Answer{Stamp: 1, Mark: 1}, 1))
	f.giveBack(grants...)
	for i, ask := range asks {
		want := int64(10)
		if i == 2 {
			want = 7
		}
		f.remaining(ask, want)
	}
}

func giveBackTwice(f *fixture) {
	ask := f.limit(3, long)
	a := f.granted(need(ask, 2))
	g := grant(ask, a, 2)
	f.giveBack(g)
	f.giveBack(g)
	f.giveBack(g, g)
	f.remaining(ask, 3)
	f.granted(need(ask, 3))
	f.refused(ask)

	// More than was charged: no more than that comes back.
	ask = f.limit(3, long)
	f.granted(ask)
	pause()
	f.giveBack(grant(ask, f.granted(ask), 100))
	f.remaining(ask, 2)
}

func giveBackWrongMark(f *fixture) {
	ask := f.limit(3, long)
	a := f.granted(ask)
	for _, mark := range []int64{a.Mark - 1, a.Mark + 1, 0, 1} {
		g := grant(ask, a, 1)
		g.Mark = mark
		f.giveBack(g)
	}
	f.remaining(ask, 2)
}

func giveBackLaterStamp(f *fixture) {
	ask := f.limit(3, long)
	a := f.granted(ask)
	pause()
	b := f.granted(ask)
	g := grant(ask, a, 1)
	g.Stamp = b.Stamp + 1
	f.giveBack(g)
	f.remaining(ask, 1)
}

// A log that has become empty meanwhile has begun another life, in which the
// units of the old one mean nothing.
func giveBackAnotherLife(f *fixture) {
	ask := f.limit(3, long)
	a := f.granted(ask)
	f.giveBack(grant(ask, a, 1))
	pause()
	f.granted(ask)
	f.giveBack(grant(ask, a, 1))
	f.remaining(ask, 2)
}

func giveBackExpired(f *fixture) {
	const window = store.MinWindow
	for range 20 {
		ask := f.limit(3, window)
		first := f.granted(ask)
		granted := time.Now()
		time.Sleep(window / 2)
		second := time.Now()
		f.granted(ask)
		time.Sleep(time.Until(granted.Add(window + slack)))
		f.giveBack(grant(ask, first, 1))
		a := f.take(lookAt(ask))[0]
		if time.Since(second) > window-slack {
			continue // too slow: the second unit may have expired too
		}
		if a.Remaining != 2 {
			f.Errorf("%+v, want the second unit to count still", a)
		}
		return
	}
	f.Fatalf("no attempt took less than %v", window)
}

func giveBackExtra(f *fixture) {
	ask := f.limit(100, long)
	first := extra(ask, 1, 9)
	first.Ahead = store.MaxAhead
	a := f.granted(first)
	f.granted(ask) // joins what lies ahead
	f.giveBack(grant(ask, a, 6))
	f.remaining(ask, 95)
	f.giveBack(grant(ask, a, 4))
	f.remaining(ask, 99)
}
