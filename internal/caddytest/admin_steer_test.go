package caddytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// steeredAnswer is the answer to what changes something.
type steeredAnswer struct {
	Zone, Store, Key, Plan string
	DryRun                 bool `json:"dry_run"`
	Found, Kept            *bool
	Until                  time.Time
	Events                 *int64
	Elsewhere              string `json:"holds_elsewhere_within"`
}

// change makes a call that changes something.
func (e *edge) change(method, path string) (answer steeredAnswer) {
	e.t.Helper()
	status, text := e.admin(method, path, "")
	if err := json.Unmarshal([]byte(text), &answer); status != http.StatusOK || err != nil {
		e.t.Fatalf("%s %s: got status %d, %s", method, path, status, text)
	}
	return answer
}

const steeredSites = `:80 {
	distributed_ratelimit {
		log_key
		zone tokens {
			key {http.request.header.X-Token}
			events 3
			window 1h
		}
	}
	respond ok
}
:81 {
	distributed_ratelimit {
		log_key
		zone tokens {
			key {http.request.header.X-Token}
			events 2
			window 1h
			dry_run
		}
	}
	respond {http.distributed_ratelimit.outcome}
}
:82 {
	distributed_ratelimit {
		zone parallel {
			key {http.request.header.X-Token}
			concurrent 2
		}
	}
	respond ok
}
:83 {
	distributed_ratelimit {
		zone plans {
			window 1h
			tier {http.request.header.X-Plan} {
				free 1
				pro 5
				staff unlimited
				default free
			}
		}
	}
	respond ok
}`

// A key that a stranger chose can be banned, shown, unbanned and reset, by what the
// answers show of it.
func TestAdminSteersStrangeKeys(t *testing.T) {
	e := start(t, steeredSites)
	for _, token := range []string{
		"abc", "a b", "a%2Fb", "a\x00b", "ü😀", "\xff\xfe", "hex:6b03616263", `["a"]`, "client_ip=192.0.2.7", "\u202e\u200b", `"quoted" \ 'x'`,
		strings.Repeat("long ", 13), strings.Repeat("longer ", 100),
	} {
		token = strings.TrimSpace(token)
		from := func(r *http.Request) { r.Header["X-Token"] = []string{token} }
		const url80 = "http://example.com/"
		e.granted(3, "192.0.2.7", url80, from)
		e.refused("192.0.2.7", url80, from)

		var top busy
		e.adminGet("top?zone=tokens&n=500", &top)
		shown := ""
		for _, k := range top.Keys {
			if k.Granted == 3 && k.Refused == 1 { // the others were reset, and came once more
				shown = k.Key
			}
		}
		at := "zones/tokens/%s?key=" + strings.ReplaceAll(url.QueryEscape(shown), "%", "%%")
		e.look(fmt.Sprintf(at, "keys"), 3, 0)
		if got := e.change(http.MethodDelete, fmt.Sprintf(at, "keys")); got.Key != shown || got.Elsewhere != "" {
			t.Errorf("%q: resetting %q answers %+v", token, shown, got)
		}
		e.look(fmt.Sprintf(at, "keys"), 0, 3)
		e.granted(1, "192.0.2.7", url80, from)

		got := e.change(http.MethodPut, fmt.Sprintf(at, "bans")+"&for=30d")
		if rest := time.Until(got.Until); got.Key != shown || rest < 29*24*time.Hour || rest > 30*24*time.Hour+time.Second {
			t.Errorf("%q: banning %q answers %+v", token, shown, got)
		}
		e.refused("192.0.2.7", url80, from)
		if got := e.look(fmt.Sprintf(at, "keys"), 1, 2); got.BlockedBy != "hand" {
			t.Errorf("%q: a ban by hand is shown as %+v", token, got)
		}
		var bans []steeredAnswer
		if e.adminGet("bans", &bans); len(bans) != 1 || bans[0].Key != shown || bans[0].Zone != "tokens" {
			t.Errorf("%q: banned as %q, listed as %+v", token, shown, bans)
		}
		e.change(http.MethodDelete, fmt.Sprintf(at, "keys"))
		e.refused("192.0.2.7", url80, from) // a reset is no unban

		if got := e.change(http.MethodDelete, fmt.Sprintf(at, "bans")+"&keep=true"); got.Found == nil || !*got.Found || !*got.Kept {
			t.Errorf("%q: unbanning answers %+v", token, got)
		}
		e.granted(1, "192.0.2.7", url80, from)
		e.look(fmt.Sprintf(at, "keys"), 1, 2)
		if got := e.change(http.MethodDelete, fmt.Sprintf(at, "bans")); *got.Found || *got.Kept {
			t.Errorf("%q: unbanning again answers %+v", token, got)
		}
		e.look(fmt.Sprintf(at, "keys"), 0, 3)
		e.granted(1, "192.0.2.7", url80, from)
	}
}

