package storetest

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func leaseUnits(f *fixture) {
	tests := []struct {
		need, lease int64
		granted     bool
		leaseWant   int64
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
		a := f.take(leasing(request, test.need, test.lease))[0]
		if a.Granted != test.granted || a.Lease != test.leaseWant || a.Remaining != test.remaining {
			f.Fatalf("call %d: %+v, want %+v", i, a, test)
		}
		if want := test.granted && test.need+test.leaseWant > 0; a.Charged() != want {
			f.Fatalf("call %d: %+v, want charged %v", i, a, want)
		}
	}

	// The last unit is the request's, not the lease's.
	request = f.limit(1, long)
	if a := f.granted(leasing(request, 1, 5)); a.Lease != 0 {
		f.Errorf("%+v, want no lease of a limit of 1", a)
	}
}

func refill(f *fixture) {
	request := f.limit(10, long)
	for _, want := range []struct{ lease, remaining int64 }{{4, 6}, {4, 2}, {2, 0}, {0, 0}} {
		a := f.granted(leasing(request, 0, 4))
		if a.Lease != want.lease || a.Remaining != want.remaining || a.Charged() != (want.lease > 0) {
			f.Fatalf("%+v, want %+v", a, want)
		}
	}
	f.refused(request)

	// Nor does a refill refuse the call when the limit was lowered below
	// what is spent.
	lowered, other := request, f.limit(1, long)
	lowered.Limit = 4
	decisions := f.take(leasing(lowered, 0, 4), other)
	if !decisions[0].Granted || decisions[0].Charged() || !decisions[1].Charged() {
		f.Errorf("a refill above a lowered limit: %+v, want it granted with nothing, and the other request charged", decisions)
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

func leaseRefused(f *fixture) {
	free := f.limit(10, long)
	full := of(f.zoned("full", free), 1)
	f.granted(full)
	f.take(leasing(free, 1, 5), full)
	f.take(leasing(free, 0, 5), full)
	f.remaining(free, 10)
}

// Units that may be spent until a moment to come count from then.
func spanHoldsLonger(f *fixture) {
	tests := []struct {
		name        string
		need, lease int64
		span        time.Duration
		held        time.Duration
	}{
		{"with a lease", 1, 9, time.Second, long + time.Second},
		{"refill", 0, 10, 300 * time.Millisecond, long + 300*time.Millisecond},
		{"without a lease", 10, 0, time.Second, long},
		{"with a lease that does not fit", 10, 5, time.Second, long},
	}
	for _, test := range tests {
		request := f.limit(10, long)
		first := leasing(request, test.need, test.lease)
		first.LeaseSpan = test.span
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

	// What is charged after it, and ends sooner, is held no longer for that.
	for _, limit := range []int64{3, 300} {
		request := f.limit(limit, long)
		first := leasing(request, 0, 1)
		first.LeaseSpan = store.MaxLeaseSpan
		a, b := f.granted(first), f.granted(need(request, limit-1))
		if ahead := time.Duration(a.Stamp-b.Stamp) * time.Microsecond; limit <= 64 && (ahead > store.MaxLeaseSpan || ahead < store.MaxLeaseSpan-patience) {
			f.Errorf("a lease is stamped %v after what was charged next, want %v at most, and little less", ahead, store.MaxLeaseSpan)
		}
		if a.Reset > long+store.MaxLeaseSpan || b.Stamp > a.Stamp {
			f.Errorf("%+v after %+v", b, a)
		}
	}
}
