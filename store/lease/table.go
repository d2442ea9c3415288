package lease

import (
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	shardCount = 64
	// seenKeys is how many keys that were granted once a shard recognizes
	// when they come again. A stranger who invents one key after the other
	// costs no more than this.
	seenKeys = 512
	// sampleKeys is how many keys are looked at when there is no room, and
	// sweepKeys when there is. Keys that were not asked for in idleKey are
	// given up, so that the table shrinks again.
	sampleKeys = 4
	sweepKeys  = 2
	idleKey    = 10 * time.Second
)

// shard holds the keys with its hash. mu guards all that it holds, and
// is never held during a call to the store below.
type shard struct {
	mu   sync.Mutex
	keys map[store.Key]*leaseKey
	seen [seenKeys]uint32 // what is left of the hashes of keys that were granted once
	_    [40]byte
}

func (l *Store) shard(key store.Key) *shard {
	return &l.shards[maphash.Comparable(l.seed, key)%shardCount]
}

// cameBeforeLocked notes that a key was granted, and reports whether it was
// granted before, as far as that is known: the first time it is not worth a
// place in the table, which most keys would never use again.
func (s *shard) cameBeforeLocked(hash uint64) bool {
	slot, rest := &s.seen[hash/shardCount%seenKeys], uint32(hash>>32)
	if *slot == rest {
		return true
	}
	*slot = rest
	return false
}

// addLocked makes room for a key. It returns nil if there is none: keys that
// hold a lease, or are being refused, are not given up for a stranger's
// inventions.
func (s *shard) addLocked(key store.Key, most int, now moment) *leaseKey {
	looked := sweepKeys
	if len(s.keys) >= most {
		looked = sampleKeys
	}
	var oldest store.Key
	var victim *leaseKey
	for other, k := range s.keys { // begins at a random place
		if looked--; looked < 0 {
			break
		}
		switch {
		case !k.idle(now):
		case now.mono-k.used > idleKey:
			delete(s.keys, other)
		case victim == nil || k.used < victim.used:
			oldest, victim = other, k
		}
	}
	if len(s.keys) >= most {
		if victim == nil {
			return nil
		}
		delete(s.keys, oldest)
	}
	// The caller's string may be a small part of a large one, a header for
	// example, which would be held as a whole.
	key.Client = strings.Clone(key.Client)
	k := &leaseKey{used: now.mono, metAt: now.mono, calmSince: now.mono}
	s.keys[key] = k
	return k
}
