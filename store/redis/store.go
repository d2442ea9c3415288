// Package redis counts on Redis, so that every process that uses it shares one
// set of counts. The data are on one server, on one that Sentinels watch, or on
// those of a Redis Cluster.
//
// One script decides all requests of a call at one moment of the server's
// clock; the clocks of the callers do not matter. The calls of a process share
// round trips, and runs of the script, which decides them one after the other. A
// call is sent once: after a timeout or a broken connection
// nobody knows whether it was executed, so it is never repeated. A server that
// is away is not asked until a heartbeat has found it again.
//
// On a Cluster, requests of one call whose keys are in different slots are
// decided side by side: if some are granted while others are refused, their
// units are refunded, and are missing meanwhile.
//
// # Slots and Sentinels
//
// The Redis library's clients for a Cluster and for Sentinels are not used, only
// its connections and protocol, for three reasons. They repeat a command after a
// failure, although it may have been executed. They have no breaker for each
// server, so that calls wait for one that is away. And they look up slots and
// masters while a command waits. Here a call follows one redirection, which
// proves that it was not executed; each server has a breaker of its own; and the
// table of slots is kept up to date in the background, as is the master, whose
// predecessor's connections are closed at once. A test compares the table with
// the library's while slots move.
//
// # What it does not promise
//
// The counts are as durable as the servers: what they forget, in a restart, an
// eviction or a failover to a replica that lags, is granted again. The next
// heartbeat notices a loss, at most about a second later, unless the lost data
// are younger than that. What was charged before a failover or a restart is not
// refunded after it.
//
// Version 6.2 and later, and its relatives that run the same scripts.
package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Store is a [store.Shared] and a [store.Steered] on Redis. It has a goroutine for each server, and
// others while calls are under way; connections stay open in between.
type Store struct {
	*environment
	servers
	board  *board
	cancel context.CancelFunc // of everything in the background
}

// Open returns a store. It does not wait for the servers, which may be down:
// connections are made and the script is loaded in the background.
func Open(o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	ctx, cancel := context.WithCancel(background)
	env := newEnvironment(o)
	s := &Store{environment: env, servers: servers{keys: newKeys(o.KeyPrefix, o.KeySecret), timeout: o.Timeout}, board: newBoard(ctx, o.KeyPrefix), cancel: cancel}
	switch {
	case len(o.Cluster) > 0:
		s.cluster = newCluster(ctx, env)
	case len(o.Sentinels) > 0:
		masters := newSentinels(o, env.secrets)
		s.one = newNode(ctx, env, o.MasterName, listKey(o.KeyPrefix, ""), masters.dial)
		go masters.watch(ctx)
	default:
		network, address, _ := o.endpoint()
		s.one = newNode(ctx, env, address, listKey(o.KeyPrefix, ""), dialTo(o, env.secrets, network, address))
	}
	return s, nil
}

// Take decides requests, see [store.Store].
func (s *Store) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	if err := store.Validate(requests, decisions); err != nil || len(requests) == 0 {
		return err
	}
	if wait <= 0 {
		return &store.Error{Kind: store.KindBudget, Unexecuted: true, Err: errors.New("not asked, since there is no time to wait for a decision")}
	}
	if err := s.take(wait, requests, decisions); err != nil {
		return err
	}
	return nil
}

// Refund refunds units, see [store.Store].
func (s *Store) Refund(wait time.Duration, refunds []store.Refund) error {
	for i := range refunds {
		r := &refunds[i]
		if r.Window < store.MinWindow || r.Window > store.MaxWindow || r.Stamp < 0 || r.Mark < 0 || r.Origin < 0 || r.Units < 0 || r.Units > store.MaxEvents {
			return fmt.Errorf("redis: %d units stamped %d of zone %q are no charge", r.Units, r.Stamp, r.Key.Zone)
		}
	}
	if len(refunds) == 0 {
		return nil
	}
	if err := s.refund(wait, refunds); err != nil {
		return err
	}
	return nil
}

// Instances is how many processes use the store, see [store.Shared]. A process
// that has several stores of the same data counts as several.
func (s *Store) Instances() int { return s.presence.instances() }

// RoundTrip is how long a round trip to a server usually takes, without the time
// that calls wait to be sent: 0 if there was none yet.
func (s *Store) RoundTrip() time.Duration { return s.trip.usual() }

// Watch reports on the servers, see [store.Shared].
func (s *Store) Watch(do func(store.Report)) (stop func()) { return s.watchers.add(do) }

// String names the data behind the store, see [store.Store].
func (s *Store) String() string { return s.options.name() }

// Close closes the connections as soon as the calls under way are done; it
// does not wait for that. Later calls still work: they open connections of
// their own, which are closed as soon as no call is under way.
func (s *Store) Close() { s.cancel() }

var _ store.Shared = (*Store)(nil)
