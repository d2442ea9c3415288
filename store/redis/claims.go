package redis

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

//go:embed inflight.lua
var inflightSource string

// inflightScript decides claims.
var inflightScript = newScript(inflightSource)

const (
	// claimReply is how many bytes the script returns for a claim, without the
	// names of processes that may be dead.
	claimReply = 5 + 6 + 2
	// maxDead is how many names of dead processes a claim carries.
	maxDead = 255
	// maxDrops is how often a claim is repeated in order to drop what dead
	// processes hold.
	maxDrops = 3
)

// claimKey is the key of the record of slots of a client: it differs from that of
// a log in the version, which is of the format in inflight.lua, and has no window.
func (k *keys) claimKey(key *inflight.Key) string {
	h := k.hash(key.Client)
	var buf [128]byte
	b := append(buf[:0], k.prefix...)
	b = append(b, ":s1:"...)
	b = appendZone(b, key.Zone)
	b = append(b, ":{"...)
	b = append(b, h[:]...)
	b = append(b, '}')
	return string(b)
}

// claimCall is the call that makes a claim, and has some dead processes dropped.
func (k *keys) claimCall(wait time.Duration, c *inflight.Claim, dead []string) *call {
	var b [32]byte
	if c.Keep {
		b[0] = 1
	}
	copy(b[1:9], c.Life)
	put(b[9:16], c.Seq)
	put(b[16:21], c.Held)
	put(b[21:26], c.Want)
	put(b[26:31], c.Limit)
	b[31] = byte(len(c.Former))
	packed := append(b[:], byte(len(dead)))
	for _, name := range c.Former {
		packed = append(packed, name...)
	}
	for _, name := range dead {
		packed = append(packed, name...)
	}
	made := newCall(kindClaim, wait, 1)
	made.items[0].key, made.items[0].spent = k.claimKey(&c.Key), packed
	made.awaited = c.Want > 0
	return made
}

// claimSize is how many bytes of a reply are the first claim's, -1 if they are not
// all there.
func claimSize(reply string) int {
	if len(reply) < claimReply {
		return -1
	}
	size := claimReply + inflight.LifeSize*int(binary.BigEndian.Uint16([]byte(reply[11:13])))
	if size > len(reply) {
		return -1
	}
	return size
}

// claiming is a claim that is being made.
type claiming struct {
	claim *inflight.Claim
	node  *node
	call  *call
}

// Claim puts claims to the servers, see [inflight.Shared].
func (s *Store) Claim(wait time.Duration, claims []inflight.Claim, outcomes []inflight.Outcome) {
	began := time.Now()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var up <-chan time.Time = timer.C
	under := make([]claiming, len(claims))
	for i := range claims {
		outcomes[i] = inflight.Outcome{}
		if err := s.claim(wait, &under[i], &claims[i], nil); err != nil {
			outcomes[i].Err = err
		}
	}
	for i := range under {
		if outcomes[i].Err != nil {
			continue
		}
		if err := s.concludeClaim(&under[i], wait-time.Since(began), up, &outcomes[i]); err != nil {
			outcomes[i].Err = err
			if err.Kind == store.KindTimeout {
				up = elapsed // for the others, too
			}
		}
	}
}

// concludeClaim waits for the outcome of a claim. If it is refused, and dead processes hold
// slots, it repeats the claim with their names: it is the same claim, which asks for
// the same in all.
func (s *Store) concludeClaim(c *claiming, rest time.Duration, up <-chan time.Time, o *inflight.Outcome) *store.Error {
	end := time.Now().Add(rest)
	dead, err := s.outcome(c, up, o)
	for drops := 0; err == nil && len(dead) > 0 && drops < maxDrops; drops++ {
		if s.claim(time.Until(end), c, c.claim, dead) != nil {
			break // what has been decided stands
		}
		if dead, err = s.outcome(c, up, o); err != nil && err.Unexecuted {
			return nil
		}
	}
	return err
}

// claim sends a claim.
func (s *Store) claim(wait time.Duration, into *claiming, c *inflight.Claim, dead []string) *store.Error {
	if err := c.Validate(); err != nil {
		return &store.Error{Kind: store.KindReply, Unexecuted: true, Err: err}
	}
	if wait <= 0 {
		return &store.Error{Kind: store.KindBudget, Unexecuted: true, Err: errors.New("not asked, since there is no time to wait for a decision")}
	}
	n := s.one
	if s.cluster != nil {
		table, err := s.cluster.layout(wait)
		if err != nil {
			return err
		}
		if n, err = s.cluster.owner(table, s.keys.slot(c.Client)); err != nil {
			return err
		}
	}
	if c.Want > 0 {
		n.patientFor(wait)
	}
	*into = claiming{claim: c, node: n, call: s.keys.claimCall(wait, c, dead)}
	return n.submit(into.call)
}

// outcome waits for the outcome of a claim, and returns which of the processes that
// hold slots are dead, if it is refused.
func (s *Store) outcome(c *claiming, up <-chan time.Time, o *inflight.Outcome) (dead []string, failed *store.Error) {
	reply, failed := c.call.await(up)
	if failed != nil {
		return nil, failed
	}
	if claimSize(reply) != len(reply) {
		return nil, &store.Error{Kind: store.KindReply, Err: fmt.Errorf("%w: %d bytes for a claim", errReply, len(reply))}
	}
	o.Granted, o.InFlight = numberIn(reply, 0, 5), numberIn(reply, 5, 6)
	for at := claimReply; at < len(reply) && len(dead) < maxDead; at += inflight.LifeSize {
		if name := reply[at : at+inflight.LifeSize]; s.lives.dead(name) {
			dead = append(dead, name)
		}
	}
	return dead, nil
}

// Attend has the servers hear that a life goes on, see [inflight.Shared].
func (s *Store) Attend(life func() string, doubt func(life string)) (stop func()) {
	return s.lives.attend(life, doubt)
}

var _ inflight.Shared = (*Store)(nil)
