package storetest

import (
	"errors"
	"strings"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func name(f *fixture) {
	if s := f.store.String(); s == "" || strings.ContainsAny(s, "\r\n") {
		f.Errorf("a store must have a name of one line, got %q", s)
	}
}

func countsDown(f *fixture) {
	request := f.limit(5, long)
	if a := f.take(lookAt(request))[0]; a.Remaining != 5 || a.Reset != 0 {
		f.Fatalf("fresh key: %+v, want 5 remaining and no reset", a)
	}
	for want := int64(4); want >= 0; want-- {
		a := f.granted(request)
		if a.Remaining != want || a.Reset <= 0 || a.Reset > long || a.Lease != 0 {
			f.Fatalf("%+v, want %d remaining and a reset within %v", a, want, long)
		}
	}
	for range 3 {
		a := f.refused(request)
		if a.Remaining != 0 || a.Reset <= 0 || a.Reset > long || a.RetryAfter > a.Reset {
			f.Fatalf("%+v, want none remaining, and a retry at the latest at the reset", a)
		}
	}
}

func exactUnderConcurrency(f *fixture) {
	for _, limit := range []int64{1, 64, 100} {
		request := f.limit(limit, long)
		granted := f.together(64, 4, func(int) int64 {
			if f.one(request).Granted {
				return 1
			}
			return 0
		})
		if granted != limit {
			f.Errorf("%d of %d units granted", granted, limit)
		}
		f.remaining(request, 0)
	}
}

func unitsAboveOne(f *fixture) {
	request := f.limit(10, long)
	f.granted(need(request, 7))
	f.refused(need(request, 4))
	f.granted(need(request, 3))
	f.refused(need(request, 1))

	request = f.limit(1000, long)
	granted := f.together(32, 20, func(i int) int64 {
		units := int64(i%3 + 1)
		if f.one(need(request, units)).Granted {
			return units
		}
		return 0
	})
	if granted != 1000 {
		f.Errorf("%d units granted, want 1000", granted)
	}
}

func limitOfOne(f *fixture) {
	request := f.limit(1, long)
	f.granted(request)
	f.refused(request)
	f.refused(request)
}

func largestLimit(f *fixture) {
	request := f.limit(store.MaxEvents, long)
	if a := f.granted(request); a.Remaining != store.MaxEvents-1 {
		f.Fatalf("%+v, want one less than %d remaining", a, int64(store.MaxEvents))
	}
	f.refused(need(request, store.MaxEvents))
	a := f.granted(need(request, store.MaxEvents-2))
	f.remaining(request, 1)
	f.refund(refundOf(request, a, store.MaxEvents-3))
	f.remaining(request, store.MaxEvents-2)
	if a := f.granted(leasing(request, 1, store.MaxEvents)); a.Lease != store.MaxEvents-3 {
		f.Fatalf("%+v, want a lease of %d", a, int64(store.MaxEvents-3))
	}
	f.refused(request)
}

func limitOfNone(f *fixture) {
	request := f.limit(0, long)
	if a := f.refused(request); a.RetryAfter != long || a.Remaining != 0 || a.Reset != 0 {
		f.Errorf("%+v, want a retry after the window", a)
	}
	if a := f.take(leasing(request, 0, 5))[0]; a.Lease != 0 || a.Charged() {
		f.Errorf("lease of a limit of 0: %+v, want none", a)
	}
}

func needAboveLimit(f *fixture) {
	request := f.limit(10, long)
	if a := f.refused(need(request, 11)); a.RetryAfter != long || a.Remaining != 10 {
		f.Errorf("fresh key: %+v, want 10 remaining and a retry after the window", a)
	}
	f.granted(request)
	if a := f.refused(need(request, 11)); a.RetryAfter != long || a.Remaining != 9 {
		f.Errorf("used key: %+v, want 9 remaining and a retry after the window", a)
	}
}

func limitChanges(f *fixture) {
	request := f.limit(10, long)
	f.granted(need(request, 6))
	if a := f.refused(of(request, 4)); a.Remaining != 0 {
		f.Errorf("lowered: %+v, want none remaining", a)
	}
	f.refused(of(request, 6))
	f.refused(of(need(request, 15), 20))
	if a := f.granted(of(need(request, 13), 20)); a.Remaining != 1 {
		f.Errorf("raised: %+v, want 1 remaining", a)
	}
	f.refused(request)
}

// A limit that was lowered to one unit has room only when both units are
// gone, not when the first one is.
func limitLoweredWaits(f *fixture) {
	const apart = 20 * time.Millisecond
	request := f.limit(2, long)
	f.granted(request)
	time.Sleep(apart)
	second := time.Now()
	f.granted(request)

	first := f.refused(request).RetryAfter
	if first > long-apart+slack {
		f.Errorf("retry after %v, want what is left of the first unit's %v", first, long)
	}
	both := f.refused(of(request, 1)).RetryAfter
	if least := long - time.Since(second) - slack; both < least {
		f.Errorf("lowered: retry after %v, want at least %v", both, least)
	}
}

func allOrNothing(f *fixture) {
	free := f.limit(10, long)
	full := f.zoned("full", free)
	full.Limit = 1
	f.granted(full)

	for _, requests := range [][]store.Request{{free, full}, {full, free}, {full, leasing(free, 1, 5)}} {
		decisions := f.take(requests...)
		for i, a := range decisions {
			if a.Charged() || a.Lease != 0 {
				f.Errorf("%+v: charged in a refused call", a)
			}
			fits, remaining := true, int64(10)
			if requests[i].Key == full.Key {
				fits, remaining = false, 0
			}
			if a.Granted != fits || a.Remaining != remaining {
				f.Errorf("Take(%+v) = %+v, want granted %v with %d remaining", requests[i], a, fits, remaining)
			}
		}
	}
	f.remaining(free, 10)

	third := f.zoned("third", free)
	for _, a := range f.take(free, third) {
		if !a.Granted || !a.Charged() || a.Remaining != 9 {
			f.Errorf("%+v, want it charged, and 9 remaining", a)
		}
	}
}

// Keys of different clients may live on different servers; then what one of
// them granted comes back a little later.
func allOrNothingOverClients(f *fixture) {
	var requests []store.Request
	for range 10 {
		requests = append(requests, f.limit(3, long))
	}
	f.granted(need(requests[7], 3))
	for i, a := range f.take(requests...) {
		if a.Charged() || a.Granted != (i != 7) {
			f.Errorf("request %d: %+v", i, a)
		}
	}
	for i, request := range requests {
		want := int64(3)
		if i == 7 {
			want = 0
		}
		for deadline := time.Now().Add(patience); f.take(lookAt(request))[0].Remaining != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				f.remaining(request, want)
			}
		}
	}
}

