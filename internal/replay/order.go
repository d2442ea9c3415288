package replay

import (
	"cmp"
	"slices"
)

// Logs are in the order in which requests were done; they are decided in the order in
// which they came.
const (
	// horizon is how long a request may last to be decided in its place, in microseconds.
	horizon = 60_000_000
	// bucketSpan is the time of the requests that are sorted at once.
	bucketSpan = 20_000
	// maxWaiting bounds how many requests wait for others that came before them.
	maxWaiting = 200_000
)

// order puts requests into the order in which they came.
type order struct {
	do      func(*Record)
	buckets [][]Record // a ring; that of a moment is its number modulo the length
	next    int64      // number of the first bucket that was not done
	waiting int
	latest  int64 // the end of a request, at most

	late, backwards int64
}

func newOrder(do func(*Record)) *order {
	return &order{do: do, buckets: make([][]Record, 2*horizon/bucketSpan)}
}

// add takes the next request of the log.
func (o *order) add(r *Record) {
	if r.End < o.latest-horizon {
		// The clock was set back, or logs are not in the order of time. Where it
		// belongs has been decided already.
		o.backwards++
		return
	}
	if r.End > o.latest {
		o.latest = r.End
		o.until((r.End - horizon) / bucketSpan)
	}
	n := r.Start / bucketSpan
	if n < o.next {
		o.late++
		n = o.next
	}
	bucket := &o.buckets[n%int64(len(o.buckets))]
	*bucket = append(*bucket, *r)
	for o.waiting++; o.waiting > maxWaiting; {
		o.one()
	}
}

// until does all buckets before one.
func (o *order) until(n int64) {
	for o.next < n {
		if o.waiting == 0 {
			o.next = n
			return
		}
		o.one()
	}
}

// one does the next bucket.
func (o *order) one() {
	bucket := &o.buckets[o.next%int64(len(o.buckets))]
	if len(*bucket) > 1 {
		slices.SortStableFunc(*bucket, func(a, b Record) int { return cmp.Compare(a.Start, b.Start) })
	}
	for i := range *bucket {
		o.do(&(*bucket)[i])
	}
	o.waiting -= len(*bucket)
	clear(*bucket) // the parts of many requests are held with them
	*bucket = (*bucket)[:0]
	o.next++
}

// finish does what is left.
func (o *order) finish() {
	for o.waiting > 0 {
		o.one()
	}
}
