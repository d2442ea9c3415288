package redis

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// follow makes a server the replica of another one, and waits until it has its
// data.
func follow(t *testing.T, replica, master *redistest.Server) {
	t.Helper()
	host, port, _ := net.SplitHostPort(master.Addr)
	replica.Do(t, "CONFIG", "SET", "masterauth", "")
	replica.Do(t, "REPLICAOF", host, port)
	eventually(t, "the replica follows", func() bool {
		return replica.Info(t, "replication", "master_link_status") == "up"
	})
	master.WaitReplicated(t, replica)
}

// pair is a master and its replica.
func pair(t *testing.T) (master, replica *redistest.Server) {
	t.Helper()
	// Without a disk it would begin seconds later.
	master = redistest.Start(t, "--repl-diskless-sync", "no")
	replica = redistest.Start(t, "--repl-diskless-sync", "no")
	follow(t, replica, master)
	return master, replica
}

// tagged waits until a store tags its calls with the identity of a server.
func tagged(t *testing.T, s *Store, server *redistest.Server) {
	t.Helper()
	want := identityOf(t, server)
	eventually(t, "calls are tagged with the server's identity", func() bool {
		s.one.mu.Lock()
		defer s.one.mu.Unlock()
		return s.one.client != nil && s.one.client.origin.Load() == want
	})
}

// charge takes a unit, and returns its refund.
func charge(t *testing.T, s *Store, a store.Request) store.Refund {
	t.Helper()
	decision := take(t, s, a)[0]
	if !decision.Charged() {
		t.Fatalf("%+v: %+v; want it charged", a, decision)
	}
	return store.Refund{Key: a.Key, Charge: decision.Charge, Units: a.Units}
}

// isRefunded refunds a charge, and wants so many units to be used then.
func isRefunded(t *testing.T, s *Store, g store.Refund, limit, want int64) {
	t.Helper()
	eventually(t, "the server is asked", func() bool { return s.Refund(patience, []store.Refund{g}) == nil })
	if got := used(t, s, g.Key.Client, limit); got != want {
		t.Errorf("%d units used after %+v was refunded, want %d", got, g, want)
	}
}

