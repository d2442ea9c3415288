package lease

import "github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"

// Stats is what a [Store] holds at some moment, for people.
type Stats struct {
	Keys     int   // that are observed
	Leased   int   // keys with units in hand
	Units    int64 // in hand: granted by the store below, and neither spent nor ended
	Refusals int   // keys of which a refusal is remembered
	// Granted is how many units all leases so far had, and Unspent how many of them
	// nobody spent before their lease ended. These are given back to the store.
	Granted, Unspent int64
}

// Stats counts what the store holds. It locks one 64th of the table at a time, for some
// ten microseconds if the table is full, so that the sum is of no single moment.
func (l *Store) Stats() (sum Stats) {
	for i := range l.shards {
		l.shards[i].count(&sum, l.clock())
	}
	sum.Granted, sum.Unspent = l.leased.Load(), l.unspent.Load()
	return sum
}

func (s *shard) count(sum *Stats, now moment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum.Keys += len(s.ring)
	for _, k := range s.ring {
		units := k.inHand(now)
		if sum.Units += units; units > 0 {
			sum.Leased++
		} else if k.refusal.need > 0 && now.before(k.refusal.until) {
			sum.Refusals++
		}
	}
}

// InHand is how many units of a key are in hand, for requests under this limit: the
// store below counts them as spent.
func (l *Store) InHand(key store.Key, limit int64) int64 {
	hash := l.hash(&key)
	s := l.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keyLocked(hash, &key)
	if k == nil || k.limit != limit {
		return 0
	}
	return k.inHand(l.clock())
}

// inHand is how many units of leases may still be spent.
func (k *leaseKey) inHand(now moment) (units int64) {
	for _, b := range [...]*batch{&k.first, &k.second} {
		if now.before(b.end) {
			units += b.units
		}
	}
	return units
}
