package fallback

import "github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"

// Amended takes in that a key was changed by hand in the store: what this process counts
// by itself follows. What it has yet to report to the store stays unreported, and counts
// there from when it was spent.
func (g *Guard) Amended(key store.Key, amendment store.Amendment) {
	if !g.settings.Infallible {
		_ = g.local.memory.Amend(0, key, amendment) // there may be no room for a ban
	}
}
