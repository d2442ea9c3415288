package storetest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// The tests of a store of one's own, in a file that ends in _test.go, are two functions
// like these, with names that begin with Test. A Memory stands for the store.
func Example() {
	one := func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) store.Store {
			return store.NewMemory(0)
		})
	}
	// What several processes share: each call opens another connection to the same data.
	data := store.NewMemory(0)
	several := func(t *testing.T) {
		storetest.RunShared(t, func(t *testing.T) store.Store {
			return data
		})
	}
	_, _ = one, several
}

// Six units were granted on both sides of the turn of a minute. A limiter that counts by
// minutes has kept a limit of three; in one interval of a minute there were six.
func ExampleMost() {
	turn := time.Date(2026, time.January, 1, 12, 1, 0, 0, time.UTC)
	spans := []storetest.Span{
		{From: turn.Add(-2 * time.Second), To: turn.Add(-time.Second), Units: 3},
		{From: turn.Add(time.Second), To: turn.Add(2 * time.Second), Units: 3},
	}
	units, at := storetest.Most(spans, time.Minute)
	fmt.Println(units, "units in the minute from", at.Format(time.TimeOnly))
	// Output: 6 units in the minute from 12:00:58
}
