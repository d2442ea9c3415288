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
	if _, err := NewRanges(prefixes("::ffff:128.0.0.0/97", "0.0.0.0/1", "::/97", "::1:0:0:0/80")); err != nil {
		t.Errorf("large ranges: %v", err)
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
			list = append(list, netip.PrefixFrom(a, 1+r.IntN(a.BitLen())))
		}
		ranges, err := NewRanges(list)
		if err != nil {
			// fd00::/1 begins at 8000::, so none of these is all of IPv6.
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
