package ipident

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// proxies trusts 10.0.0.0/8, fd00::/8 and peers on Unix sockets. It fails the
// test when asked about an address that is not canonical: an implementation of
// Trust compares with ranges and need not know about mapped forms.
func proxies(t testing.TB) Trust {
	t.Helper()
	ranges, err := NewRanges([]netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("fd00::/8"),
	})
	if err != nil {
		t.Fatal(err)
	}
	v4, v6 := ranges.v4[0], ranges.v6[0]
	return func(hop netip.Addr) bool {
		if hop.Is4In6() || hop.Zone() != "" {
			t.Errorf("asked to trust %v, which is not canonical", hop)
		}
		// Not Ranges.Contains, which would forgive what must not be asked.
		return !hop.IsValid() || v4.Contains(hop) || v6.Contains(hop)
	}
}

func rulesFor(t testing.TB, header string) Rules {
	t.Helper()
	r, err := NewRules(header)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// request is one row of a ledger: what arrives, and who the client is.
type request struct {
	story  string
	peer   string
	lines  []string
	client string
	source Source
	reason Reason
}

func settle(t *testing.T, header string, ledger []request) {
	t.Helper()
	rules := rulesFor(t, header)
	for _, row := range ledger {
		t.Run(row.story, func(t *testing.T) {
			t.Helper()
			h := http.Header{"Unrelated": {"203.0.113.250"}}
			if row.lines != nil {
				h[rules.Header()] = row.lines
			}
			got := rules.Client(row.peer, h, proxies(t))
			if got.String() != row.client || got.Source != row.source || got.Reason != row.reason {
				t.Errorf("Client(%q, %s: %q) = %v from %v because %v, want %v from %v because %v",
					row.peer, header, row.lines, got, got.Source, got.Reason, row.client, row.source, row.reason)
			}
			sound(t, got)
		})
	}
}

// sound checks what is true of every result.
func sound(t testing.TB, r Result) {
	t.Helper()
	if r.Addr.Is4In6() || r.Addr.Zone() != "" || r.Addr.IsMulticast() || r.Addr.IsValid() && r.Addr.IsUnspecified() {
		t.Errorf("result has the address %v, which is not canonical", r.Addr)
	}
	if !r.HasAddr() && r.Source == SourceHeader {
		t.Errorf("result without an address comes from the header, because %v", r.Reason)
	}
	for _, bits := range [][2]int{{32, 128}, {32, 64}, {0, 0}, {-1, 1000}} {
		if len(r.AppendKey(nil, bits[0], bits[1])) == 0 {
			t.Errorf("key of %v with prefixes %v is empty", r, bits)
		}
	}
	if r.String() == "" || r.Reason.String() == "invalid" {
		t.Errorf("result %q because %v", r, r.Reason)
	}
}

func one(line string) []string { return []string{line} }

func TestNoHeaderIsReadWithoutRules(t *testing.T) {
	settle(t, "", []request{
		{"peer", "198.51.100.7:1234", nil, "198.51.100.7", SourcePeer, ReasonPeer},
		{"trusted peer", "10.0.0.1:1234", nil, "10.0.0.1", SourcePeer, ReasonPeer},
		{"header of no name", "10.0.0.1:1234", one("203.0.113.9"), "10.0.0.1", SourcePeer, ReasonPeer},
		{"unix socket", "@", nil, "unix", SourcePeer, ReasonUnix},
		{"nonsense", "localhost:80", nil, "unknown", SourcePeer, ReasonBadPeer},
	})
}

func TestXForwardedFor(t *testing.T) {
	settle(t, "x-forwarded-for", []request{
		// Who may speak.
		{"untrusted peer", "198.51.100.7:1", one("203.0.113.9"), "198.51.100.7", SourcePeer, ReasonUntrustedPeer},
		{"untrusted peer without header", "198.51.100.7:1", nil, "198.51.100.7", SourcePeer, ReasonUntrustedPeer},
		{"untrusted peer says nonsense", "198.51.100.7:1", one("\x00"), "198.51.100.7", SourcePeer, ReasonUntrustedPeer},
		{"bad peer is never trusted", "10.0.0.1:http", one("203.0.113.9"), "unknown", SourcePeer, ReasonBadPeer},
		{"multicast peer", "224.0.0.1:1", one("203.0.113.9"), "unknown", SourcePeer, ReasonBadPeer},
		{"unspecified peer", "[::]:1", one("203.0.113.9"), "unknown", SourcePeer, ReasonBadPeer},
		{"mapped peer is trusted as IPv4", "[::ffff:10.0.0.1]:1", one("203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"mapped peer is not trusted as IPv4", "[::ffff:198.51.100.7]:1", one("203.0.113.9"), "198.51.100.7", SourcePeer, ReasonUntrustedPeer},
		{"zoned peer", "[fd00::1%eth0]:1", one("203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"peer without port", "10.0.0.1", one("203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"trusted unix socket", "@", one("203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},

		// The walk.
		{"no header", "10.0.0.1:1", nil, "10.0.0.1", SourcePeer, ReasonNoHeader},
		{"empty header", "10.0.0.1:1", one(""), "10.0.0.1", SourcePeer, ReasonNoHeader},
		{"nothing but commas", "10.0.0.1:1", []string{" ,\t,", ",", ""}, "10.0.0.1", SourcePeer, ReasonNoHeader},
		{"one hop", "10.0.0.1:1", one("203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"left end is the client's claim", "10.0.0.1:1", one("192.0.2.66, 203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"through two proxies", "10.0.0.1:1", one("192.0.2.66, 203.0.113.9, 10.0.0.2"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"claim to be a proxy", "10.0.0.1:1", one("192.0.2.66, 10.9.9.9, 203.0.113.9, 10.0.0.2"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"mapped proxy is passed", "10.0.0.1:1", one("203.0.113.9, ::ffff:10.0.0.2"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"mapped client", "10.0.0.1:1", one("::ffff:203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"mapped client in hex", "10.0.0.1:1", one("::FFFF:cb00:7109"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"later line is nearer", "10.0.0.1:1", []string{"192.0.2.66", "203.0.113.9"}, "203.0.113.9", SourceHeader, ReasonHeader},
		{"walk goes on in the line before", "10.0.0.1:1", []string{"192.0.2.66,203.0.113.9", "10.0.0.2", ""}, "203.0.113.9", SourceHeader, ReasonHeader},
		{"empty elements are ignored", "10.0.0.1:1", one(", 192.0.2.66, ,203.0.113.9, , \t, 10.0.0.2,"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"all trusted", "10.0.0.1:1", one("10.0.0.4, 10.0.0.3, fd00::2"), "10.0.0.4", SourceHeader, ReasonAllTrusted},

		// Ports, brackets, zones.
		{"client with port", "10.0.0.1:1", one("192.0.2.66, 203.0.113.9:65535"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"v6 client", "10.0.0.1:1", one("192.0.2.66,2001:DB8::0001"), "2001:db8::1", SourceHeader, ReasonHeader},
		// Caddy 2.11's strict walk does not parse this one for the space, steps
		// over it, and takes 192.0.2.66.
		{"v6 client with port after a space", "10.0.0.1:1", one("192.0.2.66, [2001:db8::1]:443"), "2001:db8::1", SourceHeader, ReasonHeader},
		{"v6 client in brackets", "10.0.0.1:1", one("192.0.2.66, [2001:db8::1]"), "2001:db8::1", SourceHeader, ReasonHeader},
		{"zoned client", "10.0.0.1:1", one("fe80::1%eth0"), "fe80::1", SourceHeader, ReasonHeader},

		// What does not parse ends the walk.
		{"malformed at once", "10.0.0.1:1", one("203.0.113.9, unknown"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"malformed after a proxy", "10.0.0.1:1", one("203.0.113.9, evil, 10.0.0.2"), "10.0.0.2", SourceHeader, ReasonMalformed},
		{"malformed in an earlier line", "10.0.0.1:1", []string{"203.0.113.9, evil", "10.0.0.2"}, "10.0.0.2", SourceHeader, ReasonMalformed},
		{"malformed behind a unix socket", "@", one("evil"), "unix", SourcePeer, ReasonMalformed},
		{"octal", "10.0.0.1:1", one("203.0.113.9, 0177.0.0.1"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"unspecified", "10.0.0.1:1", one("203.0.113.9, 0.0.0.0"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"brackets around v4", "10.0.0.1:1", one("203.0.113.9, [10.0.0.2]"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"space within", "10.0.0.1:1", one("203.0.113.9 10.0.0.2"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"line break", "10.0.0.1:1", one("203.0.113.9,\r\n10.0.0.2"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"NUL", "10.0.0.1:1", one("203.0.113.9\x00"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"no-break space", "10.0.0.1:1", one("\u00a0203.0.113.9"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"quoted, as nobody writes here", "10.0.0.1:1", one(`"203.0.113.9"`), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"only the malformed one's right is read", "10.0.0.1:1", one("1.2.3.4, , evil"), "10.0.0.1", SourcePeer, ReasonMalformed},

		// Unix sockets.
		{"trusted unix socket without header", "@", nil, "unix", SourcePeer, ReasonNoHeader},
		{"client that calls itself unix", "10.0.0.1:1", one("unix"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"client that calls itself unknown", "10.0.0.1:1", one("unknown"), "10.0.0.1", SourcePeer, ReasonMalformed},
	})
}

func TestSingleValueHeader(t *testing.T) {
	settle(t, "CF-Connecting-IP", []request{
		{"untrusted peer", "198.51.100.7:1", one("203.0.113.9"), "198.51.100.7", SourcePeer, ReasonUntrustedPeer},
		{"value", "10.0.0.1:1", one("203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"spaces around", "10.0.0.1:1", one(" \t203.0.113.9 "), "203.0.113.9", SourceHeader, ReasonHeader},
		{"mapped", "10.0.0.1:1", one("::ffff:203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"v6 with port", "10.0.0.1:1", one("[2001:db8::1]:443"), "2001:db8::1", SourceHeader, ReasonHeader},
		{"the peer vouches, so trust does not matter", "10.0.0.1:1", one("10.0.0.2"), "10.0.0.2", SourceHeader, ReasonHeader},
		{"no header", "10.0.0.1:1", nil, "10.0.0.1", SourcePeer, ReasonNoHeader},
		{"empty", "10.0.0.1:1", one(" "), "10.0.0.1", SourcePeer, ReasonNoHeader},
		{"malformed", "10.0.0.1:1", one("localhost"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"two lines", "10.0.0.1:1", []string{"192.0.2.66", "203.0.113.9"}, "10.0.0.1", SourcePeer, ReasonDuplicate},
		{"two equal lines", "10.0.0.1:1", []string{"203.0.113.9", "203.0.113.9"}, "10.0.0.1", SourcePeer, ReasonDuplicate},
		{"an empty line first", "10.0.0.1:1", []string{"", "203.0.113.9"}, "10.0.0.1", SourcePeer, ReasonDuplicate},
		{"two elements", "10.0.0.1:1", one("192.0.2.66, 203.0.113.9"), "10.0.0.1", SourcePeer, ReasonDuplicate},
		{"an empty element", "10.0.0.1:1", one("203.0.113.9,"), "10.0.0.1", SourcePeer, ReasonDuplicate},
		{"too long", "10.0.0.1:1", one(strings.Repeat(" ", maxBytes) + "203.0.113.9"), "10.0.0.1", SourcePeer, ReasonTooLong},
		{"duplicate on a unix socket", "@", []string{"192.0.2.66", "203.0.113.9"}, "unix", SourcePeer, ReasonDuplicate},
	})
}

func TestCloudFrontViewerAddress(t *testing.T) {
	settle(t, "CloudFront-Viewer-Address", []request{
		{"v4", "10.0.0.1:1", one("203.0.113.9:46532"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"v6 without brackets", "10.0.0.1:1", one("2001:db8::1:46532"), "2001:db8::1", SourceHeader, ReasonHeader},
		{"long v6", "10.0.0.1:1", one("2001:db8:1:2:3:4:5:6:443"), "2001:db8:1:2:3:4:5:6", SourceHeader, ReasonHeader},
		{"v6 in brackets", "10.0.0.1:1", one("[2001:db8::1]:443"), "2001:db8::1", SourceHeader, ReasonHeader},
		{"mapped", "10.0.0.1:1", one("::ffff:203.0.113.9:443"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"v4 without port", "10.0.0.1:1", one("203.0.113.9"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"port too large", "10.0.0.1:1", one("203.0.113.9:65536"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"hex where the port is", "10.0.0.1:1", one("2001:db8::1:beef"), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"two", "10.0.0.1:1", one("192.0.2.66:1, 203.0.113.9:2"), "10.0.0.1", SourcePeer, ReasonDuplicate},
	})
}

func TestOtherHeadersAreNotRead(t *testing.T) {
	h := http.Header{
		"X-Forwarded-For":  {"203.0.113.1"},
		"Forwarded":        {"for=203.0.113.2"},
		"X-Real-Ip":        {"garbage"},
		"Cf-Connecting-Ip": {"203.0.113.3"},
	}
	for header, want := range map[string]string{
		"":                "10.0.0.1 peer",
		"X-Real-IP":       "10.0.0.1 malformed",
		"True-Client-IP":  "10.0.0.1 no_header",
		"X-Forwarded-For": "203.0.113.1 header",
		"Forwarded":       "203.0.113.2 header",
	} {
		got := rulesFor(t, header).Client("10.0.0.1:1", h, proxies(t))
		if text := fmt.Sprint(got, " ", got.Reason); text != want {
			t.Errorf("rules for %q: client %s, want %s", header, text, want)
		}
	}
}

func TestNobodyIsTrusted(t *testing.T) {
	rules := rulesFor(t, "X-Forwarded-For")
	h := http.Header{"X-Forwarded-For": {"203.0.113.9"}}
	nobody := func(netip.Addr) bool { return false }
	for _, trusted := range []Trust{nil, nobody} {
		if got := rules.Client("@", h, trusted); got.String() != "unix" || got.Reason != ReasonUnix {
			t.Errorf("untrusted unix socket: %v because %v", got, got.Reason)
		}
		if got := rules.Client("10.0.0.1:1", h, trusted); got.String() != "10.0.0.1" || got.Reason != ReasonUntrustedPeer {
			t.Errorf("untrusted peer: %v because %v", got, got.Reason)
		}
	}
}

func TestPeer(t *testing.T) {
	for remote, want := range map[string]string{
		"198.51.100.7:80":              "198.51.100.7 peer",
		"198.51.100.7":                 "198.51.100.7 peer",
		"[2001:db8::1]:80":             "2001:db8::1 peer",
		"2001:db8::1":                  "2001:db8::1 peer",
		"[fe80::1%eth0.100]:80":        "fe80::1 peer",
		"[::ffff:198.51.100.7%lo]:80":  "198.51.100.7 peer",
		"":                             "unix unix",
		"@":                            "unix unix",
		"@abstract":                    "unix unix",
		"@/run/x.sock":                 "unix unix",
		"/run/x.sock":                  "unix unix",
		"run/x.sock":                   "unknown bad_peer",
		"unix":                         "unknown bad_peer",
		"example.com:80":               "unknown bad_peer",
		"0.0.0.0:0":                    "unknown bad_peer",
		" 198.51.100.7:80":             "unknown bad_peer",
		strings.Repeat("1", 1<<16):     "unknown bad_peer",
		"198.51.100.7:80, 10.0.0.1:80": "unknown bad_peer",
	} {
		got := Peer(remote)
		if text := fmt.Sprint(got, " ", got.Reason); text != want {
			t.Errorf("Peer(%q) = %s, want %s", remote, text, want)
		}
		if got.Source != SourcePeer {
			t.Errorf("Peer(%q) comes from the %v", remote, got.Source)
		}
		sound(t, got)
	}
}

func TestNewRules(t *testing.T) {
	for given, want := range map[string]string{
		"":                          "",
		"x-FORWARDED-for":           "X-Forwarded-For",
		"forwarded":                 "Forwarded",
		"CF-Connecting-IP":          "Cf-Connecting-Ip",
		"CloudFront-Viewer-Address": "Cloudfront-Viewer-Address",
	} {
		if got := rulesFor(t, given).Header(); got != want {
			t.Errorf("rules for %q read %q, want %q", given, got, want)
		}
	}
	for _, bad := range []string{" ", "X Forwarded For", "X-Real-IP:", "X-Forwarded-For, X-Real-IP", "X-Réal", "a\x00", "{header}"} {
		if r, err := NewRules(bad); err == nil || r != (Rules{}) || !strings.Contains(err.Error(), "for example X-Forwarded-For") {
			t.Errorf("NewRules(%q) = %v, %v, want an error that names the remedy", bad, r, err)
		}
	}
}

func TestTextsOfReasons(t *testing.T) {
	var got []string
	for r := range Reason(numReasons + 1) {
		got = append(got, r.String())
	}
	want := "bad_peer peer unix untrusted_peer no_header header all_trusted malformed duplicate too_long too_few_hops invalid"
	if text := strings.Join(got, " "); text != want {
		t.Errorf("reasons are %s, want %s", text, want)
	}
	if SourcePeer.String() != "peer" || SourceHeader.String() != "header" {
		t.Errorf("sources are %v and %v", SourcePeer, SourceHeader)
	}
	if zero := (Result{}); zero.String() != "unknown" {
		t.Errorf("the zero result is %v", zero)
	}
}
