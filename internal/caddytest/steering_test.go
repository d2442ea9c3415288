package caddytest

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// steer makes a change with the admin API.
func (e *edge) steer(method, path string) {
	e.t.Helper()
	if status, answer := e.admin(method, path, ""); status != http.StatusOK {
		e.t.Fatalf("%s %s: got status %d, %s", method, path, status, answer)
	}
}

// logged waits for the last of so many log lines: what ends is over a moment before it is told.
func (e *edge) logged(times int, message string) map[string]any {
	e.t.Helper()
	soon(e.t, message, func() bool { return len(e.log.find(message)) >= times })
	return e.log.says(times, message)[times-1]
}

// blocked expects a refusal because of a ban that lasts for some seconds yet.
func (e *edge) blocked(from, url string, least, most int, change ...func(*http.Request)) reply {
	e.t.Helper()
	a := e.refused(from, url, change...)
	if seconds, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || seconds < least || seconds > most {
		e.t.Errorf("Retry-After %q, want %d to %d", a.Header.Get("Retry-After"), least, most)
	}
	if !strings.Contains(a.body, "more are not granted for a while") {
		e.t.Errorf("body %s, want it to be about a ban", a.body)
	}
	return a
}

func steeredSite(store string) string {
	return `{
	distributed_ratelimit {
		store ` + store + `
		budget 5s
	}
}
http://a.test {
	distributed_ratelimit {
		ratelimit_headers always
		log_key
		zone z {
			events 3
			window 1h
		}
	}
	respond "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.limit} {http.distributed_ratelimit.remaining}"
}`
}

// A key that is banned by hand is refused without asking the store, and the ban ends when
// the operator says.
func TestBanByHand(t *testing.T) {
	for _, store := range []string{"memory", "redis"} {
		t.Run(store, func(t *testing.T) {
			site := steeredSite(store)
			if store == "redis" {
				site = steeredSite("redis redis://" + redistest.Start(t).Addr)
			}
			e := start(t, site)
			e.granted(1, alice, "http://a.test/")
			e.steer("PUT", "zones/z/bans?key="+alice+"&for=10m")
			a := e.blocked(alice, "http://a.test/", 598, 600)
			a.header(t, "RateLimit-Policy", `"z";q=3;w=3600`)
			if got := a.Header.Get("RateLimit"); !strings.HasPrefix(got, `"z";r=0;t=`) {
				t.Errorf("RateLimit %s, want nothing left", got)
			}
			e.granted(1, bob, "http://a.test/")
			line := e.log.says(1, "request refused")[0]
			if line["reason"] != "blocked" || line["source"] != "cache" || line["limit"] != 3.0 {
				t.Errorf("log line %v", line)
			}
			e.sample("requests_total", "refused cache z", 1)
			e.sample("refusals_total", "refused blocked z", 1)

			// Another length in its place, for which nothing is charged.
			e.steer("PUT", "zones/z/bans?key="+alice+"&for=5s")
			e.blocked(alice, "http://a.test/", 1, 5)
			e.steer("DELETE", "zones/z/bans?keep=true&key="+alice)
			e.body("granted 3 1", alice, "http://a.test/")
			e.steer("PUT", "zones/z/bans?key="+alice+"&for=1h")
			e.blocked(alice, "http://a.test/", 3590, 3600)
			e.steer("DELETE", "zones/z/bans?key="+alice)
			e.body("granted 3 2", alice, "http://a.test/")
			e.steer("DELETE", "zones/z/keys?key="+alice)
			e.body("granted 3 2", alice, "http://a.test/")

			// By itself.
			e.steer("PUT", "zones/z/bans?key="+alice+"&for=1s")
			soon(t, "it ends", func() bool { return e.get(alice, "http://a.test/").StatusCode == http.StatusOK })
			if last := e.logged(7, "bans by hand have changed"); last["ended"] != 1.0 || last["in_force"] != 0.0 || last["set"] != 0.0 {
				t.Errorf("log line %v, want one ended", last)
			}
		})
	}
}

