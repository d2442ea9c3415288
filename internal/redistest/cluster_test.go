package redistest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestSlot(t *testing.T) {
	s := StartCluster(t, 1, 0).Nodes[0]
	for _, key := range []string{"", "123456789", "foo", "{foo}bar", "a{foo}{bar}", "{}foo", "{foo", "}{foo}", "{{foo}}", "bar\x00\xff"} {
		if got, want := Slot(key), s.Do(t, "CLUSTER", "KEYSLOT", key); int64(got) != want {
			t.Errorf("Slot(%q) = %d, want %d", key, got, want)
		}
	}
}

// TestCluster moves a slot, and holds it half moved for a while.
func TestCluster(t *testing.T) {
	t.Parallel() // it mostly waits
	c := StartCluster(t, 3, 0, "--requirepass", "secret")
	slot := c.Slot("{tag}")
	from := c.Owner(t, slot)
	if want := c.Nodes[slot*3/slots]; from != want {
		t.Errorf("slot %d is owned by %s, want %s", slot, from.Addr, want.Addr)
	}
	to := c.Nodes[(slices.Index(c.Nodes, from)+1)%3]
	for i := range 10 {
		from.Do(t, "SET", fmt.Sprintf("{tag}%d", i), i)
	}
	refused := func(s *Server, start string, command ...any) {
		t.Helper()
		if reply, err := s.Dial(t).Do(command...); err == nil || !strings.HasPrefix(err.Error(), start) {
			t.Errorf("%v: %v, %v; want %s", command, reply, err, start)
		}
	}
	moved := fmt.Sprintf("MOVED %d %s", slot, from.Addr)
	refused(to, moved, "GET", "{tag}0")

	c.StartMigration(t, slot, from, to)
	ask := fmt.Sprintf("ASK %d %s", slot, to.Addr)
	refused(from, ask, "GET", "{tag}none")
	if n := c.MoveKeys(t, slot, 4); n != 4 {
		t.Errorf("%d keys moved, want 4", n)
	}
	here, there := from.Keys(t), to.Keys(t)
	if len(here) != 6 || len(there) != 4 {
		t.Fatalf("keys %q and %q, want 6 and 4", here, there)
	}
	from.Do(t, "GET", here[0])
	refused(from, ask, "GET", there[0])
	refused(to, moved, "GET", there[0])
	refused(from, "TRYAGAIN", "MGET", here[0], there[0])
	if owner := c.Owner(t, slot); owner != from {
		t.Errorf("slot %d is owned by %s before it is moved, want %s", slot, owner.Addr, from.Addr)
	}

	c.FinishMigration(t, slot)
	if owner := c.Owner(t, slot); owner != to {
		t.Errorf("slot %d is owned by %s, want %s", slot, owner.Addr, to.Addr)
	}
	refused(from, fmt.Sprintf("MOVED %d %s", slot, to.Addr), "GET", "{tag}0")
	for i := range 10 {
		if got := to.Do(t, "GET", fmt.Sprintf("{tag}%d", i)); got != fmt.Sprint(i) {
			t.Errorf("key %d is %v after it was moved", i, got)
		}
	}

	c.Migrate(t, slot, to, from)
	if got := c.Owner(t, slot); got != from || len(from.Keys(t)) != 10 || len(to.Keys(t)) != 0 {
		t.Errorf("slot %d is owned by %s with %d keys, want %s with 10", slot, got.Addr, len(from.Keys(t)), from.Addr)
	}
	c.WaitStable(t)
}

// TestClusterFailover kills a master, and freezes the next.
func TestClusterFailover(t *testing.T) {
	t.Parallel() // it mostly waits
	c := StartCluster(t, 3, 1)
	slot := c.Slot("key")
	old := c.Owner(t, slot)
	replicas := c.Replicas(t, old)
	if len(c.Nodes) != 6 || len(replicas) != 1 || slices.Contains(c.Nodes[:3], replicas[0]) {
		t.Fatalf("%d nodes, %d replicas of one", len(c.Nodes), len(replicas))
	}
	old.Do(t, "SET", "key", "value")
	old.WaitReplicated(t, replicas...)
	old.Kill()
	owner := c.WaitFailover(t, slot, old)
	if owner != replicas[0] || c.Owner(t, slot) != owner {
		t.Errorf("slot %d is owned by %s, want the replica %s", slot, owner.Addr, replicas[0].Addr)
	}
	if got := owner.Do(t, "GET", "key"); got != "value" {
		t.Errorf("the new owner has %v", got)
	}
	old.Restart(t)
	c.WaitStable(t)
	if got := c.Replicas(t, owner); !slices.Equal(got, []*Server{old}) {
		t.Errorf("the old owner has not become the new one's replica")
	}

	owner.Stop()
	if got := c.WaitFailover(t, slot, owner); got != old {
		t.Errorf("slot %d is owned by %s, want the first owner %s again", slot, got.Addr, old.Addr)
	}
	if got := old.Do(t, "GET", "key"); got != "value" {
		t.Errorf("the first owner has %v when it is it again", got)
	}
	owner.Cont()
	c.WaitStable(t)
	if got := c.Replicas(t, old); !slices.Equal(got, []*Server{owner}) {
		t.Errorf("the frozen owner has not become a replica")
	}
}
