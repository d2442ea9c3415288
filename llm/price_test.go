package llm

import (
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestParseRate(t *testing.T) {
	for s, want := range map[string]Rate{
		"0": 0, "15": 15_000_000, "1.25": 1_250_000, "$0.125": 125_000, "0.000001": 1, "10000": maxRate, "001.5": 1_500_000,
	} {
		if got := rate(t, s); got != want {
			t.Errorf("ParseRate(%q) = %d, want %d", s, got, want)
		}
	}
	for _, s := range []string{"", "$", "-1", "1e3", "1.", ".5", "1.2.3", "1,25", "1.0000001", "10000.01", "99999999999999999999", "+1", "NaN", " 1"} {
		if got, err := ParseRate(s); err == nil {
			t.Errorf("ParseRate(%q) = %d", s, got)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, row := range []struct {
		pattern, text string
		want          bool
	}{
		{"gpt-5", "gpt-5", true}, {"gpt-5", "gpt-5-pro", false}, {"gpt-5*", "gpt-5-pro", true},
		{"*", "", true}, {"", "", true}, {"", "a", false}, {"a*", "", false}, {"*-mini", "gpt-5-mini", true},
		{"a*b*c", "aXbXbXc", true}, {"a*b*c", "aXcXb", false}, {"*a", "aaab", false}, {"**", "x", true},
	} {
		if got := glob(row.pattern, row.text); got != row.want {
			t.Errorf("glob(%q, %q) = %v", row.pattern, row.text, got)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	def := price(t, "default", "1", "", "1")
	for _, row := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "openai or anthropic"},
		{Config{API: OpenAI, MaxOutputField: "n"}, "max_completion_tokens or max_tokens"},
		{Config{API: OpenAI, MaxOutput: -1}, "max_output is -1"},
		{Config{API: OpenAI, EnforceOff: true}, "enforce off needs max_output"},
		{Config{API: OpenAI, Prices: []Price{price(t, "a", "1", "", "1")}}, "no default"},
		{Config{API: OpenAI, Prices: []Price{def, def}}, "twice"},
		{Config{API: OpenAI, Prices: []Price{price(t, "a*", "1", "", "1"), price(t, "ab", "1", "", "1"), def}}, `"ab" never counts`},
		{Config{API: OpenAI, Prices: []Price{{Input: 1}, def}}, "no model"},
		{Config{API: OpenAI, Prices: []Price{{Match: "a", Input: -1}, def}}, `"a" has -1`},
	} {
		if _, err := New(row.cfg); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("New(%+v) = %v, want %q", row.cfg, err, row.want)
		}
	}
	estimates := newMeter(t, Config{API: OpenAI, MaxOutput: 1, EnforceOff: true, InputBytesPerToken: 4}).Estimates()
	if len(estimates) != 2 {
		t.Errorf("estimates: %q", estimates)
	}
}

// Costs are exact, and rounded up once.
func TestCostIsExact(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		count := func() int64 { return random.Int64N(1 << (1 + random.IntN(40))) }
		rate := func() Rate { return Rate(random.Int64N(maxRate)) >> random.IntN(34) }
		p := Price{Match: "default", Input: rate(), Output: rate(), Cached: new(rate()), CacheWrite: new(rate()), CacheWriteHour: new(rate())}
		u := Usage{count(), count(), count(), count(), count()}
		want := new(big.Int)
		for _, part := range []struct {
			n int64
			r Rate
		}{{u.Input, p.Input}, {u.Cached, *p.Cached}, {u.CacheWrite, *p.CacheWrite}, {u.CacheWriteHour, *p.CacheWriteHour}, {u.Output, p.Output}} {
			want.Add(want, new(big.Int).Mul(big.NewInt(part.n), big.NewInt(int64(part.r))))
		}
		want.Add(want, big.NewInt(999_999)).Div(want, big.NewInt(1_000_000))
		if got := p.cost(u); got != want.Int64() {
			t.Fatalf("%+v at %+v costs %d, want %s", u, p, got, want)
		}
	}
	dearest := Price{Input: maxRate, Output: maxRate}.complete()
	if got := dearest.cost(Usage{Input: math.MaxInt64, Output: math.MaxInt64}); got != 2*maxTokens*10_000 {
		t.Errorf("the most that can be counted costs %d", got)
	}
}

func TestPriceDefaults(t *testing.T) {
	p := price(t, "default", "3", "", "15").complete()
	if *p.Cached != 3_000_000 || *p.CacheWrite != 3_750_000 || *p.CacheWriteHour != 6_000_000 {
		t.Errorf("%d %d %d", *p.Cached, *p.CacheWrite, *p.CacheWriteHour)
	}
}
