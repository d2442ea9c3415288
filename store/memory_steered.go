package store

import (
	"errors"
	"time"
)

// errShares is why the log of a key is not amended.
var errShares = errors.New("the memory has no room left for a log of this key, which counts together with others meanwhile; raise max_keys")

// Amend changes what is kept of a key as [Steered] says. It never waits.
func (m *Memory) Amend(_ time.Duration, key Key, amendment Amendment) error {
	if err := amendment.Validate(&key); err != nil {
		return err
	}
	p := place{key: key}
	p.shard, p.slot = m.locate(p.key)
	s := &m.shards[p.shard]
	s.mu.Lock()
	defer s.mu.Unlock()

	now := m.Now()
	s.find(&p, now)
	if p.log == nil && amendment.Ban > 0 && m.admit(s, now, nil) {
		p.log = s.begin(&p, 0)
	}
	switch {
	case p.log != nil:
		if p.log.Amend(now, &amendment); p.log.Empty() {
			m.remove(s, p.key)
		}
	case amendment.Ban > 0, amendment.Empty && p.overflow != nil:
		// Others must not be banned, nor be granted more, for what this key is.
		return &Error{Kind: KindOverload, Unexecuted: true, Err: errShares}
	}
	return nil
}

// Post puts a notice on the board of this process, see [Steered]. It never waits.
func (m *Memory) Post(_ time.Duration, notice Notice, most int) error {
	return m.board.Post(notice, most)
}

// Withdraw takes a notice off the board of this process, see [Steered]. It never waits.
func (m *Memory) Withdraw(_ time.Duration, class byte, name string) (found bool, err error) {
	return m.board.Withdraw(class, name), nil
}

// WatchBoard watches the board of this process, see [Steered].
func (m *Memory) WatchBoard(do func([]Notice)) (stop func()) { return m.board.Watch(do) }

var _ Steered = (*Memory)(nil)
