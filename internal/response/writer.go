// Package response watches the response to an HTTP request while a handler
// writes it. It changes nothing by itself: only an observer may, that wants the body.
//
// A [Writer] stands in front of the handler's http.ResponseWriter. It tells an
// [Observer] the final status and the header just before they go out, whatever
// the handler does to send them, and the bytes of the body as they pass, if
// somebody wants to see them.
//
// # What it does not see
//
// A handler that writes nothing and returns leaves the response to the server,
// and one that returns an error leaves it to the error routes: whoever calls
// the handler knows that when it returns, and calls [Writer.End]. What goes
// through a connection after it was taken over (a WebSocket) is nobody's body.
// A client that goes away is the request's business, not the response's.
package response

import (
	"bufio"
	"io"
	"net"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// Observer is told about one response, by the goroutine that writes it.
type Observer interface {
	// Begin is called once, when the final status is known and before it is
	// sent: the response waits for it. It may add to the header. A connection
	// that was taken over has status 101. Informational responses, such as 103,
	// are not final and not told.
	Begin(status int, header http.Header)
}

// BodyObserver is an Observer that may want to see the body.
type BodyObserver interface {
	Observer

	// WantsBody is called after Begin. Without anybody who wants the body it
	// goes from a file to a connection without passing through this process.
	WantsBody() bool

	// Pass is called with the bytes that the handler writes, in order and in
	// pieces of any size, before they are sent: what an upstream has produced
	// counts, whether or not the client got it. It returns what to send in their
	// place: p itself, or other bytes, which are sent before the next call. It must
	// neither change nor keep p. Whoever sends fewer or more bytes removes a
	// Content-Length in Begin. Responses without a body (HEAD, 204, 304) may have
	// bytes here all the same, which the server then leaves out.
	Pass(p []byte) []byte

	// Rest returns what is still to be sent when the handler has returned without
	// an error. It is not called for a connection that was taken over.
	Rest() []byte
}

// Writer passes a response on as it is, and tells an observer about it. Like any
// http.ResponseWriter it is not safe for concurrent use.
type Writer struct {
	caddyhttp.ResponseWriterWrapper
	observer Observer
	body     BodyObserver // nil if nobody wants to see the body
	begun    bool
	hijacked bool
}

// Reset makes the writer one in front of w. The response must not have begun.
func (w *Writer) Reset(to http.ResponseWriter, observer Observer) {
	*w = Writer{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: to}, observer: observer}
}

// Begun reports whether the observer was told of the response.
func (w *Writer) Begun() bool { return w.begun }

// End is called when the handler has returned without an error. If it has
// written nothing, the response is told now: the server is about to send it.
func (w *Writer) End() {
	w.begin(http.StatusOK)
	if w.body == nil || w.hijacked {
		return
	}
	if rest := w.body.Rest(); len(rest) > 0 {
		_, _ = w.ResponseWriterWrapper.Write(rest) // the client may have gone
	}
	w.body = nil
}

func (w *Writer) begin(status int) {
	if w.begun {
		return
	}
	w.begun = true
	w.observer.Begin(status, w.Header())
	if body, ok := w.observer.(BodyObserver); ok && body.WantsBody() {
		w.body = body
	}
}

// final reports whether a status ends the header of a response. The server
// panics on numbers that are none.
func final(status int) bool {
	return status == http.StatusSwitchingProtocols || status >= 200 && status <= 999
}

// WriteHeader implements http.ResponseWriter.
func (w *Writer) WriteHeader(status int) {
	if final(status) {
		w.begin(status)
	}
	w.ResponseWriterWrapper.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *Writer) Write(p []byte) (int, error) {
	w.begin(http.StatusOK)
	if w.body == nil {
		return w.ResponseWriterWrapper.Write(p)
	}
	out := w.body.Pass(p)
	if len(out) == 0 && len(p) > 0 {
		return len(p), nil
	}
	n, err := w.ResponseWriterWrapper.Write(out)
	if n == len(out) {
		return len(p), err
	}
	// How much of p that is nobody can tell; it was not all of it.
	return min(n, max(len(p)-1, 0)), err
}

// ReadFrom implements io.ReaderFrom. A file goes to the connection by the
// system's own means, as it would without the Writer, unless somebody wants to
// see the body.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	first := 0
	if !w.begun {
		// The first bytes send the header. Without any the response has not
		// begun: the handler may still choose a status, or return an error.
		var err error
		if first, err = w.readFirst(r); err != nil {
			return int64(first), noEOF(err)
		}
	}
	if w.body != nil {
		n, err := io.Copy(writeOnly{w}, r)
		return int64(first) + n, err
	}
	n, err := w.ResponseWriterWrapper.ReadFrom(r)
	return int64(first) + n, err
}

// firstBytes is how much of a source is read to see whether there is anything in
// it: what the server reads of it to guess the type of the content.
const firstBytes = 512

// readFirst passes the first bytes of a source on.
func (w *Writer) readFirst(r io.Reader) (int, error) {
	buf := make([]byte, firstBytes)
	for {
		n, err := r.Read(buf)
		if n == 0 && err == nil {
			continue
		}
		if n > 0 {
			written, failed := w.Write(buf[:n])
			if failed != nil {
				return written, failed
			}
		}
		return n, err
	}
}

func noEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// FlushError lets http.ResponseController flush: it sends the header.
func (w *Writer) FlushError() error {
	w.begin(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack implements http.Hijacker.
func (w *Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, stream, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		// The caller writes the response to the connection itself.
		w.hijacked = true
		w.begin(http.StatusSwitchingProtocols)
	}
	return conn, stream, err
}

// writeOnly hides ReadFrom from io.Copy.
type writeOnly struct{ io.Writer }

// Interface guards
var (
	_ http.ResponseWriter = (*Writer)(nil)
	_ http.Hijacker       = (*Writer)(nil)
	_ http.Pusher         = (*Writer)(nil)
	_ io.ReaderFrom       = (*Writer)(nil)
)
