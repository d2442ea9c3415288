package redis

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// posting is units of a key, as the one who asked for them knows it: they were charged
// between two moments that were measured.
type posting struct {
	from, to time.Time
	units    int64
	limit    int64
	source   store.Source
	// Since when some of them are perhaps given back, by when they certainly are, and how
	// many are left then. The moments are zero if that never is.
	settling, settled time.Time
	spent             int64
	maybe             bool // nobody knows whether they were charged
	beyond            bool // charged by a settlement, whatever the limit
}

// refusal is what a request was told between two moments.
type refusal struct {
	from, to     time.Time
	units, limit int64
	blocked      bool
	retry        time.Duration
}

// loss is when a server lost data.
type loss struct {
	from, to time.Time
	// kept: what was charged before from is still there, but what was not settled by cut
	// is not given back any more. Else nothing is there.
	kept bool
	cut  time.Time
}

// journal is an independent account of a key. It is safe for concurrent use.
type journal struct {
	mu       sync.Mutex
	window   time.Duration
	entries  []*posting
	refusals []refusal
}

func (l *journal) add(e posting) *posting {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, &e)
	return &e
}

func (l *journal) refuse(r refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusals = append(l.refusals, r)
}

// settle notes a settlement that is about to be made, and returns what notes its end.
func (l *journal) settle(e *posting, spent int64) (done func(known bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if spent < e.units {
		e.settling, e.spent = now, spent
	}
	return func(known bool) {
		if spent > e.units {
			l.add(posting{from: now, to: time.Now(), units: spent - e.units, beyond: true, maybe: !known})
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if spent < e.units && known {
			e.settled = time.Now()
		}
	}
}

// least is how many of the units count at least at a moment.
func (e *posting) least(at time.Time) int64 {
	if e.settling.IsZero() || e.settling.After(at) {
		return e.units
	}
	return e.spent
}

// most is how many of them count at most.
func (e *posting) most(at time.Time) int64 {
	if e.settled.IsZero() || e.settled.After(at) {
		return e.units
	}
	return e.spent
}

// charged is since when the units may be charged: units of a lease were charged with
// the lease.
func (e *posting) charged(window time.Duration) time.Time {
	if e.source == store.FromLease {
		return e.from.Add(-window / 6)
	}
	return e.from
}

// left is how many units count at least in the data that a call finds which ends at
// a moment, and began at another one.
func (e *posting) left(window time.Duration, from, to time.Time, losses []loss) int64 {
	if e.maybe || e.to.After(from) {
		return 0
	}
	units := e.least(to)
	for _, l := range losses {
		switch {
		case to.Before(l.from) || e.charged(window).After(l.to):
		case !l.kept || !e.to.Before(l.from):
			return 0
		case e.settling.After(l.cut) && from.After(l.to):
			units = e.units // the settlement was of other data, or is lost with it
		}
	}
	return units
}

// ledgerSlack is how far a second of the server's clock may be from one of ours.
const ledgerSlack = 5 * time.Millisecond

// strict wants each grant to fit into its limit with what counts before it: at the
// store into the limit of the request itself, from a lease into the largest limit that
// is in use. Whatever the data, it is a limit more at most for each loss.
func (l *journal) strict(t *testing.T, what string, largest int64, losses []loss) {
	t.Helper()
	slices.SortFunc(l.entries, func(a, b *posting) int { return a.from.Compare(b.from) })
	for i, g := range l.entries {
		if g.maybe || g.beyond {
			continue
		}
		// The first entry that may be in the window.
		since := g.to.Add(ledgerSlack - l.window)
		sum, all, lost := g.units, g.units, int64(0)
		for j := i - 1; j >= 0 && l.entries[j].from.After(since); j-- {
			e := l.entries[j]
			sum += e.left(l.window, g.from, g.to, losses)
			if !e.beyond {
				all += e.left(l.window, g.from, g.to, nil)
			}
		}
		for _, loss := range losses {
			if loss.to.After(since.Add(-l.window/6)) && loss.from.Before(g.to) {
				lost++
			}
		}
		if g.source == store.FromStore && sum > g.limit {
			t.Errorf("%s: %d units of %d with those granted at %v", what, sum, g.limit, g.from)
			return
		}
		if all > (1+lost)*largest {
			t.Errorf("%s: %d units of %d in a window with %d losses, with those granted from %v at %v", what, all, largest, lost, g.source, g.from)
			return
		}
	}
}

// fair wants each refusal to be explained by what may count at that time.
func (l *journal) fair(t *testing.T, what string) {
	t.Helper()
	for _, r := range l.refusals {
		if r.blocked || r.units > r.limit {
			continue
		}
		sum := int64(0)
		for _, e := range l.entries {
			if e.from.Before(r.to) && e.to.Add(l.window*21/20+ledgerSlack).After(r.from) {
				sum += e.most(r.from)
			}
		}
		if sum+r.units <= r.limit {
			t.Errorf("%s: %d units refused at %v, with %d of %d spent or reserved in the window before", what, r.units, r.from, sum, r.limit)
			return
		}
	}
}

// banned wants nothing to be granted while a ban goes on that no settlement lifts, and
// returns how many such bans there were.
func (l *journal) banned(t *testing.T, what string) (bans int) {
	t.Helper()
	for _, r := range l.refusals {
		// Later than there is room in the log again only a ban ends.
		if !r.blocked || r.retry < l.window*11/10 {
			continue
		}
		end := r.from.Add(r.retry - ledgerSlack)
		for _, e := range l.entries {
			if !e.settling.IsZero() && (e.settled.IsZero() || e.settled.After(r.from)) && e.settling.Before(end) {
				end = e.settling
			}
		}
		held := false
		for _, e := range l.entries {
			held = held || e.from.After(r.to)
			if !e.beyond && !e.maybe && e.from.After(r.to) && e.to.Before(end) {
				t.Errorf("%s: %d units granted at %v, though it was banned at %v for %v", what, e.units, e.from, r.from, r.retry)
				return bans
			}
		}
		if end.Sub(r.to) > l.window/10 && held {
			bans++
		}
	}
	return bans
}

// total is how many units count at least and at most, of a window that has not passed.
func (l *journal) total(losses []loss) (least, most int64) {
	now := time.Now()
	for _, e := range l.entries {
		least += e.left(l.window, now, now, losses)
		most += e.most(now)
	}
	return least, most
}
