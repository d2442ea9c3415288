package store_test

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
)

// alone asks a standby, which owes what it charges.
func alone(t testing.TB, s *store.Standby, instances int, asks ...store.Ask) []store.Answer {
	answers := make([]store.Answer, len(asks))
	if err := s.Take(asks, answers, instances, true); err != nil {
		t.Errorf("Take: %v", err)
	}
	return answers
}

// owes attaches, and returns what the key of an ask owes.
func owes(s *store.Standby, ask store.Ask) []store.Spent {
	asks := []store.Ask{ask}
	s.Attach(asks)
	return asks[0].Owed
}

func total(owed []store.Spent) (units int64) {
	for _, spent := range owed {
		units += spent.Units
	}
	return units
}

// fed is a grant of the store.
var fed = []store.Answer{{Granted: true, Stamp: 1, Mark: 1}}

func feed(s *store.Standby, ask store.Ask, units int64) {
	ask.Need = units
	s.Feed([]store.Ask{ask}, fed)
}

func TestStandbyShare(t *testing.T) {
	tests := []struct {
		limit     int64
		instances int
		want      int64
	}{
		{10, 1, 10}, {10, 3, 3}, {9, 3, 3}, {2, 5, 1}, {1, 1, 1}, {0, 3, 0}, {7, 0, 7}, {7, -1, 7},
	}
	for _, test := range tests {
		s := store.NewStandby()
		ask := client(1)
		ask.Limit = test.limit
		for i := range test.want {
			a := alone(t, s, test.instances, ask)[0]
			if !a.Granted || a.Remaining != test.want-1-i || a.Reset <= 0 {
				t.Errorf("%d of %d for %d instances: %+v, want a share of %d", i+1, test.limit, test.instances, a, test.want)
			}
		}
		if a := alone(t, s, test.instances, ask)[0]; a.Granted || a.RetryAfter <= 0 || a.RetryAfter > time.Hour {
			t.Errorf("limit %d for %d instances: %+v beyond %d", test.limit, test.instances, a, test.want)
		}
		if ask.Limit != test.limit {
			t.Errorf("the ask was changed to a limit of %d", ask.Limit)
		}
	}
}

func TestStandbyTake(t *testing.T) {
	s := store.NewStandby()
	five, one, weak := client(1), client(2), client(3)
	one.Limit, weak.Limit = 1, 1
	weak.Advisory = true
	alone(t, s, 1, one)

	// All or nothing, and what is refused is not owed.
	answers := alone(t, s, 1, five, one, weak)
	if answers[0].Charged() || !answers[0].Granted || answers[1].Granted || answers[2].Charged() {
		t.Errorf("%+v, want the second one to refuse the call", answers)
	}
	if owes(s, five) != nil || owes(s, weak) != nil {
		t.Errorf("a refused call is owed")
	}
	// An advisory ask is charged, and owed, if it fits.
	for range 2 {
		alone(t, s, 1, five, weak)
	}
	if five, weak := total(owes(s, five)), total(owes(s, weak)); five != 2 || weak != 1 {
		t.Errorf("%d and %d units owed, want 2 and 1", five, weak)
	}

	// No extra units, and nothing settled here: it has been counted.
	more := client(4)
	more.Extra, more.Ahead = 3, time.Second
	more.Owed = []store.Spent{{Units: 3}}
	if a := alone(t, s, 1, more)[0]; a.Extra != 0 || a.Remaining != 4 {
		t.Errorf("%+v, want one unit charged", a)
	}
	more.Need, more.Owed = 0, nil
	if a := alone(t, s, 1, more)[0]; !a.Granted || a.Charged() {
		t.Errorf("%+v, want a refill to be granted nothing", a)
	}

	senseless := client(5)
	senseless.Window = 0
	if err := s.Take([]store.Ask{senseless}, make([]store.Answer, 1), 1, true); err == nil {
		t.Errorf("no error for a window of 0")
	}
}

