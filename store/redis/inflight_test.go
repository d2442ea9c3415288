package redis

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// holder is a process that holds slots.
type holder struct {
	*testing.T
	store   *Store
	table   *inflight.Table
	limiter *inflight.Limiter
}

// newHolder opens a store for another process, and waits until the server is there.
func newHolder(t *testing.T, o Options) *holder {
	t.Helper()
	return holderOn(t, warmed(t, o))
}

func holderOn(t *testing.T, s *Store) *holder {
	h := &holder{T: t, store: s, table: inflight.NewTable()}
	h.limiter = h.table.Limiter(s)
	t.Cleanup(h.limiter.Close)
	return h
}

func slotOfKey(client string, limit int64) inflight.Request {
	return inflight.Request{Key: inflight.Key{Zone: "zone", Client: client}, Limit: limit, Alone: -1}
}

// hold takes so many slots.
func (h *holder) hold(r inflight.Request, n int) (slots []*inflight.Slot) {
	h.Helper()
	for range n {
		var slot *inflight.Slot
		eventually(h.T, "a slot is granted", func() bool {
			var d inflight.Decision
			slot, d = h.limiter.Acquire(patience, r)
			if !d.Granted && d.Source == store.FromStore {
				h.Fatalf("Acquire(%+v) = %+v", r, d)
			}
			return d.Granted
		})
		slots = append(slots, slot)
	}
	return slots
}

// refused wants no slot to be free.
func (h *holder) refused(r inflight.Request) {
	h.Helper()
	if _, d := h.limiter.Acquire(patience, r); d.Granted || d.Source == store.FromPolicy {
		h.Fatalf("Acquire(%+v) = %+v, want it refused by the store", r, d)
	}
}

// inFlight is how many slots a store counts, as a claim of nothing tells.
func (h *holder) inFlight(r inflight.Request) int64 {
	claims := []inflight.Claim{{Key: r.Key, Limit: r.Limit, Life: "observer", Seq: 1}}
	outcomes := make([]inflight.Outcome, 1)
	if h.store.Claim(patience, claims, outcomes); outcomes[0].Err != nil {
		return -1
	}
	return outcomes[0].InFlight
}

func (h *holder) counts(r inflight.Request, want int64) {
	h.Helper()
	eventually(h.T, fmt.Sprintf("the store counts %d slots", want), func() bool { return h.inFlight(r) == want })
}

func releaseAll(slots []*inflight.Slot) {
	for _, s := range slots {
		s.Release()
	}
}

// Operations of a history of slots.
type (
	acquires struct{}
	releases struct{}
)

// slotModel is a limit of slots: the state is how many are in flight. With faults, slots
// of calls of unknown fate may count for a while, so that any request may be refused.
func slotModel(limit int, faults bool) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, input, output any) (bool, any) {
			n := state.(int)
			switch input.(type) {
			case releases:
				return n > 0, n - 1
			default:
				if output.(bool) {
					return n < limit, n + 1
				}
				return faults || n == limit, n
			}
		},
	}
}

// TestInflightHistory: what callers of several processes see could have happened one
// after the other, each at a moment while it was under way. A release is under way
// until the store has heard it.
func TestInflightHistory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	holders := []*holder{
		newHolder(t, Options{Address: proxy.Addr, PoolSize: 4, Timeout: time.Second}),
		newHolder(t, Options{Address: server.Addr}), newHolder(t, Options{Address: server.Addr}),
	}
	for round := range 12 {
		faults := round%2 == 1
		limit, r := 3, slotOfKey(fmt.Sprint("client", round), 3)
		start := time.Now()
		var mu sync.Mutex
		var list []porcupine.Operation
		note := func(caller int, call int64, input any, granted bool) {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, porcupine.Operation{ClientId: caller, Input: input, Call: call, Output: granted, Return: int64(time.Since(start))})
		}
		var group sync.WaitGroup
		refused := 0
		for caller := range 6 {
			h := holders[caller%len(holders)]
			group.Go(func() {
				wait := patience
				if faults {
					wait = brief
				}
				for range 15 {
					call := int64(time.Since(start))
					slot, d := h.limiter.Acquire(wait, r)
					if d.Source != store.FromPolicy {
						note(caller, call, acquires{}, d.Granted)
					}
					if !d.Granted {
						mu.Lock()
						refused++
						mu.Unlock()
					}
					time.Sleep(rand.N(4 * time.Millisecond))
					if slot != nil {
						call = int64(time.Since(start))
						slot.Release()
						for !h.table.Settled() {
							time.Sleep(50 * time.Microsecond)
						}
						note(caller, call, releases{}, true)
					}
				}
			})
		}
		for range 3 {
			if !faults {
				break
			}
			time.Sleep(rand.N(20 * time.Millisecond))
			proxy.DropRequests(rand.IntN(2))
			proxy.LoseReplies(rand.IntN(2))
		}
		group.Wait()
		proxy.DropRequests(0)
		proxy.LoseReplies(0)
		if result := porcupine.CheckOperationsTimeout(slotModel(limit, faults), list, 20*time.Second); result != porcupine.Ok {
			t.Errorf("round %d, faults %v: %v", round, faults, result)
			for _, op := range list {
				t.Logf("caller %d: %T -> %v, from %v to %v", op.ClientId, op.Input, op.Output, time.Duration(op.Call), time.Duration(op.Return))
			}
			break
		}
		for _, h := range holders {
			eventually(t, "the store has heard all", h.table.Settled)
		}
		holders[1].counts(r, 0)
		if refused == 0 {
			t.Errorf("round %d: nobody was refused", round)
		}
	}
}

