package redis

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

const masters = 3

// TestCluster has one cluster for all, since it takes a while to start: three
// masters with a replica each, which does not stand in for its master until the
// last tests.
func TestCluster(t *testing.T) {
	t.Parallel()
	r := &clusterRig{Cluster: redistest.StartCluster(t, masters, 1), keys: newKeys(DefaultKeyPrefix, nil)}
	r.standIn(t, "yes")

	t.Run("conformance", func(t *testing.T) {
		shared := func(t *testing.T) store.Store { return open(t, r.options()) }
		storetest.Run(t, shared)
		t.Run("shared", func(t *testing.T) { storetest.RunShared(t, shared) })
		t.Run("steered", func(t *testing.T) {
			storetest.RunSteered(t, func(t *testing.T) store.Steered { return warmed(t, r.options()) })
		})
	})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *clusterRig)
	}{
		{"exact over shards", exactOverShards},
		{"refused calls cost nothing", refusedSubcalls},
		{"slots are moved", slotsMoved},
		{"slots in flight", clusterInflight},
		{"sent on and given up", sentOn},
		{"a node joins and leaves", nodeJoins},
		{"least rights", clusterRights},
		{"names of hosts", clusterNames},
		{"seeds", clusterSeeds},
		{"configured as one server", clusterAsServer},
		{"closed", clusterClosed},
		{"a shard is stopped", shardStopped},
		{"a subcall is pending", subcallPending},
		{"a subcall is pending when others are refused", pendingWhenRefused},
		{"failover", clusterFailover},
		{"failover to a replica that lags", clusterLags},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, r) })
	}
}

// clusterRig is a cluster under test.
type clusterRig struct {
	*redistest.Cluster
	keys    *keys
	clients int
}

func (r *clusterRig) options() Options {
	var o Options
	for _, node := range r.Nodes[:masters] {
		o.Cluster = append(o.Cluster, node.Addr)
	}
	return o
}

// client returns a new client, whose keys are at a master.
func (r *clusterRig) client(master int) string {
	for {
		r.clients++
		name := fmt.Sprint("client ", r.clients)
		if slot := int(r.keys.slot(name)); slot*masters/slots == master && slot != slots/masters && slot != 2*slots/masters {
			return name
		}
	}
}

// neighbour returns another client of the same slot.
func (r *clusterRig) neighbour(of string) string {
	slot := r.keys.slot(of)
	for {
		r.clients++
		if name := fmt.Sprint("client ", r.clients); r.keys.slot(name) == slot {
			return name
		}
	}
}

// standIn has no replica stand in for its master if no is "yes".
func (r *clusterRig) standIn(t *testing.T, no string) {
	t.Helper()
	for _, replica := range r.Nodes[masters : 2*masters] {
		replica.Do(t, "CONFIG", "SET", "cluster-slave-no-failover", no)
	}
}

// ledger counts what became of calls for several keys, by key.
type ledger struct {
	mu               sync.Mutex
	granted, unknown map[store.Key]int64
	refused, failed  int64
	kinds            map[string]int
}

func newLedger() *ledger {
	return &ledger{granted: map[store.Key]int64{}, unknown: map[store.Key]int64{}, kinds: map[string]int{}}
}

// take makes one call, and reports whether it was granted.
func (l *ledger) take(t testing.TB, s *Store, wait time.Duration, requests ...store.Request) bool {
	t.Helper()
	decisions := make([]store.Decision, len(requests))
	err := s.Take(time.Now(), wait, requests, decisions)
	l.mu.Lock()
	defer l.mu.Unlock()
	var e *store.Error
	switch {
	case errors.As(err, &e) && e.Unexecuted:
		l.failed++
		l.kinds[e.Error()]++
	case errors.As(err, &e):
		l.kinds[e.Error()]++
		for _, a := range requests {
			l.unknown[a.Key] += a.Units + a.Lease
		}
	case err != nil:
		t.Errorf("Take(%+v): %v", requests, err)
	case !store.Granted(requests, decisions):
		l.refused++
		for _, a := range decisions {
			if a.Charged() || a.Lease != 0 {
				t.Errorf("Take(%+v): %+v: a refused call was charged", requests, decisions)
			}
		}
	default:
		for i, a := range requests {
			if decisions[i].Charged() {
				l.granted[a.Key] += a.Units + decisions[i].Lease
			}
		}
		return true
	}
	return false
}

// check waits for the server's counts to be the ledger's: refunds may be on their
// way.
func (l *ledger) check(t testing.TB, s *Store, request store.Request) {
	t.Helper()
	granted, unknown := l.granted[request.Key], l.unknown[request.Key]
	got := int64(-1)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		request.Units, request.Lease, request.Shadow = 0, 0, false
		got = request.Limit - take(t, s, request)[0].Remaining
		if got >= granted && got <= granted+unknown {
			return
		}
	}
	t.Errorf("%+v: %d units used, %d granted, %d of unknown fate", request.Key, got, granted, unknown)
}

// zoned is a request in a zone of another name.
func zoned(zone string, a store.Request) store.Request {
	a.Key.Zone = zone
	return a
}

