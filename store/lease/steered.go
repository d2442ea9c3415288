package lease

import (
	"errors"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// What operators do by hand is the store's below. Its board is handed through.

// errNotSteered is the error of a store below whose counts cannot be changed by hand.
var errNotSteered = errors.New("lease: the store below is no store.Steered")

// Amend changes what is kept of a key, see [store.Steered], and gives up what this
// process has of it: a lease must not pass a ban, nor a refusal outlast it.
func (l *Store) Amend(wait time.Duration, key store.Key, amendment store.Amendment) error {
	below, ok := l.inner.(store.Steered)
	if !ok {
		return errNotSteered
	}
	err := below.Amend(wait, key, amendment)
	l.giveUp(&key) // whatever is known of the call
	return err
}

// giveUp gives up what there is of a key, and what is on its way.
func (l *Store) giveUp(key *store.Key) {
	now := l.clock()
	hash := l.hash(key)
	s := l.shard(hash)
	s.mu.Lock()
	k := s.keyLocked(hash, key)
	if k == nil {
		s.mu.Unlock()
		return
	}
	k.refusal, k.roomAt, k.amendedAt = refusal{}, now.mono, now.mono
	left := k.takeAll()
	s.mu.Unlock()
	l.refundSoon(*key, &left)
}

// Post puts a notice on the board, see [store.Steered].
func (l *Store) Post(wait time.Duration, notice store.Notice, most int) error {
	below, ok := l.inner.(store.Steered)
	if !ok {
		return errNotSteered
	}
	return below.Post(wait, notice, most)
}

// Withdraw takes a notice off the board, see [store.Steered].
func (l *Store) Withdraw(wait time.Duration, class byte, name string) (found bool, err error) {
	below, ok := l.inner.(store.Steered)
	if !ok {
		return false, errNotSteered
	}
	return below.Withdraw(wait, class, name)
}

// WatchBoard watches the board, see [store.Steered]. If the store below has none, do is
// never called.
func (l *Store) WatchBoard(do func([]store.Notice)) (stop func()) {
	if below, ok := l.inner.(store.Steered); ok {
		return below.WatchBoard(do)
	}
	return func() {}
}

var _ store.Steered = (*Store)(nil)
