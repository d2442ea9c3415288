package redis

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func TestKey(t *testing.T) {
	// SHA-256 of "10.0.0.1", its first 16 bytes.
	const hash = "{9QRzRBIvDe6ZdLpnYeYcaw}"
	k := newKeys("drl", nil)
	for _, test := range []struct {
		zone   string
		window time.Duration
		want   string
	}{
		{"30-per-1m", time.Minute, "drl:2:30-per-1m:60s:"},
		{"login", 30 * 24 * time.Hour, "drl:2:login:2592000s:"},
		{"a.b_c", 1500 * time.Millisecond, "drl:2:a.b_c:1500ms:"},
		{"x", time.Second + time.Microsecond, "drl:2:x:1000001us:"},
		{"x:60s", time.Second, "drl:2:x%3A60s:1s:"},
		{"{x}%", time.Second, "drl:2:%7Bx%7D%25:1s:"},
		{"é", time.Second, "drl:2:%C3%A9:1s:"},
	} {
		got := k.of(&store.Key{Zone: test.zone, Client: "10.0.0.1", Window: test.window})
		if got != test.want+hash {
			t.Errorf("key of zone %q, window %v: got %q, want %q", test.zone, test.window, got, test.want+hash)
		}
	}
}

// TestKeySecret: a reader who knows a client, but not the secret, cannot tell its
// key.
func TestKeySecret(t *testing.T) {
	seen := map[clientHash]string{}
	for what, k := range map[string]*keys{
		"none": newKeys("drl", nil), "one": newKeys("drl", []byte("one")), "two": newKeys("drl", []byte("two")),
	} {
		h := k.hash("client")
		if h != k.hash("client") {
			t.Errorf("secret %s: two hashes of one client", what)
		}
		if other, ok := seen[h]; ok {
			t.Errorf("secrets %s and %s make one hash", what, other)
		}
		seen[h] = what
	}
}

// TestClientsAreNotInKeys: nothing that a stranger sent stands in a key.
func TestClientsAreNotInKeys(t *testing.T) {
	server := redistest.Start(t)
	for _, secret := range [][]byte{nil, []byte("pepper")} {
		s := warmed(t, Options{Address: server.Addr, KeySecret: secret, KeyPrefix: "own"})
		for _, client := range []string{"10.20.30.40", "}{", "a\r\nSET x y\r\n", "\x00\xff", "", "*", strings.Repeat("z", store.MaxClientBytes)} {
			granted(t, s, one(client, 10))
		}
	}
	keys := logs(t, server)
	if len(keys) != 2*8 {
		t.Errorf("%d keys of 8 clients under 2 secrets: %q", len(keys), keys)
	}
	for _, key := range keys {
		rest, ok := strings.CutPrefix(key, "own:2:zone:3600s:{")
		rest, ok2 := strings.CutSuffix(rest, "}")
		if !ok || !ok2 || len(rest) != len(clientHash{}) || strings.ContainsFunc(rest, func(r rune) bool {
			return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_')
		}) {
			t.Errorf("key %q", key)
		}
	}
}
