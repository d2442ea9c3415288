package fallback

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// What was spent without the store may turn out not to have been spent: before it is
// reported, while it is, or afterwards.

// told is what the store was told of an entry that was to be reported. Those who may
// give its units back hold on to it. It is guarded by the mutex of its key's shard.
type told struct {
	into   *told        // the entry has joined another one, of which the rest is said
	charge store.Charge // where the store counts the units; zero if that is not known
	back   int64        // units that were given back while a call was reporting them
}

func (t *told) last() *told {
	for t.into != nil {
		t = t.into
	}
	return t
}

// forget gives back units of an entry. What the store was not told of it is not
// going to hear. It returns a refund of what it was told, and false if it was not or
// nobody knows where it counts them.
func (u *unreported) forget(key store.Key, t *told, units int64) (store.Refund, bool) {
	sh := u.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	t = t.last()
	if r := sh.reports[key]; r != nil {
		for i := range r.entries {
			if e := &r.entries[i]; e.told == t {
				if e.units -= min(units, e.units); e.units == 0 {
					r.entries = append(r.entries[:i], r.entries[i+1:]...)
				}
				if r.empty() {
					u.drop(sh, key)
				}
				return store.Refund{}, false
			}
		}
		for i := range r.sent {
			if e := &r.sent[i]; e.told == t {
				units = min(units, e.units)
				e.units -= units // if the store does not hear of them now, it never will
				t.back += units
				return store.Refund{}, false
			}
		}
	}
	return store.Refund{Key: key, Charge: t.charge, Units: units}, t.charge.Charged()
}

// tell notes where the store counts what it has been told of a key, and returns the
// refunds of what was given back meanwhile.
func tell(key store.Key, sent []spent, reported []store.Spent, where store.Charge) (refunds []owedRefund) {
	for i := range sent {
		t := sent[i].told
		t.charge = where
		t.charge.Stamp -= reported[i].Age.Microseconds()
		if t.back > 0 {
			r := store.Refund{Key: key, Charge: t.charge, Units: t.back}
			refunds = append(refunds, owedRefund{r, time.Now().Add(key.Window - reported[i].Age)})
			t.back = 0
		}
	}
	return refunds
}

const (
	// owedMost is how many refunds wait at most. What finds no room stays spent
	// until its window has passed.
	owedMost = 16_384
	// owedAtOnce is how many are asked for in one call.
	owedAtOnce = 64
)

// owed is refunds that have certainly not been made. It is safe for concurrent use.
type owed struct {
	count atomic.Int64
	mu    sync.Mutex
	list  []owedRefund
}

type owedRefund struct {
	store.Refund
	until time.Time // later there is nothing to be refunded any more
}

func (o *owed) add(refunds ...owedRefund) {
	if len(refunds) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, refunds[:min(len(refunds), owedMost-len(o.list))]...)
	o.count.Store(int64(len(o.list)))
}

// take returns some refunds, which are then the caller's to make; none if there are
// none.
func (o *owed) take() (refunds []owedRefund) {
	if o.count.Load() == 0 {
		return nil
	}
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for ; n < len(o.list) && len(refunds) < owedAtOnce; n++ {
		if now.Before(o.list[n].until) {
			refunds = append(refunds, o.list[n])
		}
	}
	if o.list = o.list[n:]; len(o.list) == 0 {
		o.list = nil
	}
	o.count.Store(int64(len(o.list)))
	return refunds
}
