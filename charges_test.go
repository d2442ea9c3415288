package distributedratelimit

import (
	"context"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// The record of what a request is charged for is one allocation, what makes it
// known to placeholders another, and the key a third, also if two zones have it.
func TestChargesTakeThreeAllocations(t *testing.T) {
	repl := caddy.NewReplacer()
	repl.Map(new(charges).placeholder) // as the server does: the list grows
	fresh := *repl
	ctx := context.WithValue(context.Background(), caddy.ReplacerCtxKey, repl)
	zones := []*Zone{new(Zone), new(Zone)}
	for _, zone := range zones {
		zone.same = zone
	}
	vars := make(map[string]any)
	key := []byte("a2001:db8:1234:5678::/64 and longer than what a stack holds")
	want := string(key)
	allocs := testing.AllocsPerRun(1000, func() {
		delete(vars, chargesVar)
		*repl = fresh
		c := chargesOf(ctx, vars)
		for _, zone := range zones {
			client := c.text(key)
			if client != want || c.has(zone, client) {
				t.Errorf("key %q, charged already: %v", client, c.zones)
			}
			c.record(&verdict{zone: zone, client: client, charged: true})
		}
		if !c.has(zones[0], want) || !c.has(zones[1], want) || c.has(zones[1], "a192.0.2.1") {
			t.Errorf("charged %v", c.zones)
		}
	})
	if allocs > 3 {
		t.Errorf("%v allocations, want 3", allocs)
	}
}

// Another key is another text, and what was made before stays.
func TestTextsOfKeys(t *testing.T) {
	c := new(charges)
	buf := []byte("a192.0.2.1")
	first := c.text(buf)
	copy(buf, "a192.0.2.9") // the builder uses it again
	second := c.text(buf)
	if first != "a192.0.2.1" || second != "a192.0.2.9" || c.text(nil) != "" {
		t.Errorf("texts %q and %q", first, second)
	}
}
