package storetest

import (
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func retryAfterIsTrue(f *fixture) {
	for _, limit := range []int64{1, 100} {
		request, before, after, retry := f.usedUp(limit)
		for {
			sent := time.Now()
			a := f.take(request)[0]
			decided := time.Now()
			if a.Granted {
				if decided.Before(before.Add(retry - slack)) {
					f.Errorf("limit %d: granted %v after the refusal, which said %v", limit, decided.Sub(before), retry)
				}
				break
			}
			if sent.After(after.Add(retry + slack)) {
				f.Fatalf("limit %d: refused %v after the refusal, which said %v: %+v", limit, sent.Sub(after), retry, a)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
}

// usedUp returns a key with nothing left, and the refusal that it got between
// two moments.
func (f *fixture) usedUp(limit int64) (request store.Request, before, after time.Time, retry time.Duration) {
	const window = store.MinWindow
	for range 20 {
		request = f.limit(limit, window)
		began := time.Now()
		f.granted(need(request, limit))
		before = time.Now()
		a := f.take(request)[0]
		after = time.Now()
		switch {
		case !a.Granted && a.RetryAfter > window:
			f.Fatalf("%+v, want a retry within %v", a, window)
		case !a.Granted:
			return request, before, after, a.RetryAfter
		case after.Sub(began) < window-slack:
			f.Fatalf("granted %v after the limit of %d was used up", after.Sub(began), limit)
		}
	}
	f.Fatalf("no attempt took less than %v", window)
	return
}

func resetIsTrue(f *fixture) {
	request := f.limit(5, store.MinWindow)
	f.granted(request)
	a := f.granted(leasing(request, 1, 1))
	if a.Reset <= 0 || a.Reset > store.MinWindow {
		f.Fatalf("%+v, want a reset within the window", a)
	}
	time.Sleep(a.Reset + slack)
	if a := f.take(lookAt(request))[0]; a.Remaining != 5 || a.Reset != 0 {
		f.Errorf("after the reset: %+v, want the whole limit", a)
	}
}

// A client that keeps hammering gets its limit in every window: its refused
// calls use nothing up.
func refusalsAreFree(f *fixture) {
	const limit, window, windows = 5, store.MinWindow, 3
	request := f.limit(limit, window)
	h := f.hammer(4, request, func(granted int) bool { return granted < windows*limit })
	h.strict(f.T, limit, window)
	h.fair(f.T, limit, window)
	if len(h.granted) < windows*limit {
		f.Errorf("%d granted and %d refused in a minute, want at least %d granted", len(h.granted), len(h.refused), windows*limit)
	}
}

// Above 64 units a log is kept in less detail; it may hold units for longer,
// by up to a sixty-fourth of the window, and never for less.
func everyWindow(f *fixture) {
	const limit, window = 200, store.MinWindow
	request := f.limit(limit, window)
	begin := time.Now()
	h := f.hammer(6, request, func(int) bool { return time.Since(begin) < 5*window/2 })
	h.strict(f.T, limit, window)
	h.fair(f.T, limit, window+window/64)
}

// hammer asks again and again from some goroutines while more says so, given
// how much each has got about, for a minute at most.
func (f *fixture) hammer(goroutines int, request store.Request, more func(granted int) bool) (all history) {
	deadline := time.Now().Add(time.Minute)
	var mu sync.Mutex
	total := 0
	count := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		total += n
		return total
	}
	histories := make([]history, goroutines)
	f.together(goroutines, 1, func(i int) int64 {
		h := &histories[i]
		for got := 0; more(count(got)) && time.Now().Before(deadline) && !f.Failed(); {
			got = 0
			s := Span{From: time.Now(), Units: request.Units}
			a := f.one(request)
			s.To = time.Now()
			if a.Granted {
				h.granted = append(h.granted, s)
				got = 1
			} else {
				h.refused = append(h.refused, s)
				time.Sleep(time.Millisecond)
			}
		}
		return 0
	})
	for _, h := range histories {
		all.add(h)
	}
	return all
}
