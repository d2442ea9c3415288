package main

import (
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"
)

// quota is the limit that a measurement is about.
type quota struct {
	limit  int64
	window time.Duration
}

// plenty is a limit that nothing comes near.
var plenty = quota{1_000_000_000, time.Minute}

// limiter decides. It is closed when nobody uses it any more.
type limiter interface {
	// session returns a function that decides for a key, with buffers of
	// its own: it is for one goroutine.
	session() decide
	close()
}

type decide func(key string) (granted bool, err error)

// subject is something that is compared.
type subject struct {
	name   string
	module string // its module, whose version the report gives; empty for ours
	shared bool   // counts in Redis
	open   func(address string, q quota) (limiter, error)
}

// The names of ours, by which other files find them.
const (
	nameLeases = "this module, leases on"
	nameDirect = "this module, leases off"
	nameMemory = "this module, memory"
	nameRate   = "redis_rate"
	nameFloor  = "x/time/rate in a sync.Map"
)

// subjects are all that run in a Go process.
var subjects = []subject{
	{nameLeases, "", true, func(address string, q quota) (limiter, error) { return openLeases(address, q, nil) }},
	{nameDirect, "", true, openDirect},
	{nameRate, "github.com/go-redis/redis_rate/v10", true, openRedisRate},
	{"ulule/limiter", "github.com/ulule/limiter/v3", true, openUlule},
	{"throttled", "github.com/throttled/throttled/v2", true, openThrottled},
	{"sethvargo/go-redisstore", "github.com/sethvargo/go-redisstore", true, openRedisStore},
	{nameMemory, "", false, openMemory},
	{nameFloor, "golang.org/x/time", false, openFloor},
}

// sharedSubjects are those that count in Redis.
func sharedSubjects() (shared []subject) {
	for _, s := range subjects {
		if s.shared {
			shared = append(shared, s)
		}
	}
	return shared
}

const (
	// patience is how long a decision may wait: a busy machine is no outage.
	patience = 5 * time.Second
	zone     = "bench"
)

// ours is this module below its HTTP handler.
type ours struct {
	store store.Store
	quota quota
	done  func()
}

func (o *ours) close() { o.done() }

func (o *ours) session() decide {
	requests, decisions := make([]store.Request, 1), make([]store.Decision, 1)
	return func(key string) (bool, error) {
		requests[0] = store.Request{Key: store.Key{Zone: zone, Client: key, Window: o.quota.window}, Limit: o.quota.limit, Units: 1}
		err := o.store.Take(time.Now(), patience, requests, decisions)
		return decisions[0].Granted, err
	}
}

// openLeases opens what Caddy uses by default. Between the leases and Redis
// stands what wrap returns, if it is given.
func openLeases(address string, q quota, wrap func(store.Store) store.Store) (limiter, error) {
	server, err := redis.Open(redis.Options{Address: address})
	if err != nil {
		return nil, err
	}
	var inner store.Store = server
	if wrap != nil {
		inner = wrap(inner)
	}
	leases := lease.New(inner, lease.Options{})
	return &ours{leases, q, func() {
		_ = leases.Close(time.Second) // what is not given back expires
		server.Close()
	}}, nil
}

func openDirect(address string, q quota) (limiter, error) {
	server, err := redis.Open(redis.Options{Address: address})
	if err != nil {
		return nil, err
	}
	return &ours{server, q, server.Close}, nil
}

// memoryKeys is more keys than any measurement has: what happens at the bound
// is not measured here.
const memoryKeys = 4_000_000

func openMemory(_ string, q quota) (limiter, error) {
	return &ours{store.NewMemory(memoryKeys), q, func() {}}, nil
}

// counted counts the calls that reach a store.
type counted struct {
	store.Store
	takes, returns atomic.Int64
}

func (c *counted) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	c.takes.Add(1)
	return c.Store.Take(time.Now(), wait, requests, decisions)
}

func (c *counted) Refund(wait time.Duration, refunds []store.Refund) error {
	c.returns.Add(1)
	return c.Store.Refund(wait, refunds)
}

func (c *counted) calls() int64 { return c.takes.Load() + c.returns.Load() }

func (c *counted) reset() {
	c.takes.Store(0)
	c.returns.Store(0)
}
