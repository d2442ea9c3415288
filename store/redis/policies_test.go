package redis

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
)

// countsFailed is an observer that counts failed calls.
type countsFailed struct {
	silent
	failed *atomic.Int64
}

func (f countsFailed) Called(_ time.Duration, err error) {
	if err != nil {
		f.failed.Add(1)
	}
}

// machine is what one Caddy has of a store.
type machine struct {
	proxy  *redistest.Proxy
	redis  *Store
	leases *lease.Store
	*fallback.Guard
	killed atomic.Bool
}

// policies is many clients of some machines that share a server, and what their
// ledgers say.
type policies struct {
	*testing.T
	server   *redistest.Server
	machines [3]atomic.Pointer[machine]
	proxies  []*redistest.Proxy
	failed   atomic.Int64 // calls of machines that are not killed
	plan     atomic.Int64 // an index of plans
	leased   atomic.Int64
	done     chan struct{}
	ledgers  map[string]*journal
}

// The keys of the clients: a limit with a ban of which units are given back, one of
// a plan that changes, and two in which everything fits and nothing expires: one
// decided by the store alone, the other one with leases.
var policyKeys = []store.Request{
	{Key: store.Key{Zone: "logins", Client: "client", Window: 2 * time.Second}, Limit: 40, Exact: true},
	{Key: store.Key{Zone: "bans", Client: "client", Window: time.Second}, Limit: 30, Exact: true, Block: 1500 * time.Millisecond},
	{Key: store.Key{Zone: "plans", Client: "client", Window: 2 * time.Second}},
	{Key: store.Key{Zone: "bank", Client: "client", Window: time.Hour}, Limit: plenty, Exact: true},
	{Key: store.Key{Zone: "leases", Client: "client", Window: time.Hour}, Limit: plenty},
}

const (
	loginsKey = iota
	bansKey
	plansKey
	bankKey
	leasesKey
)

// plans are the limits of a plan, and callKeys which keys a call is about.
var (
	plans    = []int64{200, 450, 900}
	callKeys = [][]int{{loginsKey, bankKey}, {bankKey, loginsKey, bansKey}, {plansKey}, {plansKey}, {plansKey, leasesKey}, {leasesKey}, {bankKey, plansKey}}
)

func newPolicies(t *testing.T, server *redistest.Server) *policies {
	p := &policies{T: t, server: server, done: make(chan struct{}), ledgers: make(map[string]*journal)}
	for _, a := range policyKeys {
		p.ledgers[a.Zone] = &journal{window: a.Window}
	}
	for i := range p.machines {
		p.machines[i].Store(p.start())
	}
	return p
}

func (p *policies) start() *machine {
	m := &machine{proxy: redistest.NewProxy(p.T, p.server.Addr)}
	p.proxies = append(p.proxies, m.proxy)
	m.redis = warmed(p.T, Options{Address: m.proxy.Addr, Timeout: patience})
	tagged(p.T, m.redis, p.server)
	m.leases = lease.New(m.redis, lease.Options{})
	m.Guard = fallback.NewState().Guard(m.leases, countsFailed{failed: &p.failed})
	return m
}

// kill ends a machine in the midst of its calls: it gives nothing back.
func (p *policies) kill(i int) {
	m := p.machines[i].Load()
	m.killed.Store(true)
	m.proxy.Refuse(true)
	m.proxy.Cut()
	m.Guard.Close()
	m.redis.Close()
	p.machines[i].Store(p.start())
}

// held is what one client holds of a call.
type held struct {
	at      *machine
	due     time.Time
	parts   []fallback.Reservation
	entries []*posting
	ledgers []*journal
}

// client calls and settles until the test is over.
func (p *policies) client(rng *rand.Rand) {
	var open []held
	for over := false; !over; {
		select {
		case <-p.done:
			over = true
		default:
			if h, ok := p.call(rng, p.machines[rng.IntN(len(p.machines))].Load()); ok {
				open = append(open, h)
			}
		}
		for i := 0; i < len(open); i++ {
			if h := open[i]; over || time.Now().After(h.due) {
				open = append(open[:i], open[i+1:]...)
				i--
				p.settle(rng, h)
			}
		}
		time.Sleep(below(rng, 2*time.Millisecond))
	}
}

