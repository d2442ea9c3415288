package caddytest

import (
	"strings"
	"testing"
)

func TestCaddyfileMistakesAboutResponses(t *testing.T) {
	other := func(first, second string) string {
		zone := "distributed_ratelimit 10 1m z {"
		return ":80 {\n" + zone + "\n" + first + "\n}\n}\n:81 {\n" + zone + second + "\n}\n}"
	}
	for _, m := range []mistake{
		{"nothing", zone("count_if" + here), []string{"count_if names no response", "count_if status 401 403"}},
		{"empty block", zone("count_if {" + here + "\n}"), []string{"count_if names no response"}},
		{"bare status", zone("count_if 401 403" + here), []string{"write: count_if status 401 403"}},
		{"bare class", zone("count_if 4xx" + here), []string{"write: count_if status 4xx"}},
		{"named matcher", zone("count_if @failed" + here), []string{"takes no named matcher", "count_if status <code...>"}},
		{"no code", zone("count_if status" + here), []string{"argument count"}},
		{"word", zone("count_if status failed" + here), []string{"bad status value 'failed'"}},
		{"unknown matcher", zone("count_if {\nbody failed" + here + "\n}"), []string{"unrecognized response matcher body"}},
		{"number that is none", zone("count_if status 42" + here), []string{"count_if status 42 is none", "101 to 599"}},
		{"number above", zone("count_if status 600" + here), []string{"count_if status 600 is none"}},
		{"class that is none", zone("count_if status 9xx" + here), []string{"count_if status 9 is none", "4xx"}},
		{"early hints", zone("count_if status 401 103" + here), []string{"count_if status 103 is not final"}},
		{"class of hints", zone("count_if status 1xx" + here), []string{"count_if status 1xx is not final"}},
		{"client that has gone", zone("count_if status 401 499" + here), []string{"counted in any case", "remove 499"}},
		{"two, the second wrong", zone("count_if status 401", "count_if status 42"+here), []string{"count_if status 42 is none"}},
		{"outside of a zone", strings.Replace(zone("}\ncount_if status 401"+here+"\nzone y {\nevents 1\nwindow 1m"), "\t\t}\n\t}", "}\n}", 1), []string{"count_if belongs into a zone"}},
		{"in one handler only", other("count_if status 401", here+"\nkey {client_ip}"), []string{"count_if in one handler and not in another", "rename one"}},
	} {
		t.Run(m.name, m.check)
	}
	if _, err := adapt(other("count_if status 401", "\ncount_if status 403")); err != nil {
		t.Errorf("one limit that counts different responses in two places: %v", err)
	}
}
