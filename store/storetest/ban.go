package storetest

import (
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// banning returns the request with a ban.
func banning(request store.Request, block time.Duration) store.Request {
	request.Block = block
	return request
}

// blocked wants a ban to refuse a request, which lasts between two times.
func (f *fixture) blocked(request store.Request, least, most time.Duration) store.Decision {
	f.Helper()
	a := f.refused(request)
	if !a.Blocked || a.RetryAfter < least || a.RetryAfter > most || a.Reset < a.RetryAfter {
		f.Fatalf("Take(%+v) = %+v, want it blocked for %v to %v", request, a, least, most)
	}
	return a
}

// plain wants a refusal that is no ban's.
func (f *fixture) plain(request store.Request) {
	f.Helper()
	if a := f.refused(request); a.Blocked {
		f.Fatalf("Take(%+v) = %+v, want a refusal without a ban", request, a)
	}
}

func ban(f *fixture) {
	const block = 2 * long
	request := banning(f.limit(2, long), block)
	f.granted(need(request, 2))
	f.blocked(request, block, block)
	f.blocked(request, block-patience, block-time.Microsecond) // not extended
	f.blocked(banning(request, 0), block-patience, block)      // whatever comes
	f.blocked(banning(of(request, 100), 0), block-patience, block)
	f.blocked(lookAt(request), block-patience, block)
	f.blocked(leasing(request, 0, 5), block-patience, block)
	f.blocked(reporting(need(request, 1), time.Minute, 1), block-patience, block)

	// Without a Block, and for more than the limit, nobody is banned.
	request = f.limit(2, long)
	f.plain(banning(need(request, 3), block))
	f.granted(need(request, 2))
	f.plain(request)
	f.plain(banning(need(request, 3), block))
	f.blocked(banning(request, time.Minute), long-patience, long) // the log has room later
}

// One filling bans once, and a ban outlives a log that is empty.
func banEnds(f *fixture) {
	const block = 300 * time.Millisecond
	request := banning(f.limit(1, long), block)
	f.granted(request)
	f.blocked(request, long-patience, long)
	time.Sleep(block + slack)
	f.plain(request)
	f.plain(request)

	request = banning(f.limit(1, store.MinWindow), 2*store.MinWindow)
	f.granted(request)
	began := time.Now()
	f.blocked(request, 2*store.MinWindow, 2*store.MinWindow)
	time.Sleep(store.MinWindow + 100*time.Millisecond)
	a := f.take(request)[0]
	if time.Since(began) < 2*store.MinWindow && !(a.Blocked && a.Remaining == 1) {
		f.Errorf("%+v after the window, want the ban to go on", a)
	}
	time.Sleep(store.MinWindow - 100*time.Millisecond + slack)
	f.granted(request)
	f.blocked(request, 2*store.MinWindow, 2*store.MinWindow) // a new filling
}

func banOfSeveral(f *fixture) {
	const block = 2 * long
	full, free := banning(f.limit(1, long), block), banning(f.limit(1, long), block)
	f.granted(full)
	a := f.take(full, free)
	if !a[0].Blocked || a[1].Blocked || a[1].Charged() {
		f.Errorf("%+v, want the first blocked and nothing charged", a)
	}
	f.granted(free)
	a = f.take(banning(full, 0), free)
	if !a[0].Blocked || !a[1].Blocked {
		f.Errorf("%+v, want a ban by the second", a)
	}

	// A shadow request's ban is its own.
	weak := banning(f.limit(1, long), block)
	weak.Shadow = true
	f.granted(weak)
	firm := f.limit(10, long)
	for range 3 {
		a = f.take(firm, weak)
		if !a[0].Charged() || !a[1].Blocked || a[1].Granted {
			f.Errorf("%+v, want the first charged, and the second blocked", a)
		}
	}
	f.remaining(firm, 7)
}

// Five are in flight when the sixth comes; then the five turn out not to count.
func banAndRefund(f *fixture) {
	const block = 2 * long
	request := banning(f.limit(5, long), block)
	var charges []store.Decision
	for range 5 {
		charges = append(charges, f.granted(request))
	}
	f.blocked(request, block, block)
	wrong := refundOf(request, charges[0], 1)
	wrong.Mark++
	f.refund(wrong)
	f.blocked(request, block-patience, block)
	for _, a := range charges {
		f.refund(refundOf(request, a, 1))
	}
	if a := f.granted(request); a.Remaining != 4 {
		f.Errorf("%+v, want 4 remaining", a)
	}

	// The first of them lifts it already. Then a new one needs a new unit.
	request = banning(f.limit(2, long), block)
	a := f.granted(request)
	f.granted(request)
	f.blocked(request, block, block)
	f.refund(refundOf(request, a, 1))
	f.plain(need(request, 2))
	f.granted(request)
	f.blocked(need(request, 2), block, block)
}

// However many are refused at once, one ban begins.
func banUnderConcurrency(f *fixture) {
	const block = 2 * long
	request := banning(f.limit(3, long), block)
	f.granted(need(request, 3))
	began := time.Now()
	var mu sync.Mutex
	first := 0
	ends := make([]time.Duration, 0, 200)
	f.together(50, 4, func(int) int64 {
		a := f.one(request)
		mu.Lock()
		defer mu.Unlock()
		if !a.Blocked {
			f.Errorf("%+v, want it blocked", a)
		}
		if a.RetryAfter == block {
			first++
		}
		ends = append(ends, a.RetryAfter)
		return 0
	})
	took := time.Since(began)
	for _, end := range ends {
		if end > block || end < block-took-slack {
			f.Errorf("blocked for %v after %v at most, want what is left of %v", end, took, block)
		}
	}
	if first == 0 || first > 150 {
		f.Errorf("%d of 200 refusals have the whole ban before them, want those at one moment", first)
	}
	time.Sleep(20 * time.Millisecond)
	f.blocked(request, block-patience, block-20*time.Millisecond)
}
