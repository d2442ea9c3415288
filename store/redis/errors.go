package redis

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// failure says what it means that a call came back with err. written tells
// whether a part of it may have gone over a connection.
func (s *Store) failure(err error, written bool) *store.Error {
	e := &store.Error{Kind: store.KindBroken, Err: s.redact(err)}
	var reply redis.Error
	var timeout net.Error
	switch {
	case !written:
		// No connection, or one whose handshake failed.
		e.Kind, e.Unexecuted = store.KindUnavailable, true
	case errors.As(err, &reply):
		// The script writes last, so that an error of the server's proves
		// that nothing was written.
		e.Kind, e.Unexecuted = store.KindReply, serverError(reply.Error())
	case errors.As(err, &timeout) && timeout.Timeout():
		e.Kind = store.KindTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.As(err, &timeout), errors.As(err, new(syscall.Errno)):
	default:
		// A reply that is not of the protocol, or not of the script.
		e.Kind = store.KindReply
	}
	return e
}

// serverError reports whether an error reply is one of the server itself: it
// begins with a code in capitals. A proxy between here and there says in words
// of its own that it lost a command which may have been executed.
func serverError(message string) bool {
	code, _, _ := strings.Cut(message, " ")
	for i := range len(code) {
		if code[i] < 'A' || code[i] > 'Z' {
			return false
		}
	}
	return code != ""
}

// noScript reports whether the server did not know the script.
func noScript(err error) bool {
	return redis.HasErrorPrefix(err, "NOSCRIPT")
}

// redact returns err without the password, which no error is known to hold,
// and without what it wraps.
func (s *Store) redact(err error) error {
	message := err.Error()
	if s.options.Password != "" {
		message = strings.ReplaceAll(message, s.options.Password, "[password]")
	}
	return errors.New(message)
}
