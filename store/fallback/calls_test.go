package fallback_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// trial is one request of a call that fails in part.
type trial struct {
	policy fallback.Policy
	fate   store.Fate
	shadow bool
	spent  int // where the limit is used up: nowhere, at the store, or here
}

const (
	nowhere = iota
	there
	here
)

// trials is how many a request can have, and newTrial one of them by its number.
const trials = 3 * 3 * 2 * 3

func newTrial(n int) trial {
	return trial{policy: fallback.Policy(n % 3), fate: store.Fate(n / 3 % 3), shadow: n/9%2 == 1, spent: n / 18}
}

// perform makes one call, and compares what becomes of it with what the contract
// says.
func perform(t *testing.T, g *fallback.Guard, r *remote, cautious bool, client string, trials ...trial) {
	const limit = 3
	var requests []store.Request
	var policies []fallback.Policy
	var fates []store.Fate
	refusedThere, denied, refusedHere, holdRefused, whole := false, false, false, false, true
	for i, a := range trials {
		request := zone(fmt.Sprint("zone", i), limit)
		request.Key.Client, request.Units = client, limit
		used := make([]store.Decision, 1)
		switch a.spent {
		case there:
			_ = r.memory.Take(time.Time{}, 0, []store.Request{request}, used)
		case here: // the store grants it, and forgets
			c := decide(g, time.Second, []store.Request{request})
			_ = r.memory.Refund(0, []store.Refund{{Key: request.Key, Charge: c.Decisions[0].Charge, Units: limit}})
		}
		request.Units, request.Shadow = 1, a.shadow
		requests, policies, fates = append(requests, request), append(policies, a.policy), append(fates, a.fate)

		known, firm := a.fate == store.FateDecided, !a.shadow
		whole = whole && known
		refusedThere = refusedThere || known && firm && a.spent == there
		denied = denied || !known && firm && a.policy == fallback.Deny
		refusedHere = refusedHere || !known && firm && a.policy == fallback.Decide && a.spent == here
		holdRefused = holdRefused || cautious && firm && a.spent == here
	}
	r.fates = fates
	if whole {
		r.fates = nil
	}
	c := decide(g, time.Second, slices.Clone(requests), policies...)
	r.fates = nil
	synctest.Wait()

	granted := !holdRefused && !refusedThere && !denied && !refusedHere
	if denied = denied && !holdRefused && !refusedThere; c.Granted() != granted || c.Denied != denied {
		t.Errorf("cautious %v, %+v: granted %v, denied %v; want %v, %v", cautious, trials, c.Granted(), c.Denied, granted, denied)
	}
	for i, a := range trials {
		d, known := c.Decisions[i], a.fate == store.FateDecided
		atStore := granted && a.fate != store.FateUnexecuted && a.spent != there
		local := granted && !known && a.policy == fallback.Decide && a.spent != here
		charged := granted && known && a.spent != there || local || !holdRefused && !whole && a.fate == store.FateUnknown
		if c.Charged(i) != charged {
			t.Errorf("cautious %v, %+v: request %d is charged: %v, want %v; %+v", cautious, trials, i, c.Charged(i), charged, d)
		}
		if !granted && d.Charged() {
			t.Errorf("cautious %v, %+v: request %d of a refused call: %+v", cautious, trials, i, d)
		}

		look := requests[i]
		look.Units = 0
		left := make([]store.Decision, 1)
		_ = r.memory.Take(time.Time{}, 0, []store.Request{look}, left)
		if want := remaining(limit, a.spent == there, atStore); left[0].Remaining != want {
			t.Errorf("cautious %v, %+v: %d units of request %d remain at the store, want %d", cautious, trials, left[0].Remaining, i, want)
		}
		r.err = &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errAway}
		observed := local || granted && known && a.spent != there
		if got, want := decide(g, 0, []store.Request{look}).Decisions[0].Remaining, remaining(limit, a.spent == here, observed); got != want {
			t.Errorf("cautious %v, %+v: %d units of request %d remain here, want %d", cautious, trials, got, i, want)
		}
		r.err = nil
		r.reported()
		decide(g, time.Second, []store.Request{look})
		if got := r.reported() > 0; got != (local && a.fate == store.FateUnexecuted) {
			t.Errorf("cautious %v, %+v: request %d is reported: %v", cautious, trials, i, got)
		}
	}
}

func remaining(limit int64, spent, charged bool) int64 {
	if spent {
		return 0
	}
	if charged {
		limit--
	}
	return limit
}

// Whatever the policies, the fates and the limits of a call's requests are: the
// call is granted and charged as a whole or not at all, and what the store does not
// know of is reported to it.
func TestEveryCallIsWhole(t *testing.T) {
	for _, cautious := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRemote(1)
			r.settings.Cautious = cautious
			g, _ := guardOf(t, r)
			lost := store.Report{Server: "s", Condition: store.Up, Instances: 1, Lost: "it is empty"}
			r.do(lost)
			clients := 0
			client := func() string { clients++; return fmt.Sprint("client ", clients) }
			for a := range trials {
				perform(t, g, r, cautious, client(), newTrial(a))
				for b := range trials {
					perform(t, g, r, cautious, client(), newTrial(a), newTrial(b))
				}
			}
			rng := rand.New(rand.NewPCG(1, 1))
			for range 3000 {
				perform(t, g, r, cautious, client(), newTrial(rng.IntN(trials)), newTrial(rng.IntN(trials)), newTrial(rng.IntN(trials)))
			}
		})
	}
}
