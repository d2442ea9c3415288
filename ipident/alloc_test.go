package ipident

import (
	"net/http"
	"net/netip"
	"testing"
)

// common is what nearly every request looks like.
var common = []struct {
	name   string
	header string
	peer   string
	value  string
}{
	{"no-rules", "", "198.51.100.7:1234", "203.0.113.9"},
	{"untrusted-peer", "X-Forwarded-For", "198.51.100.7:1234", "203.0.113.9"},
	{"untrusted-v6-peer", "X-Forwarded-For", "[2001:db8::1%eth0]:1234", "203.0.113.9"},
	{"xff-1", "X-Forwarded-For", "10.0.0.1:1234", "203.0.113.9"},
	{"xff-4", "X-Forwarded-For", "[fd00::1]:1234", "192.0.2.66, [2001:db8::1]:443, ::ffff:10.0.0.4, 10.0.0.3:80, fd00::2"},
	{"forwarded-2", "Forwarded", "10.0.0.1:1234", `for="[2001:db8::1]:443";host="a,b";proto=https, for=10.0.0.2`},
	{"single", "CF-Connecting-IP", "10.0.0.1:1234", "2001:db8::1"},
	{"host-port", "CloudFront-Viewer-Address", "10.0.0.1:1234", "2001:db8::1:443"},
	{"too-long", "X-Forwarded-For", "10.0.0.1:1234", string(make([]byte, 1<<20))},
}

func TestCommonRequestsDoNotAllocate(t *testing.T) {
	ranges, err := NewRanges(prefixes("10.0.0.0/8", "fd00::/8"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range common {
		rules := rulesFor(t, c.header)
		h := http.Header{rules.Header(): {c.value}}
		key := make([]byte, 0, 64)
		n := testing.AllocsPerRun(100, func() {
			asked := 0 // a closure with state of the request's must stay on the stack
			got := rules.Client(c.peer, h, func(hop netip.Addr) bool {
				asked++
				return ranges.Contains(hop)
			})
			key = got.AppendKey(key[:0], 24, 64)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for a request, want none", c.name, n)
		}
	}
}

func BenchmarkClient(b *testing.B) {
	ranges, err := NewRanges(prefixes("10.0.0.0/8", "fd00::/8"))
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range common {
		b.Run(c.name, func(b *testing.B) {
			rules := rulesFor(b, c.header)
			h := http.Header{rules.Header(): {c.value}}
			key := make([]byte, 0, 64)
			b.ReportAllocs()
			for b.Loop() {
				key = rules.Client(c.peer, h, ranges.Contains).AppendKey(key[:0], 32, 64)
			}
		})
	}
}
