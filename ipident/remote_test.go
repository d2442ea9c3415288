package ipident

import (
	"context"
	"net"
	"net/http"
	"testing"
)

// A client may give its end of a Unix socket any name, such as one that looks like an
// address: the network of the listener tells.
func TestRemoteAddrOfUnixSockets(t *testing.T) {
	for _, c := range []struct {
		listener   net.Addr
		peer, want string
	}{
		{&net.TCPAddr{}, "192.0.2.1:80", "192.0.2.1:80"},
		{&net.UnixAddr{Net: "unix"}, "203.0.113.9:80", "@"},
		{&net.UnixAddr{Net: "unixpacket"}, "203.0.113.9:80", "@"},
		{nil, "192.0.2.1:80", "192.0.2.1:80"},
	} {
		r := &http.Request{RemoteAddr: c.peer}
		if c.listener != nil {
			r = r.WithContext(context.WithValue(context.Background(), http.LocalAddrContextKey, c.listener))
		}
		if got := RemoteAddr(r); got != c.want {
			t.Errorf("listener %v, peer %q: got %q, want %q", c.listener, c.peer, got, c.want)
		}
	}
}
