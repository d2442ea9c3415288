package response

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// RequestBody watches the body of a request while it is read: a client that stops
// in the middle of it has gone away, although HTTP/1 does not cancel the
// request for it.
type RequestBody struct {
	io.ReadCloser
	broken atomic.Bool // transports read bodies on goroutines of their own
}

// WatchBody makes the request's body one that is watched.
func WatchBody(r *http.Request) *RequestBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	watched := &RequestBody{ReadCloser: r.Body}
	r.Body = watched
	return watched
}

// Read implements io.Reader.
func (b *RequestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !errors.Is(err, http.ErrBodyReadAfterClose) {
		b.broken.Store(true)
	}
	return n, err
}

// Broken reports whether the body could not be read to its end. The nil RequestBody
// is not broken.
func (b *RequestBody) Broken() bool { return b != nil && b.broken.Load() }