func (p *policies) call(rng *rand.Rand, m *machine) (h held, ok bool) {
	c := new(fallback.Call)
	for _, i := range callKeys[rng.IntN(len(callKeys))] {
		a := policyKeys[i]
		a.Units = 1 + rng.Int64N(8)
		if i == plansKey {
			a.Units = 1 + rng.Int64N(3) // or leases would be too small
			a.Limit = plans[p.plan.Load()]
		}
		c.Requests, c.Policies = append(c.Requests, a), append(c.Policies, fallback.Deny)
	}
	from := time.Now()
	m.Decide(from, patience, c)
	to := time.Now()
	h = held{at: m, due: to.Add(below(rng, 300*time.Millisecond))}
	for i := range c.Requests {
		a, d, l := &c.Requests[i], &c.Decisions[i], p.ledgers[c.Requests[i].Zone]
		switch r := c.Reservation(i); {
		case c.Granted():
			if d.Source == store.FromLease {
				p.leased.Add(1)
			}
			e := l.add(posting{from: from, to: to, units: a.Units, limit: a.Limit, source: d.Source})
			h.parts, h.entries, h.ledgers = append(h.parts, r), append(h.entries, e), append(h.ledgers, l)
		case d.Source == store.FromPolicy || c.Denied:
			// It may be executed a little later, too.
			l.add(posting{from: from, to: to.Add(time.Minute), units: a.Units, maybe: true})
		case !d.Granted && d.Source == store.FromStore && !d.Skipped:
			l.refuse(refusal{from: from, to: to, units: a.Units, limit: a.Limit, blocked: d.Blocked, retry: d.RetryAfter})
		}
	}
	return h, len(h.parts) > 0
}

func (p *policies) settle(rng *rand.Rand, h held) {
	if h.at.killed.Load() {
		return // whoever was to do it is not there any more
	}
	var settlements []fallback.Settlement
	var done []func(known bool)
	for i, r := range h.parts {
		spent := r.Units()
		few := 1
		if h.ledgers[i] == p.ledgers["bans"] {
			few = 30 // or no ban would last
		}
		switch {
		case rng.IntN(few) > 0 || rng.IntN(4) == 0:
		case rng.IntN(20) == 0:
			spent += 1 + rng.Int64N(3)
		default:
			spent = rng.Int64N(spent)
		}
		if spent != r.Units() {
			settlements = append(settlements, fallback.Settlement{Reservation: r, Spent: spent})
			done = append(done, h.ledgers[i].settle(h.entries[i], spent))
		}
	}
	failed := p.failed.Load()
	h.at.Settle(patience, settlements)
	for _, done := range done {
		done(!h.at.killed.Load() && p.failed.Load() == failed)
	}
}

// run lets clients call from all machines while something happens to them, and
// returns when all of them have settled.
func (p *policies) run(seed uint64, happens func(rng *rand.Rand)) {
	p.Cleanup(func() {
		if p.Failed() {
			p.Logf("seed %d", seed)
		}
	})
	var group sync.WaitGroup
	for i := range uint64(10) {
		group.Go(func() { p.client(rand.New(rand.NewPCG(seed, i+1))) })
	}
	group.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 99))
		for {
			select {
			case <-p.done:
				return
			case <-time.After(below(rng, 700*time.Millisecond)):
				p.plan.Store(rng.Int64N(int64(len(plans))))
			}
		}
	})
	happens(rand.New(rand.NewPCG(seed, 0)))
	close(p.done)
	group.Wait()
}

// end ends all machines that run as a shutdown does: what is left of leases is given
// back.
func (p *policies) end() {
	for i := range p.machines {
		m := p.machines[i].Load()
		if err := m.leases.Close(patience); err != nil {
			p.Logf("leases of machine %d: %v", i, err)
			p.failed.Add(1)
		}
		m.Guard.Close()
		m.redis.Close()
	}
}

// check holds what was granted and refused against the ledgers.
func (p *policies) check(losses []loss) {
	p.Helper()
	for _, a := range policyKeys {
		l := p.ledgers[a.Zone]
		largest := a.Limit
		if a.Zone == "plans" {
			largest = plans[len(plans)-1]
		}
		l.strict(p.T, a.Zone, largest, losses)
		if a.Exact && len(losses) == 0 {
			l.fair(p.T, a.Zone)
		}
	}
}

// used looks at how much of a key is used, with a store of its own.
func (p *policies) used(key int) int64 {
	a := policyKeys[key]
	return a.Limit - take(p.T, p.viewer(), lookAt(a))[0].Remaining
}

func (p *policies) viewer() *Store {
	return open(p.T, Options{Address: p.server.Addr, Timeout: patience})
}

func lookAt(a store.Request) store.Request {
	a.Units, a.Block = 0, 0
	return a
}

func (p *policies) tell() {
	grants, refusals := 0, 0
	for _, l := range p.ledgers {
		grants, refusals = grants+len(l.entries), refusals+len(l.refusals)
	}
	p.Logf("%d grants (%d by leases), %d refusals (%d by plans), %d failed calls", grants, p.leased.Load(), refusals, len(p.ledgers["plans"].refusals), p.failed.Load())
}

