package redis

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// sideBySide is a store and the library's client for the same Cluster, whose
// slots move.
type sideBySide struct {
	*clusterRig
	store   *Store
	library *redis.ClusterClient
	tags    [slots]string // one for each slot
	conns   map[*redistest.Server]*redistest.Conn
}

// countedKey is a log, and how many units have been granted.
type countedKey struct {
	request store.Request
	units   int64
}

func newSideBySide(t *testing.T) *sideBySide {
	t.Helper()
	r := &clusterRig{Cluster: redistest.StartCluster(t, masters, 0), keys: newKeys(DefaultKeyPrefix, nil)}
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	b := &sideBySide{
		clusterRig: r, store: warmed(t, r.options()),
		library: redis.NewClusterClient(&redis.ClusterOptions{Addrs: r.options().Cluster, Protocol: 2, MaintNotificationsConfig: quiet}),
		conns:   make(map[*redistest.Server]*redistest.Conn),
	}
	t.Cleanup(func() { b.library.Close() })
	for i, missing := 0, slots; missing > 0; i++ {
		tag := strconv.Itoa(i)
		if slot := redistest.Slot(tag); b.tags[slot] == "" {
			b.tags[slot] = tag
			missing--
		}
	}
	for _, node := range r.Nodes {
		b.conns[node] = node.Dial(t)
	}
	return b
}

// agree waits until both have the Cluster's own layout, and compares every slot.
func (b *sideBySide) agree(t *testing.T) {
	t.Helper()
	b.WaitStable(t)
	var want [slots]string
	for _, span := range b.Nodes[0].Do(t, "CLUSTER", "SLOTS").([]any) {
		fields := span.([]any)
		master := fields[2].([]any)
		for slot := fields[0].(int64); slot <= fields[1].(int64); slot++ {
			want[slot] = fmt.Sprintf("%s:%d", master[0], master[1])
		}
	}
	var differ string
	note := func(who string, of func(slot int) string) bool {
		for slot := range slots {
			if got := of(slot); got != want[slot] {
				differ = fmt.Sprintf("%s has slot %d at %q, the Cluster at %q", who, slot, got, want[slot])
				return false
			}
		}
		return true
	}
	defer func() {
		if t.Failed() {
			t.Log(differ)
		}
	}()
	b.store.moved()
	eventually(t, "the store has the layout of the Cluster", func() bool {
		table := b.store.cluster.table.Load()
		return note("the store", func(slot int) string {
			if table[slot] == nil {
				return ""
			}
			return table[slot].name
		})
	})
	eventually(t, "the library has the layout of the Cluster", func() bool {
		b.library.ReloadState(t.Context())
		return note("the library", func(slot int) string {
			master, err := b.library.MasterForKey(t.Context(), "{"+b.tags[slot]+"}")
			if err != nil {
				return err.Error()
			}
			return master.Options().Addr
		})
	})
}

// decide decides each key once, alone or with the one after it, and wants it
// counted once on one server, where the library finds it.
func (b *sideBySide) decide(t *testing.T, when string, keys []*countedKey) {
	t.Helper()
	for len(keys) > 0 {
		n := 1
		if len(keys) > 1 && keys[0].request.Key.Client == keys[1].request.Key.Client {
			n = 2
		}
		var requests []store.Request
		for _, k := range keys[:n] {
			requests = append(requests, k.request)
		}
		for i, d := range take(t, b.store, requests...) {
			if !d.Granted {
				t.Fatalf("%s: %+v: %+v", when, requests[i], d)
			}
			keys[i].units++
			b.find(t, when, keys[i])
		}
		keys = keys[n:]
	}
}

// find wants a log to be on one server, with all its units, and the library to
// find it.
func (b *sideBySide) find(t *testing.T, when string, k *countedKey) {
	t.Helper()
	name := b.keys.of(&k.request.Key)
	var logs []string
	for _, node := range b.Nodes {
		if _, err := b.conns[node].Do("ASKING"); err != nil {
			t.Fatal(err)
		}
		// It is an error if neither the slot nor the key is here.
		if log, err := b.conns[node].Do("GET", name); err == nil && log != nil {
			logs = append(logs, log.(string))
		}
	}
	if len(logs) != 1 {
		t.Fatalf("%s: %+v is on %d servers", when, k.request.Key, len(logs))
	}
	if got := numberIn(logs[0], 7, 6); got != k.units {
		t.Errorf("%s: %+v has %d units, and %d were granted", when, k.request.Key, got, k.units)
	}
	if got, err := b.library.Get(t.Context(), name).Result(); err != nil || got != logs[0] {
		t.Errorf("%s: the library reads %q of %+v, %v; want %q", when, got, k.request.Key, err, logs[0])
	}
}

// TestClusterAgainstLibrary: slots move, and at each step the store decides where
// the library's client for a Cluster finds the key, exactly once. When all has
// settled, both have all slots at the same servers.
func TestClusterAgainstLibrary(t *testing.T) {
	t.Parallel()
	b := newSideBySide(t)
	b.agree(t)
	// For each slot: two keys of one client, which are decided together, and
	// some of other clients, of which not all have a log before the slot moves.
	var moving [][]*countedKey
	for i := range masters {
		client := b.client(i)
		a := one(client, plenty)
		keys := []*countedKey{{request: a}, {request: zoned("other", a)}}
		for range 4 {
			keys = append(keys, &countedKey{request: one(b.neighbour(client), plenty)})
		}
		moving = append(moving, keys)
	}
	everything := func(when string) {
		for _, keys := range moving {
			b.decide(t, when, keys)
		}
	}
	for _, keys := range moving {
		b.decide(t, "at first", keys[:3])
	}
	for i, keys := range moving {
		slot := int(b.keys.slot(keys[0].request.Key.Client))
		home, away := b.Nodes[i], b.Nodes[(i+1)%masters]
		for _, way := range [][2]*redistest.Server{{home, away}, {away, home}} {
			before := sentAway(t, way[0])
			b.StartMigration(t, slot, way[0], way[1])
			b.decide(t, "the migration has begun", keys[:4])
			if b.MoveKeys(t, slot, 1) != 1 {
				t.Fatal("no key was moved")
			}
			b.decide(t, "one key has moved", keys)
			b.MoveKeys(t, slot, 100)
			b.decide(t, "all keys have moved", keys)
			b.FinishMigration(t, slot)
			everything("the slot has moved")
			b.agree(t)
			everything("both know")
			if sentAway(t, way[0]) == before {
				t.Error("no call was redirected: this tests nothing")
			}
		}
	}
	// No redirected call was counted by the server that sent it away.
	for _, keys := range moving {
		for _, k := range keys {
			b.find(t, "at last", k)
		}
	}
}

// sentAway is how many runs of the script a server has rejected.
func sentAway(t *testing.T, server *redistest.Server) string {
	t.Helper()
	_, after, found := strings.Cut(server.Info(t, "commandstats", "cmdstat_evalsha"), "rejected_calls=")
	if !found {
		t.Fatal("the server does not tell how many calls it has rejected")
	}
	count, _, _ := strings.Cut(after, ",")
	return count
}
