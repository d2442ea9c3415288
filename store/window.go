package store

import (
	"math"
	"slices"
	"time"
)

const (
	// mergeAbove is the largest limit whose log keeps every stamp apart.
	// Above it, stamps within window/mergeParts are merged.
	mergeAbove = 64
	mergeParts = 64
	// maxEntries bounds a log unconditionally. The merging rule alone nearly always
	// keeps a log within it, unless the limit was raised; else see compact.
	maxEntries = 68
	// maxSkew is how far ahead of the clock a stamp may lie before it must
	// come from a clock that has since stepped back: charges reach at most
	// MaxLeaseSpan ahead, and a second is spare.
	maxSkew = MaxLeaseSpan + time.Second
	// maxTotal bounds the units of a log. Nothing but what is reported gets
	// there, which no limit holds back; Redis keeps a total in six bytes.
	maxTotal = 1<<48 - 1
)

// Window is the log of one key: when how many units were granted, as far as
// it still counts. A unit stamped t counts until t + window; a request for n
// units is granted if the counted units and n are at most the limit. That is
// the exact sliding log. What bounds its size whatever the limit is that, for
// limits above 64, units stamped within window/64 of each other share an entry,
// which counts from its latest stamp: units are held longer than exact by less
// than window/64, never shorter. (In a log that has become full, after the limit
// was raised, by a little more, see compact.)
//
// Stamps come in any order, since those of leases lie ahead of the others. If every
// stamp were at least the last one, one small lease would hold all that is charged
// before its end for as long.
//
// An entry remembers its first stamp. What it may take in is measured from there,
// because measured from its latest stamp one entry would be extended for ever under
// steady load. And it takes the latest stamp, because with an earlier one units
// would be forgotten before their time.
//
// Times are the store's clock in microseconds, given by the caller. The clock
// may step back: stamps of the future are then lowered (see Advance).
//
// # Bans
//
// A request with a Block that is refused for lack of room bans the key for so long from
// then on: every request is refused, with a Block or without. Requests that come
// meanwhile do not extend a ban. One filling bans once: a new ban needs units that were
// granted since the last one began, or else the first retry after it, into a log that
// is still full, would ban again for ever. (What is reported does not count as granted:
// nobody knows here whether that was before or after.) A request for more than the limit
// bans nobody. A refund that gives units back ends a ban, since units that are granted
// before it began have turned out not to be spent, unless it was set by hand. A ban ends
// by the store's clock, which may step back; it never lasts for more than MaxWindow from
// what the clock says.
//
// The zero Window is an empty log. A Window is not safe for concurrent use;
// its length is always the same. The same arithmetic stands in
// redis/window.lua: a change of one is a change of both.
type Window struct {
	entries []entry // in the order of stamps, none with zero units
	total   int64   // units of all entries
	mark    int64   // names this log's life, see Charge.Mark
	// banned is when the last ban ends or has ended, 0 if there was none, or units
	// were granted since. It outlives the entries while the ban goes on.
	banned int64
	byHand bool // refunds do not end it
}

// entry is units that count from stamp. The stamps that have joined it span the time
// from first to stamp; the spans of two entries have no moment in common.
type entry struct{ first, stamp, units int64 }

// Advance brings the log to the time now: it drops what no longer counts, and
// lowers stamps that lie more than eleven seconds ahead, which only a clock that
// stepped back can leave. Lowered stamps become one entry and a new mark, so
// that no charge of the old stamps can be refunded any more: it could take units
// that somebody else has spent.
func (w *Window) Advance(now int64, window time.Duration) {
	width := window.Microseconds()
	w.banned = min(w.banned, now+MaxWindow.Microseconds()) // the clock stepped back
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
		w.total, w.mark = 0, 0
		if w.banned <= now {
			w.banned, w.byHand = 0, false
		}
		return
	}

	latest := now + maxSkew.Microseconds()
	last := len(w.entries) - 1
	if w.entries[last].stamp <= latest {
		return
	}
	lowered := entry{stamp: latest}
	for ; last >= 0 && w.entries[last].stamp >= latest; last-- {
		lowered.first = min(w.entries[last].first, latest)
		lowered.units += w.entries[last].units
	}
	w.entries = append(w.entries[:last+1], lowered)
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
// unless that is a window ago. The total may come to exceed the limit; then requests
// are refused until enough has expired. What exceeds maxTotal is dropped. The log
// must have been advanced to now.
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
	w.add(now, now-spent.Age.Microseconds(), units, request)
}

// Check decides a request without charging anything: as if another request of its
// call was refused. The log must have been advanced to now, and what the request
// reports must have been counted.
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
	if w.banned > now {
		w.block(now, &decision)
	}
	if len(request.Unreported) > 0 && w.mark != 0 {
		decision.Reported = Charge{Stamp: now, Mark: w.mark}
	}
	return decision
}

// block makes a decision what it is during a ban.
func (w *Window) block(now int64, decision *Decision) {
	rest := time.Duration(w.banned-now) * time.Microsecond
	decision.Granted, decision.Blocked = false, true
	decision.RetryAfter = max(decision.RetryAfter, rest)
	decision.Reset = max(decision.Reset, rest)
}

