package caddytest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/caddyevents/eventsconfig"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

func init() { caddy.RegisterModule(new(eventNotes)) }

// eventNotes is a handler of events that notes them.
type eventNotes struct {
	Name string `json:"name"`
}

type noted struct {
	mu     sync.Mutex
	events []caddy.Event
	slow   chan struct{} // handlers wait for it, if not nil
	panics bool
}

func (*eventNotes) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.note", New: func() caddy.Module { return new(eventNotes) }}
}

func (h *eventNotes) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.Args(&h.Name)
	return nil
}

func (h *eventNotes) Handle(_ context.Context, event caddy.Event) error {
	n, err := guest[*noted](h.Name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	slow, panics := n.slow, n.panics
	n.events = append(n.events, event)
	n.mu.Unlock()
	if panics {
		panic("a mistake in a handler of events")
	}
	if slow != nil {
		<-slow
	}
	return nil
}

func (n *noted) all() []caddy.Event {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.events)
}

// next waits for one more event of ours, and wants it to have these data.
func (n *noted) next(t *testing.T, name string, fields ...string) caddy.Event {
	t.Helper()
	inTime(t, "the event "+name, func() bool { return len(n.all()) > 0 })
	n.mu.Lock()
	event := n.events[0]
	n.events = n.events[1:]
	n.mu.Unlock()
	if event.Name() != name {
		t.Fatalf("event %s %v, want %s", event.Name(), event.Data, name)
	}
	if id := event.Origin().CaddyModule().ID; id != "distributed_ratelimit" {
		t.Errorf("event %s: its origin is %s", name, id)
	}
	if got := slices.Sorted(maps.Keys(event.Data)); !slices.Equal(got, fields) {
		t.Errorf("event %s: data %v, want the fields %v", name, event.Data, fields)
	}
	return event
}

func notedEvents(t *testing.T) (*noted, string) {
	n := new(noted)
	invite(t, t.Name(), n)
	var events strings.Builder
	for _, name := range []string{"store_away", "store_back", "data_lost", "key_blocked"} {
		fmt.Fprintf(&events, "\t\ton %s note %s\n", name, t.Name())
	}
	return n, "\tevents {\n" + events.String() + "\t}\n"
}

// What befalls the store is emitted once, to handlers of the configuration that runs.
func TestEventsOfTheStore(t *testing.T) {
	n, events := notedEvents(t)
	server := redistest.Start(t)
	config := strings.Replace(onRedis(server, "http://a.test {\n\tdistributed_ratelimit 5 1h z\n\trespond ok\n}"), "{\n", "{\n"+events, 1)
	e := start(t, config)
	e.becomes("store_up", equals(1))
	e.granted(1, alice, "http://a.test/")
	if err := e.validate(config); err != nil {
		t.Fatal(err)
	}
	e.reload(config)

	server.Kill()
	event := n.next(t, "store_away", "condition", "error", "server", "store")
	if event.Data["condition"] != "away" || event.Data["server"] != server.Addr || event.Data["error"] == "" {
		t.Errorf("store_away: got %v", event.Data)
	}
	e.reload(config)
	server.Restart(t)
	// It lost its data: which of the two is noticed first does not matter.
	inTime(t, "two events", func() bool { return len(n.all()) == 2 })
	n.mu.Lock()
	slices.SortFunc(n.events, func(a, b caddy.Event) int { return strings.Compare(a.Name(), b.Name()) })
	n.mu.Unlock()
	if event := n.next(t, "data_lost", "how", "on_data_loss", "server", "store", "suppressed"); event.Data["on_data_loss"] != "continue" {
		t.Errorf("data_lost: got %v", event.Data)
	}
	n.next(t, "store_back", "server", "store")
}

// A ban is emitted, without the key; a flood of them is bounded, and slow handlers hold
// nobody up.
func TestEventsOfBans(t *testing.T) {
	n, events := notedEvents(t)
	n.slow = make(chan struct{})
	e := start(t, "{\n"+events+"}\n"+`
http://a.test {
	distributed_ratelimit {
		zone login {
			key {header.X-Api-Key}
			events 1
			window 1h
			block_for 2h
		}
	}
	respond "ok"
}`)
	const keys = 200
	begin := time.Now()
	for i := range keys {
		key := with("X-Api-Key", fmt.Sprintf("sesame-%d", i))
		e.granted(1, alice, "http://a.test/", key)
		e.refused(alice, "http://a.test/", key)
		e.refused(alice, "http://a.test/", key)
	}
	seconds := int(time.Since(begin)/time.Second) + 1
	close(n.slow)
	inTime(t, "the events", func() bool { return len(n.all()) >= 3 })
	time.Sleep(100 * time.Millisecond) // for more than there should be
	all := n.all()
	if len(all) > 3*seconds {
		t.Errorf("%d bans within %d s: got %d events, want at most three a second", keys, seconds, len(all))
	}
	event := n.next(t, "key_blocked", "block_for", "client_ip", "dry_run", "retry_after", "suppressed", "zone")
	if d := event.Data; d["zone"] != "login" || d["client_ip"] != alice || d["block_for"] != 7200.0 || d["dry_run"] != false {
		t.Errorf("key_blocked: got %v", d)
	}
	for _, event := range all {
		text, err := json.Marshal(event.Data)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "sesame") {
			t.Errorf("the event tells the key: %s", text)
		}
	}
}

// A handler that panics ends neither the process nor the events.
func TestEventsOutliveAPanic(t *testing.T) {
	n, events := notedEvents(t)
	n.panics = true
	e := start(t, "{\n"+events+"}\n"+`
http://a.test {
	distributed_ratelimit {
		zone login {
			events 1
			window 1h
			block_for 2h
		}
	}
	respond "ok"
}`)
	for i, client := range []string{alice, bob} {
		e.granted(1, client, "http://a.test/")
		e.refused(client, "http://a.test/")
		inTime(t, "the event", func() bool { return len(n.all()) == i+1 })
	}
}

// inTime waits for something that happens in the background, also on a busy machine.
func inTime(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
