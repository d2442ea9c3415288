package caddytest

import (
	"strings"
	"testing"
)

// tiered is a zone with a table of limits by plan.
func tiered(rows ...string) string {
	return bareZone("window 1m", "tier {vars.plan} {\n"+strings.Join(rows, "\n")+"\n}")
}

func TestCaddyfileMistakesOfTiers(t *testing.T) {
	for _, m := range []mistake{
		{"with events", zone("tier {vars.plan} {"+here, "default 1", "}"), []string{"tier stands instead of events", "remove events"}},
		{"in the short form", site("tier {vars.plan} {"+here, "default 1", "}"), []string{"tier stands instead of the events", "zone <name>"}},
		{"outside of a zone", ":80 {\n\tdistributed_ratelimit {\n\t\ttier {vars.plan} {" + here + "\n\t\t}\n\t}\n}", []string{"tier belongs into a zone"}},
		{"twice", bareZone("window 1m", "tier {vars.plan} {\ndefault 1\n}", "tier {vars.plan} {"+here, "}"), []string{"tier is already given on line 5"}},
		{"without placeholder", bareZone("window 1m", "tier free {"+here, "free 1", "default 1", "}"), []string{`tier "free" has no placeholder`, "write events instead"}},
		{"nothing", bareZone("window 1m", "tier"+here), []string{"tier takes one argument"}},
		{"two placeholders", bareZone("window 1m", "tier {vars.a} {vars.b} {"+here, "default 1", "}"), []string{"tier takes one argument, not 2"}},
		{"no plan", bareZone("window 1m", "tier {vars.plan} {"+here, "default 1", "}"), []string{"tier lists no plan"}},
		{"no block", bareZone("window 1m", "tier {vars.plan}"+here), []string{"tier lists no plan", "default <n>|unlimited|<plan>"}},
		{"no default", bareZone("window 1m", "tier {vars.plan} {"+here, "free 1", "}"), []string{"tier has no default", "unknown and missing plans"}},
		{"plan twice", tiered("free 1", "free 2"+here, "default free"), []string{"free is already given on line 6", "remove one"}},
		{"default twice", tiered("free 1", "default 2", "default free"+here), []string{"default is already given on line 7"}},
		{"plan without limit", tiered("free"+here, "default 1"), []string{`plan "free" has no limit`, "free <n>, or free unlimited"}},
		{"plan with two limits", tiered("free 1 2"+here, "default 1"), []string{`plan "free" has one limit; remove "2"`}},
		{"limit below zero", tiered("free -1"+here, "default 1"), []string{`plan "free": -1 is not between 0 and 1000000000000`}},
		{"limit too large", tiered("free 1000000000001"+here, "default 1"), []string{"is not between 0 and 1000000000000"}},
		{"limit word", tiered("free many"+here, "default 1"), []string{`plan "free" has the limit "many"`, "a whole number, or unlimited"}},
		{"limit with a fraction", tiered("free 1.5"+here, "default 1"), []string{`the limit "1.5"`}},
		{"limit placeholder", tiered("free {vars.limit}"+here, "default 1"), []string{"a whole number, or unlimited"}},
		{"limit of another plan", tiered("free 1", "pro free"+here, "default 1"), []string{`plan "pro" has the limit "free"`}},
		{"default unknown", tiered("free 1", "pro 2", "default basic"+here), []string{`default "basic" is neither a plan of this tier (free, pro) nor a whole number nor unlimited`}},
		{"default below zero", tiered("free 1", "default -5"+here), []string{"default: -5 is not between 0"}},
		{"default of two meanings", tiered("1 60", "default 1"+here), []string{"a number and the name of a plan", "default 60"}},
		{"plan called unlimited", tiered("unlimited 1"+here, "default 1"), []string{`a plan cannot be called "unlimited"`}},
		{"misspelt placeholder", bareZone("window 1m", "tier {http.vras.plan} {"+here, "free 1", "default 1", "}"), []string{`tier "{http.vras.plan}"`, "did you mean {http.vars.plan}"}},
		{"open brace", bareZone("window 1m", "tier \"{vars.plan\" {"+here, "free 1", "default 1", "}"), []string{"brace that is never closed"}},
		{"body", bareZone("window 1m", "tier {http.request.body} {"+here, "free 1", "default 1", "}"), []string{"would hold all of the body in memory"}},
		{"response", bareZone("window 1m", "tier {http.response.header.X-Plan} {"+here, "free 1", "default 1", "}"), []string{"not known before the response"}},
		{"differs", "http://a.test {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\twindow 1m\n\t\t\ttier {vars.plan} {\n\t\t\t\tfree 1\n\t\t\t\tdefault free\n\t\t\t}\n\t\t}\n\t}\n}\n" +
			"http://b.test {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\twindow 1m\n\t\t\ttier {vars.plan} {" + here + "\n\t\t\t\tfree 2\n\t\t\t\tdefault free\n\t\t\t}\n\t\t}\n\t}\n}",
			[]string{"free 2; default free } here and tier", "make them equal, or rename one", "Caddyfile:3"}},
		{"against events", "http://a.test {\n\tdistributed_ratelimit 5 1m z\n}\n" +
			"http://b.test {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\twindow 1m\n\t\t\ttier {vars.plan} {" + here + "\n\t\t\t\tfree 5\n\t\t\t\tdefault 5\n\t\t\t}\n\t\t}\n\t}\n}",
			[]string{"here and events 5 in another handler"}},
	} {
		t.Run(m.name, m.check)
	}
}

