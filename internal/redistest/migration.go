package redistest

import (
	"fmt"
	"testing"
)

// StartMigration begins to move a slot from its owner to another master. From
// now on the owner sends clients to the other for keys it does not have (ASK),
// and replies TRYAGAIN to commands of which it has some keys only.
func (c *Cluster) StartMigration(t testing.TB, slot int, from, to *Server) {
	t.Helper()
	to.Do(t, "CLUSTER", "SETSLOT", slot, "IMPORTING", c.id(from))
	from.Do(t, "CLUSTER", "SETSLOT", slot, "MIGRATING", c.id(to))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moving[slot] = migration{from, to}
}

func (c *Cluster) migration(t testing.TB, slot int) migration {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	m, found := c.moving[slot]
	if !found {
		t.Fatalf("redistest: slot %d is not being moved", slot)
	}
	return m
}

// MoveKeys moves up to n keys of a slot whose migration has begun, and returns
// how many it moved.
func (c *Cluster) MoveKeys(t testing.TB, slot, n int) int {
	t.Helper()
	m := c.migration(t, slot)
	moved := 0
	for _, key := range m.from.Do(t, "CLUSTER", "GETKEYSINSLOT", slot, n).([]any) {
		migrate := []any{"MIGRATE", "127.0.0.1", m.to.port(), key, 0, replyTime.Milliseconds()}
		if m.to.password != "" {
			migrate = append(migrate, "AUTH", m.to.password)
		}
		// One that has expired meanwhile is not there.
		if m.from.Do(t, migrate...) == "OK" {
			moved++
		}
	}
	return moved
}

// FinishMigration moves the keys that are left and makes the other master the
// owner of the slot, and waits until all nodes know.
func (c *Cluster) FinishMigration(t testing.TB, slot int) {
	t.Helper()
	m := c.migration(t, slot)
	await(t, fmt.Sprintf("slot %d is empty", slot), func() error {
		c.MoveKeys(t, slot, 1000)
		if left := m.from.Do(t, "CLUSTER", "COUNTKEYSINSLOT", slot).(int64); left > 0 {
			return fmt.Errorf("%d keys left", left)
		}
		return nil
	})
	// First the new owner: if the old one gave the slot up before, nobody would
	// own it for a moment.
	m.to.Do(t, "CLUSTER", "SETSLOT", slot, "NODE", c.id(m.to))
	m.from.Do(t, "CLUSTER", "SETSLOT", slot, "NODE", c.id(m.to))
	for _, node := range running(c.Nodes) {
		if node != m.from && node != m.to {
			// A hint: they hear of it from the owner, and replicas take no other.
			_, _ = node.ask("CLUSTER", "SETSLOT", slot, "NODE", c.id(m.to))
		}
	}
	c.mu.Lock()
	delete(c.moving, slot)
	c.mu.Unlock()
	await(t, fmt.Sprintf("all know the new owner of slot %d", slot), func() error {
		owner, err := c.agreed(slot)
		if err == nil && owner != m.to {
			err = fmt.Errorf("it is %s", owner.Addr)
		}
		return err
	})
}

// Migrate moves a slot with all its keys from its owner to another master.
func (c *Cluster) Migrate(t testing.TB, slot int, from, to *Server) {
	t.Helper()
	c.StartMigration(t, slot, from, to)
	c.FinishMigration(t, slot)
}