// TestInflightCutOff: the slots of a process that is cut off go to others, and those of
// no other. When it is back it claims what it holds, and all is as before.
func TestInflightCutOff(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	a, b, c := newHolder(t, Options{Address: proxy.Addr}), newHolder(t, Options{Address: server.Addr}), newHolder(t, Options{Address: server.Addr})
	r := slotOfKey("client", 4)
	cutOff, kept := a.hold(r, 2), b.hold(r, 2)
	life := a.table.Life()
	time.Sleep(listTime + 2*time.Second) // until b and c may judge
	proxy.Blackhole(true, true)
	began := time.Now()
	for time.Since(began) < 8*time.Second {
		c.refused(r)
		time.Sleep(100 * time.Millisecond)
	}
	var taken []*inflight.Slot
	eventually(t, "the slots go to others", func() bool {
		slot, d := c.limiter.Acquire(patience, r)
		if d.Granted {
			taken = append(taken, slot)
		}
		return d.Granted
	})
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the slots were back after %v", took)
	}
	taken = append(taken, c.hold(r, 1)...)
	c.refused(r)

	proxy.Blackhole(false, false)
	a.counts(r, 6) // those of a come on top, and are known again
	if a.table.Life() == life {
		t.Error("the process goes by its old name")
	}
	releaseAll(taken)
	c.counts(r, 4)
	c.refused(r)
	releaseAll(cutOff)
	releaseAll(kept)
	c.counts(r, 0)
	nothingLeft(t, server, a, b)
}

// nothingLeft wants the store to count no slots, once it has heard all. It may remember
// for a minute that there are none.
func nothingLeft(t *testing.T, server *redistest.Server, holders ...*holder) {
	t.Helper()
	for _, h := range holders {
		eventually(t, "the store has heard all", h.table.Settled)
	}
	for _, key := range server.Keys(t) {
		if !strings.HasPrefix(key, "drl:s1:") {
			continue
		}
		if ttl := server.Do(t, "PTTL", key).(int64); ttl > 61_000 {
			t.Fatalf("the record %s holds %q", key, server.Do(t, "GET", key))
		}
	}
}

// TestInflightPause: a server that stops for longer than processes are waited for has
// nobody's slots dropped, also if it hears from some sooner than from others.
func TestInflightPause(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	a, b := newHolder(t, Options{Address: proxy.Addr}), newHolder(t, Options{Address: server.Addr})
	r := slotOfKey("client", 2)
	held := a.hold(r, 2)
	time.Sleep(listTime + time.Second)
	proxy.Blackhole(true, true) // else the server finds heartbeats that it was sent meanwhile
	server.Stop()
	time.Sleep(lifeTime + deadTime + 2*time.Second)
	server.Cont()
	eventually(t, "the store is back", func() bool { return b.inFlight(r) >= 0 })
	for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(50 * time.Millisecond) {
		b.refused(r)
	}
	proxy.Blackhole(false, false)
	b.counts(r, 2)
	releaseAll(held)
	b.counts(r, 0)
}

// TestInflightLoss: after a loss, processes claim what they hold.
func TestInflightLoss(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := newHolder(t, Options{Address: server.Addr}), newHolder(t, Options{Address: server.Addr})
	r := slotOfKey("client", 1000)
	held := append(a.hold(r, 30), b.hold(r, 20)...)
	var many []*inflight.Slot
	for i := range 300 {
		many = append(many, a.hold(slotOfKey(fmt.Sprint(i), 1), 1)...)
	}
	time.Sleep(2 * beatEvery)
	server.Do(t, "FLUSHALL")
	a.counts(r, 50)
	for i := range 300 {
		a.counts(slotOfKey(fmt.Sprint(i), 1), 1)
	}
	releaseAll(held)
	releaseAll(many)
	b.counts(r, 0)
	nothingLeft(t, server, a, b)

	held = a.hold(r, 3)
	server.Restart(t) // empty
	a.counts(r, 3)
	releaseAll(held)
	a.counts(r, 0)
}