func allOrNothingUnderConcurrency(f *fixture) {
	a := f.limit(50, long)
	b := of(f.zoned("b", a), 30)
	granted := f.together(64, 5, func(i int) int64 {
		requests := []store.Request{a, b}
		if i%2 == 0 {
			requests = []store.Request{b, a}
		}
		decisions := make([]store.Decision, 2)
		if err := f.store.Take(time.Now(), patience, requests, decisions); err != nil {
			f.Errorf("Take: %v", err)
		}
		if decisions[0].Charged() != decisions[1].Charged() {
			f.Errorf("one of two charged: %+v", decisions)
		}
		if decisions[0].Charged() {
			return 1
		}
		return 0
	})
	if granted != 30 {
		f.Errorf("%d granted, want 30", granted)
	}
	f.remaining(a, 20)
	f.remaining(b, 0)
}

func shadow(f *fixture) {
	firm := f.limit(2, long)
	weak := of(f.zoned("weak", firm), 1)
	weak.Shadow = true
	tests := []struct {
		firm, weak                     bool  // granted
		firmRemaining, weakRemaining   int64 // after the call
		firmWasCharged, weakWasCharged bool
	}{
		{true, true, 1, 0, true, true},
		{true, false, 0, 0, true, false},
		{false, false, 0, 0, false, false},
	}
	for i, test := range tests {
		decisions := f.take(firm, weak)
		x, y := decisions[0], decisions[1]
		if x.Granted != test.firm || y.Granted != test.weak ||
			x.Remaining != test.firmRemaining || y.Remaining != test.weakRemaining ||
			x.Charged() != test.firmWasCharged || y.Charged() != test.weakWasCharged {
			f.Errorf("call %d: %+v, want %+v", i, decisions, test)
		}
	}

	// A call that another request refuses does not charge a shadow one.
	fresh := f.zoned("fresh", firm)
	fresh.Shadow = true
	if a := f.take(firm, fresh)[1]; !a.Granted || a.Charged() || a.Remaining != 2 {
		f.Errorf("shadow in a refused call: %+v, want it granted and not charged", a)
	}
	// One that fits in part is not charged in part.
	part := need(f.zoned("part", of(weak, 3)), 2)
	if decisions := f.take(part, fresh); !decisions[0].Charged() || !decisions[1].Charged() {
		f.Errorf("shadow: %+v, want both charged", decisions)
	}
	if decisions := f.take(part, fresh); decisions[0].Granted || decisions[0].Remaining != 1 || !decisions[1].Charged() {
		f.Errorf("shadow: %+v, want the first one refused with 1 remaining", decisions)
	}
	f.remaining(part, 1)
	fresh = f.zoned("fresher", fresh)

	// A call of nothing but shadow requests is granted.
	decisions := f.take(weak, fresh)
	if decisions[0].Granted || !decisions[1].Charged() || decisions[1].Remaining != 1 {
		f.Errorf("all shadow: %+v, want the second one charged", decisions)
	}
}

