package lease

import "time"

// demandParts is into how many parts the time of the longest lease is divided to count
// what was spent in it.
const demandParts = 32

// demand counts the units spent here in the time of the longest lease. Above 16 million
// in one part it is not exact, and may be too small.
type demand struct {
	now   int64 // number of the current part
	spent [demandParts]float32
}

// add counts units; refunded ones are negative.
func (d *demand) add(window time.Duration, units int64, now moment) {
	d.advance(longest(window)/demandParts, now)
	d.spent[d.now%demandParts] += float32(units)
}

func (d *demand) advance(part time.Duration, now moment) {
	current := int64(now.mono / part)
	if current-d.now >= demandParts {
		clear(d.spent[:])
		d.now = current
		return
	}
	// A caller that has waited for the lock may be a little behind.
	for d.now < current {
		d.now++
		d.spent[d.now%demandParts] = 0
	}
}

// last is how many units were spent in the last span: in so many parts as it has, the
// current one included, so less by at most one part's share.
func (d *demand) last(window, span time.Duration, now moment) int64 {
	part := longest(window) / demandParts
	d.advance(part, now)
	sum := float32(0)
	for i := range min(int64((span+part-1)/part), demandParts, d.now+1) {
		sum += d.spent[(d.now-i)%demandParts]
	}
	return int64(sum)
}
