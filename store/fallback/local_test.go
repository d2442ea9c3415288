package fallback_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// client asks for one unit of five an hour, of a client with a number.
func client(n int) store.Request {
	return store.Request{
		Key:   store.Key{Zone: "zone", Client: fmt.Sprint("client ", n), Window: time.Hour},
		Limit: 5, Units: 1,
	}
}

// take decides locally; what is charged is to be reported if it is unreported.
func take(s *fallback.Local, requests []store.Request, decisions []store.Decision, instances int, unreported bool) error {
	fates := make([]store.Fate, len(requests))
	for i := range fates {
		if unreported {
			fates[i] = store.FateUnexecuted
		}
	}
	return s.Take(requests, decisions, instances, fates)
}

// end ends the report of a call that the store has heard, or not.
func end(s *fallback.Local, requests []store.Request, unheard bool) {
	if unheard {
		s.EndReport(requests, nil, &store.Error{Kind: store.KindAway, Unexecuted: true})
		return
	}
	s.EndReport(requests, make([]store.Decision, len(requests)), nil)
}

// alone has a Local decide, which has to report what it charges.
func alone(t testing.TB, s *fallback.Local, instances int, requests ...store.Request) []store.Decision {
	decisions := make([]store.Decision, len(requests))
	if err := take(s, requests, decisions, instances, true); err != nil {
		t.Errorf("Take: %v", err)
	}
	return decisions
}

// toReport begins a report, and returns what the key of a request has to report.
func toReport(s *fallback.Local, request store.Request) []store.Spent {
	requests := []store.Request{request}
	s.BeginReport(requests)
	return requests[0].Unreported
}

func total(spent []store.Spent) (units int64) {
	for _, s := range spent {
		units += s.Units
	}
	return units
}

// charged is what the store says of a call that it granted.
var charged = []store.Decision{{Granted: true, Charge: store.Charge{Stamp: 1, Mark: 1}}}

func observe(s *fallback.Local, request store.Request, units int64) {
	request.Units = units
	s.Observe([]store.Request{request}, charged)
}

func TestLocalShare(t *testing.T) {
	tests := []struct {
		limit     int64
		instances int
		want      int64
	}{
		{10, 1, 10}, {10, 3, 3}, {9, 3, 3}, {2, 5, 1}, {1, 1, 1}, {0, 3, 0}, {7, 0, 7}, {7, -1, 7},
	}
	for _, test := range tests {
		s := fallback.NewLocal()
		request := client(1)
		request.Limit = test.limit
		for i := range test.want {
			a := alone(t, s, test.instances, request)[0]
			if !a.Granted || a.Remaining != test.want-1-i || a.Reset <= 0 {
				t.Errorf("%d of %d for %d instances: %+v, want a share of %d", i+1, test.limit, test.instances, a, test.want)
			}
		}
		if a := alone(t, s, test.instances, request)[0]; a.Granted || a.RetryAfter <= 0 || a.RetryAfter > time.Hour {
			t.Errorf("limit %d for %d instances: %+v beyond %d", test.limit, test.instances, a, test.want)
		}
		if request.Limit != test.limit {
			t.Errorf("the request was changed to a limit of %d", request.Limit)
		}
	}
}

