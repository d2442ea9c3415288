package redis

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// parish is a server with a list of instances, and a clock of its own by which
// the instances go as well.
type parish struct {
	t      *testing.T
	server *redistest.Server
	conn   *redistest.Conn
	script string
	now    time.Time
	origin int64 // that lives are told
}

const parishKey = "drl:instances"

func newParish(t *testing.T) *parish {
	server := redistest.Start(t)
	return &parish{t: t, server: server, conn: server.Dial(t), script: withClock(t, heartbeat), now: time.Unix(1_700_000_000, 0)}
}

// send has the server execute a beat, and returns its reply.
func (p *parish) send(cmd *beatCommand) string {
	p.t.Helper()
	args := slices.Clone(cmd.Args())
	args[1] = p.script
	micros := p.now.UnixMicro()
	reply, err := p.conn.Do(slices.Insert(args, 4, any(micros/1e6), any(micros%1e6))...)
	if err != nil {
		p.t.Fatal(err)
	}
	return reply.(string)
}

// beat is a heartbeat of an instance. It wants a loss to be noticed or, if it
// is empty, none.
func (p *parish) beat(c *presence, lost string) {
	p.t.Helper()
	cmd, number := c.command(parishKey, false)
	got, err := c.heard(parishKey, p.send(cmd), number, p.now)
	if err != nil || got != lost {
		p.t.Errorf("heard: %q, %v; want %q", got, err, lost)
	}
}

func (p *parish) leave(c *presence) {
	p.t.Helper()
	cmd, _ := c.command(parishKey, true)
	p.send(cmd)
}

// pass lets instances beat every second for a time.
func (p *parish) pass(d time.Duration, instances ...*presence) {
	p.t.Helper()
	for range d / time.Second {
		p.now = p.now.Add(time.Second)
		for _, c := range instances {
			p.beat(c, "")
		}
	}
}

// count wants instances to count so many.
func (p *parish) count(want int, instances ...*presence) {
	p.t.Helper()
	for i, c := range instances {
		if got := c.instances(); got != want {
			p.t.Errorf("instance %d counts %d, want %d", i, got, want)
		}
	}
}

// settledParish is one with three instances that know of each other.
func settledParish(t *testing.T) (p *parish, a, b, c *presence) {
	t.Helper()
	p, a, b, c = newParish(t), newPresence(1), newPresence(1), newPresence(1)
	p.beat(a, "")
	p.count(1, a)
	p.beat(b, "")
	p.count(2, b) // at once
	p.beat(c, "")
	p.beat(a, "")
	p.beat(b, "")
	p.count(3, a, b, c)
	p.pass(30*time.Second, a, b, c)
	p.count(3, a, b, c)
	return p, a, b, c
}

func TestPresenceLeaves(t *testing.T) {
	p, a, b, c := settledParish(t)
	p.leave(c)
	p.pass(aliveFor, a, b)
	p.count(3, a, b) // not on account of one reply, or of a few
	p.pass(time.Second, a, b)
	p.count(2, a, b)
	p.leave(b)
	p.pass(aliveFor+time.Second, a)
	p.count(1, a)
}

// TestPresenceLeavesInTurn: it falls to the most that there were meanwhile.
func TestPresenceLeavesInTurn(t *testing.T) {
	p, a, b, c := settledParish(t)
	p.leave(c)
	p.pass(aliveFor-2*time.Second, a, b)
	p.leave(b)
	p.pass(4*time.Second, a)
	p.count(2, a)
	p.pass(aliveFor, a)
	p.count(1, a)
}

func TestPresenceKilled(t *testing.T) {
	p, a, b, _ := settledParish(t)
	p.pass(2*aliveFor-time.Second, a, b)
	p.count(3, a, b)
	p.pass(2*time.Second, a, b)
	p.count(2, a, b)
}

