package ipident

import (
	"net/netip"
	"testing"
)

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		addr   string
		v4, v6 int
		key    string
	}{
		{"192.0.2.1", 32, 64, "192.0.2.1"},
		{"192.0.2.1", 24, 64, "192.0.2.0/24"},
		{"192.0.2.129", 25, 64, "192.0.2.128/25"},
		{"192.0.2.1", 0, 64, "0.0.0.0/0"},
		{"2001:db8::1", 32, 64, "2001:db8::/64"},
		{"2001:db8:0:0:ffff::1", 32, 64, "2001:db8::/64"},
		{"2001:db8:0:1::1", 32, 56, "2001:db8::/56"},
		{"2001:db8::1", 32, 128, "2001:db8::1"},
		{"2001:db8::1", 32, 0, "::/0"},
		{"fe80::1%eth0", 32, 128, "fe80::1"},
		{"fe80::1%eth0", 32, 64, "fe80::/64"},

		// All of IPv4 in one bucket is what an IPv6 prefix makes of these.
		{"::ffff:192.0.2.1", 32, 64, "192.0.2.1"},
		{"::ffff:192.0.2.1", 24, 64, "192.0.2.0/24"},
		{"64:ff9b::192.0.2.1", 32, 64, "192.0.2.1"},
		{"64:ff9b::192.0.2.1", 24, 64, "192.0.2.0/24"},
		{"64:ff9b::192.0.2.1%eth0", 32, 64, "192.0.2.1"},
		{"64:ff9b::1:192.0.2.1", 32, 64, "64:ff9b::/64"}, // not within the /96

		// NAT64's prefix for local use had one key for all of IPv4 in a /64.
		{"64:ff9b:1::192.0.2.1", 32, 64, "192.0.2.1"},
		{"64:ff9b:1::192.0.2.2", 32, 64, "192.0.2.2"},
		{"64:ff9b:1:fffe:0:1:192.0.2.1", 24, 64, "192.0.2.0/24"},
		{"64:ff9b:1:c000:2:2100::", 32, 64, "192.0.2.33"}, // 48 bits of prefix (RFC 6052, section 2.4)
		{"64:ff9b:1:7c0:0:221::", 32, 64, "192.0.2.33"},   // 56
		{"64:ff9b:1:7:c0:2:2100:0", 32, 64, "192.0.2.33"}, // 64
		{"64:ff9b:2::192.0.2.1", 32, 64, "64:ff9b:2::/64"},

		// The owner of one IPv4 address had 65,536 keys by 6to4, and Teredo's
		// clients of one server had one.
		{"2002:c000:201::1", 32, 64, "192.0.2.1"},
		{"2002:c000:201:ffff::1", 32, 64, "192.0.2.1"},
		{"2002:c000:201:ffff::1", 24, 64, "192.0.2.0/24"},
		{"2003:c000:201::1", 32, 64, "2003:c000:201::/64"},
		{"2001:0:4136:e378:8000:63bf:3fff:fdd2", 32, 64, "192.0.2.45"}, // the example of RFC 4380
		{"2001:0:4136:e378:8000:63bf:3fff:fdd3", 32, 64, "192.0.2.44"},
		{"2001:1::3fff:fdd2", 32, 64, "2001:1::/64"},

		// Out of range counts as the nearest.
		{"192.0.2.1", 33, 64, "192.0.2.1"},
		{"192.0.2.1", -1, 64, "0.0.0.0/0"},
		{"2001:db8::1", 32, 129, "2001:db8::1"},
		{"2001:db8::1", 32, -1, "::/0"},
	} {
		addr := netip.MustParseAddr(c.addr)
		if got := string(AppendKey([]byte("k:"), addr, c.v4, c.v6)); got != "k:"+c.key {
			t.Errorf("AppendKey(k:, %v, %d, %d) = %q, want k:%s", addr, c.v4, c.v6, got, c.key)
		}
		if got := string(Peer(addr.String()).AppendKey(nil, c.v4, c.v6)); got != c.key {
			t.Errorf("key of the peer %v with prefixes %d, %d is %q, want %s", addr, c.v4, c.v6, got, c.key)
		}
	}
}

func TestKeysOfThoseWithoutAnAddress(t *testing.T) {
	for remote, want := range map[string]string{"@": "unix", "": "unix", "/run/x.sock": "unix", "nonsense": "unknown"} {
		if got := string(Peer(remote).AppendKey(nil, 24, 64)); got != want {
			t.Errorf("key of the peer %q is %q, want %s", remote, got, want)
		}
	}
	if got := string(AppendKey(nil, netip.Addr{}, 24, 64)); got != "unknown" {
		t.Errorf("key of the zero Addr is %q, want unknown", got)
	}
}
