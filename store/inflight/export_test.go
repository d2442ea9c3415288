package inflight

// SetBound sets how many entries may be pending.
func (t *Table) SetBound(n int) { t.bound = n }

// Entries is how many entries the table has.
func (t *Table) Entries() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries)
}
