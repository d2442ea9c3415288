// Package redis counts on Redis, so that every process which uses it shares
// one set of counts. The servers are one, or one that Sentinels watch over, or
// those of a Redis Cluster.
//
// One script decides all asks of a call at one moment of the server's clock;
// the clocks of the callers do not matter. The calls of a process share round
// trips. A call is sent once: after a timeout or a broken connection nobody
// knows whether it was executed, so it is never repeated. A server that is
// away is not asked until a heartbeat has found it there again.
//
// On a Cluster, asks of one call whose keys are in different slots are decided
// side by side: what some grant while others refuse is given back, and is
// missing meanwhile.
//
// # What it does not promise
//
// The counts are as durable as the servers: what they forget, by a restart, an
// eviction or a failover to a replica that lags, is granted again. A loss is
// noticed by the next heartbeat, at most about a second later, unless what is
// gone is less than that old. What was charged before is not given back to
// another server, or to one that was restarted.
//
// Version 6.2 and later, and its relatives that run the same scripts.
package redis

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Store is a [store.Shared] on Redis. It has a goroutine for each server, and
// others while calls are under way; connections stay open in between.
type Store struct {
	options  Options
	keys     *keys
	secrets  *secrets
	presence *presence
	cancel   context.CancelFunc // of what runs in the background

	trip atomic.Int64 // usual time of a round trip, ns; 0 if there was none

	one     *node    // the only server, nil if there is
	cluster *cluster // of several

	watching sync.Mutex
	reports  map[string]store.Report // the last one on each server
	watchers map[*func(store.Report)]struct{}
}

// Open returns a store. It does not wait for the servers, which may be down:
// connections are made and the script is loaded in the background.
func Open(o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	ctx, cancel := context.WithCancel(background)
	s := &Store{
		options: o, keys: newKeys(o.KeyPrefix, o.KeySecret), secrets: newSecrets(o),
		presence: newPresence(o.Instances), cancel: cancel,
		reports: make(map[string]store.Report), watchers: make(map[*func(store.Report)]struct{}),
	}
	switch {
	case len(o.Cluster) > 0:
		s.cluster = newCluster(ctx, s)
		go s.cluster.keep() // it asks the store for its cluster
	case len(o.Sentinels) > 0:
		masters := newSentinels(o, s.secrets)
		s.one = newNode(ctx, s, o.MasterName, s.listKey(""), masters.dial)
		go masters.watch(ctx)
	default:
		network, address, _ := o.endpoint()
		s.one = newNode(ctx, s, address, s.listKey(""), dialTo(o, s.secrets, network, address))
	}
	return s, nil
}

// listKey is the key of the list of instances.
func (s *Store) listKey(tag string) string {
	key := s.options.KeyPrefix + ":instances"
	if tag != "" {
		key += ":{" + tag + "}"
	}
	return key
}

// Take decides asks, see [store.Store].
func (s *Store) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	if err := store.Validate(requests, decisions); err != nil || len(requests) == 0 {
		return err
	}
	if err := s.take(wait, requests, decisions); err != nil {
		return err
	}
	return nil
}

func (s *Store) take(wait time.Duration, requests []store.Request, decisions []store.Decision) *store.Error {
	if wait <= 0 {
		return &store.Error{Kind: store.KindBudget, Unexecuted: true, Err: errors.New("not asked, since there is no time to wait for an answer")}
	}
	began := time.Now()
	n, table := s.one, (*slotTable)(nil)
	if s.cluster != nil {
		var err *store.Error
		if table, err = s.cluster.layout(wait); err != nil {
			return err
		}
		for i := 1; i < len(requests); i++ {
			if requests[i].Key.Client != requests[0].Key.Client {
				return s.takeApart(table, wait, wait-time.Since(began), requests, decisions, false)
			}
		}
		if n, err = s.cluster.owner(table, s.keys.slot(requests[0].Key.Client)); err != nil {
			return err
		}
	}
	n.patientFor(wait)
	c := newCall(wait, s.keys.takeCommand(requests))
	c.request = isRequest(requests)
	reply, err := n.run(c, wait-time.Since(began))
	switch {
	case isSplitError(err) && len(requests) > 1:
		return s.takeApart(table, wait, wait-time.Since(began), requests, decisions, true)
	case err != nil && err.Kind == store.KindTimeout && !err.Unexecuted:
		return laterOn(c, err, len(requests))
	case err != nil:
		return err
	}
	if err := c.read(reply, decisions); err != nil {
		return &store.Error{Kind: store.KindReply, Err: err}
	}
	return nil
}