func TestLocalTake(t *testing.T) {
	s := fallback.NewLocal()
	five, one, weak := client(1), client(2), client(3)
	one.Limit, weak.Limit = 1, 1
	weak.Shadow = true
	alone(t, s, 1, one)

	// All or nothing, and nothing that is refused is to be reported.
	decisions := alone(t, s, 1, five, one, weak)
	if decisions[0].Charged() || !decisions[0].Granted || decisions[1].Granted || decisions[2].Charged() {
		t.Errorf("%+v, want the second one to refuse the call", decisions)
	}
	if toReport(s, five) != nil || toReport(s, weak) != nil {
		t.Errorf("a refused call is to be reported")
	}
	// A shadow request is charged, and to be reported, if it fits.
	for range 2 {
		alone(t, s, 1, five, weak)
	}
	if five, weak := total(toReport(s, five)), total(toReport(s, weak)); five != 2 || weak != 1 {
		t.Errorf("%d and %d units unreported, want 2 and 1", five, weak)
	}

	// No lease units, and nothing reported here: it has been counted.
	more := client(4)
	more.Lease, more.LeaseSpan = 3, time.Second
	more.Unreported = []store.Spent{{Units: 3}}
	if a := alone(t, s, 1, more)[0]; a.Lease != 0 || a.Remaining != 4 {
		t.Errorf("%+v, want one unit charged", a)
	}
	more.Units, more.Unreported = 0, nil
	if a := alone(t, s, 1, more)[0]; !a.Granted || a.Charged() {
		t.Errorf("%+v, want a refill to be granted nothing", a)
	}

	senseless := client(5)
	senseless.Window = 0
	if err := take(s, []store.Request{senseless}, make([]store.Decision, 1), 1, true); err == nil {
		t.Errorf("no error for a window of 0")
	}
}

// Who has had a share of the limit from the store is refused at once.
func TestLocalIsWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fallback.NewLocal()
		request := client(1)
		request.Limit = 12
		observe(s, request, 2)
		time.Sleep(time.Minute)
		observe(s, request, 1)

		// None of this was spent.
		observe(s, request, 0)
		s.Observe([]store.Request{request}, make([]store.Decision, 1))
		more := request
		more.Units, more.Lease = 0, 5
		s.Observe([]store.Request{more}, []store.Decision{{Granted: true, Lease: 5, Charge: store.Charge{Stamp: 1, Mark: 1}}})

		if a := alone(t, s, 4, request)[0]; a.Granted || a.RetryAfter != 59*time.Minute {
			t.Errorf("%+v, want it refused until the first units expire", a)
		}
		if a := alone(t, s, 3, request)[0]; !a.Granted || a.Remaining != 0 {
			t.Errorf("%+v, want the fourth unit of four", a)
		}
		// What the store granted is not reported to it, and may exceed the share.
		observe(s, request, 8)
		if n := total(toReport(s, request)); n != 1 {
			t.Errorf("%d units unreported, want 1", n)
		}
		time.Sleep(59 * time.Minute)
		if a := alone(t, s, 1, request)[0]; !a.Granted || a.Remaining != 1 {
			t.Errorf("%+v, want 10 of 12 used", a)
		}
		time.Sleep(time.Hour)
		if a := alone(t, s, 4, request)[0]; !a.Granted || a.Remaining != 2 {
			t.Errorf("%+v, want a share of 3", a)
		}
		// Also what no limit would allow counts until it expires.
		observe(s, request, 12)
		time.Sleep(30 * time.Minute)
		observe(s, request, 12)
		time.Sleep(30 * time.Minute)
		if a := alone(t, s, 1, request)[0]; a.Granted || a.RetryAfter != 30*time.Minute {
			t.Errorf("%+v, want it refused for half an hour", a)
		}
	})
}

func TestLocalReportsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fallback.NewLocal()
		request, other := client(1), client(2)
		if s.BeginReport([]store.Request{request}) {
			t.Errorf("began a report of a key with nothing to report")
		}
		use := func(units int64) {
			request := request
			request.Units = units
			alone(t, s, 1, request)
		}
		use(2)
		time.Sleep(10 * time.Minute)
		use(1)
		time.Sleep(time.Minute)
		if n := s.Unreported(); n != 1 {
			t.Errorf("%d keys have reports, want 1", n)
		}

		// want begins a report, and wants these units with these ages, which may be
		// a microsecond short of the true ones but not above them.
		var requests []store.Request
		want := func(want ...store.Spent) {
			t.Helper()
			requests = []store.Request{other, request}
			if s.BeginReport(requests) != (len(want) > 0) || requests[0].Unreported != nil || len(requests[1].Unreported) != len(want) {
				t.Fatalf("%+v unreported, want %+v", requests[1].Unreported, want)
			}
			for i, got := range requests[1].Unreported {
				if got.Units != want[i].Units || got.Age > want[i].Age || got.Age < want[i].Age-time.Microsecond {
					t.Errorf("%+v unreported, want %+v", requests[1].Unreported, want)
				}
			}
			if err := store.Validate(requests, make([]store.Decision, 2)); err != nil {
				t.Error(err)
			}
		}
		endReport := func(unexecuted bool) {
			t.Helper()
			end(s, requests, unexecuted)
			if requests[1].Unreported != nil {
				t.Errorf("%+v unreported after it was reported", requests[1].Unreported)
			}
			end(s, requests, true) // is nobody's any more
		}
		want(store.Spent{Age: 11 * time.Minute, Units: 2}, store.Spent{Age: time.Minute, Units: 1})

		// One call reports at a time, and what is spent meanwhile waits for
		// the next.
		use(1)
		if again := []store.Request{request}; s.BeginReport(again) || again[0].Unreported != nil {
			t.Errorf("%+v reported twice", again[0].Unreported)
		}
		time.Sleep(4 * time.Minute)
		endReport(true)
		time.Sleep(time.Minute)
		want(store.Spent{Age: 16 * time.Minute, Units: 2}, store.Spent{Age: 5 * time.Minute, Units: 2})
		use(1)
		endReport(false)
		want(store.Spent{Units: 1})
		endReport(false)
		want()
		if n := s.Unreported(); n != 0 {
			t.Errorf("%d keys have reports, want none", n)
		}

		// If the store may have executed the call, nothing is reported.
		if err := take(s, []store.Request{other}, make([]store.Decision, 1), 1, false); err != nil {
			t.Fatal(err)
		}
		want()
	})
}

// What the store would not count any more is forgotten.
func TestLocalForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fallback.NewLocal()
		request := client(1)
		alone(t, s, 1, request)
		time.Sleep(30 * time.Minute)
		alone(t, s, 1, request)
		time.Sleep(30*time.Minute - time.Microsecond)
		requests := []store.Request{request}
		if s.BeginReport(requests); total(requests[0].Unreported) != 2 {
			t.Errorf("%+v unreported, want 2 units", requests[0].Unreported)
		}
		end(s, requests, true)
		time.Sleep(time.Microsecond)
		if s.BeginReport(requests); total(requests[0].Unreported) != 1 {
			t.Errorf("%+v unreported, want 1 unit", requests[0].Unreported)
		}
		end(s, requests, true)
		time.Sleep(30 * time.Minute)
		if s.BeginReport(requests) || s.Unreported() != 0 {
			t.Errorf("%+v unreported by %d keys, want nothing", requests[0].Unreported, s.Unreported())
		}
	})
}

// However much is unreported, it is reported in few entries, in which no unit looks
// older than it is, or much younger.
func TestLocalJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(200) {
			rng := rand.New(rand.NewPCG(seed, 1))
			s := fallback.NewLocal()
			request := client(1)
			request.Limit = 1_000_000
			var spent []time.Time
			mean := time.Hour / time.Duration(1+rng.IntN(300))
			fails := seed%2 == 1
			for range 1 + rng.IntN(400) {
				time.Sleep(time.Duration(rng.Int64N(2 * int64(mean))))
				alone(t, s, 1, request)
				spent = append(spent, time.Now())
				if fails && rng.IntN(10) == 0 {
					requests := []store.Request{request}
					s.BeginReport(requests)
					for range 1 + rng.IntN(5) {
						alone(t, s, 1, request)
						spent = append(spent, time.Now())
						time.Sleep(time.Duration(rng.Int64N(2 * int64(mean))))
					}
					end(s, requests, true)
				}
			}
			requests := []store.Request{request}
			if s.BeginReport(requests); len(requests[0].Unreported) > store.MaxUnreported {
				t.Fatalf("seed %d: %d entries to report", seed, len(requests[0].Unreported))
			}
			// The k youngest units are reported at least as young, for any k.
			var ages []time.Duration
			for _, units := range requests[0].Unreported {
				for range units.Units {
					ages = append(ages, units.Age)
				}
			}
			slices.Sort(ages)
			slices.Reverse(spent)
			late := time.Duration(0)
			for i, at := range spent {
				age := time.Since(at)
				if age >= time.Hour {
					break
				}
				if i >= len(ages) || ages[i] > age {
					t.Fatalf("seed %d: unit %d of %v ago is not reported as such: %v", seed, i, age, requests[0].Unreported)
				}
				late = max(late, age-ages[i])
			}
			if !fails && late > time.Hour/15+time.Microsecond {
				t.Errorf("seed %d: a unit is reported %v too young", seed, late)
			}
		}
	})
}

