package distributedratelimit

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective(directive, parseHandler)
	// Before authentication: guessing passwords is what most needs a limit. And
	// before the first directive that changes the request, which is method: a
	// zone that matches /login must see what the client asked for, not the
	// /index.php that try_files makes of it.
	httpcaddyfile.RegisterDirectiveOrder(directive, httpcaddyfile.Before, "method")
}

const directive = "distributed_ratelimit"

// handlerParser parses one handler directive.
type handlerParser struct {
	httpcaddyfile.Helper
	handler *Handler
	at      places
	short   *Zone // the zone of the short form
	unnamed bool  // and its name is made of its numbers
}

// parseHandler parses the directive:
//
//	distributed_ratelimit [<matcher>] [<events> <window> [<zone name>]] {
//	    zone <name> { ... }
//	    trusted_proxies <ip source module> ... | hops <n>
//	    client_ip_headers <header>
//	    on_store_error local|allow|deny
//	    budget <duration>
//	    ratelimit_headers [draft] [legacy] [refused|always] | off
//	    refusal auto|error|mistake
//	    status <code>
//	    jitter <share>|<percent>%
//	    log_key
//	    store <name> ...
//	    # in the short form also what a zone has: key, match, exempt, ...
//	}
func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	p := &handlerParser{Helper: h, handler: new(Handler), at: make(places)}
	p.Next() // the directive
	p.at.mark(p.Dispenser, "", "zone")
	if err := p.shortForm(); err != nil {
		return nil, err
	}
	for p.NextBlock(0) {
		if err := p.handlerOption(); err != nil {
			return nil, err
		}
	}
	if mistake := p.handler.check(); mistake != nil {
		return nil, p.at.locate(p.Dispenser, mistake)
	}
	if mistake := p.checkWithShared(); mistake != nil {
		return nil, p.at.locate(p.Dispenser, mistake)
	}
	return p.handler, p.rememberZones()
}

// checkWithShared finds settings that contradict the global option, where the
// handler has only one of hops and header.
func (p *handlerParser) checkWithShared() *configError {
	option, ok := p.Option(directive).(httpcaddyfile.App)
	if !ok {
		return nil
	}
	var shared struct{ ClientAddress }
	if err := json.Unmarshal(option.Value, &shared); err != nil {
		return nil
	}
	together, field := p.handler.ClientAddress, "trusted_proxies"
	if together.TrustedHops == 0 && together.TrustedProxiesRaw == nil {
		together.TrustedHops, field = shared.TrustedHops, "client_ip_headers"
	}
	if len(together.ClientIPHeaders) == 0 {
		together.ClientIPHeaders = shared.ClientIPHeaders
	}
	if mistake := together.check(); mistake != nil {
		return wrong(field, "together with the global option: %w", mistake.err)
	}
	return nil
}

// shortForm parses: <events> <window> [<zone name>]
func (p *handlerParser) shortForm() error {
	args := p.RemainingArgs()
	if events, window, ok := rateWords(args); ok {
		return p.Errf("%q is not a number of events and a window; write: %s %s %s", strings.Join(args, " "), directive, events, window)
	}
	switch len(args) {
	case 0:
		return nil
	case 2, 3:
	default:
		return p.Errf("%s takes the number of events and the window, such as: %s 30 1m; or a block with zones", directive, directive)
	}
	zone := new(Zone)
	events, err := p.events(args[0])
	if err != nil {
		return err
	}
	window, err := p.duration("window", args[1])
	if err != nil {
		return err
	}
	zone.Events, zone.Window = &events, window
	if len(args) == 3 {
		zone.Name = args[2]
	} else {
		zone.Name = fmt.Sprintf("%d-per-%s", events, windowText(time.Duration(window)))
		p.unnamed = true
	}
	p.handler.Zones = []*Zone{zone}
	p.short = zone
	p.at.mark(p.Dispenser, zone.Name, "zone")
	return nil
}

// handlerOption parses one option of the handler's block.
func (p *handlerParser) handlerOption() error {
	h := p.handler
	word := p.Val()
	if zoneWords[word] {
		if p.short == nil {
			return p.Errf("%s belongs into a zone; write: zone <name> { %s ... }, or give events and window after %s", word, word, directive)
		}
		return p.zoneOption(p.short)
	}
	if word == "zone" {
		return p.zone()
	}
	if err := p.at.once(p.Dispenser, ""); err != nil {
		return err
	}
	switch word {
	case "trusted_proxies":
		return parseTrustedProxies(p.Dispenser, &h.ClientAddress)
	case "client_ip_headers":
		return parseClientIPHeaders(p.Dispenser, &h.ClientAddress)
	case "on_store_error":
		return p.word(&h.OnStoreError)
	case "budget":
		return parseDuration(p.Dispenser, &h.Budget)
	case "ratelimit_headers":
		if h.RateLimitHeaders = p.RemainingArgs(); len(h.RateLimitHeaders) == 0 {
			return p.Err("ratelimit_headers needs words: draft, legacy or both, then refused or always; or off")
		}
		return nil
	case "refusal":
		return p.word(&h.Refusal)
	case "status":
		return p.integer(&h.Status)
	case "jitter":
		return p.share(&h.Jitter)
	case "log_key":
		h.LogKey = true
		return p.noArgs()
	case "store":
		raw, err := parseStore(p.Dispenser)
		h.StoreRaw = raw
		return err
	}
	return unknownOption(p.Dispenser, "zone, trusted_proxies, client_ip_headers, on_store_error, budget, ratelimit_headers, refusal, status, jitter, log_key or store")
}

