package lease

import (
	"slices"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// refundTime is how long a refund in the background may wait.
	refundTime = time.Second
	// closeRefunds is how many leases are refunded in one call on closing.
	closeRefunds = 256
)

// Refund gives units back as [store.Store] says: units of a lease are restored
// into it, if it has not ended; all others are refunded to the store below.
func (l *Store) Refund(wait time.Duration, refunds []store.Refund) error {
	now := l.clock()
	var rest []store.Refund
	for i := range refunds {
		refund := &refunds[i]
		key := refund.Key
		s := l.shard(key)
		s.mu.Lock()
		k := s.keys[key]
		restored := false
		if k != nil {
			k.demand.add(key.Window, -refund.Units, now)
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
	var refunds []store.Refund
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for key, k := range s.keys {
			for _, b := range [...]*batch{&k.first, &k.second} {
				if !b.empty() {
					refunds = append(refunds, b.refund(key))
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
	var refunds []store.Refund
	for i := range left {
		if b := &left[i]; !b.empty() {
			refunds = append(refunds, b.refund(key))
		}
	}
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

// refundNow refunds units to the store below, and forgets the refusals that this
// makes outdated.
func (l *Store) refundNow(wait time.Duration, refunds []store.Refund) error {
	err := l.inner.Refund(wait, refunds)
	// There is room again, also if it is not known for sure: earlier
	// refusals, and refusals that are still on their way, are outdated.
	now := l.clock()
	for i := range refunds {
		key := refunds[i].Key
		s := l.shard(key)
		s.mu.Lock()
		if k := s.keys[key]; k != nil {
			k.roomAt = now.mono
			k.refusal = refusal{}
		}
		s.mu.Unlock()
	}
	return err
}
