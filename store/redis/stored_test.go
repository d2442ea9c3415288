package redis

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// TestStoredSize runs loads that make as many entries as they can, against
// the model too, and weighs what is stored.
func TestStoredSize(t *testing.T) {
	server := redistest.Start(t)
	const limit = 1_000_000
	// A short window: grants can be stamped further ahead than entries of it
	// are apart.
	const window = 10 * time.Second
	const width = int64(window / time.Microsecond)

	tests := []struct {
		name  string
		least int // entries there must have been for the test to be one
		load  func(h *history, request store.Request)
	}{
		{"steady", 60, func(h *history, request store.Request) {
			for range 1000 {
				h.now += width / 500
				h.addTake(request)
			}
		}},
		{"just not merging", 63, func(h *history, request store.Request) {
			for range 200 {
				h.now += width/64 + 1
				h.addTake(request)
			}
		}},
		// Charges reach as far ahead as they can, and fill what is in between.
		{"ahead", 68, func(h *history, request store.Request) {
			for i := range int64(400) {
				h.now += width / 100
				ahead := request
				ahead.Lease, ahead.LeaseSpan = 5, store.MaxLeaseSpan*time.Duration(i*137%401)/401
				h.addTake(ahead)
				if i%7 == 0 {
					h.addRefund(h.refunds[len(h.refunds)-1-int(i)/14])
				}
			}
		}},
		// A small limit keeps apart what no limit holds back.
		{"full of what is owed", 68, func(h *history, request store.Request) {
			look := request
			look.Limit, look.Units = 5, 0
			for i := range int64(200) {
				h.now += width / 200
				look.Unreported = []store.Spent{{Age: time.Duration(i*137%401) * window / 401, Units: 1 + i%3}}
				h.addTake(look)
			}
		}},
		// More units than fit their bytes.
		{"owed without end", store.MaxUnreported, func(h *history, request store.Request) {
			for i := range store.MaxUnreported {
				age := window / 32 * time.Duration(store.MaxUnreported-i)
				request.Unreported = append(request.Unreported, store.Spent{Age: age, Units: store.MaxEvents})
			}
			for range 50 {
				h.addTake(request)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			script := newClocked(t, server)
			h := newHistory(script, strings.ReplaceAll(test.name, " ", "-"))
			h.now = 1_700_000_000_000_000
			request := one("client", limit)
			request.Key.Zone, request.Window, request.Units = h.zone, window, 10
			test.load(h, request)

			most := 0
			for i := range h.steps {
				most = max(most, (len(h.steps[i].logs[0].value)-headerSize)/entrySize)
			}
			if most < test.least || most > 68 {
				t.Errorf("%d entries at most; want %d to 68", most, test.least)
			}
			replay(t, script, h.steps)

			name := script.keyOf(request.Key)
			size := server.Do(t, "STRLEN", name).(int64)
			memory := server.Do(t, "MEMORY", "USAGE", name).(int64)
			t.Logf("%d entries at most; in the end %d bytes, %d in memory", most, size, memory)
			if size == 0 || size > headerSize+68*entrySize || memory >= 2048 {
				t.Errorf("%d bytes, %d in memory; want less than 2048", size, memory)
			}
		})
	}
}

const (
	headerSize = 13
	entrySize  = 18
	banSize    = 15
)

// TestGarbage puts things in the place of a log which are none: they count as
// no log, and are replaced.
func TestGarbage(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	request := one("client", 10)
	name := s.keys.of(&request.Key)

	for what, put := range map[string][]any{
		"text":        {"SET", name, "hello"},
		"empty":       {"SET", name, ""},
		"header only": {"SET", name, strings.Repeat("\x00", headerSize)},
		"odd length":  {"SET", name, strings.Repeat("\x01", headerSize+entrySize+1)},
		"zeros":       {"SET", name, strings.Repeat("\x00", headerSize+entrySize)},
		"too long":    {"SET", name, strings.Repeat("\x7f", headerSize+69*entrySize)},
		"a ban over":  {"SET", name, strings.Repeat("\x00", headerSize+banSize)},
		"hash":        {"HSET", name, "field", "value"},
		"list":        {"RPUSH", name, "element"},
	} {
		server.Do(t, "DEL", name)
		server.Do(t, put...)
		decision := take(t, s, request)[0]
		if !decision.Granted || decision.Remaining != 9 {
			t.Errorf("%s: %+v; want as if there was nothing", what, decision)
		}
		if got := server.Do(t, "TYPE", name); got != "string" {
			t.Errorf("%s: a %v afterwards", what, got)
		}
		if ttl := server.Do(t, "PTTL", name).(int64); ttl < 0 {
			t.Errorf("%s: lives for ever afterwards", what)
		}
	}

	// Of the right length, it counts for a window at most.
	server.Do(t, "SET", name, strings.Repeat("\x77", headerSize+entrySize))
	decision := take(t, s, request)[0]
	if decision.Granted || decision.RetryAfter > request.Window+store.MaxLeaseSpan+2*time.Second {
		t.Errorf("stamps of a far future: %+v", decision)
	}
	if ttl := server.Do(t, "PTTL", name).(int64); ttl < 0 {
		t.Errorf("stamps of a far future live for ever")
	}

	// So does a ban for the longest time there is, from what the clock says.
	server.Do(t, "SET", name, strings.Repeat("\x77", headerSize+banSize))
	if decision := take(t, s, request)[0]; !decision.Blocked || decision.RetryAfter != store.MaxWindow {
		t.Errorf("banned until a far future: %+v", decision)
	}
}

// TestRefusalWritesNothing looks at the server's own count of writes.
func TestRefusalWritesNothing(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	s.Close() // heartbeats would write
	shared, own := one("shared", 100), one("own", 2)
	for range 2 {
		take(t, s, shared, own)
	}
	atRest(t, s)
	before := server.Calls(t, "set") + server.Calls(t, "del")
	for range 10 {
		decisions := take(t, s, shared, own)
		if !decisions[0].Granted || decisions[0].Charged() || decisions[1].Granted {
			t.Fatalf("over the limit: %+v", decisions)
		}
	}
	look := one("own", 2)
	look.Units = 0
	take(t, s, look)
	if after := server.Calls(t, "set") + server.Calls(t, "del"); after != before {
		t.Errorf("%d writes by refusals and a look", after-before)
	}
	if got := used(t, s, "shared", 100); got != 2 {
		t.Errorf("%d units of the shared limit used, want 2", got)
	}
}

// TestEveryKeyExpires leaves keys behind in every way there is.
func TestEveryKeyExpires(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	for i := range 50 {
		request := one(string(rune('a'+i)), 1000)
		request.Units, request.Lease, request.LeaseSpan = 2, int64(i%3), store.MaxLeaseSpan
		request.Window = time.Duration(i+1) * time.Minute
		if i == 0 {
			request.Window = store.MaxWindow
		}
		decision := take(t, s, request)[0]
		refund := store.Refund{Key: request.Key, Charge: decision.Charge, Units: int64(i % 5)}
		if err := s.Refund(patience, []store.Refund{refund, refund}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the list of instances is there", func() bool { return slices.Contains(server.Keys(t), listKey(DefaultKeyPrefix, "")) })
	keys := server.Keys(t)
	if len(keys) < 10 {
		t.Errorf("%d keys left", len(keys))
	}
	for _, key := range keys {
		if ttl := server.Do(t, "PTTL", key).(int64); ttl <= 0 || ttl > (store.MaxWindow+store.MaxLeaseSpan+3*time.Second).Milliseconds() {
			t.Errorf("%s has %d ms to live", key, ttl)
		}
	}
}
