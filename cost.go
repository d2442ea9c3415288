package distributedratelimit

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Cost is how many units of the limit a request takes: a number, or what a
// placeholder says.
type Cost struct {
	// The number, 1 to 1,000,000,000,000. It excludes the other fields.
	Units int64 `json:"units,omitempty"`

	// Where the number is read: text with placeholders, such as
	// `{http.vars.cost}`. A client that can write what is read, such as a header,
	// chooses its own price.
	From string `json:"from,omitempty"`

	// What a request costs that has no whole number there, 0 to max; 0 needs a
	// min of 0. Required with from.
	Default *int64 `json:"default,omitempty"`

	// The most that a request costs, 1 to 1,000,000,000,000: a larger number there
	// costs that. Required with from.
	Max *int64 `json:"max,omitempty"`

	// The least that a request costs, 0 or 1: a smaller number there costs that. A
	// request that costs 0 is neither limited nor counted. Default: 1.
	Min *int64 `json:"min,omitempty"`
}

// check finds the first mistake in the cost, for a zone with these limits.
func (c *Cost) check() *settings.Mistake {
	const form = "cost {http.vars.cost} default <n> max <n>"
	bounds := c.Default != nil || c.Max != nil || c.Min != nil
	switch {
	case c.From == "" && c.Units == 0:
		return settings.Wrong("cost", "cost is not between 1 and %d; requests that cost nothing belong into exempt", int64(store.MaxEvents))
	case c.From == "" && (c.Units < 0 || c.Units > store.MaxEvents):
		return settings.Wrong("cost", "cost %d is not between 1 and %d", c.Units, int64(store.MaxEvents))
	case c.From == "" && bounds:
		return settings.Wrong("cost", "cost %d is always the same, so that default, max and min do nothing; remove them, or write: %s", c.Units, form)
	case c.From == "":
		return nil
	case c.Units != 0:
		return settings.Wrong("cost", "cost has both units and from; remove one")
	}
	from, err := keys.ParseValue(readCost.String(), c.From)
	if err != nil {
		return settings.Wrong("cost", "%w", err)
	}
	if !from.Dynamic() {
		return settings.Wrong("cost", "cost %q is neither a whole number nor a placeholder; write: cost 5, or %s", c.From, form)
	}
	return c.checkBounds(form)
}

func (c *Cost) checkBounds(form string) *settings.Mistake {
	least := c.least()
	switch {
	case c.Default == nil:
		return settings.Wrong("cost", "cost %s has no default, for requests that have no number there; write: %s", c.From, form)
	case c.Max == nil:
		return settings.Wrong("cost", "cost %s has no max, so that one number there could use up every limit; write: %s", c.From, form)
	case c.Min != nil && *c.Min != 0 && *c.Min != 1:
		return settings.Wrong("cost", "cost has a min of %d; it is 0 or 1: write min 0 for requests that may cost nothing", *c.Min)
	case *c.Max < 1 || *c.Max > store.MaxEvents:
		return settings.Wrong("cost", "cost has a max of %d, which is not between 1 and %d", *c.Max, int64(store.MaxEvents))
	case *c.Default == 0 && least == 1:
		return settings.Wrong("cost", "cost has a default of 0, but the least is 1; write min 0 as well, or a default of 1")
	case *c.Default < least || *c.Default > *c.Max:
		return settings.Wrong("cost", "cost has a default of %d, which is not between %d and the max of %d", *c.Default, least, *c.Max)
	}
	return nil
}

// least is the least that a request costs by itself.
func (c *Cost) least() int64 {
	if c.Min != nil {
		return *c.Min
	}
	return 1
}

// same reports whether two costs without mistakes are equal. Nil is a cost of 1.
func (c *Cost) same(other *Cost) bool {
	a, b := newCost(c), newCost(other)
	return a.fixed == b.fixed && (a.fixed > 0 || keys.SameValue(c.From, other.From) &&
		a.byDefault == b.byDefault && a.least == b.least && a.most == b.most)
}

func (c *Cost) text() string {
	switch {
	case c == nil:
		return "cost 1"
	case c.From == "":
		return fmt.Sprintf("cost %d", c.Units)
	}
	return fmt.Sprintf("cost %s default %d max %d min %d", c.From, *c.Default, *c.Max, c.least())
}

// cost is what a request costs, as requests are asked.
type cost struct {
	fixed                  int64 // 0 if it is read from
	from                   keys.Template
	byDefault, least, most int64
}

// newCost takes a cost without mistakes, or nil.
func newCost(c *Cost) cost {
	switch {
	case c == nil:
		return cost{fixed: 1}
	case c.From == "":
		return cost{fixed: c.Units}
	}
	from, _ := keys.ParseValue(readCost.String(), c.From) // check has parsed it
	return cost{from: from, byDefault: *c.Default, least: c.least(), most: *c.Max}
}

// unitsOf is how many units a request takes.
func (z *Zone) unitsOf(from *reader, client ipident.Result) int64 {
	c := &z.cost
	if c.fixed > 0 {
		return c.fixed
	}
	value, lacked := from.Value(&c.from, client, z.key.Mask)
	if lacked == keys.LackNothing {
		n, err := strconv.ParseInt(string(value), 10, 64)
		switch {
		case err != nil && !errors.Is(err, strconv.ErrRange): // else n is the nearest number
			lacked = keys.LackNumber
		case n > c.most:
			z.replaces(from, readCost, &c.from, keys.LackBound)
			return c.most
		default:
			return max(n, c.least)
		}
	}
	z.replaces(from, readCost, &c.from, lacked)
	return c.byDefault
}

// checkCostOfLimits rejects a cost that a limit never has room for.
func (z *Zone) checkCostOfLimits() *settings.Mistake {
	least := int64(1)
	if z.Cost != nil {
		least = cmp.Or(z.Cost.Units, z.Cost.least())
	}
	if z.Events != nil && *z.Events > 0 && *z.Events < least {
		return settings.Wrong("cost", "cost %d is more than events %d, so that every request would be refused; lower the cost, raise events, or write events 0", least, *z.Events)
	}
	if z.Tier == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(z.Tier.Limits)) {
		row := z.Tier.Limits[name]
		if !row.Unlimited && row.Events > 0 && row.Events < least {
			return settings.Wrong(tierRow(name), "plan %q has %d, less than the cost of %d, so that every request would be refused; raise it, lower the cost, or write 0", name, row.Events, least)
		}
	}
	if limit := z.Tier.byDefault(); limit > 0 && limit < least {
		return settings.Wrong(tierRow(wordDefault), "default %d is less than the cost of %d, so that every request would be refused; raise it, lower the cost, or write 0", limit, least)
	}
	return nil
}
