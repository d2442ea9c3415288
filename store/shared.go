package store

import "time"

// Shared is a store that several processes use, and that can be away. It is
// safe for concurrent use.
type Shared interface {
	Store
	// Instances is how many processes use the store, this one included, as
	// far as is known: at least 1. While the store is away it stays what it
	// was.
	Instances() int
	// Watch calls do with a report on each server of the store, and then
	// with one for each change, until stop is called; perhaps still once
	// while stop is running. It must not block.
	Watch(do func(Report)) (stop func())
}

// Condition is how a server behind a store fares.
type Condition uint8

// Conditions of a server.
const (
	Unknown Condition = iota // nobody has heard of it yet
	Up                       // it answers in time
	Slow                     // it answers, but later than calls wait for it
	Away                     // it does not answer
	Removed                  // it does not belong to the store any more
)

var conditionNames = [...]string{"unknown", "up", "slow", "away", "removed"}

func (c Condition) String() string { return conditionNames[c] }

// Report tells how a server behind a store fares.
type Report struct {
	// Server names the server, without secrets.
	Server    string
	Condition Condition
	// Took is how long the server took to answer, and Wait how long calls
	// wait for it, if it is Slow.
	Took, Wait time.Duration
	// Err is why the server is Away. It holds no secret.
	Err error
	// Lost, if it is not empty, is how it shows that the server has lost
	// counts since it was asked last. It is reported once for each loss.
	Lost string
	// Instances is what the store's method of that name returns.
	Instances int
}