// The zone in force and the dry run of its name are steered each by itself.
func TestAdminSteersDryRuns(t *testing.T) {
	e := start(t, steeredSites)
	token := with("X-Token", "abc")
	e.change(http.MethodPut, "zones/tokens/bans?key=abc&for=1h&dry_run=true")
	e.granted(1, "192.0.2.7", "http://example.com/", token)
	e.body("dry_run", "192.0.2.7", "http://example.com:81/", token)
	e.look("zones/tokens/keys?key=abc", 1, 2)
	e.look("zones/tokens/keys?key=abc&dry_run=true", 0, 2)
	e.change(http.MethodDelete, "zones/tokens/bans?key=abc&dry_run=true")
	e.body("granted", "192.0.2.7", "http://example.com:81/", token)
	e.change(http.MethodPut, "zones/tokens/override?events=0&for=1h&dry_run=true")
	e.body("dry_run", "192.0.2.7", "http://example.com:81/", token)
	e.granted(1, "192.0.2.7", "http://example.com/", token)
}

func TestAdminBansInFlight(t *testing.T) {
	e := start(t, steeredSites)
	token := with("X-Token", "abc")
	e.change(http.MethodPut, "zones/parallel/bans?key=abc&for=1h")
	e.refused("192.0.2.7", "http://example.com:82/", token)
	if got := e.look("zones/parallel/keys?key=abc", 0, 2); got.BlockedBy != "hand" || got.BlockedUntil == "" {
		t.Errorf("a ban by hand is shown as %+v", got)
	}
	var bans []steeredAnswer
	if e.adminGet("bans", &bans); len(bans) != 1 || bans[0].Key != "" {
		t.Errorf("without log_key, bans are listed as %+v", bans)
	}
	e.change(http.MethodDelete, "zones/parallel/bans?key=abc")
	e.granted(1, "192.0.2.7", "http://example.com:82/", token)
	e.adminFails(http.StatusBadRequest, http.MethodDelete, "zones/parallel/keys?key=abc", "", "in flight")
}

// A ban holds for a zone whose window is another one since, and is shown.
func TestAdminShowsBansOverReloads(t *testing.T) {
	e := start(t, steeredSites)
	token := with("X-Token", "abc")
	e.change(http.MethodPut, "zones/tokens/bans?key=abc&for=1h")
	e.reload(strings.ReplaceAll(steeredSites, "window 1h", "window 2h"))
	e.refused("192.0.2.7", "http://example.com/", token)
	if got := e.look("zones/tokens/keys?key=abc", 0, 3); got.BlockedBy != "hand" || got.BlockedUntil == "" || got.Reset < 3000 {
		t.Errorf("a ban by hand is shown as %+v", got)
	}
	e.change(http.MethodDelete, "zones/tokens/bans?key=abc")
	e.granted(1, "192.0.2.7", "http://example.com/", token)
	if got := e.look("zones/tokens/keys?key=abc", 1, 2); got.BlockedBy != "" || got.BlockedUntil != "" {
		t.Errorf("without a ban: %+v", got)
	}
}

func TestAdminOverrides(t *testing.T) {
	e := start(t, steeredSites)
	pro := with("X-Plan", "pro")
	const site = "http://example.com:83/"
	e.granted(1, "192.0.2.7", site)
	e.refused("192.0.2.7", site)
	if got := e.change(http.MethodPut, "zones/plans/override?events=3&for=1h&plan=free"); got.Plan != "free" || *got.Events != 3 || time.Until(got.Until) < 50*time.Minute {
		t.Errorf("the override answers %+v", got)
	}
	e.reload(steeredSites + "\n") // what is set by hand outlives the configuration
	if got := e.look("zones/plans/keys?client_ip=192.0.2.7&plan=free", 1, 2); *got.Limit != 3 {
		t.Errorf("the override is not shown: %+v", got)
	}
	e.granted(2, "192.0.2.7", site, with("X-Plan", "free"))
	e.granted(2, "192.0.2.7", site, pro)
	if got := e.change(http.MethodDelete, "zones/plans/override?plan=free"); !*got.Found {
		t.Errorf("ending the override answers %+v", got)
	}
	e.refused("192.0.2.7", site)
	if got := e.change(http.MethodDelete, "zones/plans/override?plan=free"); *got.Found {
		t.Errorf("ending the override again answers %+v", got)
	}
}