func TestCaddyfileMistakesOfCosts(t *testing.T) {
	for _, m := range []mistake{
		{"nothing", site("cost" + here), []string{"cost needs a number", "cost {vars.cost} default 1 max 100"}},
		{"0", site("cost 0" + here), []string{"cost 0 counts nothing", "exempt"}},
		{"below zero", site("cost -1" + here), []string{"cost -1 is not between 1 and 1000000000000"}},
		{"too large", site("cost 1000000000001" + here), []string{"is not between 1 and"}},
		{"beyond int64", site("cost 99999999999999999999" + here), []string{"is not between 1 and"}},
		{"fraction", site("cost 1.5" + here), []string{`cost "1.5" is neither a whole number nor a placeholder`}},
		{"twice", site("cost 1", "cost 2"+here), []string{"cost is already given on line 3"}},
		{"number with bounds", site("cost 5 max 10" + here), []string{"cost 5 is always the same", "remove them"}},
		{"no default", site("cost {vars.cost} max 5" + here), []string{"has no default", "write: cost {http.vars.cost} default <n> max <n>"}},
		{"no max", site("cost {vars.cost} default 5" + here), []string{"has no max"}},
		{"unknown word", site("cost {vars.cost} default 1 max 5 most 3" + here), []string{`unknown word "most"`, "default <n>, max <n> or min 0"}},
		{"word twice", site("cost {vars.cost} default 1 max 5 max 3" + here), []string{"cost has max twice"}},
		{"word without number", site("cost {vars.cost} default 1 max" + here), []string{"max of cost needs a number"}},
		{"word with a word", site("cost {vars.cost} default one max 5" + here), []string{`default "one" of cost is not a whole number`}},
		{"default above max", site("cost {vars.cost} default 6 max 5" + here), []string{"default of 6, which is not between 1 and the max of 5"}},
		{"default 0", site("cost {vars.cost} default 0 max 5" + here), []string{"default of 0, but the least is 1", "min 0"}},
		{"default below zero", site("cost {vars.cost} default -1 max 5 min 0" + here), []string{"default of -1"}},
		{"max 0", site("cost {vars.cost} default 0 max 0 min 0" + here), []string{"max of 0, which is not between 1"}},
		{"max too large", site("cost {vars.cost} default 1 max 1000000000001" + here), []string{"is not between 1 and 1000000000000"}},
		{"min 2", site("cost {vars.cost} default 3 max 5 min 2" + here), []string{"min of 2", "min 0"}},
		{"misspelt placeholder", site("cost {http.requst.header.X} default 1 max 5" + here), []string{"did you mean {http.request.header.X}"}},
		{"above events", site("cost 11" + here), []string{"cost 11 is more than events 10", "every request would be refused"}},
		{"above a plan", tiered("free 4"+here, "pro 40", "default pro", "}\ncost 5\nexempt {\npath /x"), []string{`plan "free" has 4, less than the cost of 5`}},
		{"above the default", tiered("pro 40", "default 4"+here, "}\ncost 5\nexempt {\npath /x"), []string{"default 4 is less than the cost of 5"}},
		{"differs", "http://a.test {\n\tdistributed_ratelimit 10 1m z\n}\nhttp://b.test {\n\tdistributed_ratelimit 10 1m z {\n\t\tcost 5" + here + "\n\t}\n}",
			[]string{"cost 5 here and cost 1 in another handler", "map"}},
	} {
		t.Run(m.name, m.check)
	}
}
