package ipident

import (
	"net/http"
	"strings"
	"testing"
)

func withHops(t testing.TB, rules Rules, n int) Rules {
	t.Helper()
	rules, err := rules.WithHops(n)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// Behind load balancers whose addresses nobody knows, only their number can be
// trusted.
func TestHops(t *testing.T) {
	for _, c := range []struct {
		n      int
		peer   string
		lines  []string
		client string
		reason Reason
	}{
		{1, "192.0.2.1:1", one("1.2.3.4, 203.0.113.9"), "203.0.113.9", ReasonHeader},
		{2, "192.0.2.1:1", one("1.2.3.4, 203.0.113.9, 192.0.2.2"), "203.0.113.9", ReasonHeader},
		{2, "192.0.2.1:1", []string{"1.2.3.4", "203.0.113.9, ,", "192.0.2.2"}, "203.0.113.9", ReasonHeader},
		{2, "@", one("203.0.113.9, unknown"), "203.0.113.9", ReasonHeader},
		{2, "192.0.2.1:1", one("203.0.113.9"), "192.0.2.1", ReasonTooFewHops},
		{2, "192.0.2.1:1", nil, "192.0.2.1", ReasonNoHeader},
		{2, "192.0.2.1:1", one("1.2.3.4, x, 192.0.2.2"), "192.0.2.1", ReasonMalformed},
		{2, "192.0.2.1:1", one("1.2.3.4," + strings.Repeat(" ", maxBytes)), "192.0.2.1", ReasonTooLong},
		{1, "nonsense", one("203.0.113.9"), "unknown", ReasonBadPeer},
	} {
		rules := withHops(t, rulesFor(t, "X-Forwarded-For"), c.n)
		got := rules.Client(c.peer, http.Header{"X-Forwarded-For": c.lines}, nil)
		if got.String() != c.client || got.Reason != c.reason {
			t.Errorf("%d hops, %q: %v because %v, want %v because %v", c.n, c.lines, got, got.Reason, c.client, c.reason)
		}
		sound(t, got)
	}
	for _, n := range []int{-1, 0, 33} {
		if _, err := rulesFor(t, "Forwarded").WithHops(n); err == nil {
			t.Errorf("%d hops: no error", n)
		}
	}
	if _, err := rulesFor(t, "X-Real-IP").WithHops(1); err == nil {
		t.Error("hops in a header for one address: no error")
	}
}
