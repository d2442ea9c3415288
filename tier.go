package distributedratelimit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// Tier is a table of limits by plan. A client has one log whatever its plan is: a
// new plan holds for what was granted already, at once.
type Tier struct {
	// Where the plan of a request is read: text with placeholders, such as
	// `{http.vars.plan}`. What a client sends, such as a header, lets it choose
	// its own plan; set the plan where the client is authenticated. Required.
	Plan string `json:"plan,omitempty"`

	// The limit of each plan: how many units are granted in any interval of one
	// window, 0 to 1,000,000,000,000, or `unlimited`, which is neither limited nor
	// counted. 0 refuses everything. At least one plan.
	Limits map[string]PlanLimit `json:"limits,omitempty"`

	// The limit of requests without a plan, or with one that is not in the
	// table: a number, `unlimited`, or the name of a plan. Required.
	Default *PlanLimit `json:"default,omitempty"`
}

// PlanLimit is a limit in the table: in JSON a number, `unlimited`, or, as the
// default, the name of a plan.
type PlanLimit struct {
	Events    int64
	Unlimited bool
	Plan      string // whose limit it is; the other fields are zero
}

const wordUnlimited = "unlimited"

// MarshalJSON implements json.Marshaler.
func (l PlanLimit) MarshalJSON() ([]byte, error) {
	switch {
	case l.Plan != "":
		return json.Marshal(l.Plan)
	case l.Unlimited:
		return json.Marshal(wordUnlimited)
	}
	return json.Marshal(l.Events)
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *PlanLimit) UnmarshalJSON(data []byte) error {
	*l = PlanLimit{}
	var word string
	if json.Unmarshal(data, &word) != nil {
		if err := json.Unmarshal(data, &l.Events); err != nil {
			return fmt.Errorf("%s is no limit; write a whole number, or \"unlimited\"", data)
		}
		return nil
	}
	if word == "" {
		return fmt.Errorf("a limit is empty; write a whole number, or \"unlimited\"")
	}
	if l.Unlimited = word == wordUnlimited; !l.Unlimited {
		l.Plan = word
	}
	return nil
}

// limit is the limit by itself, or unlimited.
func (l PlanLimit) limit() int64 {
	if l.Unlimited {
		return unlimited
	}
	return l.Events
}

func (l PlanLimit) String() string {
	switch {
	case l.Plan != "":
		return l.Plan
	case l.Unlimited:
		return wordUnlimited
	}
	return strconv.FormatInt(l.Events, 10)
}

// check finds the first mistake in the table.
func (t *Tier) check() *settings.Mistake {
	const form = "tier {http.vars.plan} { <plan> <n>|unlimited ... default <n>|unlimited|<plan> }"
	if t.Plan == "" {
		return settings.Wrong("tier", "tier does not say what tells the plan; write: %s", form)
	}
	plan, err := keys.ParseValue(readTier.String(), t.Plan)
	if err != nil {
		return settings.Wrong("tier", "%w", err)
	}
	if !plan.Dynamic() {
		return settings.Wrong("tier", "tier %q has no placeholder, so that all requests have one plan; write events instead, or: %s", t.Plan, form)
	}
	if len(t.Limits) == 0 {
		return settings.Wrong("tier", "tier lists no plan; write: %s", form)
	}
	for _, name := range slices.Sorted(maps.Keys(t.Limits)) {
		row := t.Limits[name]
		field := tierRow(name)
		switch {
		case name == "":
			return settings.Wrong("tier", "a plan of tier has no name; requests without a plan have the default")
		case name == wordUnlimited || name == wordDefault:
			return settings.Wrong(field, "a plan cannot be called %q, which is a word of tier; call it otherwise, for example with map", name)
		case row.Plan != "":
			return settings.Wrong(field, "plan %q has the limit %q; write a whole number, or unlimited", name, row.Plan)
		}
		if mistake := row.check(field, fmt.Sprintf("plan %q", name)); mistake != nil {
			return mistake
		}
	}
	return t.checkDefault()
}

