package fallback

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Stats is what is known at some moment about a store and about what this process
// decided without it, for people.
type Stats struct {
	Servers []ServerStats // by name
	// Unreported is for how many keys the store is to be told of units that were spent
	// without it, and UnreportedUnits how many these are.
	Unreported      int
	UnreportedUnits int64
	// Owed is how many refunds wait until the store can be asked for them.
	Owed int
	// Keys is how many keys the local counts hold.
	Keys int
	// Local is when this process last decided something by itself because the store
	// did not, and Allowed when it last let something pass uncounted; zero if never.
	Local, Allowed time.Time
	// Lost is when the store last lost counts, zero if it never did.
	Lost time.Time
}

// ServerStats is what is known about one server.
type ServerStats struct {
	Server    string
	Condition store.Condition
	Since     time.Time // has it been in this condition; zero if it is unknown
	// Took and Wait are how long the server took to answer and how long calls wait, as of
	// Since, if it is Slow.
	Took, Wait time.Duration
	Err        error     // why it is Away, if it is; without secrets
	Lost       time.Time // when it last lost counts, zero if it never did
	How        string    // that showed then
	Losses     int       // how often it has lost counts, as far as this process noticed
}

// Stats returns what is known now. It holds each of the locks that decisions need for a
// few microseconds at most.
func (s *State) Stats() Stats {
	stats := Stats{
		Unreported: s.local.Unreported(), UnreportedUnits: s.local.units(),
		Owed: int(s.local.owed.count.Load()), Keys: s.local.memory.Len(),
		Local: moment(s.decided.Load()), Allowed: moment(s.allowed.Load()),
	}
	if lost := s.lost.Load(); lost != nil {
		stats.Lost = *lost
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, of := range s.servers {
		stats.Servers = append(stats.Servers, ServerStats{
			Server: name, Condition: of.condition, Since: of.since,
			Took: of.last.Took, Wait: of.last.Wait, Err: of.last.Err,
			Lost: of.lost, How: of.how, Losses: of.losses,
		})
	}
	slices.SortFunc(stats.Servers, func(a, b ServerStats) int { return cmp.Compare(a.Server, b.Server) })
	return stats
}

// moment is a time that is kept in nanoseconds, 0 for none.
func moment(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// units is how many units are unreported and still count.
func (u *unreported) units() (sum int64) {
	if u.keys.Load() == 0 {
		return 0
	}
	for i := range u.shards {
		sum += u.shards[i].units(u.now())
	}
	return sum
}

func (sh *reportShard) units(now int64) (sum int64) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for key, r := range sh.reports {
		for _, list := range [...][]spent{r.entries, r.sent} {
			for i := range list {
				if list[i].last+key.Window.Microseconds() > now {
					sum += list[i].units
				}
			}
		}
	}
	return sum
}

// Excess is how much more than its limit L a key may be granted at most in any interval
// of one window that ends now, in multiples of L: 0 as long as all has been well for a
// window. While the store does not decide, each of A instances grants its share, max(1,
// L/A), of which A is right as far as is known: together max(L, A). A store that has lost
// counts grants up to L again. A policy that lets pass has no bound: +Inf.
//
// Stats are those of the guard's state, or else what it knew a moment ago.
func (g *Guard) Excess(stats *Stats, now time.Time, limit int64, window time.Duration, policy Policy) float64 {
	recent := func(t time.Time) bool { return !t.IsZero() && now.Sub(t) < window }
	without := recent(stats.Local)
	for i := range stats.Servers {
		switch stats.Servers[i].Condition {
		case store.Away, store.Slow:
			without = true
		}
	}
	excess := 0.0
	if recent(stats.Lost) {
		excess++
	}
	switch {
	case policy == Allow && (without || recent(stats.Allowed)):
		return math.Inf(1)
	case policy == Decide && without && limit > 0:
		excess += max(1, float64(g.Instances())/float64(limit))
	}
	return excess
}

// Look reads what is counted for the keys of requests, and changes nothing: requests
// have no Units, and begin no ban. It asks the store, for at most wait; what the store
// does not decide, for whatever reason, is what the local counts say, and err is why.
// After a loss a guard that is cautious tells the local counts where these have less
// left. Nothing of it is observed, and nobody is told of a failure.
func (g *Guard) Look(wait time.Duration, requests []store.Request, decisions []store.Decision) (err error) {
	local := make([]store.Decision, len(requests))
	for i := range requests {
		// The units are none, so that this cannot charge or ban anybody.
		requests[i].Units, requests[i].Block, requests[i].Lease, requests[i].Unreported = 0, 0, 0, nil
	}
	now := time.Now()
	if err = g.store.Take(now, wait, requests, decisions); err != nil {
		failure := asError(err)
		g.takeHere(requests, local, nil, nil)
		for i := range requests {
			if failure.Fate(i) != store.FateDecided {
				decisions[i] = local[i]
			}
		}
		return err
	}
	lost := g.lost.Load()
	if !g.settings.Cautious || lost == nil {
		return nil
	}
	g.takeHere(requests, local, nil, nil)
	for i := range requests {
		if now.Sub(*lost) < requests[i].Window && local[i].Remaining < decisions[i].Remaining {
			decisions[i] = local[i]
		}
	}
	return nil
}
