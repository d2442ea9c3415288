package store

import "sync"

// Late is the answer to a call that comes when its Take has returned a
// timeout already. The zero Late waits for it. It is safe for concurrent use.
type Late struct {
	mu        sync.Mutex
	delivered bool
	answers   []Answer
	then      func(answers []Answer)
}

// Deliver is called by the store when it knows how the call ended, once: with
// its answers, which no longer change, or with nil if it failed after all.
func (l *Late) Deliver(answers []Answer) {
	l.mu.Lock()
	l.delivered, l.answers = true, answers
	then := l.then
	l.then = nil
	l.mu.Unlock()
	if then != nil && answers != nil {
		then(answers)
	}
}

// Then sets what is done with the answers if they come, or does it at once if
// they have come. It is called at most once. The function must not block: it
// runs on a goroutine that others wait for.
func (l *Late) Then(do func(answers []Answer)) {
	l.mu.Lock()
	if !l.delivered {
		l.then = do
		l.mu.Unlock()
		return
	}
	answers := l.answers
	l.mu.Unlock()
	if answers != nil {
		do(answers)
	}
}