// laterOn lets the answers to a call that was given up be heard.
func laterOn(c *call, err *store.Error, count int) *store.Error {
	late := new(store.Pending)
	c.afterwards(func(reply string, failure *store.Error) {
		decisions := make([]store.Decision, count)
		if failure != nil || c.read(reply, decisions) != nil {
			decisions = nil
		}
		late.Deliver(decisions)
	})
	return &store.Error{Kind: err.Kind, Err: err.Err, Pending: late}
}

// Return gives grants back, see [store.Store].
func (s *Store) Refund(wait time.Duration, refunds []store.Refund) error {
	for i := range refunds {
		g := &refunds[i]
		if g.Window < store.MinWindow || g.Window > store.MaxWindow || g.Stamp < 0 || g.Mark < 0 || g.Origin < 0 || g.Units < 0 || g.Units > store.MaxEvents {
			return fmt.Errorf("redis: %d units stamped %d of zone %q are no grant", g.Units, g.Stamp, g.Key.Zone)
		}
	}
	if len(refunds) == 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	parts := together(s.refundParts(wait, refunds, upTo(len(refunds)), false), timer.C, func(index []int) []*part {
		return s.refundParts(wait, refunds, index, true)
	})
	var failed *store.Error
	for _, p := range parts {
		switch {
		case p.err != nil:
			failed = p.err
		case len(p.reply) != refundReply*len(p.index):
			failed = &store.Error{Kind: store.KindReply, Err: fmt.Errorf("%w: %d bytes for %d grants", errReply, len(p.reply), len(p.index))}
		}
	}
	if failed != nil {
		return failed
	}
	return nil
}

// Instances is how many processes use the store, see [store.Shared]. A process
// that has several stores of the same data counts as several.
func (s *Store) Instances() int { return s.presence.instances() }

// RoundTrip is how long a round trip to a server usually takes, without the time
// that calls wait to be sent: 0 if there was none yet.
func (s *Store) RoundTrip() time.Duration { return time.Duration(s.trip.Load()) }

// took learns how long a round trip took. A racing one may be lost: there are
// many.
func (s *Store) took(d time.Duration) {
	usual := s.trip.Load()
	if usual == 0 {
		usual = int64(d)
	}
	s.trip.Store(usual + (int64(d)-usual)/8)
}

// Watch reports on the servers, see [store.Shared].
func (s *Store) Watch(do func(store.Report)) (stop func()) {
	s.watching.Lock()
	defer s.watching.Unlock()
	s.watchers[&do] = struct{}{}
	for _, r := range s.reports {
		do(r)
	}
	return func() {
		s.watching.Lock()
		defer s.watching.Unlock()
		delete(s.watchers, &do)
	}
}

// report tells the watchers what has become of a server, unless whoever says
// so has been told to end: then the server may be gone.
func (s *Store) report(ctx context.Context, name string, r store.Report) {
	r.Server, r.Instances = name, s.Instances()
	if r.Err != nil {
		r.Err = s.redact(r.Err)
	}
	s.watching.Lock()
	defer s.watching.Unlock()
	if ctx.Err() != nil {
		return
	}
	last, known := s.reports[name]
	if known && last.Condition == r.Condition && last.Instances == r.Instances && r.Lost == "" {
		return
	}
	for do := range s.watchers {
		(*do)(r)
	}
	r.Lost = "" // that has been told
	s.reports[name] = r
}

// gone notes that a server is none of the store's any more.
func (s *Store) gone(name string) {
	s.watching.Lock()
	defer s.watching.Unlock()
	if _, known := s.reports[name]; !known {
		return
	}
	delete(s.reports, name)
	for do := range s.watchers {
		(*do)(store.Report{Server: name, Condition: store.Removed, Instances: s.Instances()})
	}
}

// moved notes that what is known about where the slots are may be outdated.
func (s *Store) moved() {
	if s.cluster != nil {
		s.cluster.moved()
	}
}

// String names the data behind the store, see [store.Store].
func (s *Store) String() string { return s.options.name() }

// Close lets go of the connections as soon as the calls under way are done; it
// does not wait for that. Calls that come later still work: they open
// connections of their own, which are closed as soon as none is under way.
func (s *Store) Close() { s.cancel() }

var _ store.Shared = (*Store)(nil)
