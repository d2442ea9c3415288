package caddytest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// Without log_key no key of a client is told anywhere: not in our log lines, in our field
// of the access log, in a label of a metric, an attribute of a span or the data of an event.
func TestNoKeyIsTold(t *testing.T) {
	n, events := notedEvents(t)
	s := openSpans(t)
	server := redistest.Start(t)
	e := start(t, strings.Replace(onRedis(server, `
http://a.test {
	log
	traced `+t.Name()+`
	distributed_ratelimit {
		zone login {
			key {header.X-Api-Key}
			events 2
			window 1h
			block_for 1h
		}
		zone tried {
			key {header.X-Api-Key}
			events 1
			window 1h
			dry_run
		}
		zone flights {
			key {header.X-Api-Key}
			concurrent 5
		}
	}
	respond "ok"
}`), "{\n", "{\n"+strings.ReplaceAll(events, t.Name(), t.Name()+"/events"), 1))
	invite(t, t.Name()+"/events", n)
	e.becomes("store_up", equals(1))
	visit := func(from string) {
		for i := range 5 {
			e.get(from, "http://a.test/", with("X-Api-Key", "sesame-"+fmt.Sprint(i%2)))
		}
	}
	visit(alice)
	server.Kill()
	e.becomes("store_up", equals(0))
	visit(bob)
	server.Restart(t)
	e.becomes("store_up", equals(1))
	visit(alice)
	inTime(t, "events", func() bool { return len(n.all()) >= 4 })

	told := make(map[string]string)
	for i, line := range e.log.find("") {
		if logger, _ := line["logger"].(string); strings.HasPrefix(logger, "http.log.access") {
			line = map[string]any{"rate_limit": line["rate_limit"]} // Caddy itself logs the headers
		}
		text, err := json.Marshal(line)
		if err != nil {
			t.Fatal(err)
		}
		told[fmt.Sprintf("line %d of the log", i)] = string(text)
	}
	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var metrics strings.Builder
	for _, family := range families {
		fmt.Fprintln(&metrics, family)
	}
	told["metrics"] = metrics.String()
	told["spans"] = strings.Join(s.taken(t), "\n")
	for _, event := range n.all() {
		told["event "+event.Name()] = fmt.Sprint(event.Data)
	}
	for what, text := range told {
		if strings.Contains(text, "sesame") {
			t.Errorf("%s tells a key: %s", what, text)
		}
	}
	for what, holds := range map[string]string{"metrics": "login", "spans": "login", "event key_blocked": "login"} {
		if !strings.Contains(told[what], holds) {
			t.Errorf("%s: got %q, want something that holds %q: else this tests nothing", what, told[what], holds)
		}
	}
}
