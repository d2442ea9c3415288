package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// RunSteered tests what operators do by hand. It calls open twice, for two stores that share
// their data. The subtests run in parallel.
func RunSteered(t *testing.T, open func(t *testing.T) store.Steered) {
	amendments := []struct {
		name string
		run  func(f *steered)
	}{
		{"ban of a new key", amendBanNew},
		{"a ban by hand does nothing to the units", amendBanKeepsUnits},
		{"a ban by hand ends", amendBanEnds},
		{"a ban by hand in the place of another", amendBanReplaces},
		{"unban", amendUnban},
		{"empty", amendEmpty},
		{"empty ends no ban by hand", amendEmptyKeepsBan},
		{"all at once", amendAll},
		{"amend what is not there", amendNothing},
		{"amend a shadow's key", amendShadow},
		{"any bytes name an amended client", amendAnyClient},
		{"windows and zones are amended apart", amendApart},
		{"amend by one store for all", amendShared},
		{"empty under concurrency", amendConcurrently},
		{"senseless amendments", amendSenseless},
	}
	board := []struct {
		name string
		run  func(f *steered)
	}{
		{"post and withdraw", boardPosts},
		{"notices end", boardEnds},
		{"a notice in the place of another", boardReplaces},
		{"a full board", boardFull},
		{"any bytes on the board", boardAnyBytes},
		{"a large board", boardLarge},
		{"watchers come and go", boardWatchers},
		{"post under concurrency", boardConcurrently},
		{"senseless notices", boardSenseless},
	}
	here, there := open(t), open(t)
	for _, test := range amendments {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(newSteered(t, here, there))
		})
	}
	for i, test := range board {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newSteered(t, here, there)
			f.class = byte('a' + classes*i)
			test.run(f)
		})
	}
}

// steered is a fixture of two stores: what one does, the other sees.
type steered struct {
	*fixture
	store, other store.Steered
	class        byte // the first of the test's notices
	mu           sync.Mutex
}

func newSteered(t *testing.T, s, other store.Steered) *steered {
	return &steered{fixture: newFixture(t, s), store: s, other: other}
}

// amend amends the key of a request.
func (f *steered) amend(request store.Request, amendment store.Amendment) {
	f.Helper()
	if err := f.store.Amend(patience, request.Key, amendment); err != nil {
		f.Fatalf("Amend(%+v, %+v): %v", request.Key, amendment, err)
	}
}

func amendBanNew(f *steered) {
	request := f.limit(3, long)
	for range 2 {
		f.amend(request, store.Amendment{Ban: 2 * long})
		a := f.blocked(request, 2*long-patience, 2*long)
		if a.Remaining != 3 {
			f.Errorf("%+v, want 3 remaining", a)
		}
		f.blocked(lookAt(request), 2*long-patience, 2*long)
		f.blocked(leasing(request, 0, 1), 2*long-patience, 2*long)
	}
}

func amendBanKeepsUnits(f *steered) {
	request := f.limit(5, long)
	a := f.granted(need(request, 2))
	f.amend(request, store.Amendment{Ban: long})
	if got := f.blocked(request, long-patience, long); got.Remaining != 3 {
		f.Errorf("%+v, want 3 remaining", got)
	}
	f.refund(refundOf(need(request, 2), a, 1)) // which ends no ban by hand
	if got := f.blocked(request, long-patience, long); got.Remaining != 4 {
		f.Errorf("%+v, want 4 remaining", got)
	}
	f.refund(refundOf(need(request, 2), a, 1))
	f.blocked(request, long-patience, long)
	f.amend(request, store.Amendment{Unban: true})
	if got := f.granted(request); got.Remaining != 4 {
		f.Errorf("%+v, want 4 remaining", got)
	}
}

func amendBanEnds(f *steered) {
	const ban = 300 * time.Millisecond
	request := f.limit(5, store.MinWindow)
	f.amend(request, store.Amendment{Ban: ban})
	f.blocked(request, 0, ban)
	time.Sleep(ban + slack)
	f.granted(request)

	// It outlives a log that is empty.
	request = f.limit(5, store.MinWindow)
	f.granted(request)
	f.amend(request, store.Amendment{Ban: 2 * store.MinWindow})
	began := time.Now()
	time.Sleep(store.MinWindow + 100*time.Millisecond)
	if a := f.take(request)[0]; time.Since(began) < 2*store.MinWindow && !(a.Blocked && a.Remaining == 5) {
		f.Errorf("%+v after the window, want the ban to go on, and nothing to count", a)
	}
	time.Sleep(store.MinWindow - 100*time.Millisecond + slack)
	f.granted(request)
}

