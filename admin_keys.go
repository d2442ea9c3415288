package distributedratelimit

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// limitAnswer says which limit an answer is about.
type limitAnswer struct {
	Zone   string `json:"zone"`
	Store  string `json:"store"`
	DryRun bool   `json:"dry_run"`
}

func (z *usedZone) where() limitAnswer {
	return limitAnswer{Zone: z.Name, Store: z.store, DryRun: z.DryRun}
}

// elsewhere is how soon other instances follow, as answers tell it; empty if there
// can be none.
func (z *usedZone) elsewhere() string { return z.backend.elsewhere() }

func (b *backend) elsewhere() string {
	if _, shared := b.store.(store.Shared); !shared {
		return ""
	}
	return holdsElsewhere.String()
}

// keyAnswer is the answer to GET zones/<zone>/keys.
type keyAnswer struct {
	limitAnswer
	Key string `json:"key"`
	// Plan is the one whose limit it is, in a zone with a tier.
	Plan string `json:"plan,omitempty"`
	// Limit is missing if it is unlimited; Override tells that it was set by hand.
	Limit    *int64  `json:"limit,omitempty"`
	Window   float64 `json:"window,omitempty"`
	Override bool    `json:"override,omitempty"`
	// Used counts what leases hold as well. It is missing if the store is away.
	Used      *int64 `json:"used,omitempty"`
	Remaining *int64 `json:"remaining,omitempty"`
	// Reset is how long it takes until nothing is used any more, in seconds.
	Reset float64 `json:"reset"`
	// BlockedUntil is when a ban ends, that BlockedBy set: "hand" or "block_for".
	BlockedUntil *time.Time `json:"blocked_until,omitempty"`
	BlockedBy    string     `json:"blocked_by,omitempty"`
	// Source is who says so: "store", or "local", this instance alone.
	Source     string `json:"source"`
	StoreError string `json:"store_error,omitempty"`
}

const (
	blockedByHand = "hand"
	blockedByRule = "block_for"
)

// adminLook is GET zones/<zone>/keys. It changes nothing.
func adminLook(c *adminCall) (any, error) {
	p, err := c.params("key", "client_ip", "plan")
	if err != nil {
		return nil, err
	}
	z, err := c.limit(p)
	if err != nil {
		return nil, err
	}
	key, readable, err := p.key(z)
	if err != nil {
		return nil, err
	}
	answer := &keyAnswer{limitAnswer: z.where(), Key: readable, Window: seconds(z.window)}
	limit, err := answer.setLimit(z, p)
	if err != nil {
		return nil, err
	}
	if z.Concurrent != nil {
		answer.lookInFlight(z, key, limit)
	} else {
		answer.look(z, key, limit)
	}
	if b, ok := z.bannedByHand(key); ok {
		// It holds whatever the log says, which may be a new one, or none.
		answer.BlockedUntil, answer.BlockedBy = momentOf(b.until), blockedByHand
		answer.Reset = max(answer.Reset, seconds(time.Until(b.until)))
	}
	return answer, nil
}

// setLimit sets the limit of the plan that is asked for, and returns it.
func (a *keyAnswer) setLimit(z *usedZone, p params) (limit int64, err error) {
	plan, asked := p["plan"]
	switch {
	case z.tier == nil && asked:
		return 0, adminError(http.StatusBadRequest, "zone %s has no plans; leave plan out", z.Name)
	case z.tier == nil:
		limit = z.limit
	default:
		if a.Plan, limit, err = z.plan(plan); err != nil {
			return 0, err
		}
	}
	if byHand, ok := z.limitByHand(a.Plan); ok {
		limit, a.Override = byHand, true
	}
	if limit != unlimited {
		a.Limit = &limit
	}
	return limit, nil
}

// plan is the name and the limit of a plan; "" is the default.
func (z *Zone) plan(name string) (string, int64, error) {
	if name == "" || name == wordDefault {
		return wordDefault, z.tier.byDefault, nil
	}
	limit, ok := z.tier.limits[name]
	if !ok {
		return "", 0, adminError(http.StatusBadRequest, "zone %s has no plan %q; there are: %s, %s",
			z.Name, bounded(name), strings.Join(slices.Sorted(maps.Keys(z.tier.limits)), ", "), wordDefault)
	}
	return name, limit, nil
}

