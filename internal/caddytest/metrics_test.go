package caddytest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func (e *edge) seriesNames() []string {
	e.t.Helper()
	var names []string
	for _, metric := range []string{"requests_total", "refusals_total", "empty_keys_total", "replaced_values_total", "identified_requests_total", "near_misses_total", "store_duration_seconds", "store_errors_total", "store_up", "store_data_losses_total", "store_instances"} {
		for labels := range e.series(metric) {
			names = append(names, metric+" "+labels)
		}
	}
	slices.Sort(names)
	return names
}

const twoZones = `
http://a.test {
	distributed_ratelimit {
		zone each {
			events 2
			window 1h
		}
		zone user {
			key {header.X-User}
			events 2
			window 1h
		}
	}
	respond "ok"
}`

// The number of series does not depend on the clients.
func TestMetricsDoNotGrowWithClients(t *testing.T) {
	e := start(t, twoZones)
	visit := func(from, to int) {
		for i := from; i < to; i++ {
			client := fmt.Sprintf("203.0.%d.%d", i/250, i%250+1)
			for range 3 {
				e.get(client, "http://a.test/", with("X-User", fmt.Sprint(i)), with("X-Forwarded-For", fmt.Sprint(i)))
			}
		}
	}
	visit(0, 2)
	before := e.seriesNames()
	visit(2, 1000)
	if after := e.seriesNames(); !slices.Equal(before, after) {
		t.Errorf("series after 1000 clients: got %v, want the same as after 2: %v", after, before)
	}
	e.sample("requests_total", "granted store each", 2000)
	e.sample("requests_total", "refused store each", 1000)
	e.sample("requests_total", "refused store user", 1000)
	e.sample("store_duration_seconds", "memory", 3000)
	e.sample("store_up", "memory memory", 1)
}

// Series go on over a reload with their zone, and vanish with it.
func TestMetricsOverReloads(t *testing.T) {
	e := start(t, twoZones)
	e.granted(2, alice, "http://a.test/", with("X-User", "me"))
	for range 3 {
		e.reload(twoZones)
	}
	e.sample("requests_total", "granted store each", 2)
	e.refused(alice, "http://a.test/", with("X-User", "me"))
	e.sample("requests_total", "refused store each", 1)

	e.reload(strings.Replace(twoZones, "zone each", "zone other", 1))
	e.granted(1, bob, "http://a.test/", with("X-User", "you"))
	for _, name := range e.seriesNames() {
		if strings.HasSuffix(name, " each") {
			t.Errorf("after a reload without zone each there is a series %q", name)
		}
	}
	e.sample("requests_total", "granted store other", 1)
	e.sample("requests_total", "granted store user", 3)

	// A failed or merely validated configuration takes no series away.
	_ = e.tryReload(twoZones + "\nhttp://b.test {\ndistributed_ratelimit 1 1h {\ntrusted_proxies guarded\n}\n}")
	if err := e.validate("http://a.test {\ndistributed_ratelimit 2 1h user {\nkey {header.X-User}\n}\n}"); err != nil {
		t.Errorf("validating: %v", err)
	}
	e.sample("requests_total", "granted store user", 3)

	e.reload("http://a.test {\n}")
	e.reload(strings.Replace(twoZones, "zone each", "zone another", 1))
	for labels, value := range e.series("requests_total") {
		if value != 0 {
			t.Errorf("series %s after a configuration without zones: got %v, want 0", labels, value)
		}
	}
	if got := e.series("store_duration_seconds"); len(got) > 0 {
		t.Errorf("series of the store after a configuration without: got %v, want none", got)
	}
}

// A client that hammers cannot fill the log: it gets a few lines a second for
// each zone, which tell how many were left out.
func TestRefusalLogIsLimited(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 0 1h one
}
http://b.test {
	distributed_ratelimit 0 1h two
}`)
	const refusals = 2000
	begin := time.Now()
	for range refusals {
		e.refused(alice, "http://a.test/")
	}
	spans := int(time.Since(begin)/time.Second) + 1
	lines := e.log.find("request refused")
	if len(lines) < 3 || len(lines) > 3*spans {
		t.Errorf("%d refusals within %d s: got %d lines, want 3 to %d", refusals, spans, len(lines), 3*spans)
	}
	e.refused(alice, "http://b.test/")
	if got := len(e.log.find("request refused")); got != len(lines)+1 {
		t.Errorf("refusal of another zone: got %d lines more, want 1", got-len(lines))
	}

	time.Sleep(1100 * time.Millisecond)
	e.refused(alice, "http://a.test/")
	lines = e.log.find("request refused")
	if len(lines) == 0 {
		t.Fatal("no refusal is logged")
	}
	told := 0.0
	written := 0
	for _, line := range lines {
		if line["zone"] == "one" {
			told += line["suppressed"].(float64)
			written++
		}
	}
	if int(told)+written != refusals+1 {
		t.Errorf("refusals written and suppressed: got %d and %v, want %d together", written, told, refusals+1)
	}
	for _, field := range []string{"zone", "client_ip", "source", "retry_after", "dry_run"} {
		if _, ok := lines[0][field]; !ok {
			t.Errorf("line of a refusal: got %v, want the field %s", lines[0], field)
		}
	}
}

// Refusals are information, not failures: they are silent above that level.
func TestRefusalsAreLoggedAsInformation(t *testing.T) {
	e := start(t, "{\n\tlog {\n\t\tlevel WARN\n\t}\n}\nhttp://a.test {\n\tdistributed_ratelimit 0 1h\n}")
	for range 5 {
		if got := e.get(alice, "http://a.test/").StatusCode; got != http.StatusTooManyRequests {
			t.Fatalf("got status %d, want 429", got)
		}
	}
	e.log.says(0, "request refused")
}