func (t *Tier) checkDefault() *settings.Mistake {
	switch {
	case t.Default == nil:
		return settings.Wrong("tier", "tier has no default; write the limit of unknown and missing plans: default <n>|unlimited|<plan>")
	case t.Default.Plan == "":
		return t.Default.check(tierRow(wordDefault), "default")
	}
	if _, ok := t.Limits[t.Default.Plan]; !ok {
		return settings.Wrong(tierRow(wordDefault), "default %q is neither a plan of this tier (%s) nor a whole number nor unlimited",
			t.Default.Plan, strings.Join(slices.Sorted(maps.Keys(t.Limits)), ", "))
	}
	return nil
}

func (l PlanLimit) check(field, whose string) *settings.Mistake {
	if l.Events < 0 || l.Events > store.MaxEvents {
		return settings.Wrong(field, "%s: %d is not between 0 and %d", whose, l.Events, int64(store.MaxEvents))
	}
	return nil
}

const wordDefault = "default"

// tierRow names the row of a plan as a field, for settings.Places.
func tierRow(plan string) string { return "tier " + plan }

// byDefault is the limit of plans that are not in the table.
func (t *Tier) byDefault() int64 {
	if t.Default.Plan != "" {
		return t.Limits[t.Default.Plan].limit()
	}
	return t.Default.limit()
}

// text is the table in one line and in one spelling, as messages show it. Equal
// tables have equal texts.
func (t *Tier) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "tier %s {", t.Plan)
	for _, name := range slices.Sorted(maps.Keys(t.Limits)) {
		fmt.Fprintf(&b, " %s %v;", name, t.Limits[name])
	}
	fmt.Fprintf(&b, " default %v }", t.Default)
	return b.String()
}

// tier is the table as requests look into it.
type tier struct {
	plan      keys.Template
	limits    map[string]int64
	byDefault int64
	defaultOf string // plan whose limit that is, wordDefault if it is of its own
}

// unlimited is the limit of plans that are neither limited nor counted.
const unlimited = -1

func newTier(t *Tier) (*tier, error) {
	if t == nil {
		return nil, nil
	}
	plan, err := keys.ParseValue(readTier.String(), t.Plan)
	if err != nil {
		return nil, err
	}
	limits := make(map[string]int64, len(t.Limits))
	for name, row := range t.Limits {
		limits[name] = row.limit()
	}
	return &tier{plan: plan, limits: limits, byDefault: t.byDefault(), defaultOf: cmp.Or(t.Default.Plan, wordDefault)}, nil
}

// has reports whether some plan has this limit.
func (t *tier) has(limit int64) bool {
	for _, l := range t.limits {
		if l == limit {
			return true
		}
	}
	return t.byDefault == limit
}

// limitOf is the limit that holds for a request, or unlimited.
func (z *Zone) limitOf(from *reader, client ipident.Result) int64 {
	if z.tier == nil {
		return z.limitShown()
	}
	f := z.steering.Load()
	value, lacked := from.Value(&z.tier.plan, client, z.key.Mask)
	if lacked == keys.LackNothing {
		limit, ok := z.tier.limits[string(value)]
		if ok {
			return f.limitOf(value, limit)
		}
		lacked = keys.LackListed
	}
	z.replaces(from, readTier, &z.tier.plan, lacked)
	// Else a client would leave the limit that an operator has set for its plan by naming
	// no plan at all.
	return f.limit(wordDefault, f.limit(z.tier.defaultOf, z.tier.byDefault))
}

// limitShown is the limit of a zone without a tier, for refusals that have other reasons.
func (z *Zone) limitShown() int64 {
	limit := z.steering.Load().limit("", z.limit)
	if z.Concurrent != nil {
		limit = min(limit, inflight.MaxLimit) // whatever the board says
	}
	return limit
}

// limitsNow are the limits that hold for the zone, one or that of each plan, those that an
// operator has set included.
func (z *Zone) limitsNow() []int64 {
	if z.tier == nil {
		return []int64{z.limitShown()}
	}
	f := z.steering.Load()
	limits := []int64{f.limit(wordDefault, f.limit(z.tier.defaultOf, z.tier.byDefault))}
	for plan, limit := range z.tier.limits {
		limits = append(limits, f.limit(plan, limit))
	}
	return limits
}

// refusesAll reports whether the limit is 0, whatever the request's plan is.
func (z *Zone) refusesAll() bool { return z.tier == nil && z.limitShown() == 0 }
