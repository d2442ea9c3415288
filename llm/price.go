package llm

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// Rate is a price of one token in millionths of a micro-dollar, which is also
// the price of a million tokens in micro-dollars. $1.25 per million tokens is
// 1,250,000.
type Rate int64

// maxRate is $10,000 per million tokens: nothing costs that much, and sums of
// counts times rates stay far below 128 bits.
const maxRate = 10_000_000_000

// ParseRate reads dollars per million tokens: "15", "1.25", "$0.125". More than
// six decimal places are an error, not rounded.
func ParseRate(s string) (Rate, error) {
	text := strings.TrimPrefix(s, "$")
	whole, fraction, dotted := strings.Cut(text, ".")
	fail := func(why string) (Rate, error) {
		return 0, fmt.Errorf("price %q %s: write dollars per million tokens, such as 1.25", s, why)
	}
	if whole == "" || dotted && fraction == "" || strings.Trim(whole+fraction, "0123456789") != "" {
		return fail("is no number")
	}
	if len(fraction) > 6 {
		return fail("has more than six decimal places")
	}
	if len(strings.TrimLeft(whole, "0")) > 5 {
		return fail("is above $10000")
	}
	var rate Rate
	for _, digit := range []byte(whole + fraction + "000000"[len(fraction):]) {
		rate = rate*10 + Rate(digit-'0')
	}
	if rate > maxRate {
		return fail("is above $10000")
	}
	return rate, nil
}

// Price says what the tokens of some models cost. Only Input and Output are
// required.
type Price struct {
	// Match is a pattern for the whole name of a model, in which * stands for
	// any characters, or "default". Too wide a pattern makes dear models cheap:
	// gpt-5* is gpt-5-pro, too.
	Match string

	Input  Rate
	Output Rate

	// Cached is the price of input that was read from a cache. It defaults to
	// Input.
	Cached *Rate

	// CacheWrite is the price of input that was written to a cache. It defaults
	// to 1.25 times Input, which Anthropic charges, and OpenAI from gpt-5.6 on.
	// OpenAI writes caches by itself, so that all input is reserved at this
	// price: set it to Input for models that write for nothing.
	CacheWrite *Rate

	// CacheWriteHour is the price of input that was written to Anthropic's cache
	// for an hour, which a client may ask for. It defaults to 2 times Input.
	CacheWriteHour *Rate
}

func checkPrices(prices []Price) error {
	hasDefault := false
	for i, p := range prices {
		if p.Match == "" {
			return fmt.Errorf("price %d has no model: write a pattern or default", i)
		}
		for j := range i {
			if prices[j].Match == p.Match {
				return fmt.Errorf("price %q stands there twice: the first counts, remove the other", p.Match)
			}
			if m := prices[j].Match; m != "default" && p.Match != "default" && glob(m, p.Match) {
				return fmt.Errorf("price %q never counts, because %q stands before it: put it first", p.Match, m)
			}
		}
		hasDefault = hasDefault || p.Match == "default"
		for _, rate := range []*Rate{&p.Input, &p.Output, p.Cached, p.CacheWrite, p.CacheWriteHour} {
			if rate != nil && (*rate < 0 || *rate > maxRate) {
				return fmt.Errorf("price %q has %d: write from 0 to $10000 per million tokens", p.Match, *rate)
			}
		}
	}
	if len(prices) > 0 && !hasDefault {
		return errors.New("prices have no default: an unknown model would be free; write a dear one")
	}
	return nil
}

// complete fills in the defaults.
func (p Price) complete() Price {
	if p.Cached == nil {
		p.Cached = new(p.Input)
	}
	if p.CacheWrite == nil {
		p.CacheWrite = new((p.Input*5 + 3) / 4)
	}
	if p.CacheWriteHour == nil {
		p.CacheWriteHour = new(max(p.Input*2, *p.CacheWrite))
	}
	return p
}

// dearestInput is the highest price that a token of input may have.
func (p *Price) dearestInput(writes, hour bool) Rate {
	rate := max(p.Input, *p.Cached)
	if writes {
		rate = max(rate, *p.CacheWrite)
	}
	if hour {
		rate = max(rate, *p.CacheWriteHour)
	}
	return rate
}

// price finds the price of a model: its index, and false without prices.
func (m *Meter) price(model string) (int, bool) {
	fallback := -1
	for i := range m.prices {
		switch match := m.prices[i].Match; {
		case match == "default":
			fallback = i
		case glob(match, model):
			return i, true
		}
	}
	return fallback, fallback >= 0
}

// glob says whether the pattern fits the whole text. It takes at most
// len(pattern) times len(text) steps: the text is a stranger's.
func glob(pattern, text string) bool {
	p, t, star, mark := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && pattern[p] == text[t]:
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// Usage is what a response used, in tokens. No token is in two of the fields.
type Usage struct {
	Input          int64 // neither read from a cache nor written to one
	Cached         int64 // read from a cache
	CacheWrite     int64 // written to a cache
	CacheWriteHour int64 // written to Anthropic's cache for an hour
	Output         int64 // reasoning included
}

// Tokens is the sum.
func (u Usage) Tokens() int64 {
	return u.Input + u.Cached + u.CacheWrite + u.CacheWriteHour + u.Output
}

// cost is what the usage costs in micro-dollars, rounded up.
func (p *Price) cost(u Usage) int64 {
	var s sum
	s.add(u.Input, p.Input)
	s.add(u.Cached, *p.Cached)
	s.add(u.CacheWrite, *p.CacheWrite)
	s.add(u.CacheWriteHour, *p.CacheWriteHour)
	s.add(u.Output, p.Output)
	return s.microDollars()
}

// Dollars is what a usage costs at the price with a pattern, as a number for people to
// look at: it is not exact. Without such a price it is 0.
func (m *Meter) Dollars(pattern string, u Usage) float64 {
	for i := range m.prices {
		if p := &m.prices[i]; p.Match == pattern {
			const unit = 1e12 // a rate's, in dollars for a token
			return float64(u.Input)*float64(p.Input)/unit + float64(u.Cached)*float64(*p.Cached)/unit +
				float64(u.CacheWrite)*float64(*p.CacheWrite)/unit + float64(u.CacheWriteHour)*float64(*p.CacheWriteHour)/unit +
				float64(u.Output)*float64(p.Output)/unit
		}
	}
	return 0
}

// sum adds counts times rates exactly, in 128 bits. Counts are at most
// maxTokens and rates at most maxRate, so that it cannot overflow.
type sum struct{ hi, lo uint64 }

func (s *sum) add(tokens int64, rate Rate) {
	hi, lo := bits.Mul64(uint64(min(max(tokens, 0), maxTokens)), uint64(rate))
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, lo, 0)
	s.hi, _ = bits.Add64(s.hi, hi, carry)
}

func (s *sum) microDollars() int64 {
	const millionths = 1_000_000
	if s.hi >= millionths {
		return math.MaxInt64
	}
	quotient, rest := bits.Div64(s.hi, s.lo, millionths)
	if rest > 0 {
		quotient++
	}
	if quotient > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(quotient)
}
