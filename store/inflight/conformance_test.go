package inflight_test

import (
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// TestConformance: without a store, the table of a process is the limit.
func TestConformance(t *testing.T) {
	storetest.RunInflight(t, func(*testing.T) *inflight.Limiter { return inflight.NewTable().Limiter(nil) })
}
