package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// classify says what it means that a call came back with err. written tells
// whether a piece of it may have gone over a connection.
func classify(s *secrets, err error, written bool) *store.Error {
	e := &store.Error{Kind: store.KindBroken, Err: s.redacted(explained(err))}
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
		// A reply that is not the protocol's, or not the script's.
		e.Kind = store.KindReply
	}
	return e
}

// serverError reports whether an error reply is the server's own: it begins
// with a code in capitals. A proxy in between has words of its own for a lost
// command, which may have been executed.
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

// isRedirect reports whether a server of a Cluster says that the key is
// elsewhere; nothing was executed.
func isRedirect(err error) bool {
	return redis.HasErrorPrefix(err, "MOVED") || redis.HasErrorPrefix(err, "ASK")
}

// errMoved stands for a redirection.
var errMoved = errors.New("the key is on another server")

// isSplit reports whether a server of a Cluster has some of a call's keys and
// not the others, since they are being moved; nothing was executed.
func isSplit(err error) bool { return redis.HasErrorPrefix(err, "TRYAGAIN") }

// isCrossSlot reports whether a server refuses keys in several slots, though all
// slots may be its own; nothing was executed.
func isCrossSlot(err error) bool { return redis.HasErrorPrefix(err, "CROSSSLOT") }

// errSplit stands for keys on two servers.
var errSplit = errors.New("the keys are being moved to another server")

func isSplitError(err *store.Error) bool { return err != nil && err.Err == errSplit }

// isReadOnly reports whether the server is a replica.
func isReadOnly(err error) bool { return redis.HasErrorPrefix(err, "READONLY") }

// errGivenUp stands for a call that was not sent, since nobody waited for it any
// more.
var errGivenUp = errors.New("given up")

// errReply stands for a reply of another form than the script's.
var errReply = errors.New("the server's reply is not the script's")

// joined is several errors in one line.
func joined(failures []error) error {
	var texts []string
	for _, err := range failures {
		texts = append(texts, err.Error())
	}
	return errors.New(strings.Join(texts, "; "))
}

// lacksRight reports whether the user may not do what was asked. What a script
// may not do is told in other words: the first are those of Redis 6 and 7.0, the
// second those of Redict, Valkey and later versions of Redis.
func lacksRight(err error) bool {
	return redis.HasErrorPrefix(err, "NOPERM") ||
		strings.Contains(err.Error(), "can't run this command") ||
		strings.Contains(err.Error(), "ACL failure in script")
}

// explained adds the remedy to replies that have one.
func explained(err error) error {
	switch {
	case lacksRight(err):
		return fmt.Errorf("%w; the user needs: ~<key_prefix>:* +evalsha +eval +script|load +time +get +mget +set +del +info; "+
			"for a database other than 0 +select, and on a cluster +cluster|slots +asking", err)
	case isRedirect(err), isCrossSlot(err):
		return fmt.Errorf("%w; the server is part of a Redis Cluster: configure it as a cluster", err)
	case redis.HasErrorPrefix(err, "This instance has cluster support disabled"):
		return fmt.Errorf("%w: configure it as a single server", err)
	case redis.HasErrorPrefix(err, "READONLY"):
		return fmt.Errorf("%w; the server is a replica: name the master, the Sentinels or the cluster", err)
	case unauthenticated(err):
		return fmt.Errorf("NOAUTH: %w (%s)", err, logIn)
	case redis.HasErrorPrefix(err, "NOAUTH"), redis.HasErrorPrefix(err, "WRONGPASS"):
		return fmt.Errorf("%w (%s)", err, logIn)
	case strings.Contains(err.Error(), "redis: invalid reply"), strings.Contains(err.Error(), "redis: can't parse"):
		return fmt.Errorf("%w; what answers is no Redis, or expects TLS: look at host and port, or write rediss:// or tls", err)
	}
	return err
}

const logIn = "write a user of the server and its password: username and password, or redis://user:password@host"

// unauthenticated reports whether a server that wants a password refuses a long
// command from somebody who has not given one. It says so in other words than
// of a short command, and hangs up.
func unauthenticated(err error) bool {
	return redis.HasErrorPrefix(err, "Protocol error: unauthenticated")
}

// hungUp reports whether the other side has closed the connection.
func hungUp(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) }

// explainedTLS adds the remedy to a handshake of TLS with a server that does not
// speak it: Redis waits for the end of what it takes for a command.
func explainedTLS(err error) error {
	if errors.As(err, new(tls.RecordHeaderError)) || errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*net.OpError)) {
		return fmt.Errorf("no TLS handshake: %w; if the server does not speak TLS, write redis:// and no tls", err)
	}
	return err
}
