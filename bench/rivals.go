package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/go-redis/redis_rate/v10"
	"github.com/gomodule/redigo/redis"
	goredis "github.com/redis/go-redis/v9"
	sethvargo "github.com/sethvargo/go-limiter"
	"github.com/sethvargo/go-redisstore"
	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/goredisstore.v9"
	ulule "github.com/ulule/limiter/v3"
	ululeredis "github.com/ulule/limiter/v3/drivers/store/redis"
	"golang.org/x/time/rate"
)

// The rivals are set up as their documentation does. Those on go-redis get a
// connection for each goroutine, which serves them best.

const rivalConnections = 64

func newClient(address string) *goredis.Client {
	return goredis.NewClient(&goredis.Options{Addr: address, PoolSize: rivalConnections})
}

// rival is a limiter that keeps nothing between decisions.
type rival struct {
	decide decide
	done   func()
}

func (r *rival) session() decide { return r.decide }
func (r *rival) close()          { r.done() }

func closer(c interface{ Close() error }) func() {
	return func() { _ = c.Close() } // there is nothing to be done about it
}

// openRedisRate: GCRA in a script, with the server's clock.
func openRedisRate(address string, q quota) (limiter, error) {
	client := newClient(address)
	l := redis_rate.NewLimiter(client)
	limit := redis_rate.Limit{Rate: int(q.limit), Burst: int(q.limit), Period: q.window}
	return &rival{func(key string) (bool, error) {
		result, err := l.Allow(context.Background(), key, limit)
		return err == nil && result.Allowed > 0, err
	}, closer(client)}, nil
}

// openUlule: a fixed window from the first request, in a script.
func openUlule(address string, q quota) (limiter, error) {
	client := newClient(address)
	s, err := ululeredis.NewStore(client)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	l := ulule.New(s, ulule.Rate{Period: q.window, Limit: q.limit})
	return &rival{func(key string) (bool, error) {
		result, err := l.Get(context.Background(), key)
		return err == nil && !result.Reached, err
	}, closer(client)}, nil
}

// openThrottled: GCRA in the process, written by compare and swap. When it
// has lost ten times it returns an error.
func openThrottled(address string, q quota) (limiter, error) {
	client := newClient(address)
	s, err := goredisstore.NewCtx(client, "throttled:")
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	l, err := throttled.NewGCRARateLimiterCtx(s, throttled.RateQuota{
		MaxRate: throttled.PerDuration(int(q.limit), q.window), MaxBurst: int(q.limit) - 1,
	})
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return &rival{func(key string) (bool, error) {
		limited, _, err := l.RateLimitCtx(context.Background(), key, 1)
		return err == nil && !limited, err
	}, closer(client)}, nil
}

// openRedisStore: a bucket that is filled at fixed intervals, in a script,
// with the caller's clock. It is on redigo, and asks for a PONG before each
// decision.
func openRedisStore(address string, q quota) (limiter, error) {
	s, err := redisstore.New(&redisstore.Config{
		Tokens: uint64(q.limit), Interval: q.window,
		Dial: func() (redis.Conn, error) { return redis.Dial("tcp", address) },
	})
	if err != nil {
		return nil, err
	}
	var l sethvargo.Store = s
	return &rival{func(key string) (bool, error) {
		_, _, _, ok, err := l.Take(context.Background(), key)
		return ok, err
	}, func() { _ = l.Close(context.Background()) }}, nil
}

// openFloor is no rival but what can be had at all: a token bucket for each
// key in a map of this process that grows without bound.
func openFloor(_ string, q quota) (limiter, error) {
	var keys sync.Map // of string to *rate.Limiter
	every := rate.Limit(float64(q.limit) / q.window.Seconds())
	return &rival{func(key string) (bool, error) {
		l, ok := keys.Load(key)
		if !ok {
			l, _ = keys.LoadOrStore(key, rate.NewLimiter(every, int(q.limit)))
		}
		bucket, ok := l.(*rate.Limiter)
		if !ok {
			return false, fmt.Errorf("a %T among the limiters", l)
		}
		return bucket.Allow(), nil
	}, func() {}}, nil
}
