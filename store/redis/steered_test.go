package redis

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// TestAmendLowersStamps amends logs when the clock has stepped back: to the moment when
// the log began, to one when a part of an entry lies too far ahead, and to others.
func TestAmendLowersStamps(t *testing.T) {
	script := newClocked(t, redistest.Start(t))
	for i, back := range []int64{2_620_000, 5_000_000, 5_000_001, 60_000_000} {
		for j, amendment := range []store.Amendment{{}, {Unban: true}, {Ban: time.Minute}, {Empty: true, Ban: time.Minute}} {
			h := newHistory(script, fmt.Sprintf("lowers%d.%d", i, j))
			h.now = 1_700_000_000_000_000
			key := store.Key{Zone: h.zone, Client: "c", Window: time.Minute}
			r := store.Request{Key: key, Limit: 1000, Units: 1, Lease: 3, LeaseSpan: store.MaxLeaseSpan}
			h.addTake(r)
			for k := range 3 { // entries of up to 0.2 s
				h.now += 1_666_667
				h.addTake(r)
				h.now += int64(k) * 100_000
				h.addTake(r)
				h.now -= int64(k) * 100_000
			}
			h.now -= back
			h.add(step{now: h.now, amended: &key, amendment: amendment}, h.model.amend(h.now, key, amendment))
			h.addTake(r)
			h.addRefund(h.refunds...)
			replay(t, script, h.steps)
		}
	}
}

// boardScripted runs the script of the board at moments of the test's choice.
type boardScripted struct {
	*testing.T
	conn *redistest.Conn
	sha  string
	now  int64
}

func (b *boardScripted) do(packed []byte) string {
	b.Helper()
	command := commandOf(steeringCall(kindBoard, patience, boardKey(DefaultKeyPrefix), packed))
	reply, err := b.conn.Do("EVALSHA", b.sha, 1, command[3], strconv.FormatInt(b.now/1e6, 10), strconv.FormatInt(b.now%1e6, 10), command[4])
	if err != nil {
		b.Fatal(err)
	}
	return reply.(string)
}

func (b *boardScripted) post(name string, lasts time.Duration) {
	b.Helper()
	if reply := b.do(postOf(&store.Notice{Class: 'x', Name: name, Lasts: lasts}, 10)); reply != "\x01" {
		b.Fatalf("posted: %q", reply)
	}
}

// reads wants notices, and returns the revision.
func (b *boardScripted) reads(known int64, want string) int64 {
	b.Helper()
	var packed [8]byte
	put(packed[1:], known)
	reply := b.do(packed[:])
	revision, notices, ok := readNotices(reply)
	got := ""
	for _, n := range notices {
		got += fmt.Sprintf("%s %v ", n.Name, n.Lasts)
	}
	if got = strings.TrimSpace(got); !ok || got != want {
		b.Fatalf("read %q, want %q", got, want)
	}
	return revision
}

// TestBoardClock moves the server's clock.
func TestBoardClock(t *testing.T) {
	server := redistest.Start(t)
	b := &boardScripted{T: t, conn: server.Dial(t), now: 1_700_000_000_000_000}
	b.sha = server.Do(t, "SCRIPT", "LOAD", withClock(t, boardSource)).(string)
	key := boardKey(DefaultKeyPrefix)
	writes := func() int { return server.Calls(t, "set") + server.Calls(t, "del") }

	if r := b.reads(unknownRevision, ""); r != 0 {
		t.Errorf("an empty board has revision %d", r)
	}
	b.post("a", time.Minute)
	b.post("b", time.Hour)
	r := b.reads(unknownRevision, "a 1m0s b 1h0m0s")
	if b.reads(0, "a 1m0s b 1h0m0s") != r || b.reads(r, "") != r {
		t.Error("the revision changes, and the board does not")
	}
	b.now += 59_999_999
	before := writes()
	b.reads(0, "a 1µs b 59m0.000001s")
	b.reads(r, "")
	if after := writes(); after != before {
		t.Errorf("%d writes by readers", after-before)
	}
	b.now++
	next := b.reads(r, "b 59m0s")
	if next == r || b.reads(next, "") != next {
		t.Error("a notice has ended, and the revision has not changed once")
	}

	// The clock steps back for a day: b lasts an hour at most from then on, and each
	// change has a revision of its own.
	b.now -= 24 * 3600 * 1_000_000
	back := b.reads(next, "b 1h0m0s")
	if back == next || b.reads(back, "") != back {
		t.Error("the clock has stepped back, and the revision has not changed once")
	}
	b.post("c", time.Minute)
	if b.reads(back, "b 1h0m0s c 1m0s") == back {
		t.Error("something was posted, and the revision is the same")
	}
	if ttl := server.Do(t, "PTTL", key).(int64); ttl <= 0 || ttl > 3601_000 {
		t.Errorf("the board has %d ms to live", ttl)
	}
	b.now += 3600 * 1_000_000
	if r := b.reads(back, ""); r != 0 {
		t.Errorf("all has ended, and the revision is %d", r)
	}
	if server.Do(t, "EXISTS", key) != int64(0) {
		t.Error("an empty board is kept")
	}
}

