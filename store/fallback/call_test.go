package fallback

import (
	"reflect"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// failing is a store that was never there, or one that counts.
type failing struct {
	store.Store
	err error
}

func (f *failing) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	if f.err != nil {
		for i := range decisions { // valid where a fate says so
			decisions[i].Granted = true
		}
		return f.err
	}
	return f.Store.Take(now, wait, requests, decisions)
}

func (f *failing) FallbackSettings() Settings { return Settings{Cautious: true} }

// silent is an observer that is not interested.
type silent struct{}

func (silent) Called(time.Duration, error)                 {}
func (silent) ServerChanged(store.Condition, store.Report) {}
func (silent) ServerRemoved(string)                        {}
func (silent) Lost(store.Report)                           {}
func (silent) Instances(int, bool)                         {}
func (silent) Alone()                                      {}

func newCall(requests ...store.Request) *Call {
	return &Call{Requests: requests, Policies: make([]Policy, len(requests))}
}

func named(client string) store.Request {
	return store.Request{Key: store.Key{Zone: "zone", Client: client, Window: time.Hour}, Limit: 10, Units: 1}
}

// A call waits in a pool for its next use. It must not hold the names of clients,
// which may be small parts of large strings, until then.
func TestResetForgets(t *testing.T) {
	s := NewState()
	now := time.Now()
	s.lost.Store(&now)
	f := &failing{Store: store.NewMemory(0)}
	g := s.Guard(f, silent{})
	defer g.Close()

	unexecuted := &store.Error{Kind: store.KindAway, Unexecuted: true}
	for name, err := range map[string]error{
		"granted":       nil,
		"unexecuted":    unexecuted,
		"all but one":   &store.Error{Kind: store.KindAway, Fates: []store.Fate{store.FateUnexecuted, store.FateDecided, store.FateDecided}},
		"of no fate":    &store.Error{Kind: store.KindTimeout},
		"one in detail": &store.Error{Kind: store.KindTimeout, Fates: []store.Fate{store.FateDecided, store.FateUnexecuted, store.FateDecided}},
	} {
		c := newCall(named("a"), named("b"), named("c"))
		f.err = err
		g.Decide(now, time.Second, c)
		c.Reset()
		for i, r := range c.Requests[:cap(c.Requests)] {
			if !reflect.ValueOf(r).IsZero() {
				t.Errorf("%s: request %d is still %+v", name, i, r)
			}
		}
		for i, r := range c.few[:cap(c.few)] {
			if !reflect.ValueOf(r).IsZero() {
				t.Errorf("%s: request %d decided apart is still %+v", name, i, r)
			}
		}
		for i, told := range c.told[:cap(c.told)] {
			if told != nil {
				t.Errorf("%s: what was told of request %d is still there", name, i)
			}
		}
		for i, r := range c.held[:cap(c.held)] {
			if r != (store.Refund{}) {
				t.Errorf("%s: refund %d is still %+v", name, i, r)
			}
		}
	}
}

// What a call was decided before does not show in what it is decided now.
func TestDecideAgain(t *testing.T) {
	f := &failing{Store: store.NewMemory(0)}
	g := NewState().Guard(f, silent{})
	defer g.Close()
	c := newCall(named("a"))
	c.Policies[0] = Deny
	f.err = &store.Error{Kind: store.KindTimeout}
	g.Decide(time.Now(), time.Second, c)
	if !c.Denied || !c.Charged(0) {
		t.Fatalf("%+v, want it denied, of unknown fate", c)
	}
	f.err = nil
	c.Requests[0].Units = 0
	if g.Decide(time.Now(), time.Second, c); c.Denied || !c.Granted() || c.Charged(0) {
		t.Errorf("denied %v, charged %v, %+v; want it granted, and nothing charged", c.Denied, c.Charged(0), c.Decisions)
	}
}

// The last server that is up is removed: the store is away then, and the policies
// decide, whatever a cautious process would say by itself.
func TestAwayWhenTheOnlyServerUpIsRemoved(t *testing.T) {
	s := NewState()
	g := s.Guard(&failing{Store: store.NewMemory(0)}, silent{})
	defer g.Close()
	want := func(away bool, r store.Report) {
		t.Helper()
		if g.heard(r); s.away.Load() != away {
			t.Errorf("after %+v: away %v, want %v", r, s.away.Load(), away)
		}
	}
	want(false, store.Report{Server: "a", Condition: store.Up})
	want(false, store.Report{Server: "b", Condition: store.Away})
	want(true, store.Report{Server: "a", Condition: store.Removed})
	want(false, store.Report{Server: "b", Condition: store.Up})

	// A reload replaces the server of the store by one that is away.
	fresh := s.Guard(&failing{Store: store.NewMemory(0)}, silent{})
	defer fresh.Close()
	fresh.Start()
	g.Close()
	fresh.heard(store.Report{Server: "c", Condition: store.Away})
	if !s.away.Load() {
		t.Error("the only server is away, and the store is not")
	}
}

// watched is a store that reports nothing yet.
type watched struct{ store.Store }

func (watched) Instances() int                  { return 1 }
func (watched) Watch(func(store.Report)) func() { return func() {} }

// A guard is made while a call of another one fails. The race detector sees if it
// is used before it is complete.
func TestGuardIsCompleteWhenItIsKnown(t *testing.T) {
	s := NewState()
	f := &failing{err: &store.Error{Kind: store.KindBroken}, Store: store.NewMemory(0)}
	g := s.Guard(f, silent{})
	made := make(chan *Guard)
	go func() { made <- s.Guard(watched{store.NewMemory(0)}, silent{}) }()
	for known := 0; known < 2; time.Sleep(time.Microsecond) {
		s.mu.Lock()
		known = len(s.guards)
		s.mu.Unlock()
	}
	g.Decide(time.Now(), time.Second, newCall(named("a")))
	(<-made).Close()
	g.Close()
}
