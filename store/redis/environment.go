package redis

import (
	"sync/atomic"
	"time"
)

// environment is what the servers of a store share, and all that they know of
// the store.
type environment struct {
	options  Options
	secrets  *secrets
	presence *presence
	watchers *watchers
	lives    *lives
	trip     tripTime

	// Only a Cluster sets these. moved is told that the slots may be on other
	// servers by now. redirect takes over a call that the server of an address
	// has sent elsewhere.
	moved    func()
	redirect func(from string, c *call, redirection error)
}

// newEnvironment returns that of a store which is no Cluster.
func newEnvironment(o Options) *environment {
	s, p := newSecrets(o), newPresence(o.Instances)
	return &environment{options: o, secrets: s, presence: p, watchers: newWatchers(s, p), lives: newLives(o.KeyPrefix), moved: func() {}}
}

// tripTime is how long a round trip usually takes.
type tripTime struct{ ns atomic.Int64 } // 0 if there was none

func (t *tripTime) usual() time.Duration { return time.Duration(t.ns.Load()) }

// took learns from one round trip. Two at the same moment may count as one:
// there are many.
func (t *tripTime) took(d time.Duration) {
	usual := t.ns.Load()
	if usual == 0 {
		usual = int64(d)
	}
	t.ns.Store(usual + (int64(d)-usual)/8)
}
