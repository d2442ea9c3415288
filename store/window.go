package store

import "time"

const (
	// mergeAbove is the largest limit whose log keeps every stamp apart.
	// Above it, stamps within window/mergeParts are merged.
	mergeAbove = 64
	mergeParts = 64
	// maxEntries bounds a log unconditionally. The merging rule alone keeps a
	// log within it, unless the limit was raised: then neighbours are merged,
	// see compact. If that does not help, because charges are stamped further
	// ahead than what merges spans, a charge joins the last entry. Either way
	// units are held longer, never shorter.
	maxEntries = 68
	// maxSkew is how far ahead of the clock a stamp may lie before it must
	// come from a clock that has since stepped back: charges reach at most
	// MaxLeaseSpan ahead, and a second is spare.
	maxSkew = 2 * time.Second
	// maxTotal bounds the units of a log. Nothing but what is reported gets
	// there, which no limit holds back; Redis keeps a total in six bytes.
	maxTotal = 1<<48 - 1
)

// Window is the log of one key: when how many units were granted, as far as
// it still counts. A unit stamped t counts until t + window; a request for n
// units is granted if the counted units and n are at most the limit. That is
// the exact sliding log. What bounds its size whatever the limit is that, for
// limits above 64, units stamped less than window/64 after the first stamp
// of the last entry join that entry, which then counts from its latest stamp:
// units are held longer than exact by less than window/64, never shorter. (In a
// log that has become full, after the limit was raised, by as much again each
// time that room is made in it, see compact.)
//
// It is compared with the first stamp of the entry, not with its last one,
// because under steady load the latter would extend one entry for ever. And
// it takes the later stamp, because with the earlier one units would be
// forgotten before their time.
//
// Times are the store's clock in microseconds, given by the caller. The clock
// may step back: stamps of the future are then lowered (see Advance).
//
// The zero Window is an empty log. A Window is not safe for concurrent use;
// its length is always the same. The same arithmetic stands in
// redis/window.lua: a change of one is a change of both.
type Window struct {
	entries []entry // in the order of stamps, none with zero units
	total   int64   // units of all entries
	first   int64   // earliest stamp merged into the last entry
	mark    int64   // names this log's life, see Charge.Mark
}

type entry struct{ stamp, units int64 }

// Advance brings the log to the time now: it drops what no longer counts, and
// lowers stamps that lie more than two seconds ahead, which only a clock that
// stepped back can leave. Lowered stamps become one entry and a new mark, so
// that no charge of the old stamps can be refunded any more: it could take units
// that somebody else has spent.
func (w *Window) Advance(now int64, window time.Duration) {
	width := window.Microseconds()
	drop := 0
	for drop < len(w.entries) && w.entries[drop].stamp+width <= now {
		w.total -= w.entries[drop].units
		drop++
	}
	if drop > 0 {
		w.entries = append(w.entries[:0], w.entries[drop:]...)
	}
	if len(w.entries) == 0 {
		// What counts nothing is no log: the next charge begins a new life.
		w.total, w.first, w.mark = 0, 0, 0
		return
	}

	latest := now + maxSkew.Microseconds()
	last := len(w.entries) - 1
	if w.entries[last].stamp <= latest {
		return
	}
	units := int64(0)
	for last >= 0 && w.entries[last].stamp >= latest {
		units += w.entries[last].units
		last--
	}
	w.entries = append(w.entries[:last+1], entry{latest, units})
	w.first = latest
	w.mark = nextMark(w.mark, now)
}

// nextMark returns a mark for the time now that differs from the old one.
func nextMark(old, now int64) int64 {
	if old == now {
		return now + 1
	}
	return now
}

// CountUnreported counts what a request reports: each from when it was spent,
// unless that is a window ago. Where there are younger units in the log, it joins
// the oldest of them: a log has no room for entries in between. The total may come
// to exceed the limit; then requests are refused until enough has expired. What exceeds
// maxTotal is dropped. The log must have been advanced to now.
func (w *Window) CountUnreported(now int64, request *Request) {
	for i := range request.Unreported {
		w.countUnreported(now, request, &request.Unreported[i])
	}
}

func (w *Window) countUnreported(now int64, request *Request, spent *Spent) {
	units := min(spent.Units, maxTotal-w.total)
	if spent.Age >= request.Window || units <= 0 {
		return
	}
	stamp := now - spent.Age.Microseconds()
	for i := range w.entries {
		if e := &w.entries[i]; e.stamp >= stamp {
			// If it is the last entry, its first stamp stays what it was:
			// what comes next joins as if nothing had been reported.
			e.units += units
			w.total += units
			return
		}
	}
	w.add(now, stamp, units, request)
}

