package ipident_test

import (
	"fmt"
	"net/http"
	"net/netip"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// A client is told from its proxies, and its key is the same however it writes its header.
// Who connects without a trusted proxy is believed nothing.
func Example() {
	rules, err := ipident.NewRules("X-Forwarded-For")
	if err != nil {
		panic(err)
	}
	proxies, err := ipident.NewRanges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	if err != nil {
		panic(err)
	}
	// The client claims to be 192.0.2.66. The outer proxy appended the address
	// it saw, the inner one that of the outer.
	header := http.Header{"X-Forwarded-For": {"192.0.2.66, 2001:db8::7, 10.0.0.2"}}

	client := rules.Client("10.0.0.1:41234", header, proxies.Contains)
	fmt.Printf("%v, key %s, because %v\n", client, client.AppendKey(nil, 32, 64), client.Reason)

	stranger := rules.Client("203.0.113.9:41234", header, proxies.Contains)
	fmt.Printf("%v, key %s, because %v\n", stranger, stranger.AppendKey(nil, 32, 64), stranger.Reason)
	// Output:
	// 2001:db8::7, key 2001:db8::/64, because header
	// 203.0.113.9, key 203.0.113.9, because untrusted_peer
}