func amendBanReplaces(f *steered) {
	request := banning(f.limit(1, long), 3*long)
	f.granted(request)
	f.blocked(request, 3*long-patience, 3*long)
	f.amend(request, store.Amendment{Ban: 2 * long})
	f.blocked(request, 2*long-patience, 2*long)
	f.amend(request, store.Amendment{Ban: 5 * long})
	f.blocked(request, 5*long-patience, 5*long)
	f.blocked(banning(request, 6*long), 5*long-patience, 5*long) // none by rule comes on top
}

func amendUnban(f *steered) {
	request := banning(f.limit(1, long), 2*long)
	a := f.granted(request)
	f.blocked(request, 2*long-patience, 2*long)
	for range 2 {
		f.amend(request, store.Amendment{Unban: true})
		f.plain(request) // the units count, and one filling bans once
		f.plain(request)
	}
	f.refund(refundOf(request, a, 1))
	f.granted(request)
	f.blocked(request, 2*long-patience, 2*long)
}

func amendEmpty(f *steered) {
	request := banning(f.limit(2, long), 2*long)
	a := f.granted(request)
	f.granted(request)
	f.blocked(request, 2*long-patience, 2*long)
	f.amend(request, store.Amendment{Empty: true})
	f.remaining(request, 2)
	f.granted(request)
	f.refund(refundOf(request, a, 1)) // of another life
	f.remaining(request, 1)
	f.granted(request)
	f.blocked(request, 2*long-patience, 2*long) // a new filling
}

func amendEmptyKeepsBan(f *steered) {
	request := f.limit(2, long)
	f.granted(request)
	f.amend(request, store.Amendment{Ban: 2 * long})
	f.amend(request, store.Amendment{Empty: true})
	if a := f.blocked(request, 2*long-patience, 2*long); a.Remaining != 2 {
		f.Errorf("%+v, want 2 remaining", a)
	}
	f.amend(request, store.Amendment{Unban: true})
	f.granted(need(request, 2))

	// One that has ended is none.
	const ban = 50 * time.Millisecond
	request = f.limit(1, long)
	f.granted(request)
	f.amend(request, store.Amendment{Ban: ban})
	time.Sleep(ban + slack)
	f.plain(request)
	f.amend(request, store.Amendment{Empty: true})
	f.granted(request)
}

func amendAll(f *steered) {
	request := banning(f.limit(1, long), 2*long)
	f.granted(request)
	f.blocked(request, 2*long-patience, 2*long)
	f.amend(request, store.Amendment{Unban: true, Empty: true, Ban: long})
	if a := f.blocked(request, long-patience, long); a.Remaining != 1 {
		f.Errorf("%+v, want 1 remaining", a)
	}
	f.amend(request, store.Amendment{Unban: true, Empty: true})
	f.granted(request)
}

func amendNothing(f *steered) {
	request := f.limit(2, long)
	for _, a := range []store.Amendment{{}, {Empty: true}, {Unban: true}, {Unban: true, Empty: true}} {
		f.amend(request, a)
		f.remaining(request, 2)
	}
	f.granted(request)
	f.amend(request, store.Amendment{})
	f.remaining(request, 1)
}

func amendShadow(f *steered) {
	request, firm := f.limit(5, long), f.limit(5, long)
	request.Shadow = true
	f.amend(request, store.Amendment{Ban: long})
	a := f.take(request, firm)
	if !a[0].Blocked || a[0].Charged() || !a[1].Charged() {
		f.Errorf("%+v, want the first blocked, and the second charged", a)
	}
}

func amendAnyClient(f *steered) {
	request := f.limit(1, long)
	for _, client := range anyClients {
		request.Client = (f.id + client)[:min(store.MaxClientBytes, len(f.id+client))]
		f.amend(request, store.Amendment{Ban: long})
		f.blocked(request, long-patience, long)
		f.amend(request, store.Amendment{Unban: true})
		f.granted(request)
		f.amend(request, store.Amendment{Empty: true})
		f.granted(request)
		f.plain(request)
	}
}

