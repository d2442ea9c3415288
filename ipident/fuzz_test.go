package ipident

import (
	"bytes"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// sameKey checks that two spellings of an address are one client.
func sameKey(t *testing.T, a, b Result) {
	t.Helper()
	for _, bits := range [][2]int{{32, 128}, {24, 64}, {0, 0}} {
		if x, y := a.AppendKey(nil, bits[0], bits[1]), b.AppendKey(nil, bits[0], bits[1]); !bytes.Equal(x, y) {
			t.Errorf("%v has the key %q, %v has %q", a, x, b, y)
		}
	}
}

func FuzzAddress(f *testing.F) {
	for _, seed := range []string{
		"198.51.100.7:1234", "[2001:db8::1]:443", "::ffff:198.51.100.7", "[::ffff:c633:6407%eth0]:80", "64:ff9b::198.51.100.7",
		"2002:c633:6407::1", "2001::39cc:9bf8", "64:ff9b:1::198.51.100.7", "fe80::1%eth0", "0177.0.0.1", "0x7f.1", "2130706433", "[10.0.0.1]", "0.0.0.0", "ff02::1", "@", "", "/run/x.sock", "unix", "1.2.3.4\r\n", "1.2.3.4\x00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		peer := Peer(text)
		sound(t, peer)

		addr, ok := parseAddress(text)
		if want, naive := naiveAddress(text); ok != naive || ok && addr != want {
			t.Fatalf("parseAddress(%q) = %v, %v, put together from netip it is %v, %v", text, addr, ok, want, naive)
		}
		if !ok {
			return
		}
		if peer.Addr != addr || peer.Reason != ReasonPeer {
			t.Errorf("Peer(%q) = %v because %v, the address is %v", text, peer, peer.Reason, addr)
		}
		spellings := []string{addr.String(), addr.StringExpanded(), strings.ToUpper(addr.String())}
		if addr.Is4() {
			mapped := netip.AddrFrom16(addr.As16()).String()
			spellings = append(spellings, addr.String()+":80", mapped, mapped+"%eth0", "["+mapped+"]:80")
		} else {
			spellings = append(spellings, "["+addr.String()+"]", "["+addr.String()+"]:80", addr.String()+"%eth0")
		}
		for _, s := range spellings {
			same := Peer(s)
			if same.Addr != addr {
				t.Errorf("%q is %v, but %q is %v", text, addr, s, same.Addr)
			}
			sameKey(t, peer, same)
		}
		if addr.Is4() {
			four := addr.As4()
			nat, tunnel, inverted := nat64.Addr().As16(), sixToFour.Addr().As16(), teredo.Addr().As16()
			copy(nat[12:], four[:])
			copy(tunnel[2:], four[:])
			for i, b := range four {
				inverted[12+i] = ^b
			}
			for _, b := range [][16]byte{nat, tunnel, inverted} {
				sameKey(t, peer, Result{Addr: netip.AddrFrom16(b)})
			}
		}
	})
}

// repeated is what a stranger sends who sends a lot, to 100 kB. The count is an
// argument of its own so that the corpus stays small.
func repeated(s string, n uint16) string {
	if len(s) == 0 {
		return s
	}
	return strings.Repeat(s, min(1+int(n), 1+100_000/len(s)))
}

