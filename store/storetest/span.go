package storetest

import (
	"cmp"
	"slices"
	"time"
)

// Span is units spent at some moment between two that were measured: before
// the call that was granted them, and after it.
type Span struct {
	From, To time.Time
	Units    int64
}

// Most is the largest number of units that were certainly spent within one
// interval [t, t+window), for any t, and the t where that interval begins.
// A span counts if all of it lies inside. A limiter is strict if this is at
// most its limit; it proves nothing about what spans overlap the ends.
func Most(spans []Span, window time.Duration) (units int64, at time.Time) {
	// It is enough to look at intervals that begin where a span does. They
	// are tried from the latest to the earliest: spans enter by their From,
	// and leave by their To, for good.
	enter := make([]int, len(spans))
	for i := range enter {
		enter[i] = i
	}
	leave := slices.Clone(enter)
	slices.SortFunc(enter, func(a, b int) int { return spans[b].From.Compare(spans[a].From) })
	slices.SortFunc(leave, func(a, b int) int {
		return cmp.Or(spans[b].To.Compare(spans[a].To), cmp.Compare(a, b))
	})

	const outside, inside, left = 0, 1, 2
	state := make([]int8, len(spans))
	sum, next := int64(0), 0
	for i, s := range enter {
		if state[s] == outside {
			state[s] = inside
			sum += spans[s].Units
		}
		from := spans[s].From
		if i+1 < len(enter) && spans[enter[i+1]].From.Equal(from) {
			continue
		}
		for end := from.Add(window); next < len(leave) && !spans[leave[next]].To.Before(end); next++ {
			if state[leave[next]] == inside {
				sum -= spans[leave[next]].Units
			}
			state[leave[next]] = left
		}
		if sum > units {
			units, at = sum, from
		}
	}
	return units, at
}
