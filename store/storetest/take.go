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
	ask := f.limit(5, long)
	if a := f.take(lookAt(ask))[0]; a.Remaining != 5 || a.Reset != 0 {
		f.Fatalf("fresh key: %+v, want 5 remaining and no reset", a)
	}
	for want := int64(4); want >= 0; want-- {
		a := f.granted(ask)
		if a.Remaining != want || a.Reset <= 0 || a.Reset > long || a.Extra != 0 {
			f.Fatalf("%+v, want %d remaining and a reset within %v", a, want, long)
		}
	}
	for range 3 {
		a := f.refused(ask)
		if a.Remaining != 0 || a.Reset <= 0 || a.Reset > long || a.RetryAfter > a.Reset {
			f.Fatalf("%+v, want none remaining, and a retry at the latest at the reset", a)
		}
	}
}

func exactUnderConcurrency(f *fixture) {
	for _, limit := range []int64{1, 64, 100} {
		ask := f.limit(limit, long)
		granted := f.together(64, 4, func(int) int64 {
			if f.one(ask).Granted {
				return 1
			}
			return 0
		})
		if granted != limit {
			f.Errorf("%d of %d units granted", granted, limit)
		}
		f.remaining(ask, 0)
	}
}

func unitsAboveOne(f *fixture) {
	ask := f.limit(10, long)
	f.granted(need(ask, 7))
	f.refused(need(ask, 4))
	f.granted(need(ask, 3))
	f.refused(need(ask, 1))

	ask = f.limit(1000, long)
	granted := f.together(32, 20, func(i int) int64 {
		units := int64(i%3 + 1)
		if f.one(need(ask, units)).Granted {
			return units
		}
		return 0
	})
	if granted != 1000 {
		f.Errorf("%d units granted, want 1000", granted)
	}
}

func limitOfOne(f *fixture) {
	ask := f.limit(1, long)
	f.granted(ask)
	f.refused(ask)
	f.refused(ask)
}

func largestLimit(f *fixture) {
	ask := f.limit(store.MaxEvents, long)
	if a := f.granted(ask); a.Remaining != store.MaxEvents-1 {
		f.Fatalf("%+v, want one less than %d remaining", a, int64(store.MaxEvents))
	}
	f.refused(need(ask, store.MaxEvents))
	a := f.granted(need(ask, store.MaxEvents-2))
	f.remaining(ask, 1)
	f.giveBack(grant(ask, a, store.MaxEvents-3))
	f.remaining(ask, store.MaxEvents-2)
	if a := f.granted(extra(ask, 1, store.MaxEvents)); a.Extra != store.MaxEvents-3 {
		f.Fatalf("%+v, want %d extra", a, int64(store.MaxEvents-3))
	}
	f.refused(ask)
}

func limitOfNone(f *fixture) {
	ask := f.limit(0, long)
	if a := f.refused(ask); a.RetryAfter != long || a.Remaining != 0 || a.Reset != 0 {
		f.Errorf("%+v, want a retry after the window", a)
	}
	if a := f.take(extra(ask, 0, 5))[0]; a.Extra != 0 || a.Charged() {
		f.Errorf("extra of a limit of 0: %+v, want none", a)
	}
}

func needAboveLimit(f *fixture) {
	ask := f.limit(10, long)
	if a := f.refused(need(ask, 11)); a.RetryAfter != long || a.Remaining != 10 {
		f.Errorf("fresh key: %+v, want 10 remaining and a retry after the window", a)
	}
	f.granted(ask)
	if a := f.refused(need(ask, 11)); a.RetryAfter != long || a.Remaining != 9 {
		f.Errorf("used key: %+v, want 9 remaining and a retry after the window", a)
	}
}

func limitChanges(f *fixture) {
	ask := f.limit(10, long)
	f.granted(need(ask, 6))
	if a := f.refused(of(ask, 4)); a.Remaining != 0 {
		f.Errorf("lowered: %+v, want none remaining", a)
	}
	f.refused(of(ask, 6))
	f.refused(of(need(ask, 15), 20))
	if a := f.granted(of(need(ask, 13), 20)); a.Remaining != 1 {
		f.Errorf("raised: %+v, want 1 remaining", a)
	}
	f.refused(ask)
}

// A limit that was lowered to one unit has room only when both units are
// gone, not when the first one is.
func limitLoweredWaits(f *fixture) {
	const apart = 20 * time.Millisecond
	ask := f.limit(2, long)
	f.granted(ask)
	time.Sleep(apart)
	second := time.Now()
	f.granted(ask)

	first := f.refused(ask).RetryAfter
	if first > long-apart+slack {
		f.Errorf("retry after %v, want what is left of the first unit's %v", first, long)
	}
	both := f.refused(of(ask, 1)).RetryAfter
	if least := long - time.Since(second) - slack; both < least {
		f.Errorf("lowered: retry after %v, want at least %v", both, least)
	}
}

