package caddytest

import "testing"

// usageOf is a zone with a budget.
func usageOf(events string, lines ...string) string {
	options := append([]string{"window 1h", events, "usage openai {"}, lines...)
	return bareZone(append(options, "}")...)
}

func TestCaddyfileMistakesAboutUsage(t *testing.T) {
	const price, byDefault = "price gpt-5 input 1.25 output 10", "price default input 15 output 120"
	for _, m := range []mistake{
		{"no API", zone("usage" + here), []string{"usage takes one argument"}},
		{"unknown API", zone("usage mistral" + here), []string{`usage "mistral" is no API`, "usage openai or usage anthropic"}},
		{"unknown option", usageOf("events 10", "cost 5"+here), []string{`unknown option "cost" of usage`, "max_output"}},
		{"twice", usageOf("events 10", "max_input 1", "max_input 2"+here), []string{"max_input is already given on line 7"}},
		{"no default price", bareZone("window 1h", "events $5", "usage openai {"+here, price, "}"), []string{"prices have no default", "write a dear one"}},
		{"price without output", usageOf("events $5", "price default input 15"+here), []string{`price "default" has no output`}},
		{"price without input", usageOf("events $5", "price default output 15"+here), []string{`price "default" has no input`}},
		{"price that is none", usageOf("events $5", "price default input cheap output 1"+here), []string{`input of price "cheap" is no number`, "1.25"}},
		{"price too fine", usageOf("events $5", "price default input 0.0000001 output 1"+here), []string{"more than six decimal places"}},
		{"word in price", usageOf("events $5", "price default in 1 output 1"+here), []string{`unknown word "in" in price`}},
		{"word in price twice", usageOf("events $5", "price default input 1 input 2 output 1"+here), []string{"input twice"}},
		{"price without number", usageOf("events $5", "price default input 1 output"+here), []string{"output of price", "needs a number"}},
		{"hidden price", bareZone("window 1h", "events $5", "usage openai {"+here, "price gpt-* input 1 output 1", price, byDefault, "}"), []string{`price "gpt-5" never counts`, "put it first"}},
		{"numbers with prices", bareZone("window 1h", "usage openai {", byDefault, "}", "events 20"+here), []string{"with prices the limit is in dollars", "events $20"}},
		{"dollars without prices", bareZone("window 1h", "usage openai", "events $20"+here), []string{"a limit in dollars needs prices in usage"}},
		{"dollars without usage", bareZone("window 1h", "events $20"+here), []string{"a limit in dollars needs usage with prices"}},
		{"dollars that are none", usageOf("events $5.1234567"+here, byDefault), []string{`"$5.1234567" is no amount of dollars`, "$0.50"}},
		{"too many dollars", usageOf("events $5000000"+here, byDefault), []string{`"$5000000" is more than $1000000`}},
		{"plans, some in dollars", bareZone("window 1h", "usage openai {", byDefault, "}", "tier {vars.plan} {", "free 5", "pro $20", "default free", "}"+here), []string{"some limits of tier are in dollars and others are not"}},
		{"max_output", usageOf("events 10", "max_output some"+here), []string{`max_output "some" is not a whole number above zero`}},
		{"no max_output", usageOf("events 10", "max_output"+here), []string{"max_output takes a number of tokens"}},
		{"field of max_output", bareZone("window 1h", "events 10", "usage openai {"+here, "max_output 5 max_length", "}"), []string{"max_completion_tokens or max_tokens"}},
		{"max_request", usageOf("events 10", "max_request 0"+here), []string{`max_request "0" is not a whole number above zero`}},
		{"max_request above events", bareZone("window 1h", "events 10", "usage openai {"+here, "max_request 11", "}"), []string{"max_request 11 is more than the 10 tokens of events"}},
		{"enforce", usageOf("events 10", "enforce on"+here), []string{"enforce off, or remove it"}},
		{"enforce off alone", bareZone("window 1h", "events 10", "usage openai {"+here, "enforce off", "}"), []string{"enforce off needs max_output"}},
		{"cost", zone("usage openai", "cost 5"+here), []string{"cost and usage", "a zone of its own beside this one"}},
		{"count_if", zone("usage openai", "count_if status 200"+here), []string{"count_if and usage", "what cost something must count"}},
		{"block_for", zone("usage openai", "block_for 1h"+here), []string{"block_for and usage", "would ban the key"}},
		{"concurrent", bareZone("usage openai", "concurrent 5"+here), []string{"concurrent and usage", "a zone of its own"}},
		{"dry_run", zone("usage openai", "dry_run"+here), []string{"a dry run changes nothing", "enforce off"}},
		{"body_limit", ":80 {\ndistributed_ratelimit {\nzone z {\nevents 9\nwindow 1h\nusage openai\n}\nbody_limit 65MiB" + here + "\n}\n}", []string{"not between 1KiB and 64MiB"}},
		{"units differ", ":80 {\ndistributed_ratelimit {\nzone z {\nwindow 1h\nevents 10\n}\n}\n}\n:81 {\ndistributed_ratelimit {\nzone z {\nwindow 1h\nevents 10\nusage openai" + here + "\n}\n}\n}", []string{"tokens here and requests in another handler"}},
	} {
		t.Run(m.name, m.check)
	}
	for _, text := range []string{
		zone("usage openai {", "enforce off", "max_output 5", "}", "dry_run"),
		bareZone("window 1h", "events 0", "usage openai {", byDefault, "}"),
		bareZone("window 1h", "usage anthropic {", byDefault, "}", "tier {vars.plan} {", "free 0", "pro $20", "all unlimited", "default free", "}"),
	} {
		if _, err := adapt(text); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
}