// Check decides a request without charging anything: as if another request of its
// call was refused. The log must have been advanced to now.
func (w *Window) Check(now int64, request *Request) Decision {
	free := request.Limit - w.total
	decision := Decision{
		Granted:   request.Units <= max(free, 0), // a refill fits, if with nothing
		Remaining: max(free, 0),
		Reset:     w.reset(now, request.Window),
	}
	if !decision.Granted {
		decision.RetryAfter = w.retryAfter(now, request)
	}
	return decision
}

// Charge charges the units of a request that Check has granted at the same time,
// and brings its decision up to date.
func (w *Window) Charge(now int64, request *Request, decision *Decision) {
	lease := min(request.Lease, request.Limit-w.total-request.Units)
	units := request.Units + lease
	if units <= 0 {
		return
	}
	stamp := now
	if lease > 0 {
		stamp += request.LeaseSpan.Microseconds()
	}
	decision.Lease = lease
	decision.Stamp = w.add(now, stamp, units, request)
	decision.Mark = w.mark
	decision.Remaining = max(request.Limit-w.total, 0)
	decision.Reset = w.reset(now, request.Window)
}

// add appends units, or joins them to the last entry, and returns their stamp
// as stored.
func (w *Window) add(now, stamp, units int64, request *Request) int64 {
	w.total += units
	n := len(w.entries)
	if n == 0 {
		w.entries = append(w.entries, entry{stamp, units})
		w.first = stamp
		w.mark = now
		return stamp
	}
	last := &w.entries[n-1]
	stamp = max(stamp, last.stamp)
	near := stamp == last.stamp || request.Limit > mergeAbove && (stamp-w.first)*mergeParts < request.Window.Microseconds()
	if !near && n >= maxEntries {
		w.compact(request.Window)
		n = len(w.entries)
		last = &w.entries[n-1]
	}
	if near || n >= maxEntries {
		last.stamp = stamp
		last.units += units
		return stamp
	}
	w.entries = append(w.entries, entry{stamp, units})
	w.first = stamp
	return stamp
}

// compact makes room in a full log: each entry joins the one before it while they
// lie within window/mergeParts, as if the limit had been above mergeAbove from the
// start. A log is full of closer entries when its limit was at most mergeAbove
// and has been raised; if what comes next joined the last entry then, that would
// be held for ever longer.
func (w *Window) compact(window time.Duration) {
	kept, start := w.entries[:1], w.entries[0].stamp
	for i, e := range w.entries[1:] {
		if (e.stamp-start)*mergeParts >= window.Microseconds() {
			kept, start = append(kept, e), e.stamp
			continue
		}
		into := &kept[len(kept)-1]
		into.stamp, into.units = e.stamp, into.units+e.units
		if i == len(w.entries)-2 {
			w.first = start
		}
	}
	w.entries = kept
}

// Refund takes units out of the first entry that can hold them: merging moves
// units to later stamps only, so that the units of a charge are never in an entry with an
// earlier stamp than the charge's. It does nothing if the log has had
// another life since, or if the units have expired; what the entry does not
// hold is dropped. The log must have been advanced to now.
func (w *Window) Refund(now int64, g *Refund) {
	if w.mark == 0 || g.Mark != w.mark || g.Stamp+g.Window.Microseconds() <= now {
		return
	}
	for i := range w.entries {
		e := &w.entries[i]
		if e.stamp < g.Stamp {
			continue
		}
		units := min(g.Units, e.units)
		e.units -= units
		w.total -= units
		if e.units > 0 {
			return
		}
		if i == len(w.entries)-1 {
			// The first stamp of the entry that is now the last one is not
			// known; nothing but an equal stamp may join it, or it would grow
			// for ever when units are charged and refunded again and again.
			w.first = 0
		}
		w.entries = append(w.entries[:i], w.entries[i+1:]...)
		if len(w.entries) == 0 {
			w.total, w.first, w.mark = 0, 0, 0
		}
		return
	}
}

// Total is how many units count, as of the last Advance.
func (w *Window) Total() int64 { return w.total }

// Empty reports whether nothing counts, as of the last Advance.
func (w *Window) Empty() bool { return len(w.entries) == 0 }

// Expires is when the log will count nothing, 0 if it does not now.
func (w *Window) Expires(window time.Duration) int64 {
	if len(w.entries) == 0 {
		return 0
	}
	return w.entries[len(w.entries)-1].stamp + window.Microseconds()
}

func (w *Window) reset(now int64, window time.Duration) time.Duration {
	if len(w.entries) == 0 {
		return 0
	}
	return time.Duration(w.Expires(window)-now) * time.Microsecond
}

// retryAfter walks the log until enough has expired for the units of a request, which
// matters when the limit was lowered: then it takes more than the first entry.
func (w *Window) retryAfter(now int64, request *Request) time.Duration {
	excess := w.total + request.Units - request.Limit
	for i := range w.entries {
		excess -= w.entries[i].units
		if excess <= 0 {
			return time.Duration(w.entries[i].stamp-now)*time.Microsecond + request.Window
		}
	}
	return request.Window
}