// Who has had a share of the limit from the store is refused at once.
func TestStandbyIsWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewStandby()
		ask := client(1)
		ask.Limit = 12
		feed(s, ask, 2)
		time.Sleep(time.Minute)
		feed(s, ask, 1)

		// None of this was spent.
		feed(s, ask, 0)
		s.Feed([]store.Ask{ask}, make([]store.Answer, 1))
		extra := ask
		extra.Need, extra.Extra = 0, 5
		s.Feed([]store.Ask{extra}, []store.Answer{{Granted: true, Extra: 5, Stamp: 1, Mark: 1}})

		if a := alone(t, s, 4, ask)[0]; a.Granted || a.RetryAfter != 59*time.Minute {
			t.Errorf("%+v, want it refused until the first units expire", a)
		}
		if a := alone(t, s, 3, ask)[0]; !a.Granted || a.Remaining != 0 {
			t.Errorf("%+v, want the fourth unit of four", a)
		}
		// What the store granted is not owed to it, and may exceed the share.
		feed(s, ask, 8)
		if n := total(owes(s, ask)); n != 1 {
			t.Errorf("%d units owed, want 1", n)
		}
		time.Sleep(59 * time.Minute)
		if a := alone(t, s, 1, ask)[0]; !a.Granted || a.Remaining != 1 {
			t.Errorf("%+v, want 10 of 12 used", a)
		}
		time.Sleep(time.Hour)
		if a := alone(t, s, 4, ask)[0]; !a.Granted || a.Remaining != 2 {
			t.Errorf("%+v, want a share of 3", a)
		}
		// Also what no limit would allow counts until it expires.
		feed(s, ask, 12)
		time.Sleep(30 * time.Minute)
		feed(s, ask, 12)
		time.Sleep(30 * time.Minute)
		if a := alone(t, s, 1, ask)[0]; a.Granted || a.RetryAfter != 30*time.Minute {
			t.Errorf("%+v, want it refused for half an hour", a)
		}
	})
}

func TestStandbyReportsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewStandby()
		ask, other := client(1), client(2)
		if s.Attach([]store.Ask{ask}) {
			t.Errorf("attached to what owes nothing")
		}
		use := func(units int64) {
			ask := ask
			ask.Need = units
			alone(t, s, 1, ask)
		}
		use(2)
		time.Sleep(10 * time.Minute)
		use(1)
		time.Sleep(time.Minute)
		if n := s.Owing(); n != 1 {
			t.Errorf("%d keys owe, want 1", n)
		}

		// want attaches, and wants these units with these ages, which may be
		// a microsecond short of the true ones but not above them.
		var asks []store.Ask
		want := func(want ...store.Spent) {
			t.Helper()
			asks = []store.Ask{other, ask}
			if s.Attach(asks) != (len(want) > 0) || asks[0].Owed != nil || len(asks[1].Owed) != len(want) {
				t.Fatalf("%+v owed, want %+v", asks[1].Owed, want)
			}
			for i, got := range asks[1].Owed {
				if got.Units != want[i].Units || got.Age > want[i].Age || got.Age < want[i].Age-time.Microsecond {
					t.Errorf("%+v owed, want %+v", asks[1].Owed, want)
				}
			}
			if err := store.Validate(asks, make([]store.Answer, 2)); err != nil {
				t.Error(err)
			}
		}
		detach := func(unexecuted bool) {
			t.Helper()
			s.Detach(asks, unexecuted)
			if asks[1].Owed != nil {
				t.Errorf("%+v owed after it was reported", asks[1].Owed)
			}
			s.Detach(asks, true) // is nobody's any more
		}
		want(store.Spent{Age: 11 * time.Minute, Units: 2}, store.Spent{Age: time.Minute, Units: 1})

		// One call reports at a time, and what is owed meanwhile waits for
		// the next.
		use(1)
		if again := []store.Ask{ask}; s.Attach(again) || again[0].Owed != nil {
			t.Errorf("%+v reported twice", again[0].Owed)
		}
		time.Sleep(4 * time.Minute)
		detach(true)
		time.Sleep(time.Minute)
		want(store.Spent{Age: 16 * time.Minute, Units: 2}, store.Spent{Age: 5 * time.Minute, Units: 2})
		use(1)
		detach(false)
		want(store.Spent{Units: 1})
		detach(false)
		want()
		if n := s.Owing(); n != 0 {
			t.Errorf("%d keys owe, want none", n)
		}

		// If the store may have executed the call, nobody owes it anything.
		if err := s.Take([]store.Ask{other}, make([]store.Answer, 1), 1, false); err != nil {
			t.Fatal(err)
		}
		want()
	})
}