// under runs do in several goroutines until stop is called.
func under(n int, do func(i int)) (stop func()) {
	var over atomic.Bool
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			for !over.Load() {
				do(i)
			}
		})
	}
	return func() {
		over.Store(true)
		group.Wait()
	}
}

// exactOverShards: many clients, in three zones whose keys are on different
// servers, through several stores, until every limit is used up.
func exactOverShards(t *testing.T, r *clusterRig) {
	const limit, perAll = 20, 150
	var stores []*Store
	for range 4 {
		stores = append(stores, warmed(t, r.options()))
	}
	everybody := zoned("all", one(r.client(0), perAll))
	var requests []store.Request
	for i := range 12 {
		requests = append(requests, zoned("mine", one(r.client(i%masters), limit)))
	}
	l := newLedger()
	var group sync.WaitGroup
	for i := range 24 {
		group.Go(func() {
			for j := range 30 {
				a, b := requests[(i+j)%len(requests)], requests[(i+2*j+1)%len(requests)]
				if a.Key == b.Key {
					continue
				}
				b.Lease = int64(j % 3)
				b.LeaseSpan = time.Millisecond
				l.take(t, stores[i%len(stores)], patience, a, b, everybody)
			}
		})
	}
	group.Wait()
	for _, a := range append(requests, everybody) {
		l.check(t, stores[0], a)
	}
	// Leases are charged like other units: the whole limit can be used up.
	for _, a := range append(requests, everybody) {
		for l.take(t, stores[1], patience, a) {
		}
		if got := l.granted[a.Key]; got != a.Limit {
			t.Errorf("%+v: %d units granted of %d", a.Key, got, a.Limit)
		}
		l.check(t, stores[2], a)
	}
	if l.failed > 0 || len(l.unknown) > 0 {
		t.Errorf("errors: %v", l.kinds)
	}
}

// refusedSubcalls: what one zone refuses costs nothing in the others, on whichever
// servers these are.
func refusedSubcalls(t *testing.T, r *clusterRig) {
	s := warmed(t, r.options())
	const limit = 10
	a, b, full := one(r.client(0), limit), one(r.client(1), limit), one(r.client(2), 0)
	a.Units, b.Units, b.Lease = limit, 1, limit
	l := newLedger()
	for range 20 {
		// With all of a's limit: it is granted again only if it was refunded.
		eventually(t, "a refused call is refunded", func() bool {
			decisions := take(t, s, a, b, full)
			return decisions[0].Granted && decisions[1].Granted && decisions[1].Lease == 0 && !decisions[2].Granted
		})
		l.take(t, s, patience, b, full)
	}
	l.check(t, s, a)
	l.check(t, s, b)
	decisions := take(t, s, a, full)
	if want := (store.Decision{Granted: true, Remaining: limit, Reset: decisions[0].Reset}); decisions[0] != want {
		t.Errorf("the decision of a zone that would have granted: %+v, want %+v", decisions[0], want)
	}

	// A shadow request refuses nothing, and is charged with the others only.
	shadow, room := full, one(r.client(1), limit)
	shadow.Shadow, room.Shadow = true, true
	l = newLedger()
	eventually(t, "a is free again", func() bool { return l.take(t, s, patience, a, shadow, room) })
	l.check(t, s, a)
	l.check(t, s, room)
	for range 5 {
		l.take(t, s, patience, room, full)
	}
	l.check(t, s, room)
	if got := l.granted[room.Key]; got != 1 {
		t.Errorf("%d units of a shadow request were granted, want 1", got)
	}
}

// strays are calls whose charges were refunded, and times at which keys moved to
// another server: what was charged before a move and refunded after it stays
// charged, for it is in the data of another server by then.
type strays struct {
	mu           sync.Mutex
	calls, moved []stray
}

type stray struct {
	from, to time.Time
	requests []store.Request
}

// note notes a call from its beginning to when its refunds have certainly
// arrived.
func (s *strays) note(began time.Time, requests []store.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, stray{from: began, to: time.Now().Add(time.Second / 4), requests: requests})
}

func (s *strays) moves(move func()) {
	began := time.Now()
	move()
	s.moved = append(s.moved, stray{from: began, to: time.Now()})
}

// lost adds to a ledger what may not have been refunded.
func (s *strays) lost(l *ledger) {
	for _, c := range s.calls {
		if slices.ContainsFunc(s.moved, func(m stray) bool { return c.from.Before(m.to) && m.from.Before(c.to) }) {
			for _, a := range c.requests {
				l.unknown[a.Key] += a.Units
			}
		}
	}
}

