package storetest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// RunInflight tests a limiter of requests in flight. It calls open once for each
// subtest; what it returns may share slots with others, since no key is used twice.
func RunInflight(t *testing.T, open func(t *testing.T) *inflight.Limiter) {
	tests := []struct {
		name string
		run  func(f *flights)
	}{
		{"slots are counted", slotsCounted},
		{"a slot is released once", slotReleasedOnce},
		{"keys are apart", slotKeysApart},
		{"any bytes name a client", slotAnyClient},
		{"exact under concurrency", slotsUnderConcurrency},
		{"the limit changes", slotLimitChanges},
		{"nothing stays", slotsLeaveNothing},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(newFlights(t, open(t)))
		})
	}
}

// RunInflightShared tests that the stores that open returns share their slots, and
// what claims do.
func RunInflightShared(t *testing.T, open func(t *testing.T) inflight.Shared) {
	tests := []struct {
		name string
		run  func(t *testing.T, open func(t *testing.T) inflight.Shared)
	}{
		{"processes share a limit", slotsShared},
		{"the sum is exact under concurrency", slotsSharedUnderConcurrency},
		{"claims are absolute", claimsAbsolute},
		{"older claims are ignored", claimsInOrder},
		{"a former name counts no more", claimsOfFormerNames},
		{"a limit that is lowered", claimsAboveTheLimit},
		{"senseless claims", claimsSenseless},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, open)
		})
	}
}

// flights is a limiter under test, and what a test asks of it.
type flights struct {
	*testing.T
	limiter *inflight.Limiter
	id      string
	keys    int
}

func newFlights(t *testing.T, l *inflight.Limiter) *flights {
	t.Cleanup(l.Close)
	return &flights{T: t, limiter: l, id: fmt.Sprintf("%016x", rand.Uint64())}
}

// limit returns a request with a key that was never used.
func (f *flights) limit(limit int64) inflight.Request {
	f.keys++
	key := inflight.Key{Zone: "flights", Client: fmt.Sprintf("%s.%d", f.id, f.keys)}
	return inflight.Request{Key: key, Limit: limit, Alone: -1}
}

func (f *flights) granted(r inflight.Request, inFlight int64) *inflight.Slot {
	f.Helper()
	slot, d := f.limiter.Acquire(patience, r)
	if !d.Granted || slot == nil || d.InFlight != inFlight {
		f.Fatalf("Acquire(%+v) = %+v, want it granted, with %d in flight", r, d, inFlight)
	}
	return slot
}

func (f *flights) refused(r inflight.Request) {
	f.Helper()
	slot, d := f.limiter.Acquire(patience, r)
	if d.Granted || slot != nil || d.Source == store.FromPolicy {
		f.Fatalf("Acquire(%+v) = %+v, want it refused", r, d)
	}
}

func slotsCounted(f *flights) {
	r := f.limit(3)
	var slots []*inflight.Slot
	for i := range 3 {
		slots = append(slots, f.granted(r, int64(i)+1))
	}
	f.refused(r)
	f.refused(r)
	slots[1].Release()
	slots[1] = f.granted(r, 3)
	f.refused(r)
	for _, s := range slots {
		s.Release()
	}
	f.granted(r, 1).Release()
}

func slotReleasedOnce(f *flights) {
	r := f.limit(2)
	a, b := f.granted(r, 1), f.granted(r, 2)
	a.Release()
	a.Release()
	a = f.granted(r, 2)
	f.refused(r)
	a.Release()
	b.Release()
	(*inflight.Slot)(nil).Release()
}

func slotKeysApart(f *flights) {
	r := f.limit(1)
	defer f.granted(r, 1).Release()
	f.refused(r)
	other := r
	other.Zone = "others"
	defer f.granted(other, 1).Release()
	other = r
	other.Client += "."
	defer f.granted(other, 1).Release()
}

func slotAnyClient(f *flights) {
	for _, client := range []string{"", "\x00\xff{}:", f.id + "{a}", f.id + "\n\r*3"} {
		r := f.limit(1)
		r.Zone, r.Client = "bytes"+f.id, client
		slot := f.granted(r, 1)
		f.refused(r)
		slot.Release()
	}
}