// A ban holds while the store is away, and so does an override.
func TestSteeringHoldsWhileTheStoreIsAway(t *testing.T) {
	server := redistest.Start(t)
	e := start(t, steeredSite("redis redis://"+server.Addr))
	e.granted(1, alice, "http://a.test/")
	e.steer("PUT", "zones/z/bans?key="+alice+"&for=1h")
	e.steer("PUT", "zones/z/override?events=7&for=1h")
	server.Kill()
	soon(t, "the store is away", func() bool { return len(e.log.find("the store gives no answer")) > 0 })
	e.blocked(alice, "http://a.test/", 3000, 3600)
	e.body("granted 7 6", bob, "http://a.test/")
	for _, change := range []string{"PUT zones/z/bans?key=" + bob + "&for=1h", "DELETE zones/z/bans?key=" + alice, "PUT zones/z/override?events=9&for=1h", "DELETE zones/z/keys?key=" + bob} {
		method, path, _ := strings.Cut(change, " ")
		e.adminFails(http.StatusServiceUnavailable, method, path, "", "away")
	}
	e.blocked(alice, "http://a.test/", 3000, 3600)
	// Nor does a new connection, which has not seen the board yet, know better.
	e.reload(steeredSite("redis redis://" + server.Addr + " {\n pool_size 3\n }"))
	e.blocked(alice, "http://a.test/", 3000, 3600)
	e.body("granted 7 5", bob, "http://a.test/")

	// A server without its data has no bans.
	server.Restart(t)
	soon(t, "it ends", func() bool { return e.get(alice, "http://a.test/").StatusCode == http.StatusOK })
	if line := e.logged(1, "an override has ended"); line["early"] != true {
		t.Errorf("log line %v, want it early", line)
	}
}

// What is in force stays so over reloads, also those that fail, and with other settings of
// the store.
func TestSteeringOverReloads(t *testing.T) {
	server := redistest.Start(t)
	store := "redis redis://" + server.Addr
	e := start(t, steeredSite(store))
	e.steer("PUT", "zones/z/bans?key="+alice+"&for=1h")
	e.steer("PUT", "zones/z/override?events=7&for=1h&note=Black+Friday")
	check := func() {
		t.Helper()
		e.blocked(alice, "http://a.test/", 3000, 3600)
		if a := e.get(bob, "http://a.test/"); !strings.HasPrefix(a.body, "granted 7 ") {
			t.Errorf("after a reload: %s, want a limit of 7", a.body)
		}
	}
	check()
	e.reload(steeredSite(store))
	check()
	e.reload(steeredSite(store + " {\n pool_size 3\n }"))
	check()
	taken := freeAddress(t)
	defer listenOn(t, taken).Close()
	e.ports["83"] = taken
	for range 3 {
		if e.tryReload(steeredSite(store)+"\nhttp://:83 {\n respond ok\n}") == nil {
			t.Fatal("a configuration started on a port that is taken")
		}
		check()
	}
	if got := len(e.log.find("a limit is overridden by hand")); got != 1 {
		t.Errorf("%d log lines about the override, want 1", got)
	}
	// And whoever runs is told of what comes then.
	e.steer("DELETE", "zones/z/override")
	if a := e.get(bob, "http://a.test/"); !strings.Contains(a.body, " 3 ") && a.StatusCode != http.StatusTooManyRequests {
		t.Errorf("after the end: %s, want a limit of 3", a.body)
	}
	// A zone that the next configuration does not have stays on the board, and is in force when it is back.
	e.steer("PUT", "zones/z/override?events=5&for=1h")
	e.reload(strings.Replace(steeredSite(store), "zone z", "zone other", 1))
	var bans []struct{ Zone, Key string }
	if e.adminGet("bans", &bans); len(bans) != 1 || bans[0].Zone != "z" || bans[0].Key != alice {
		t.Errorf("bans %+v, want the one of z", bans)
	}
	e.granted(1, alice, "http://a.test/")
	e.reload(steeredSite(store))
	e.blocked(alice, "http://a.test/", 3000, 3600)
}

