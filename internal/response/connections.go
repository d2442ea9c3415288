package response

import (
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// Connections counts the connections that handlers ask for to send a request on: whether
// anybody can have got it. It sees those of Go's HTTP transports and dialers that have
// the request's context, as the ones of reverse_proxy do. Whoever sends a request in
// another way is not seen, so that nothing asked for tells nothing.
type Connections struct {
	asked atomic.Int32 // for a connection, new or kept
	made  atomic.Int32 // new ones
	got   atomic.Int32 // those a request was about to be sent on
}

// WatchConnections watches what becomes of the request. It changes the request in its
// place, because handlers in front write the request's fields to it, and read them.
func WatchConnections(r *http.Request) *Connections {
	c := new(Connections)
	*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GetConn:      func(string) { c.asked.Add(1) },
		GotConn:      func(httptrace.GotConnInfo) { c.got.Add(1) },
		ConnectStart: func(string, string) { c.asked.Add(1) },
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				c.made.Add(1)
			}
		},
	}))
	return c
}

// Asked reports whether somebody has asked for a connection. The nil Connections have
// seen nothing.
func (c *Connections) Asked() bool { return c != nil && c.asked.Load() > 0 }

// Used reports whether somebody has got a connection, so that a request may have been
// sent.
func (c *Connections) Used() bool { return c != nil && (c.made.Load() > 0 || c.got.Load() > 0) }

// Sent is how often an HTTP request was sent on. One that was sent once may count
// twice, if the first connection turned out to be closed.
func (c *Connections) Sent() int {
	if c == nil {
		return 0
	}
	return int(c.got.Load())
}