// look asks the store. Without one, this instance tells what it counts by itself.
func (a *keyAnswer) look(z *usedZone, key string, limit int64) {
	// More may be used than the limit, if that has become less.
	requests := []store.Request{{Key: store.Key{Zone: z.storeName, Client: key, Window: z.window}, Limit: store.MaxEvents, Exact: true}}
	decisions := make([]store.Decision, 1)
	err := z.backend.Guard.Look(steerTime, requests, decisions)
	d := &decisions[0]
	a.Source = d.Source.String()
	if err != nil {
		a.StoreError = err.Error()
	}
	a.Reset = seconds(d.Reset)
	if d.Blocked {
		a.BlockedUntil, a.BlockedBy = momentOf(time.Now().Add(d.RetryAfter)), blockedByRule
	}
	if d.Source != store.FromStore {
		if limit != unlimited {
			requests[0].Limit = limit
			_ = z.backend.Guard.Look(0, requests, decisions)
			a.Remaining = &d.Remaining
		}
		return
	}
	used := store.MaxEvents - d.Remaining
	a.Used = &used
	if limit != unlimited {
		remaining := max(0, limit-used)
		a.Remaining = &remaining
	}
}

// lookInFlight asks how many requests are in flight.
func (a *keyAnswer) lookInFlight(z *usedZone, key string, limit int64) {
	d, err := z.backend.limiter.Look(steerTime, inflight.Request{
		Key: inflight.Key{Zone: z.storeName, Client: key}, Limit: limit, Alone: z.alone(limit, z.backend.Guard.Instances()),
	})
	a.Source = d.Source.String()
	if err != nil {
		a.StoreError = err.Error()
	}
	remaining := max(0, limit-d.InFlight)
	a.Used, a.Remaining = &d.InFlight, &remaining
}

// changeAnswer is the answer to what changes a key.
type changeAnswer struct {
	limitAnswer
	Key string `json:"key"`
	// Found is whether there was a ban set by hand, to DELETE zones/<zone>/bans.
	Found *bool `json:"found,omitempty"`
	// Kept is whether the units count on.
	Kept *bool `json:"kept,omitempty"`
	// Until is when a ban ends.
	Until *time.Time `json:"until,omitempty"`
	// HoldsElsewhereWithin is how soon all other instances follow.
	HoldsElsewhereWithin string `json:"holds_elsewhere_within,omitempty"`
}

// change finds the key that a call changes.
func (c *adminCall) change(names ...string) (z *usedZone, p params, key string, answer *changeAnswer, err error) {
	if p, err = c.params(append([]string{"key", "client_ip"}, names...)...); err != nil {
		return nil, nil, "", nil, err
	}
	if z, err = c.limit(p); err != nil {
		return nil, nil, "", nil, err
	}
	key, answer, err = z.changes(p)
	return z, p, key, answer, err
}

// changes is the key of the zone that the parameters name, and the answer to what changes it.
func (z *usedZone) changes(p params) (key string, answer *changeAnswer, err error) {
	key, readable, err := p.key(z)
	if err != nil {
		return "", nil, err
	}
	return key, &changeAnswer{limitAnswer: z.where(), Key: readable, HoldsElsewhereWithin: z.elsewhere()}, nil
}

// adminReset is DELETE zones/<zone>/keys.
func adminReset(c *adminCall) (any, error) {
	z, _, key, answer, err := c.change()
	if err != nil {
		return nil, err
	}
	if err := z.reset(key); err != nil {
		return nil, steeringError(err)
	}
	return answer, nil
}

// number reads a whole number.
func (p params) number(name, example string) (int64, error) {
	text, ok := p[name]
	if !ok {
		return 0, adminError(http.StatusBadRequest, "%s is missing; write for example %s=%s", name, name, example)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, adminError(http.StatusBadRequest, "%s=%s is no whole number; write for example %s=%s", name, bounded(text), name, example)
	}
	return n, nil
}
