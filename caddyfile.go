package distributedratelimit

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/identity"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/stores"
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
	at      settings.Places
	short   *Zone // the zone of the short form
	unnamed bool  // and its name is made of its numbers

	inDollars map[*Zone]bool // zones whose limit is written in dollars
}

// parseHandler parses the directive:
//
//	distributed_ratelimit [<matcher>] [<events> <window> [<zone name>]] {
//	    zone <name> { ... }
//	    exempt @name | { <matchers> }
//	    trusted_proxies <ip source module> ... | hops <n>
//	    client_ip_headers <header>
//	    on_store_error local|allow|deny
//	    budget <duration>
//	    body_limit <size>
//	    body_timeout <duration>
//	    ratelimit_headers [draft|draft7|draft6] [legacy|legacy_epoch] [refused|always] | off
//	    ratelimit_headers_prefix <name>
//	    refusal auto|error|problem
//	    status <code>
//	    jitter <share>|<percent>%
//	    log_key
//	    store <name> ...
//	    # in the short form also what a zone has: key, match, exempt, ...
//	}
func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	p := &handlerParser{Helper: h, handler: new(Handler), at: make(settings.Places), inDollars: make(map[*Zone]bool)}
	p.Next() // the directive
	p.at.Mark(p.Dispenser, "", "zone")
	if err := p.shortForm(); err != nil {
		return nil, err
	}
	for p.NextBlock(0) {
		if err := p.handlerOption(); err != nil {
			return nil, err
		}
	}
	if mistake := p.handler.check(); mistake != nil {
		return nil, p.at.Locate(p.Dispenser, mistake)
	}
	if mistake := p.checkDollars(); mistake != nil {
		return nil, p.at.Locate(p.Dispenser, mistake)
	}
	if mistake := p.checkWithShared(); mistake != nil {
		return nil, p.at.Locate(p.Dispenser, mistake)
	}
	return p.handler, p.rememberZones()
}

// checkWithShared finds settings that contradict the global option, where the
// handler has only one of hops and header.
func (p *handlerParser) checkWithShared() *settings.Mistake {
	option, ok := p.Option(directive).(httpcaddyfile.App)
	if !ok {
		return nil
	}
	var shared struct{ identity.ClientAddress }
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
	if mistake := identity.Check(&together); mistake != nil {
		return settings.Wrong(field, "together with the global option: %w", mistake.Err)
	}
	return nil
}

