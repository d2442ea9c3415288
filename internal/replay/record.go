// Package replay runs access logs through rate limits: what would have been refused,
// whose requests, and which limit would have refused almost nobody.
//
// It reads logs, decides requests in the order in which they came, with a store whose
// clock is the log's, and tells people and scripts what became of them. Which zones a
// request meets, and with which key, is the business of an [Evaluator], which knows the
// configuration.
//
// # What it does not promise
//
// Requests are decided as if they had come all the same: nobody knows whether a client
// that is refused would have tried again. A request that lasted for more than a minute
// is decided later than it came. Where clients are more than it may remember, the
// figures of single clients are those of the first.
package replay

import (
	"time"
)

// Zone is what is known of a limit.
type Zone struct {
	Name string
	// Limit and Key are how people write them.
	Limit, Key string
	// StoreName is what the store calls the limit.
	StoreName  string
	Window     time.Duration // 0 for a limit on requests in flight
	Concurrent bool
	Block      time.Duration
	DryRun     bool
	// Unknown is why the log cannot tell what the zone would do; empty if it can.
	Unknown string
	// Notes are what the figures do not take into account.
	Notes []string
	// Show is the key of a client as people write it.
	Show func(client string) string
}

// Record is what a request meets.
type Record struct {
	Start, End int64 // microseconds since 1970
	// Parts are what it meets, those of one handler next to each other, in the order
	// in which they are met.
	Parts []Part
	// Logged is what the limiter decided at the time.
	Logged Logged
}

// Logged is a decision that stands in the log.
type Logged uint8

const (
	LoggedNothing Logged = iota
	LoggedGranted
	LoggedRefused
)

// Part is what one zone has to do with a request.
type Part struct {
	Zone    int32 // its index
	Handler int16 // requests are decided by handlers; all zones of one grant, or none
	Kind    PartKind
	// Back: the response shows that the units do not count after all.
	Back   bool
	Client string
	Text   string // what Zone.Show cannot tell of the client
	Limit  int64
	Units  int64
}

// PartKind is what a zone does with a request.
type PartKind uint8

const (
	Counts  PartKind = iota // it is counted in a window
	Holds                   // it holds a slot until its end
	Refused                 // it is refused whatever was counted
	Exempt                  // it is neither limited nor counted
	Unknown                 // the log lacks what the zone needs to know
)

// Evaluator knows a configuration.
type Evaluator interface {
	Zones() []Zone
	// NewWorker returns what evaluates requests for one goroutine.
	NewWorker() Worker
}

// Worker evaluates requests. It is not safe for concurrent use.
type Worker interface {
	// Gather appends what a request meets to parts. What it appends must not refer to
	// the line.
	Gather(line *Line, parts []Part) []Part
}
