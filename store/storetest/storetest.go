// Package storetest is the test of a store: every implementation of
// [store.Store] passes [Run], and [RunShared] if several of it can share
// their data. It also has the checker of intervals, [Most], for every test
// that asks whether a limit was kept.
//
// The suite runs against real servers in real time. It judges what it can
// count, and intervals by the clock on both sides of a call, so that a slow
// machine makes it slow and not wrong. It does not test what a store does
// when its server fails, nor long windows, nor whether every decision agrees
// with [store.Window] to the microsecond.
package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// patience is how long a call may wait: an outage of the machine is no
	// failure of the store.
	patience = 5 * time.Second
	// slack is how far a second of the store's clock may be from a second
	// here.
	slack = 5 * time.Millisecond
	// long is a window that does not pass during a test.
	long = time.Hour
)

// Run tests a store. It calls open once for each subtest; what it returns may
// hold data, since no key is used twice. The subtests run in parallel.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := []struct {
		name string
		run  func(f *fixture)
	}{
		{"name", name},
		{"counts down", countsDown},
		{"exact limit under concurrency", exactUnderConcurrency},
		{"units above one", unitsAboveOne},
		{"limit of one", limitOfOne},
		{"largest limit", largestLimit},
		{"limit of none", limitOfNone},
		{"need above the limit", needAboveLimit},
		{"limit lowered and raised", limitChanges},
		{"limit lowered waits for several entries", limitLoweredWaits},

		{"all or nothing", allOrNothing},
		{"all or nothing over clients", allOrNothingOverClients},
		{"all or nothing under concurrency", allOrNothingUnderConcurrency},
		{"shadow", shadow},
		{"no requests", noRequests},
		{"no time to wait", noTime},
		{"senseless requests", senselessRequests},
		{"windows are different logs", windowsDiffer},
		{"zones are different logs", zonesDiffer},
		{"any bytes name a client", anyClient},

		{"lease units", leaseUnits},
		{"refill", refill},
		{"look", look},
		{"lease units of a refused call", leaseRefused},
		{"a lease holds longer", spanHoldsLonger},

		{"refund", refund},
		{"refund a part", refundPart},
		{"refund to many keys", refundMany},
		{"refund twice", refundTwice},
		{"refund with a wrong mark", refundWrongMark},
		{"refund with a later stamp", refundLaterStamp},
		{"refund to another life", refundAnotherLife},
		{"refund what has expired", refundExpired},
		{"refund lease units", refundLease},

		{"reports count since they were spent", reportedSinceSpent},
		{"reports of a look", reportedByLook},
		{"reports expire", reportedExpires},
		{"reports exceed the limit", reportedExceedsTheLimit},
		{"reports of a refused call", reportedInARefusedCall},
		{"reports of a shadow request", reportedByShadow},
		{"reports are not refunded with a charge", reportedIsNotRefunded},
		{"refund what was reported", refundReported},

		{"a ban", ban},
		{"a ban ends", banEnds},
		{"bans of several requests", banOfSeveral},
		{"a refund ends a ban", banAndRefund},
		{"one ban under concurrency", banUnderConcurrency},

		{"retry after is true", retryAfterIsTrue},
		{"reset is true", resetIsTrue},
		{"refusals are free", refusalsAreFree},
		{"every window of a large limit", everyWindow},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(newFixture(t, open(t)))
		})
	}
}

// RunShared tests that the stores that open returns share their counts: for
// example several connections to one server.
func RunShared(t *testing.T, open func(t *testing.T) store.Store) {
	const stores, limit = 4, 100
	f := newFixture(t, open(t))
	all := []*fixture{f}
	for range stores - 1 {
		other := newFixture(t, open(t))
		if got, want := other.store.String(), f.store.String(); got != want {
			t.Errorf("stores that share their counts are called %q and %q", got, want)
		}
		all = append(all, other)
	}

	request := f.limit(limit, long)
	granted := f.together(64, 10, func(i int) int64 {
		if all[i%stores].one(request).Granted {
			return 1
		}
		return 0
	})
	if granted != limit {
		t.Errorf("%d stores granted %d together, want %d", stores, granted, limit)
	}

	request = f.limit(1, long)
	a := all[0].granted(request)
	all[1].refused(request)
	all[2].refund(refundOf(request, a, 1))
	all[3].granted(request)
}

// fixture is a store under test, and what a test asks of it.
type fixture struct {
	*testing.T
	store store.Store
	id    string // makes its keys its own
	keys  int
}

func newFixture(t *testing.T, s store.Store) *fixture {
	return &fixture{T: t, store: s, id: fmt.Sprintf("%016x", rand.Uint64())}
}

// limit returns a request for one unit of a key that was never used.
func (f *fixture) limit(limit int64, window time.Duration) store.Request {
	f.keys++
	key := store.Key{Zone: "storetest", Client: fmt.Sprintf("%s.%d", f.id, f.keys), Window: window}
	return store.Request{Key: key, Limit: limit, Units: 1}
}

// zoned returns the request under another zone.
func (f *fixture) zoned(zone string, request store.Request) store.Request {
	request.Key.Zone = zone + "-" + f.id
	return request
}