// TestEveryWindowOfPolicies: costs drawn at random, plans that change, bans, and
// settlements in flight, over three machines that are killed in the midst of it: in
// every interval of a window no more than the limit, no refusal that nothing explains,
// nothing granted during a ban, and in the end the server has what the ledger has.
func TestEveryWindowOfPolicies(t *testing.T) {
	t.Parallel()
	for _, kills := range []bool{false, true} {
		t.Run(fmt.Sprint("kills ", kills), func(t *testing.T) {
			t.Parallel()
			p := newPolicies(t, redistest.Start(t))
			p.run(uint64(time.Now().UnixNano()), func(rng *rand.Rand) {
				for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
					time.Sleep(below(rng, 800*time.Millisecond))
					if kills {
						p.kill(rng.IntN(len(p.machines)))
					}
				}
			})
			p.end()
			p.check(nil)
			p.tell()
			if bans := p.ledgers["bans"].banned(t, "bans"); bans < 3 {
				t.Errorf("%d bans that lasted, want some", bans)
			}
			if p.leased.Load() < 10 || len(p.ledgers["logins"].refusals) < 10 {
				t.Error("want some leases and refusals")
			}
			var got int64
			for _, key := range []int{bankKey, leasesKey} {
				zone := policyKeys[key].Zone
				least, most := p.ledgers[zone].total(nil)
				if key == leasesKey && kills {
					most = plenty // what those who were killed held of leases counts
				}
				for tries := 0; tries < 20; tries++ { // settlements that failed are made again
					if got = p.used(key); got >= least && got <= most {
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				t.Logf("%s: %d units used, the ledger has %d to %d", zone, got, least, most)
				if got < least || got > most {
					t.Errorf("%s: %d units used, the ledger has %d to %d", zone, got, least, most)
				}
				if !kills && p.failed.Load() == 0 && least != most {
					t.Errorf("%s: the ledger does not know whether it has %d or %d", zone, least, most)
				}
			}
		})
	}
}

// TestEveryWindowOverLosses: the same while the server loses its data, is started again
// empty, or is replaced by a replica that lacks the latest charges: a limit more for
// each loss, once, and what is in the data that is there is not given back for what was
// charged in other data.
func TestEveryWindowOverLosses(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]func(p *policies, spare **redistest.Server, rng *rand.Rand) loss{
		"flushes": (*policies).flush, "failovers": (*policies).failover,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			master, spare := pair(t)
			p := newPolicies(t, master)
			var losses []loss
			p.run(uint64(time.Now().UnixNano()), func(rng *rand.Rand) {
				for _, lose := range []func(p *policies, spare **redistest.Server, rng *rand.Rand) loss{(*policies).restart, again, again} {
					time.Sleep(700*time.Millisecond + below(rng, 800*time.Millisecond))
					l := lose(p, &spare, rng)
					l.to = time.Now()
					losses = append(losses, l)
				}
				time.Sleep(time.Second)
			})
			p.end()
			p.check(losses)
			p.tell()
			for _, key := range []int{bankKey, leasesKey} {
				zone := policyKeys[key].Zone
				least, _ := p.ledgers[zone].total(losses)
				got := p.used(key)
				t.Logf("%s: %d units used, the ledger has %d at least", zone, got, least)
				if got < least || key == bankKey && least == 0 {
					t.Errorf("%s: %d units used, the ledger has %d at least", zone, got, least)
				}
			}
		})
	}
}

func (p *policies) flush(**redistest.Server, *rand.Rand) loss {
	l := loss{from: time.Now()}
	p.server.Do(p.T, "FLUSHALL")
	return l
}

func (p *policies) restart(**redistest.Server, *rand.Rand) loss {
	l := loss{from: time.Now()}
	p.server.Restart(p.T)
	return l
}

// failover makes the spare server the master, which lacks what was charged last.
func (p *policies) failover(spare **redistest.Server, rng *rand.Rand) loss {
	follow(p.T, *spare, p.server)
	l := loss{from: time.Now(), kept: true}
	p.server.WaitReplicated(p.T, *spare)
	cutOff(p.T, p.server, *spare) // until then it hears of settlements, too
	l.cut = time.Now()
	time.Sleep(200*time.Millisecond + below(rng, 200*time.Millisecond))
	(*spare).Do(p.T, "REPLICAOF", "NO", "ONE")
	for _, proxy := range p.proxies {
		proxy.Redirect((*spare).Addr)
		proxy.Cut()
	}
	p.server, *spare = *spare, p.server
	return l
}

// below is a random duration below d.
func below(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
