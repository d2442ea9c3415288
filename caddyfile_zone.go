package distributedratelimit

import (
	"errors"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// zone parses:
//
//	zone <name> {
//	    match @name | { <matchers> }
//	    exempt @name | { <matchers> }
//	    key <string>
//	    events <n>|$<amount>
//	    tier <placeholder> { <plan> <n>|unlimited ... default <n>|unlimited|<plan> }
//	    cost <n> | <placeholder> default <n> max <n> [min 0]
//	    window <duration>
//	    concurrent <n>    instead of events and window
//	    ipv4_prefix <bits>
//	    ipv6_prefix <bits>
//	    key_normalize [lower] [trim] | off
//	    on_empty_key client|skip|deny
//	    on_store_error local|allow|deny
//	    count_if status <code...> | header <field> [<value>] | { <both> }
//	    block_for <duration>
//	    usage openai|anthropic { ... }    events are tokens, or dollars with prices
//	    dry_run
//	    hide
//	}
func (p *handlerParser) zone() error {
	if p.short != nil {
		return p.Errf("zone cannot stand in the short form; move %q into a zone of its own, or write its options without zone", p.short.Name)
	}
	args := p.RemainingArgs()
	if len(args) != 1 {
		return p.Errf("zone takes one name and a block; write: zone <name> { events <n> ... }")
	}
	zone := &Zone{Name: args[0]}
	if zone.Name == "" {
		return p.Err("a zone needs a name; write: zone <name> { events <n> ... }")
	}
	if first, ok := p.at.Find(zone.Name, "zone"); ok {
		return p.Errf("zone %q is already defined on line %d; rename one or merge them", zone.Name, first.Line())
	}
	p.at.Mark(p.Dispenser, zone.Name, "zone")
	p.handler.Zones = append(p.handler.Zones, zone)
	for nesting := p.Nesting(); p.NextBlock(nesting); {
		if err := p.zoneOption(zone); err != nil {
			return err
		}
	}
	return nil
}

// zoneOptions are the options of a zone, in the order in which messages list them.
var zoneOptions = []option[Zone]{
	{word: "match", repeats: true, parse: func(p *handlerParser, z *Zone) error { return p.matchers(&z.MatchRaw) }},
	{word: "exempt", repeats: true, parse: func(p *handlerParser, z *Zone) error { return p.matchers(&z.ExemptRaw) }},
	{word: "key", parse: func(p *handlerParser, z *Zone) error { return p.word(&z.Key) }},
	{word: "events", parse: func(p *handlerParser, z *Zone) error {
		var text string
		if err := p.word(&text); err != nil {
			return err
		}
		events, err := p.events(z, text)
		z.Events = &events
		return err
	}},
	{word: "concurrent", parse: func(p *handlerParser, z *Zone) error { return p.concurrent(z) }},
	{word: "tier", parse: func(p *handlerParser, z *Zone) error { return p.tier(z) }},
	{word: "cost", parse: func(p *handlerParser, z *Zone) error { return p.cost(z) }},
	{word: "window", parse: func(p *handlerParser, z *Zone) error { return settings.ParseDuration(p.Dispenser, &z.Window) }},
	{word: "ipv4_prefix", parse: func(p *handlerParser, z *Zone) error { return p.optionalInteger(&z.IPv4Prefix) }},
	{word: "ipv6_prefix", parse: func(p *handlerParser, z *Zone) error { return p.optionalInteger(&z.IPv6Prefix) }},
	{word: "key_normalize", parse: func(p *handlerParser, z *Zone) error { return p.words(&z.KeyNormalize, "lower, trim, both, or off") }},
	{word: "on_empty_key", parse: func(p *handlerParser, z *Zone) error { return p.word(&z.OnEmptyKey) }},
	{word: "on_store_error", parse: func(p *handlerParser, z *Zone) error { return p.word(&z.OnStoreError) }},
	{word: "count_if", repeats: true, parse: (*handlerParser).countIf},
	{word: "block_for", parse: func(p *handlerParser, z *Zone) error { return settings.ParseDuration(p.Dispenser, &z.BlockFor) }},
	{word: "usage", parse: (*handlerParser).usage},
	{word: "dry_run", parse: func(p *handlerParser, z *Zone) error { return p.flag(&z.DryRun) }},
	{word: "hide", parse: func(p *handlerParser, z *Zone) error { return p.flag(&z.Hide) }},
}

// zoneOption parses one option of a zone.
func (p *handlerParser) zoneOption(z *Zone) error {
	word := p.Val()
	own := find(zoneOptions, word)
	switch {
	case own == nil && (word == "zone" || find(handlerOptions, word) != nil):
		return p.Errf("%s does not belong into a zone; write it after the zones, in the block of %s itself", word, directive)
	case own == nil:
		return unknownOption(p.Dispenser, listed(zoneOptions))
	case p.short == z && (word == "events" || word == "window"):
		return p.Errf("%s is already given after %s; remove it here, or write a zone", word, directive)
	case p.short == z && word == "concurrent":
		return p.Errf("concurrent is a limit of its own beside the events after %s; write: zone <name> { concurrent ... }", directive)
	case p.short == z && word == "tier":
		return p.Errf("tier stands instead of the events after %s; write: zone <name> { window ... tier ... }", directive)
	}
	if !own.repeats {
		if err := p.at.Once(p.Dispenser, z.Name); err != nil {
			return err
		}
	}
	return own.parse(p, z)
}

// matchers parses a matcher set and adds it to others.
func (p *handlerParser) matchers(to *caddyhttp.RawMatcherSets) error {
	set, err := settings.ParseMatchers(p.Helper)
	if err == nil {
		*to = append(*to, set)
	}
	return err
}

func (p *handlerParser) concurrent(z *Zone) error {
	var text string
	if err := p.word(&text); err != nil {
		return err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return p.Errf("concurrent %q is not a whole number between 1 and %d", text, int64(inflight.MaxLimit))
	}
	z.Concurrent = &n
	return nil
}

func (p *handlerParser) optionalInteger(into **int) error {
	*into = new(int)
	return p.integer(*into)
}

func (p *handlerParser) events(z *Zone, text string) (int64, error) {
	if strings.HasPrefix(text, "$") {
		return p.dollars(z, text)
	}
	if strings.Contains(text, "{") {
		return 0, p.Errf("events %q is not a whole number; placeholders are not known yet when the limit is read, but environment variables can be written as {$LIMIT}", text)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > store.MaxEvents {
		return 0, p.Errf("events %q is not a whole number between 0 and %d", text, int64(store.MaxEvents))
	}
	return n, nil
}

// tier parses:
//
//	tier <placeholder> {
//	    <plan> <n>|unlimited
//	    default <n>|unlimited|<plan>
//	}
func (p *handlerParser) tier(z *Zone) error {
	t := &Tier{Limits: make(map[string]PlanLimit)}
	if err := p.word(&t.Plan); err != nil {
		return err
	}
	z.Tier = t
	amounts, numbers := 0, 0
	for nesting := p.Nesting(); p.NextBlock(nesting); {
		plan, text := p.Val(), ""
		if first, ok := p.at.Find(z.Name, tierRow(plan)); ok {
			return p.Errf("%s is already given on line %d; remove one", plan, first.Line())
		}
		p.at.Mark(p.Dispenser, z.Name, tierRow(plan))
		if !p.NextArg() || p.Val() == "" {
			return p.Errf("plan %q has no limit; write: %s <n>, or %[1]s unlimited", plan, plan)
		}
		if text = p.Val(); p.NextArg() {
			return p.Errf("plan %q has one limit; remove %q", plan, p.Val())
		}
		var limit PlanLimit
		if strings.HasPrefix(text, "$") {
			micro, err := p.dollars(z, text)
			if err != nil {
				return err
			}
			limit.Events = micro
			amounts++
		} else if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			if limit.Events = n; n > 0 {
				numbers++
			}
		} else if limit.Unlimited = text == wordUnlimited; !limit.Unlimited {
			limit.Plan = text
		}
		if plan != wordDefault {
			t.Limits[plan] = limit
			continue
		}
		t.Default = &limit
	}
	if amounts > 0 && numbers > 0 {
		return p.Err("some limits of tier are in dollars and others are not; write $ before each, or before none")
	}
	if t.Default != nil && t.Default.Plan == "" && !t.Default.Unlimited {
		if row, ok := t.Limits[t.Default.String()]; ok {
			at, _ := p.at.Find(z.Name, tierRow(wordDefault))
			return at.Errf("default %v is a number and the name of a plan; write the limit of the plan: default %v", t.Default, row)
		}
	}
	return nil
}

// cost parses:
//
//	cost <n> | <placeholder> [default <n>] [max <n>] [min 0]
func (p *handlerParser) cost(z *Zone) error {
	args := p.RemainingArgs()
	if len(args) == 0 {
		return p.Err("cost needs a number, or a placeholder with its bounds; write: cost 5, or cost {vars.cost} default 1 max 100")
	}
	c := new(Cost)
	z.Cost = c
	switch n, err := strconv.ParseInt(args[0], 10, 64); {
	case err == nil && n == 0:
		return p.Err("cost 0 counts nothing; write exempt for requests that are not to be counted, or remove the zone")
	case err == nil:
		c.Units = n
	case errors.Is(err, strconv.ErrRange):
		return p.Errf("cost %s is not between 1 and %d", args[0], int64(store.MaxEvents))
	default:
		c.From = args[0]
	}
	bounds := map[string]**int64{"default": &c.Default, "max": &c.Max, "min": &c.Min}
	for rest := args[1:]; len(rest) > 0; rest = rest[2:] {
		into, ok := bounds[rest[0]]
		if !ok {
			return p.Errf("unknown word %q after cost; write default <n>, max <n> or min 0", rest[0])
		}
		if *into != nil {
			return p.Errf("cost has %s twice; remove one", rest[0])
		}
		if len(rest) == 1 {
			return p.Errf("%s of cost needs a number", rest[0])
		}
		n, err := strconv.ParseInt(rest[1], 10, 64)
		if err != nil {
			return p.Errf("%s %q of cost is not a whole number", rest[0], rest[1])
		}
		*into = &n
	}
	return nil
}