// TestPresenceEmptyServer: the first to find the list empty is not alone.
func TestPresenceEmptyServer(t *testing.T) {
	p, a, b, c := settledParish(t)
	p.server.Do(t, "FLUSHALL")
	p.beat(a, "the data is gone")
	p.pass(aliveFor-time.Second, a)
	p.count(3, a)
	p.beat(b, "the data is gone")
	p.beat(c, "the data is gone")
	p.pass(30*time.Second, a, b, c)
	p.count(3, a, b, c)
}

// TestPresenceSilence: only what is seen for a while without a break counts.
func TestPresenceSilence(t *testing.T) {
	p, a, b, c := settledParish(t)
	p.leave(c)
	p.pass(aliveFor-time.Second, a, b)
	for _, c := range []*presence{a, b} {
		c.silent(parishKey)
		c.silent("another list")
	}
	p.now = p.now.Add(time.Minute)
	p.pass(aliveFor, a, b) // each is the first, once
	p.count(3, a, b)
	p.pass(2*time.Second, a, b)
	p.count(2, a, b)
}

// TestPresenceOption is what the operator said, until it is known better.
func TestPresenceOption(t *testing.T) {
	p, a, b := newParish(t), newPresence(5), newPresence(0)
	p.count(5, a)
	p.count(1, b)
	p.pass(aliveFor, a)
	p.count(5, a)
	p.pass(time.Second, a)
	p.count(1, a)
}

// TestPresenceLists: several servers keep lists, and not every instance is on
// each: the longest counts.
func TestPresenceLists(t *testing.T) {
	c := newPresence(1)
	now := time.Unix(1_700_000_000, 0)
	hear := func(key string, alive int64) {
		t.Helper()
		if lost, err := c.heard(key, beatOf(1, 1, alive, 0), 1, now); err != nil || lost != "" {
			t.Errorf("heard: %q, %v", lost, err)
		}
	}
	hear("a", 2)
	hear("b", 4)
	hear("c", 3)
	if got := c.instances(); got != 4 {
		t.Errorf("%d instances, want 4", got)
	}
	c.keep(map[string]bool{"a": true, "c": true})
	if got := c.instances(); got != 4 { // what c began with
		t.Errorf("%d instances at once, want 4 still", got)
	}
	now = now.Add(time.Second)
	hear("c", 3)
	now = now.Add(aliveFor)
	hear("c", 3)
	hear("a", 2)
	if got := c.instances(); got != 3 {
		t.Errorf("%d instances, want 3", got)
	}
	c.keep(nil)
	if got := c.instances(); got != 3 {
		t.Errorf("%d instances without a list, want 3 as before", got)
	}
}

// beatOf is a reply to a beat.
func beatOf(birth, before, alive, evicted int64) string {
	b := appendNumber(nil, birth, 7)
	b = appendNumber(b, before, 7)
	b = appendNumber(b, alive, 4)
	b = appendNumber(b, evicted, 7)
	return string(appendNumber(b, 0, 7))
}

func TestPresenceReply(t *testing.T) {
	c := newPresence(1)
	for _, reply := range []string{"", "OK", beatOf(1, 2, 3, 4) + "x"} {
		if _, err := c.heard("list", reply, 1, time.Now()); err == nil {
			t.Errorf("%q was taken for the reply to a beat", reply)
		}
	}
}

// TestLossOfWrites: a copy that lags behind has taken over.
func TestLossOfWrites(t *testing.T) {
	p, a, b, c := settledParish(t)
	old := p.server.Do(t, "DUMP", parishKey).(string)
	p.pass(3*time.Second, a, b, c)
	p.server.Do(t, "RESTORE", parishKey, 0, old, "REPLACE")
	for _, c := range []*presence{a, b, c} {
		p.beat(c, "writes that were confirmed are gone")
	}
	p.pass(10*time.Second, a, b, c) // it is told once

	// It took over while no server answered.
	p.server.Do(t, "RESTORE", parishKey, 0, old, "REPLACE")
	a.silent(parishKey)
	p.beat(a, "writes that were confirmed are gone")
	p.beat(b, "writes that were confirmed are gone")
	p.beat(c, "writes that were confirmed are gone")
	p.pass(3*time.Second, a, b, c)

	// An instance that came meanwhile is missing in it.
	old = p.server.Do(t, "DUMP", parishKey).(string)
	d := newPresence(1)
	p.pass(3*time.Second, a, b, c, d)
	p.server.Do(t, "RESTORE", parishKey, 0, old, "REPLACE")
	for _, c := range []*presence{a, b, c, d} {
		p.beat(c, "writes that were confirmed are gone")
	}
	p.pass(10*time.Second, a, b, c, d)
}

