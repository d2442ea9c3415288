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
		{"with concurrent", bareZone("concurrent 5", "count_if status 401"+here), []string{"concurrent limits how many requests are in flight at once", "remove it"}},
		{"ban without length", zone("block_for" + here), []string{"block_for takes one argument, not 0"}},
		{"ban of nothing", zone("block_for 0" + here), []string{`block_for "0" is not a duration above zero`}},
		{"ban without unit", zone("block_for 600" + here), []string{"for seconds write 600s"}},
		{"short ban", zone("block_for 10ms" + here), []string{"block_for 10ms is not between 1s and 30d"}},
		{"long ban", zone("block_for 31d" + here), []string{"block_for 31d is not between 1s and 30d"}},
		{"fine ban", zone("block_for 1000000001ns" + here), []string{"finer than a microsecond"}},
		{"two bans", zone("block_for 1m", "block_for 2m"+here), []string{"block_for is already given on line 6"}},
		{"ban with events 0", bareZone("events 0", "window 1m", "block_for 1m"+here), []string{"events 0 refuses everything already", "remove block_for"}},
		{"ban with concurrent", bareZone("concurrent 5", "block_for 1m"+here), []string{"concurrent limits how many requests are in flight at once"}},
		{"two lengths", other("block_for 1m", "\nblock_for 2m"+here), []string{"block_for 2m here and block_for 1m in another handler", "rename one"}},
		{"ban in one handler only", other("block_for 1m", here+"\nkey {client_ip}"), []string{"no block_for here and block_for 1m in another handler"}},
		{"outside of a zone", strings.Replace(zone("}\ncount_if status 401"+here+"\nzone y {\nevents 1\nwindow 1m"), "\t\t}\n\t}", "}\n}", 1), []string{"count_if belongs into a zone"}},
		{"in one handler only", other("count_if status 401", here+"\nkey {client_ip}"), []string{"count_if in one handler and not in another", "rename one"}},
	} {
		t.Run(m.name, m.check)
	}
	if _, err := adapt(other("count_if status 401", "\ncount_if status 403")); err != nil {
		t.Errorf("one limit that counts different responses in two places: %v", err)
	}
}
