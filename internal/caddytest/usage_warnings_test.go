package caddytest

import (
	"fmt"
	"strings"
	"testing"
)

// What makes a budget less than a promise is said at load, each of it once; and nothing
// else is.
func TestWeakBudgetsAreWarnedOf(t *testing.T) {
	const (
		short    = "the window of this budget is shorter than streams may last"
		estimate = "what this budget reserves is an estimate and no bound"
		away     = "while the store is away this budget is not one budget of all instances"
		memory   = "this budget is kept in the memory of one process"
		loss     = "after a loss of data the store may grant this budget once more"

		nowhere = "store redis redis://127.0.0.1:1" // nobody is asked at load
	)
	for name, row := range map[string]struct {
		store, window, zone, usage string
		want, why                  string // the warning, and what it says is estimated
	}{
		"nothing to say":             {nowhere, "10m", "", "", "", ""},
		"store memory":               {"store memory", "1h", "", "", memory, ""},
		"short window":               {nowhere, "9m59s", "", "", short, ""},
		"bytes for a token":          {nowhere, "1h", "", "input_bytes_per_token 4", estimate, "input_bytes_per_token"},
		"requests are not rewritten": {nowhere, "1h", "", "enforce off", estimate, "enforce off"},
		"local while it is away":     {nowhere, "1h", "on_store_error local", "", away, ""},
		"allow while it is away":     {nowhere, "1h", "on_store_error allow", "", away, ""},
		"deny, as by default":        {nowhere, "1h", "on_store_error deny", "", "", ""},
		"goes on after a loss":       {nowhere + " {\non_data_loss continue\n}", "1h", "", "", loss, ""},
		"cautious after a loss":      {nowhere + " {\non_data_loss cautious\n}", "1h", "", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, fmt.Sprintf(`
{
	distributed_ratelimit {
		%s
	}
}
http://a.test {
	distributed_ratelimit {
		zone budget {
			key all
			events 1000
			window %s
			%s
			usage openai {
				max_output 100
				%s
			}
		}
		zone requests {
			events 10
			window 1m
		}
	}
	respond "hello"
}`, row.store, row.window, row.zone, row.usage))
			for _, warning := range []string{short, estimate, away, memory, loss} {
				times := 0
				if warning == row.want {
					times = 1
				}
				for _, line := range e.log.says(times, warning) {
					why, _ := line["why"].(string)
					if line["level"] != "warn" || line["zone"] != "budget" || !strings.Contains(why, row.why) {
						t.Errorf("the warning is %v", line)
					}
				}
			}
		})
	}
}