// TestLossOfData: something else has taken the list's place, or nothing.
func TestLossOfData(t *testing.T) {
	p, a, b, c := settledParish(t)
	for what, put := range map[string][]any{
		"nothing":    {"DEL", parishKey},
		"text":       {"SET", parishKey, "hello"},
		"empty":      {"SET", parishKey, ""},
		"odd length": {"SET", parishKey, strings.Repeat("\x00", 7+22+1)},
		"hash":       {"HSET", parishKey, "field", "value"},
		"list":       {"RPUSH", parishKey, "element"},
	} {
		t.Run(what, func(t *testing.T) {
			p.now = p.now.Add(time.Second)
			p.server.Do(t, "DEL", parishKey)
			p.server.Do(t, put...)
			for _, c := range []*presence{a, b, c} {
				p.beat(c, "the data is gone")
			}
			p.pass(5*time.Second, a, b, c)
			p.count(3, a, b, c)
			if ttl := p.server.Do(t, "PTTL", parishKey).(int64); ttl <= 0 {
				t.Error("the list lives for ever")
			}
		})
	}
}

func TestLossByEviction(t *testing.T) {
	c := newPresence(1)
	now, beat := time.Unix(1_700_000_000, 0), int64(0)
	hear := func(evicted int64, want string) {
		t.Helper()
		beat++
		now = now.Add(time.Second)
		if lost, err := c.heard("list", beatOf(1, beat-1, 1, evicted), beat, now); err != nil || lost != want {
			t.Errorf("beat %d: %q, %v; want %q", beat, lost, err, want)
		}
	}
	hear(100, "") // from before
	hear(100, "")
	hear(101, "keys were evicted")
	hear(101, "")
	for i := range int64(100) { // a server that is full
		want := ""
		if (i+2)%int64(evictionTime/time.Second) == 0 {
			want = "keys were evicted"
		}
		hear(102+i, want)
	}
	for range evictionTime / time.Second {
		hear(201, "")
	}
	hear(300, "keys were evicted")
	hear(0, "") // its statistics were reset
	c.silent("list")
	hear(50, "") // perhaps another server's, which took over
}

// TestNoLoss is what could be taken for one.
func TestNoLoss(t *testing.T) {
	p, a, b, c := settledParish(t)

	// An instance that starts anew, others that come and go.
	d := newPresence(1)
	p.pass(2*time.Second, a, b, c, d)
	p.leave(d)
	p.leave(c)
	c = newPresence(1)
	p.pass(2*time.Second, a, b, c)

	// Replies that were lost.
	for range 3 {
		cmd, _ := a.command(parishKey, false)
		p.send(cmd)
		a.silent(parishKey)
	}
	p.pass(2*time.Second, a, b, c)

	// One beat overtakes another.
	slow, _ := a.command(parishKey, false)
	p.pass(2*time.Second, a, b, c)
	p.send(slow)
	p.pass(2*time.Second, a, b, c)

	// Silence for so long that the others have struck it off the list.
	a.silent(parishKey)
	p.pass(3*aliveFor, b, c)
	p.pass(2*time.Second, a, b, c)

	// A pause of this process, with no call in it that failed.
	p.pass(3*aliveFor, b, c)
	p.pass(2*time.Second, a, b, c)

	// The script cache is not the data.
	p.server.Do(t, "SCRIPT", "FLUSH")
	p.pass(2*time.Second, a, b, c)
	p.count(3, a, b, c)
}
