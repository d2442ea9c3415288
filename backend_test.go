package distributedratelimit

import (
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// reporter is a store of which a test tells how it fares.
type reporter struct {
	name      string
	instances int
	do        func(store.Report)
	take      func(asks []store.Ask) error
}

func (s *reporter) Take(_ time.Duration, asks []store.Ask, _ []store.Answer) error {
	return s.take(asks)
}
func (*reporter) Return(time.Duration, []store.Grant) error { return nil }
func (s *reporter) String() string                          { return s.name }
func (s *reporter) Instances() int                          { return s.instances }
func (s *reporter) Watch(do func(store.Report)) func()      { s.do = do; return func() {} }

// A cluster store that never knew the slots is replaced by one that does.
func TestServersOfAStoreThatWasReplaced(t *testing.T) {
	old := &reporter{name: "replaced", instances: 1}
	b1, _ := openBackend(old, zap.NewNop(), nil)
	b1.start()
	old.do(store.Report{Server: "replaced", Condition: store.Away, Err: errors.New("x")})
	fresh := &reporter{name: "replaced", instances: 1}
	b2, _ := openBackend(fresh, zap.NewNop(), nil)
	b2.start()
	_ = b1.release()
	fresh.do(store.Report{Server: "node:1", Condition: store.Up, Instances: 1})
	if n := len(b2.servers); n != 1 {
		t.Errorf("%d servers are known, want 1: %v", n, b2.servers)
	}
	_ = b2.release()
}

// A store that is opened anew while the server is away knows as many instances
// as the one before.
func TestInstancesAreKnownOverAReload(t *testing.T) {
	old := &reporter{name: "reloaded", instances: 10}
	b1, _ := openBackend(old, zap.NewNop(), nil)
	b1.start()
	old.do(store.Report{Server: "s", Condition: store.Up, Instances: 10})
	old.do(store.Report{Server: "s", Condition: store.Away, Instances: 10, Err: errors.New("x")})
	fresh := &reporter{name: "reloaded", instances: 1}
	b2, _ := openBackend(fresh, zap.NewNop(), nil)
	fresh.do(store.Report{Server: "s", Condition: store.Away, Instances: 1, Err: errors.New("x")})
	b2.start()
	_ = b1.release()
	if got := b2.instances(); got != 10 {
		t.Errorf("%d instances, want 10", got)
	}
	_ = b2.release()
}

// Two servers come back at nearly the same time.
func TestSettlesAgain(t *testing.T) {
	s := &reporter{name: "settling", instances: 1}
	began, goOn := make(chan bool, 9), make(chan bool)
	first := true
	var settled int64
	var mu sync.Mutex
	s.take = func(asks []store.Ask) error {
		began <- true
		if first {
			first = false
			<-goOn
			return &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errors.New("the other one is away")}
		}
		mu.Lock()
		settled++
		mu.Unlock()
		return nil
	}
	b, _ := openBackend(s, zap.NewNop(), nil)
	b.start()
	asks := []store.Ask{{Key: store.Key{Zone: "z", Client: "c"}, Window: time.Hour, Limit: 10, Need: 1}}
	_ = b.standby.Take(asks, make([]store.Answer, 1), 1, true)
	s.do(store.Report{Server: "1", Condition: store.Up})
	<-began
	s.do(store.Report{Server: "2", Condition: store.Up})
	close(goOn)
	for deadline := time.Now().Add(10 * time.Second); b.standby.Owing() > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	mu.Lock()
	defer mu.Unlock()
	if settled != 1 || b.standby.Owing() != 0 {
		t.Errorf("settled %d, %d keys owe", settled, b.standby.Owing())
	}
	_ = b.release()
}