// TestRefundAfterFailover: the latest charge is lost with its master, and its log
// lives on in the replica, where other clients are charged. The units in it are
// theirs.
func TestRefundAfterFailover(t *testing.T) {
	t.Parallel()
	master, replica := pair(t)
	proxy := redistest.NewProxy(t, master.Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	tagged(t, s, master)
	request := one("client", 3)
	kept := charge(t, s, request)
	master.WaitReplicated(t, replica)
	cutOff(t, master, replica)
	lost := charge(t, s, request)

	replica.Do(t, "REPLICAOF", "NO", "ONE")
	proxy.Redirect(replica.Addr)
	proxy.Cut()
	other := warmed(t, Options{Address: replica.Addr})
	granted(t, other, request)
	granted(t, other, request)
	isRefunded(t, s, lost, 3, 3)
	isRefunded(t, other, lost, 3, 3)
	if got := take(t, s, request)[0]; got.Granted {
		t.Errorf("a fourth unit of 3 is granted: %+v", got)
	}
	// It cannot be told from a lost charge.
	isRefunded(t, s, kept, 3, 3)

	// And on it goes with the new master.
	tagged(t, s, replica)
	isRefunded(t, s, charge(t, s, one("later", 3)), 3, 0)
}

// TestRefundToFormerMaster: a server becomes a replica, loses the latest charge
// to the data of its master, and is the master again, all in one run and on the
// same connections perhaps.
func TestRefundToFormerMaster(t *testing.T) {
	t.Parallel()
	first, second := pair(t)
	s := warmed(t, Options{Address: first.Addr})
	tagged(t, s, first)
	request := one("client", 3)
	granted(t, s, request)
	first.WaitReplicated(t, second)
	cutOff(t, first, second)
	lost := charge(t, s, request)
	run := first.Info(t, "server", "run_id")

	second.Do(t, "REPLICAOF", "NO", "ONE")
	other := warmed(t, Options{Address: second.Addr})
	granted(t, other, request)
	follow(t, first, second)
	first.Do(t, "REPLICAOF", "NO", "ONE")
	if first.Info(t, "server", "run_id") != run {
		t.Fatal("another run: this tests nothing")
	}
	isRefunded(t, s, lost, 3, 2)
	tagged(t, s, first)
	isRefunded(t, s, charge(t, s, request), 3, 2)
}

// TestRefundWithoutOrigin: nothing is known of where a charge is, before the
// first heartbeat or if the server does not tell. It is refunded. But a charge
// from a server that told is not refunded on one that does not.
func TestRefundWithoutOrigin(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do(t, "ACL", "SETUSER", "limiter", "on", ">hunter2", "resetkeys", "~drl:*", "resetchannels", "-@all",
		"+evalsha", "+eval", "+script|load", "+time", "+get", "+mget", "+set", "+del")
	s := warmed(t, Options{Address: server.Addr, Username: "limiter", Password: "hunter2"})
	eventually(t, "a heartbeat", func() bool {
		s.one.mu.Lock()
		defer s.one.mu.Unlock()
		return s.one.heard == 0
	})
	g := charge(t, s, one("client", 3))
	if g.Origin != 0 {
		t.Errorf("%+v: the server does not tell whose data it is in", g)
	}
	isRefunded(t, s, g, 3, 0)
	g = charge(t, s, one("client", 3))
	g.Origin = identityOf(t, server)
	isRefunded(t, s, g, 3, 1)

	told := warmed(t, Options{Address: server.Addr})
	tagged(t, told, server)
	g.Origin = 0
	isRefunded(t, told, g, 3, 0)
	g = charge(t, told, one("client", 3))
	if g.Origin != identityOf(t, server) {
		t.Errorf("%+v, want the origin %d", g, identityOf(t, server))
	}
	isRefunded(t, told, g, 3, 0)
}

// TestOrigins: calls are never tagged with an identity that was first heard after
// their connections were made.
func TestOrigins(t *testing.T) {
	const x, y, z = 1, 2, 3
	for _, test := range []struct {
		what string
		// What heartbeats bring, one after the other; hung if that hangs the
		// connections up, woken if the next one is to come at once; tag of calls
		// after it.
		beats []beatStep
	}{
		{"one server", []beatStep{{x, false, false, x}, {x, false, false, x}}},
		{"another one", []beatStep{{x, false, false, x}, {y, true, true, x}, {y, false, false, y}, {y, false, false, y}}},
		{"and back", []beatStep{{x, false, false, x}, {y, true, true, x}, {x, true, false, x}, {x, false, false, x}}},
		{"a third one", []beatStep{{x, false, false, x}, {y, true, true, x}, {z, true, false, x}, {z, false, false, z}, {x, true, true, z}}},
		{"one that tells nothing", []beatStep{{0, false, false, 0}, {0, false, false, 0}}},
		{"one that tells nothing, then another one", []beatStep{{0, false, false, 0}, {y, true, true, 0}, {y, false, false, y}}},
		{"nothing is told any more", []beatStep{{x, false, false, x}, {0, true, true, x}, {0, false, false, 0}}},
	} {
		t.Run(test.what, func(t *testing.T) {
			n := originNode()
			for i, b := range test.beats {
				over := n.use()
				before := over.origin.Load()
				n.found(over, b.heard)
				hung, woken := n.client != over, len(n.wake) > 0
				n.release(over)
				for len(n.wake) > 0 {
					<-n.wake
				}
				next := n.use()
				got := beatStep{b.heard, hung, woken, next.origin.Load()}
				if got != b {
					t.Errorf("beat %d: %+v, want %+v", i, got, b)
				}
				if hung && over.origin.Load() != before {
					t.Errorf("beat %d: calls on the old connections are tagged with another identity", i)
				}
			}
		})
	}
}

type beatStep struct {
	heard       int64
	hung, woken bool
	tag         int64
}

// originNode is a node without a keeper.
func originNode() *node {
	return bareNode(newEnvironment(Options{}.withDefaults()), "", "", nil)
}

// TestOriginsOfOldBeat: the reply to a heartbeat comes when the connections were
// hung up already.
func TestOriginsOfOldBeat(t *testing.T) {
	n := originNode()
	over := n.use()
	n.found(over, 1)
	n.hangUp(over)
	now := n.use()
	n.found(over, 2)
	if n.client != now || now.origin.Load() != 1 {
		t.Errorf("origin %d of the new connections, want 1 as before", now.origin.Load())
	}
	// They may have been made before the other server was there.
	n.found(now, 2)
	if next := n.use(); next == now || next.origin.Load() != 1 {
		t.Errorf("origin %d, or the connections are the same", next.origin.Load())
	} else if n.found(next, 2); next.origin.Load() != 2 {
		t.Errorf("origin %d, want 2", next.origin.Load())
	}
}

// TestOriginOfCall: it is what was known when the call was written.
func TestOriginOfCall(t *testing.T) {
	over := &client{}
	over.origin.Store(1)
	c := newCall(kindTake, brief, 1)
	newCommand([]*call{c}, over).Args()
	over.origin.Store(2)
	charged := strings.Repeat("\x01", takeReply)
	refused := "\x00" + strings.Repeat("\x00", takeReply-1)
	decisions := make([]store.Decision, 2)
	if err := c.read(charged+refused, decisions); err != nil || decisions[0].Origin != 1 || decisions[1].Origin != 0 {
		t.Errorf("%+v, %v; want the origins 1 and 0", decisions, err)
	}
}

// TestOriginsOfRefused: what one slot granted and another refused is refunded with
// its origin.
func TestOriginsOfRefused(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--cluster-enabled", "yes")
	allSlots(t, server)
	s := warmed(t, Options{Cluster: []string{server.Addr}})
	want := identityOf(t, server)
	free, full := one("a", plenty), one("b", 0)
	eventually(t, "calls are tagged", func() bool { return take(t, s, one("c", plenty))[0].Origin == want })
	monitor := server.Dial(t)
	if _, err := monitor.Do("MONITOR"); err != nil {
		t.Fatal(err)
	}
	refunds := make(chan string)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			reply, err := monitor.Receive()
			if err != nil {
				return
			}
			words := strings.Split(strings.TrimSuffix(fmt.Sprint(reply), `"`), `" "`)
			packed, err := strconv.Unquote(`"` + words[len(words)-1] + `"`)
			if err != nil || len(packed) != 3+2+itemSize || packed[0] != kindRefund {
				continue
			}
			select {
			case refunds <- packed:
			case <-done:
				return
			}
		}
	}()
	for range 30 {
		if decisions := take(t, s, free, full); decisions[0].Charged() || decisions[0].Origin != 0 {
			t.Errorf("%+v, want nothing charged", decisions)
		}
		select {
		case packed := <-refunds:
			var origin [7]byte
			if put(origin[:], want); !strings.HasSuffix(packed, string(origin[:])) {
				t.Errorf("refunded: %x; want the origin %d", packed, want)
			}
			return
		case <-time.After(time.Second):
			// A server that seems to be slow gets no refunds: the units stay spent.
		}
	}
	t.Error("nothing was refunded")
}

// What was reported is refunded in the data that it was reported to, and in no other.
func TestRefundOfReportsAfterFailover(t *testing.T) {
	t.Parallel()
	master, replica := pair(t)
	proxy := redistest.NewProxy(t, master.Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	tagged(t, s, master)
	look := one("client", 10)
	look.Units = 0
	look.Unreported = []store.Spent{{Age: time.Minute, Units: 4}}
	charge := take(t, s, look)[0].Reported
	charge.Stamp -= time.Minute.Microseconds()
	refund := store.Refund{Key: look.Key, Charge: charge, Units: 2}
	isRefunded(t, s, refund, 10, 2)

	master.WaitReplicated(t, replica)
	replica.Do(t, "REPLICAOF", "NO", "ONE")
	proxy.Redirect(replica.Addr)
	proxy.Cut()
	isRefunded(t, s, refund, 10, 2)
}
