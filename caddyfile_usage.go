package distributedratelimit

import (
	"strconv"
	"strings"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// usage parses:
//
//	usage openai|anthropic {
//	    price <model>|default input <dollars> [cached <dollars>] [cache_write <dollars>] [cache_write_1h <dollars>] output <dollars>
//	    max_output <tokens> [max_completion_tokens|max_tokens]
//	    max_request <tokens>
//	    max_input <tokens>
//	    input_bytes_per_token <n>
//	    enforce off
//	    service_tiers <value...>
//	    accept <name...>
//	}
func (p *handlerParser) usage(z *Zone) error {
	z.Usage = new(Usage)
	if err := p.word(&z.Usage.API); err != nil {
		return err
	}
	if api := llm.API(z.Usage.API); api != llm.OpenAI && api != llm.Anthropic {
		return p.Errf("usage %q is no API that is known here; write usage openai or usage anthropic", z.Usage.API)
	}
	for nesting := p.Nesting(); p.NextBlock(nesting); {
		own := find(usageOptions, p.Val())
		if own == nil {
			return p.Errf("unknown option %q of usage; write %s", p.Val(), listed(usageOptions))
		}
		if !own.repeats {
			if first, ok := p.at.Find(z.Name, "usage "+own.word); ok {
				return p.Errf("%s is already given on line %d; remove one", own.word, first.Line())
			}
			p.at.Mark(p.Dispenser, z.Name, "usage "+own.word)
		}
		if own.word == "price" {
			if next := *p.Dispenser; next.NextArg() {
				p.at.Mark(p.Dispenser, z.Name, priceRow(next.Val()))
			}
		}
		if err := own.parse(p, z.Usage); err != nil {
			return err
		}
	}
	return nil
}

// usageOptions are the options of usage, in the order in which messages list them.
var usageOptions = []option[Usage]{
	{word: "price", repeats: true, parse: (*handlerParser).price},
	{word: "max_output", parse: (*handlerParser).maxOutput},
	{word: "max_request", parse: func(p *handlerParser, u *Usage) error { return p.tokens(&u.MaxRequest) }},
	{word: "max_input", parse: func(p *handlerParser, u *Usage) error { return p.tokens(&u.MaxInput) }},
	{word: "input_bytes_per_token", parse: func(p *handlerParser, u *Usage) error { return p.tokens(&u.InputBytesPerToken) }},
	{word: "enforce", parse: func(p *handlerParser, u *Usage) error {
		var word string
		if err := p.word(&word); err != nil {
			return err
		}
		if word != "off" {
			return p.Errf("enforce %q; write enforce off, or remove it: requests are rewritten by default", word)
		}
		u.EnforceOff = true
		return nil
	}},
	{word: "service_tiers", parse: func(p *handlerParser, u *Usage) error {
		return p.words(&u.ServiceTiers, "values of service_tier that cost what the prices say, such as priority")
	}},
	{word: "accept", parse: func(p *handlerParser, u *Usage) error {
		return p.words(&u.Accept, "names of fields that cost nothing, such as top_k")
	}},
}

// tokens parses a number above zero.
func (p *handlerParser) tokens(into *int64) error {
	word, text := p.Val(), ""
	if err := p.word(&text); err != nil {
		return err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return p.Errf("%s %q is not a whole number above zero", word, text)
	}
	*into = n
	return nil
}

// maxOutput parses: max_output <tokens> [max_completion_tokens|max_tokens]
func (p *handlerParser) maxOutput(u *Usage) error {
	args := p.RemainingArgs()
	if len(args) != 1 && len(args) != 2 {
		return p.Err("max_output takes a number of tokens, and the field of chat completions it is written into; write: max_output 4096 max_completion_tokens")
	}
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil || n < 1 {
		return p.Errf("max_output %q is not a whole number above zero", args[0])
	}
	u.MaxOutput = n
	if len(args) == 2 {
		u.MaxOutputField = args[1]
	}
	return nil
}

// price parses one price:
//
//	price <model>|default input <dollars> [cached <dollars>] [cache_write <dollars>] [cache_write_1h <dollars>] output <dollars>
func (p *handlerParser) price(u *Usage) error {
	const form = "price <model>|default input <dollars> output <dollars>, in dollars for a million tokens"
	args := p.RemainingArgs()
	if len(args) == 0 {
		return p.Err("price needs a model and its prices; write: " + form)
	}
	price := UsagePrice{Model: args[0]}
	into := map[string]*string{
		"input": &price.Input, "cached": &price.Cached, "cache_write": &price.CacheWrite,
		"cache_write_1h": &price.CacheWriteHour, "output": &price.Output,
	}
	for rest := args[1:]; len(rest) > 0; rest = rest[2:] {
		field, ok := into[rest[0]]
		switch {
		case !ok:
			return p.Errf("unknown word %q in price; write input, cached, cache_write, cache_write_1h or output, each with its dollars", rest[0])
		case *field != "":
			return p.Errf("price %q has %s twice; remove one", price.Model, rest[0])
		case len(rest) == 1:
			return p.Errf("%s of price %q needs a number; write: %s", rest[0], price.Model, form)
		}
		*field = rest[1]
	}
	if _, err := price.rates(); err != nil {
		return p.Errf("%v", err)
	}
	u.Prices = append(u.Prices, price)
	return nil
}

// dollars parses a limit in dollars, for a zone whose usage has prices. It returns
// micro-dollars.
func (p *handlerParser) dollars(z *Zone, text string) (micro int64, err error) {
	whole, fraction, dotted := strings.Cut(strings.TrimPrefix(text, "$"), ".")
	if whole == "" || dotted && fraction == "" || strings.Trim(whole+fraction, "0123456789") != "" || len(fraction) > 6 {
		return 0, p.Errf("%q is no amount of dollars; write for example $20 or $0.50, with six decimal places at most", text)
	}
	n, err := strconv.ParseInt(whole+fraction+"000000"[len(fraction):], 10, 64)
	if err != nil || n > store.MaxEvents {
		return 0, p.Errf("%q is more than $%d", text, int64(store.MaxEvents/1_000_000))
	}
	p.inDollars[z] = true
	return n, nil
}

// checkDollars rejects amounts without prices, and numbers where amounts belong.
func (p *handlerParser) checkDollars() *settings.Mistake {
	for _, z := range p.handler.Zones {
		mistake := settings.Wrong("events", "with prices the limit is in dollars; write for example: events $20")
		switch {
		case p.inDollars[z] == z.Usage.priced(), z.Events != nil && *z.Events == 0:
			continue
		case p.inDollars[z] && z.Usage == nil:
			mistake = settings.Wrong("events", "a limit in dollars needs usage with prices, which say what a request costs; write: usage openai { price default input 15 output 120 }, or a number of events")
		case p.inDollars[z]:
			mistake = settings.Wrong("events", "a limit in dollars needs prices in usage; write for example: price default input 15 output 120, or a number of tokens")
		}
		if z.Tier != nil {
			mistake.Field = "tier"
		}
		mistake.Zone = z.Name
		return mistake
	}
	return nil
}