func TestLocalRefund(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fallback.NewLocal()
		request := client(1)
		charge := func(unreported bool) store.Refund {
			var decisions [1]store.Decision
			if err := take(s, []store.Request{request}, decisions[:], 1, unreported); err != nil || !decisions[0].Charged() {
				t.Fatalf("%+v, %v", decisions, err)
			}
			return store.Refund{Key: request.Key, Charge: decisions[0].Charge, Units: 1}
		}
		back := func(refunds ...store.Refund) {
			s.Refund(refunds)
		}
		requests := []store.Request{request}
		want := func(units ...int64) {
			t.Helper()
			s.BeginReport(requests)
			var got []int64
			for _, spent := range requests[0].Unreported {
				got = append(got, spent.Units)
			}
			if !slices.Equal(got, units) {
				t.Errorf("%v unreported, want %v units", requests[0].Unreported, units)
			}
			end(s, requests, true)
		}

		first := charge(true)
		time.Sleep(10 * time.Minute)
		second := charge(true)
		charge(true)
		want(1, 2)
		back(second)
		want(1, 1)
		back(first)
		want(1)

		// What is not to be reported is refunded, and cancels nothing.
		unknown := charge(false)
		back(unknown)
		want(1)
		if a := alone(t, s, 1, request)[0]; a.Remaining != 3 {
			t.Errorf("%+v, want two of five used", a)
		}
		want(2)

		// What was reported cancels nothing either.
		time.Sleep(10 * time.Minute)
		reported := charge(true)
		s.BeginReport(requests)
		end(s, requests, false)
		time.Sleep(time.Minute)
		charge(true)
		back(reported)
		want(1)

		// What comes back while it is reported is not reported again.
		time.Sleep(10 * time.Minute)
		third := charge(true)
		s.BeginReport(requests)
		back(third)
		end(s, requests, true)
		want(1)
		time.Sleep(time.Hour)
		fourth := charge(true)
		s.BeginReport(requests)
		back(fourth)
		end(s, requests, true)
		if n := s.Unreported(); n != 0 {
			t.Errorf("%d keys have reports, want none", n)
		}
		fifth := charge(true)
		back(fifth)
		if n := s.Unreported(); n != 0 {
			t.Errorf("%d keys have reports, want none", n)
		}
	})
}

// Units for which there was no room are not reported, and their refund leaves
// those reported that were spent in the same microsecond.
func TestRefundOfWhatIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where no time passes
		const bound = 65_536
		s := fallback.NewLocal()
		for i := range bound {
			alone(t, s, 1, client(i))
		}
		request := client(bound)
		first := alone(t, s, 1, request)[0]
		reported := []store.Request{client(0)}
		s.BeginReport(reported)
		end(s, reported, false)
		alone(t, s, 1, request)
		s.Refund([]store.Refund{{Key: request.Key, Charge: first.Charge, Units: 1}})
		if n := total(toReport(s, request)); n != 1 {
			t.Errorf("%d units reported, want the one that stands", n)
		}
	})
}