var zoneWords = map[string]bool{
	"match": true, "exempt": true, "key": true, "events": true, "window": true, "ipv4_prefix": true,
	"ipv6_prefix": true, "on_empty_key": true, "dry_run": true,
}

// handlerWords are the options that a handler has and a zone has not.
var handlerWords = map[string]bool{
	"zone": true, "trusted_proxies": true, "client_ip_headers": true, "budget": true, "ratelimit_headers": true,
	"refusal": true, "status": true, "jitter": true, "log_key": true, "store": true,
}

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

// zoneOption parses one option of a zone.
func (p *handlerParser) zoneOption(z *Zone) error {
	word := p.Val()
	if word == "match" || word == "exempt" {
		set, err := p.matcherSet(word)
		if err != nil {
			return err
		}
		if word == "match" {
			z.MatchRaw = append(z.MatchRaw, set)
		} else {
			z.ExemptRaw = append(z.ExemptRaw, set)
		}
		return nil
	}
	if p.short == z && (word == "events" || word == "window") {
		return p.Errf("%s is already given after %s; remove it here, or write a zone", word, directive)
	}
	if err := p.at.once(p.Dispenser, z.Name); err != nil {
		return err
	}
	switch word {
	case "key":
		return p.word(&z.Key)
	case "events":
		var text string
		if err := p.word(&text); err != nil {
			return err
		}
		events, err := p.events(text)
		z.Events = &events
		return err
	case "window":
		return parseDuration(p.Dispenser, &z.Window)
	case "ipv4_prefix":
		z.IPv4Prefix = new(int)
		return p.integer(z.IPv4Prefix)
	case "ipv6_prefix":
		z.IPv6Prefix = new(int)
		return p.integer(z.IPv6Prefix)
	case "on_empty_key":
		return p.word(&z.OnEmptyKey)
	case "on_store_error":
		return p.word(&z.OnStoreError)
	case "dry_run":
		z.DryRun = true
		return p.noArgs()
	}
	if handlerWords[word] {
		return p.Errf("%s does not belong into a zone; write it after the zones, in the block of %s itself", word, directive)
	}
	return unknownOption(p.Dispenser, "match, exempt, key, events, window, ipv4_prefix, ipv6_prefix, on_empty_key, on_store_error or dry_run")
}

// rememberZones compares the zones with the zones of earlier directives in the
// Caddyfile: one name is one limit.
func (p *handlerParser) rememberZones() error {
	const stateKey = directive + ".zones"
	known, _ := p.State[stateKey].(map[string]seenZone)
	if known == nil {
		known = make(map[string]seenZone)
		p.State[stateKey] = known
	}
	for _, zone := range p.handler.Zones {
		id := string(p.handler.StoreRaw) + " " + zone.Name + " " + strconv.FormatBool(zone.DryRun)
		other, ok := known[id]
		if !ok {
			known[id] = seenZone{zone: zone, unnamed: p.unnamed, at: p.at[place{zone.Name, "zone"}]}
			continue
		}
		where := fmt.Sprintf("%s:%d", other.at.File(), other.at.Line())
		if p.unnamed && other.unnamed {
			d := p.at[place{zone.Name, "zone"}]
			return d.Errf("a limit of %s without a name is already at %s; give each a name after the window: equal names share one limit, different names do not",
				zone.Name, where)
		}
		if mistake := zone.conflict(other.zone); mistake != nil {
			mistake.zone = zone.Name
			mistake.err = fmt.Errorf("%v (the other one is at %s)", mistake.err, where)
			return p.at.locate(p.Dispenser, mistake)
		}
	}
	return nil
}

type seenZone struct {
	zone    *Zone
	unnamed bool
	at      caddyfile.Dispenser
}

func (p *handlerParser) word(into *string) error { return parseWord(p.Dispenser, into) }

func (p *handlerParser) noArgs() error {
	if word := p.Val(); p.NextArg() {
		return p.Errf("%s takes no argument; remove %q", word, p.Val())
	}
	return nil
}

func (p *handlerParser) integer(into *int) error { return parseInteger(p.Dispenser, into) }

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

func (p *handlerParser) duration(name, text string) (caddy.Duration, error) {
	d, err := caddy.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, p.Errf("%s %q is not a duration above zero; write for example 10s, 1m or 1d%s", name, text, secondsHint(text))
	}
	return caddy.Duration(d), nil
}

// share parses a share as users of Caddy's other rate limiter write it, 0.2,
// or as percent, 20%.
func (p *handlerParser) share(into *float64) error {
	var text string
	if err := p.word(&text); err != nil {
		return err
	}
	number, percent := strings.CutSuffix(text, "%")
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return p.Errf("jitter %q is not a number; write for example 20%%, or 0.2, which is the same", text)
	}
	if percent {
		n /= 100
	}
	*into = n
	return nil
}
