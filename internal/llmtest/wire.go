package llmtest

import (
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// body is where a response is written.
type body struct {
	io.Writer
	gzip *gzip.Writer // nil if it is not encoded
	x    *exchange
}

// open writes the header of the response.
func (x *exchange) open(status int) *body {
	b := &body{Writer: x.w, x: x}
	accepted := strings.Contains(x.r.Header.Get("Accept-Encoding"), "gzip")
	if x.behaviour.Gzip == "always" || x.behaviour.Gzip == "asked" && accepted {
		x.w.Header().Set("Content-Encoding", "gzip")
		b.gzip = gzip.NewWriter(x.w)
		b.Writer = b.gzip
	}
	if x.behaviour.Hints {
		x.w.WriteHeader(http.StatusEarlyHints)
	}
	x.w.WriteHeader(status)
	return b
}

func (b *body) flush() {
	if b.gzip != nil {
		_ = b.gzip.Flush()
	}
	_ = b.x.control.Flush()
}

// Close ends the encoding.
func (b *body) Close() error {
	if b.gzip != nil {
		return b.gzip.Close()
	}
	return nil
}

// event writes one event of a stream at once, or in pieces at odd places.
func (b *body) event(e event) {
	text := "data: " + e.text() + "\n\n"
	if e.name != "" {
		text = "event: " + e.name + "\n" + text
	}
	if b.x.behaviour.CRLF {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	size := len(text)
	if b.x.behaviour.Split > 0 {
		size = b.x.behaviour.Split
	}
	for len(text) > 0 {
		n := min(size, len(text))
		_, _ = io.WriteString(b, text[:n]) // it goes on without a client
		b.flush()
		text = text[n:]
	}
}

// event is one event of a stream.
type event struct {
	name   string // of the event, empty for none
	data   any    // a string as it is, anything else as JSON
	tokens int    // of output that it stands for
	usage  bool   // it tells the usage
}

func (e event) text() string {
	if text, ok := e.data.(string); ok {
		return text
	}
	return string(encode(e.data))
}

// stream writes events, in their time, and bills them as it goes. The bill does
// not stop with the client.
func (x *exchange) stream(events []event, failure event) {
	x.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	x.w.Header().Set("Cache-Control", "no-cache")
	x.note(func(e *Entry) { e.Status, e.Tokens.Output = http.StatusOK, 0 })
	out := x.open(http.StatusOK)
	out.flush()
	here, after := true, 0
	for i, e := range events {
		if broken := i == len(events)/2; broken && x.broke(out, failure) {
			return
		}
		if here && i > 0 && x.behaviour.Every > 0 {
			here = x.pause(x.behaviour.Every)
		}
		if x.r.Context().Err() != nil {
			x.note(func(e *Entry) { e.HungUp = true })
			here = false
		}
		if !here {
			if after++; x.behaviour.After >= 0 && after > x.behaviour.After {
				return
			}
		}
		x.note(func(entry *Entry) {
			entry.Tokens.Output += e.tokens
			if here {
				entry.Events++
				entry.Told = entry.Told || e.usage
			}
		})
		if here {
			out.event(e)
		}
	}
	_ = out.Close()
}

// broke does what is to happen midway, and reports whether that is the end.
func (x *exchange) broke(out *body, failure event) bool {
	switch x.behaviour.Break {
	case breakCut:
		panic(http.ErrAbortHandler)
	case breakReset:
		x.reset()
	case breakStall:
		x.pause(hangTime)
		panic(http.ErrAbortHandler)
	case breakError:
		out.event(failure)
		_ = out.Close()
	default:
		return false
	}
	return true
}

// reset ends the connection so that the other side sees a reset; over HTTP/2 the
// stream is.
func (x *exchange) reset() {
	conn, _, err := x.control.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	// What was written before reaches the other side only if it is not thrown
	// away with the rest.
	time.Sleep(20 * time.Millisecond)
	_ = conn.Close()
}
