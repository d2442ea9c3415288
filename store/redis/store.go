// Package redis counts on a Redis server, so that every process which uses it
// shares one set of counts.
//
// One script decides all asks of a call at one moment of the server's clock;
// the clocks of the callers do not matter. The calls of a process share round
// trips. A call is sent once: after a timeout or a broken connection nobody
// knows whether it was executed, so it is never repeated.
//
// # What it does not promise
//
// The counts are as durable as the server: what it forgets, by a restart, an
// eviction or a failover to a replica that lags, is granted again.
//
// Version 6.2 and later, and its relatives that run the same scripts. One
// server only, so far.
package redis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Store is a [store.Store] on a Redis server. It has no goroutine and uses no
// connection but while calls are under way; connections stay open in between.
type Store struct {
	options Options
	keys    *keys
	cancel  context.CancelFunc // of warming up
	slow    atomic.Bool        // the latest round trip took more than slowBatch

	mu      sync.Mutex
	queue   queue
	workers int       // goroutines sending batches, at most Options.PoolSize
	began   time.Time // when the latest batch was taken
	client  *client   // nil when there is nothing to close
	closed  bool
}

// Open returns a store. It does not wait for the server, which may be down: a
// connection is made and the script loaded in the background, with pauses
// until it succeeds.
func Open(o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{options: o, keys: newKeys(o.KeyPrefix, o.KeySecret), cancel: cancel}
	go s.warm(ctx)
	return s, nil
}

// The pauses between attempts to warm up grow from the first to the last.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// warm makes a connection and loads the script, so that the first request
// finds both.
func (s *Store) warm(ctx context.Context) {
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, lastPause) {
		if _, err := s.run(s.options.DialTimeout+s.options.Timeout, emptyCommand()); err == nil {
			return
		}
		// Not all instances at once, if they were started together.
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Take decides asks, see [store.Store].
func (s *Store) Take(wait time.Duration, asks []store.Ask, answers []store.Answer) error {
	if err := store.Validate(asks, answers); err != nil || len(asks) == 0 {
		return err
	}
	reply, err := s.run(wait, s.keys.takeCommand(asks))
	if err != nil {
		return err
	}
	if err := readAnswers(reply, answers); err != nil {
		return &store.Error{Kind: store.KindReply, Err: err}
	}
	return nil
}

// Return gives grants back, see [store.Store].
func (s *Store) Return(wait time.Duration, grants []store.Grant) error {
	for i := range grants {
		g := &grants[i]
		if g.Window < store.MinWindow || g.Window > store.MaxWindow || g.Stamp < 0 || g.Mark < 0 || g.Units < 0 || g.Units > store.MaxEvents {
			return fmt.Errorf("redis: %d units stamped %d of zone %q are no grant", g.Units, g.Stamp, g.Key.Zone)
		}
	}
	if len(grants) == 0 {
		return nil
	}
	reply, err := s.run(wait, s.keys.giveCommand(grants))
	if err != nil {
		return err
	}
	if len(reply) != giveReply*len(grants) {
		return &store.Error{Kind: store.KindReply, Err: fmt.Errorf("%w: %d bytes for %d grants", errReply, len(reply), len(grants))}
	}
	return nil
}

// String names the data behind the store, see [store.Store].
func (s *Store) String() string { return s.options.name() }

// Close lets go of the connections as soon as the calls under way are done; it
// does not wait for that. Calls that come later still work: they open a
// connection of their own, which is closed as soon as none is under way.
func (s *Store) Close() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.closeIdleLocked()
}

// closeIdleLocked closes the connections of a closed store that nobody works
// with.
func (s *Store) closeIdleLocked() {
	if s.closed && s.workers == 0 && s.client != nil {
		_ = s.client.Close() // there is nothing to be done about it
		s.client = nil
	}
}

var _ store.Store = (*Store)(nil)