func slotsUnderConcurrency(f *flights) {
	const limit, callers, times = 5, 24, 30
	r := f.limit(limit)
	var now, most, total atomic.Int64
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for range times {
				slot, d := f.limiter.Acquire(patience, r)
				if !d.Granted {
					continue
				}
				total.Add(1)
				raise(&most, now.Add(1))
				time.Sleep(rand.N(300 * time.Microsecond))
				now.Add(-1)
				slot.Release()
			}
		})
	}
	group.Wait()
	if most.Load() > limit || total.Load() < callers {
		f.Errorf("%d in flight at once with a limit of %d, %d in all", most.Load(), limit, total.Load())
	}
	f.granted(r, 1).Release()
}

// raise raises the highest value seen.
func raise(most *atomic.Int64, n int64) {
	for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
	}
}

func slotLimitChanges(f *flights) {
	r := f.limit(3)
	slots := []*inflight.Slot{f.granted(r, 1), f.granted(r, 2), f.granted(r, 3)}
	r.Limit = 2
	slots[0].Release()
	f.refused(r)
	slots[1].Release()
	slots[1] = f.granted(r, 2)
	r.Limit = 5
	f.granted(r, 3).Release()
	slots[1].Release()
	slots[2].Release()
}

func slotsLeaveNothing(f *flights) {
	r := f.limit(2)
	for range 50 {
		a, b := f.granted(r, 1), f.granted(r, 2)
		f.refused(r)
		a.Release()
		b.Release()
	}
}

