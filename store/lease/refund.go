package lease

import (
	"slices"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// refundTime is how long a refund in the background may wait.
	refundTime = time.Second
	// closeRefunds is how many leases are refunded in one call on closing.
	closeRefunds = 256
	// leaveTime is how long what nobody misses waits to be refunded with others.
	leaveTime = 250 * time.Millisecond
)

// Refund gives units back as [store.Store] says: units of a lease are restored
// into it, if it has not ended; all others are refunded to the store below.
func (l *Store) Refund(wait time.Duration, refunds []store.Refund) error {
	now := l.clock()
	var rest []store.Refund
	for i := range refunds {
		refund := &refunds[i]
		hash := l.hash(&refund.Key)
		s := l.shard(hash)
		s.mu.Lock()
		k := s.keyLocked(hash, &refund.Key)
		restored := false
		if k != nil {
			k.demand.add(refund.Key.Window, -refund.Units, now)
			restored = refund.Source == store.FromLease && !l.closed.Load() && k.restoreRefund(refund, now)
		}
		s.mu.Unlock()
		if !restored && refund.Mark > 0 {
			rest = append(rest, *refund)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return l.refundNow(wait, rest)
}

// refundAll refunds all leases, as long as there is time left and none has failed.
func (l *Store) refundAll(left func() time.Duration) (err error) {
	refunds := l.takeLeftovers()
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for _, k := range s.ring {
			for _, b := range [...]*batch{&k.first, &k.second} {
				if !b.empty() {
					refunds = append(refunds, b.refund(k.key))
					*b = batch{}
				}
			}
		}
		s.mu.Unlock()
	}
	for some := range slices.Chunk(refunds, closeRefunds) {
		// A store that is away loses the rest too.
		if err == nil && left() > 0 {
			err = l.refundNow(left(), some)
		}
	}
	return err
}

// refundSoon refunds units to the store below, in the background.
func (l *Store) refundSoon(key store.Key, left *holding) {
	l.refundInBackground(left.refunds(key))
}

func (l *Store) refundInBackground(refunds []store.Refund) {
	if len(refunds) == 0 || !l.goBackground() {
		return
	}
	go func() {
		defer l.background.Add(-1)
		// A failure leaves the units spent, and is not sent again: it may
		// have been executed, and would then take units of somebody else.
		_ = l.refundNow(refundTime, refunds)
	}()
}

// leftovers are units of leases that have ended, of keys of which most is unused: they
// are in no hurry, and are refunded together, since each call has its price.
type leftovers struct {
	mu      sync.Mutex
	refunds []store.Refund // at most closeRefunds
	timer   *time.Timer    // sends them, if there are any
}

// leave has units refunded in a little while.
func (l *Store) leave(key store.Key, left *holding) {
	refunds := left.refunds(key)
	if len(refunds) == 0 {
		return
	}
	w := &l.leftovers
	w.mu.Lock()
	w.refunds = append(w.refunds, refunds...)
	if w.timer == nil {
		w.timer = time.AfterFunc(leaveTime, l.sendLeftovers)
	}
	full := len(w.refunds) > closeRefunds-len(left)
	w.mu.Unlock()
	if full {
		l.sendLeftovers()
	}
}

func (l *Store) sendLeftovers() { l.refundInBackground(l.takeLeftovers()) }

func (l *Store) takeLeftovers() []store.Refund {
	w := &l.leftovers
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
	refunds := w.refunds
	w.refunds, w.timer = nil, nil
	return refunds
}

// refunds is the refund of each part.
func (h *holding) refunds(key store.Key) (refunds []store.Refund) {
	for i := range h {
		if b := &h[i]; !b.empty() {
			refunds = append(refunds, b.refund(key))
		}
	}
	return refunds
}

// refundNow refunds units to the store below, and forgets the refusals that this
// makes outdated.
func (l *Store) refundNow(wait time.Duration, refunds []store.Refund) error {
	err := l.inner.Refund(wait, refunds)
	// There is room again, also if it is not known for sure: earlier
	// refusals, and refusals that are still on their way, are outdated.
	now := l.clock()
	for i := range refunds {
		key := &refunds[i].Key
		hash := l.hash(key)
		s := l.shard(hash)
		s.mu.Lock()
		if k := s.keyLocked(hash, key); k != nil {
			k.roomAt = now.mono
			k.refusal = refusal{}
		}
		s.mu.Unlock()
	}
	return err
}