// need, leasing and lookAt return the request with other units.
func need(request store.Request, units int64) store.Request {
	request.Units = units
	return request
}

func leasing(request store.Request, units, lease int64) store.Request {
	request.Units, request.Lease = units, lease
	return request
}

func lookAt(request store.Request) store.Request { return leasing(request, 0, 0) }

// of returns the request under another limit.
func of(request store.Request, limit int64) store.Request {
	request.Limit = limit
	return request
}

func refundOf(request store.Request, a store.Decision, units int64) store.Refund {
	return store.Refund{Key: request.Key, Charge: a.Charge, Units: units}
}

// take makes a call, and fails the test if the store does.
func (f *fixture) take(requests ...store.Request) []store.Decision {
	f.Helper()
	decisions := make([]store.Decision, len(requests))
	if err := f.store.Take(time.Now(), patience, requests, decisions); err != nil {
		f.Fatalf("Take(%+v): %v", requests, err)
	}
	for i, a := range decisions {
		if a.Remaining < 0 || a.Remaining > requests[i].Limit || a.Reset < 0 || a.RetryAfter < 0 ||
			a.Granted && (a.RetryAfter != 0 || a.Blocked) || !a.Granted && (a.RetryAfter == 0 || a.Charged()) ||
			a.Lease < 0 || a.Lease > requests[i].Lease || a.Lease > 0 && !a.Charged() ||
			a.Charged() != (a.Stamp != 0) || !a.Charged() && a.Origin != 0 ||
			a.Reported.Charged() != (a.Reported.Stamp != 0) || a.Reported.Charged() && len(requests[i].Unreported) == 0 {
			f.Fatalf("Take(%+v): senseless decision %+v", requests[i], a)
		}
	}
	return decisions
}

// one makes a call of one request. It may be called by several goroutines, unlike
// the others, which end the test.
func (f *fixture) one(request store.Request) store.Decision {
	var decisions [1]store.Decision
	if err := f.store.Take(time.Now(), patience, []store.Request{request}, decisions[:]); err != nil {
		f.Errorf("Take(%+v): %v", request, err)
	}
	return decisions[0]
}

func (f *fixture) granted(request store.Request) store.Decision {
	f.Helper()
	a := f.take(request)[0]
	if !a.Granted || request.Units > 0 && !a.Charged() {
		f.Fatalf("Take(%+v) = %+v, want it granted", request, a)
	}
	return a
}

func (f *fixture) refused(request store.Request) store.Decision {
	f.Helper()
	a := f.take(request)[0]
	if a.Granted {
		f.Fatalf("Take(%+v) = %+v, want it refused", request, a)
	}
	return a
}

// remaining fails the test unless that many units are left.
func (f *fixture) remaining(request store.Request, want int64) {
	f.Helper()
	if a := f.take(lookAt(request))[0]; a.Remaining != want {
		f.Fatalf("%d units remain of %+v, want %d", a.Remaining, request, want)
	}
}

func (f *fixture) refund(refunds ...store.Refund) {
	f.Helper()
	if err := f.store.Refund(patience, refunds); err != nil {
		f.Fatalf("Refund(%+v): %v", refunds, err)
	}
}

// together calls what from some goroutines, so many times each, and returns
// the sum of what it returns.
func (f *fixture) together(goroutines, times int, what func(goroutine int) int64) (sum int64) {
	var group sync.WaitGroup
	sums := make([]int64, goroutines)
	for i := range goroutines {
		group.Go(func() {
			for range times {
				sums[i] += what(i)
			}
		})
	}
	group.Wait()
	for _, s := range sums {
		sum += s
	}
	return sum
}

// history is what happened to the calls for one key.
type history struct {
	granted, refused []Span
}

func (h *history) add(o history) {
	h.granted = append(h.granted, o.granted...)
	h.refused = append(h.refused, o.refused...)
}

// strict reports an interval of one window in which more than the limit was
// spent.
func (h *history) strict(t *testing.T, limit int64, window time.Duration) {
	t.Helper()
	if units, at := Most(h.granted, window-slack); units > limit {
		t.Errorf("%d units of %d in the %v from %v", units, limit, window, at)
	}
}

// fair reports a refusal that the units spent during held before it do not
// explain.
func (h *history) fair(t *testing.T, limit int64, held time.Duration) {
	t.Helper()
	var from, to []time.Time
	for _, s := range h.granted {
		for range s.Units {
			from, to = append(from, s.From), append(to, s.To)
		}
	}
	slices.SortFunc(from, time.Time.Compare)
	slices.SortFunc(to, time.Time.Compare)
	for _, r := range h.refused {
		gone, _ := slices.BinarySearchFunc(to, r.From.Add(-held-slack), time.Time.Compare)
		begun, _ := slices.BinarySearchFunc(from, r.To, time.Time.Compare)
		if spent := int64(begun - gone); spent+r.Units <= limit {
			t.Errorf("%d units refused at %v, with %d of %d spent in the %v before", r.Units, r.From, spent, limit, held)
			return
		}
	}
}