// slotsMoved moves a slot to and fro under load, half of its keys at first, so
// that calls are sent on, and calls for several keys taken apart.
func slotsMoved(t *testing.T, r *clusterRig) {
	s := warmed(t, r.options())
	first := r.client(0)
	slot := int(r.keys.slot(first))
	a := one(first, plenty)
	requests := []store.Request{a, zoned("other", a), zoned("third", a), one(r.neighbour(first), plenty)}
	calls := [][]store.Request{
		requests[:1], requests[:3], {requests[0], requests[3]}, requests, {requests[2], one(r.client(1), plenty), requests[3]},
		{requests[1], requests[2], one(r.client(1), 0)}, // refused, and refunded
	}
	redirected := func(nodes ...*redistest.Server) (asking, split int) {
		for _, node := range nodes {
			asking += node.Calls(t, "asking")
			if strings.Contains(node.Info(t, "errorstats", "errorstat_TRYAGAIN"), "count=") {
				split++
			}
		}
		return asking, split
	}
	l := newLedger()
	var n atomic.Int64
	var refunded strays
	stop := under(8, func(int) {
		call := calls[int(n.Add(1))%len(calls)]
		began := time.Now()
		granted := l.take(t, s, patience, call...)
		if !granted {
			refunded.note(began, call) // its refunds
		}
		if granted && n.Load()%7 == 0 {
			// And some units are refunded.
			decisions := make([]store.Decision, 2)
			began := time.Now()
			if err := s.Take(time.Now(), patience, requests[1:3], decisions); err != nil {
				return
			}
			defer func() { refunded.note(began, requests[1:3]) }()
			var refunds []store.Refund
			for i, a := range requests[1:3] {
				refunds = append(refunds, store.Refund{Key: a.Key, Charge: decisions[i].Charge, Units: 1})
			}
			if err := s.Refund(patience, refunds); err != nil {
				t.Errorf("Refund: %v", err)
			}
		}
	})
	defer stop()
	from, to := r.Nodes[0], r.Nodes[1]
	for range 4 {
		r.StartMigration(t, slot, from, to)
		time.Sleep(50 * time.Millisecond)
		refunded.moves(func() { r.MoveKeys(t, slot, 2) })
		time.Sleep(100 * time.Millisecond)
		refunded.moves(func() { r.FinishMigration(t, slot) })
		eventually(t, "it is known who has the slot", func() bool { return s.cluster.table.Load()[slot].name == to.Addr })
		from, to = to, from
	}
	stop()
	unknown := len(l.unknown)
	refunded.lost(l)
	for _, a := range requests {
		l.check(t, s, a)
	}
	asking, split := redirected(from, to)
	t.Logf("%d calls; %d were sent on for a key; errors: %v", n.Load(), asking, l.kinds)
	if asking == 0 || split == 0 && from.Info(t, "errorstats", "errorstat_MOVED") != "" {
		t.Errorf("%d calls were sent on, split %v; this tests nothing", asking, split > 0)
	}
	if l.failed > 0 || unknown > 0 {
		t.Errorf("errors: %v", l.kinds)
	}
}

// nodeJoins: calls are sent on to a server that has just joined and has no slot
// yet. When its last slot has left, it is removed.
func nodeJoins(t *testing.T, r *clusterRig) {
	s := warmed(t, r.options())
	a := one(r.client(0), plenty)
	slot := int(r.keys.slot(a.Key.Client))
	granted(t, s, a)
	fresh := r.Join(t)
	defer func() {
		fresh.Kill()
		r.Nodes = r.Nodes[:2*masters]
	}()

	l := newLedger()
	l.granted[a.Key] = 1
	stop := under(4, func(int) { l.take(t, s, patience, a) })
	defer stop()
	r.StartMigration(t, slot, r.Nodes[0], fresh)
	r.MoveKeys(t, slot, 1)
	eventually(t, "the server that joins decides", func() bool { return fresh.Calls(t, "asking") > 10 })
	s.cluster.refresh() // does not make it forgotten
	r.FinishMigration(t, slot)
	owner := func(s *Store) string {
		if table := s.cluster.table.Load(); table != nil {
			return table[slot].name
		}
		return ""
	}
	eventually(t, "it is known to have the slot", func() bool { return owner(s) == fresh.Addr })
	late := warmed(t, r.options())
	eventually(t, "a store that is opened now finds it", func() bool { return l.take(t, late, patience, a) && owner(late) == fresh.Addr })

	r.Migrate(t, slot, fresh, r.Nodes[0])
	eventually(t, "the slot is known to be back", func() bool { return l.take(t, late, patience, a) && owner(late) == r.Nodes[0].Addr })
	stop()
	l.check(t, s, a)
	if l.failed > 0 || len(l.unknown) > 0 {
		t.Errorf("errors: %v", l.kinds)
	}
	members := func(s *Store) int {
		s.cluster.mu.Lock()
		defer s.cluster.mu.Unlock()
		return len(s.cluster.nodes)
	}
	if got := members(late); got != masters {
		t.Errorf("%d servers are known, want %d", got, masters)
	}
	// Some calls of this one were sent on to it not long ago.
	if got := members(s); got != masters+1 {
		t.Errorf("%d servers are known, want %d", got, masters+1)
	}
	s.cluster.mu.Lock()
	s.cluster.nodes[fresh.Addr].named = time.Now().Add(-guestTime)
	s.cluster.mu.Unlock()
	s.moved()
	eventually(t, "the server is removed", func() bool { return members(s) == masters && fresh.Clients(t) == 0 })
	reports := map[string]bool{}
	s.Watch(func(r store.Report) { reports[r.Server] = true })()
	if reports[fresh.Addr] || len(reports) != masters {
		t.Errorf("reports on %v", reports)
	}
}

