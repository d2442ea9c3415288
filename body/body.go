// Package body reads the body of an HTTP request before the handler that it is
// meant for, finds fields in it, and hands it on as if nobody had touched it.
//
// What it reads is bounded: in bytes, in time, and in the memory of the process.
// It never makes room for what a Content-Length announces, but only for what has
// arrived.
//
// Its readers are strict where applications differ. A field has a value if a
// typical application could not find another one there; whatever PHP, Express,
// Go, Rails, Django, Java or .NET might read differently has none. It does not
// promise that the application behind reads bodies by their Content-Type, nor that
// it tells two values apart that differ here, such as names in upper and lower
// case.
package body

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound the reading of a body.
type Limits struct {
	Bytes   int64         // of the longest body that is read
	Timeout time.Duration // how long the client may take to send it
	Memory  *Memory       // shared with other bodies
}

var (
	// ErrTimeout: the client has not sent its body in time. The body cannot be
	// read any more.
	ErrTimeout = errors.New("the body has not arrived in time")
	// ErrMemory: other bodies hold all the memory there is. What was read of
	// this one is handed on.
	ErrMemory = errors.New("there is no memory left for bodies")
)

// Body is what was read of a request's body, and its reader for the next handler:
// that gets the same bytes, then the rest, if there is any, or the same error.
//
// Read and Close may be called concurrently, as those of a server's body. All
// other methods belong to the goroutine of the request.
type Body struct {
	source  io.ReadCloser // nil if the request has no body
	memory  *Memory
	content content
	length  int64 // as announced, negative if unknown
	query   string
	found   []finding

	complete bool // all of the body has been read
	tooLong  bool
	failed   bool // reading it has failed
	forget   func() bool

	mu     sync.Mutex
	buf    []byte // read from the source
	at     int    // how much of it was handed on
	err    error  // what follows it; nil if the source knows
	held   int64  // bytes of the memory
	closed bool
	gone   bool // out of the memory's budget, as the request is over
}

// Open reads the body of a request ahead, if it may have fields, and puts a
// reader in its place that hands it on. The other errors than ErrTimeout and
// ErrMemory are for the next handler, and make the body unreadable here.
//
// A body that Open has read before is not read again, as long as nobody has read
// from it since.
//
// w must be the writer of the response: a client that does not send on is waited
// for until the timeout, and that needs the read deadline of its connection. With a
// writer that hides it, the timeout is only looked at when something arrives.
func Open(w http.ResponseWriter, r *http.Request, limits Limits) (*Body, error) {
	b, again := r.Body.(*Body)
	if !again {
		b = &Body{memory: limits.Memory, length: r.ContentLength}
		if r.Body != nil && r.ContentLength != 0 && r.Method != http.MethodConnect {
			// What follows a CONNECT is not a body that ends.
			b.source = r.Body
		}
	}
	b.query, b.found = r.URL.RawQuery, b.found[:0]
	if b.source == nil {
		b.complete = true
		return b, nil
	}
	b.content = contentOf(r.Header)
	if b.content.kind == kindOther {
		if b.length >= 0 || len(r.Header["Content-Type"]) > 0 {
			return b, nil
		}
		// Most requests of HTTP/3 without a body do not say that they have
		// none. Whether there is anything shows with the first byte.
		limits.Bytes = 0
	}
	if b.length > limits.Bytes {
		b.tooLong = true
		return b, nil
	}
	if b.consumed() {
		b.failed = true
		return b, nil
	}
	if !again {
		r.Body = b
		b.forget = context.AfterFunc(r.Context(), b.Release)
	}
	return b, b.readAhead(http.NewResponseController(w), limits)
}

// consumed reports whether somebody has read from the body since Open.
func (b *Body) consumed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed || b.at > 0
}

// longAgo as a deadline ends reading at once.
var longAgo = time.Unix(1, 0)

