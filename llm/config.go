package llm

import (
	"errors"
	"fmt"
	"slices"
)

// API is one of the APIs whose requests and responses this package reads.
type API string

const (
	OpenAI    API = "openai"
	Anthropic API = "anthropic"
)

// Config says how requests are priced. Only API is required.
type Config struct {
	API API

	// Prices make the unit a micro-dollar. Without them it is a token. The
	// first whose Match fits counts; one with the Match "default" is required,
	// counts where no other fits, and should be dear.
	Prices []Price

	// MaxOutput, in tokens, is written into requests that bound their output
	// by nothing. Without it such requests are refused, reason unbounded.
	MaxOutput int64

	// MaxOutputField is the field of chat completions in which MaxOutput is
	// written: max_completion_tokens (the default) or max_tokens, which older
	// models and many other servers want. It must be one that the upstream
	// obeys. The other endpoints have one field each.
	MaxOutputField string

	// EnforceOff leaves all bodies as they came. A request without a bound is
	// reserved with MaxOutput, which is then an estimate; streams of chat
	// completions whose client does not ask for usage have none, so that their
	// reservations stand.
	EnforceOff bool

	// MaxRequest is the number of tokens, input and output together, that one
	// request may reserve. Zero means no such bound.
	MaxRequest int64

	// MaxInput is what a request reserves as its input, in tokens, when its
	// bytes do not bound it (images, files, stored conversations, hosted
	// tools). The context window of the largest model is a true bound for
	// requests without hosted tools. Zero means that such requests are refused.
	MaxInput int64

	// InputBytesPerToken is the number of bytes that make a token of input. 1,
	// the default, is a bound; English text has about 4, which is an estimate
	// that any other text exceeds.
	InputBytesPerToken int64

	// Tiers are the values of service_tier, speed and inference_geo, and the
	// modalities ("audio"), that may cost more than Prices say and are accepted
	// anyway, because Prices are theirs. Without Prices all are accepted: tokens
	// stay tokens.
	Tiers []string

	// Accept are names of fields and types of tools that are not known here and
	// are accepted anyway, such as top_k for servers that speak OpenAI's API.
	// They must cost nothing that the bounds of a request do not cover. All
	// others are refused, whatever MaxInput says.
	Accept []string
}

// Overhead and OverheadTools are tokens that each reservation adds to the input
// for what an API adds to the prompt by itself: always, and once more for each
// of these: any tools at all, each tool that the API itself describes (an
// editor, a shell), Anthropic's formats of output.
//
// The largest published number of Anthropic's instructions for tools is 530
// tokens, for a definition that takes 40 bytes of the request.
const (
	Overhead      = 128
	OverheadTools = 1024
)

// maxTokens bounds every count of tokens, so that products of counts and prices
// cannot overflow. Counts above it are counted as this.
const maxTokens = 1 << 40

// Meter prices the requests of one API. It is safe for concurrent use.
type Meter struct {
	cfg    Config
	prices []Price
	paths  []path
}

// New checks a configuration.
func New(cfg Config) (*Meter, error) {
	if cfg.MaxOutputField == "" {
		cfg.MaxOutputField = "max_completion_tokens"
	}
	if cfg.InputBytesPerToken == 0 {
		cfg.InputBytesPerToken = 1
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m := &Meter{cfg: cfg, paths: openaiPaths}
	if cfg.API == Anthropic {
		m.paths = anthropicPaths
	}
	for _, p := range cfg.Prices {
		m.prices = append(m.prices, p.complete())
	}
	return m, nil
}

func (c Config) check() error {
	if c.API != OpenAI && c.API != Anthropic {
		return fmt.Errorf("unknown API %q: write openai or anthropic", c.API)
	}
	if f := c.MaxOutputField; f != "max_completion_tokens" && f != "max_tokens" {
		return fmt.Errorf("max_output cannot be written in field %q: write max_completion_tokens or max_tokens", f)
	}
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"max_output", c.MaxOutput}, {"max_request", c.MaxRequest},
		{"max_input", c.MaxInput}, {"input_bytes_per_token", c.InputBytesPerToken},
	} {
		if n.value < 0 || n.value > maxTokens {
			return fmt.Errorf("%s is %d: write a number from 1 to %d", n.name, n.value, int64(maxTokens))
		}
	}
	if c.EnforceOff && c.MaxOutput == 0 {
		return errors.New("enforce off needs max_output: it is what requests without a bound reserve")
	}
	return checkPrices(c.Prices)
}

// Estimates says whether reservations are estimates instead of bounds, and why.
// Empty means that they are bounds.
func (m *Meter) Estimates() []string {
	var why []string
	if n := m.cfg.InputBytesPerToken; n > 1 {
		why = append(why, fmt.Sprintf("input_bytes_per_token %d: text with fewer bytes in each token costs more than it reserves", n))
	}
	if m.cfg.EnforceOff {
		why = append(why, "enforce off: a request that names no bound may cost more than max_output")
	}
	return why
}

// Priced says whether units are micro-dollars; otherwise they are tokens.
func (m *Meter) Priced() bool { return len(m.prices) > 0 }

func (c *Config) acceptsTier(tier string) bool {
	return len(c.Prices) == 0 || slices.Contains(c.Tiers, tier)
}