// sentOn: a call that waits at the server to which it was sent on is given up
// there, and delays no other.
func sentOn(t *testing.T, r *clusterRig) {
	const wait = 100 * time.Millisecond
	o := r.options()
	o.PoolSize, o.Timeout = 1, 20*time.Second
	s := warmed(t, o)
	busy, a := one(r.client(1), 10), one(r.client(0), 10)
	granted(t, s, busy)
	granted(t, s, one(r.neighbour(a.Key.Client), 10))
	slot := int(r.keys.slot(a.Key.Client))
	r.StartMigration(t, slot, r.Nodes[0], r.Nodes[1])
	r.Nodes[1].Stop()
	failedBy(t, s, busy, wait) // is under way
	e := failedBy(t, s, a, wait)
	r.Nodes[1].Cont()
	if e.Kind != store.KindTimeout || !e.Unexecuted {
		t.Errorf("%v, unexecuted %v", e, e.Unexecuted)
	}
	granted(t, s, busy)
	eventually(t, "nothing is waiting", func() bool {
		sizes := 0
		for _, node := range r.Nodes[:2] {
			n := s.cluster.at(node.Addr)
			n.mu.Lock()
			if n.queue.size != 0 || n.queue.first != nil || n.queue.last != nil {
				sizes++
			}
			n.mu.Unlock()
		}
		return sizes == 0
	})
	if got := used(t, s, a.Key.Client, 10); got != 0 {
		t.Errorf("%d units used by a call that was not executed", got)
	}
	r.FinishMigration(t, slot)
	r.Migrate(t, slot, r.Nodes[1], r.Nodes[0])
	r.WaitStable(t)
}

// clusterRights is the rights that a user needs on a cluster, and no more. The
// manual says the same.
func clusterRights(t *testing.T, r *clusterRig) {
	rights := []any{"~drl:*", "-@all", "+evalsha", "+eval", "+script|load", "+time", "+get", "+mget", "+set", "+del", "+info", "+cluster|slots", "+asking"}
	everywhere := func(args ...any) {
		for _, node := range r.Nodes {
			node.Do(t, args...)
		}
	}
	o := r.options()
	o.Username, o.Password = "limiter", "hunter2"
	everywhere(append([]any{"ACL", "SETUSER", "limiter", "on", ">hunter2", "resetkeys"}, rights...)...)
	defer everywhere("ACL", "DELUSER", "limiter")
	s := warmed(t, o)
	a := one(r.client(0), plenty)
	slot := int(r.keys.slot(a.Key.Client))
	granted(t, s, a)
	eventually(t, "every server is up", func() bool {
		up := 0
		s.Watch(func(r store.Report) {
			if r.Condition == store.Up {
				up++
			}
		})()
		return up == masters
	})
	r.StartMigration(t, slot, r.Nodes[0], r.Nodes[1])
	r.MoveKeys(t, slot, 1)
	granted(t, s, a)
	if err := s.Amend(patience, a.Key, store.Amendment{Ban: time.Minute, Unban: true}); err != nil {
		t.Errorf("Amend while the slot moves: %v", err)
	}
	postedBy(t, s, "notice", time.Minute)
	if err := s.Amend(patience, a.Key, store.Amendment{Unban: true}); err != nil {
		t.Errorf("Amend while the slot moves: %v", err)
	}
	granted(t, s, a)
	everywhere("ACL", "SETUSER", "limiter", "-asking")
	e := errorOf(t, s, a)
	r.FinishMigration(t, slot)
	r.Migrate(t, slot, r.Nodes[1], r.Nodes[0])
	if e.Kind != store.KindReply || !e.Unexecuted || !strings.Contains(e.Error(), "+asking") {
		t.Errorf("without +asking: %v, unexecuted %v", e, e.Unexecuted)
	}

	everywhere("ACL", "SETUSER", "limiter", "-cluster|slots")
	s = open(t, o)
	if e := errorOf(t, s, a); !e.Unexecuted || !strings.Contains(e.Error(), "+cluster|slots") {
		t.Errorf("without +cluster|slots: %v, unexecuted %v", e, e.Unexecuted)
	}
}

// errorOf wants a call to fail.
func errorOf(t testing.TB, s *Store, requests ...store.Request) *store.Error {
	t.Helper()
	e, _ := failureOf(t, s, requests...)
	return e
}

// failureOf is the error of a call, with the decisions that there are.
func failureOf(t testing.TB, s *Store, requests ...store.Request) (*store.Error, []store.Decision) {
	t.Helper()
	decisions := make([]store.Decision, len(requests))
	err := s.Take(time.Now(), patience, requests, decisions)
	e, ok := errors.AsType[*store.Error](err)
	if !ok {
		t.Fatalf("Take(%+v): %v; want a store.Error", requests, err)
	}
	return e, decisions
}

