package storetest

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func extraUnits(f *fixture) {
	tests := []struct {
		need, extra int64
		granted     bool
		extraWant   int64
		remaining   int64
	}{
		{1, 3, true, 3, 16},
		{2, 0, true, 0, 14},
		{1, 10, true, 10, 3},
		{1, 10, true, 2, 0}, // some of them fit
		{1, 10, false, 0, 0},
		{0, 10, true, 0, 0}, // none fit, which refuses nothing
	}
	request := f.limit(20, long)
	for i, test := range tests {
		a := f.take(extra(request, test.need, test.extra))[0]
		if a.Granted != test.granted || a.Lease != test.extraWant || a.Remaining != test.remaining {
			f.Fatalf("call %d: %+v, want %+v", i, a, test)
		}
		if want := test.granted && test.need+test.extraWant > 0; a.Charged() != want {
			f.Fatalf("call %d: %+v, want charged %v", i, a, want)
		}
	}

	// The last unit is the request's, not extra.
	request = f.limit(1, long)
	if a := f.granted(extra(request, 1, 5)); a.Lease != 0 {
		f.Errorf("%+v, want no extra of a limit of 1", a)
	}
}

func refill(f *fixture) {
	request := f.limit(10, long)
	for _, want := range []struct{ extra, remaining int64 }{{4, 6}, {4, 2}, {2, 0}, {0, 0}} {
		a := f.granted(extra(request, 0, 4))
		if a.Lease != want.extra || a.Remaining != want.remaining || a.Charged() != (want.extra > 0) {
			f.Fatalf("%+v, want %+v", a, want)
		}
	}
	f.refused(request)

	// Nor does a refill refuse the call when the limit was lowered below
	// what is spent.
	lowered, other := request, f.limit(1, long)
	lowered.Limit = 4
	decisions := f.take(extra(lowered, 0, 4), other)
	if !decisions[0].Granted || decisions[0].Charged() || !decisions[1].Charged() {
		f.Errorf("a refill above a lowered limit: %+v, want it granted with nothing, and the other ask charged", decisions)
	}
}

func look(f *fixture) {
	request := f.limit(3, long)
	for want := int64(3); want >= 0; want-- {
		for range 5 {
			a := f.granted(lookAt(request))
			if a.Remaining != want || a.Charged() {
				f.Fatalf("%+v, want %d remaining and nothing charged", a, want)
			}
		}
		if want > 0 {
			f.granted(request)
		}
	}
	// It finds out nothing that is not so.
	if a := f.granted(lookAt(request)); a.Reset <= 0 || a.Reset > long {
		f.Errorf("%+v, want a reset within %v", a, long)
	}
}

func extraRefused(f *fixture) {
	free := f.limit(10, long)
	full := of(f.zoned("full", free), 1)
	f.granted(full)
	f.take(extra(free, 1, 5), full)
	f.take(extra(free, 0, 5), full)
	f.remaining(free, 10)
}

// Units that may be spent until a moment to come count from then.
func aheadHoldsLonger(f *fixture) {
	tests := []struct {
		name        string
		need, extra int64
		ahead       time.Duration
		held        time.Duration
	}{
		{"with extra", 1, 9, time.Second, long + time.Second},
		{"refill", 0, 10, 300 * time.Millisecond, long + 300*time.Millisecond},
		{"without extra", 10, 0, time.Second, long},
		{"with extra that does not fit", 10, 5, time.Second, long},
	}
	for _, test := range tests {
		request := f.limit(10, long)
		first := extra(request, test.need, test.extra)
		first.LeaseSpan = test.ahead
		before := time.Now()
		f.granted(first)
		a := f.refused(request)
		least := test.held - time.Since(before) - slack
		if a.RetryAfter > test.held || a.RetryAfter < least {
			f.Errorf("%s: retry after %v, want at least %v and at most %v", test.name, a.RetryAfter, least, test.held)
		}
		if a.Reset != a.RetryAfter {
			f.Errorf("%s: retry after %v, but reset %v", test.name, a.RetryAfter, a.Reset)
		}
	}

	// What is charged later is not stamped earlier.
	request := f.limit(2, long)
	first := extra(request, 0, 1)
	first.LeaseSpan = store.MaxLeaseSpan
	a, b := f.granted(first), f.granted(request)
	if b.Stamp < a.Stamp {
		f.Errorf("stamp %d after %d", b.Stamp, a.Stamp)
	}
}
