// Package busiest finds the keys that came most often lately, in bounded memory,
// whatever strangers make up as keys. It does not count exactly: a key of which
// there are enough to matter is always found, and [Key] says how far it may be off.
package busiest

import (
	"cmp"
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

const (
	// Span is how long a generation of counts lasts. Answers cover the last one and
	// the one under way, so one to two spans.
	Span = time.Minute

	shards   = 8  // that have a lock each
	perShard = 64 // keys
)

// Keys counts keys, with the Space-Saving algorithm of Metwally, Agrawal and El
// Abbadi: a key that finds no room takes the place of the one with the lowest count,
// and inherits that count as what may have been missed of it. So a key that is more
// than 1/64 of what a shard has counted in a generation is always there.
//
// Keys is safe for concurrent use.
type Keys struct {
	seed   maphash.Seed
	began  time.Time
	shards [shards]shard
}

// New returns Keys that count from now on.
func New(now time.Time) *Keys {
	k := &Keys{seed: maphash.MakeSeed(), began: now}
	for i := range k.shards {
		k.shards[i].generations[0].index = make(map[string]int, perShard)
		k.shards[i].generations[1].index = make(map[string]int, perShard)
	}
	return k
}

// shard holds the keys of one hash. Each key is in one shard only.
type shard struct {
	mu          sync.Mutex
	number      int64         // of the span that generations[number%2] counts
	generations [2]generation // the other one is of the span before
	_           [64]byte      // shards do not share a cache line
}

type generation struct {
	entries []entry
	index   map[string]int // of a key's entry
}

type entry struct {
	key              string
	name             string
	granted, refused int64 // since the key is here
	missed           int64 // before that, at most
}

func (e *entry) count() int64 { return e.granted + e.refused + e.missed }

// Key is a key that came often.
type Key struct {
	Key  string
	Name string // that it was given, or ""
	// Granted and Refused were counted, Missed at most came besides.
	Granted, Refused, Missed int64
}

// Count counts a key once. It reports whether it is worth while to give it a name,
// which may be dear: keys that come once in a flood get none.
func (k *Keys) Count(now time.Time, key string, refused bool) (nameless bool) {
	s := &k.shards[maphash.String(k.seed, key)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	e, fresh := s.current(k.span(now)).entry(key)
	if refused {
		e.refused++
	} else {
		e.granted++
	}
	return e.name == "" && (fresh || e.granted+e.refused > 1)
}

// Name gives a key a name, if it is still there.
func (k *Keys) Name(key, name string) {
	s := &k.shards[maphash.String(k.seed, key)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &s.generations[s.number%2]
	if i, ok := g.index[key]; ok {
		g.entries[i].name = name
	}
}

func (k *Keys) span(now time.Time) int64 { return int64(max(now.Sub(k.began), 0) / Span) }

// current is the generation of a span. One that has passed is emptied. A clock
// that was read late, by a goroutine that had to wait, counts as of now.
func (s *shard) current(span int64) *generation {
	if span > s.number {
		s.generations[span%2].empty()
		if span > s.number+1 {
			s.generations[(span+1)%2].empty()
		}
		s.number = span
	}
	return &s.generations[s.number%2]
}

func (g *generation) empty() {
	clear(g.entries) // what a stranger wrote is not kept
	g.entries = g.entries[:0]
	clear(g.index)
}

// entry is the entry of a key, which may take that of another key, and whether it
// found room.
func (g *generation) entry(key string) (e *entry, fresh bool) {
	if i, ok := g.index[key]; ok {
		return &g.entries[i], false
	}
	if i := len(g.entries); i < perShard {
		g.entries = append(g.entries, entry{key: key})
		g.index[key] = i
		return &g.entries[i], true
	}
	least := 0
	for i := range g.entries {
		if g.entries[i].count() < g.entries[least].count() {
			least = i
		}
	}
	e = &g.entries[least]
	delete(g.index, e.key)
	g.index[key] = least
	*e = entry{key: key, missed: e.count()}
	return e, false
}

// Top returns up to n keys that came most often, the busiest first, and how far
// back the counts reach.
func (k *Keys) Top(now time.Time, n int) (top []Key, over time.Duration) {
	span := k.span(now)
	for i := range k.shards {
		top = k.shards[i].collect(top, span)
	}
	slices.SortFunc(top, func(a, b Key) int {
		return cmp.Or(cmp.Compare(b.Granted+b.Refused, a.Granted+a.Refused), cmp.Compare(a.Key, b.Key))
	})
	over = max(now.Sub(k.began), 0)
	if span > 0 {
		over -= time.Duration(span-1) * Span
	}
	return slices.Clip(top[:min(n, len(top))]), over
}

// collect appends what both generations have counted.
func (s *shard) collect(keys []Key, span int64) []Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.current(span)
	before := &s.generations[(s.number+1)%2]
	for i := range g.entries {
		e := &g.entries[i]
		keys = append(keys, Key{Key: e.key, Name: e.name, Granted: e.granted, Refused: e.refused, Missed: e.missed})
		if j, ok := before.index[e.key]; ok {
			keys[len(keys)-1].add(&before.entries[j])
		}
	}
	for i := range before.entries {
		if e := &before.entries[i]; !g.has(e.key) {
			keys = append(keys, Key{Key: e.key})
			keys[len(keys)-1].add(e)
		}
	}
	return keys
}

func (g *generation) has(key string) bool {
	_, ok := g.index[key]
	return ok
}

func (k *Key) add(e *entry) {
	k.Name = cmp.Or(k.Name, e.name)
	k.Granted += e.granted
	k.Refused += e.refused
	k.Missed += e.missed
}
