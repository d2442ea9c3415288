package ipident

import (
	"net"
	"net/http"
	"strings"
)

// RemoteAddr is the text of the peer's address for [Rules.Client] and [Peer], "@" if it
// is a Unix socket.
//
// The listener's network tells, never the look of the name: a client may bind
// its end of a Unix socket to the relative path "203.0.113.9:80", or write such
// a name into a PROXY header for AF_UNIX. Behind a PROXY header for TCP the
// listener's address is that of TCP, whatever the proxy connected through.
func RemoteAddr(r *http.Request) string {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && strings.HasPrefix(local.Network(), "unix") {
		return "@"
	}
	return r.RemoteAddr
}
