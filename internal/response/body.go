package response

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// RequestBody watches the body of a request while it is read. A client can break
// it off without breaking the connection, with a chunk that is none or by sending
// no more: then the request is not cancelled, and the response is about that.
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
