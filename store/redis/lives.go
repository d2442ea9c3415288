package redis

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

const (
	// lifeTime is how long a life goes on after a heartbeat, in a server's list. A
	// process that was silent for longer takes a new name, while others still
	// believe that it is alive.
	lifeTime = 12 * time.Second
	// deadTime is how long a life must have been missing from the lists until it is
	// dead: one reply proves little, since a clock may have been set.
	deadTime = 3 * time.Second
	// listTime is how long a server must have kept its list, and this process must
	// have heard from it, before the list proves that somebody is dead. A server
	// that came back empty, or after a while, has heard nobody for as long.
	listTime = lifeTime + deadTime
	// forgetTime is how long it is remembered when a list or a life was seen last.
	forgetTime = time.Minute
)

// lives knows which processes that hold slots are alive: they have their heartbeats
// carry a name. Each server keeps a list of them beside its list of instances.
type lives struct {
	prefix string

	mu       sync.Mutex
	attended []*attended
	lists    map[string]*livesList // by the key of the list of instances
}

// attended is a life of this process.
type attended struct {
	life  func() string
	doubt func(life string)
}

// livesList is what is known of a server's list.
type livesList struct {
	birth  int64
	origin int64                // identity of the server's data, 0 if it does not tell
	since  time.Time            // contact has not been lost since
	heard  time.Time            // of the last reply
	told   map[string]bool      // lives of this process that the server has heard of
	others map[string]time.Time // lives of others, and when they were last alive
}

func newLives(prefix string) *lives {
	return &lives{prefix: prefix, lists: make(map[string]*livesList)}
}

// attend has heartbeats carry a life until stop is called.
func (l *lives) attend(life func() string, doubt func(string)) (stop func()) {
	a := &attended{life, doubt}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attended = append(l.attended, a)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.attended = slices.DeleteFunc(l.attended, func(other *attended) bool { return other == a })
	}
}

// tell returns what a heartbeat carries, which is nothing if no life is attended: the
// key of the list of lives, next to a list of instances, and the names.
func (l *lives) tell(list string) []string {
	names := ""
	for _, a := range l.all() {
		names += a.life()
	}
	if names == "" {
		return nil
	}
	tag, ok := strings.CutPrefix(list, l.prefix+":instances:")
	if !ok {
		tag = "{" + list + "}" // in the same slot: the server may be a Cluster of one
	}
	return []string{l.prefix + ":lives:" + tag, names}
}

func (l *lives) all() []*attended {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.attended)
}

// heard takes in the reply to a heartbeat that carried some names, and the identity of
// the server's data. If that is another one, a server has taken over that may lack the
// latest claims, of slots that were released too, even if no loss shows.
func (l *lives) heard(list, names, reply string, origin int64, now time.Time) error {
	count := len(names) / inflight.LifeSize
	if len(reply) < 7+count || (len(reply)-7-count)%inflight.LifeSize != 0 {
		return fmt.Errorf("%w: %d bytes about %d lives", errReply, len(reply), count)
	}
	for _, name := range l.take(list, names, reply, origin, now) {
		l.doubt(name)
	}
	return nil
}

// take is heard, and returns the lives in doubt.
func (l *lives) take(list, names, reply string, origin int64, now time.Time) (doubtful []string) {
	birth := numberIn(reply, 0, 7)
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.lists, func(_ string, of *livesList) bool { return now.Sub(of.heard) > forgetTime })
	of := l.lists[list]
	if of == nil {
		of = &livesList{birth: birth, told: make(map[string]bool), others: make(map[string]time.Time)}
		l.lists[list] = of
	}
	if of.since.IsZero() || of.birth != birth {
		of.since, of.birth = now, birth
	}
	other := of.origin != 0 && origin != 0 && origin != of.origin
	if of.heard = now; origin != 0 {
		of.origin = origin
	}
	told := make(map[string]bool)
	reply = reply[7:]
	for at := 0; at < len(names); at += inflight.LifeSize {
		name := names[at : at+inflight.LifeSize]
		told[name] = true
		if of.told[name] && (other || reply[0] == 0) {
			doubtful = append(doubtful, name)
		}
		reply = reply[1:]
	}
	of.told = told
	for ; reply != ""; reply = reply[inflight.LifeSize:] {
		of.others[reply[:inflight.LifeSize]] = now
	}
	maps.DeleteFunc(of.others, func(_ string, seen time.Time) bool { return now.Sub(seen) > forgetTime })
	return doubtful
}

// doubt tells that a server may lack what was claimed under a name, or under all
// if it is empty.
func (l *lives) doubt(name string) {
	for _, a := range l.all() {
		if life := a.life(); name == "" || life == name {
			a.doubt(life)
		}
	}
}

// silent notes that a server does not answer.
func (l *lives) silent(list string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if of := l.lists[list]; of != nil {
		of.since = time.Time{}
	}
}

// dead reports whether a life has certainly ended: some list proves it, and nothing
// that was heard of other lists is against it.
func (l *lives) dead(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	proof := false
	for _, of := range l.lists {
		switch seen := of.others[name]; {
		case of.told[name]:
			return false
		case !seen.IsZero() && of.heard.Sub(seen) < deadTime:
			return false
		case of.since.IsZero():
		case of.heard.Sub(of.since) >= listTime:
			proof = true
		}
	}
	return proof
}
