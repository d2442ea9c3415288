package fallback_test

import (
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// What is done by hand holds for the counts of this process, too, while the store is away.
func TestAmendedHere(t *testing.T) {
	r := newRemote(1)
	g, _ := guardOf(t, r)
	request := zone("z", 3)
	amend := func(a store.Amendment) {
		t.Helper()
		if err := r.memory.Amend(0, request.Key, a); err != nil {
			t.Fatal(err)
		}
		g.Amended(request.Key, a)
	}
	wants := func(granted, blocked bool) {
		t.Helper()
		d := decide(g, time.Second, []store.Request{request}).Decisions[0]
		if d.Granted != granted || d.Blocked != blocked || d.Source != store.FromLocal {
			t.Fatalf("%+v, want it granted %v, blocked %v here", d, granted, blocked)
		}
	}
	for range 3 {
		decide(g, time.Second, []store.Request{request})
	}
	r.err = &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errAway}
	wants(false, false)
	amend(store.Amendment{Empty: true})
	wants(true, false)
	amend(store.Amendment{Ban: time.Hour})
	wants(false, true)
	amend(store.Amendment{Unban: true})
	wants(true, false)
}