// readAhead reads until the body's end, or one byte more than the limit.
func (b *Body) readAhead(connection *http.ResponseController, limits Limits) error {
	if b.err == nil && int64(len(b.buf)) <= limits.Bytes {
		// The deadline is only touched if the time is up: it may be the
		// server's own, which nobody could put back.
		var late atomic.Bool
		done := make(chan struct{})
		timer := time.AfterFunc(limits.Timeout, func() {
			defer close(done)
			late.Store(true)
			_ = connection.SetReadDeadline(longAgo)
		})
		defer timer.Stop() // the reader may panic
		err := b.fill(limits, &late)
		if !timer.Stop() {
			// Even if the last byte has come since: the connection may notice
			// the deadline later, and end the request in its midst.
			<-done
			err = ErrTimeout
		}
		if err != nil {
			b.failed = true
			return err
		}
	}
	b.tooLong = int64(len(b.buf)) > limits.Bytes
	b.complete = !b.tooLong && b.err == io.EOF
	b.failed = !b.tooLong && b.err != io.EOF
	return nil
}

func (b *Body) fill(limits Limits, late *atomic.Bool) error {
	most := limits.Bytes + 1 // tells a body of the limit from a longer one
	if b.length >= 0 {
		most = min(most, b.length+1)
	}
	for b.err == nil && int64(len(b.buf)) <= limits.Bytes {
		if late.Load() {
			return ErrTimeout
		}
		if len(b.buf) == cap(b.buf) && !b.grow(most) {
			return ErrMemory
		}
		n, err := b.source.Read(b.buf[len(b.buf):cap(b.buf)])
		b.mu.Lock()
		b.buf, b.err = b.buf[:len(b.buf)+n], err
		b.mu.Unlock()
	}
	return nil
}

// minBuffer is enough for most logins.
const minBuffer = 512

// grow doubles the buffer, up to a size that the body should not exceed.
func (b *Body) grow(most int64) bool {
	old := int64(cap(b.buf))
	size := max(2*old, minBuffer)
	if old < most {
		size = min(size, most)
	}
	if !b.memory.reserve(size) { // beside the old one, until that is copied
		return false
	}
	larger := append(make([]byte, 0, size), b.buf...)
	b.mu.Lock()
	b.buf = larger
	b.held += size
	b.mu.Unlock()
	b.give(old)
	return true
}

// give returns memory that the body holds, as far as it still does.
func (b *Body) give(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveLocked(bytes)
}

func (b *Body) giveLocked(bytes int64) {
	bytes = min(bytes, b.held)
	b.held -= bytes
	b.memory.release(bytes)
}

// Bytes is what was read of the body, nil once somebody has read from it.
func (b *Body) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.at > 0 {
		return nil
	}
	return b.buf
}

// Complete reports whether Bytes is all of the body.
func (b *Body) Complete() bool { return b.complete }

// TooLong reports whether the body is longer than the limit.
func (b *Body) TooLong() bool { return b.tooLong }

// Failed reports whether the body could not be read to its end, because the
// client or its connection failed, or somebody else has read it.
func (b *Body) Failed() bool { return b.failed }

// Release takes the body out of the memory's budget. What was read can still be
// handed on. It need not be called: the end of the request's context does it, too.
func (b *Body) Release() {
	if b.source == nil {
		return
	}
	b.mu.Lock()
	b.giveLocked(b.held)
	b.gone = true
	b.mu.Unlock()
	if b.forget != nil {
		b.forget()
	}
}

// Read hands on the body.
func (b *Body) Read(p []byte) (int, error) {
	b.mu.Lock()
	if !b.closed && b.at < len(b.buf) {
		n := copy(p, b.buf[b.at:])
		b.at += n
		if b.at == len(b.buf) {
			b.dropLocked()
		}
		b.mu.Unlock()
		return n, nil
	}
	err := b.err
	if b.closed {
		err = nil // it is for the source to say what is wrong with that
	}
	b.mu.Unlock() // else a slow client could keep Close waiting
	if err != nil {
		return 0, err
	}
	return b.source.Read(p)
}

// dropLocked forgets what was read.
func (b *Body) dropLocked() {
	b.buf = nil
	b.giveLocked(b.held)
}

// Close closes the source.
func (b *Body) Close() error {
	b.mu.Lock()
	b.closed = true
	b.dropLocked()
	b.mu.Unlock()
	return b.source.Close()
}