// TestInflightIdle: slots that are held cost the server heartbeats only, and a record
// takes what the processes take, whatever they hold.
func TestInflightIdle(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := newHolder(t, Options{Address: server.Addr}), newHolder(t, Options{Address: server.Addr})
	const streams = 20_000
	slots := make([]*inflight.Slot, streams)
	var group sync.WaitGroup
	for worker := range 64 {
		group.Go(func() {
			for i := worker; i < streams; i += 64 {
				slots[i], _ = a.limiter.Acquire(patience, slotOfKey(fmt.Sprint(i/2), 2))
			}
		})
	}
	group.Wait()
	large := slotOfKey("large", 1_000_000)
	held := append(a.hold(large, 500), b.hold(large, 500)...)
	for i, s := range slots {
		if s == nil {
			t.Fatalf("slot %d was refused", i)
		}
	}
	runs, beats := server.Calls(t, "evalsha"), server.Calls(t, "eval")
	time.Sleep(5 * time.Second)
	moreRuns, moreBeats := server.Calls(t, "evalsha")-runs, server.Calls(t, "eval")-beats
	if moreRuns != 0 || moreBeats < 4 || moreBeats > 2*8 {
		t.Errorf("%d runs and %d heartbeats in 5 s", moreRuns, moreBeats)
	}
	if size := server.Do(t, "STRLEN", a.store.keys.claimKey(&large.Key)).(int64); size != 2*28 {
		t.Errorf("a record of 1000 slots of two processes takes %d bytes", size)
	}
	releaseAll(slots)
	releaseAll(held)
	nothingLeft(t, server, a, b)
	t.Logf("%d runs for %d slots", server.Calls(t, "evalsha"), streams)
}

// TestInflightClosed: slots that are released after their store was closed are told
// all the same.
func TestInflightClosed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := newHolder(t, Options{Address: server.Addr}), newHolder(t, Options{Address: server.Addr})
	r := slotOfKey("client", 2)
	held := a.hold(r, 2)
	a.limiter.Close()
	a.store.Close()
	releaseAll(held)
	b.counts(r, 0)
	held = b.hold(r, 2)
	b.table.Leave(patience)
	if got := b.inFlight(r); got != 0 {
		t.Errorf("%d slots are left", got)
	}
	releaseAll(held)
}

// TestInflightRights: claims need no other rights than other calls.
func TestInflightRights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do(t, "ACL", "SETUSER", "limiter", "on", ">hunter2", "resetkeys", "~drl:*", "resetchannels", "-@all",
		"+evalsha", "+eval", "+script|load", "+time", "+get", "+mget", "+set", "+del", "+info")
	h := newHolder(t, Options{Address: server.Addr, Username: "limiter", Password: "hunter2"})
	r := slotOfKey("client", 2)
	held := h.hold(r, 2)
	h.refused(r)
	eventually(t, "the server keeps a list of lives", func() bool { return len(server.Keys(t)) >= 4 })
	server.Do(t, "SCRIPT", "FLUSH")
	releaseAll(held)
	h.counts(r, 0)
}

func sentinelInflight(t *testing.T, r *redistest.Sentinel) {
	s := warmed(t, behind(r))
	a, b := holderOn(t, s), holderOn(t, warmed(t, behind(r)))
	request := slotOfKey("failover", 5)
	held := append(a.hold(request, 3), b.hold(request, 2)...)
	time.Sleep(beatEvery * 2)
	r.Failover(t)
	a.counts(request, 5)
	eventually(t, "the store decides", func() bool {
		_, d := a.limiter.Acquire(patience, request)
		if d.Granted {
			t.Fatalf("more than the limit after a planned failover: %+v", d)
		}
		return d.Source == store.FromStore
	})
	releaseAll(held)
	a.counts(request, 0)
}

// clusterInflight: slots on several servers, while hash slots move.
func clusterInflight(t *testing.T, r *clusterRig) {
	a, b := holderOn(t, warmed(t, r.options())), holderOn(t, warmed(t, r.options()))
	var held []*inflight.Slot
	var requests []inflight.Request
	for i := range 60 {
		requests = append(requests, slotOfKey(r.client(i%masters), 2))
		held = append(held, a.hold(requests[i], 1)...)
		held = append(held, b.hold(requests[i], 1)...)
	}
	moving := requests[0]
	slot := int(r.keys.slot(moving.Client))
	r.StartMigration(t, slot, r.Nodes[0], r.Nodes[1])
	a.refused(moving)
	r.MoveKeys(t, slot, 1000)
	b.refused(moving)
	held[0].Release()
	b.counts(moving, 1)
	held[0] = b.hold(moving, 1)[0]
	r.FinishMigration(t, slot)
	a.refused(moving)
	for _, request := range requests {
		a.refused(request)
	}
	releaseAll(held)
	for _, request := range requests {
		b.counts(request, 0)
	}
	r.Migrate(t, slot, r.Nodes[1], r.Nodes[0])
}