// An override of a plan that is not in the table any more, or of a zone that has got
// plans since, can be ended.
func TestAdminEndsOverridesOfFormerPlans(t *testing.T) {
	e := start(t, steeredSites)
	e.change(http.MethodPut, "zones/plans/override?events=9&for=30d&plan=pro")
	e.change(http.MethodPut, "zones/tokens/override?events=9&for=30d")
	tiered := strings.Replace(steeredSites, "events 3\n", "tier {http.request.header.X-Plan} {\n gold 1\n default 3\n }\n", 1)
	e.reload(strings.Replace(tiered, "pro 5\n", "", 1))
	var idle []shownOverride
	e.adminGet("overrides", &idle)
	for i, zone := range []string{"plans", "tokens"} {
		if len(idle) != 2 || idle[i].Zone != zone || idle[i].InForce || idle[i].Because != "it was set for a plan that the zone does not have" && i == 0 || !strings.Contains(idle[i].Because, "plan") {
			t.Errorf("overrides %+v, want that of %s not in force because of its plan", idle, zone)
		}
	}
	for _, path := range []string{"zones/plans/override?plan=pro", "zones/tokens/override"} {
		if got := e.change(http.MethodDelete, path); !*got.Found {
			t.Errorf("DELETE %s answers %+v", path, got)
		}
		e.adminFails(http.StatusBadRequest, http.MethodDelete, path, "", "default")
	}
	var zones []struct{ Overrides []struct{ Plan string } }
	e.adminGet("zones", &zones)
	for _, z := range zones {
		if len(z.Overrides) > 0 {
			t.Errorf("overrides %+v are left", z.Overrides)
		}
	}
}

// A client does not leave the limit that an operator has set for its plan by naming no
// plan, where the default is that plan's limit. The default can be overridden by itself.
func TestAdminOverridesThePlanOfTheDefault(t *testing.T) {
	e := start(t, `http://plans.test {
	distributed_ratelimit {
		zone plans {
			window 1h
			tier {http.request.header.X-Plan} {
				free 4
				pro 5
				default pro
			}
		}
	}
	respond "{http.distributed_ratelimit.limit}"
}`)
	limits := func(pro, other string, proByHand, otherByHand bool) {
		t.Helper()
		for plan, want := range map[string]string{"free": "4", "pro": pro, "": other, "gold": other} {
			e.body(want, "192.0.2.7", "http://plans.test/", with("X-Plan", plan))
			e.change(http.MethodDelete, "zones/plans/keys?key=192.0.2.7")
			byHand := plan == "pro" && proByHand || plan != "pro" && plan != "free" && otherByHand
			z := e.explains(asked{URL: "http://plans.test/", RemoteAddr: "192.0.2.7", Server: e.names["80"], Headers: map[string]any{"X-Plan": plan}}).handler(t, 0, 1).zone(t, "plans")
			if number(z.Limit) != want || z.Override != byHand {
				t.Errorf("plan %q is explained with a limit of %s, by hand %t", plan, number(z.Limit), z.Override)
			}
			if plan == "" || plan == "gold" {
				plan = "default"
			}
			var got struct {
				Limit    *int64
				Override bool
			}
			if e.adminGet("zones/plans/keys?key=192.0.2.7&plan="+plan, &got); number(got.Limit) != want || got.Override != byHand {
				t.Errorf("plan %q is shown with a limit of %s, by hand %t", plan, number(got.Limit), got.Override)
			}
		}
	}
	limits("5", "5", false, false)
	e.change(http.MethodPut, "zones/plans/override?events=2&for=1h&plan=pro")
	limits("2", "2", true, true)
	e.change(http.MethodPut, "zones/plans/override?events=4&for=1h&plan=default")
	limits("2", "4", true, true)
	e.change(http.MethodDelete, "zones/plans/override?plan=pro")
	limits("5", "4", false, true)
}

// shownOverride is an override in an answer.
type shownOverride struct {
	Zone, Store, Plan, Because string
	Events                     int64
	Window                     float64
	InForce                    bool `json:"in_force"`
}

