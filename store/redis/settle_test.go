package redis

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
)

// silent is an observer that is not interested.
type silent struct{}

func (silent) Called(time.Duration, error)                 {}
func (silent) ServerChanged(store.Condition, store.Report) {}
func (silent) ServerRemoved(string)                        {}
func (silent) Lost(store.Report)                           {}
func (silent) Instances(int, bool)                         {}
func (silent) Alone()                                      {}

// account is what the rules say of a key in a window that does not pass: what is used
// of its limit, whether it is banned, and whether units were granted since the last ban.
type account struct {
	used    int64
	banned  bool
	granted bool
}

func (a *account) take(limit, units int64) (granted, blocked bool) {
	switch {
	case a.banned:
		return false, true
	case a.used+units <= limit:
		a.used += units
		a.granted = true
		return true, false
	case a.granted:
		a.banned, a.granted = true, false
	}
	return false, a.banned
}

// settle gives units back or takes more.
func (a *account) settle(reserved, spent int64) {
	if a.used += spent - reserved; spent < reserved {
		a.banned = false
	}
}

// reserved is a reservation, and in which data it is.
type reserved struct {
	fallback.Reservation
	key  int
	data int
}

// TestSettlementsOverFailovers: whatever is reserved, settled and banned by two
// instances, and whatever is lost in failovers: the store has what the rules say. Units
// go back to the data that they were charged in and to no other, and with what was lost
// its settlements are.
func TestSettlementsOverFailovers(t *testing.T) {
	t.Parallel()
	const keys, limit, steps, failovers = 3, 12, 60, 5
	master, replica := pair(t)
	proxy := redistest.NewProxy(t, master.Addr)
	var stores []*Store
	var guards []*fallback.Guard
	for range 2 {
		s := warmed(t, Options{Address: proxy.Addr, Timeout: patience})
		stores = append(stores, s)
		g := fallback.NewState().Guard(lease.New(s, lease.Options{}), silent{})
		t.Cleanup(g.Close)
		guards = append(guards, g)
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	accounts := make([]account, keys+failovers)
	for i := range accounts {
		accounts[i].granted = true
	}
	var open []reserved
	blocked, lifted, foreign := 0, 0, 0
	step := func(data, key int, settles bool) {
		g := guards[rng.IntN(2)]
		if len(open) > 0 && settles {
			i := rng.IntN(len(open))
			r := open[i]
			open = append(open[:i], open[i+1:]...)
			spent := rng.Int64N(r.Units() + 2)
			g.Settle(patience, []fallback.Settlement{{Reservation: r.Reservation, Spent: spent}})
			switch a := &accounts[r.key]; {
			case r.data == data || spent > r.Units():
				if a.banned && spent < r.Units() {
					lifted++
				}
				a.settle(r.Units(), spent)
			case spent < r.Units():
				foreign++
			}
			return
		}
		a := one(fmt.Sprint("client", key), limit)
		a.Units, a.Exact, a.Block = 1+rng.Int64N(4), true, 2*a.Window
		c := &fallback.Call{Requests: []store.Request{a}, Policies: []fallback.Policy{fallback.Decide}}
		// A ban that is remembered is out of date when the other instance has ended it.
		time.Sleep(time.Millisecond)
		g.Decide(time.Now(), patience, c)
		d := c.Decisions[0]
		if d.Source == store.FromCache {
			return
		}
		granted, banned := accounts[key].take(limit, a.Units)
		if d.Granted != granted || d.Blocked != banned || d.Source != store.FromStore || d.Remaining != max(limit-accounts[key].used, 0) {
			t.Fatalf("%d units of key %d: %+v; want granted %v, blocked %v, %+v", a.Units, key, d, granted, banned, accounts[key])
		}
		if d.Blocked {
			blocked++
		}
		if r := c.Reservation(0); r.Units() > 0 {
			open = append(open, reserved{r, key, data})
		}
	}
	for data := range failovers {
		for _, s := range stores {
			tagged(t, s, master)
		}
		time.Sleep(1100 * time.Millisecond) // what is remembered is older than the failover
		for i := range steps {
			step(data, rng.IntN(keys), i < 5 || rng.IntN(5) < 2) // at first what was charged before the failover
		}
		for range 3 {
			step(data, keys+data, false)
		}
		master.WaitReplicated(t, replica)
		kept := append([]account(nil), accounts...)
		if data%2 == 1 {
			cutOff(t, master, replica)
			for range steps / 3 {
				step(data, rng.IntN(keys), rng.IntN(5) < 2) // is lost
			}
		}
		replica.Do(t, "REPLICAOF", "NO", "ONE")
		proxy.Redirect(replica.Addr)
		proxy.Cut()
		accounts = kept
		for key := range accounts {
			// Nothing frees the key any more but new units' settlements.
			if accounts[key].used > limit-2 || accounts[key].banned {
				a := one(fmt.Sprint("client", key), limit)
				replica.Do(t, "DEL", stores[0].keys.of(&a.Key))
				accounts[key] = account{granted: true}
			}
		}
		master, replica = replica, master
		follow(t, replica, master)
	}
	t.Logf("%d blocked, %d bans lifted, %d settlements of other data", blocked, lifted, foreign)
	if blocked == 0 || lifted == 0 || foreign == 0 {
		t.Error("want some of each")
	}
}
