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

// presence knows how many instances use a store, and notices when a server has
// lost data, by the list of instances that each server keeps.
//
// The number of instances grows at once, and falls only after it has been lower
// for as long as an instance stays alive without a beat: a server that came back
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
	heard   time.Time // of the last reply; zero if contact was lost since
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
	p := &presence{lists: make(map[string]*listed)}
	var name [8]byte
	_, _ = rand.Read(name[:]) // never fails
	p.name = string(name[:])
	p.most.Store(int64(max(instances, 1)))
	return p
}

// listKey is the key of a list of instances; on a Cluster, in the slot of a tag.
func listKey(prefix, tag string) string {
	key := prefix + ":instances"
	if tag != "" {
		key += ":{" + tag + "}"
	}
	return key
}

// instances is how many there are, at least 1.
func (p *presence) instances() int { return int(p.most.Load()) }

// command is the next beat for a list, and its number. An instance that leaves
// sends number 0. The beat may carry lives, see [lives.tell].
func (p *presence) command(key string, leaves bool, lives ...string) (*beatCommand, int64) {
	beat := int64(0)
	if !leaves {
		beat = p.beat.Add(1)
	}
	args := []any{"eval", heartbeat, 1, key, p.name, beat, aliveFor.Microseconds()}
	if len(lives) > 0 {
		args = []any{"eval", heartbeat, 2, key, lives[0], p.name, beat, aliveFor.Microseconds(), lives[1], lifeTime.Microseconds()}
	}
	cmd := redis.NewStringCmd(background, args...)
	return &beatCommand{StringCmd: cmd}, beat
}

// beatCommand is a beat in a pipeline.
type beatCommand struct {
	*redis.StringCmd
	written time.Time // zero if it was not, and so was not executed
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
func (p *presence) heard(key, reply string, beat int64, now time.Time) (lost string, err error) {
	if len(reply) != beatReply {
		return "", fmt.Errorf("%w: %d bytes for a heartbeat", errReply, len(reply))
	}
	number := func(from, size int) int64 { return numberIn(reply, from, size) }
	birth, before, alive, evicted := number(0, 7), number(7, 7), number(14, 4), number(18, 7)

	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.lists[key]
	if l == nil {
		l = &listed{birth: birth, instances: p.most.Load()}
		p.lists[key] = l
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
	p.countLocked()
	return lost, nil
}

// originIn is the identity of the server's data in a reply to a beat that
// [presence.heard] has taken, 0 if the server does not tell.
func originIn(reply string) int64 { return numberIn(reply, 25, 7) }

// numberIn is the number in so many bytes of a reply.
func numberIn(reply string, from, size int) int64 {
	var b [8]byte
	copy(b[8-size:], reply[from:from+size])
	return int64(binary.BigEndian.Uint64(b[:]))
}

// silent notes that a server does not answer: what it says next about instances
// is not to be believed at once.
func (p *presence) silent(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.lists[key]; l != nil {
		l.heard, l.lowSince = time.Time{}, time.Time{}
	}
}

// keep forgets all lists but some: no server keeps the others any more.
func (p *presence) keep(some map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.lists, func(key string, _ *listed) bool { return !some[key] })
	p.countLocked()
}

func (p *presence) countLocked() {
	most := int64(0)
	for _, l := range p.lists {
		most = max(most, l.instances)
	}
	if most > 0 {
		p.most.Store(most)
	}
}