// override expects the only override there is to hold, or not, with why.
func (e *edge) override(zone string, events int64, because string) {
	e.t.Helper()
	var list []shownOverride
	e.adminGet("overrides", &list)
	if len(list) != 1 || list[0].Zone != zone || list[0].Events != events || list[0].InForce != (because == "") || list[0].Because != because {
		e.t.Errorf("overrides are %+v, want one of zone %s, of %d, not in force because %q", list, zone, events, because)
	}
	var zones []struct{ Overrides []shownOverride }
	e.adminGet("zones", &zones)
	for _, z := range zones {
		for _, o := range z.Overrides {
			if o.InForce != (because == "") || o.Because != because {
				e.t.Errorf("the zone's override is %+v, want it not in force because %q", o, because)
			}
		}
	}
	if counted := e.series("overrides")[list[0].Store+" "+zone]; because == "" && counted != 1 || because != "" && counted != 0 {
		e.t.Errorf("the metric counts %v, not in force because %q", counted, because)
	}
}

// A limit of 500 an hour is none of 500 a second, and none of requests in flight: an override
// holds only for the kind of limit and the window that it was set for.
func TestAdminOverridesHoldForOneKindOfLimit(t *testing.T) {
	site := steeredSite("redis redis://" + redistest.Start(t).Addr)
	const written = "events 3\n\t\t\twindow 1h"
	second := strings.Replace(site, written, "events 3\n\t\t\twindow 1s", 1)
	flight := strings.Replace(site, written, "concurrent 3", 1)
	e := start(t, site)
	limit := func(want string) {
		t.Helper()
		var got lookedAt
		e.adminGet("zones/z/keys?key=192.0.2.7", &got)
		if a := e.get("192.0.2.7", "http://a.test/"); !strings.HasPrefix(a.body, "granted "+want+" ") || number(got.Limit) != want || got.Source != "store" {
			t.Errorf("a request: %s; the key is shown as %+v, want a limit of %s", a.body, got, want)
		}
	}
	e.change(http.MethodPut, "zones/z/override?events=1000000000000&for=1h")
	limit("1000000000000")
	e.override("z", 1000000000000, "")
	e.reload(second)
	limit("3")
	e.override("z", 1000000000000, "it was set for window 1h, and the zone now has window 1s")
	e.reload(flight)
	limit("3")
	e.override("z", 1000000000000, "it was set for window 1h, and the zone now has concurrent")
	e.change(http.MethodPut, "zones/z/override?events=7&for=1h")
	limit("7")
	e.override("z", 7, "")
	e.reload(site)
	limit("3")
	e.override("z", 7, "it was set for concurrent, and the zone now has window 1h")
	if got := e.change(http.MethodDelete, "zones/z/override"); !*got.Found {
		t.Errorf("ending an override that does not hold answers %+v", got)
	}
}

