package distributedratelimit

import (
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/stores"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// This file is about zones with usage: budgets in front of LLM APIs.

// Usage makes a zone a budget in front of an LLM API: events are tokens or, with
// prices, micro-dollars. What a request may cost is taken when it comes, from its
// body; when the response has ended, the difference to what it cost is given back, or
// taken as well. Requests whose cost is not known or not bounded are refused.
//
// What is promised: in every interval of one window, what was reserved or settled in
// it totals at most the limit, as long as no response costs more than its
// reservation; by how much one did is a metric and a log line. Spending goes on after
// the reservation: windows should be longer than streams.
//
// The path and the method must be those that the API gets: handlers that rewrite
// them belong in front. Each API has paths whose cost is known (`/v1/chat/completions`,
// `/v1/responses`; `/v1/messages`), and paths that are free, such as `/v1/models`; all
// others are refused.
type Usage struct {
	// Whose requests and responses are read: `openai` or `anthropic`. Required.
	API string `json:"api,omitempty"`

	// What tokens cost. The first price whose pattern fits the model counts. One for
	// `default` is required, for all other models, and should be dear. Default: none,
	// so that the budget is one of tokens.
	Prices []UsagePrice `json:"prices,omitempty"`

	// How many tokens of output a request may cost that names no bound itself. It is
	// written into the request. Default: such requests are refused.
	MaxOutput int64 `json:"max_output,omitempty"`

	// The field of chat completions that max_output is written into:
	// `max_completion_tokens`, or `max_tokens` for servers that know only that. It must be
	// one that the server obeys. Default: `max_completion_tokens`.
	MaxOutputField string `json:"max_output_field,omitempty"`

	// How many tokens, input and output together, one request may reserve. A larger one
	// is refused. Default: the limit of the zone.
	MaxRequest int64 `json:"max_request,omitempty"`

	// How many tokens a request reserves for input that its bytes do not bound: images
	// and files that it names, stored conversations and prompts, hosted tools. For what
	// hosted tools read this is an estimate. Default: such requests are refused.
	MaxInput int64 `json:"max_input,omitempty"`

	// How many bytes of the request make a token. 1 is a bound; English text has about
	// 4, which is an estimate that other text exceeds. Default: 1.
	InputBytesPerToken int64 `json:"input_bytes_per_token,omitempty"`

	// Leaves requests as they are. One that names no bound reserves max_output all the
	// same, which is an estimate then. A stream of chat completions tells its usage
	// only where the client asks for it; elsewhere the reservation stands.
	EnforceOff bool `json:"enforce_off,omitempty"`

	// Values of service_tier, speed, inference_geo and modalities that are accepted
	// although they cost more, because prices are theirs. Without prices all are
	// accepted. Default: none.
	ServiceTiers []string `json:"service_tiers,omitempty"`

	// Names of fields and types of tools that this module does not know, and that are
	// accepted all the same. They must cost nothing that the bounds of the request do
	// not cover. Default: none, so that requests with unknown ones are refused.
	Accept []string `json:"accept,omitempty"`
}

// UsagePrice is what tokens of some models cost, in dollars for a million of them, such
// as "1.25".
type UsagePrice struct {
	// The name of the model, in which * stands for any characters, or `default`. Too wide
	// a pattern makes dear models cheap: `gpt-5*` is gpt-5-pro, too. Required.
	Model string `json:"model,omitempty"`

	// Input and output. Required; output includes reasoning.
	Input  string `json:"input,omitempty"`
	Output string `json:"output,omitempty"`

	// Input that was read from a cache. Default: as input.
	Cached string `json:"cached,omitempty"`

	// Input that was written to a cache. All input is reserved at this price if the API
	// may write it to one. Default: 1.25 times input.
	CacheWrite string `json:"cache_write,omitempty"`

	// Input that was written to Anthropic's cache for an hour. Default: twice input.
	CacheWriteHour string `json:"cache_write_1h,omitempty"`
}

// rates parses the price.
func (p *UsagePrice) rates() (llm.Price, error) {
	price := llm.Price{Match: p.Model}
	for _, rate := range []struct {
		word, text string
		into       *llm.Rate
	}{{"input", p.Input, &price.Input}, {"output", p.Output, &price.Output}} {
		if rate.text == "" {
			return price, fmt.Errorf("price %q has no %s; write dollars per million tokens: price %[1]s input 1.25 output 10", p.Model, rate.word)
		}
		var err error
		if *rate.into, err = llm.ParseRate(rate.text); err != nil {
			return price, fmt.Errorf("%s of %w", rate.word, err)
		}
	}
	for _, rate := range []struct {
		word, text string
		into       **llm.Rate
	}{{"cached", p.Cached, &price.Cached}, {"cache_write", p.CacheWrite, &price.CacheWrite}, {"cache_write_1h", p.CacheWriteHour, &price.CacheWriteHour}} {
		if rate.text == "" {
			continue
		}
		n, err := llm.ParseRate(rate.text)
		if err != nil {
			return price, fmt.Errorf("%s of %w", rate.word, err)
		}
		*rate.into = &n
	}
	return price, nil
}

// meter makes what prices the requests. Its error is the first mistake.
func (u *Usage) meter() (*llm.Meter, *settings.Mistake) {
	cfg := llm.Config{
		API: llm.API(u.API), MaxOutput: u.MaxOutput, MaxOutputField: u.MaxOutputField, EnforceOff: u.EnforceOff,
		MaxRequest: u.MaxRequest, MaxInput: u.MaxInput, InputBytesPerToken: u.InputBytesPerToken,
		Tiers: u.ServiceTiers, Accept: u.Accept,
	}
	for i := range u.Prices {
		price, err := u.Prices[i].rates()
		if err != nil {
			return nil, settings.Wrong(priceRow(u.Prices[i].Model), "%w", err)
		}
		cfg.Prices = append(cfg.Prices, price)
	}
	meter, err := llm.New(cfg)
	if err != nil {
		return nil, settings.Wrong("usage", "usage: %w", err)
	}
	return meter, nil
}

// priceRow is where a mistake in a price is.
func priceRow(model string) string { return "price " + model }

// priced reports whether events are micro-dollars.
func (u *Usage) priced() bool { return u != nil && len(u.Prices) > 0 }

// checkUsage finds the first mistake in a zone with usage.
func (z *Zone) checkUsage() *settings.Mistake {
	if z.Usage == nil {
		return nil
	}
	const apart = "; write a zone of its own for it beside this one: a request passes if all zones let it"
	switch {
	case z.Cost != nil:
		return settings.Wrong("cost", "cost and usage: with usage a request takes what it may cost by its body; remove one of them, or move cost into a zone of its own beside this one")
	case len(z.CountIf) > 0:
		return settings.Wrong("count_if", "count_if and usage: a response that cost nothing is given back anyway, and what cost something must count"+apart)
	case z.BlockFor != 0:
		return settings.Wrong("block_for", "block_for and usage: a budget that is used up refuses anyway, and one large request would ban the key"+apart)
	case z.Concurrent != nil:
		return settings.Wrong("concurrent", "concurrent and usage: how many requests are in flight is another limit than what they cost"+apart)
	case z.Usage.MaxOutputField != "" && z.Usage.MaxOutput == 0:
		return settings.Wrong("usage", "usage: max_output_field without max_output does nothing; write how many tokens: max_output 4096 %s", z.Usage.MaxOutputField)
	case z.DryRun && !z.Usage.EnforceOff:
		return settings.Wrong("dry_run", "dry_run and usage: requests would be rewritten, although a dry run changes nothing; write in usage: enforce off, or remove dry_run")
	}
	meter, mistake := z.Usage.meter()
	if mistake != nil {
		return mistake
	}
	if most := z.Usage.MaxRequest; most > 0 && !meter.Priced() && z.Events != nil && *z.Events > 0 && most > *z.Events {
		return settings.Wrong("usage", "usage: max_request %d is more than the %d tokens of events; lower it, or raise events", most, *z.Events)
	}
	return nil
}

// unit is what the zone counts, as messages name it.
func (z *Zone) unit() string {
	switch {
	case z.Usage.priced():
		return "micro-dollars"
	case z.Usage != nil:
		return "tokens"
	}
	return "requests"
}

// shortWindow is the length from which on streams should fit into a window.
const shortWindow = 10 * time.Minute

// provisionUsage prepares the handler for a zone with usage.
func (h *Handler) provisionUsage(z *Zone) error {
	if z.Usage == nil {
		return nil
	}
	meter, mistake := z.Usage.meter()
	if mistake != nil {
		return mistake
	}
	z.meter = meter
	zone := zap.String("zone", z.Name)
	if z.window < shortWindow {
		h.logger.Warn("the window of this budget is shorter than streams may last: what a stream spends counts when it begins, so that several that overlap spend more in one window than the limit; write a window of 10m or more",
			zone, zap.String("window", windowText(z.window)))
	}
	if why := meter.Estimates(); len(why) > 0 {
		h.logger.Warn("what this budget reserves is an estimate and no bound, so that requests may exceed it",
			zone, zap.String("why", strings.Join(why, "; ")))
	}
	if z.policy != fallback.Deny {
		h.logger.Warn("while the store is away this budget is not one budget of all instances; remove on_store_error, which is deny for budgets",
			zone, zap.String("on_store_error", z.OnStoreError))
	}
	h.backend.keepsBudget(h.logger, z)
	return nil
}

// keepsBudget sees to it that a budget is not spent twice after the store has lost
// counts, and warns where it may be.
func (b *backend) keepsBudget(logger *zap.Logger, z *Zone) {
	zone := zap.String("zone", z.Name)
	if _, shared := b.store.(store.Shared); !shared {
		logger.Warn("this budget is kept in the memory of one process: each instance has one of its own, and it begins anew with the process; write the global option: distributed_ratelimit { store redis <url> }", zone)
		return
	}
	if s, ok := b.store.(*stores.Redis); ok && s.AssumeCautious() {
		b.Guard.BeCautious()
		return
	}
	if c, ok := b.store.(fallback.Configured); !ok || !c.FallbackSettings().Cautious {
		logger.Warn("after a loss of data the store may grant this budget once more; write on_data_loss cautious in the store's block, and use a Redis that keeps its data (appendonly yes)", zone)
	}
}
