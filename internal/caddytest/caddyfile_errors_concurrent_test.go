package caddytest

import "testing"

func TestCaddyfileMistakesOfConcurrent(t *testing.T) {
	for _, m := range []mistake{
		{"nothing", bareZone("concurrent" + here), []string{"concurrent"}},
		{"a word", bareZone("concurrent many" + here), []string{`concurrent "many" is not a whole number between 1 and 1000000000`}},
		{"none", bareZone("concurrent 0" + here), []string{"concurrent 0 is not between 1 and 1000000000", "write events 0 and a window"}},
		{"below none", bareZone("concurrent -1" + here), []string{"concurrent -1 is not between"}},
		{"too many", bareZone("concurrent 1000000001" + here), []string{"is not between 1 and 1000000000"}},
		{"twice", bareZone("concurrent 5", "concurrent 5"+here), []string{"concurrent is already given on line 4"}},
		{"with events", bareZone("concurrent 5", "events 5"+here), []string{"events: concurrent limits how many requests are in flight at once and has no events", "a zone of its own"}},
		{"with window", bareZone("concurrent 5", "window 1m"+here), []string{"has no window"}},
		{"with cost", bareZone("concurrent 5", "cost 2"+here), []string{"has no cost"}},
		{"with tier", bareZone("concurrent 5", "tier {vars.plan} {"+here, "free 1", "default free", "}"), []string{"has no tier"}},
		{"in the short form", site("concurrent 5" + here), []string{"a limit of its own", "zone <name> { concurrent"}},
		{"outside of a zone", ":80 {\n\tdistributed_ratelimit {\n\t\tconcurrent 5" + here + "\n\t}\n}", []string{"concurrent belongs into a zone"}},
		{"against events", "http://a.test {\n\tdistributed_ratelimit 5 1m z\n}\n" +
			"http://b.test {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\tconcurrent 5" + here + "\n\t\t}\n\t}\n}",
			[]string{"concurrent 5 here and events 5 in another handler"}},
		{"differs", "http://a.test {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\tconcurrent 4\n\t\t}\n\t}\n}\n" +
			"http://b.test {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\tconcurrent 5" + here + "\n\t\t}\n\t}\n}",
			[]string{"concurrent 5 here and concurrent 4 in another handler"}},
	} {
		t.Run(m.name, m.check)
	}
}