// What the store would not count any more is forgotten.
func TestStandbyForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewStandby()
		ask := client(1)
		alone(t, s, 1, ask)
		time.Sleep(30 * time.Minute)
		alone(t, s, 1, ask)
		time.Sleep(30*time.Minute - time.Microsecond)
		asks := []store.Ask{ask}
		if s.Attach(asks); total(asks[0].Owed) != 2 {
			t.Errorf("%+v owed, want 2 units", asks[0].Owed)
		}
		s.Detach(asks, true)
		time.Sleep(time.Microsecond)
		if s.Attach(asks); total(asks[0].Owed) != 1 {
			t.Errorf("%+v owed, want 1 unit", asks[0].Owed)
		}
		s.Detach(asks, true)
		time.Sleep(30 * time.Minute)
		if s.Attach(asks) || s.Owing() != 0 {
			t.Errorf("%+v owed by %d keys, want nothing", asks[0].Owed, s.Owing())
		}
	})
}

// However much is owed, it is reported in few entries, in which no unit looks
// older than it is, or much younger.
func TestStandbyJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(200) {
			rng := rand.New(rand.NewPCG(seed, 1))
			s := store.NewStandby()
			ask := client(1)
			ask.Limit = 1_000_000
			var spent []time.Time
			mean := time.Hour / time.Duration(1+rng.IntN(300))
			fails := seed%2 == 1
			for range 1 + rng.IntN(400) {
				time.Sleep(time.Duration(rng.Int64N(2 * int64(mean))))
				alone(t, s, 1, ask)
				spent = append(spent, time.Now())
				if fails && rng.IntN(10) == 0 {
					asks := []store.Ask{ask}
					s.Attach(asks)
					for range 1 + rng.IntN(5) {
						alone(t, s, 1, ask)
						spent = append(spent, time.Now())
						time.Sleep(time.Duration(rng.Int64N(2 * int64(mean))))
					}
					s.Detach(asks, true)
				}
			}
			asks := []store.Ask{ask}
			if s.Attach(asks); len(asks[0].Owed) > store.MaxOwed {
				t.Fatalf("seed %d: %d entries owed", seed, len(asks[0].Owed))
			}
			// The k youngest units are reported at least as young, for any k.
			var ages []time.Duration
			for _, owed := range asks[0].Owed {
				for range owed.Units {
					ages = append(ages, owed.Age)
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
					t.Fatalf("seed %d: unit %d of %v ago is not owed as such: %v", seed, i, age, asks[0].Owed)
				}
				late = max(late, age-ages[i])
			}
			if !fails && late > time.Hour/15+time.Microsecond {
				t.Errorf("seed %d: a unit is owed %v for too long", seed, late)
			}
		}
	})
}

func TestStandbyReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewStandby()
		ask := client(1)
		charge := func(owe bool) store.Grant {
			var answers [1]store.Answer
			if err := s.Take([]store.Ask{ask}, answers[:], 1, owe); err != nil || !answers[0].Charged() {
				t.Fatalf("%+v, %v", answers, err)
			}
			return store.Grant{Key: ask.Key, Window: ask.Window, Stamp: answers[0].Stamp, Mark: answers[0].Mark, Units: 1}
		}
		back := func(grants ...store.Grant) {
			if err := s.Return(0, grants); err != nil {
				t.Error(err)
			}
		}
		asks := []store.Ask{ask}
		want := func(units ...int64) {
			t.Helper()
			s.Attach(asks)
			var got []int64
			for _, spent := range asks[0].Owed {
				got = append(got, spent.Units)
			}
			if !slices.Equal(got, units) {
				t.Errorf("%v owed, want %v units", asks[0].Owed, units)
			}
			s.Detach(asks, true)
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

		// What was not owed is given back, and cancels nothing.
		unknown := charge(false)
		back(unknown)
		want(1)
		if a := alone(t, s, 1, ask)[0]; a.Remaining != 3 {
			t.Errorf("%+v, want two of five used", a)
		}
		want(2)

		// What was reported cancels nothing either.
		time.Sleep(10 * time.Minute)
		reported := charge(true)
		s.Attach(asks)
		s.Detach(asks, false)
		time.Sleep(time.Minute)
		charge(true)
		back(reported)
		want(1)

		// What comes back while it is reported is not reported again.
		time.Sleep(10 * time.Minute)
		third := charge(true)
		s.Attach(asks)
		back(third)
		s.Detach(asks, true)
		want(1)
		time.Sleep(time.Hour)
		fourth := charge(true)
		s.Attach(asks)
		back(fourth)
		s.Detach(asks, true)
		if n := s.Owing(); n != 0 {
			t.Errorf("%d keys owe, want none", n)
		}
		fifth := charge(true)
		back(fifth)
		if n := s.Owing(); n != 0 {
			t.Errorf("%d keys owe, want none", n)
		}
	})
}

