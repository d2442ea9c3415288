package ipident

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
)

func TestForwarded(t *testing.T) {
	settle(t, "Forwarded", []request{
		{"untrusted peer", "198.51.100.7:1", one("for=203.0.113.9"), "198.51.100.7", SourcePeer, ReasonUntrustedPeer},
		{"no header", "10.0.0.1:1", nil, "10.0.0.1", SourcePeer, ReasonNoHeader},
		{"empty", "10.0.0.1:1", one(" ,, "), "10.0.0.1", SourcePeer, ReasonNoHeader},

		// The examples of RFC 7239.
		{"v4", "10.0.0.1:1", one("for=192.0.2.60;proto=http;by=203.0.113.43"), "192.0.2.60", SourceHeader, ReasonHeader},
		{"v6 with port", "10.0.0.1:1", one(`For="[2001:db8:cafe::17]:4711"`), "2001:db8:cafe::17", SourceHeader, ReasonHeader},
		{"two hops", "10.0.0.1:1", one("for=192.0.2.43, for=198.51.100.17"), "198.51.100.17", SourceHeader, ReasonHeader},
		{"obfuscated", "10.0.0.1:1", one(`for="_gazonk"`), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"unknown", "10.0.0.1:1", one(`for=192.0.2.43, for="[2001:db8:cafe::17]", for=unknown`), "10.0.0.1", SourcePeer, ReasonMalformed},

		// The walk.
		{"through a proxy", "10.0.0.1:1", one(`for=192.0.2.66, for=203.0.113.9, for=10.0.0.2;by=_x`), "203.0.113.9", SourceHeader, ReasonHeader},
		{"mapped proxy is passed", "10.0.0.1:1", one(`for=203.0.113.9, for="[::ffff:10.0.0.2]:80"`), "203.0.113.9", SourceHeader, ReasonHeader},
		{"lines", "10.0.0.1:1", []string{"for=203.0.113.9", "for=10.0.0.2"}, "203.0.113.9", SourceHeader, ReasonHeader},
		{"all trusted", "10.0.0.1:1", one(`for=10.0.0.3, for="[fd00::2]"`), "10.0.0.3", SourceHeader, ReasonAllTrusted},
		{"unknown behind a proxy", "10.0.0.1:1", one("for=203.0.113.9, for=unknown, for=10.0.0.2"), "10.0.0.2", SourceHeader, ReasonMalformed},

		// Text in quotes.
		{"comma and semicolon", "10.0.0.1:1", one(`for=203.0.113.9;host="a,for=192.0.2.66;b"`), "203.0.113.9", SourceHeader, ReasonHeader},
		{"escaped quote", "10.0.0.1:1", one(`for=203.0.113.9;host="a\", for=192.0.2.66;b=\""`), "203.0.113.9", SourceHeader, ReasonHeader},
		{"escaped backslash", "10.0.0.1:1", one(`for=192.0.2.66;host="\\", for=203.0.113.9;host="\\\\"`), "203.0.113.9", SourceHeader, ReasonHeader},
		{"empty string", "10.0.0.1:1", one(`host="";for=203.0.113.9`), "203.0.113.9", SourceHeader, ReasonHeader},
		{"quotes that end one element and begin another", "10.0.0.1:1", one(`host="a";for=192.0.2.66, for=203.0.113.9;host="b"`), "203.0.113.9", SourceHeader, ReasonHeader},

		// Quotes of a stranger's, to the left of what the proxy appended.
		{"unbalanced", "10.0.0.1:1", one(`for="192.0.2.66, for=203.0.113.9`), "203.0.113.9", SourceHeader, ReasonHeader},
		{"unbalanced before quotes", "10.0.0.1:1", one(`for="192.0.2.66, for="[2001:db8::1]:1"`), "2001:db8::1", SourceHeader, ReasonHeader},
		{"backslash at the end", "10.0.0.1:1", one(`for="\, for="[2001:db8::1]:1"`), "2001:db8::1", SourceHeader, ReasonHeader},
		{"unbalanced in the line before", "10.0.0.1:1", []string{`for="192.0.2.66`, `for="[2001:db8::1]"`}, "2001:db8::1", SourceHeader, ReasonHeader},
		{"odd quotes at the right end", "10.0.0.1:1", one(`for=203.0.113.9, for=10.0.0.2;host="`), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"escaped end", "10.0.0.1:1", one(`for=203.0.113.9;host="\"`), "10.0.0.1", SourcePeer, ReasonMalformed},
		{"escaped end, and a stranger's quote to pair with", "10.0.0.1:1", one(`for=192.0.2.66;x=", for=203.0.113.9;host="\"`), "10.0.0.1", SourcePeer, ReasonMalformed},

		// Concessions.
		{"port without quotes", "10.0.0.1:1", one("for=203.0.113.9:4711"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"host and by without quotes", "10.0.0.1:1", one("host=example.com:8080;by=[fd00::1]:443;for=203.0.113.9"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"spaces around semicolons", "10.0.0.1:1", one("for=203.0.113.9 ;\tproto=https; host=a"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"empty parameters", "10.0.0.1:1", one(";;for=203.0.113.9;"), "203.0.113.9", SourceHeader, ReasonHeader},
		{"parameter that only resembles for", "10.0.0.1:1", one("for-x=192.0.2.66;for=203.0.113.9;xfor=192.0.2.66"), "203.0.113.9", SourceHeader, ReasonHeader},
	})
}

func TestForwardedElementsThatDoNotParse(t *testing.T) {
	for _, element := range []string{
		"203.0.113.9", "for", "for=", `for=""`, "=203.0.113.9", "for =203.0.113.9", "for= 203.0.113.9", ";",
		"proto=https", "by=203.0.113.9", `for="203.0.113.9`, `for=203.0.113.9"`, `"for=203.0.113.9"`,
		"for=203.0.113.9;for=203.0.113.9", "for=192.0.2.66;FOR=203.0.113.9", "for=203.0.113.9 proto=https",
		"for=203.0.113.9;proto", "for=203.0.113.9;proto=", `for=203.0.113.9;host=a"b"`, `for=203.0.113.9;host="a"b`, `for=203.0.113.9;host=a\b`,
		"for=2001:db8::1", "for=[2001:db8::1]", "for=[2001:db8::1]:80", `for="2001:db8::1"`, `for="2001:db8::1:80"`, `for="::ffff:203.0.113.9"`,
		`for="[203.0.113.9]"`, `for=" 203.0.113.9"`, `for="203.0.113.9 "`, `for="203.0.113.9:_http"`, "for=203.0.113.9:65536",
		`for="203.0.113.\9"`, "for=0177.0.0.1", "for=0.0.0.0", `for="[ff02::1]"`, "for=unknown", "for=_hidden", `for="unix"`,
		"for=203.0.113.9;host=\"a\x00\"", "for=203.0.113.9;host=\"a\r\n\"", "for=203.0.113.9;host=\"\\\x7f\"", "for=203.0.113.9;h\x00=a", "for=203.0.113.9\x00",
	} {
		if addr, ok := parseForwarded(element); ok {
			t.Errorf("element %q yields %v", element, addr)
		}
		// Nor does the walk step over it.
		lines := []string{"for=192.0.2.66," + element + ",for=10.0.0.2"}
		got := rulesFor(t, "Forwarded").Client("10.0.0.1:1", http.Header{"Forwarded": lines}, proxies(t))
		if got.String() != "10.0.0.2" || got.Reason != ReasonMalformed {
			t.Errorf("%q yields %v because %v, want 10.0.0.2 because malformed", lines, got, got.Reason)
		}
	}
}

// A chain of proxies writes well-formed elements with everything the grammar
// allows in its strings; a stranger writes anything to the left of them. The
// walk finds the client, whose place is known from how the header was made.
func TestForwardedOfChainsBehindStrangers(t *testing.T) {
	strangers := []string{`"`, `"`, `\`, ",", ";", "=", " ", "for=", "for=192.0.2.66", "for=10.9.9.9", `host="`, `for="[2001:db8::66]"`, "a", "\x00", ",for=\""}
	r := rand.New(rand.NewPCG(3, 4))
	rules := rulesFor(t, "Forwarded")
	for range 20000 {
		elements := []string{element(r, clients[r.IntN(len(clients))])}
		for range r.IntN(4) {
			elements = append(elements, element(r, hops[r.IntN(len(hops))]))
		}
		want := rules.Client("10.0.0.100:1", http.Header{"Forwarded": elements[:1]}, proxies(t))
		if want.Reason != ReasonHeader {
			t.Fatalf("element %q: %v because %v", elements[0], want, want.Reason)
		}
		stranger := scraps(r, strangers, 8)
		for _, lines := range [][]string{
			{strings.Join(elements, ",")},
			elements,
			{stranger + ", " + strings.Join(elements, " ,\t")},
			append([]string{stranger}, elements...),
		} {
			if got := rules.Client("10.0.0.100:1", http.Header{"Forwarded": lines}, proxies(t)); got != want {
				t.Fatalf("%q yields %v because %v, want %v", lines, got, got.Reason, want)
			}
		}
	}
}

var (
	clients = []string{"203.0.113.9", "203.0.113.9:80", `"203.0.113.9:80"`, `"[2001:db8::1]"`, `"[2001:db8::1]:443"`, `"[::ffff:203.0.113.9]"`}
	hops    = []string{"10.0.0.2", "10.0.0.3:80", `"[fd00::2]:80"`, `"[::ffff:10.0.0.4]"`}
)

// element is a well-formed element with node in its "for" parameter.
func element(r *rand.Rand, node string) string {
	text := []string{",", ";", `\"`, `\\`, `\,`, "=", "for=192.0.2.66", " ", "\t", "é", "a"}
	parameters := []string{[]string{"for=", "For=", "FOR="}[r.IntN(3)] + node}
	for i := range r.IntN(3) {
		parameters = append(parameters, fmt.Sprintf(`x%d="%s"`, i, scraps(r, text, 6)))
	}
	r.Shuffle(len(parameters), func(i, j int) { parameters[i], parameters[j] = parameters[j], parameters[i] })
	return strings.Join(parameters, []string{";", "; ", ";;"}[r.IntN(3)])
}

// The promise holds too where nothing is well-formed but the header happens to
// name a client.
func TestForwardedCannotBeMovedFromTheLeft(t *testing.T) {
	words := []string{
		",", ",", `"`, `"`, `\`, ";", "=", " ", "for=", "for=10.0.0.1", "for=203.0.113.9", `for="[2001:db8::1]:80"`, `host="a`, `x="\"`, `for="10.0.0.2"`, "\x00", "a",
	}
	r := rand.New(rand.NewPCG(5, 6))
	rules := rulesFor(t, "Forwarded")
	for range 50000 {
		lines := []string{scraps(r, words, 10)}
		for r.IntN(3) == 0 {
			lines = append(lines, scraps(r, words, 6))
		}
		cannotBeMoved(t, rules, scraps(r, words, 8), lines)
	}
}

func TestForwardedIsBounded(t *testing.T) {
	rules := rulesFor(t, "Forwarded")
	const client = "for=203.0.113.9"
	for story, c := range map[string]struct {
		line   string
		client string
		reason Reason
	}{
		"long string":          {client + `;host="` + strings.Repeat(",", maxBytes-len(client)-len(`;host=""`)-1) + `"`, "203.0.113.9", ReasonHeader},
		"too long string":      {client + `;host="` + strings.Repeat(",", maxBytes) + `"`, "10.0.0.1", ReasonTooLong},
		"string without end":   {client + strings.Repeat(",", maxBytes*2) + `"`, "10.0.0.1", ReasonTooLong},
		"too many backslashes": {client + strings.Repeat(`\`, 1<<20) + `"`, "10.0.0.1", ReasonTooLong},
		"too many quotes":      {client + strings.Repeat(`\"`, 1<<20), "10.0.0.1", ReasonTooLong},
		"too many hops":        {strings.Repeat("for=10.0.0.9,", 10000), "10.0.0.9", ReasonTooLong},
	} {
		for _, lines := range [][]string{{c.line}, {"for=192.0.2.66", c.line}, {"for=192.0.2.66," + c.line}} {
			got := rules.Client("10.0.0.1:1", http.Header{"Forwarded": lines}, proxies(t))
			if got.String() != c.client || got.Reason != c.reason {
				t.Errorf("%s: %v because %v, want %s because %v", story, got, got.Reason, c.client, c.reason)
			}
		}
	}
}
