package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// sentinelPause is how long one Sentinel has to say who the master is until
// another one is asked, too.
const sentinelPause = 100 * time.Millisecond

// sentinels know which server is the master. A server that has ceased to be it is
// told seconds later, and until then it goes on granting units that its successor
// does not know of. So as soon as another master is heard of, the connections to
// all others are closed, and one Sentinel is asked every second.
type sentinels struct {
	options Options
	secrets *secrets
	first   atomic.Int64 // the one that is asked first

	mu     sync.Mutex
	master string // its address, as of the latest reply
	conns  map[*masterConn]struct{}
}

func newSentinels(o Options, secrets *secrets) *sentinels {
	return &sentinels{options: o, secrets: secrets, conns: make(map[*masterConn]struct{})}
}

// watch hears of another master although no connection is made, until ctx ends.
func (s *sentinels) watch(ctx context.Context) {
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		_, _ = s.find(ctx) // what is wrong is told when a connection is made
	}
}

// dial connects to whichever server is the master.
func (s *sentinels) dial(ctx context.Context) (net.Conn, error) {
	address, err := s.find(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := dialTo(s.options, s.secrets, "tcp", address)(ctx)
	if err != nil {
		return nil, fmt.Errorf("master %s: %w", address, err)
	}
	c := &masterConn{Conn: conn, address: address, of: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if address != s.master {
		_ = conn.Close() // nothing was sent
		return nil, fmt.Errorf("master %s: it is %s by now", address, s.master)
	}
	s.conns[c] = struct{}{}
	if raw, ok := conn.(syscall.Conn); ok {
		return struct {
			*masterConn
			syscall.Conn // with it the library sees that a connection was closed
		}{c, raw}, nil
	}
	return c, nil
}

// find asks the Sentinels for the address of the master: first the one that
// answered last time, and another one whenever it takes long or fails.
func (s *sentinels) find(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.DialTimeout)
	defer cancel()
	type reply struct {
		sentinel int
		address  string
		err      error
	}
	all := s.options.Sentinels
	replies := make(chan reply, len(all))
	first, asked := int(s.first.Load()), 0
	next := func() {
		if asked == len(all) {
			return
		}
		sentinel := (first + asked) % len(all)
		asked++
		go func() {
			address, err := s.askOne(ctx, all[sentinel])
			replies <- reply{sentinel, address, err}
		}()
	}
	next()
	ticker := time.NewTicker(sentinelPause)
	defer ticker.Stop()
	var failures []error
	for len(failures) < asked {
		select {
		case <-ticker.C:
			next()
		case r := <-replies:
			if r.err == nil {
				s.first.Store(int64(r.sentinel))
				s.learn(r.address)
				return r.address, nil
			}
			failures = append(failures, fmt.Errorf("sentinel %s: %w", all[r.sentinel], r.err))
			next()
		}
	}
	return "", joined(failures)
}

// learn takes in who the master is.
func (s *sentinels) learn(address string) {
	var old []*masterConn
	s.mu.Lock()
	s.master = address
	for c := range s.conns {
		if c.address != address {
			delete(s.conns, c)
			old = append(old, c)
		}
	}
	s.mu.Unlock()
	// Not under the lock: TLS says goodbye first, for seconds if nobody
	// listens, and connections to the new master would wait for it.
	for _, c := range old {
		_ = c.Conn.Close() // there is nothing to be done about it
	}
}

// askOne asks a Sentinel for the address of the master.
func (s *sentinels) askOne(ctx context.Context, sentinel string) (string, error) {
	o, now := s.options, s.secrets.get()
	client := redis.NewSentinelClient(&redis.Options{
		Addr:     sentinel,
		Username: now.SentinelUsername,
		Password: now.SentinelPassword,
		Dialer:   neverFailing(dialTo(o, s.secrets, "tcp", sentinel)),

		// As for the servers, see newClient.
		MaxRetries:               -1,
		DialerRetries:            1,
		DialTimeout:              o.DialTimeout,
		ReadTimeout:              o.DialTimeout,
		WriteTimeout:             o.DialTimeout,
		ContextTimeoutEnabled:    true,
		PoolSize:                 1,
		Protocol:                 2,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		DisableIdentity:          true,
	})
	defer client.Close()
	defer context.AfterFunc(ctx, func() { client.Close() })()
	reply, err := client.GetMasterAddrByName(ctx, o.MasterName).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return "", fmt.Errorf("it knows no master of the name %q", o.MasterName)
	case redis.HasErrorPrefix(err, "unknown command"):
		return "", fmt.Errorf("%w; it is no Sentinel: these listen on port 26379 as a rule", err)
	case err != nil:
		return "", err
	case len(reply) != 2:
		return "", errReply
	}
	return net.JoinHostPort(reply[0], reply[1]), nil
}

// masterConn is a connection to a server that was the master when it was made.
type masterConn struct {
	net.Conn
	address string
	of      *sentinels
}

// Close overrides the connection's.
func (c *masterConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
