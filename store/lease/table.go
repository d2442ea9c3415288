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
	mu sync.Mutex
	// The keys by their hash: a key is hashed once in a decision, not for each time
	// that it is looked up. The hash is secret, so that nobody can choose keys with
	// the same one; if that happens all the same, the key that comes later has no place.
	keys map[uint64]*leaseKey
	ring []*leaseKey      // the same, in no order
	hand int              // where in the ring room is looked for next
	seen [seenKeys]uint32 // what is left of the hashes of keys that were granted once
	_    [16]byte         // the next one begins on a cache line of its own
}

func (l *Store) hash(key *store.Key) uint64 { return maphash.Comparable(l.seed, *key) }

func (l *Store) shard(hash uint64) *shard { return &l.shards[hash%shardCount] }

// keyLocked returns what is known of a key, nil if it has no place.
func (s *shard) keyLocked(hash uint64, key *store.Key) *leaseKey {
	if k := s.keys[hash]; k != nil && k.key == *key {
		return k
	}
	return nil
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

// addLocked makes room for a key, which must not have a place. It returns nil if there
// is none: keys that hold a lease, or are being refused, are not given up for a
// stranger's inventions.
func (s *shard) addLocked(hash uint64, key *store.Key, most int, now moment) *leaseKey {
	if s.keys[hash] != nil {
		return nil // another key with this hash
	}
	k := s.roomLocked(most, now)
	if k == nil {
		return nil
	}
	*k = leaseKey{key: *key, hash: hash, at: len(s.ring), used: now.mono, metAt: now.mono, calmSince: now.mono}
	// The caller's string may be a small part of a large one, a header for
	// example, which would be held as a whole.
	k.key.Client = strings.Clone(key.Client)
	s.keys[hash] = k
	s.ring = append(s.ring, k)
	return k
}

// roomLocked gives up keys, and returns an entry for a new one, which may be that of a
// key given up: nobody else has it, since keys that somebody will come back to are not
// idle. It returns nil if there is no room.
func (s *shard) roomLocked(most int, now moment) (free *leaseKey) {
	looked := sweepKeys
	if len(s.ring) >= most {
		looked = sampleKeys
	}
	var victim *leaseKey
	for range min(looked, len(s.ring)) {
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		switch k := s.ring[s.hand]; {
		case !k.idle(now):
		case now.mono-k.used > idleKey:
			s.dropLocked(k)
			free = k
			continue // another one is there now
		case victim == nil || k.used < victim.used:
			victim = k
		}
		s.hand++
	}
	if len(s.ring) < most {
		if free == nil {
			free = new(leaseKey)
		}
		return free
	}
	if victim == nil {
		return nil
	}
	s.dropLocked(victim)
	return victim
}

// dropLocked gives up a key; another one takes its place in the ring.
func (s *shard) dropLocked(k *leaseKey) {
	last := len(s.ring) - 1
	moved := s.ring[last]
	s.ring[k.at], moved.at = moved, k.at
	s.ring[last], s.ring = nil, s.ring[:last]
	delete(s.keys, k.hash)
}