func TestStandbySettle(t *testing.T) {
	const keys = 1000
	s := store.NewStandby()
	for i := range keys {
		alone(t, s, 3, client(i)) // their share is less than the limit of 5
	}
	reported := make(map[store.Key]int64)
	calls := 0
	report := func(asks []store.Ask) {
		calls++
		if len(asks) == 0 || len(asks) > 64 {
			t.Errorf("%d keys in one call", len(asks))
		}
		for _, a := range asks {
			reported[a.Key] += total(a.Owed)
			if a.Need != 0 || a.Extra != 0 || a.Limit != 5 || a.Window != time.Hour || len(a.Owed) == 0 {
				t.Errorf("settled by %+v", a)
			}
		}
	}

	// It stops at the first error. What was certainly not executed is owed
	// still, what may have been executed is not.
	away := &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errors.New("away")}
	for i, err := range []error{away, &store.Error{Kind: store.KindTimeout, Err: errors.New("late")}, errors.New("senseless")} {
		s.Settle(func(asks []store.Ask, answers []store.Answer) error {
			report(asks)
			if err == error(away) {
				clear(reported)
				return fmt.Errorf("wrapped: %w", err)
			}
			return err
		})
		if calls != i+65 || s.Owing() != keys-len(reported) { // those of the first were tried singly
			t.Errorf("%v: %d calls, %d keys owe and %d were reported", err, calls, s.Owing(), len(reported))
		}
	}

	calls = 0
	s.Settle(func(asks []store.Ask, answers []store.Answer) error {
		report(asks)
		if err := store.Validate(asks, answers); err != nil {
			t.Error(err)
		}
		before := calls
		s.Settle(func([]store.Ask, []store.Answer) error { // another one
			calls++
			return nil
		})
		if calls != before {
			t.Errorf("two settle at a time")
		}
		return nil
	})
	if s.Owing() != 0 || len(reported) != keys || calls > (keys+63)/64 {
		t.Errorf("%d keys owe, %d were reported in %d calls", s.Owing(), len(reported), calls)
	}
	for key, units := range reported {
		if units != 1 {
			t.Errorf("%d units of %v reported, want 1", units, key)
		}
	}
	s.Settle(func([]store.Ask, []store.Answer) error {
		t.Errorf("settled nothing")
		return nil
	})
}

