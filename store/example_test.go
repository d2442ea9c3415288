package store_test

import (
	"fmt"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// A limit of three in an hour for each client, and one of four for all of them: a call
// is granted by both or charged to neither.
func Example() {
	limits := store.NewMemory(0)
	take := func(client string) {
		requests := []store.Request{
			{Key: store.Key{Zone: "each", Client: client, Window: time.Hour}, Limit: 3, Units: 1},
			{Key: store.Key{Zone: "all", Window: time.Hour}, Limit: 4, Units: 1},
		}
		decisions := make([]store.Decision, len(requests))
		if err := limits.Take(time.Now(), 100*time.Millisecond, requests, decisions); err != nil {
			fmt.Println("no decision:", err) // never of a Memory
			return
		}
		fmt.Printf("%s: granted %v; left: %d for this client, %d for all\n",
			client, store.Granted(requests, decisions), decisions[0].Remaining, decisions[1].Remaining)
	}
	for range 4 {
		take("alice")
	}
	take("bob")
	take("bob")
	// Output:
	// alice: granted true; left: 2 for this client, 3 for all
	// alice: granted true; left: 1 for this client, 2 for all
	// alice: granted true; left: 0 for this client, 1 for all
	// alice: granted false; left: 0 for this client, 1 for all
	// bob: granted true; left: 2 for this client, 0 for all
	// bob: granted false; left: 2 for this client, 0 for all
}

// Units that were not needed after all are refunded to the charge that they came from.
func ExampleStore_refund() {
	var limits store.Store = store.NewMemory(0)
	request := []store.Request{{Key: store.Key{Zone: "tokens", Client: "alice", Window: time.Hour}, Limit: 1000, Units: 800}}
	decision := make([]store.Decision, 1)
	for range 2 {
		if err := limits.Take(time.Now(), time.Second, request, decision); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("800 tokens:", decision[0].Granted)
		if decision[0].Granted { // it took 150
			if err := limits.Refund(time.Second, []store.Refund{{Key: request[0].Key, Charge: decision[0].Charge, Units: 650}}); err != nil {
				fmt.Println("spent all the same, for one window:", err)
			}
		}
	}
	// Output:
	// 800 tokens: true
	// 800 tokens: true
}
