package ipident

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

// trustedHops is n elements, 10.0.0.1 at the right end.
func trustedHops(n int) []string {
	hops := make([]string, n)
	for i := range hops {
		hops[i] = fmt.Sprintf("10.0.%d.%d", (n-i)/256, (n-i)%256)
	}
	return hops
}

func TestWalkIsBoundedInHops(t *testing.T) {
	rules := rulesFor(t, "X-Forwarded-For")
	for _, c := range []struct {
		hops   int
		client string
		reason Reason
		asked  int // for trust: the peer and each hop
	}{
		{31, "10.0.0.31", ReasonAllTrusted, 32},
		{32, "10.0.0.32", ReasonAllTrusted, 33},
		{33, "10.0.0.32", ReasonTooLong, 33},
		{10000, "10.0.0.32", ReasonTooLong, 33},
	} {
		hops := trustedHops(c.hops)
		for layout, lines := range map[string][]string{"one line": {strings.Join(hops, ",")}, "a line each": hops} {
			asked := 0
			got := rules.Client("10.0.0.100:1", http.Header{"X-Forwarded-For": lines}, func(netip.Addr) bool {
				asked++
				return true
			})
			if got.String() != c.client || got.Reason != c.reason || asked != c.asked {
				t.Errorf("%d hops, %s: %v because %v after asking %d times, want %s because %v after %d",
					c.hops, layout, got, got.Reason, asked, c.client, c.reason, c.asked)
			}
		}
	}
	// The 33rd hop is not read even if it is the one that would end the walk.
	h := http.Header{"X-Forwarded-For": {"203.0.113.9", strings.Join(trustedHops(32), ",")}}
	if got := rules.Client("10.0.0.100:1", h, proxies(t)); got.String() != "10.0.0.32" || got.Reason != ReasonTooLong {
		t.Errorf("client behind 32 hops: %v because %v, want 10.0.0.32 because too_long", got, got.Reason)
	}
}

// An element ends within the bound or it is not read; what precedes it in its
// line, or a line before it, makes no difference to which.
func TestWalkIsBoundedInBytes(t *testing.T) {
	const client, hop = "203.0.113.9", ",10.0.0.2"
	rules := rulesFor(t, "X-Forwarded-For")
	for _, c := range []struct {
		bytes  int
		reason Reason
	}{
		{maxBytes - 2, ReasonHeader},
		{maxBytes - 1, ReasonHeader}, // and the comma before it
		{maxBytes, ReasonTooLong},
		{maxBytes + 1, ReasonTooLong},
		{1 << 20, ReasonTooLong},
	} {
		element := client + strings.Repeat(" ", c.bytes-len(client)-len(hop)) + hop
		want := client
		if c.reason == ReasonTooLong {
			want = "10.0.0.2"
		}
		for layout, lines := range map[string][]string{
			"alone":       {element},
			"after comma": {"192.0.2.66," + element},
			"after line":  {"192.0.2.66", element},
			"as lines":    {"192.0.2.66", strings.TrimSuffix(element, hop), hop[1:]},
		} {
			got := rules.Client("10.0.0.100:1", http.Header{"X-Forwarded-For": lines}, proxies(t))
			if got.String() != want || got.Reason != c.reason {
				t.Errorf("%d bytes, %s: %v because %v, want %s because %v", c.bytes, layout, got, got.Reason, want, c.reason)
			}
		}
	}
	// Empty elements and empty lines are ignored, but they count.
	for layout, lines := range map[string][]string{
		"commas": {client + strings.Repeat(",", maxBytes)},
		"lines":  append([]string{client}, make([]string, maxBytes)...),
		"spaces": {client + "," + strings.Repeat(" ", maxBytes)},
	} {
		got := rules.Client("10.0.0.100:1", http.Header{"X-Forwarded-For": lines}, proxies(t))
		if got.String() != "10.0.0.100" || got.Reason != ReasonTooLong || got.Source != SourcePeer {
			t.Errorf("%d %s: %v from %v because %v, want the peer because too_long", maxBytes, layout, got, got.Source, got.Reason)
		}
	}
}