// clusterNames: servers that go by their hosts' names, and servers that do not say
// on which host they are.
func clusterNames(t *testing.T, r *clusterRig) {
	if len(r.Nodes[0].Do(t, "CONFIG", "GET", "cluster-announce-hostname").([]any)) == 0 {
		return // servers before 7.0 have no names
	}
	announce := func(name, prefers string) {
		for _, node := range r.Nodes {
			node.Do(t, "CONFIG", "SET", "cluster-announce-hostname", name)
			node.Do(t, "CONFIG", "SET", "cluster-preferred-endpoint-type", prefers)
		}
	}
	defer announce("", "ip")
	for _, test := range []struct{ name, prefers, host string }{
		{"localhost", "hostname", "localhost"},
		{"", "hostname", "127.0.0.1"},         // there is no name
		{"", "unknown-endpoint", "localhost"}, // the seed's
	} {
		announce(test.name, test.prefers)
		o := r.options()
		for i := range o.Cluster {
			o.Cluster[i] = strings.Replace(o.Cluster[i], "127.0.0.1", "localhost", 1)
		}
		a := one(r.client(0), plenty)
		slot := int(r.keys.slot(a.Key.Client))
		var s *Store
		// They tell each other their names by and by.
		eventually(t, fmt.Sprintf("servers that announce %+v", test), func() bool {
			s = open(t, o)
			granted(t, s, a)
			for _, n := range s.cluster.table.Load() {
				if n == nil || !strings.HasPrefix(n.name, test.host+":") {
					s.Close()
					return false
				}
			}
			return true
		})
		l := newLedger()
		l.granted[a.Key] = used(t, s, a.Key.Client, plenty)
		r.StartMigration(t, slot, r.Nodes[0], r.Nodes[1])
		r.MoveKeys(t, slot, 1)
		l.take(t, s, patience, a) // ASK
		r.FinishMigration(t, slot)
		l.take(t, s, patience, a) // MOVED
		r.Migrate(t, slot, r.Nodes[1], r.Nodes[0])
		// A redirection to a host that has no name says "?". Then the slots
		// are asked for, and tell where it is.
		if test.name == "" && test.prefers == "hostname" {
			eventually(t, "the slot is known to be back", func() bool { return l.take(t, s, patience, a) })
		} else if l.failed > 0 || len(l.unknown) > 0 {
			t.Errorf("%+v: errors: %v", test, l.kinds)
		}
		l.check(t, s, a)
	}
}

// clusterSeeds: one server that answers is enough to find the others. If there
// is none, calls fail without waiting for one.
func clusterSeeds(t *testing.T, r *clusterRig) {
	dead := redistest.Start(t)
	dead.Kill()
	stopped := redistest.Start(t, "--cluster-enabled", "yes")
	stopped.Stop()
	alone := redistest.Start(t, "--cluster-enabled", "yes")
	proxy := redistest.NewProxy(t, r.Nodes[2].Addr)
	proxy.Refuse(true)
	plain := redistest.Start(t)

	o := Options{Cluster: []string{dead.Addr, stopped.Addr, alone.Addr, plain.Addr, proxy.Addr}}
	s := open(t, o)
	reports := make(chan store.Report, 1000)
	defer s.Watch(func(r store.Report) { reports <- r })()
	e := errorOf(t, s, one("client", 1))
	for _, want := range []string{"refused", "timeout", "no slots", "single server", alone.Addr + ":"} {
		if !strings.Contains(e.Error(), want) {
			t.Errorf("%v: does not say %q", e, want)
		}
	}
	if e.Kind != store.KindAway || !e.Unexecuted || strings.Contains(e.Error(), "\n") {
		t.Errorf("no server answers: %v, unexecuted %v", e, e.Unexecuted)
	}
	start := time.Now()
	for range 100 {
		failed(t, s, patience)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("100 calls to a cluster that is away took %v", took)
	}
	if got := <-reports; got.Server != s.String() || got.Condition != store.Away || got.Err == nil {
		t.Errorf("the report is %+v", got)
	}
	proxy.Refuse(false)
	eventually(t, "a server answers", func() bool { return s.cluster.table.Load() != nil })
	granted(t, s, one(r.client(0), 10))
	names := map[string]bool{}
	s.Watch(func(r store.Report) { names[r.Server] = true })()
	if names[s.String()] {
		t.Errorf("reports on %v, when its servers are known", names)
	}
}

// clusterAsServer: if a server of a cluster is configured as if there were no
// other, the error names the remedy.
func clusterAsServer(t *testing.T, r *clusterRig) {
	for _, node := range []*redistest.Server{r.Nodes[0], r.Nodes[1], r.Nodes[2], r.Nodes[masters]} {
		s := open(t, Options{Address: node.Addr})
		var others []store.Request
		for i := range masters {
			if r.Nodes[i] != node {
				others = append(others, one(r.client(i), 10))
			}
		}
		for _, a := range others {
			e := errorOf(t, s, a)
			if !e.Unexecuted || !strings.Contains(e.Error(), "configure it as a cluster") {
				t.Errorf("%v, unexecuted %v", e, e.Unexecuted)
			}
		}
		if r.Owner(t, int(slotOf(listKey(DefaultKeyPrefix, "")))) != node {
			eventually(t, "it is reported that the server is of a cluster", func() (told bool) {
				s.Watch(func(r store.Report) {
					told = r.Condition == store.Away && strings.Contains(r.Err.Error(), "configure it as a cluster")
				})()
				return told
			})
		}
		s.Close()
	}
}

