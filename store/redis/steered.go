package redis

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

//go:embed amend.lua
var amendSource string

//go:embed board.lua
var boardSource string

// What operators do by hand has scripts of its own.
var (
	amendScript = newScript(amendSource)
	boardScript = newScript(boardSource)
)

// What the script of the board does, and what all its replies begin with.
const (
	boardRead     = 0
	boardPost     = 1
	boardWithdraw = 2

	boardRevision = 7
	noticeSize    = 1 + 2 + 2 + 7 // of a notice in the reply, without its name and text
)

// unknownRevision is that of no board.
const unknownRevision = 1<<53 - 1

// boardKey is the key of the board. The number is the version of the format in board.lua.
func boardKey(prefix string) string { return prefix + ":board:1" }

// Amend changes what is kept of a key, see [store.Steered].
func (s *Store) Amend(wait time.Duration, key store.Key, amendment store.Amendment) error {
	if err := amendment.Validate(&key); err != nil {
		return err
	}
	if _, err := s.ask(wait, s.keys.amendCall(wait, &key, &amendment)); err != nil {
		return err
	}
	return nil
}

// amendCall is the call that amends a key.
func (k *keys) amendCall(wait time.Duration, key *store.Key, amendment *store.Amendment) *call {
	var b [15]byte
	put(b[0:7], key.Window.Microseconds())
	if amendment.Unban {
		b[7]++
	}
	if amendment.Empty {
		b[7] += 2
	}
	put(b[8:15], amendment.Ban.Microseconds())
	return steeringCall(kindAmend, wait, k.of(key), b[:])
}

// steeringCall is a call of one key whose script reads what is packed.
func steeringCall(kind byte, wait time.Duration, key string, packed []byte) *call {
	c := newCall(kind, wait, 1)
	c.items[0].key, c.items[0].spent = key, packed
	return c
}

// HashKey hashes a client's key as the names of keys have it: with the secret, if there
// is one.
func (s *Store) HashKey(client string) [16]byte { return s.keys.digest(client) }

// Post puts a notice on the board, see [store.Steered].
func (s *Store) Post(wait time.Duration, notice store.Notice, most int) error {
	if err := notice.Validate(most); err != nil {
		return err
	}
	done, err := s.change(wait, postOf(&notice, most))
	if err == nil && !done {
		return store.ErrBoardFull
	}
	return err
}

// postOf is what the script reads in order to post a notice.
func postOf(notice *store.Notice, most int) []byte {
	var b [15]byte
	b[0], b[1] = boardPost, notice.Class
	put(b[2:4], int64(len(notice.Name)))
	put(b[4:6], int64(len(notice.Text)))
	put(b[6:13], notice.Lasts.Microseconds())
	put(b[13:15], int64(most))
	return append(append(b[:], notice.Name...), notice.Text...)
}

// Withdraw takes a notice off the board, see [store.Steered].
func (s *Store) Withdraw(wait time.Duration, class byte, name string) (found bool, err error) {
	if len(name) > store.MaxNoticeBytes {
		return false, nil
	}
	var b [4]byte
	b[0], b[1] = boardWithdraw, class
	put(b[2:4], int64(len(name)))
	return s.change(wait, append(b[:], name...))
}

// change changes the board, and reads it at once if it is watched.
func (s *Store) change(wait time.Duration, packed []byte) (done bool, err error) {
	began := time.Now()
	reply, failed := s.ask(wait, steeringCall(kindBoard, wait, s.board.key, packed))
	switch {
	case failed != nil:
		return false, failed
	case len(reply) != 1:
		return false, &store.Error{Kind: store.KindReply, Err: fmt.Errorf("%w: %d bytes about the board", errReply, len(reply))}
	}
	if s.board.watched() {
		// If that fails, it is read a second later.
		_ = s.readBoard(min(wait-time.Since(began), s.timeout))
	}
	return reply[0] == 1, nil
}