// anyClients are ends of names of clients that somebody may think of.
var anyClients = []string{"", "\x00", "\xff\xfe", "}", "{a}", "*", "\r\nDEL x\r\n", strings.Repeat("\x00\xff", store.MaxClientBytes)}

func amendApart(f *steered) {
	request := f.limit(1, long)
	window, zone := request, f.zoned("other", request)
	window.Window = 2 * long
	for _, r := range []store.Request{request, window, zone} {
		f.granted(r)
	}
	f.amend(request, store.Amendment{Empty: true})
	f.plain(window)
	f.plain(zone)
	f.granted(request)
	f.amend(zone, store.Amendment{Ban: long})
	f.plain(request)
}

func amendShared(f *steered) {
	other := &fixture{T: f.T, store: f.other, id: f.id}
	request := f.limit(1, long)
	other.granted(request)
	f.amend(request, store.Amendment{Ban: 2 * long})
	a := eventually(other, request, func(a store.Decision) bool { return a.Blocked })
	if a.RetryAfter < 2*long-patience {
		f.Errorf("%+v, want it blocked for two hours", a)
	}
	f.amend(request, store.Amendment{Unban: true})
	eventually(other, request, func(a store.Decision) bool { return !a.Blocked })
	f.amend(request, store.Amendment{Empty: true})
	eventually(other, request, func(a store.Decision) bool { return a.Granted })
}

// eventually asks until the decision is as it should be: a refusal is remembered for a
// second.
func eventually(f *fixture, request store.Request, want func(store.Decision) bool) (a store.Decision) {
	f.Helper()
	for began := time.Now(); time.Since(began) < 2*patience; time.Sleep(20 * time.Millisecond) {
		if a = f.take(request)[0]; want(a) {
			return a
		}
	}
	f.Fatalf("still %+v", a)
	return a
}

// Each time that a log is emptied, up to one limit more is granted.
func amendConcurrently(f *steered) {
	const limit, times = 20, 5
	request := f.limit(limit, long)
	granted := f.together(8, 100, func(i int) int64 {
		if f.one(request).Granted {
			return 1
		}
		return 0
	})
	if granted != limit {
		f.Fatalf("%d granted, want %d", granted, limit)
	}
	granted = f.together(8, times, func(i int) (granted int64) {
		if i == 0 {
			if err := f.store.Amend(patience, request.Key, store.Amendment{Empty: true}); err != nil {
				f.Error(err)
			}
		}
		for range limit {
			if f.one(request).Granted {
				granted++
			}
		}
		return granted
	})
	if granted < limit || granted > times*limit {
		f.Errorf("%d granted, want %d to %d", granted, limit, times*limit)
	}
}

func amendSenseless(f *steered) {
	good := f.limit(1, long).Key
	long := good
	long.Client = strings.Repeat("x", store.MaxClientBytes+1)
	short := good
	short.Window = time.Millisecond
	none := good
	none.Window = 0
	for _, test := range []struct {
		key store.Key
		a   store.Amendment
	}{
		{long, store.Amendment{}}, {short, store.Amendment{Unban: true}}, {none, store.Amendment{Empty: true}},
		{good, store.Amendment{Ban: -1}}, {good, store.Amendment{Ban: store.MaxWindow + time.Microsecond}},
		{good, store.Amendment{Ban: time.Second + time.Nanosecond}},
	} {
		if err := f.store.Amend(patience, test.key, test.a); err == nil {
			f.Errorf("Amend(%+v, %+v) succeeds", test.key, test.a)
		}
	}
	if err := f.store.Amend(patience, good, store.Amendment{Ban: store.MaxWindow}); err != nil {
		f.Error(err)
	}
}

// watcher is what a watcher of a board has seen last of some classes.
type watcher struct {
	t     *testing.T
	mu    sync.Mutex
	class byte // the first
	seen  bool
	all   []store.Notice
	news  chan struct{}
}

// watch watches the test's notices on the board of a store until it ends.
func (f *steered) watch(s store.Steered) *watcher {
	w := &watcher{t: f.T, class: f.class, news: make(chan struct{}, 1)}
	f.Cleanup(s.WatchBoard(w.take))
	return w
}

