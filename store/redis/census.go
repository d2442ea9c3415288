package redis

import (
	"crypto/rand"
	_ "embed"
	"encoding/binary"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed heartbeat.lua
var heartbeat string

const (
	// beatEvery is the usual time between two beats, and so how long a loss
	// of data may go unnoticed.
	beatEvery = time.Second
	// aliveFor is how long an instance is alive after a beat.
	aliveFor = 10 * time.Second
	// evictionTime is how often a server that is full, and goes on evicting,
	// is reported to have lost data.
	evictionTime = 10 * time.Second
	// beatReply is the size of the script's reply.
	beatReply = 7 + 7 + 4 + 7 + 7
)

// census counts the instances that use a store, and finds out when a server
// has lost data, by the list of instances that each server keeps.
//
// The number of instances grows at once, and falls only after it was lower for
// as long as an instance stays alive without a beat: a server that came back
// empty must not make every instance believe that it is alone.
type presence struct {
	name string // of this instance, 8 bytes
	beat atomic.Int64
	most atomic.Int64 // instances, of the list that has the most

	mu    sync.Mutex
	lists map[string]*listed // by the list's key
}

// listed is what is known of a list.
type listed struct {
	heard   time.Time // of it last; zero if contact was lost since
	birth   int64
	beat    int64 // the latest one that the server has confirmed
	evicted int64
	told    time.Time // when evictions were last reported

	instances int64
	// Since lowSince the list has held fewer than that, but at most low.
	lowSince time.Time
	low      int64
}

func newPresence(instances int) *presence {
	c := &presence{lists: make(map[string]*listed)}
	var name [8]byte
	_, _ = rand.Read(name[:]) // never fails
	c.name = string(name[:])
	c.most.Store(int64(max(instances, 1)))
	return c
}

// instances is how many there are, at least 1.
func (c *presence) instances() int { return int(c.most.Load()) }

// command is the next beat for a list, and its number. The last one of a
// store's life is number 0.
func (c *presence) command(key string, leaves bool) (*beatCommand, int64) {
	beat := int64(0)
	if !leaves {
		beat = c.beat.Add(1)
	}
	cmd := redis.NewStringCmd(background, "eval", heartbeat, 1, key, c.name, beat, aliveFor.Microseconds())
	return &beatCommand{StringCmd: cmd}, beat
}

// beatCommand is a beat in a pipeline.
type beatCommand struct {
	*redis.StringCmd
	written time.Time // zero if it was not: then it has not been executed
}

// Args overrides the library's, which asks for them when it writes them.
func (b *beatCommand) Args() []any {
	b.written = time.Now()
	return b.StringCmd.Args()
}

// NoRetry overrides the library's.
func (*beatCommand) NoRetry() bool { return true }

// heard takes in the reply to a beat. lost tells how it shows that the server
// has lost data, "" if it does not.
func (c *presence) heard(key, reply string, beat int64, now time.Time) (lost string, err error) {
	if len(reply) != beatReply {
		return "", fmt.Errorf("%w: %d bytes for a heartbeat", errReply, len(reply))
	}
	number := func(from, size int) int64 { return numberIn(reply, from, size) }
	birth, before, alive, evicted := number(0, 7), number(7, 7), number(14, 4), number(18, 7)

	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.lists[key]
	if l == nil {
		l = &listed{birth: birth, instances: c.most.Load()}
		c.lists[key] = l
	}
	inTouch := !l.heard.IsZero()
	switch {
	case birth != l.birth:
		lost = "the data is gone"
	case before < l.beat && (before > 0 || inTouch && now.Sub(l.heard) < aliveFor/2):
		lost = "writes that were confirmed are gone"
	case inTouch && evicted > l.evicted:
		if l.told.IsZero() || now.Sub(l.told) >= evictionTime {
			lost = "keys were evicted"
			l.told = now
		}
	}
	l.heard, l.birth, l.beat, l.evicted = now, birth, beat, evicted

	switch {
	case alive >= l.instances:
		l.instances, l.lowSince = alive, time.Time{}
	case l.lowSince.IsZero():
		l.lowSince, l.low = now, alive
	default:
		l.low = max(l.low, alive)
		if now.Sub(l.lowSince) >= aliveFor {
			l.instances, l.lowSince = l.low, time.Time{}
		}
	}
	c.countLocked()
	return lost, nil
}

// originIn is the identity of the server's data in a reply to a beat that
// [census.heard] has taken, 0 if the server does not tell.
func originIn(reply string) int64 { return numberIn(reply, 25, 7) }

// numberIn is the number in so many bytes of a reply.
func numberIn(reply string, from, size int) int64 {
	var b [8]byte
	copy(b[8-size:], reply[from:from+size])
	return int64(binary.BigEndian.Uint64(b[:]))
}

// silent notes that a server does not answer: what it says next about who is
// alive is not to be believed at once.
func (c *presence) silent(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.lists[key]; l != nil {
		l.heard, l.lowSince = time.Time{}, time.Time{}
	}
}

// keep forgets all lists but some: no server is asked for the others any more.
func (c *presence) keep(some map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.lists, func(key string, _ *listed) bool { return !some[key] })
	c.countLocked()
}

func (c *presence) countLocked() {
	most := int64(0)
	for _, l := range c.lists {
		most = max(most, l.instances)
	}
	if most > 0 {
		c.most.Store(most)
	}
}