// What was set by hand for zones that the configuration does not have any more is listed as
// such, and ends when an operator says so.
func TestAdminEndsWhatIsLeftOfZones(t *testing.T) {
	site := steeredSite("redis redis://"+redistest.Start(t).Addr) + `
http://b.test {
	distributed_ratelimit {
		zone secret {
			key {header.X-Token}-{header.X-Other}
			events 3
			window 1h
		}
	}
	respond "ok"
}
http://c.test {
	distributed_ratelimit {
		log_key
		zone dry {
			events 3
			window 1h
			dry_run
		}
	}
	respond "ok"
}`
	e := start(t, site)
	token := func(r *http.Request) { r.Header.Set("X-Token", "hush"); r.Header.Set("X-Other", "ho") }
	e.change(http.MethodPut, "zones/z/bans?for=1h&key="+alice)
	e.change(http.MethodPut, "zones/secret/bans?for=2h&key=hush-ho")
	e.change(http.MethodPut, "zones/secret/bans?for=3h&key=other-ho")
	e.change(http.MethodPut, "zones/dry/bans?for=4h&key="+alice)
	e.change(http.MethodPut, "zones/secret/override?for=1h&events=9")

	next := strings.NewReplacer("zone z", "zone y", "zone secret", "zone other", "dry_run", "").Replace(site)
	e.reload(next)
	type listed struct {
		Zone, Key, ID string
		NotConfigured bool `json:"not_configured"`
	}
	var bans []listed
	e.adminGet("bans", &bans)
	if len(bans) != 4 || bans[0].Key != alice || bans[1].Key != "" || bans[1].ID == "" || bans[1].ID == bans[2].ID {
		t.Fatalf("bans %+v, want four, of which one names its key", bans)
	}
	for _, b := range bans {
		if !b.NotConfigured {
			t.Errorf("ban %+v is not told to be of no zone", b)
		}
	}
	e.override("secret", 9, "the configuration has no such zone")
	e.adminFails(http.StatusNotFound, http.MethodDelete, "zones/z/bans?key="+bob, "", "GET bans")
	e.adminFails(http.StatusNotFound, http.MethodDelete, "zones/never/bans?key="+alice, "", "no zone is called")
	e.adminFails(http.StatusNotFound, http.MethodDelete, "zones/y/bans?id=nobody", "", "GET bans")
	e.adminFails(http.StatusNotFound, http.MethodDelete, "zones/y/bans?id="+bans[0].ID, "", "GET bans")
	e.adminFails(http.StatusBadRequest, http.MethodDelete, "zones/z/bans?id="+bans[0].ID+"&key="+alice, "", "either key")
	e.adminFails(http.StatusNotFound, http.MethodDelete, "zones/secret/override?plan=pro", "", "no such override")
	e.adminFails(http.StatusNotFound, http.MethodDelete, "zones/never/override", "", "no zone is called")
	e.adminFails(http.StatusNotFound, http.MethodPut, "zones/secret/override?events=5&for=1h", "", "no zone is called")

	for _, path := range []string{"zones/z/bans?client_ip=" + alice, "zones/secret/bans?id=" + bans[1].ID, "zones/dry/bans?dry_run=true&key=" + alice, "zones/secret/override"} {
		if got := e.change(http.MethodDelete, path); !*got.Found || got.Elsewhere != "1.25s" {
			t.Errorf("DELETE %s answers %+v", path, got)
		}
	}
	e.adminFails(http.StatusNotFound, http.MethodDelete, "zones/secret/override", "", "no zone is called")

	e.reload(site)
	soon(t, "the bans have ended", func() bool { return e.get(alice, "http://a.test/").StatusCode == http.StatusOK })
	soon(t, "the other ban has ended", func() bool { return e.get(bob, "http://b.test/", token).StatusCode == http.StatusOK })
	var left []listed
	e.adminGet("bans", &left)
	if len(left) != 1 || left[0].NotConfigured || left[0].ID != bans[2].ID {
		t.Fatalf("bans %+v, want the one that nobody has ended", left)
	}
	e.change(http.MethodDelete, "zones/secret/bans?id="+left[0].ID)
	if e.adminGet("bans", &left); len(left) != 0 {
		t.Errorf("bans %+v are left", left)
	}
}

// A note may have any characters that are seen.
func TestAdminTakesNotes(t *testing.T) {
	e := start(t, steeredSites)
	note := strings.Repeat("<&", 95) + `"\"\"\"\"`
	e.change(http.MethodPut, "zones/tokens/override?events=9&for=1h&note="+url.QueryEscape(note))
	var zones []struct{ Overrides []struct{ Note string } }
	if e.adminGet("zones/tokens", &zones); len(zones[0].Overrides) != 1 || zones[0].Overrides[0].Note != note {
		t.Errorf("the note is %+v", zones)
	}
	e.adminFails(http.StatusBadRequest, http.MethodPut, "zones/tokens/override?events=9&for=1h&note="+strings.Repeat("%01", 200), "", "control characters")
}

