package lease

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// How long leases are, and how large. Units that a lease holds and nobody spends are
// missing to others, and units of a lease count for up to its span longer than they
// would. Both matter little while little of the limit is used, so leases are long then,
// and short when much is.

const (
	// leaseParts is how many leases the limit is divided into at least, and
	// remainingParts what remains of it.
	leaseParts     = 64
	remainingParts = 16
	// The shortest leases last a 128th of the window, at most a second; the longest
	// ones a sixth of it, as far as the store allows.
	shortParts = 128
	maxShort   = time.Second
	longParts  = 6
	// spanParts: while a share f of the limit is used, a lease lasts for a spanParts-th
	// of the window, divided by f.
	spanParts = 128
	// ampleParts: while less than an ampleParts-th of the limit is used, leases are half
	// as large again as what was spent lately.
	ampleParts = 4
	// calmParts: a lease lasts at most for a calmParts-th of the time in which the key
	// is known to have been little used. A load that begins in all processes at once is
	// not known to any of them for some round trips; what they lease meanwhile must not
	// be missing long after the rest has come back.
	calmParts = 4
	// strangerParts: a key that is known for less than the longest lease must have spent
	// strangerParts times what it needs in the span of a lease to be given one with it.
	// Many clients come twice and not again soon; their leases would be of no use, and
	// cost a timer and a refund each.
	strangerParts = 3
)

// shortest is how long the shortest leases of a window last, and longest the longest.
func shortest(window time.Duration) time.Duration {
	return min(window/shortParts, maxShort).Truncate(time.Microsecond)
}

func longest(window time.Duration) time.Duration {
	return max(shortest(window), min(window/longParts, store.MaxLeaseSpan).Truncate(time.Microsecond))
}

// span is how long the next lease of a key is to last. What counts as used is the share
// that the store told last, or if that is larger, what would be used if it went on as it
// did here in the last short, middle or long while: the store's word may be as old as a
// lease is long, and a sudden load must not meet leases that are made for a small one.
// A key that is new here, or was refused lately, has no long ones.
func (k *leaseKey) span(request *store.Request, now moment) time.Duration {
	limit, window := float64(request.Limit), request.Window
	short, long := shortest(window), longest(window)
	used := 1 - float64(k.remaining)/limit
	for _, d := range [...]time.Duration{short, long / 4, long} {
		// Less one: a single unit is no rate.
		spent := float64(k.demand.last(window, d, now) - 1)
		used = max(used, spent*float64(window)/float64(d)/limit)
	}
	long = max(short, min(long, ((now.mono-k.calmSince)/calmParts).Truncate(time.Microsecond)))
	if used*spanParts*float64(long) <= float64(window) {
		return long
	}
	return max(short, time.Duration(float64(window)/(spanParts*used)).Truncate(time.Microsecond))
}

// stranger reports whether the key was met in the last span of a longest lease.
func (k *leaseKey) stranger(window time.Duration, now moment) bool {
	return now.mono-k.metAt < longest(window)
}

// size is how many units the next lease of a key may have at most, 0 if none is worth
// it.
func (k *leaseKey) size(request *store.Request, span time.Duration, now moment) int64 {
	size := k.demand.last(request.Window, span, now)
	if size > 0 && request.Limit-k.remaining < request.Limit/ampleParts {
		size += size/2 + 1
	}
	return max(0, min(size, k.remaining/remainingParts, request.Limit/leaseParts))
}
