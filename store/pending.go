package store

import "sync"

// Pending is a call whose Take has returned an error and whose outcome may still
// become known. The zero Pending waits for it. It is safe for concurrent use.
type Pending struct {
	mu        sync.Mutex
	delivered bool
	decisions []Decision
	then      func(decisions []Decision)
}

// Deliver is called by the store when it knows how the call ended, once: with
// its decisions, which no longer change, or with nil if it failed after all.
func (p *Pending) Deliver(decisions []Decision) {
	p.mu.Lock()
	p.delivered, p.decisions = true, decisions
	then := p.then
	p.then = nil
	p.mu.Unlock()
	if then != nil && decisions != nil {
		then(decisions)
	}
}

// Then sets what is done with the decisions if they come, or does it at once if
// they have come. It is called at most once, by the layer that made the call,
// which thereby sees to what the call charged. The function must not block: it
// runs on a goroutine that others wait for.
func (p *Pending) Then(do func(decisions []Decision)) {
	p.mu.Lock()
	if !p.delivered {
		p.then = do
		p.mu.Unlock()
		return
	}
	decisions := p.decisions
	p.mu.Unlock()
	if decisions != nil {
		do(decisions)
	}
}
