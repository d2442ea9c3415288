package storetest

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// Records is an [inflight.Shared] in memory, which says in Go what a shared store
// does with claims. It fails when a test wants it to. It is safe for concurrent use.
type Records struct {
	mu      sync.Mutex
	records map[inflight.Key]map[string]Holding
	dead    map[string]bool // lives
	lives   []func() string
	doubts  []func(string)
	claims  int
	calls   int
	fault   func(c *inflight.Claim) Fault
	delay   time.Duration
}

// Holding is what a process holds of a key.
type Holding struct {
	Seq, Held int64
	Claimed   time.Time     // when it said so
	Remember  time.Duration // for how long that is remembered even if it holds none
}

// Fault is what becomes of a claim that fails.
type Fault int

// Faults.
const (
	None       Fault = iota
	Unexecuted       // it never reaches the store
	LostReply        // it is executed, and nobody hears of it
	Lost             // it is not executed, and nobody knows
)

const (
	rememberTime = time.Minute
	graceTime    = 15 * time.Second
	recordTime   = 3 * time.Hour
)

// NewRecords returns records of nothing.
func NewRecords() *Records {
	return &Records{records: make(map[inflight.Key]map[string]Holding), dead: make(map[string]bool)}
}

// Fail sets what becomes of claims from now on; nil is nothing special.
func (r *Records) Fail(fault func(c *inflight.Claim) Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

// Delay sets how long calls take from now on.
func (r *Records) Delay(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = d
}

// Kill makes a life known to be dead.
func (r *Records) Kill(life string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead[life] = true
}

// Lose forgets all records and, if tell is set, has the processes notice.
func (r *Records) Lose(tell bool) {
	r.mu.Lock()
	clear(r.records)
	r.mu.Unlock()
	if tell {
		r.Doubt()
	}
}

// Doubt has the processes believe that something was lost.
func (r *Records) Doubt() {
	r.mu.Lock()
	lives, doubts := slices.Clone(r.lives), slices.Clone(r.doubts)
	r.mu.Unlock()
	for i, life := range lives {
		doubts[i](life())
	}
}

// Held is how many slots of a key are held.
func (r *Records) Held(key inflight.Key) (sum int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.records[key] {
		sum += h.Held
	}
	return sum
}

// Keys is how many records there are.
func (r *Records) Keys() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.records)
}

// Counts returns how many calls and claims were made.
func (r *Records) Counts() (calls, claims int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls, r.claims
}

// Attend implements inflight.Shared.
func (r *Records) Attend(life func() string, doubt func(string)) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lives, r.doubts = append(r.lives, life), append(r.doubts, doubt)
	return func() {}
}

var errFault = errors.New("as the test wants it")

// Claim implements inflight.Shared.
func (r *Records) Claim(wait time.Duration, claims []inflight.Claim, outcomes []inflight.Outcome) {
	r.mu.Lock()
	r.calls++
	r.claims += len(claims)
	delay := r.delay
	faults := make([]Fault, len(claims))
	for i := range claims {
		if r.fault != nil {
			faults[i] = r.fault(&claims[i])
		}
	}
	r.mu.Unlock()
	if slices.ContainsFunc(faults, func(f Fault) bool { return f > Unexecuted }) || delay > wait {
		defer time.Sleep(wait)
	} else {
		time.Sleep(delay)
	}
	for i := range claims {
		outcomes[i] = inflight.Outcome{}
		if faults[i] == None || faults[i] == LostReply {
			outcomes[i] = r.Decide(claims[i], time.Now())
		}
		switch {
		case faults[i] == Unexecuted:
			outcomes[i].Err = &store.Error{Kind: store.KindAway, Unexecuted: true, Err: errFault}
		case faults[i] > Unexecuted || delay > wait:
			outcomes[i].Err = &store.Error{Kind: store.KindTimeout, Err: errFault}
		}
	}
}

// Decide decides a claim. It names all lives that are known to be dead, as a store
// does that repeats a refused claim.
func (r *Records) Decide(c inflight.Claim, now time.Time) inflight.Outcome {
	r.mu.Lock()
	dead := slices.Collect(maps.Keys(r.dead))
	r.mu.Unlock()
	o, _ := r.DecideNaming(c, dead, now)
	return o
}

// DecideNaming decides a claim that names dead lives. If it is refused, aged are the
// lives that hold slots and have made no claim for a while.
func (r *Records) DecideNaming(c inflight.Claim, dead []string, now time.Time) (o inflight.Outcome, aged []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	record, sum := r.records[c.Key], int64(0)
	others := make(map[string]Holding)
	for life, h := range record {
		age := now.Sub(h.Claimed).Abs()
		if life == c.Life || h.Held == 0 && age >= h.Remember || age > recordTime || slices.Contains(c.Former, life) ||
			age > graceTime && slices.Contains(dead, life) {
			continue
		}
		others[life] = h
		sum += h.Held
		if h.Held > 0 && age > graceTime {
			aged = append(aged, life)
		}
	}
	mine := record[c.Life]
	if c.Seq < mine.Seq {
		if c.Want == 0 {
			aged = nil
		}
		return inflight.Outcome{InFlight: sum + mine.Held}, aged
	}
	remember := max(0, min(rememberTime, seconds(mine.Claimed.Sub(now))+mine.Remember))
	if mine.Seq == 0 {
		remember = 0
	}
	if c.Keep {
		remember = rememberTime
	}
	o.Granted = max(0, min(c.Want, c.Limit-sum-c.Held))
	mine = Holding{Seq: c.Seq, Held: c.Held + o.Granted, Claimed: now, Remember: remember}
	if mine.Held > 0 || remember > 0 {
		others[c.Life] = mine
	}
	r.records[c.Key] = others
	if len(others) == 0 {
		delete(r.records, c.Key)
	}
	o.InFlight = sum + mine.Held
	if o.Granted == c.Want {
		aged = nil
	}
	return o, aged
}

// seconds rounds up.
func seconds(d time.Duration) time.Duration {
	up := d.Truncate(time.Second)
	if up < d {
		up += time.Second
	}
	return up
}
