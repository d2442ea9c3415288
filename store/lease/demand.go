package lease

import "time"

// demandParts is into how many parts the last span of a lease is divided to
// count what was spent in it: never more than was, and less by at most one
// part's share.
const demandParts = 8

// demand counts the units spent here in the last span of a lease.
type demand struct {
	now   int64 // number of the current part
	spent [demandParts]int64
}

// add counts units; refunded ones are negative.
func (d *demand) add(window time.Duration, units int64, now moment) {
	d.advance(leaseSpan(window), now)
	d.spent[d.now%demandParts] += units
}

func (d *demand) advance(span time.Duration, now moment) {
	part := int64(now.mono / (span / demandParts))
	if part-d.now >= demandParts {
		clear(d.spent[:])
		d.now = part
		return
	}
	// A caller that has waited for the lock may be a little behind.
	for d.now < part {
		d.now++
		d.spent[d.now%demandParts] = 0
	}
}

// last is how many units were spent in the last span.
func (d *demand) last(span time.Duration, now moment) int64 {
	d.advance(span, now)
	sum := int64(0)
	for _, n := range d.spent {
		sum += n
	}
	return sum
}