func allOrNothing(f *fixture) {
	free := f.limit(10, long)
	full := f.zoned("full", free)
	full.Limit = 1
	f.granted(full)

	for _, asks := range [][]store.Ask{{free, full}, {full, free}, {full, extra(free, 1, 5)}} {
		answers := f.take(asks...)
		for i, a := range answers {
			if a.Charged() || a.Extra != 0 {
				f.Errorf("%+v: charged in a refused call", a)
			}
			fits, remaining := true, int64(10)
			if asks[i].Key == full.Key {
				fits, remaining = false, 0
			}
			if a.Granted != fits || a.Remaining != remaining {
				f.Errorf("Take(%+v) = %+v, want granted %v with %d remaining", asks[i], a, fits, remaining)
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
	var asks []store.Ask
	for range 10 {
		asks = append(asks, f.limit(3, long))
	}
	f.granted(need(asks[7], 3))
	for i, a := range f.take(asks...) {
		if a.Charged() || a.Granted != (i != 7) {
			f.Errorf("ask %d: %+v", i, a)
		}
	}
	for i, ask := range asks {
		want := int64(3)
		if i == 7 {
			want = 0
		}
		for deadline := time.Now().Add(patience); f.take(lookAt(ask))[0].Remaining != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				f.remaining(ask, want)
			}
		}
	}
}

func allOrNothingUnderConcurrency(f *fixture) {
	a := f.limit(50, long)
	b := of(f.zoned("b", a), 30)
	granted := f.together(64, 5, func(i int) int64 {
		asks := []store.Ask{a, b}
		if i%2 == 0 {
			asks = []store.Ask{b, a}
		}
		answers := make([]store.Answer, 2)
		if err := f.store.Take(patience, asks, answers); err != nil {
			f.Errorf("Take: %v", err)
		}
		if answers[0].Charged() != answers[1].Charged() {
			f.Errorf("one of two charged: %+v", answers)
		}
		if answers[0].Charged() {
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

func advisory(f *fixture) {
	firm := f.limit(2, long)
	weak := of(f.zoned("weak", firm), 1)
	weak.Advisory = true
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
		answers := f.take(firm, weak)
		x, y := answers[0], answers[1]
		if x.Granted != test.firm || y.Granted != test.weak ||
			x.Remaining != test.firmRemaining || y.Remaining != test.weakRemaining ||
			x.Charged() != test.firmWasCharged || y.Charged() != test.weakWasCharged {
			f.Errorf("call %d: %+v, want %+v", i, answers, test)
		}
	}

	// A call that another ask refuses does not charge an advisory one.
	fresh := f.zoned("fresh", firm)
	fresh.Advisory = true
	if a := f.take(firm, fresh)[1]; !a.Granted || a.Charged() || a.Remaining != 2 {
		f.Errorf("advisory in a refused call: %+v, want it granted and not charged", a)
	}
	// One that fits in part is not charged in part.
	part := need(f.zoned("part", of(weak, 3)), 2)
	if answers := f.take(part, fresh); !answers[0].Charged() || !answers[1].Charged() {
		f.Errorf("advisory: %+v, want both charged", answers)
	}
	if answers := f.take(part, fresh); answers[0].Granted || answers[0].Remaining != 1 || !answers[1].Charged() {
		f.Errorf("advisory: %+v, want the first one refused with 1 remaining", answers)
	}
	f.remaining(part, 1)
	fresh = f.zoned("fresher", fresh)

	// A call of nothing but advisory asks is granted.
	answers := f.take(weak, fresh)
	if answers[0].Granted || !answers[1].Charged() || answers[1].Remaining != 1 {
		f.Errorf("all advisory: %+v, want the second one charged", answers)
	}
}

func noAsks(f *fixture) {
	f.take()
	f.giveBack()
}

// noTime: a call that cannot wait is decided without asking anybody, or fails as
// one that was certainly not executed.
func noTime(f *fixture) {
	a := f.limit(3, long)
	answers := make([]store.Answer, 1)
	err := f.store.Take(0, []store.Ask{a}, answers)
	if err == nil {
		return
	}
	var e *store.Error
	if !errors.As(err, &e) || e.Kind != store.KindBudget || !e.Unexecuted || e.Late != nil {
		f.Fatalf("Take without time to wait: %+v, want a decision, or an error of kind %s that was not executed", err, store.KindBudget)
	}
	f.remaining(a, 3)
}

func senselessAsks(f *fixture) {
	good := f.limit(5, long)
	bad := func(change func(a *store.Ask)) store.Ask {
		ask := f.zoned("bad", good)
		change(&ask)
		return ask
	}
	tests := []struct {
		name string
		ask  store.Ask
	}{
		{"65 bytes of client", bad(func(a *store.Ask) { a.Key.Client = strings.Repeat("x", store.MaxClientBytes+1) })},
		{"asked twice", good},
		{"window too short", bad(func(a *store.Ask) { a.Window = store.MinWindow - time.Microsecond })},
		{"window too long", bad(func(a *store.Ask) { a.Window = store.MaxWindow + time.Microsecond })},
		{"window of part of a microsecond", bad(func(a *store.Ask) { a.Window += time.Nanosecond })},
		{"negative limit", bad(func(a *store.Ask) { a.Limit = -1 })},
		{"limit too large", bad(func(a *store.Ask) { a.Limit = store.MaxEvents + 1 })},
		{"negative need", bad(func(a *store.Ask) { a.Need = -1 })},
		{"negative extra", bad(func(a *store.Ask) { a.Extra = -1 })},
		{"too far ahead", bad(func(a *store.Ask) { a.Ahead = store.MaxAhead + 1 })},
		{"too many owed", bad(func(a *store.Ask) {
			for range store.MaxOwed + 1 {
				*a = owing(*a, time.Second, 1)
			}
		})},
		{"owed since a time to come", bad(func(a *store.Ask) { *a = owing(*a, -time.Microsecond, 1) })},
		{"owed since part of a microsecond", bad(func(a *store.Ask) { *a = owing(*a, time.Nanosecond, 1) })},
		{"no units owed", bad(func(a *store.Ask) { *a = owing(*a, time.Second, 0) })},
		{"too many units owed", bad(func(a *store.Ask) { *a = owing(*a, time.Second, store.MaxEvents+1) })},
	}
	for _, test := range tests {
		err := f.store.Take(patience, []store.Ask{good, test.ask}, make([]store.Answer, 2))
		if err == nil {
			f.Errorf("%s: no error", test.name)
		}
		if _, failed := errors.AsType[*store.Error](err); failed {
			f.Errorf("%s: %v is a failure of the store, want a plain error", test.name, err)
		}
	}
	if err := f.store.Take(patience, []store.Ask{good}, nil); err == nil {
		f.Errorf("no room for answers: no error")
	}
	f.remaining(good, 5)
}

func windowsDiffer(f *fixture) {
	ask := f.limit(1, long)
	f.granted(ask)
	for _, window := range []time.Duration{long + time.Microsecond, long + time.Second, store.MaxWindow} {
		other := ask
		other.Window = window
		f.granted(other)
		f.refused(other)
	}
	f.refused(ask)

	// Two windows of one key in one call.
	a := f.limit(5, long)
	b := a
	b.Window = 2 * long
	f.take(a, b)
	f.take(b)
	f.remaining(a, 4)
	f.remaining(b, 3)
}

func zonesDiffer(f *fixture) {
	ask := f.limit(1, long)
	f.granted(ask)
	for _, zone := range []string{"a", "b", "a-b", "a.b_c"} {
		f.granted(f.zoned(zone, ask))
		f.refused(f.zoned(zone, ask))
	}
	// Where the zone ends and the client begins is no secret of a separator.
	one, two := ask, ask
	one.Key = store.Key{Zone: f.id + "-x", Client: "-y"}
	two.Key = store.Key{Zone: f.id + "-x-", Client: "y"}
	f.granted(one)
	f.granted(two)
}

func anyClient(f *fixture) {
	clients := []string{
		"", "\x00", "\x00\x00", "\xff", "\r\n", "a\r\n$1\r\nb", "{a}", "a:b", "a b", "*", "'\"\\", "ÿ", "\xc3\x28", "0", "00",
		strings.Repeat("\x00", store.MaxClientBytes),
		strings.Repeat("\x00", store.MaxClientBytes-1),
		strings.Repeat("\xff", store.MaxClientBytes),
		strings.Repeat("x", store.MaxClientBytes-1) + "y",
		strings.Repeat("x", store.MaxClientBytes),
	}
	ask := f.zoned("clients", f.limit(1, long))
	for round := range 2 {
		for _, client := range clients {
			ask.Key.Client = client
			if a := f.take(ask)[0]; a.Granted != (round == 0) {
				f.Errorf("round %d: client %q: %+v", round, client, a)
			}
		}
	}
}