func TestStandbyBounds(t *testing.T) {
	const bound = 65_536
	synctest.Test(t, func(t *testing.T) {
		s := store.NewStandby()
		for i := range bound + 1000 {
			alone(t, s, 1, client(i))
		}
		if n := s.Owing(); n != bound {
			t.Errorf("%d keys owe, want %d", n, bound)
		}
		// Newcomers are not reported, and others are still.
		newcomers, reported := 0, 0
		for i := range bound + 1000 {
			asks := []store.Ask{client(i)}
			if s.Attach(asks) {
				reported++
				s.Detach(asks, true)
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
			ask := client(bound + i)
			alone(t, s, 1, ask)
			if total(owes(s, ask)) != 1 {
				t.Fatalf("newcomer %d is not reported when others have expired", i)
			}
		}
		if n := s.Owing(); n != bound {
			t.Errorf("%d keys owe, want %d", n, bound)
		}
	})

	// The logs have a bound too: a key that was fed makes room for others.
	s := store.NewStandby()
	for i := range 2 * bound {
		feed(s, client(i), 1)
	}
	held := 0
	for i := range 2 * bound {
		ask := client(i)
		ask.Need = 0
		if alone(t, s, 1, ask)[0].Remaining < 5 {
			held++
		}
	}
	if held != bound {
		t.Errorf("%d keys held, want %d", held, bound)
	}
}

// A client's name may be a small part of a large string, a header for
// example, which must not be held as a whole.
func TestStandbyCopiesClients(t *testing.T) {
	s := store.NewStandby()
	ask := client(1)
	alone(t, s, 1, ask)
	s.Settle(func(asks []store.Ask, _ []store.Answer) error {
		if asks[0].Key != ask.Key || unsafe.StringData(asks[0].Key.Client) == unsafe.StringData(ask.Key.Client) {
			t.Errorf("the caller's string is held")
		}
		return nil
	})
}

// Everything at once, for the race detector; and no unit that is not given
// back is lost or reported twice.
func TestStandbyConcurrently(t *testing.T) {
	s := store.NewStandby()
	var group sync.WaitGroup
	var spent, reported atomic.Int64
	unexecuted := &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errors.New("away")}
	executed := func(asks []store.Ask) {
		for _, a := range asks {
			if a.Key.Zone == "zone" {
				reported.Add(total(a.Owed))
			}
		}
	}
	for g := range 8 {
		rng := rand.New(rand.NewPCG(uint64(g), 1))
		group.Go(func() {
			for range 2000 {
				kept, back := client(rng.IntN(20)), client(rng.IntN(5))
				kept.Limit, back.Limit, back.Key.Zone = store.MaxEvents, 20, "back"
				back.Advisory = true
				asks := []store.Ask{kept, back}
				s.Attach(asks)
				up := rng.IntN(3) == 0
				if up {
					executed(asks)
				}
				s.Detach(asks, !up)
				if up {
					s.Feed(asks[:1], fed)
					continue
				}
				answers := alone(t, s, 2, asks...)
				if answers[0].Charged() {
					spent.Add(1)
				}
				if a := answers[1]; a.Charged() {
					_ = s.Return(0, []store.Grant{{Key: back.Key, Window: back.Window, Stamp: a.Stamp, Mark: a.Mark, Units: 1}})
				}
				if rng.IntN(20) == 0 {
					s.Settle(func(asks []store.Ask, _ []store.Answer) error {
						if rng.IntN(2) == 0 {
							return unexecuted
						}
						executed(asks)
						return nil
					})
				}
			}
		})
	}
	group.Wait()
	s.Settle(func(asks []store.Ask, _ []store.Answer) error {
		executed(asks)
		return nil
	})
	if s.Owing() != 0 || spent.Load() != reported.Load() || spent.Load() == 0 {
		t.Errorf("%d units spent, %d reported, %d keys owe", spent.Load(), reported.Load(), s.Owing())
	}
}

func TestStandbyDoesNotAllocate(t *testing.T) {
	s := store.NewStandby()
	asks := []store.Ask{client(1)}
	asks[0].Limit, asks[0].Window = store.MaxEvents, time.Second
	var answers [1]store.Answer
	tests := []struct {
		name string
		do   func()
	}{
		{"Feed", func() { s.Feed(asks, fed) }},
		{"Attach and Detach", func() { s.Attach(asks); s.Detach(asks, false) }},
		{"Take", func() { _ = s.Take(asks, answers[:], 2, false) }},
	}
	for _, test := range tests {
		if allocs := testing.AllocsPerRun(1000, test.do); allocs != 0 {
			t.Errorf("%s: %v allocations, want none", test.name, allocs)
		}
	}
}

func BenchmarkStandbyFeed(b *testing.B) {
	for _, keys := range []int{1, 1000, 60_000} {
		b.Run(fmt.Sprint("keys=", keys), func(b *testing.B) {
			s := store.NewStandby()
			asks := make([]store.Ask, keys)
			for i := range asks {
				asks[i] = client(i)
				asks[i].Limit, asks[i].Window = 1000, time.Minute
				s.Feed(asks[i:i+1], fed)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.Feed(asks[i%keys:i%keys+1], fed)
			}
		})
	}
	b.Run("fresh keys at the bound", func(b *testing.B) {
		s := store.NewStandby()
		asks := make([]store.Ask, 200_000)
		for i := range asks {
			asks[i] = client(i)
			s.Feed(asks[i:i+1], fed)
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			n := i % len(asks)
			s.Feed(asks[n:n+1], fed)
		}
	})
}

func BenchmarkStandbyAttach(b *testing.B) {
	s := store.NewStandby()
	asks := []store.Ask{client(1)}
	run := func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Attach(asks)
			s.Detach(asks, true)
		}
	}
	b.Run("nothing owed", run)
	alone(b, s, 1, client(2))
	b.Run("others owe", run)
	alone(b, s, 1, asks[0])
	b.Run("owed", run)
}