// clusterClosed closes stores at every stage of their lives: nothing remains.
func clusterClosed(t *testing.T, r *clusterRig) {
	// Only these go through the proxies, until they learn the addresses.
	settle := func(what string, before int) {
		t.Helper()
		eventually(t, what+": nothing remains", func() bool {
			for _, node := range r.Nodes[:masters] {
				if node.Clients(t) > 0 {
					return false
				}
			}
			return runtime.NumGoroutine() <= before
		})
	}
	eventually(t, "the stores of other tests are closed", func() bool {
		for _, node := range r.Nodes[:masters] {
			if node.Clients(t) > 0 {
				return false
			}
		}
		return true
	})
	before := runtime.NumGoroutine()
	open(t, r.options()).Close()
	settle("at once", before)

	s := warmed(t, r.options())
	a, b := one(r.client(0), 10), one(r.client(1), 10)
	take(t, s, a, b)
	s.Close()
	take(t, s, a, b)
	settle("used after it was closed", before)
	if got := used(t, s, a.Key.Client, 10); got != 2 {
		t.Errorf("%d units used, want 2", got)
	}
	settle("looked at after it was closed", before)

	s = warmed(t, r.options())
	l := newLedger()
	stop := under(8, func(int) { l.take(t, s, patience, zoned("closed", a), zoned("closed", b)) })
	defer stop()
	time.Sleep(20 * time.Millisecond)
	s.Close()
	time.Sleep(20 * time.Millisecond)
	stop()
	settle("in use", before)
	if l.failed > 0 || len(l.unknown) > 0 {
		t.Errorf("errors: %v", l.kinds)
	}

	r.Nodes[0].Stop()
	defer r.Nodes[0].Cont()
	s = open(t, r.options())
	time.Sleep(10 * time.Millisecond)
	s.Close()
	s = warmed(t, r.options())
	failedBy(t, s, one(r.client(0), 10), 50*time.Millisecond)
	s.Close()
	eventually(t, "a server is stopped: goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	r.Nodes[0].Cont()
	settle("a server was stopped", before)
	r.WaitStable(t)
}

// failedBy wants a call to fail within a while.
func failedBy(t testing.TB, s *Store, a store.Request, wait time.Duration) *store.Error {
	t.Helper()
	err := s.Take(time.Now(), wait, []store.Request{a}, make([]store.Decision, 1))
	var e *store.Error
	if !errors.As(err, &e) {
		t.Fatalf("Take(%+v): %v; want a store.Error", a, err)
	}
	return e
}

// shardStopped: a server that says nothing does not concern the others. Its own
// calls soon fail without waiting for it.
func shardStopped(t *testing.T, r *clusterRig) {
	const wait = 200 * time.Millisecond
	s := warmed(t, r.options())
	here, there, gone := one(r.client(0), plenty), one(r.client(1), plenty), one(r.client(2), plenty)
	for _, a := range []store.Request{here, there, gone} {
		granted(t, s, a)
	}
	// measure returns how long calls take, in order.
	measure := func(n int, requests ...store.Request) []time.Duration {
		took := make([]time.Duration, n)
		decisions := make([]store.Decision, len(requests))
		for i := range took {
			start := time.Now()
			if err := s.Take(time.Now(), wait, requests, decisions); err != nil {
				t.Errorf("Take(%+v): %v", requests, err)
			}
			took[i] = time.Since(start)
		}
		slices.Sort(took)
		return took
	}
	const n = 1000
	before := measure(n, here, there)
	r.Nodes[2].Stop()
	defer r.Nodes[2].Cont()
	stop := under(4, func(int) {
		failedBy(t, s, gone, wait)
		time.Sleep(time.Millisecond)
	})
	defer stop()
	after := measure(n, here, there)
	stop()
	t.Logf("calls of the other servers took %v, 99 %% of them at most %v; then %v and %v", before[n/2], before[n*99/100], after[n/2], after[n*99/100])
	if after[n/2] > 4*before[n/2]+time.Millisecond {
		t.Errorf("calls of the other servers take %v, and took %v", after[n/2], before[n/2])
	}
	eventually(t, "the server counts as away", func() bool { return failedBy(t, s, gone, wait).Kind == store.KindAway })
	start := time.Now()
	calls := r.Nodes[0].Calls(t, "evalsha")
	for range 100 {
		if e := failedBy(t, s, gone, wait); e.Kind != store.KindAway || !e.Unexecuted {
			t.Errorf("%v, unexecuted %v", e, e.Unexecuted)
		}
	}
	if got := r.Nodes[0].Calls(t, "evalsha") - calls; got != 0 {
		t.Errorf("%d calls to another server", got)
	}
	subcallsKnown(t, r, s, gone)
	if took := time.Since(start); took > 200*wait/4 {
		t.Errorf("200 calls of a server that is known to be away took %v", took)
	}
	r.Nodes[2].Cont()
	start = time.Now()
	granted(t, s, gone)
	t.Logf("it was back after %v", time.Since(start))
	r.WaitStable(t)
}

// subcallsKnown: of a call over two servers, one of which is away, the other one's
// decision counts. Each instance once granted limits that it knew to be used up by
// its own share.
func subcallsKnown(t *testing.T, r *clusterRig, s *Store, gone store.Request) {
	used := one(r.client(0), 1)
	granted(t, s, used)
	for range 10 {
		decisions := make([]store.Decision, 2)
		if err := s.Take(time.Now(), time.Second, []store.Request{used, gone}, decisions); err != nil || decisions[0].Granted || !decisions[1].Skipped {
			t.Errorf("a limit that is used up, beside one of a server that is away: %+v, %v; want a refusal", decisions, err)
		}
	}
	free := one(r.client(0), 1)
	e, known := failureOf(t, s, free, gone)
	if e.Kind != store.KindAway || e.Unexecuted || !known[0].Granted || !known[0].Charged() || !known[1].Skipped {
		t.Fatalf("a limit that is free, beside one of a server that is away: %+v, %+v", e, known)
	}
	if !slices.Equal(e.Fates, []store.Fate{store.FateDecided, store.FateUnexecuted}) {
		t.Errorf("fates: %v", e.Fates)
	}
	// It is charged, once, until the caller refunds it.
	decisions := make([]store.Decision, 1)
	if err := s.Take(time.Now(), time.Second, []store.Request{free}, decisions); err != nil || decisions[0].Granted {
		t.Errorf("after a charge that stands: %+v, %v; want a refusal", decisions, err)
	}
	charged := make(chan store.Decision, 1)
	e.Pending.Then(func(decisions []store.Decision) { charged <- decisions[0] })
	a := <-charged
	if err := s.Refund(time.Second, []store.Refund{{Key: free.Key, Charge: a.Charge, Units: 1}}); err != nil {
		t.Fatal(err)
	}
	granted(t, s, free)
}

// subcallPending: a subcall is given up, so that its fate is unknown. What the others
// granted stands, and is delivered when the rest is known.
func subcallPending(t *testing.T, r *clusterRig) {
	s := warmed(t, r.options())
	for _, lost := range []bool{false, true} {
		here, there := one(r.client(0), 10), one(r.client(1), 10)
		granted(t, s, one(r.client(1), 10))
		r.Nodes[1].Stop()
		requests := []store.Request{here, there}
		err := s.Take(time.Now(), 50*time.Millisecond, requests, make([]store.Decision, 2))
		if lost {
			// Its connection ends first.
			time.Sleep(DefaultTimeout + 200*time.Millisecond)
		}
		r.Nodes[1].Cont()
		var e *store.Error
		if !errors.As(err, &e) || e.Kind != store.KindTimeout || e.Unexecuted || e.Pending == nil {
			t.Fatalf("Take: %+v; want a timeout that is pending", err)
		}
		late := make(chan []store.Decision, 1)
		e.Pending.Then(func(decisions []store.Decision) { late <- decisions })
		decisions := <-late
		if !decisions[0].Charged() || decisions[1].Charged() == lost || decisions[1].Skipped != lost {
			t.Errorf("pending decisions, lost %v: %+v", lost, decisions)
		}
		if got := used(t, s, here.Key.Client, 10); got != 1 {
			t.Errorf("%d units used before they are refunded", got)
		}
		var refunds []store.Refund
		for i, a := range requests {
			if decisions[i].Charged() {
				refunds = append(refunds, store.Refund{Key: a.Key, Charge: decisions[i].Charge, Units: 1})
			}
		}
		if err := s.Refund(patience, refunds); err != nil {
			t.Errorf("Refund: %v", err)
		}
		if got := used(t, s, here.Key.Client, 10); got != 0 {
			t.Errorf("%d units used after they were refunded", got)
		}
		r.WaitStable(t)
	}

	// A subcall that has certainly not been executed: what the others granted
	// stands, and is the caller's.
	s = warmed(t, r.options())
	here, there := one(r.client(0), 10), one(r.client(1), 10)
	granted(t, s, there)
	r.Nodes[1].Do(t, "CONFIG", "SET", "maxmemory-policy", "noeviction")
	r.Nodes[1].Do(t, "CONFIG", "SET", "maxmemory", "1")
	e, known := failureOf(t, s, here, there)
	r.Nodes[1].Do(t, "CONFIG", "SET", "maxmemory", "0")
	if e.Kind != store.KindReply || e.Unexecuted || e.Pending == nil || !known[0].Charged() || !known[1].Skipped ||
		!slices.Equal(e.Fates, []store.Fate{store.FateDecided, store.FateUnexecuted}) {
		t.Errorf("%+v, %+v, want an error reply, and what the other server granted", e, known)
	}
	if got := used(t, s, here.Key.Client, 10); got != 1 {
		t.Errorf("%d units of the other server are used, want 1", got)
	}
}

// pendingWhenRefused: one shard refuses, and what another one was late to grant is
// refunded, although the caller has put its requests to other use by then, as
// handlers do.
func pendingWhenRefused(t *testing.T, r *clusterRig) {
	s := warmed(t, r.options())
	full, free := one(r.client(0), 1), one(r.client(1), 10)
	granted(t, s, full)
	granted(t, s, one(r.client(1), 10))
	r.Nodes[1].Stop()
	requests, decisions := []store.Request{full, free}, make([]store.Decision, 2)
	err := s.Take(time.Now(), 50*time.Millisecond, requests, decisions)
	clear(requests)
	r.Nodes[1].Cont()
	if err != nil || decisions[0].Granted || !decisions[1].Skipped {
		t.Fatalf("one shard refuses, the other is late: %+v, %v; want a refusal", decisions, err)
	}
	// It was under way when it was given up: it is executed, and then refunded.
	eventually(t, "the unit of the shard that was late is refunded", func() bool {
		return used(t, s, free.Key.Client, 10) == 0 && r.Nodes[1].Calls(t, "evalsha") > 0
	})
	time.Sleep(200 * time.Millisecond) // no longer than a late reply takes
	if got := used(t, s, free.Key.Client, 10); got != 0 {
		t.Errorf("a refused request was charged %d units that are not refunded", got)
	}
	r.WaitStable(t)
}

// clusterFailover kills a master under load.
func clusterFailover(t *testing.T, r *clusterRig) {
	r.standIn(t, "no")
	s := warmed(t, r.options())
	a, b := one(r.client(0), plenty), one(r.client(1), plenty)
	slot := int(r.keys.slot(a.Key.Client))
	granted(t, s, a)
	var c, other tally
	c.granted.Add(1)
	var latest atomic.Int64
	stop := under(4, func(int) {
		if c.take(t, s, a.Key.Client, 100*time.Millisecond) == nil {
			latest.Store(time.Now().UnixNano())
		}
		if other.take(t, s, b.Key.Client, patience) != nil {
			t.Error("a call of another server failed")
		}
	})
	defer stop()
	time.Sleep(200 * time.Millisecond)
	old := r.Nodes[0]
	old.Kill()
	killed := time.Now()
	r.WaitFailover(t, slot, old)
	failover := time.Now()
	eventually(t, "calls are granted again", func() bool { return latest.Load() > failover.UnixNano() })
	t.Logf("failover after %v, calls granted %v after that", failover.Sub(killed), time.Since(failover))
	if took := time.Since(failover); took > 20*time.Second {
		t.Errorf("calls are granted only %v after the failover", took)
	}
	time.Sleep(200 * time.Millisecond)
	stop()
	other.check(t, s, b.Key.Client)
	got, granted, unknown := used(t, s, a.Key.Client, plenty), c.granted.Load(), c.unknown.Load()
	t.Logf("%d granted, %d unknown, %d unexecuted; %d units used", granted, unknown, c.unexecuted.Load(), got)
	// What the replica had not got yet is lost: at most what was under way.
	if got > granted+unknown || got < granted-4*maxBatch {
		t.Errorf("%d units used by %d grants and %d unknown calls", got, granted, unknown)
	}
	s.cluster.mu.Lock()
	if s.cluster.nodes[old.Addr] != nil || len(s.cluster.nodes) != masters {
		t.Errorf("%d servers are known, the old one among them: %v", len(s.cluster.nodes), s.cluster.nodes[old.Addr] != nil)
	}
	s.cluster.mu.Unlock()
	old.Restart(t)
	r.WaitStable(t)
	c.take(t, s, a.Key.Client, patience)
	if now := used(t, s, a.Key.Client, plenty); now != got+1 {
		t.Errorf("%d units used after the old server has come back and one was granted, and %d before", now, got)
	}
}

// clusterLags has a replica without its master's latest writes stand in for it,
// which is reported.
func clusterLags(t *testing.T, r *clusterRig) {
	s := warmed(t, r.options())
	var mu sync.Mutex
	var lost []string
	defer s.Watch(func(r store.Report) {
		mu.Lock()
		defer mu.Unlock()
		if r.Lost != "" {
			lost = append(lost, r.Server+": "+r.Lost)
		}
	})()
	master, replica := r.Nodes[1], r.Nodes[masters+1]
	a := one(r.client(1), 10)
	granted(t, s, a)
	master.WaitReplicated(t, replica)
	cutOff(t, master, replica)
	granted(t, s, a)
	time.Sleep(2 * beatEvery)
	master.Kill()
	r.WaitFailover(t, int(r.keys.slot(a.Key.Client)), master)
	eventually(t, "it is reported that writes are lost", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(lost) > 0
	})
	t.Logf("lost: %q", lost)
	if got := used(t, s, a.Key.Client, 10); got != 1 {
		t.Errorf("%d units used, want the one that was not lost", got)
	}
}

// cutOff ends the connection of a replica to its master. With a password that the
// master does not want, it stays ended.
func cutOff(t *testing.T, master, replica *redistest.Server) {
	t.Helper()
	replica.Do(t, "CONFIG", "SET", "masterauth", "nobody-asked")
	master.Do(t, "CLIENT", "KILL", "TYPE", "replica")
	eventually(t, "the replica is cut off", func() bool { return replica.Info(t, "replication", "master_link_status") == "down" })
}
