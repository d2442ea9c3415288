package distributedratelimit

import (
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// zone parses:
//
//	zone <name> {
//	    match @name | { <matchers> }
//	    exempt @name | { <matchers> }
//	    key <string>
//	    events <n>
//	    window <duration>
//	    ipv4_prefix <bits>
//	    ipv6_prefix <bits>
//	    on_empty_key client|skip|deny
//	    on_store_error local|allow|deny
//	    dry_run
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
	if first, ok := p.at[place{zone.Name, "zone"}]; ok {
		return p.Errf("zone %q is already defined on line %d; rename one or merge them", zone.Name, first.Line())
	}
	p.at.mark(p.Dispenser, zone.Name, "zone")
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
		events, err := p.events(text)
		z.Events = &events
		return err
	}},
	{word: "window", parse: func(p *handlerParser, z *Zone) error { return parseDuration(p.Dispenser, &z.Window) }},
	{word: "ipv4_prefix", parse: func(p *handlerParser, z *Zone) error { return p.optionalInteger(&z.IPv4Prefix) }},
	{word: "ipv6_prefix", parse: func(p *handlerParser, z *Zone) error { return p.optionalInteger(&z.IPv6Prefix) }},
	{word: "on_empty_key", parse: func(p *handlerParser, z *Zone) error { return p.word(&z.OnEmptyKey) }},
	{word: "on_store_error", parse: func(p *handlerParser, z *Zone) error { return p.word(&z.OnStoreError) }},
	{word: "dry_run", parse: func(p *handlerParser, z *Zone) error { return p.flag(&z.DryRun) }},
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
	}
	if !own.repeats {
		if err := p.at.once(p.Dispenser, z.Name); err != nil {
			return err
		}
	}
	return own.parse(p, z)
}

// matchers parses a matcher set and adds it to others.
func (p *handlerParser) matchers(to *caddyhttp.RawMatcherSets) error {
	set, err := p.matcherSet(p.Val())
	if err == nil {
		*to = append(*to, set)
	}
	return err
}

func (p *handlerParser) optionalInteger(into **int) error {
	*into = new(int)
	return p.integer(*into)
}

func (p *handlerParser) events(text string) (int64, error) {
	if strings.Contains(text, "{") {
		return 0, p.Errf("events %q is not a whole number; placeholders are not known yet when the limit is read, but environment variables can be written as {$LIMIT}", text)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > store.MaxEvents {
		return 0, p.Errf("events %q is not a whole number between 0 and %d", text, int64(store.MaxEvents))
	}
	return n, nil
}