// naiveWalk is X-Forwarded-For as one would write it without a thought for the
// length of the header: join, split, reverse. ok is false beyond the bounds.
func naiveWalk(peer netip.Addr, lines []string, trusted Trust) (client netip.Addr, reason Reason, ok bool) {
	joined := strings.Join(lines, ",")
	if len(lines) > 0 && len(joined)+1 > maxBytes {
		return client, reason, false
	}
	client, reason = peer, ReasonNoHeader
	elements := strings.Split(joined, ",")
	hops := 0
	for i := len(elements) - 1; i >= 0; i-- {
		element := strings.Trim(elements[i], "\t ")
		if element == "" {
			continue
		}
		if hops++; hops > maxHops {
			return client, reason, false
		}
		addr, parses := naiveAddress(element)
		if !parses {
			return client, ReasonMalformed, true
		}
		client, reason = addr, ReasonAllTrusted
		if !trusted(addr) {
			return client, ReasonHeader, true
		}
	}
	return client, reason, true
}

var shortPort = regexp.MustCompile(`:\d{1,5}$`)

// naiveAddress puts the forms together from netip's parsers.
func naiveAddress(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		addr, err = netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if addr.Is4() {
			return netip.Addr{}, false
		}
	} else if err != nil && shortPort.MatchString(s) {
		var ap netip.AddrPort
		ap, err = netip.ParseAddrPort(s)
		addr = ap.Addr()
	}
	zoneIsJunk := strings.ContainsFunc(addr.Zone(), func(c rune) bool {
		return c <= ' ' || c > '~' || strings.ContainsRune(`",;[]%\`, c)
	})
	addr = addr.Unmap().WithZone("")
	return addr, err == nil && !zoneIsJunk && !addr.IsUnspecified() && !addr.IsMulticast()
}

func agreesWithNaiveWalk(t testing.TB, lines []string) {
	t.Helper()
	peer := netip.MustParseAddr("10.0.0.100")
	want, reason, ok := naiveWalk(peer, lines, proxies(t))
	if !ok {
		return
	}
	got := rulesFor(t, "X-Forwarded-For").Client("10.0.0.100:1", http.Header{"X-Forwarded-For": lines}, proxies(t))
	if got.Addr != want || got.Reason != reason {
		t.Errorf("Client(%q) = %v because %v, a naive walk has %v because %v", lines, got, got.Reason, want, reason)
	}
}

// scraps is a random text made of words, so that it is nearly a header often.
func scraps(r *rand.Rand, words []string, n int) string {
	var b strings.Builder
	for range r.IntN(n + 1) {
		b.WriteString(words[r.IntN(len(words))])
	}
	return b.String()
}

// cannotBeMoved checks the promise that matters most: when the header named the
// client, nothing that precedes it there would have changed that.
func cannotBeMoved(t testing.TB, rules Rules, stranger string, lines []string) {
	t.Helper()
	ask := func(lines []string) Result {
		return rules.Client("10.0.0.100:1", http.Header{rules.Header(): lines}, proxies(t))
	}
	want := ask(lines)
	sound(t, want)
	if want.Reason != ReasonHeader {
		return
	}
	prepended := append([]string{stranger + "," + lines[0]}, lines[1:]...)
	if got := ask(prepended); got != want {
		t.Errorf("%q yields %v because %v, %q yields %v because %v", lines, want, want.Reason, prepended, got, got.Reason)
	}
	preceded := append([]string{stranger}, lines...)
	if got := ask(preceded); got != want {
		t.Errorf("%q yields %v because %v, %q yields %v because %v", lines, want, want.Reason, preceded, got, got.Reason)
	}
}

func TestXForwardedForCannotBeMovedFromTheLeft(t *testing.T) {
	words := []string{
		",", ",", ", ", "10.0.0.1", "10.0.0.2:80", "::ffff:10.0.0.3", "[fd00::1]:443", "203.0.113.9", "[2001:db8::1]", "fe80::1%eth0",
		" ", "\t", "evil", `"`, "]", ":", "0", "\r\n", "\x00", "%",
	}
	r := rand.New(rand.NewPCG(1, 2))
	rules := rulesFor(t, "X-Forwarded-For")
	for range 20000 {
		lines := []string{scraps(r, words, 12)}
		for r.IntN(3) == 0 {
			lines = append(lines, scraps(r, words, 6))
		}
		agreesWithNaiveWalk(t, lines)
		cannotBeMoved(t, rules, scraps(r, words, 8), lines)
	}
}