// soon wants something to become true.
func soon(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func processes(t *testing.T, n int, open func(t *testing.T) inflight.Shared) []*flights {
	var all []*flights
	for range n {
		all = append(all, newFlights(t, inflight.NewTable().Limiter(open(t))))
	}
	return all
}

func slotsShared(t *testing.T, open func(t *testing.T) inflight.Shared) {
	p := processes(t, 3, open)
	r := p[0].limit(3)
	a, b, c := p[0].granted(r, 1), p[1].granted(r, 2), p[2].granted(r, 3)
	for _, f := range p {
		f.refused(r)
	}
	b.Release()
	soon(t, "the slot is free for others", func() bool {
		slot, d := p[2].limiter.Acquire(patience, r)
		b = slot
		return d.Granted
	})
	p[0].refused(r)
	p[1].refused(r)
	a.Release()
	b.Release()
	c.Release()
	soon(t, "all slots are free", func() bool {
		slot, d := p[1].limiter.Acquire(patience, r)
		slot.Release()
		return d.Granted && d.InFlight == 1
	})
}

func slotsSharedUnderConcurrency(t *testing.T, open func(t *testing.T) inflight.Shared) {
	const limit, callers, times = 4, 6, 40
	p := processes(t, 3, open)
	r := p[0].limit(limit)
	var now, most, total atomic.Int64
	var group sync.WaitGroup
	for _, f := range p {
		for range callers {
			group.Go(func() {
				for range times {
					slot, d := f.limiter.Acquire(patience, r)
					if !d.Granted {
						time.Sleep(rand.N(time.Millisecond))
						continue
					}
					total.Add(1)
					raise(&most, now.Add(1))
					time.Sleep(rand.N(time.Millisecond))
					now.Add(-1)
					slot.Release()
				}
			})
		}
	}
	group.Wait()
	if most.Load() > limit || total.Load() < 100 {
		t.Errorf("%d in flight at once with a limit of %d, %d in all", most.Load(), limit, total.Load())
	}
}

// claimant makes claims in the name of a process.
type claimant struct {
	*testing.T
	store inflight.Shared
	claim inflight.Claim
}

func newClaimants(t *testing.T, store inflight.Shared, limit int64, n int) []*claimant {
	var all []*claimant
	key := inflight.Key{Zone: "claims", Client: fmt.Sprintf("%016x", rand.Uint64())}
	for range n {
		life := fmt.Sprintf("%08x", rand.Uint32())
		all = append(all, &claimant{t, store, inflight.Claim{Key: key, Limit: limit, Life: life}})
	}
	return all
}

// claims makes a claim, and wants so many slots to be granted, and so many to be in
// flight.
func (c *claimant) claims(seq, held, want, granted, inFlight int64) {
	c.Helper()
	claims, outcomes := []inflight.Claim{c.claim}, make([]inflight.Outcome, 1)
	claims[0].Seq, claims[0].Held, claims[0].Want = seq, held, want
	c.store.Claim(patience, claims, outcomes)
	if o := outcomes[0]; o.Err != nil || o.Granted != granted || o.InFlight != inFlight {
		c.Fatalf("Claim(%+v) = %+v, want %d granted and %d in flight", claims[0], o, granted, inFlight)
	}
}

func claimsAbsolute(t *testing.T, open func(t *testing.T) inflight.Shared) {
	p := newClaimants(t, open(t), 10, 3)
	p[0].claims(1, 0, 4, 4, 4)
	p[1].claims(1, 0, 4, 4, 8)
	p[2].claims(7, 0, 4, 2, 10)
	p[0].claims(2, 4, 1, 0, 10)
	p[0].claims(3, 1, 0, 0, 7)
	p[0].claims(4, 1, 0, 0, 7)
	p[1].claims(2, 4, 9, 3, 10)
	p[1].claims(3, 0, 0, 0, 3)
	p[1].claims(4, 2, 0, 0, 5) // what it holds counts, whoever granted it
	p[0].claims(5, 0, 0, 0, 4)
	p[2].claims(8, 0, 0, 0, 2)
	p[1].claims(5, 0, 0, 0, 0)
}

func claimsInOrder(t *testing.T, open func(t *testing.T) inflight.Shared) {
	p := newClaimants(t, open(t), 10, 2)
	p[0].claims(5, 2, 2, 2, 4)
	p[0].claims(4, 9, 1, 0, 4)
	p[0].claims(5, 2, 2, 2, 4) // the same again
	p[1].claims(1, 1, 0, 0, 5) // others count for themselves
	p[0].claim.Keep = true
	p[0].claims(6, 0, 0, 0, 1)
	p[0].claims(5, 2, 2, 0, 1) // late, after nothing was held
	p[0].claim.Keep = false
	p[0].claims(8, 0, 1, 1, 2)
	p[0].claims(9, 0, 0, 0, 1)
	p[0].claims(5, 2, 2, 0, 1) // it is still remembered
	p[1].claims(2, 0, 0, 0, 0)
	p[0].claims(5, 2, 2, 0, 0)
}

func claimsOfFormerNames(t *testing.T, open func(t *testing.T) inflight.Shared) {
	p := newClaimants(t, open(t), 10, 3)
	p[0].claims(1, 0, 4, 4, 4)
	p[1].claims(1, 0, 4, 4, 8)
	p[2].claim.Former = []string{"unknown.", p[0].claim.Life}
	p[2].claims(1, 3, 9, 3, 10)
	p[1].claims(2, 4, 0, 0, 10)
}

func claimsAboveTheLimit(t *testing.T, open func(t *testing.T) inflight.Shared) {
	p := newClaimants(t, open(t), 10, 2)
	p[0].claims(1, 0, 8, 8, 8)
	p[0].claim.Limit, p[1].claim.Limit = 5, 5
	p[0].claims(2, 8, 3, 0, 8)
	p[1].claims(1, 0, 1, 0, 8)
	p[0].claims(3, 4, 3, 1, 5)
	p[1].claim.Limit = inflight.MaxLimit
	p[1].claims(2, 0, inflight.MaxLimit, inflight.MaxLimit-5, inflight.MaxLimit)
	p[1].claims(3, 0, 0, 0, 5)
	p[0].claims(4, 0, 0, 0, 0)
}

func claimsSenseless(t *testing.T, open func(t *testing.T) inflight.Shared) {
	s := open(t)
	good := newClaimants(t, s, 10, 1)[0].claim
	good.Seq = 1
	for what, spoil := range map[string]func(c *inflight.Claim){
		"no limit":        func(c *inflight.Claim) { c.Limit = 0 },
		"large limit":     func(c *inflight.Claim) { c.Limit = inflight.MaxLimit + 1 },
		"less than none":  func(c *inflight.Claim) { c.Held = -1 },
		"wants to return": func(c *inflight.Claim) { c.Want = -1 },
		"no life":         func(c *inflight.Claim) { c.Life = "" },
		"no number":       func(c *inflight.Claim) { c.Seq = 0 },
		"long client":     func(c *inflight.Claim) { c.Client = string(make([]byte, store.MaxClientBytes+1)) },
		"many names":      func(c *inflight.Claim) { c.Former = make([]string, inflight.MaxFormer+1) },
	} {
		c := good
		spoil(&c)
		outcomes := make([]inflight.Outcome, 1)
		s.Claim(patience, []inflight.Claim{c}, outcomes)
		if outcomes[0].Err == nil {
			t.Errorf("%s: %+v was accepted", what, c)
		}
	}
	outcomes := make([]inflight.Outcome, 1)
	if s.Claim(0, []inflight.Claim{good}, outcomes); store.ErrorKind(outcomes[0].Err) != store.KindBudget {
		t.Errorf("without time: %v, want an error of kind budget", outcomes[0].Err)
	}
}