// An override is shown wherever a limit is shown, and ends by itself.
func TestOverride(t *testing.T) {
	e := start(t, steeredSite("memory"))
	e.body("granted 3 2", alice, "http://a.test/")
	e.steer("PUT", "zones/z/override?events=10&for=1h&note=for+a+test")
	a := e.get(alice, "http://a.test/")
	if a.body != "granted 10 8" {
		t.Errorf("body %s", a.body)
	}
	a.header(t, "RateLimit-Policy", `"z";q=10;w=3600`)
	e.steer("PUT", "zones/z/override?events=2&for=1h")
	a = e.refused(alice, "http://a.test/")
	a.header(t, "RateLimit-Policy", `"z";q=2;w=3600`)
	if line := e.log.says(1, "request refused")[0]; line["limit"] != 2.0 {
		t.Errorf("log line %v", line)
	}
	e.steer("PUT", "zones/z/override?events=0&for=1h")
	a = e.refused(bob, "http://a.test/")
	a.header(t, "Retry-After", "")
	if line := e.log.says(2, "request refused")[1]; line["reason"] != "zero" {
		t.Errorf("log line %v", line)
	}
	e.steer("PUT", "zones/z/override?events=4&for=1s")
	e.get(bob, "http://a.test/").header(t, "RateLimit-Policy", `"z";q=4;w=3600`)
	soon(t, "it ends", func() bool { return e.get(bob, "http://a.test/").Header.Get("RateLimit-Policy") == `"z";q=3;w=3600` })
	begun := e.log.says(4, "a limit is overridden by hand")[0]
	if begun["zone"] != "z" || begun["events"] != 10.0 || begun["note"] != "for a test" || begun["until"] == nil {
		t.Errorf("log line %v", begun)
	}
	if ended := e.logged(1, "an override has ended"); ended["zone"] != "z" || ended["early"] != false {
		t.Errorf("log line %v", ended)
	}
}

// A zone with plans is overridden by plan, one that refuses everything can be opened, one
// of requests in flight has another limit, and a dry run has overrides of its own.
func TestOverrideOfEachKind(t *testing.T) {
	e := start(t, `
http://plans.test {
	distributed_ratelimit {
		zone plans {
			window 1h
			tier {header.Plan} {
				free 1
				pro 5
				staff unlimited
				default free
			}
		}
	}
	respond "{http.distributed_ratelimit.limit}"
}
http://closed.test {
	distributed_ratelimit {
		zone closed {
			key {form.name}
			events 0
			window 1h
		}
	}
	respond "{http.distributed_ratelimit.limit}"
}
http://flight.test {
	distributed_ratelimit {
		zone flight {
			concurrent 3
		}
	}
	respond "{http.distributed_ratelimit.limit}"
}
http://dry.test {
	distributed_ratelimit {
		zone dry {
			events 1
			window 1h
			dry_run
		}
	}
	respond "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.limit}"
}`)
	plan := func(name string) func(*http.Request) { return with("Plan", name) }
	e.steer("PUT", "zones/plans/override?events=9&for=1h&plan=pro")
	e.steer("PUT", "zones/plans/override?events=4&for=1h&plan=staff")
	e.body("9", alice, "http://plans.test/", plan("pro"))
	e.body("4", alice, "http://plans.test/", plan("staff"))
	e.body("1", bob, "http://plans.test/", plan("free"))
	e.steer("PUT", "zones/plans/override?events=8&for=1h&plan=default")
	e.body("8", bob, "http://plans.test/", plan("unheard of"))
	e.refused(bob, "http://plans.test/", plan("free"))
	e.steer("DELETE", "zones/plans/override?plan=pro")
	e.body("5", alice, "http://plans.test/", plan("pro"))
	for _, wrong := range []string{"&plan=gold", "", "&plan="} {
		e.adminFails(http.StatusBadRequest, "PUT", "zones/plans/override?events=9&for=1h"+wrong, "", "free, pro, staff, default")
	}
	e.adminFails(http.StatusBadRequest, "DELETE", "zones/plans/override", "", "free, pro, staff, default")
	e.adminFails(http.StatusBadRequest, "PUT", "zones/closed/override?events=9&for=1h&plan=pro", "", "no plans")

	form := func(r *http.Request) {
		const text = "name=x"
		r.Method = http.MethodPost
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
	}
	e.refused(alice, "http://closed.test/") // whatever the body is, which is not read
	e.refused(alice, "http://closed.test/", form)
	e.steer("PUT", "zones/closed/override?events=2&for=1h")
	e.status(http.StatusForbidden, alice, "http://closed.test/")
	e.body("2", alice, "http://closed.test/", form)
	e.body("2", bob, "http://closed.test/", form)
	e.refused(alice, "http://closed.test/", form)
	e.steer("DELETE", "zones/closed/override")
	e.refused("192.0.2.99", "http://closed.test/", form)

	e.body("3", alice, "http://flight.test/")
	e.steer("PUT", "zones/flight/override?events=7&for=1h")
	e.body("7", alice, "http://flight.test/")
	e.steer("PUT", "zones/flight/override?events=0&for=1h")
	e.refused(alice, "http://flight.test/")
	e.adminFails(http.StatusBadRequest, "PUT", "zones/flight/override?events=1000000001&for=1h", "", "1000000000")
	e.steer("DELETE", "zones/flight/override")
	e.steer("PUT", "zones/flight/bans?client_ip="+alice+"&for=1h")
	e.blocked(alice, "http://flight.test/", 3000, 3600)
	e.steer("DELETE", "zones/flight/bans?client_ip="+alice)
	e.granted(1, alice, "http://flight.test/")
	e.adminFails(http.StatusBadRequest, "DELETE", "zones/flight/keys?client_ip="+alice, "", "in flight")

	e.steer("PUT", "zones/dry/override?events=6&for=1h")
	e.body("granted 6", alice, "http://dry.test/")
	e.steer("PUT", "zones/dry/bans?client_ip="+alice+"&for=1h")
	e.body("dry_run 6", alice, "http://dry.test/")
	e.sample("refusals_total", "dry_run blocked dry", 1)

	for path, says := range map[string]string{
		"override?events=-1&for=1h":                                 "between 0",
		"override?events=1000000000001&for=1h":                      "between 0",
		"override?events=1&for=500ms":                               "1s",
		"override?events=1&for=721h":                                "30d",
		"override?events=1&for=1h&note=" + strings.Repeat("n", 201): "200",
		"bans?for=999h&client_ip=" + alice:                          "30d",
	} {
		e.adminFails(http.StatusBadRequest, "PUT", "zones/dry/"+path, "", says)
	}
}

