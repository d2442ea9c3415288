package body

import "sync/atomic"

// Memory is what all bodies of a process may hold together. It is safe for
// concurrent use.
type Memory struct {
	limit atomic.Int64 // bytes
	used  atomic.Int64 // bytes
}

// NewMemory returns a budget of so many bytes.
func NewMemory(limit int64) *Memory {
	m := new(Memory)
	m.SetLimit(limit)
	return m
}

// SetLimit changes the budget. What is held beyond it is kept until it is
// released.
func (m *Memory) SetLimit(bytes int64) { m.limit.Store(bytes) }

// Limit is the budget in bytes.
func (m *Memory) Limit() int64 { return m.limit.Load() }

// Used is how many bytes are held.
func (m *Memory) Used() int64 { return m.used.Load() }

// reserve takes bytes out of the budget, or nothing if there are not so many
// left.
func (m *Memory) reserve(bytes int64) bool {
	if m.used.Add(bytes) > m.limit.Load() {
		m.used.Add(-bytes)
		return false
	}
	return true
}

func (m *Memory) release(bytes int64) { m.used.Add(-bytes) }
