package storetest

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// pause makes sure that what comes next has another stamp and another mark.
func pause() { time.Sleep(2 * time.Millisecond) }

func refund(f *fixture) {
	request := f.limit(2, long)
	a := f.granted(request)
	pause()
	b := f.granted(request)
	f.refused(request)
	f.refund(refundOf(request, a, 1))
	f.remaining(request, 1)
	f.granted(request)
	f.refused(request)
	f.refund(refundOf(request, b, 1))
	f.remaining(request, 1)

	// The whole log; then it is as if the key was never used.
	request = f.limit(1, long)
	f.refund(refundOf(request, f.granted(request), 1))
	if a := f.take(lookAt(request))[0]; a.Remaining != 1 || a.Reset != 0 {
		f.Errorf("%+v, want 1 remaining and no reset", a)
	}
}

func refundPart(f *fixture) {
	for _, limit := range []int64{60, 1000} {
		request := f.limit(limit, long)
		a := f.granted(need(request, 10))
		pause()
		f.granted(need(request, 10))
		f.refund(refundOf(request, a, 3))
		f.remaining(request, limit-17)
		f.refund(refundOf(request, a, 7))
		f.remaining(request, limit-10)
	}
}

func refundMany(f *fixture) {
	var requests []store.Request
	for i, zone := range []string{"a", "b", "c", "d", "e", "f"} {
		requests = append(requests, need(of(f.zoned(zone, f.limit(1, long)), 10), int64(i)+1))
	}
	var refunds []store.Refund
	for i, request := range requests {
		a := f.granted(request)
		if i != 2 {
			refunds = append(refunds, refundOf(request, a, request.Units))
		}
	}
	// Keys that hold nothing are no hindrance.
	refunds = append(refunds, refundOf(f.limit(1, long), store.Decision{Charge: store.Charge{Stamp: 1, Mark: 1}}, 1))
	f.refund(refunds...)
	for i, request := range requests {
		want := int64(10)
		if i == 2 {
			want = 7
		}
		f.remaining(request, want)
	}
}

func refundTwice(f *fixture) {
	request := f.limit(3, long)
	a := f.granted(need(request, 2))
	g := refundOf(request, a, 2)
	f.refund(g)
	f.refund(g)
	f.refund(g, g)
	f.remaining(request, 3)
	f.granted(need(request, 3))
	f.refused(request)

	// More than was charged: no more than that comes back.
	request = f.limit(3, long)
	f.granted(request)
	pause()
	f.refund(refundOf(request, f.granted(request), 100))
	f.remaining(request, 2)
}

func refundWrongMark(f *fixture) {
	request := f.limit(3, long)
	a := f.granted(request)
	for _, mark := range []int64{a.Mark - 1, a.Mark + 1, 0, 1} {
		g := refundOf(request, a, 1)
		g.Mark = mark
		f.refund(g)
	}
	f.remaining(request, 2)
}

func refundLaterStamp(f *fixture) {
	request := f.limit(3, long)
	a := f.granted(request)
	pause()
	b := f.granted(request)
	g := refundOf(request, a, 1)
	g.Stamp = b.Stamp + 1
	f.refund(g)
	f.remaining(request, 1)
}

// A log that has become empty meanwhile has begun another life, in which the
// units of the old one mean nothing.
func refundAnotherLife(f *fixture) {
	request := f.limit(3, long)
	a := f.granted(request)
	f.refund(refundOf(request, a, 1))
	pause()
	f.granted(request)
	f.refund(refundOf(request, a, 1))
	f.remaining(request, 2)
}

func refundExpired(f *fixture) {
	const window = store.MinWindow
	for range 20 {
		request := f.limit(3, window)
		first := f.granted(request)
		granted := time.Now()
		time.Sleep(window / 2)
		second := time.Now()
		f.granted(request)
		time.Sleep(time.Until(granted.Add(window + slack)))
		f.refund(refundOf(request, first, 1))
		a := f.take(lookAt(request))[0]
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

func refundLease(f *fixture) {
	request := f.limit(100, long)
	first := leasing(request, 1, 9)
	first.LeaseSpan = store.MaxLeaseSpan
	a := f.granted(first)
	f.granted(request) // before what lies ahead, or joins it
	f.refund(refundOf(request, a, 6))
	f.remaining(request, 95)
	f.refund(refundOf(request, a, 4))
	f.remaining(request, 99)
}