func (w *watcher) take(all []store.Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = true
	w.all = slices.DeleteFunc(all, func(n store.Notice) bool { return n.Class < w.class || n.Class >= w.class+classes })
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// wants waits until exactly these notices are there. Those posted for an hour have
// most of it left.
func (w *watcher) wants(want ...store.Notice) {
	w.t.Helper()
	up := time.After(3 * patience)
	for {
		w.mu.Lock()
		got, ok := w.all, w.seen && len(w.all) == len(want)
		for i := range min(len(got), len(want)) {
			g, n := got[i], want[i]
			ok = ok && g.Class == n.Class && g.Name == n.Name && g.Text == n.Text &&
				g.Lasts > 0 && g.Lasts <= n.Lasts && g.Lasts > n.Lasts-4*patience
		}
		w.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-w.news:
		case <-up:
			w.t.Fatalf("the board has %+v\nwant %+v", got, want)
		}
	}
}

// classes is how many classes of notices each test has.
const classes = 3

// note is a notice of one of the test's classes for an hour.
func (f *steered) note(class byte, name, text string) store.Notice {
	return store.Notice{Class: f.class + class, Name: name, Text: text, Lasts: long}
}

func (f *steered) post(n store.Notice) {
	f.Helper()
	if err := f.store.Post(patience, n, store.MaxNotices); err != nil {
		f.Fatalf("Post(%+v): %v", n, err)
	}
}

func (f *steered) withdraw(class byte, name string, want bool) {
	f.Helper()
	if found, err := f.store.Withdraw(patience, f.class+class, name); found != want || err != nil {
		f.Fatalf("Withdraw(%q, %q) = %v, %v, want %v", class, name, found, err, want)
	}
}

func boardPosts(f *steered) {
	here, there := f.watch(f.store), f.watch(f.other)
	here.wants()
	there.wants()
	a, b, c := f.note(0, "a", "first"), f.note(0, "b", ""), f.note(1, "a", "of another class")
	f.post(b)
	f.post(a)
	f.post(c)
	here.wants(a, b, c)
	there.wants(a, b, c)
	f.watch(f.other).wants(a, b, c)
	f.withdraw(0, "a", true)
	f.withdraw(0, "a", false)
	f.withdraw(1, "b", false)
	f.withdraw(2, "a", false)
	here.wants(b, c)
	there.wants(b, c)
	f.withdraw(0, "b", true)
	f.withdraw(1, "a", true)
	here.wants()
	there.wants()
	f.watch(f.other).wants()
}

func boardEnds(f *steered) {
	here, there := f.watch(f.store), f.watch(f.other)
	stays, brief := f.note(0, "stays", ""), f.note(0, "brief", "")
	brief.Lasts = store.MinNotice
	f.post(stays)
	f.post(brief)
	posted := time.Now()
	here.wants(stays)
	if took := time.Since(posted); took < store.MinNotice-slack-patience/100 {
		f.Errorf("a notice of %v has ended after %v", store.MinNotice, took)
	}
	there.wants(stays)
	f.withdraw(0, "brief", false)
	f.withdraw(0, "stays", true)
	here.wants()
}

func boardReplaces(f *steered) {
	here, there := f.watch(f.store), f.watch(f.other)
	first, second := f.note(0, "name", "a long text of a notice"), f.note(0, "name", "other")
	second.Lasts = 5 * long
	f.post(first)
	there.wants(first)
	f.post(second)
	here.wants(second)
	there.wants(second)
	f.post(first)
	there.wants(first)
	f.withdraw(0, "name", true)
	here.wants()
}

func boardFull(f *steered) {
	here := f.watch(f.store)
	full := func(n store.Notice, most int, want bool) {
		f.Helper()
		err := f.store.Post(patience, n, most)
		if errors.Is(err, store.ErrBoardFull) != want || !want && err != nil {
			f.Fatalf("Post(%+v, %d): %v, want it full %v", n, most, err, want)
		}
	}
	a, b, c := f.note(0, "a", ""), f.note(0, "b", ""), f.note(0, "c", "")
	y := f.note(1, "c", "")
	full(a, 1, false)
	full(b, 1, true)
	full(b, 2, false)
	full(a, 2, false) // in its own place
	full(c, 2, true)
	full(y, 2, false) // of another class
	here.wants(a, b, y)
	f.withdraw(0, "a", true)
	brief := a
	brief.Lasts = store.MinNotice
	full(brief, 2, false)
	full(c, 2, true)
	time.Sleep(store.MinNotice + slack)
	full(c, 2, false) // what has ended makes room
	here.wants(b, c, y)
	for _, n := range []store.Notice{b, c, y} {
		f.withdraw(n.Class-f.class, n.Name, true)
	}
	here.wants()
}