// WatchBoard watches the board, see [store.Steered].
func (s *Store) WatchBoard(do func([]store.Notice)) (stop func()) {
	unwatch := s.board.Watch(do)
	s.board.begin(s)
	var once sync.Once
	return func() {
		once.Do(func() {
			unwatch()
			s.board.end()
		})
	}
}

// board is what is known of the board. It is read about once a second while somebody
// watches it.
type board struct {
	store.Board
	key  string
	life context.Context // of the store

	reading  chan struct{} // holds one meanwhile, so that replies are taken in in the order of the server's
	revision int64         // guarded by reading

	mu       sync.Mutex
	watchers int
	stop     context.CancelFunc // of the reading
}

func newBoard(ctx context.Context, prefix string) *board {
	return &board{key: boardKey(prefix), life: ctx, reading: make(chan struct{}, 1), revision: unknownRevision}
}

func (b *board) watched() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.watchers > 0
}

// begin begins to read the board for one more watcher.
func (b *board) begin(s *Store) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watchers++; b.watchers > 1 {
		return
	}
	ctx, stop := context.WithCancel(b.life)
	b.stop = stop
	go func() {
		for ctx.Err() == nil {
			_ = s.readBoard(s.timeout) // a failure leaves it what it was
			sleep(ctx, beatEvery*3/4+rand.N(beatEvery/2), nil)
		}
	}()
}

// end ends it when there is no watcher left.
func (b *board) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watchers--; b.watchers == 0 {
		b.stop()
	}
}

// readBoard takes in what is on the board, in its turn. It waits for wait at most.
func (s *Store) readBoard(wait time.Duration) *store.Error {
	b := s.board
	began := time.Now()
	turn := time.NewTimer(wait)
	defer turn.Stop()
	select {
	case b.reading <- struct{}{}:
		defer func() { <-b.reading }()
	case <-turn.C:
		return &store.Error{Kind: store.KindBudget, Unexecuted: true, Err: errors.New("not asked, since the board is being read and does not come")}
	}
	wait -= time.Since(began)
	var packed [8]byte
	put(packed[1:8], b.revision)
	reply, err := s.ask(wait, steeringCall(kindBoard, wait, b.key, packed[:]))
	if err != nil {
		return err
	}
	revision, notices, ok := readNotices(reply)
	if !ok {
		return &store.Error{Kind: store.KindReply, Err: fmt.Errorf("%w: %d bytes about the board", errReply, len(reply))}
	}
	if revision != b.revision {
		b.revision = revision
		b.Replace(notices)
	}
	return nil
}

// readNotices reads the reply of the script to a reader of the board.
func readNotices(reply string) (revision int64, notices []store.Notice, ok bool) {
	if len(reply) < boardRevision {
		return 0, nil, false
	}
	revision, reply = numberIn(reply, 0, boardRevision), reply[boardRevision:]
	for reply != "" {
		if len(reply) < noticeSize {
			return 0, nil, false
		}
		n := store.Notice{Class: reply[0], Lasts: time.Duration(numberIn(reply, 5, 7)) * time.Microsecond}
		name, text := int(numberIn(reply, 1, 2)), int(numberIn(reply, 3, 2))
		if reply = reply[noticeSize:]; len(reply) < name+text {
			return 0, nil, false
		}
		n.Name, n.Text, reply = reply[:name], reply[name:name+text], reply[name+text:]
		notices = append(notices, n)
	}
	return revision, notices, true
}

// ask makes a call of one key, and waits for its reply.
func (s *servers) ask(wait time.Duration, c *call) (string, *store.Error) {
	if wait <= 0 {
		return "", &store.Error{Kind: store.KindBudget, Unexecuted: true, Err: errors.New("not asked, since there is no time to wait for a reply")}
	}
	began := time.Now()
	n := s.one
	if s.cluster != nil {
		table, err := s.cluster.layout(wait)
		if err != nil {
			return "", err
		}
		if n, err = s.cluster.owner(table, slotOf(c.items[0].key)); err != nil {
			return "", err
		}
	}
	return n.run(c, wait-time.Since(began))
}

var _ store.Steered = (*Store)(nil)