// shortForm parses: <events> <window> [<zone name>]
func (p *handlerParser) shortForm() error {
	args := p.RemainingArgs()
	if events, window, ok := settings.ParseRate(args); ok {
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
	events, err := p.events(zone, args[0])
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
	p.at.Mark(p.Dispenser, zone.Name, "zone")
	return nil
}

// option is a word of a block, and what parses it. A word is given once, unless
// it repeats.
type option[T any] struct {
	word    string
	repeats bool
	parse   func(p *handlerParser, into *T) error
}

func find[T any](options []option[T], word string) *option[T] {
	i := slices.IndexFunc(options, func(o option[T]) bool { return o.word == word })
	if i < 0 {
		return nil
	}
	return &options[i]
}

// listed names options in a message: a, b or c.
func listed[T any](options []option[T]) string {
	var words []string
	for _, o := range options {
		words = append(words, o.word)
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// handlerOptions are the options of the handler, but for zone, in the order in
// which messages list them.
var handlerOptions = []option[Handler]{
	{word: "trusted_proxies", parse: func(p *handlerParser, h *Handler) error {
		return identity.ParseTrustedProxies(p.Dispenser, &h.ClientAddress)
	}},
	{word: "client_ip_headers", parse: func(p *handlerParser, h *Handler) error {
		return identity.ParseClientIPHeaders(p.Dispenser, &h.ClientAddress)
	}},
	{word: "on_store_error", parse: func(p *handlerParser, h *Handler) error { return p.word(&h.OnStoreError) }},
	{word: "budget", parse: func(p *handlerParser, h *Handler) error { return settings.ParseDuration(p.Dispenser, &h.Budget) }},
	{word: "body_limit", parse: func(p *handlerParser, h *Handler) error { return settings.ParseSize(p.Dispenser, &h.BodyLimit) }},
	{word: "body_timeout", parse: func(p *handlerParser, h *Handler) error { return settings.ParseDuration(p.Dispenser, &h.BodyTimeout) }},
	{word: "ratelimit_headers", parse: func(p *handlerParser, h *Handler) error {
		if h.RateLimitHeaders = p.RemainingArgs(); len(h.RateLimitHeaders) == 0 {
			return p.Err("ratelimit_headers needs words: " + headerWords)
		}
		return nil
	}},
	{word: "ratelimit_headers_prefix", parse: func(p *handlerParser, h *Handler) error { return p.word(&h.RateLimitHeadersPrefix) }},
	{word: "refusal", parse: func(p *handlerParser, h *Handler) error { return p.word(&h.Refusal) }},
	{word: "status", parse: func(p *handlerParser, h *Handler) error { return p.integer(&h.Status) }},
	{word: "jitter", parse: func(p *handlerParser, h *Handler) error { return p.share(&h.Jitter) }},
	{word: "log_key", parse: func(p *handlerParser, h *Handler) error { return p.flag(&h.LogKey) }},
	{word: "exempt", repeats: true, parse: func(p *handlerParser, h *Handler) error { return p.matchers(&h.ExemptRaw) }},
	{word: "store", parse: func(p *handlerParser, h *Handler) (err error) {
		h.StoreRaw, err = stores.Parse(p.Dispenser)
		return err
	}},
}

// handlerOption parses one option of the handler's block. In the short form the
// words of a zone are the zone's, but for on_store_error, which both have.
func (p *handlerParser) handlerOption() error {
	word := p.Val()
	if word == "zone" {
		return p.zone()
	}
	own := find(handlerOptions, word)
	if find(zoneOptions, word) != nil && (own == nil || p.short != nil && own.word != "on_store_error") {
		if p.short == nil {
			return p.Errf("%s belongs into a zone; write: zone <name> { %s ... }, or give events and window after %s", word, word, directive)
		}
		return p.zoneOption(p.short)
	}
	if own == nil {
		return unknownOption(p.Dispenser, "zone, "+listed(handlerOptions))
	}
	if !own.repeats {
		if err := p.at.Once(p.Dispenser, ""); err != nil {
			return err
		}
	}
	return own.parse(p, p.handler)
}

// unknownOption rejects a word that is no option; known lists the options. For
// options of other rate limiters the error says what to write here.
func unknownOption(d *caddyfile.Dispenser, known string) error {
	switch word := d.Val(); word {
	case "distributed":
		return d.Err("distributed is not an option here: limits are shared by all instances with the same store; write the global option: distributed_ratelimit { store redis <url> }")
	case "storage":
		return d.Err("storage is not an option here; write the global option: distributed_ratelimit { store redis <url> }")
	case "sweep_interval":
		return d.Err("sweep_interval is not an option here: nothing needs to be swept; remove it")
	default:
		return d.Errf("unknown option %q; write %s", word, known)
	}
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
		at, _ := p.at.Find(zone.Name, "zone")
		other, ok := known[id]
		if !ok {
			known[id] = seenZone{zone: zone, unnamed: p.unnamed, at: at}
			continue
		}
		where := fmt.Sprintf("%s:%d", other.at.File(), other.at.Line())
		if p.unnamed && other.unnamed {
			return at.Errf("a limit of %s without a name is already at %s; give each a name after the window: equal names share one limit, different names do not",
				zone.Name, where)
		}
		if mistake := zone.conflict(other.zone); mistake != nil {
			mistake.Zone = zone.Name
			mistake.Err = fmt.Errorf("%v (the other one is at %s)", mistake.Err, where)
			return p.at.Locate(p.Dispenser, mistake)
		}
	}
	return nil
}

type seenZone struct {
	zone    *Zone
	unnamed bool
	at      caddyfile.Dispenser
}

// words parses one word or several.
func (p *handlerParser) words(into *[]string, known string) error {
	word := p.Val()
	if *into = p.RemainingArgs(); len(*into) == 0 {
		return p.Errf("%s needs a word; write %s", word, known)
	}
	return nil
}

func (p *handlerParser) word(into *string) error { return settings.ParseWord(p.Dispenser, into) }

func (p *handlerParser) flag(into *bool) error { return settings.ParseFlag(p.Dispenser, into) }

func (p *handlerParser) integer(into *int) error { return settings.ParseInteger(p.Dispenser, into) }

func (p *handlerParser) duration(name, text string) (caddy.Duration, error) {
	d, err := caddy.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, p.Errf("%s %q is not a duration above zero; write for example 10s, 1m or 1d%s", name, text, settings.SecondsHint(text))
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