// TestBoardGarbage puts things in the place of the board which are none.
func TestBoardGarbage(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	key := boardKey(DefaultKeyPrefix)
	for what, put := range map[string][]any{
		"text":        {"SET", key, "hello"},
		"long text":   {"SET", key, strings.Repeat("hello ", 100)},
		"empty":       {"SET", key, ""},
		"header only": {"SET", key, strings.Repeat("\x00", 14)},
		"cut":         {"SET", key, strings.Repeat("\x00", 14+10)},
		"zeros":       {"SET", key, strings.Repeat("\x00", 14+10*19)},
		"hash":        {"HSET", key, "field", "value"},
		"list":        {"RPUSH", key, "element"},
	} {
		server.Do(t, "DEL", key)
		server.Do(t, put...)
		if _, err := s.Withdraw(patience, 'x', "a"); err != nil {
			t.Errorf("%s: Withdraw: %v", what, err)
		}
		server.Do(t, "DEL", key)
		server.Do(t, put...)
		if err := s.readBoard(patience); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := s.Post(patience, store.Notice{Class: 'x', Name: "a", Lasts: time.Hour}, 1); err != nil {
			t.Errorf("%s: Post: %v", what, err)
		}
		if err := s.readBoard(patience); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		b := &boardSeen{}
		s.board.Watch(b.take)()
		if len(b.last()) != 1 || b.last()[0].Name != "a" {
			t.Errorf("%s: %+v on the board, want a", what, b.last())
		}
		if ttl := server.Do(t, "PTTL", key).(int64); ttl <= 0 {
			t.Errorf("%s: the board has %d ms to live", what, ttl)
		}
	}
}

// boardSeen is what a watcher of a board was told.
type boardSeen struct{ all [][]store.Notice }

func (b *boardSeen) take(notices []store.Notice) { b.all = append(b.all, notices) }

func (b *boardSeen) last() []store.Notice {
	if len(b.all) == 0 {
		return nil
	}
	return b.all[len(b.all)-1]
}

// watchedNames watches the board of a store, and returns what shows the names on it,
// "unknown" before it is known.
func watchedNames(t *testing.T, s *Store) func() string {
	names := make(chan string, 1)
	names <- "unknown"
	t.Cleanup(s.WatchBoard(func(notices []store.Notice) {
		var all []string
		for _, n := range notices {
			all = append(all, n.Name)
		}
		<-names
		names <- strings.Join(all, " ")
	}))
	return func() string {
		now := <-names
		names <- now
		return now
	}
}

func postedBy(t *testing.T, s *Store, name string, lasts time.Duration) {
	t.Helper()
	if err := s.Post(patience, store.Notice{Class: 'x', Name: name, Lasts: lasts}, 10); err != nil {
		t.Fatalf("Post(%s): %v", name, err)
	}
}

// TestBoardFaults: while the server is away, what was on the board is believed until
// it ends; when it is back without its data, the board is empty.
func TestBoardFaults(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	names := watchedNames(t, s)
	postedBy(t, s, "stays", time.Hour)
	postedBy(t, s, "brief", 2*time.Second)
	if got := names(); got != "brief stays" {
		t.Fatalf("%q after posting, want both", got)
	}
	server.Do(t, "SCRIPT", "FLUSH")
	postedBy(t, s, "brief", 2*time.Second)
	server.Kill()
	eventually(t, "one ends", func() bool { return names() == "stays" })
	time.Sleep(2 * beatEvery)
	if got := names(); got != "stays" {
		t.Errorf("%q while the server is away", got)
	}
	var e *store.Error
	if err := s.Post(patience, store.Notice{Class: 'x', Name: "new", Lasts: time.Hour}, 10); !errors.As(err, &e) {
		t.Errorf("Post while the server is away: %v", err)
	}
	if err := s.Amend(patience, one("client", 1).Key, store.Amendment{Empty: true}); !errors.As(err, &e) || !e.Unexecuted {
		t.Errorf("Amend while the server is away: %v", err)
	}
	if _, err := s.Withdraw(0, 'x', "stays"); !errors.As(err, &e) || e.Kind != store.KindBudget {
		t.Errorf("Withdraw without time: %v", err)
	}
	server.Restart(t)
	eventually(t, "the board is empty", func() bool { return names() == "" })
	eventually(t, "posted again", func() bool {
		return s.Post(patience, store.Notice{Class: 'x', Name: "new", Lasts: time.Hour}, 10) == nil
	})
	eventually(t, "the new one is there", func() bool { return names() == "new" })
}