// Ban begins the ban that a request asks for which Check has refused at the same time,
// if it is due, and brings its decision up to date. It is called whether or not the
// request refuses its call, and reports whether a ban has begun.
func (w *Window) Ban(now int64, request *Request, decision *Decision) bool {
	if decision.Granted || request.Block <= 0 || w.banned != 0 || request.Units > request.Limit {
		return false
	}
	w.banned = now + request.Block.Microseconds()
	w.block(now, decision)
	return true
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
	w.banned, w.byHand = 0, false // it has ended
	decision.Lease = lease
	decision.Stamp = w.add(now, stamp, units, request)
	decision.Mark = w.mark
	decision.Remaining = max(request.Limit-w.total, 0)
	decision.Reset = w.reset(now, request.Window)
}

// add puts units in their place, and returns their stamp as stored, which is never
// earlier (if room had to be made for them, they may be held for longer than it says).
// Units never join an entry with an earlier stamp, which would forget them
// too early.
func (w *Window) add(now, stamp, units int64, request *Request) int64 {
	if len(w.entries) == 0 {
		w.mark = now
	}
	w.total += units
	i := len(w.entries) // of the first entry that is not earlier
	for i > 0 && w.entries[i-1].stamp >= stamp {
		i--
	}
	near := func(first, stamp int64) bool {
		return request.Limit > mergeAbove && (stamp-first)*mergeParts < request.Window.Microseconds()
	}
	switch {
	case i < len(w.entries) && w.entries[i].first <= stamp:
		// Whatever the limit is: the entry already holds earlier units as long.
		w.entries[i].units += units
		return w.entries[i].stamp
	case i > 0 && near(w.entries[i-1].first, stamp):
		w.entries[i-1].stamp = stamp
		w.entries[i-1].units += units
		return stamp
	case i < len(w.entries) && near(stamp, w.entries[i].stamp):
		w.entries[i].first = stamp
		w.entries[i].units += units
		return w.entries[i].stamp
	}
	w.entries = slices.Insert(w.entries, i, entry{stamp, stamp, units})
	if len(w.entries) > maxEntries {
		w.compact()
	}
	return stamp
}

// compact makes room in a log that has one entry too many: the two neighbours that
// span the least time together become one, of the later stamp. So no units are held
// longer by more than a 34th of the time that the log spans, however often it happens.
// (The smallest step between two stamps would be no such bound: one entry could grow
// for ever.)
//
// A log has too many entries when its limit was at most mergeAbove and has been
// raised, or when more was reported than the limit allows; and in rare cases when
// stamps come in an unlucky order.
func (w *Window) compact() {
	least, span := 0, int64(math.MaxInt64)
	for i := range len(w.entries) - 1 {
		if s := w.entries[i+1].stamp - w.entries[i].first; s < span {
			least, span = i, s
		}
	}
	into := &w.entries[least+1]
	into.first = w.entries[least].first
	into.units += w.entries[least].units
	w.entries = slices.Delete(w.entries, least, least+1)
}

// Refund takes units out of the first entry that can hold them: merging moves
// units to later stamps only, so that the units of a charge are never in an entry with an
// earlier stamp than the charge's. It does nothing if the log has had
// another life since, or if the units have expired; what the entry does not
// hold is dropped. If anything is given back, a ban that was not set by hand ends. The
// log must have been advanced to now.
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
		if w.banned > now && !w.byHand {
			w.banned = now
		}
		if e.units > 0 {
			return
		}
		w.entries = append(w.entries[:i], w.entries[i+1:]...)
		if len(w.entries) == 0 {
			w.total, w.mark = 0, 0
			if w.banned <= now {
				w.banned, w.byHand = 0, false
			}
		}
		return
	}
}

// Amend makes the log what an amendment says. It must have been advanced to now.
//
// A ban that is ended by hand is like one that has ended by itself: the next one by rule needs
// units that were granted since.
func (w *Window) Amend(now int64, amendment *Amendment) {
	if amendment.Unban && w.banned > now {
		w.banned, w.byHand = now, false
	}
	if amendment.Empty {
		w.entries, w.total, w.mark = nil, 0, 0
		if !w.byHand {
			w.banned = 0
		}
	}
	if amendment.Ban > 0 {
		w.banned, w.byHand = now+amendment.Ban.Microseconds(), true
	}
	if len(w.entries) == 0 && w.banned <= now {
		w.banned, w.byHand = 0, false
	}
}

// Total is how many units count, as of the last Advance.
func (w *Window) Total() int64 { return w.total }

// Empty reports whether nothing counts and no ban goes on, as of the last Advance.
func (w *Window) Empty() bool { return len(w.entries) == 0 && w.banned == 0 }

// Expires is when the log will be empty, 0 if it is now.
func (w *Window) Expires(window time.Duration) int64 {
	if len(w.entries) == 0 {
		return w.banned
	}
	return max(w.entries[len(w.entries)-1].stamp+window.Microseconds(), w.banned)
}

func (w *Window) reset(now int64, window time.Duration) time.Duration {
	if len(w.entries) == 0 {
		return 0
	}
	return time.Duration(w.entries[len(w.entries)-1].stamp-now)*time.Microsecond + window
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
