package redis

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// idleTime is how long an unused connection is kept: less than the few minutes
// after which middleboxes forget one without a word.
const idleTime = 3 * time.Minute

// background is the context of everything that is sent. It is no HTTP
// request's: what a client has given up is counted all the same.
var background = context.Background()

// dialer connects to a server.
type dialer func(ctx context.Context) (net.Conn, error)

// client is the connections to a server. Operations of different lives share
// them.
type client struct {
	*redis.Client
	timeout time.Duration
	lives   []*redis.Client // for timeout, twice, four times... up to MaxTimeout

	// origin is the identity of the server's data that charges are tagged with,
	// 0 if there is none, see origin.go.
	origin atomic.Int64
	// heard is the identity that a heartbeat brought last, over these
	// connections or before they were made. The lock of its server guards it,
	// and what follows.
	heard   int64
	workers int // goroutines sending batches
	users   int // these, and the keeper
}

// newClient returns a client that has not dialled. The library's defaults are
// a cache's; where a limiter needs others, the reason is here.
func newClient(o Options, secrets *secrets, dial dialer) *client {
	c := redis.NewClient(&redis.Options{
		Addr:   "set-by-the-dialer:0",
		DB:     o.DB,
		Dialer: neverFailing(dial),
		CredentialsProvider: func() (username, password string) {
			now := secrets.get()
			return now.Username, now.Password
		},

		// Nothing is ever sent again: it could be counted again.
		MaxRetries:    -1,
		DialerRetries: 1,
		DialTimeout:   o.DialTimeout,

		// The deadline of an operation is its own, not a call's: a missed one
		// costs the connection, and the next handshake would then run within
		// the next call's deadline, so that a short brown-out would destroy
		// every connection again and again.
		ContextTimeoutEnabled: false,
		ReadTimeout:           o.Timeout,
		WriteTimeout:          o.Timeout,

		// A connection for each batch under way and for a heartbeat, so that
		// none of them waits. Pipelines would otherwise have a pool beside
		// this one.
		PoolSize:         o.PoolSize + 1,
		PoolTimeout:      o.DialTimeout,
		PipelinePoolSize: -1,
		ConnMaxIdleTime:  idleTime,

		// No pushed messages, hence none to look for before each read; no
		// look-up of the host's name while options are being read, and no
		// further round trips in the handshake.
		Protocol:                 2,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		DisableIdentity:          true,
	})
	cl := &client{Client: c, timeout: o.Timeout}
	for life := o.Timeout; ; life *= 2 {
		cl.lives = append(cl.lives, c.WithTimeout(min(life, MaxTimeout)))
		if life >= MaxTimeout {
			return cl
		}
	}
}

// living returns a client over the same connections whose operations may take
// life or somewhat longer.
func (c *client) living(life time.Duration) *redis.Client {
	i := 0
	for l := c.timeout; l < life && i < len(c.lives)-1; l *= 2 {
		i++
	}
	return c.lives[i]
}

// dialTo returns a dialer of one address.
func dialTo(o Options, secrets *secrets, network, address string) dialer {
	return func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, o.DialTimeout)
		defer cancel()
		plain := &net.Dialer{}
		if config := secrets.get().TLS; config != nil && network != "unix" {
			// It takes the name that the certificate must have from the
			// address, if there is none in the configuration.
			conn, err := (&tls.Dialer{NetDialer: plain, Config: config}).DialContext(ctx, network, address)
			if err != nil {
				return nil, explainedTLS(err)
			}
			return conn, nil
		}
		return plain.DialContext(ctx, network, address)
	}
}

// neverFailing opens connections for the library's pool, and never tells it that
// one could not be opened. The pool would write a line to standard error for each
// attempt, through a logger that all users of the library in this process share,
// and after a few it would refuse to dial for up to a second while a goroutine of
// its own tries. Instead it gets a connection on which everything fails, and
// drops it at the handshake.
func neverFailing(dial dialer) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return deadConn{dialError{err}}, nil
		}
		return conn, nil
	}
}

// dialError is a failure to connect. It wraps nothing, since the library
// would unwrap it and lose what it says.
type dialError struct{ err error }

func (e dialError) Error() string { return e.err.Error() }

// deadConn is a connection that was never made.
type deadConn struct{ err error }

func (c deadConn) Read([]byte) (int, error)       { return 0, c.err }
func (c deadConn) Write([]byte) (int, error)      { return 0, c.err }
func (deadConn) Close() error                     { return nil }
func (deadConn) LocalAddr() net.Addr              { return deadAddr{} }
func (deadConn) RemoteAddr() net.Addr             { return deadAddr{} }
func (deadConn) SetDeadline(time.Time) error      { return nil }
func (deadConn) SetReadDeadline(time.Time) error  { return nil }
func (deadConn) SetWriteDeadline(time.Time) error { return nil }

type deadAddr struct{}

func (deadAddr) Network() string { return "none" }
func (deadAddr) String() string  { return "not connected" }
