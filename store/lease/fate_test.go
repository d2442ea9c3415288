package lease

import (
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// partial is a store of which one server has decided the first request, and the
// others do not answer.
type partial struct{ store.Store }

func (p partial) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	fates := make([]store.Fate, len(requests))
	fates[0] = store.FateDecided
	if err := p.Store.Take(now, wait, requests[:1], decisions[:1]); err != nil {
		return err
	}
	known := make([]store.Decision, len(requests))
	known[0] = decisions[0]
	pending := new(store.Pending)
	pending.Deliver(known)
	return &store.Error{Kind: store.KindTimeout, Fates: fates, Pending: pending, Err: errLost}
}

// A call fails. What its requests were to be served from here was certainly never
// counted by the store, whatever has become of the others: whoever grants them all
// the same must report them.
func TestFateOfWhatIsInHand(t *testing.T) {
	for name, fail := range map[string]func(w *wire){
		"the reply is lost": func(w *wire) { w.mute = true },
		"the reply is late": func(w *wire) { w.patience, w.back = 10*time.Millisecond, 20*time.Millisecond },
	} {
		inBubble(t, func(r *rig) {
			other := r.request
			other.Key.Zone = "other"
			r.heat(r.request)
			have := r.inHand(r.request)
			r.wire.set(fail)
			err := r.Take(time.Now(), budget, []store.Request{r.request, other}, make([]store.Decision, 2))
			e, ok := err.(*store.Error)
			if !ok || e.Unexecuted || e.Fate(0) != store.FateUnexecuted || e.Fate(1) != store.FateUnknown {
				t.Errorf("%s: %+v, want the first certainly not executed, the second of unknown fate", name, err)
			}
			r.want(name+": in hand", r.inHand(r.request), have)
			time.Sleep(time.Second)
		})
	}
}

// A shadow request is refused from memory, and its call fails in part: it has no
// part in what became of the others.
func TestFateOfARememberedRefusal(t *testing.T) {
	inBubble(t, func(r *rig) {
		full, lost := r.request, r.request
		full.Key.Zone, full.Limit, full.Shadow, lost.Key.Zone = "full", 1, true, "lost"
		r.granted(full, 1)
		r.refused(full, 1)
		r.inner = partial{r.inner}
		decisions := make([]store.Decision, 3)
		err := r.Take(time.Now(), budget, []store.Request{r.request, full, lost}, decisions)
		e, ok := err.(*store.Error)
		if !ok || e.Fate(0) != store.FateDecided || e.Fate(1) != store.FateDecided || e.Fate(2) != store.FateUnknown {
			t.Fatalf("%+v, want the last of unknown fate", err)
		}
		if !decisions[0].Charged() || decisions[1].Granted || decisions[1].Charged() || decisions[1].Source != store.FromCache {
			t.Errorf("%+v, want the first charged, and the second refused from memory", decisions)
		}
		time.Sleep(2 * time.Second)
	})
}
