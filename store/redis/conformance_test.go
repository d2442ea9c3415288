package redis

import (
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

func TestConformance(t *testing.T) {
	server := redistest.Start(t)
	shared := func(t *testing.T) store.Store { return open(t, Options{Address: server.Addr}) }
	storetest.Run(t, shared)
	t.Run("shared", func(t *testing.T) { storetest.RunShared(t, shared) })
	t.Run("steered", func(t *testing.T) {
		storetest.RunSteered(t, func(t *testing.T) store.Steered { return warmed(t, Options{Address: server.Addr}) })
	})
	t.Run("steered with leases", func(t *testing.T) {
		storetest.RunSteered(t, func(t *testing.T) store.Steered {
			return lease.New(warmed(t, Options{Address: server.Addr}), lease.Options{})
		})
	})
}

func TestInflightConformance(t *testing.T) {
	server := redistest.Start(t)
	shared := func(t *testing.T) inflight.Shared { return warmed(t, Options{Address: server.Addr}) }
	storetest.RunInflight(t, func(t *testing.T) *inflight.Limiter { return inflight.NewTable().Limiter(shared(t)) })
	t.Run("shared", func(t *testing.T) { storetest.RunInflightShared(t, shared) })
}