func noRequests(f *fixture) {
	f.take()
	f.refund()
}

// noTime: a call that cannot wait is decided without asking anybody, or fails as
// one that was certainly not executed.
func noTime(f *fixture) {
	a := f.limit(3, long)
	decisions := make([]store.Decision, 1)
	err := f.store.Take(time.Now(), 0, []store.Request{a}, decisions)
	if err == nil {
		return
	}
	var e *store.Error
	if !errors.As(err, &e) || e.Kind != store.KindBudget || !e.Unexecuted || e.Pending != nil {
		f.Fatalf("Take without time to wait: %+v, want a decision, or an error of kind %s that was not executed", err, store.KindBudget)
	}
	f.remaining(a, 3)
}

func senselessRequests(f *fixture) {
	good := f.limit(5, long)
	bad := func(change func(a *store.Request)) store.Request {
		request := f.zoned("bad", good)
		change(&request)
		return request
	}
	tests := []struct {
		name    string
		request store.Request
	}{
		{"65 bytes of client", bad(func(a *store.Request) { a.Key.Client = strings.Repeat("x", store.MaxClientBytes+1) })},
		{"asked twice", good},
		{"window too short", bad(func(a *store.Request) { a.Window = store.MinWindow - time.Microsecond })},
		{"window too long", bad(func(a *store.Request) { a.Window = store.MaxWindow + time.Microsecond })},
		{"window of part of a microsecond", bad(func(a *store.Request) { a.Window += time.Nanosecond })},
		{"negative limit", bad(func(a *store.Request) { a.Limit = -1 })},
		{"limit too large", bad(func(a *store.Request) { a.Limit = store.MaxEvents + 1 })},
		{"negative need", bad(func(a *store.Request) { a.Units = -1 })},
		{"negative lease", bad(func(a *store.Request) { a.Lease = -1 })},
		{"too far ahead", bad(func(a *store.Request) { a.LeaseSpan = store.MaxLeaseSpan + 1 })},
		{"negative ban", bad(func(a *store.Request) { a.Block = -time.Microsecond })},
		{"ban too long", bad(func(a *store.Request) { a.Block = store.MaxWindow + time.Microsecond })},
		{"ban of part of a microsecond", bad(func(a *store.Request) { a.Block = time.Nanosecond })},
		{"too many unreported", bad(func(a *store.Request) {
			for range store.MaxUnreported + 1 {
				*a = reporting(*a, time.Second, 1)
			}
		})},
		{"reported since a time to come", bad(func(a *store.Request) { *a = reporting(*a, -time.Microsecond, 1) })},
		{"reported since part of a microsecond", bad(func(a *store.Request) { *a = reporting(*a, time.Nanosecond, 1) })},
		{"no units unreported", bad(func(a *store.Request) { *a = reporting(*a, time.Second, 0) })},
		{"too many units unreported", bad(func(a *store.Request) { *a = reporting(*a, time.Second, store.MaxEvents+1) })},
	}
	for _, test := range tests {
		err := f.store.Take(time.Now(), patience, []store.Request{good, test.request}, make([]store.Decision, 2))
		if err == nil {
			f.Errorf("%s: no error", test.name)
		}
		if _, failed := errors.AsType[*store.Error](err); failed {
			f.Errorf("%s: %v is a failure of the store, want a plain error", test.name, err)
		}
	}
	if err := f.store.Take(time.Now(), patience, []store.Request{good}, nil); err == nil {
		f.Errorf("no room for decisions: no error")
	}
	f.remaining(good, 5)
}