func FuzzXForwardedFor(f *testing.F) {
	for _, seed := range [][3]string{
		{"192.0.2.66", "203.0.113.9", "10.0.0.2"},
		{"", "192.0.2.66, 203.0.113.9", ""},
		{"evil", "::ffff:10.0.0.1, ::ffff:203.0.113.9", "::ffff:10.0.0.2"},
		{"1.2.3.4", "192.0.2.66, [2001:db8::1]:443", ""},
		{`"`, `"203.0.113.9, 10.0.0.2`, `"`},
		{"x", "0177.0.0.1", "10.0.0.2"},
		{"", "1.2.3.4, , evil", "10.0.0.2"},
		{"a\r\nX-Forwarded-For: 1.2.3.4", "203.0.113.9\r\n", "10.0.0.2\x00"},
		{"10.0.0.1,", strings.Repeat("10.0.0.3,", 30), "10.0.0.2"},
		{"203.0.113.9", "203.0.113.9", "203.0.113.9"},
		{",", ",,,,", " \t "},
		{" ", "203.0.113.9" + strings.Repeat(" ", maxBytes-21), "10.0.0.2"},
	} {
		f.Add(seed[0], uint16(0), seed[1], seed[2])
		f.Add(seed[0], uint16(10_000), seed[1], seed[2])
	}
	rules := rulesFor(f, "X-Forwarded-For")
	f.Fuzz(func(t *testing.T, stranger string, n uint16, line, last string) {
		stranger = repeated(stranger, n)
		for _, lines := range [][]string{{line}, {line, last}, {line, "10.0.0.2", last}, {line + ",10.0.0.2"}} {
			agreesWithNaiveWalk(t, lines)
			cannotBeMoved(t, rules, stranger, lines)
			for _, n := range []int{1, 2, 3} {
				cannotBeMoved(t, withHops(t, rules, n), stranger, lines)
			}
		}
	})
}

func FuzzForwarded(f *testing.F) {
	for _, seed := range [][3]string{
		{"for=192.0.2.66", "for=203.0.113.9", "for=10.0.0.2"},
		{`for="192.0.2.66`, `for="[2001:db8::1]:443"`, ""},
		{`for="\`, `for="[::ffff:203.0.113.9]";host="a,b;c\"d\\"`, `for="10.0.0.2:80"`},
		{`x="`, `for=203.0.113.9;host="\"`, ""},
		{`"`, `host="a, for=192.0.2.66";for=203.0.113.9`, `for=10.0.0.2;host="`},
		{"for=1.2.3.4", "for=unknown", "for=_hidden"},
		{"for=1.2.3.4", "for=1.2.3.4;for=1.2.3.5", "by=1.2.3.4"},
		{"for=0177.0.0.1", "for=2001:db8::1", "for=10.0.0.2\x00"},
		{"a\r\nForwarded: for=1.2.3.4", "for=203.0.113.9\r\n", " , ,"},
		{"for=10.0.0.1,", strings.Repeat(`\"`, 30), "for=10.0.0.2"},
		{`\"`, `for="[2001:db8::1]"`, ",,"},
	} {
		f.Add(seed[0], uint16(0), seed[1], seed[2])
		f.Add(seed[0], uint16(10_000), seed[1], seed[2])
	}
	rules := rulesFor(f, "Forwarded")
	f.Fuzz(func(t *testing.T, stranger string, n uint16, line, last string) {
		stranger = repeated(stranger, n)
		for _, lines := range [][]string{{line}, {line, last}, {line, "for=10.0.0.2", last}, {line + ",for=10.0.0.2"}} {
			cannotBeMoved(t, rules, stranger, lines)
			for _, n := range []int{1, 2, 3} {
				cannotBeMoved(t, withHops(t, rules, n), stranger, lines)
			}
		}
		// What a proxy appends in good form is never swallowed or split.
		for _, appended := range []string{`for=203.0.113.9`, `host="a\",\\";for="[2001:db8::1]:80"`} {
			want, ok := parseForwarded(appended)
			if !ok {
				t.Fatal(appended)
			}
			for _, lines := range [][]string{{line + "," + appended}, {line, appended}, {stranger + line + "," + appended, "for=10.0.0.2"}} {
				got := rules.Client("10.0.0.100:1", http.Header{"Forwarded": lines}, proxies(t))
				if got.Addr != want || got.Reason != ReasonHeader {
					t.Errorf("%q yields %v because %v, want %v", lines, got, got.Reason, want)
				}
			}
		}
	})
}
