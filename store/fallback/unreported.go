package fallback

import (
	"errors"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

const (
	// reportParts is the part of a window within which units are reported as
	// one entry, with the latest of their times. MaxUnreported of these parts
	// cover a window and the last of them, in which the first entry is still
	// kept for its latest units: there is always room for the next.
	reportParts = store.MaxUnreported - 1
	// flushKeys is how many keys a call of Flush reports.
	flushKeys = 64
	// unreportedShards is into how many parts with a lock each the table is
	// divided, and sampleKeys how many keys of a part are looked at for one
	// that may be dropped.
	unreportedShards = 64
	sampleKeys       = 8
)

// unreported is what was granted here and the store does not know of. It is safe
// for concurrent use.
type unreported struct {
	now      func() int64 // microseconds, the clock of charges
	seed     maphash.Seed
	keys     atomic.Int64 // in all shards; never above localKeys
	shards   [unreportedShards]reportShard
	flushing atomic.Bool
	owed     owed // refunds that wait until the store can be asked for them
}

// reportShard holds the reports of the keys with its hash, guarded by mu.
type reportShard struct {
	mu      sync.Mutex
	reports map[store.Key]*report // nil if there are none
	_       [48]byte              // shards next to each other share no cache line
}

// report is what is to be reported of a key.
type report struct {
	limit   int64   // of the latest request
	entries []spent // the oldest first, at most MaxUnreported
	// sent is what a call is just reporting, nil if none is: there is never
	// more than one for a key. It stays here because it may come back.
	sent []spent
}

// spent is units that were spent between two moments.
type spent struct {
	first, last, units int64
	told               *told
}

func newUnreported(now func() int64) unreported {
	return unreported{now: now, seed: maphash.MakeSeed()}
}

func (u *unreported) shard(key store.Key) *reportShard {
	return &u.shards[maphash.Comparable(u.seed, key)%unreportedShards]
}

// Unreported is for how many keys something is to be reported, of which some may
// have expired.
func (u *unreported) Unreported() int { return int(u.keys.Load()) }

// add notes what was charged for a request, and returns where it will be known what
// became of it; nil if there was no room.
func (u *unreported) add(request *store.Request, stamp int64) *told {
	key := request.Key
	sh := u.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.reports[key]
	if r == nil {
		if !u.admit(sh, stamp) {
			return nil
		}
		// The caller's string may be a small part of a large one, a header for
		// example, which would be held as a whole.
		key.Client = strings.Clone(key.Client)
		r = new(report)
		if sh.reports == nil {
			sh.reports = make(map[store.Key]*report)
		}
		sh.reports[key] = r
	}
	r.limit = request.Limit
	r.expire(stamp, request.Window)
	return r.add(spent{stamp, stamp, request.Units, nil}, request.Window)
}

// admit reports whether there is room for one more key, and counts it. At the
// bound it looks for one of the shard of which all has expired.
func (u *unreported) admit(sh *reportShard, now int64) bool {
	for {
		n := u.keys.Load()
		if n >= localKeys {
			break
		}
		if u.keys.CompareAndSwap(n, n+1) {
			return true
		}
	}
	seen := 0
	for key, r := range sh.reports {
		if seen == sampleKeys {
			break
		}
		seen++
		if r.expire(now, key.Window); r.empty() {
			delete(sh.reports, key)
			return true
		}
	}
	return false
}

// drop forgets a key of which nothing is to be reported any more.
func (u *unreported) drop(sh *reportShard, key store.Key) {
	delete(sh.reports, key)
	if len(sh.reports) == 0 {
		sh.reports = nil // maps do not give memory back
	}
	u.keys.Add(-1)
}

func (r *report) empty() bool { return len(r.entries) == 0 && r.sent == nil }

// expire drops what the store would not count any more.
func (r *report) expire(now int64, window time.Duration) {
	n := 0
	for n < len(r.entries) && r.entries[n].last+window.Microseconds() <= now {
		n++
	}
	r.entries = slices.Delete(r.entries, 0, n)
}

// add appends units, or joins them to the last entry if they are near its
// beginning or there is no room for more. It returns where it will be known what
// became of them.
func (r *report) add(s spent, window time.Duration) *told {
	if n := len(r.entries); n > 0 {
		last := &r.entries[n-1]
		if n == store.MaxUnreported || (s.last-last.first)*reportParts < window.Microseconds() {
			last.first = min(last.first, s.first)
			last.last = max(last.last, s.last)
			last.units = min(last.units+s.units, store.MaxEvents)
			if s.told != nil {
				s.told.into = last.told
			}
			return last.told
		}
	}
	if s.told == nil {
		s.told = new(told)
	}
	r.entries = append(r.entries, s)
	return s.told
}

// cancel takes what is refunded out of what is to be reported.
func (u *unreported) cancel(refund *store.Refund) {
	key := refund.Key
	sh := u.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.reports[key]
	if r == nil {
		return
	}
	rest := cancel(r.entries, refund.Stamp, refund.Units)
	cancel(r.sent, refund.Stamp, rest)
	r.entries = slices.DeleteFunc(r.entries, func(s spent) bool { return s.units == 0 })
	if r.empty() {
		u.drop(sh, key)
	}
}

// cancel takes units from the entries that may have those of a stamp, and returns
// how many are left to take. What was reported is in none of them: other units
// than the refunded ones must stay.
func cancel(entries []spent, stamp, units int64) int64 {
	for i := range entries {
		if s := &entries[i]; s.first <= stamp && stamp <= s.last {
			n := min(units, s.units)
			s.units -= n
			units -= n
		}
	}
	return units
}

// BeginReport sets Unreported of the requests whose keys have something to
// report, and tells whether there are any. The same requests must be given to
// EndReport after their call; until then nobody else reports what they do, or what
// comes to be unreported of their keys meanwhile. While nothing is unreported it
// costs one atomic load.
func (u *unreported) BeginReport(requests []store.Request) bool {
	if u.keys.Load() == 0 {
		return false
	}
	began := false
	for i := range requests {
		began = u.begin(&requests[i]) || began
	}
	return began
}

func (u *unreported) begin(request *store.Request) bool {
	key := request.Key
	sh := u.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.reports[key]
	if r == nil || r.sent != nil {
		return false
	}
	now := u.now()
	r.expire(now, request.Window)
	if r.empty() {
		u.drop(sh, key)
		return false
	}
	r.sent, r.entries = r.entries, nil
	request.Unreported = make([]store.Spent, len(r.sent))
	for i, s := range r.sent {
		// Both times are rounded down to a microsecond. One less makes sure
		// that the age is not above the true one: units count for too long
		// rather than not long enough.
		age := max(now-s.last-1, 0)
		request.Unreported[i] = store.Spent{Age: time.Duration(age) * time.Microsecond, Units: s.units}
	}
	return true
}

// EndReport is called after the call of requests for which BeginReport was
// called, and clears their Unreported. What the store has certainly not heard is
// unreported again: by decisions that are not the store's, and by the fates of a
// call that failed. All else is never reported again.
func (u *unreported) EndReport(requests []store.Request, decisions []store.Decision, err error) {
	failure, failed := errors.AsType[*store.Error](err)
	for i := range requests {
		request := &requests[i]
		if len(request.Unreported) == 0 {
			continue
		}
		var unheard bool
		var where store.Charge
		switch {
		case err == nil:
			unheard = decisions[i].Source != store.FromStore || decisions[i].Skipped
			where = decisions[i].Reported
		case failed:
			fate := failure.Fate(i)
			unheard = fate == store.FateUnexecuted
			if fate == store.FateDecided {
				where = decisions[i].Reported
			}
		}
		u.end(request, unheard, where)
		request.Unreported = nil
	}
}

func (u *unreported) end(request *store.Request, unheard bool, where store.Charge) {
	key := request.Key
	sh := u.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.reports[key]
	if r == nil {
		return // no report was begun
	}
	sent, since := r.sent, r.entries
	r.sent = nil
	if unheard {
		for i := range sent {
			sent[i].told.back = 0 // the store will not hear of them
		}
		r.entries = slices.DeleteFunc(sent, func(s spent) bool { return s.units == 0 })
		r.expire(u.now(), request.Window)
		for _, s := range since {
			r.add(s, request.Window)
		}
	} else if where.Charged() {
		u.owed.add(tell(key, sent, request.Unreported, where)...)
	}
	if r.empty() {
		u.drop(sh, key)
	}
}

// Flush reports everything that is unreported, some keys at a time, through take,
// which asks the store. It is meant for when the store is back, because clients
// move between instances. It stops at the first error, but for keys whose server
// is still away. Only one runs at a time: another returns at once.
func (u *unreported) Flush(take func(requests []store.Request, decisions []store.Decision) error) {
	if !u.flushing.CompareAndSwap(false, true) {
		return
	}
	defer u.flushing.Store(false)
	var requests []store.Request
	for i := range u.shards {
		requests = u.shards[i].looks(requests)
		for len(requests) >= flushKeys {
			if u.flush(requests[:flushKeys], take) != nil {
				return
			}
			requests = requests[flushKeys:]
		}
	}
	_ = u.flush(requests, take)
}

// looks appends a request for nothing for each key that has something to report.
func (sh *reportShard) looks(requests []store.Request) []store.Request {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for key, r := range sh.reports {
		requests = append(requests, store.Request{Key: key, Limit: r.limit})
	}
	return requests
}

// flush reports what there is of the keys of requests, in one call; or each by
// itself, if a server of some of them is away. It fails if all of them do.
func (u *unreported) flush(requests []store.Request, take func(requests []store.Request, decisions []store.Decision) error) error {
	reporting := make([]store.Request, 0, len(requests))
	for _, request := range requests {
		if u.begin(&request) {
			reporting = append(reporting, request)
		}
	}
	if len(reporting) == 0 {
		return nil
	}
	decisions := make([]store.Decision, len(reporting))
	err := take(reporting, decisions)
	u.EndReport(reporting, decisions, err)
	if err == nil || store.ErrorKind(err) != store.KindAway || len(reporting) == 1 {
		return err
	}
	for i := range reporting {
		switch one := u.flush(reporting[i:i+1], take); {
		case one == nil:
			err = nil
		case store.ErrorKind(one) != store.KindAway:
			return one
		}
	}
	return err
}