func TestLocalFlush(t *testing.T) {
	const keys = 1000
	s := fallback.NewLocal()
	for i := range keys {
		alone(t, s, 3, client(i)) // their share is less than the limit of 5
	}
	reported := make(map[store.Key]int64)
	calls := 0
	report := func(requests []store.Request) {
		calls++
		if len(requests) == 0 || len(requests) > 64 {
			t.Errorf("%d keys in one call", len(requests))
		}
		for _, a := range requests {
			reported[a.Key] += total(a.Unreported)
			if a.Units != 0 || a.Lease != 0 || a.Limit != 5 || a.Window != time.Hour || len(a.Unreported) == 0 {
				t.Errorf("flushed by %+v", a)
			}
		}
	}

	// It stops at the first error. What was certainly not executed is unreported
	// still, what may have been executed is not.
	away := &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errors.New("away")}
	for i, err := range []error{away, &store.Error{Kind: store.KindTimeout, Err: errors.New("late")}, errors.New("senseless")} {
		s.Flush(func(requests []store.Request, decisions []store.Decision) error {
			report(requests)
			if err == error(away) {
				clear(reported)
				return fmt.Errorf("wrapped: %w", err)
			}
			return err
		})
		if calls != i+65 || s.Unreported() != keys-len(reported) { // those of the first were tried singly
			t.Errorf("%v: %d calls, %d keys have reports and %d were reported", err, calls, s.Unreported(), len(reported))
		}
	}

	calls = 0
	s.Flush(func(requests []store.Request, decisions []store.Decision) error {
		report(requests)
		if err := store.Validate(requests, decisions); err != nil {
			t.Error(err)
		}
		before := calls
		s.Flush(func([]store.Request, []store.Decision) error { // another one
			calls++
			return nil
		})
		if calls != before {
			t.Errorf("two flush at a time")
		}
		return nil
	})
	if s.Unreported() != 0 || len(reported) != keys || calls > (keys+63)/64 {
		t.Errorf("%d keys have reports, %d were reported in %d calls", s.Unreported(), len(reported), calls)
	}
	for key, units := range reported {
		if units != 1 {
			t.Errorf("%d units of %v reported, want 1", units, key)
		}
	}
	s.Flush(func([]store.Request, []store.Decision) error {
		t.Errorf("flushed nothing")
		return nil
	})
}

func TestLocalBounds(t *testing.T) {
	const bound = 65_536
	synctest.Test(t, func(t *testing.T) {
		s := fallback.NewLocal()
		for i := range bound + 1000 {
			alone(t, s, 1, client(i))
		}
		if n := s.Unreported(); n != bound {
			t.Errorf("%d keys have reports, want %d", n, bound)
		}
		// Newcomers are not reported, and others are still.
		newcomers, reported := 0, 0
		for i := range bound + 1000 {
			requests := []store.Request{client(i)}
			if s.BeginReport(requests) {
				reported++
				end(s, requests, true)
			} else if i >= bound {
				newcomers++
			}
		}
		if newcomers != 1000 || reported != bound {
			t.Errorf("%d newcomers not reported, %d reported in all", newcomers, reported)
		}
		// They take the place of what has expired.
		time.Sleep(time.Hour)
		for i := range 1000 {
			request := client(bound + i)
			alone(t, s, 1, request)
			if total(toReport(s, request)) != 1 {
				t.Fatalf("newcomer %d is not reported when others have expired", i)
			}
		}
		if n := s.Unreported(); n != bound {
			t.Errorf("%d keys have reports, want %d", n, bound)
		}
	})

	// The logs have a bound too: a key that was observed makes room for others.
	s := fallback.NewLocal()
	for i := range 2 * bound {
		observe(s, client(i), 1)
	}
	held := 0
	for i := range 2 * bound {
		request := client(i)
		request.Units = 0
		if alone(t, s, 1, request)[0].Remaining < 5 {
			held++
		}
	}
	if held != bound {
		t.Errorf("%d keys held, want %d", held, bound)
	}
}

// A client's name may be a small part of a large string, a header for
// example, which must not be held as a whole.
func TestLocalCopiesClients(t *testing.T) {
	s := fallback.NewLocal()
	request := client(1)
	alone(t, s, 1, request)
	s.Flush(func(requests []store.Request, _ []store.Decision) error {
		if requests[0].Key != request.Key || unsafe.StringData(requests[0].Key.Client) == unsafe.StringData(request.Key.Client) {
			t.Errorf("the caller's string is held")
		}
		return nil
	})
}