func boardAnyBytes(f *steered) {
	here, there := f.watch(f.store), f.watch(f.other)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	notices := []store.Notice{
		f.note(0, "", string(every)), f.note(0, "\x00\x00\x01", "\xff"), f.note(0, string(every), "\r\n"),
		f.note(0, strings.Repeat("\xff", store.MaxNoticeBytes), ""), f.note(1, "", ""), f.note(1, "\x00", "\x00"),
	}
	for _, n := range notices {
		f.post(n)
	}
	here.wants(notices...)
	there.wants(notices...)
	for _, n := range notices {
		f.withdraw(n.Class-f.class, n.Name, true)
	}
	there.wants()
}

func boardLarge(f *steered) {
	there := f.watch(f.other)
	var all []store.Notice
	for i := range 200 {
		n := f.note(0, fmt.Sprintf("%03d", i), strings.Repeat("t", store.MaxNoticeBytes-3))
		f.post(n)
		all = append(all, n)
	}
	there.wants(all...)
	for _, n := range all {
		f.withdraw(n.Class-f.class, n.Name, true)
	}
	there.wants()
}

func boardWatchers(f *steered) {
	a, b := f.note(0, "a", ""), f.note(0, "b", "")
	stopped := &watcher{t: f.T, class: f.class, news: make(chan struct{}, 1)}
	stop := f.store.WatchBoard(stopped.take)
	stopped.wants()
	f.post(a)
	stopped.wants(a)
	stop()
	stop()
	f.post(b)
	f.watch(f.store).wants(a, b)
	stopped.wants(a)
	f.withdraw(0, "a", true)
	f.withdraw(0, "b", true)
	f.watch(f.other).wants()
}

func boardConcurrently(f *steered) {
	here, there := f.watch(f.store), f.watch(f.other)
	const most = 20
	posted := f.together(10, 5, func(i int) int64 {
		s := f.store
		if i%2 == 0 {
			s = f.other
		}
		f.mu.Lock()
		f.keys++
		n := f.note(0, fmt.Sprintf("%02d", f.keys), "")
		f.mu.Unlock()
		switch err := s.Post(patience, n, most); {
		case err == nil:
			return 1
		case !errors.Is(err, store.ErrBoardFull):
			f.Error(err)
		}
		return 0
	})
	if posted != most {
		f.Errorf("%d were posted, want %d", posted, most)
	}
	var left []store.Notice
	for i := range f.keys {
		n := f.note(0, fmt.Sprintf("%02d", i+1), "")
		found, err := f.store.Withdraw(patience, n.Class, n.Name)
		if err != nil {
			f.Fatal(err)
		}
		if found && i%3 == 0 {
			f.post(n)
			left = append(left, n)
		}
	}
	here.wants(left...)
	there.wants(left...)
	for _, n := range left {
		f.withdraw(n.Class-f.class, n.Name, true)
	}
}

func boardSenseless(f *steered) {
	here := f.watch(f.store)
	brief, fine, endless := f.note(0, "a", ""), f.note(0, "a", ""), f.note(0, "a", "")
	brief.Lasts, fine.Lasts, endless.Lasts = store.MinNotice-1, long+1, store.MaxWindow+time.Microsecond
	for _, test := range []struct {
		n    store.Notice
		most int
	}{
		{brief, 1}, {fine, 1}, {endless, 1}, {f.note(0, "a", ""), 0}, {f.note(0, "a", ""), store.MaxNotices + 1},
		{f.note(0, strings.Repeat("n", 1000), strings.Repeat("t", store.MaxNoticeBytes-999)), 1},
	} {
		if err := f.store.Post(patience, test.n, test.most); err == nil {
			f.Errorf("Post(%+v, %d) succeeds", test.n, test.most)
		}
	}
	f.withdraw(0, strings.Repeat("n", store.MaxNoticeBytes+1), false)
	here.wants()
}
