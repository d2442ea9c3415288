package distributedratelimit

import (
	"math"
	"time"
)

// Answers of the admin API, which the commands read as well. Lengths of time are in
// seconds, moments are RFC 3339; a moment that never was is left out. docs/admin-api.md
// says what each field means.

// zoneAnswer is one limit, in the answer to GET zones and GET zones/<zone>.
type zoneAnswer struct {
	Name   string `json:"name"`
	Store  string `json:"store"`
	DryRun bool   `json:"dry_run"`

	Events       *int64           `json:"events,omitempty"`
	Tier         *tierAnswer      `json:"tier,omitempty"`
	Concurrent   *int64           `json:"concurrent,omitempty"`
	Window       float64          `json:"window,omitempty"`
	Key          string           `json:"key"`
	KeyNormalize string           `json:"key_normalize,omitempty"`
	OnEmptyKey   string           `json:"on_empty_key,omitempty"` // nothing if the key is never empty
	IPv4Prefix   int              `json:"ipv4_prefix,omitempty"`  // if an address may be in the key
	IPv6Prefix   int              `json:"ipv6_prefix,omitempty"`
	Match        []string         `json:"match,omitempty"`
	Exempt       []string         `json:"exempt,omitempty"`
	Cost         string           `json:"cost,omitempty"`
	CountIf      bool             `json:"count_if,omitempty"`
	BlockFor     float64          `json:"block_for,omitempty"`
	Usage        *usageAnswer     `json:"usage,omitempty"`
	Hide         bool             `json:"hide,omitempty"`
	OnError      string           `json:"on_store_error"`
	LogKey       bool             `json:"log_key"`
	UsedBy       []usedBy         `json:"used_by"`
	Counters     zoneCounts       `json:"counters"`
	Overrides    []overrideAnswer `json:"overrides"`
	BansByHand   int              `json:"bans_by_hand"`
	InFlight     *int64           `json:"in_flight,omitempty"` // of this instance, with concurrent
	AtMost       *multiple        `json:"at_most"`
}

// tierAnswer is a table of limits.
type tierAnswer struct {
	Plan    string               `json:"plan"`
	Limits  map[string]PlanLimit `json:"limits"`
	Default PlanLimit            `json:"default"`
}

// usageAnswer is what a budget in front of an LLM API is about.
type usageAnswer struct {
	API  string `json:"api"`
	Unit string `json:"unit"`
}

// usedBy is an HTTP server whose handlers have a zone.
type usedBy struct {
	Server   string   `json:"server"`
	Listen   []string `json:"listen,omitempty"`
	Handlers int      `json:"handlers"`
}

// zoneCounts are the counters of a zone's name since the process began, or the zone came
// to be. They are those of the metrics.
type zoneCounts struct {
	Requests counts            `json:"requests"` // by outcome and source
	Refusals counts            `json:"refusals"` // by outcome and reason
	Settled  map[string]uint64 `json:"settled,omitempty"`
	Bans     uint64            `json:"bans"`
}

type counts map[string]map[string]uint64

// overrideAnswer is another limit that holds for a while.
type overrideAnswer struct {
	Plan   string    `json:"plan,omitempty"`
	Events int64     `json:"events"`
	Window float64   `json:"window,omitempty"` // of the zone when it was set; missing with concurrent
	Note   string    `json:"note,omitempty"`
	Set    time.Time `json:"set"`
	Until  time.Time `json:"until"`
	// InForce is false if the zone is not, or not as it was then, in the configuration;
	// Because says why.
	InForce bool   `json:"in_force"`
	Because string `json:"because,omitempty"`
}

// answer is what is told of an override, and why it is idle.
func (o *override) answer(idle string) overrideAnswer {
	return overrideAnswer{
		Plan: o.plan, Events: o.events, Window: seconds(o.window), Note: o.note, Set: *momentOf(o.set), Until: *momentOf(o.until),
		InForce: idle == "", Because: idle,
	}
}

// storeAnswer is one store, in the answer to GET stores.
type storeAnswer struct {
	Name      string         `json:"name"`
	Condition string         `json:"condition"` // up, slow, away, partly or unknown
	Servers   []serverAnswer `json:"servers"`
	Instances int            `json:"instances"`
	RoundTrip float64        `json:"round_trip,omitempty"`
	Leases    *leasesAnswer  `json:"leases,omitempty"` // if the store has any
	Memory    *memoryAnswer  `json:"memory,omitempty"` // of the store memory

	Unreported unreportedAnswer `json:"unreported"`
	LocalKeys  int              `json:"local_keys"`
	Local      *time.Time       `json:"last_decided_locally,omitempty"`
	Allowed    *time.Time       `json:"last_allowed,omitempty"`
	Lost       *time.Time       `json:"last_loss,omitempty"`
	InFlight   int64            `json:"in_flight"`
	AtMost     *multiple        `json:"at_most"`
}

