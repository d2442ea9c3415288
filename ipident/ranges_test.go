package ipident

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParsePrefix(text)
	}
	return list
}

func TestRanges(t *testing.T) {
	r, err := NewRanges(prefixes("10.0.0.1/8", "10.1.0.0/16", "::ffff:172.16.0.1/108", "192.0.2.1/32", "2001:db8::1/32", "::1/128", "::ffff:0:0:0/96"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"10.0.0.0":              true, // host bits of the range do not count
		"10.255.255.255":        true,
		"10.2.0.0":              true, // after a smaller range within the same
		"9.255.255.255":         false,
		"11.0.0.0":              false,
		"172.16.0.0":            true,
		"172.31.255.255":        true,
		"172.32.0.0":            false,
		"192.0.2.1":             true,
		"192.0.2.2":             false,
		"::ffff:10.0.0.1":       true,
		"::ffff:10.0.0.1%eth0":  true,
		"::ffff:11.0.0.1":       false,
		"2001:db8:ffff::1":      true,
		"2001:db8::1%eth0":      true,
		"2001:db9::":            false,
		"::1":                   true,
		"::2":                   false,
		"::10.0.0.1":            false, // not a mapped form
		"::ffff:0:198.51.100.1": true,
	} {
		if got := r.Contains(netip.MustParseAddr(text)); got != want {
			t.Errorf("Contains(%s) = %v, want %v", text, got, want)
		}
	}
	if r.Contains(netip.Addr{}) || (Ranges{}).Contains(netip.MustParseAddr("10.0.0.1")) {
		t.Error("a Unix socket is in a range, or an address is in no range at all")
	}
}

func TestRangesThatTrustEverybody(t *testing.T) {
	for _, text := range []string{"0.0.0.0/0", "10.0.0.0/0", "::/0", "::ffff:0.0.0.0/96", "::ffff:10.0.0.0/96", "::ffff:10.0.0.0/95", "::ffff:10.0.0.0/0", "::/8", "::/80"} {
		_, err := NewRanges(prefixes("10.0.0.0/8", text))
		if err == nil || !strings.Contains(err.Error(), "trusted range 1: "+netip.MustParsePrefix(text).String()) {
			t.Errorf("%s: error %v, want one that names the range", text, err)
		}
	}
	if _, err := NewRanges([]netip.Prefix{{}}); err == nil {
		t.Error("an invalid prefix is taken for a range")
	}
}

// The check on /0 was evaded by its halves: whoever pasted 0.0.0.0/1 and
// 128.0.0.0/1, or 2000::/3, trusted everybody without a word.
func TestRangesThatTrustNearlyEverybody(t *testing.T) {
	for _, c := range []struct {
		ranges string
		wants  string // in the error; "" for none
	}{
		{"0.0.0.0/1 128.0.0.0/1", "100 % of 0.0.0.0/0, the largest is 0.0.0.0/1"},
		{"0.0.0.0/1", "50 % of 0.0.0.0/0"},
		{"::ffff:0.0.0.0/97 128.0.0.0/1", "100 % of 0.0.0.0/0"},
		{"::ffff:64.0.0.0/98 0.0.0.0/2", "50 % of 0.0.0.0/0"},
		{"2000::/3", "100 % of 2000::/3, the largest is 2000::/3"},
		{"::/1", "covers every address"}, // IPv4-mapped addresses too
		{"2000::/4 3000::/4", "100 % of 2000::/3"},
		{"2000::/5 2a00::/12", "25.2 % of 2000::/3"},
		{"0.0.0.0/2 200.0.0.0/24", "25 % of 0.0.0.0/0"},

		{"0.0.0.0/2", ""},
		{"0.0.0.0/3 32.0.0.0/3 1.0.0.0/8 1.2.3.0/24", ""}, // what is listed twice counts once
		{"2000::/5", ""},
		{"fc00::/7 fe80::/10 ::1/128 8000::/1", ""}, // nobody on the internet
		{"10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8", ""},
		{"::/97 ::1:0:0:0/80", ""},
	} {
		_, err := NewRanges(prefixes(strings.Fields(c.ranges)...))
		if c.wants == "" && err != nil || c.wants != "" && (err == nil || !strings.Contains(err.Error(), c.wants)) {
			t.Errorf("%s: error %v, want %q", c.ranges, err, c.wants)
		}
	}
}

// Contains with its sorted ranges says what asking each prefix says.
func TestRangesAgreeWithAskingEachPrefix(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	addr := func() netip.Addr {
		if r.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4) << 6)})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(r.IntN(4)), 15: byte(r.IntN(4) << 6)})
	}
	for range 2000 {
		var list []netip.Prefix
		for range r.IntN(12) {
			a := addr()
			list = append(list, netip.PrefixFrom(a, 2+r.IntN(a.BitLen()-1)))
		}
		ranges, err := NewRanges(list)
		if err != nil {
			// None of these is more than 0.0.0.0/2, or in 2000::/3.
			t.Fatal(err)
		}
		for range 20 {
			a, want := addr(), false
			for _, p := range list {
				want = want || p.Contains(a)
			}
			if got := ranges.Contains(a); got != want {
				t.Fatalf("%v contain %v: %v, want %v", list, a, got, want)
			}
		}
	}
}
