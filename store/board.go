package store

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Board holds notices as one process knows them, and tells who watches it. Notices end
// by the process's monotonic clock. The zero Board is one of which nothing is known
// yet. It is safe for concurrent use, and has a timer while there are notices
// and somebody watches it.
type Board struct {
	mu       sync.Mutex // also held while watchers are told, which keeps the order
	known    bool
	posted   []posted // in the order of class and name
	watchers []*func([]Notice)
	timer    *time.Timer // to the end of a notice, nil if there is none
}

// posted is a notice on a board.
type posted struct {
	Notice // but for Lasts
	ends   time.Time
}

func (p *posted) compare(class byte, name string) int {
	return cmp.Or(cmp.Compare(p.Class, class), cmp.Compare(p.Name, name))
}

// Post puts a notice on the board, see [Steered].
func (b *Board) Post(notice Notice, most int) error {
	if err := notice.Validate(most); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	ended := b.endLocked(now)
	others := 0
	for i := range b.posted {
		if p := &b.posted[i]; p.Class == notice.Class && p.Name != notice.Name {
			others++
		}
	}
	if others >= most {
		if ended {
			b.changedLocked(now)
		}
		return ErrBoardFull
	}
	i, found := b.findLocked(notice.Class, notice.Name)
	if !found {
		b.posted = slices.Insert(b.posted, i, posted{})
	}
	b.posted[i] = posted{notice, now.Add(notice.Lasts)}
	b.changedLocked(now)
	return nil
}

// Withdraw takes a notice off the board, and reports whether it was there.
func (b *Board) Withdraw(class byte, name string) (found bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	ended := b.endLocked(now)
	i, found := b.findLocked(class, name)
	if found {
		b.posted = slices.Delete(b.posted, i, i+1)
	}
	if found || ended {
		b.changedLocked(now)
	}
	return found
}

// Replace makes the notices all that are on the board. No two have the same class and
// name.
func (b *Board) Replace(notices []Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	all := make([]posted, len(notices))
	for i, n := range notices {
		all[i] = posted{n, now.Add(n.Lasts)}
	}
	slices.SortFunc(all, func(p, q posted) int { return p.compare(q.Class, q.Name) })
	b.posted = all
	b.endLocked(now)
	b.changedLocked(now)
}

// Watch calls do with what is on the board, see [Steered.WatchBoard].
func (b *Board) Watch(do func([]Notice)) (stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watchers = append(b.watchers, &do)
	now := time.Now()
	if b.endLocked(now) {
		b.changedLocked(now)
	} else if b.known {
		b.timeLocked(now)
		do(b.noticesLocked(now))
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.watchers = slices.DeleteFunc(b.watchers, func(other *func([]Notice)) bool { return other == &do })
		b.timeLocked(time.Now())
	}
}

func (b *Board) findLocked(class byte, name string) (int, bool) {
	return slices.BinarySearchFunc(b.posted, name, func(p posted, name string) int { return p.compare(class, name) })
}

// endLocked drops what has ended, and reports whether anything has.
func (b *Board) endLocked(now time.Time) (ended bool) {
	before := len(b.posted)
	b.posted = slices.DeleteFunc(b.posted, func(p posted) bool { return !now.Before(p.ends) })
	return len(b.posted) < before
}

// changedLocked tells the watchers, and sees to it that they hear of the next end.
func (b *Board) changedLocked(now time.Time) {
	b.known = true
	b.timeLocked(now)
	for _, do := range b.watchers {
		(*do)(b.noticesLocked(now))
	}
}

// timeLocked has the timer wait for the next end while there are watchers: without them
// it would hold a board of which nobody knows any more, for a month perhaps.
func (b *Board) timeLocked(now time.Time) {
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if len(b.posted) > 0 && len(b.watchers) > 0 {
		first := slices.MinFunc(b.posted, func(p, q posted) int { return p.ends.Compare(q.ends) })
		b.timer = time.AfterFunc(first.ends.Sub(now), b.end)
	}
}

// end is called by the timer.
func (b *Board) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	// It may have been stopped too late: then another one is there.
	if now := time.Now(); b.endLocked(now) {
		b.changedLocked(now)
	}
}

func (b *Board) noticesLocked(now time.Time) []Notice {
	notices := make([]Notice, len(b.posted))
	for i := range b.posted {
		notices[i] = b.posted[i].Notice
		notices[i].Lasts = b.posted[i].ends.Sub(now)
	}
	return notices
}
