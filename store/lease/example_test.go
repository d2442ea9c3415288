package lease_test

import (
	"fmt"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
)

// The store below would be one that several processes share; a Memory stands in for it.
// Many requests of a client far from its limit are decided here, without asking it; of a
// limit this small, every one is asked about. What is granted is the same.
func Example() {
	shared := store.NewMemory(0)
	limits := lease.New(shared, lease.Options{})
	defer limits.Close(time.Second) // refunds what is in hand

	requests := []store.Request{{
		Key:   store.Key{Zone: "api", Client: "alice", Window: time.Minute},
		Limit: 50,
		Units: 1,
	}}
	decisions := make([]store.Decision, 1)
	granted := 0
	for range 100 {
		if err := limits.Take(time.Now(), time.Second, requests, decisions); err != nil {
			fmt.Println("no decision:", err)
			return
		}
		if decisions[0].Granted {
			granted++
		}
	}
	fmt.Println(granted, "granted of 100")
	// Output: 50 granted of 100
}
