package llm

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// No response that keeps the bounds of its request costs more than what was
// reserved, and one that uses all of it in the dearest way costs just about that:
// a bound that is never reached keeps out requests that there was room for.
func TestReservationCoversSettlement(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	for range 3000 {
		c := randomCase(t, random)
		rsv := reserve(t, c.meter, c.path, c.body)
		input := random.Int64N(rsv.Input + 1)
		output := random.Int64N(rsv.Output + 1)
		if random.IntN(3) == 0 {
			input, output = rsv.Input, rsv.Output
		}
		usage, dearest := c.usage(random, input, output)
		resp := rsv.Response(200, jsonHeader)
		reply(resp, `{"model":"`+c.model+`","usage":`+usage+`}`, random)
		s := resp.Settle()
		if s.Outcome != Counted || s.Usage.Tokens() != input+output {
			t.Fatalf("%s\nanswered by %s: %+v, want %d tokens", c.body, usage, s, input+output)
		}
		if s.Units > rsv.Units {
			t.Fatalf("%s\nreserved %d (%d in, %d out at %s), answered by %s: settled %d (%+v)",
				c.body, rsv.Units, rsv.Input, rsv.Output, rsv.Price, usage, s.Units, s.Usage)
		}
		if dearest && input == rsv.Input && output == rsv.Output && s.Units != rsv.Units {
			t.Fatalf("%s\nreserved %d, and the dearest response costs %d", c.body, rsv.Units, s.Units)
		}
	}
}

type boundCase struct {
	meter             *Meter
	path, body, model string
	hour, writes      bool
}

func randomCase(t *testing.T, random *rand.Rand) boundCase {
	c := boundCase{path: []string{chatPath, responsesPath, messagesPath}[random.IntN(3)], model: "m"}
	cfg := Config{API: OpenAI, MaxOutput: 1 + random.Int64N(1000), MaxInput: 1 + random.Int64N(5000)}
	field := "max_tokens"
	switch c.path {
	case responsesPath:
		field = "max_output_tokens"
	case messagesPath:
		cfg.API = Anthropic
	}
	if random.IntN(4) > 0 {
		rate := func() Rate { return Rate(random.Int64N(20_000_001)) }
		cfg.Prices = []Price{{Match: "m", Input: rate(), Output: rate()}, {Match: "default", Input: rate(), Output: rate()}}
		if random.IntN(2) == 0 { // as everywhere: reading is cheaper than input, and writing is not
			cached := cfg.Prices[0].Input / 10
			write := cfg.Prices[0].Input + rate()
			cfg.Prices[0].Cached, cfg.Prices[0].CacheWrite = &cached, &write
		}
	}
	c.meter = newMeter(t, cfg)
	members := []string{`"model":"m"`, `"messages":[{"role":"user","content":"` + strings.Repeat("ä ", random.IntN(300)) + `"}]`}
	if c.path == responsesPath {
		members[1] = `"input":"` + strings.Repeat("x", random.IntN(300)) + `"`
		if random.IntN(3) == 0 {
			members = append(members, `"previous_response_id":"r"`)
		}
	}
	if random.IntN(3) > 0 {
		members = append(members, fmt.Sprintf("%q:%d", field, 1+random.Int64N(5000)))
	}
	if c.path == chatPath && random.IntN(2) == 0 {
		members = append(members, fmt.Sprintf(`"n":%d`, 1+random.IntN(5)))
	}
	c.writes = cfg.API == OpenAI
	if c.path == messagesPath && random.IntN(2) == 0 {
		c.writes, c.hour = true, random.IntN(2) == 0
		members = append(members, `"cache_control":{"type":"ephemeral","ttl":"`+map[bool]string{true: "1h", false: "5m"}[c.hour]+`"}`)
	}
	random.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	c.body = "{" + strings.Join(members, ",") + "}"
	return c
}

// usage makes a usage of these tokens, and says whether all input is of the
// dearest kind.
func (c boundCase) usage(random *rand.Rand, input, output int64) (usage string, dearest bool) {
	cached := random.Int64N(input + 1)
	written := random.Int64N(input - cached + 1)
	if !c.writes {
		written = 0
	}
	if dearest = random.IntN(3) == 0; dearest {
		cached, written = 0, 0
		if c.writes {
			written = input
		}
	}
	switch c.path {
	case chatPath:
		return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d,"cache_write_tokens":%d}}`,
			input, output, input+output, cached, written), dearest
	case responsesPath:
		return fmt.Sprintf(`{"input_tokens":%d,"output_tokens":%d,"total_tokens":%d,"input_tokens_details":{"cached_tokens":%d,"cache_write_tokens":%d}}`,
			input, output, input+output, cached, written), dearest
	}
	hour := int64(0)
	if c.hour {
		hour = random.Int64N(written + 1)
		if dearest {
			hour = written
		}
	}
	return fmt.Sprintf(`{"input_tokens":%d,"output_tokens":%d,"cache_read_input_tokens":%d,"cache_creation_input_tokens":%d,"cache_creation":{"ephemeral_5m_input_tokens":%d,"ephemeral_1h_input_tokens":%d}}`,
		input-cached-written, output, cached, written, written-hour, hour), dearest
}
