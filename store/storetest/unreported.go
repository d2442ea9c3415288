package storetest

import (
	"math"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// reporting returns the request with units that were spent an age ago.
func reporting(request store.Request, age time.Duration, units int64) store.Request {
	request.Unreported = append([]store.Spent(nil), request.Unreported...)
	request.Unreported = append(request.Unreported, store.Spent{Age: age, Units: units})
	return request
}

// What is reported is held from when it was spent: the rest of the window.
func reportedSinceSpent(f *fixture) {
	for _, limit := range []int64{3, 300} {
		request := f.limit(limit, long)
		a := f.granted(reporting(reporting(request, 20*time.Minute, limit-2), 10*time.Minute, 1))
		if a.Remaining != 0 || a.Reset != long {
			f.Errorf("%+v, want none remaining until the window has passed", a)
		}
		if a := f.refused(request); a.RetryAfter > long-20*time.Minute || a.RetryAfter < long-20*time.Minute-patience {
			f.Errorf("%+v, want a retry 20 minutes less than a window after", a)
		}
		if a := f.refused(need(request, limit)); a.RetryAfter <= long-10*time.Minute || a.RetryAfter > long {
			f.Errorf("%+v, want all of them free when the last unit has expired", a)
		}

		// A call that finds nothing but what it reports tells the moment itself.
		request = f.limit(limit, long)
		if a := f.refused(reporting(request, 50*time.Minute, limit)); a.RetryAfter != 10*time.Minute || a.Reset != 10*time.Minute {
			f.Errorf("%+v, want a retry after ten minutes", a)
		}
	}
}

// A look counts what it reports, and so does a refill, on a key that was never
// used too.
func reportedByLook(f *fixture) {
	request := f.limit(10, long)
	if a := f.granted(reporting(lookAt(request), time.Minute, 4)); a.Remaining != 6 || a.Charged() || a.Reset != long-time.Minute {
		f.Errorf("%+v, want 6 remaining and nothing charged", a)
	}
	f.remaining(request, 6)
	if a := f.granted(reporting(leasing(request, 0, 10), time.Minute, 4)); a.Lease != 2 {
		f.Errorf("%+v, want a lease of 2", a)
	}
	if a := f.granted(reporting(leasing(request, 0, 10), time.Minute, 4)); a.Charged() || a.Remaining != 0 {
		f.Errorf("%+v, want no lease", a)
	}
	f.remaining(of(request, 20), 6)
}

func reportedExpires(f *fixture) {
	const window, left = 10 * time.Second, 100 * time.Millisecond
	request := f.limit(2, window)
	for _, age := range []time.Duration{window, window + time.Microsecond, time.Hour, math.MaxInt64 / 1000 * 1000} {
		if a := f.granted(reporting(lookAt(request), age, 2)); a.Remaining != 2 || a.Reset != 0 {
			f.Errorf("%+v of what was spent %v ago, want nothing counted", a, age)
		}
	}
	if a := f.refused(reporting(request, window-left, 2)); a.RetryAfter != left {
		f.Errorf("%+v, want a retry after %v", a, left)
	}
	time.Sleep(left + slack)
	if a := f.granted(request); a.Remaining != 1 {
		f.Errorf("%+v, want 1 remaining", a)
	}

	// Younger units in the log hold them no longer.
	request = f.limit(5, window)
	began := time.Now()
	f.granted(reporting(lookAt(request), time.Second, 1))
	f.granted(reporting(lookAt(request), window-left, 1))
	time.Sleep(left + slack)
	a := f.take(lookAt(request))[0]
	if a.Remaining != 4 && time.Since(began) < window-time.Second-slack {
		f.Errorf("%+v, want the younger unit to count still, and no other", a)
	}
}

func reportedExceedsTheLimit(f *fixture) {
	request := f.limit(5, long)
	f.granted(need(request, 3))
	if a := f.refused(reporting(request, time.Minute, 7)); a.Remaining != 0 {
		f.Errorf("%+v, want none remaining", a)
	}
	f.refused(request)
	f.remaining(of(request, 20), 10)

	// As many entries as there may be, of as many units.
	request = f.limit(store.MaxEvents, long)
	all := request
	for i := range store.MaxUnreported {
		all = reporting(all, time.Duration(i)*time.Minute, store.MaxEvents)
	}
	for range 30 {
		f.refused(all)
	}
	f.refused(request)
}

// What is reported is a fact, whatever is decided.
func reportedInARefusedCall(f *fixture) {
	full := f.limit(1, long)
	f.granted(full)
	free := of(f.zoned("free", full), 10)
	decisions := f.take(reporting(free, time.Minute, 4), full)
	if decisions[0].Charged() || decisions[0].Remaining != 6 {
		f.Errorf("%+v, want 6 remaining and nothing charged", decisions[0])
	}
	f.remaining(free, 6)

	f.take(free, reporting(full, time.Minute, 2))
	f.remaining(of(full, 10), 7)
	f.remaining(free, 6)
}

func reportedByShadow(f *fixture) {
	firm := f.limit(2, long)
	weak := of(f.zoned("weak", firm), 3)
	weak.Shadow = true
	decisions := f.take(firm, reporting(weak, time.Minute, 2))
	if !decisions[0].Charged() || !decisions[1].Charged() || decisions[1].Remaining != 0 {
		f.Errorf("%+v, want both charged", decisions)
	}
	decisions = f.take(firm, reporting(weak, time.Minute, 2))
	if !decisions[0].Charged() || decisions[1].Granted {
		f.Errorf("%+v, want the first one charged", decisions)
	}
	decisions = f.take(firm, reporting(weak, time.Minute, 2))
	if decisions[0].Granted || decisions[1].Granted {
		f.Errorf("%+v, want both refused", decisions)
	}
	f.remaining(of(weak, 20), 13)
}

// Nobody is given the units of others back.
func reportedIsNotRefunded(f *fixture) {
	request := f.limit(10, long)
	a := f.granted(reporting(need(request, 2), time.Minute, 3))
	f.refund(refundOf(request, a, 2))
	f.remaining(request, 7)
	f.refund(refundOf(request, a, 2))
	f.remaining(request, 7)
}

// What was reported can be refunded, wherever in the log it is, and by whatever kind of
// request it was reported.
func refundReported(f *fixture) {
	const limit = 10
	for name, request := range map[string]store.Request{
		"granted": f.limit(limit, long), "look": lookAt(f.limit(limit, long)), "refused": need(f.limit(limit, long), limit),
	} {
		own := request
		own.Units = 2
		f.granted(own)
		a := f.take(reporting(reporting(request, 20*time.Minute, 3), 10*time.Minute, 1))[0]
		if !a.Reported.Charged() {
			f.Fatalf("%s: %+v, want to be told where the reported units are", name, a)
		}
		used := int64(2 + 3 + 1)
		if a.Charged() {
			used += request.Units
		}
		f.remaining(request, limit-used)
		for _, spent := range []store.Spent{{Age: 20 * time.Minute, Units: 3}, {Age: 10 * time.Minute, Units: 1}} {
			charge := a.Reported
			charge.Stamp -= spent.Age.Microseconds()
			f.refund(store.Refund{Key: request.Key, Charge: charge, Units: spent.Units})
			used -= spent.Units
			f.remaining(request, limit-used)
		}
		// What is left is what was charged just now.
		if a := f.refused(need(request, limit)); a.RetryAfter < long-patience {
			f.Errorf("%s: %+v, want to wait for the youngest units", name, a)
		}
	}

	request := f.limit(limit, long)
	if a := f.granted(reporting(lookAt(request), long, 3)); a.Reported.Charged() {
		f.Errorf("%+v, want nothing reported that has expired", a)
	}
}
