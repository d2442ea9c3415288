package redis

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const historyLimit = 30

// Inputs and outputs of a history's operations.
type (
	takes    struct{ units int64 } // none: a look
	refunds  struct{ units int64 }
	decision struct {
		known     bool // else it is not known whether it was executed
		granted   bool
		remaining int64
	}
)

// limited is a limit as a model: the state is how much of it is used.
var limited = porcupine.NondeterministicModel{
	Init: func() []any { return []any{int64(0)} },
	Step: func(state, input, output any) []any {
		used, out := state.(int64), output.(decision)
		after := used
		granted := true
		switch in := input.(type) {
		case takes:
			if granted = used+in.units <= historyLimit; granted {
				after += in.units
			}
		case refunds:
			after -= in.units
			out.granted, out.remaining = true, historyLimit-after // it does not say
		}
		switch {
		case !out.known && after != used:
			return []any{used, after}
		case out.known && (out.granted != granted || out.remaining != historyLimit-after):
			return nil
		}
		return []any{after}
	},
}

// witness notes what several callers of one key do and see.
type witness struct {
	mu    sync.Mutex
	start time.Time
	list  []porcupine.Operation
	// How many were of unknown fate, and how many of these became known.
	unknown, resolved int
}

func (w *witness) now() int64 { return int64(time.Since(w.start)) }

// add adds an operation, which is not over if its outcome is not known.
func (w *witness) add(caller int, call int64, input any, out decision) (index int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	end := w.now()
	if !out.known {
		end = math.MaxInt64
		w.unknown++
	}
	w.list = append(w.list, porcupine.Operation{ClientId: caller, Input: input, Call: call, Output: out, Return: end})
	return len(w.list) - 1
}

// learn notes the decision of a pending call.
func (w *witness) learn(index int, out decision) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list[index].Output, w.list[index].Return = out, w.now()
	w.resolved++
}

// take takes units and returns what to refund, if they were granted.
func (w *witness) take(t *testing.T, s *Store, caller int, client string, units int64) (refund store.Refund, ok bool) {
	request := one(client, historyLimit)
	request.Units = units
	var decisions [1]store.Decision
	call := w.now()
	err := s.Take(time.Now(), brief, []store.Request{request}, decisions[:])
	var e *store.Error
	switch {
	case errors.As(err, &e) && e.Unexecuted:
		return refund, false // it never was
	case errors.As(err, &e):
		index := w.add(caller, call, takes{units}, decision{})
		if e.Pending != nil {
			e.Pending.Then(func(d []store.Decision) { w.learn(index, decision{true, d[0].Granted, d[0].Remaining}) })
		}
		return refund, false
	case err != nil:
		t.Error(err)
		return refund, false
	}
	d := decisions[0]
	w.add(caller, call, takes{units}, decision{true, d.Granted, d.Remaining})
	return store.Refund{Key: request.Key, Charge: d.Charge, Units: units}, d.Charged()
}

func (w *witness) refund(t *testing.T, s *Store, caller int, refund store.Refund) {
	call := w.now()
	err := s.Refund(brief, []store.Refund{refund})
	var e *store.Error
	switch {
	case errors.As(err, &e) && e.Unexecuted:
	case errors.As(err, &e):
		w.add(caller, call, refunds{refund.Units}, decision{})
	case err != nil:
		t.Error(err)
	default:
		w.add(caller, call, refunds{refund.Units}, decision{known: true})
	}
}

// TestHistory: what callers of one key see could have happened one call after
// the other, each at a moment while it was under way. Some call through a
// network that loses requests, loses replies and delivers some late: such a
// call may have happened or not, at any time after it began, but not twice.
func TestHistory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	o := Options{Address: proxy.Addr, PoolSize: 4, Timeout: time.Second}
	stores := []*Store{warmed(t, o), warmed(t, Options{Address: server.Addr}), warmed(t, o)}

	unknown, late, total := 0, 0, 0
	for round := range 12 {
		w := &witness{start: time.Now()}
		client := fmt.Sprint("client", round)
		var group sync.WaitGroup
		for caller := range 6 {
			group.Go(func() {
				s := stores[caller%len(stores)]
				for range 15 {
					refund, ok := w.take(t, s, caller, client, rand.Int64N(4))
					if ok && rand.IntN(3) == 0 {
						w.refund(t, s, caller, refund)
					}
					time.Sleep(rand.N(5 * time.Millisecond))
				}
			})
		}
		for range 3 {
			time.Sleep(rand.N(20 * time.Millisecond))
			switch rand.IntN(3) {
			case 0:
				proxy.DropRequests(1)
			case 1:
				proxy.LoseReplies(1)
			default:
				proxy.HoldReplies()
				time.Sleep(brief * 3 / 2)
				proxy.ReleaseReplies()
			}
		}
		group.Wait()
		proxy.DropRequests(0)
		proxy.LoseReplies(0)
		for _, s := range stores {
			idle(t, s) // the pending decisions are there
		}
		w.take(t, stores[1], 0, client, 0)

		model := limited.ToModel()
		if result := porcupine.CheckOperationsTimeout(model, w.list, 20*time.Second); result != porcupine.Ok {
			t.Errorf("round %d: %v", round, result)
			for _, op := range w.list {
				t.Logf("caller %d: %T%v -> %+v, from %v to %v", op.ClientId, op.Input, op.Input, op.Output, time.Duration(op.Call), time.Duration(op.Return))
			}
			break
		}
		unknown, late, total = unknown+w.unknown, late+w.resolved, total+len(w.list)
	}
	t.Logf("%d operations; the fate of %d was unknown at first, and of %d known later", total, unknown, late)
	if late == 0 || unknown == late || unknown > total/2 {
		t.Error("want some of each")
	}
}