// Nobody watches, and the board is not read; it is read again for the next one.
func TestBoardUnwatched(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	calls := func() int { return server.Calls(t, "get") } // heartbeats have none
	granted(t, s, one("client", 10))
	before := calls()
	time.Sleep(3 * beatEvery / 2)
	if got := calls() - before; got != 0 {
		t.Errorf("%d readings before anybody watches", got)
	}
	stop := s.WatchBoard(func([]store.Notice) {})
	also := s.WatchBoard(func([]store.Notice) {})
	eventually(t, "it is read", func() bool { return calls() > before+1 })
	stop()
	before = calls()
	eventually(t, "it is read for the other", func() bool { return calls() > before })
	also()
	time.Sleep(beatEvery / 2) // one may be under way
	before = calls()
	time.Sleep(3 * beatEvery / 2)
	if got := calls() - before; got != 0 {
		t.Errorf("%d readings after nobody watches", got)
	}
	names := watchedNames(t, s)
	eventually(t, "it is known", func() bool { return names() == "" })
	s.Close()
	time.Sleep(beatEvery / 2)
	before = calls()
	time.Sleep(3 * beatEvery / 2)
	if got := calls() - before; got != 0 {
		t.Errorf("%d readings after the store was closed", got)
	}
}

// A ban of a key with the largest log there is, which keeps all its entries, and each key
// has a time to live.
func TestAmendLargeLog(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	request := one("client", 60)
	request.Unreported = make([]store.Spent, store.MaxUnreported)
	for batch := range 4 {
		for i := range request.Unreported {
			request.Unreported[i] = store.Spent{Age: time.Duration(batch*store.MaxUnreported+i) * 50 * time.Second, Units: 1}
		}
		request.Units = 0
		take(t, s, request)
	}
	request.Unreported = nil
	name := s.keys.of(&request.Key)
	before := server.Do(t, "GET", name).(string)
	if len(before) < headerSize+60*entrySize {
		t.Fatalf("a log of %d bytes", len(before))
	}
	if err := s.Amend(patience, request.Key, store.Amendment{Ban: store.MaxWindow}); err != nil {
		t.Fatal(err)
	}
	after := server.Do(t, "GET", name).(string)
	if len(after) != len(before)+banSize || after[headerSize:len(before)] != before[headerSize:] {
		t.Errorf("a log of %d bytes became one of %d", len(before), len(after))
	}
	if ttl := server.Do(t, "PTTL", name).(int64); ttl < (store.MaxWindow-time.Minute).Milliseconds() || ttl > (store.MaxWindow+2*time.Second).Milliseconds() {
		t.Errorf("%d ms to live, want what the ban has", ttl)
	}
	if d := take(t, s, request)[0]; !d.Blocked || d.Remaining != 0 {
		t.Errorf("%+v, want it blocked, and full", d)
	}
	if err := s.Amend(patience, request.Key, store.Amendment{Unban: true, Empty: true}); err != nil {
		t.Fatal(err)
	}
	if keys := server.Keys(t); slices.Contains(keys, name) {
		t.Errorf("%q is still there", name)
	}
}

// Whoever changes the board waits no longer than it may, though somebody else is reading it
// and has no reply.
func TestBoardIsReadByAnother(t *testing.T) {
	t.Parallel()
	s := warmed(t, Options{Address: redistest.Start(t).Addr, Timeout: patience})
	names := watchedNames(t, s)
	eventually(t, "it is known", func() bool { return names() == "" })
	s.board.reading <- struct{}{}
	posted := make(chan error, 1)
	go func() { posted <- s.Post(time.Second, store.Notice{Class: 'x', Name: "new", Lasts: time.Hour}, 10) }()
	select {
	case err := <-posted:
		if err != nil {
			t.Errorf("Post: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("Post with a second to wait has not returned after 30 s")
	}
	<-s.board.reading
	eventually(t, "it is read later", func() bool { return names() == "new" })
}