// Strangers choose keys: any bytes can be banned, and nothing of them is on the board.
func TestBanOfAnyKey(t *testing.T) {
	server := redistest.Start(t)
	e := start(t, `{
	distributed_ratelimit {
		store redis redis://`+server.Addr+`
		budget 5s
	}
}
http://a.test {
	distributed_ratelimit {
		zone z {
			key {header.Token}
			events 3
			window 1h
		}
	}
	respond "hello"
}`)
	for i, token := range []string{"a secret", "\x01\xff", strings.Repeat("x", 300), "{}*?", "a\tb"} {
		set := func(r *http.Request) { r.Header["Token"] = []string{token} }
		e.granted(1, alice, "http://a.test/", set)
		e.steer("PUT", "zones/z/bans?for=1h&key="+url.QueryEscape(token))
		e.blocked(alice, "http://a.test/", 3000, 3600, set)
		board := fmt.Sprint(server.Do(t, "GET", "drl:board:1"))
		if strings.Contains(board, token) || strings.Contains(board, "secret") {
			t.Errorf("key %d is on the board: %q", i, board)
		}
	}
	e.steer("DELETE", "zones/z/bans?key="+url.QueryEscape("\x01\xff"))
	e.granted(1, alice, "http://a.test/", func(r *http.Request) { r.Header["Token"] = []string{"\x01\xff"} })
	if ttl := server.Do(t, "PTTL", "drl:board:1").(int64); ttl <= 0 || ttl > time.Hour.Milliseconds()+2000 {
		t.Errorf("the board has %d ms to live", ttl)
	}
}

// The board is bounded, and says what to do.
func TestBoardIsBounded(t *testing.T) {
	e := start(t, steeredSite("memory"))
	for i := range 1000 {
		e.steer("PUT", fmt.Sprintf("zones/z/bans?for=1h&key=10.0.%d.%d", i/256, i%256))
	}
	e.adminFails(http.StatusConflict, "PUT", "zones/z/bans?for=1h&key=10.1.0.0", "", "1000", "end some")
	e.steer("PUT", "zones/z/bans?for=2h&key=10.0.0.0")
	e.steer("DELETE", "zones/z/bans?key=10.0.0.1")
	e.steer("PUT", "zones/z/bans?for=1h&key=10.1.0.0")
	e.blocked("10.1.0.0", "http://a.test/", 3000, 3600)
	e.granted(1, "10.0.0.1", "http://a.test/")
	var bans []struct{ Key string }
	if e.adminGet("bans", &bans); len(bans) != 1000 {
		t.Errorf("%d bans are listed", len(bans))
	}
	e.sample("bans_by_hand", "memory z", 1000)
	e.steer("PUT", "zones/z/override?events=8&for=1h") // which has room of its own
	e.body("granted 8 7", bob, "http://a.test/")
}
