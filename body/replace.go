package body

// Replace makes other bytes the body that is handed on: p, which it keeps. They take
// the place of what was read in the memory's budget, too; [ErrMemory] means that there
// is no room for both, and nothing has changed. The body must be complete, and nobody
// may have read from it.
func (b *Body) Replace(p []byte) error {
	size := int64(cap(p))
	if !b.memory.reserve(size) { // beside what it replaces, which somebody is still reading
		return ErrMemory
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveLocked(b.held)
	b.buf, b.held, b.length = p, size, int64(len(p))
	if b.gone { // the request is over, and nobody would give this back
		b.giveLocked(b.held)
	}
	return nil
}

// Begun reports whether somebody has read from the body: as long as nobody has,
// nothing of it was sent anywhere.
func (b *Body) Begun() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at > 0
}
