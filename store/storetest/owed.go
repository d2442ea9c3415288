package storetest

import (
	"math"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// owing returns the ask with units that were spent an age ago.
func owing(ask store.Ask, age time.Duration, units int64) store.Ask {
	ask.Owed = append([]store.Spent(nil), ask.Owed...)
	ask.Owed = append(ask.Owed, store.Spent{Age: age, Units: units})
	return ask
}

// What is owed is held from when it was spent: the rest of the window.
func owedSinceSpent(f *fixture) {
	for _, limit := range []int64{3, 300} {
		ask := f.limit(limit, long)
		a := f.granted(owing(owing(ask, 20*time.Minute, limit-2), 10*time.Minute, 1))
		if a.Remaining != 0 || a.Reset != long {
			f.Errorf("%+v, want none remaining until the window has passed", a)
		}
		if a := f.refused(ask); a.RetryAfter > long-20*time.Minute || a.RetryAfter < long-20*time.Minute-patience {
			f.Errorf("%+v, want a retry 20 minutes less than a window after", a)
		}
		if a := f.refused(need(ask, limit)); a.RetryAfter <= long-10*time.Minute || a.RetryAfter > long {
			f.Errorf("%+v, want all of them free when the last unit has expired", a)
		}

		// A call that finds nothing but what it owes tells the moment itself.
		ask = f.limit(limit, long)
		if a := f.refused(owing(ask, 50*time.Minute, limit)); a.RetryAfter != 10*time.Minute || a.Reset != 10*time.Minute {
			f.Errorf("%+v, want a retry after ten minutes", a)
		}
	}
}

// A look counts what it owes, and so does a refill, on a key that was never
// used too.
func owedByLook(f *fixture) {
	ask := f.limit(10, long)
	if a := f.granted(owing(lookAt(ask), time.Minute, 4)); a.Remaining != 6 || a.Charged() || a.Reset != long-time.Minute {
		f.Errorf("%+v, want 6 remaining and nothing charged", a)
	}
	f.remaining(ask, 6)
	if a := f.granted(owing(extra(ask, 0, 10), time.Minute, 4)); a.Extra != 2 {
		f.Errorf("%+v, want 2 extra", a)
	}
	if a := f.granted(owing(extra(ask, 0, 10), time.Minute, 4)); a.Charged() || a.Remaining != 0 {
		f.Errorf("%+v, want none extra", a)
	}
	f.remaining(of(ask, 20), 6)
}

func owedExpires(f *fixture) {
	const window, left = 10 * time.Second, 100 * time.Millisecond
	ask := f.limit(2, window)
	for _, age := range []time.Duration{window, window + time.Microsecond, time.Hour, math.MaxInt64 / 1000 * 1000} {
		if a := f.granted(owing(lookAt(ask), age, 2)); a.Remaining != 2 || a.Reset != 0 {
			f.Errorf("%+v of what was spent %v ago, want nothing counted", a, age)
		}
	}
	if a := f.refused(owing(ask, window-left, 2)); a.RetryAfter != left {
		f.Errorf("%+v, want a retry after %v", a, left)
	}
	time.Sleep(left + slack)
	if a := f.granted(ask); a.Remaining != 1 {
		f.Errorf("%+v, want 1 remaining", a)
	}

	// Where there are younger units they leave with the next of them.
	ask = f.limit(5, window)
	began := time.Now()
	f.granted(owing(lookAt(ask), time.Second, 1))
	f.granted(owing(lookAt(ask), window-left, 1))
	time.Sleep(left + slack)
	a := f.take(lookAt(ask))[0]
	if a.Remaining != 3 && time.Since(began) < window-time.Second-slack {
		f.Errorf("%+v, want both units to count still", a)
	}
}

func owedExceedsTheLimit(f *fixture) {
	ask := f.limit(5, long)
	f.granted(need(ask, 3))
	if a := f.refused(owing(ask, time.Minute, 7)); a.Remaining != 0 {
		f.Errorf("%+v, want none remaining", a)
	}
	f.refused(ask)
	f.remaining(of(ask, 20), 10)

	// As many entries as there may be, of as many units.
	ask = f.limit(store.MaxEvents, long)
	all := ask
	for i := range store.MaxOwed {
		all = owing(all, time.Duration(i)*time.Minute, store.MaxEvents)
	}
	for range 30 {
		f.refused(all)
	}
	f.refused(ask)
}

// What is owed is a fact, whatever is decided.
func owedInARefusedCall(f *fixture) {
	full := f.limit(1, long)
	f.granted(full)
	free := of(f.zoned("free", full), 10)
	answers := f.take(owing(free, time.Minute, 4), full)
	if answers[0].Charged() || answers[0].Remaining != 6 {
		f.Errorf("%+v, want 6 remaining and nothing charged", answers[0])
	}
	f.remaining(free, 6)

	f.take(free, owing(full, time.Minute, 2))
	f.remaining(of(full, 10), 7)
	f.remaining(free, 6)
}

func owedByAdvisory(f *fixture) {
	firm := f.limit(2, long)
	weak := of(f.zoned("weak", firm), 3)
	weak.Advisory = true
	answers := f.take(firm, owing(weak, time.Minute, 2))
	if !answers[0].Charged() || !answers[1].Charged() || answers[1].Remaining != 0 {
		f.Errorf("%+v, want both charged", answers)
	}
	answers = f.take(firm, owing(weak, time.Minute, 2))
	if !answers[0].Charged() || answers[1].Granted {
		f.Errorf("%+v, want the first one charged", answers)
	}
	answers = f.take(firm, owing(weak, time.Minute, 2))
	if answers[0].Granted || answers[1].Granted {
		f.Errorf("%+v, want both refused", answers)
	}
	f.remaining(of(weak, 20), 13)
}

// Nobody is given the units of others back.
func owedIsNotGivenBack(f *fixture) {
	ask := f.limit(10, long)
	a := f.granted(owing(need(ask, 2), time.Minute, 3))
	f.giveBack(grant(ask, a, 2))
	f.remaining(ask, 7)
	f.giveBack(grant(ask, a, 2))
	f.remaining(ask, 7)
}