// Everything at once, for the race detector; and no unit that is not given
// back is lost or reported twice.
func TestLocalConcurrently(t *testing.T) {
	s := fallback.NewLocal()
	var group sync.WaitGroup
	var spent, reported atomic.Int64
	unexecuted := &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errors.New("away")}
	executed := func(requests []store.Request) {
		for _, a := range requests {
			if a.Key.Zone == "zone" {
				reported.Add(total(a.Unreported))
			}
		}
	}
	for g := range 8 {
		rng := rand.New(rand.NewPCG(uint64(g), 1))
		group.Go(func() {
			for range 2000 {
				kept, back := client(rng.IntN(20)), client(rng.IntN(5))
				kept.Limit, back.Limit, back.Key.Zone = store.MaxEvents, 20, "back"
				back.Shadow = true
				requests := []store.Request{kept, back}
				s.BeginReport(requests)
				up := rng.IntN(3) == 0
				if up {
					executed(requests)
				}
				end(s, requests, !up)
				if up {
					s.Observe(requests[:1], charged)
					continue
				}
				decisions := alone(t, s, 2, requests...)
				if decisions[0].Charged() {
					spent.Add(1)
				}
				if a := decisions[1]; a.Charged() {
					s.Refund([]store.Refund{{Key: back.Key, Charge: a.Charge, Units: 1}})
				}
				if rng.IntN(20) == 0 {
					s.Flush(func(requests []store.Request, _ []store.Decision) error {
						if rng.IntN(2) == 0 {
							return unexecuted
						}
						executed(requests)
						return nil
					})
				}
			}
		})
	}
	group.Wait()
	s.Flush(func(requests []store.Request, _ []store.Decision) error {
		executed(requests)
		return nil
	})
	if s.Unreported() != 0 || spent.Load() != reported.Load() || spent.Load() == 0 {
		t.Errorf("%d units spent, %d reported, %d keys have reports", spent.Load(), reported.Load(), s.Unreported())
	}
}

func TestLocalDoesNotAllocate(t *testing.T) {
	s := fallback.NewLocal()
	requests := []store.Request{client(1)}
	requests[0].Limit, requests[0].Window = store.MaxEvents, time.Second
	var decisions [1]store.Decision
	tests := []struct {
		name string
		do   func()
	}{
		{"Observe", func() { s.Observe(requests, charged) }},
		{"BeginReport and EndReport", func() { s.BeginReport(requests); s.EndReport(requests, decisions[:], nil) }},
		{"Take", func() { _ = take(s, requests, decisions[:], 2, false) }},
	}
	for _, test := range tests {
		if allocs := testing.AllocsPerRun(1000, test.do); allocs != 0 {
			t.Errorf("%s: %v allocations, want none", test.name, allocs)
		}
	}
}

func BenchmarkLocalObserve(b *testing.B) {
	for _, keys := range []int{1, 1000, 60_000} {
		b.Run(fmt.Sprint("keys=", keys), func(b *testing.B) {
			s := fallback.NewLocal()
			requests := make([]store.Request, keys)
			for i := range requests {
				requests[i] = client(i)
				requests[i].Limit, requests[i].Window = 1000, time.Minute
				s.Observe(requests[i:i+1], charged)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.Observe(requests[i%keys:i%keys+1], charged)
			}
		})
	}
	b.Run("fresh keys at the bound", func(b *testing.B) {
		s := fallback.NewLocal()
		requests := make([]store.Request, 200_000)
		for i := range requests {
			requests[i] = client(i)
			s.Observe(requests[i:i+1], charged)
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			n := i % len(requests)
			s.Observe(requests[n:n+1], charged)
		}
	})
}

func BenchmarkLocalReport(b *testing.B) {
	s := fallback.NewLocal()
	requests := []store.Request{client(1)}
	run := func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.BeginReport(requests)
			end(s, requests, true)
		}
	}
	b.Run("nothing unreported", run)
	alone(b, s, 1, client(2))
	b.Run("others have reports", run)
	alone(b, s, 1, requests[0])
	b.Run("unreported", run)
}
