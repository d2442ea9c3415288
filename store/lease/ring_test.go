package lease

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func (s *shard) add(hash uint64, key store.Key, most int, now moment) *leaseKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addLocked(hash, &key, most, now)
}

func newShard() *shard { return &shard{keys: make(map[uint64]*leaseKey)} }

// Two keys with one hash are not taken for one another: the second one has no place.
func TestLeaseKeysWithOneHash(t *testing.T) {
	s, now := newShard(), moment{mono: time.Hour, wall: time.Hour}
	one := store.Key{Zone: "zone", Client: "one", Window: time.Minute}
	k := s.add(7, one, 8, now)
	if s.keyLocked(7, &one) != k {
		t.Fatal("the key is not found")
	}
	for _, other := range []store.Key{
		{Zone: "zone", Client: "other", Window: time.Minute},
		{Zone: "other", Client: "one", Window: time.Minute},
		{Zone: "zone", Client: "one", Window: time.Hour},
	} {
		if s.keyLocked(7, &other) != nil || s.add(7, other, 8, now) != nil {
			t.Errorf("%v is taken for %v", other, one)
		}
	}
	if s.keyLocked(7, &one) != k || len(s.ring) != 1 {
		t.Error("the first key has lost its place")
	}
}

// However keys come, are needed and grow old, the shard holds at most so many, none that
// is needed is given up, and each is where it says.
func TestLeaseRing(t *testing.T) {
	const most = 8
	rng := rand.New(rand.NewPCG(1, 2))
	s, now := newShard(), moment{mono: time.Hour, wall: time.Hour}
	needed := make(map[uint64]*leaseKey)
	for i := range uint64(20_000) {
		key := store.Key{Zone: "zone", Client: strconv.FormatUint(i, 10), Window: time.Minute}
		k := s.add(i, key, most, now)
		switch {
		case k != nil && (k.key != key || k.hash != i || k.timer != nil || k.refilling || k.used != now.mono):
			t.Fatalf("%+v is not new", k)
		case k != nil && rng.IntN(4) == 0:
			k.refilling, needed[i] = true, k
		case k == nil && len(s.ring) < most:
			t.Fatalf("no room beside %d keys", len(s.ring))
		}
		for hash, k := range needed {
			if s.keys[hash] != k || k.hash != hash {
				t.Fatalf("key %d, which is needed, was given up", hash)
			}
			if rng.IntN(20) == 0 {
				k.refilling = false
				delete(needed, hash)
			}
		}
		if len(s.ring) > most || len(s.ring) != len(s.keys) {
			t.Fatalf("%d keys in the ring and %d by hash, want at most %d", len(s.ring), len(s.keys), most)
		}
		for at, k := range s.ring {
			if k.at != at || s.keys[k.hash] != k {
				t.Fatalf("%+v at %d", k, at)
			}
		}
		now = now.add(time.Duration(rng.Int64N(int64(idleKey / 3))))
	}
}

// Of the keys that are looked at, the one that was not used for longest is given up.
func TestLeaseRingGivesUpTheOldest(t *testing.T) {
	s, now := newShard(), moment{mono: time.Hour, wall: time.Hour}
	for i := range uint64(sampleKeys) {
		s.add(i, store.Key{Client: strconv.FormatUint(i, 10)}, sampleKeys, now)
	}
	for i, k := range s.ring {
		k.used = now.mono - time.Duration((i+2)%sampleKeys)*time.Second
	}
	oldest := s.ring[1].hash
	s.add(100, store.Key{Client: "100"}, sampleKeys, now)
	if s.keys[oldest] != nil || s.keys[100] == nil || len(s.ring) != sampleKeys {
		t.Errorf("%d is not the key that was given up", oldest)
	}
}