// serverAnswer is a server of a store.
type serverAnswer struct {
	Server    string     `json:"server"`
	Condition string     `json:"condition"`
	Since     *time.Time `json:"since,omitempty"`
	Error     string     `json:"error,omitempty"` // why it is away
	Took      float64    `json:"took,omitempty"`  // how long it took to answer when it became slow
	Budget    float64    `json:"budget,omitempty"`
	Losses    int        `json:"losses"`
	Lost      *time.Time `json:"last_loss,omitempty"`
	How       string     `json:"how,omitempty"`
}

// leasesAnswer is what this instance holds of the limits of a store.
type leasesAnswer struct {
	Keys     int   `json:"keys"`
	Leased   int   `json:"leased_keys"`
	Units    int64 `json:"units"`
	Refusals int   `json:"refusals"`
}

type memoryAnswer struct {
	Keys    int `json:"keys"`
	MaxKeys int `json:"max_keys"`
}

// unreportedAnswer is what a store is still to be told.
type unreportedAnswer struct {
	Keys    int   `json:"keys"`
	Units   int64 `json:"units"`
	Refunds int   `json:"refunds"`
}

// multiple is a number of limits; null in an answer if it has no bound.
type multiple float64

func multipleOf(n float64) *multiple {
	if math.IsInf(n, 1) {
		return nil
	}
	m := multiple(n)
	return &m
}

// seconds is a length of time as answers tell it.
func seconds(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }

// momentOf is a moment as answers tell it, nil for none.
func momentOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Round(time.Millisecond)
	return &t
}

// explainAnswer is the answer to POST explain.
type explainAnswer struct {
	Server string `json:"server"`
	// Granted: no handler that the request reaches would refuse it.
	Granted  bool               `json:"granted"`
	Handlers []explainedHandler `json:"handlers"`
	// Ends is what would respond.
	Ends string `json:"ends"`
	// Assumed is what the explanation takes for granted.
	Assumed []string `json:"assumed"`
}

// explainedHandler is what one distributed_ratelimit handler would do.
type explainedHandler struct {
	Client     explainedClient `json:"client"`
	Granted    bool            `json:"granted"`
	Reason     string          `json:"reason,omitempty"`
	Status     int             `json:"status,omitempty"`
	Error      string          `json:"error,omitempty"`       // of a matcher: the request fails
	StoreError string          `json:"store_error,omitempty"` // why the store did not answer
	Zones      []explainedZone `json:"zones"`
}

type explainedClient struct {
	IP      string `json:"ip"`
	Rule    string `json:"rule"`
	Because string `json:"because"`
}

// explainedZone is what one zone says.
type explainedZone struct {
	Zone    string `json:"zone"`
	Store   string `json:"store"`
	DryRun  bool   `json:"dry_run"`
	Applies bool   `json:"applies"`
	// Because is why it does not apply: not_matched, exempt, empty_key, charged, free or
	// unread.
	Because string          `json:"because,omitempty"`
	Exempt  string          `json:"exempt,omitempty"` // which matchers
	Lacks   []explainedLack `json:"lacks,omitempty"`

	Key       string   `json:"key,omitempty"`
	Plan      string   `json:"plan,omitempty"`
	Unlimited bool     `json:"unlimited,omitempty"`
	Limit     *int64   `json:"limit,omitempty"`
	Override  bool     `json:"override,omitempty"` // the limit was set by hand
	Window    float64  `json:"window,omitempty"`
	Share     *int64   `json:"share,omitempty"` // of the limit, that this instance grants while the store is away
	Units     int64    `json:"units,omitempty"`
	Used      *int64   `json:"used,omitempty"`
	Remaining *int64   `json:"remaining,omitempty"`
	Reset     *float64 `json:"reset,omitempty"`

	BlockedUntil *time.Time `json:"blocked_until,omitempty"`
	BlockedBy    string     `json:"blocked_by,omitempty"` // hand or block_for
	MayBan       bool       `json:"may_ban,omitempty"`

	Granted *bool  `json:"granted,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Detail  string `json:"detail,omitempty"`
	Source  string `json:"source,omitempty"`
}

// explainedLack is a word of a zone for which the request has no value.
type explainedLack struct {
	Word string `json:"word"`
	Why  string `json:"why"`
}
