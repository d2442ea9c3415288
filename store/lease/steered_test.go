package lease

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// slow is a store whose decisions take a while to come back.
type slow struct {
	*store.Memory
	back atomic.Int64 // ns
}

func (s *slow) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	err := s.Memory.Take(now, wait, requests, decisions)
	time.Sleep(time.Duration(s.back.Load()))
	return err
}

// steered runs a test with a process whose key has a lease in hand.
func steered(t *testing.T, test func(t *testing.T, l *Store, below *slow, take func() store.Decision, key *leaseKey)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		below := &slow{Memory: store.NewMemory(0)}
		l := New(below, Options{})
		request := store.Request{Key: store.Key{Zone: "zone", Client: "client", Window: time.Minute}, Limit: 6400, Units: 1}
		take := func() store.Decision {
			decisions := make([]store.Decision, 1)
			if err := l.Take(time.Now(), budget, []store.Request{request}, decisions); err != nil {
				t.Fatal(err)
			}
			return decisions[0]
		}
		hash := l.hash(&request.Key)
		for range 1000 {
			if take(); l.shard(hash).keyLocked(hash, &request.Key) != nil {
				if k := l.shard(hash).keyLocked(hash, &request.Key); k.first.units > 10 && !k.refilling {
					test(t, l, below, take, k)
					if err := l.Close(time.Second); err != nil {
						t.Error(err)
					}
					return
				}
			}
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		t.Fatal("no lease")
	})
}

// A ban by hand is not passed with a lease that this process has.
func TestBanTakesLease(t *testing.T) {
	steered(t, func(t *testing.T, l *Store, below *slow, take func() store.Decision, k *leaseKey) {
		key := k.key
		if d := take(); d.Source != store.FromLease {
			t.Fatalf("%+v, want it from a lease", d)
		}
		if err := l.Amend(budget, key, store.Amendment{Ban: time.Hour}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if d := take(); !d.Blocked || d.RetryAfter < 59*time.Minute {
				t.Fatalf("%+v, want it blocked for an hour", d)
			}
		}
		synctest.Wait() // for the refund
		look := store.Request{Key: key, Limit: 6400}
		decisions := make([]store.Decision, 1)
		before := k.remaining
		_ = below.Memory.Take(time.Now(), 0, []store.Request{look}, decisions)
		if d := decisions[0]; d.Remaining < before {
			t.Errorf("%+v, want what was in hand back: %d before", d, before)
		}
		if err := l.Amend(budget, key, store.Amendment{Unban: true}); err != nil {
			t.Fatal(err)
		}
		if d := take(); !d.Granted {
			t.Errorf("%+v at once after the ban, want it granted", d)
		}
	})
}

// A lease that was granted before the ban, and arrives after it, is not spent either.
func TestBanTakesLeaseOnItsWay(t *testing.T) {
	steered(t, func(t *testing.T, l *Store, below *slow, take func() store.Decision, k *leaseKey) {
		key := k.key
		below.back.Store(int64(20 * time.Millisecond))
		for !k.refilling {
			if d := take(); !d.Granted {
				t.Fatalf("%+v before the ban", d)
			}
		}
		time.Sleep(time.Millisecond) // it has been granted by now
		if err := l.Amend(budget, key, store.Amendment{Ban: time.Hour}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if k.refilling || !k.first.empty() || !k.second.empty() {
			t.Fatalf("%+v, want no lease", k)
		}
		if d := take(); !d.Blocked {
			t.Errorf("%+v, want it blocked", d)
		}
	})
}

// What was emptied by hand is granted at once, whatever is remembered.
func TestEmptyForgetsRefusal(t *testing.T) {
	steered(t, func(t *testing.T, l *Store, below *slow, take func() store.Decision, k *leaseKey) {
		key := k.key
		for take().Granted {
		}
		if d := take(); d.Granted || d.Source != store.FromCache {
			t.Fatalf("%+v, want a remembered refusal", d)
		}
		if err := l.Amend(budget, key, store.Amendment{Empty: true}); err != nil {
			t.Fatal(err)
		}
		if d := take(); !d.Granted || d.Remaining < 6000 {
			t.Errorf("%+v, want it granted", d)
		}
	})
}

// Without a store that can be changed by hand, nothing is.
func TestNotSteered(t *testing.T) {
	l := New(struct{ store.Store }{store.NewMemory(0)}, Options{})
	if err := l.Amend(budget, store.Key{Zone: "zone", Window: time.Minute}, store.Amendment{}); err == nil {
		t.Error("Amend succeeds")
	}
	if err := l.Post(budget, store.Notice{Class: 'x', Lasts: time.Minute}, 1); err == nil {
		t.Error("Post succeeds")
	}
	if _, err := l.Withdraw(budget, 'x', ""); err == nil {
		t.Error("Withdraw succeeds")
	}
	l.WatchBoard(func([]store.Notice) { t.Error("there is a board") })()
}
