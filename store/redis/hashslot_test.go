package redis

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// TestSlotOf compares with what a server says.
func TestSlotOf(t *testing.T) {
	conn := redistest.Start(t, "--cluster-enabled", "yes").Dial(t)
	keys := []string{
		"", "a", "{", "}", "{}", "{}{a}", "a{b", "a}b", "}{", "}a{b}", "{a}", "{a}b", "b{a}", "{{a}}", "{a{b}c}", "{a}{b}",
		"123456789", "\x00", "\xff\xfe{\x80}", "drl:instances:{0}", strings.Repeat("x", 1000),
	}
	const bytes = "{}{}ab\x00\xff:"
	for range 2000 {
		b := make([]byte, rand.N(20))
		for i := range b {
			if b[i] = bytes[rand.N(len(bytes))]; rand.N(4) == 0 {
				b[i] = byte(rand.N(256))
			}
		}
		keys = append(keys, string(b))
	}
	for _, key := range keys {
		conn.Send("CLUSTER", "KEYSLOT", key)
	}
	for _, key := range keys {
		want, err := conn.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if got := slotOf(key); int64(got) != want {
			t.Errorf("slotOf(%q) = %d, the server says %v", key, got, want)
		}
	}
}

// TestSlotOfClient: a client has the slot of its keys, in every zone and for
// every window.
func TestSlotOfClient(t *testing.T) {
	for _, secret := range [][]byte{nil, []byte("pepper")} {
		k := newKeys("drl", secret)
		for range 100 {
			client := string([]byte{byte(rand.N(256)), byte(rand.N(256)), '{', '}'})
			for _, zone := range []string{"zone", "a{b}c", "}{", "z:y"} {
				key := k.of(&store.Key{Zone: zone, Client: client, Window: store.MinWindow})
				if got, want := k.slot(client), slotOf(key); got != want {
					t.Errorf("client %q has slot %d, and its key %q %d", client, got, key, want)
				}
			}
		}
	}
}

func TestTagOf(t *testing.T) {
	for range 200 {
		var set [slots]bool
		first := rand.N(slots)
		for slot := first; slot <= min(first+rand.N(100), slots-1); slot++ {
			set[slot] = true
		}
		tag := tagOf(&set)
		if !set[slotOf(tag)] || !set[slotOf("drl:instances:{"+tag+"}")] {
			t.Errorf("the tag %q has slot %d, which is not of the set from %d", tag, slotOf(tag), first)
		}
		if again := tagOf(&set); again != tag {
			t.Errorf("tags %q and %q of one set", tag, again)
		}
	}
	for _, slot := range []int{0, slots - 1} {
		set := new([slots]bool)
		set[slot] = true
		if tag := tagOf(set); slotOf(tag) != uint16(slot) {
			t.Errorf("the tag %q has slot %d, want %d", tag, slotOf(tag), slot)
		}
	}
}

func TestReadSpans(t *testing.T) {
	master := func(host any, port int64, more ...any) []any { return append([]any{host, port, "id"}, more...) }
	entry := func(first, last int64, nodes ...any) any { return append([]any{first, last}, nodes...) }
	replica := master("10.0.0.9", 9)
	for _, test := range []struct {
		reply []any
		want  string // the last master
	}{
		{[]any{entry(0, 16383, master("10.0.0.1", 7000), replica)}, "10.0.0.1:7000"},
		{[]any{entry(0, 0, master("10.0.0.1", 7000)), entry(1, 16383, master("::1", 7001))}, "[::1]:7001"},
		{[]any{entry(0, 1, master("host.example", 7000, []any{"ip", "10.0.0.1"}))}, "host.example:7000"},
		{[]any{entry(0, 1, master(nil, 7000, []any{}))}, "[fd00::5]:7000"},
		{[]any{entry(0, 1, master("", 7000))}, "[fd00::5]:7000"},
		{[]any{entry(0, 1, master("?", 7000, []any{"ip", "10.0.0.1"}))}, "10.0.0.1:7000"},
		{[]any{entry(0, 1, master("?", 7000, []any{"ip"})), entry(2, 3, master("a", 1))}, "a:1"},
		{[]any{entry(0, 1, master("?", 7000))}, ""},
		{nil, ""},
		{[]any{entry(0, 1)}, ""},
		{[]any{entry(1, 0, replica)}, ""},
		{[]any{entry(-1, 0, replica)}, ""},
		{[]any{entry(0, 16384, replica)}, ""},
		{[]any{entry(0, 1, []any{"10.0.0.1"})}, ""},
		{[]any{entry(0, 1, []any{"10.0.0.1", "7000"})}, ""},
		{[]any{entry(0, 1, "10.0.0.1")}, ""},
		{[]any{"0"}, ""},
	} {
		spans, err := readSpans(test.reply, "[fd00::5]:6379")
		switch {
		case err != nil && test.want == "":
		case err != nil || test.want == "" || spans[len(spans)-1].master != test.want:
			t.Errorf("readSpans(%v) = %v, %v; want %q", test.reply, spans, err, test.want)
		}
	}
}

func TestParseRedirect(t *testing.T) {
	for _, test := range []struct{ reply, kind, address string }{
		{"MOVED 3999 127.0.0.1:6381", "MOVED", "127.0.0.1:6381"},
		{"ASK 3999 ::1:6381", "ASK", "[::1]:6381"},
		{"ASK 3999 [::1]:6381", "ASK", "[::1]:6381"},
		{"MOVED 3999 host.example:6381", "MOVED", "host.example:6381"},
		{"MOVED 3999 :6381", "MOVED", "10.0.0.1:6381"},
		{"MOVED 3999 ?:6381", "MOVED", ""},
		{"MOVED 3999 nothing", "", ""},
		{"MOVED", "", ""},
	} {
		if kind, address := parseRedirect(test.reply, "10.0.0.1:7000"); kind != test.kind || address != test.address {
			t.Errorf("parseRedirect(%q) = %q, %q; want %q, %q", test.reply, kind, address, test.kind, test.address)
		}
	}
}