func TestAdminSteeringErrors(t *testing.T) {
	e := start(t, steeredSites+`
	:84 {
		distributed_ratelimit {
			store redis redis://127.0.0.1:1
			zone away {
				events 2
				window 1h
			}
			zone plans {
				events 2
				window 1h
			}
		}
	}`)
	for _, c := range []struct {
		method, path string
		status       int
		says         string
	}{
		{"PUT", "zones/tokens/bans?key=abc", 400, "for=10m"},
		{"PUT", "zones/tokens/bans?key=abc&for=0s", 400, "between 1s and 30d"},
		{"PUT", "zones/tokens/bans?key=abc&for=-1h", 400, "between 1s and 30d"},
		{"PUT", "zones/tokens/bans?key=abc&for=999ms", 400, "between 1s and 30d"},
		{"PUT", "zones/tokens/bans?key=abc&for=30d1s", 400, "between 1s and 30d"},
		{"PUT", "zones/tokens/bans?key=abc&for=soon", 400, "90s, 10m"},
		{"PUT", "zones/tokens/bans?key=abc&for=99999999999d", 400, "for="},
		{"PUT", "zones/tokens/bans?for=10m", 400, "either key"},
		{"PUT", "zones/nobody/bans?key=abc&for=10m", 404, "away, parallel, plans, tokens"},
		{"PUT", "zones/plans/bans?client_ip=192.0.2.7&for=10m", 400, "the parameter store"},
		{"PUT", "zones/plans/bans?client_ip=192.0.2.7&for=10m&store=disk", 404, "disk"},
		{"PUT", "zones/away/bans?client_ip=192.0.2.7&for=10m", 503, ""},
		{"DELETE", "zones/away/bans?client_ip=192.0.2.7", 503, ""},
		{"DELETE", "zones/away/keys?client_ip=192.0.2.7", 503, ""},
		{"PUT", "zones/away/override?events=7&for=10m", 503, ""},
		{"DELETE", "zones/away/override", 503, ""},
		{"POST", "zones/tokens/bans?key=abc&for=10m", 405, "PUT or DELETE"},
		{"GET", "zones/tokens/bans", 405, "PUT or DELETE"},
		{"PUT", "bans", 405, "use GET"},
		{"DELETE", "zones/tokens/bans?key=abc&keep=perhaps", 400, "true or false"},
		{"PUT", "zones/tokens/override?for=10m", 400, "events=1000"},
		{"PUT", "zones/tokens/override?events=many&for=10m", 400, "no whole number"},
		{"PUT", "zones/tokens/override?events=-1&for=10m", 400, "between 0 and"},
		{"PUT", "zones/tokens/override?events=1000000000001&for=10m", 400, "between 0 and"},
		{"PUT", "zones/tokens/override?events=99999999999999999999&for=10m", 400, "no whole number"},
		{"PUT", "zones/tokens/override?events=5", 400, "for=10m"},
		{"PUT", "zones/tokens/override?events=5&for=10m&plan=pro", 400, "no plans"},
		{"PUT", "zones/plans/override?events=5&for=10m&store=memory", 400, "say which one"},
		{"PUT", "zones/plans/override?events=5&for=10m&store=memory&plan=gold", 400, "free, pro, staff, default"},
		{"PUT", "zones/tokens/override?events=5&for=10m&note=" + strings.Repeat("x", 201), 400, "200"},
		{"PATCH", "zones/tokens/override", 405, "PUT or DELETE"},
		{"GET", "zones/tokens/override/more", 404, "PUT zones/<zone>/override"},
	} {
		e.adminFails(c.status, c.method, c.path, "", c.says)
	}
	// While the store is away, a key is looked at as this instance counts it.
	e.granted(1, "192.0.2.7", "http://example.com:84/")
	var got lookedAt
	if e.adminGet("zones/away/keys?client_ip=192.0.2.7", &got); got.Source != "local" || got.Used != nil || got.Remaining == nil || *got.Remaining != 1 {
		t.Errorf("with the store away: got %+v", got)
	}
}

// A secret key is neither on the board, nor in a list, nor in an error.
func TestAdminKeepsKeysSecret(t *testing.T) {
	redis := redistest.Start(t)
	e := start(t, `{
	distributed_ratelimit {
		store redis redis://`+redis.Addr+` {
			dial_timeout 20s
		}
		budget 20s
	}
}
:80 {
	distributed_ratelimit {
		zone tokens {
			key {http.request.header.X-Token}
			events 3
			window 1h
		}
	}
	respond ok
}`)
	token := with("X-Token", "hush-hush")
	e.granted(1, "192.0.2.7", "/", token)
	if got := e.change(http.MethodPut, "zones/tokens/bans?key=hush-hush&for=10m"); got.Elsewhere != "1.25s" {
		t.Errorf("the ban answers %+v", got)
	}
	e.refused("192.0.2.7", "/", token)
	for _, path := range []string{"bans", "zones", "stores", "zones/tokens"} {
		if _, answer := e.admin(http.MethodGet, path, ""); strings.Contains(answer, "hush") {
			t.Errorf("GET %s: the key is in the answer: %s", path, answer)
		}
	}
	redis.Kill()
	for _, call := range [][2]string{{"PUT", "zones/tokens/bans?for=10m&key=hush-hush"}, {"DELETE", "zones/tokens/keys?key=hush-hush"}, {"GET", "zones/tokens/keys?key=hush&key=hush"}, {"GET", "zones/tokens/keys?client_ip=hush"}} {
		status, answer := e.admin(call[0], call[1], "")
		if status < 400 || strings.Contains(answer, "hush") {
			t.Errorf("%s %s: got status %d, %s", call[0], call[1], status, answer)
		}
	}
}
