package caddytest

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// While the store is away an explanation tells so, with this instance's own numbers and
// what each policy makes of them. It is no decision: nothing is counted by it.
func TestExplainWhileTheStoreIsAway(t *testing.T) {
	e, r := outage(t, `
:80 {
	distributed_ratelimit {
		zone local {
			events 4
			window 1h
		}
		zone open {
			events 4
			window 1h
			on_store_error allow
		}
	}
	respond ok
}
:81 {
	distributed_ratelimit {
		zone closed {
			events 4
			window 1h
			on_store_error deny
		}
	}
	respond ok
}`)
	r.breaks(nil)
	e.granted(1, alice, "http://localhost/")
	r.breaks(errAway)
	e.granted(1, alice, "http://localhost/")
	before := e.store(0).Unreported.Units
	for range 3 {
		x := e.explains(asked{URL: "http://localhost/", RemoteAddr: alice, Server: e.names["80"]})
		h := x.handler(t, 0, 1)
		z := h.zone(t, "local")
		z.is(t, alice, 4, 2, true, "")
		if z.Source != "local" || z.Share == nil || *z.Share != 4 || h.StoreError == "" {
			t.Errorf("local: %+v, store error %q", z, h.StoreError)
		}
		if z := h.zone(t, "open"); !*z.Granted || z.Source != "policy" || z.Used != nil {
			t.Errorf("allow: %+v", z)
		}
		x = e.explains(asked{URL: "http://localhost/", RemoteAddr: alice, Server: e.names["81"]})
		h = x.handler(t, 0, 1)
		if z := h.zone(t, "closed"); *z.Granted || z.Reason != "store_away" || h.Status != http.StatusServiceUnavailable || x.Granted {
			t.Errorf("deny: %+v of %+v", z, h)
		}
	}
	if after := e.store(0).Unreported.Units; after != before {
		t.Errorf("%d units are unreported, %d before the explanations", after, before)
	}
}

// No answer and no error holds a secret of the configuration, whatever is asked.
func TestAdminAnswersHoldNoSecret(t *testing.T) {
	t.Setenv("SECRET", "hunter2")
	e := start(t, `{
		distributed_ratelimit {
			store redis redis://user:hunter2@127.0.0.1:1 {
				key_secret hunter2
				sentinel
				master_name m
				sentinel_password hunter2
			}
			budget 50ms
		}
	}
	:80 {
		basic_auth /private/* {
			alice $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
		}
		distributed_ratelimit {
			exempt header Authorization "Bearer hunter2"
			zone a {
				match header X-Key hunter2
				key {http.request.header.X-User}
				events 3
				window 1m
			}
			zone b {
				exempt query key=hunter2
				events 3
				window 1m
			}
		}
		reverse_proxy 127.0.0.1:1 {
			header_up Authorization "Bearer {env.SECRET}"
		}
	}`)
	for _, path := range []string{"zones", "zones/a", "stores"} {
		if _, answer := e.admin(http.MethodGet, path, ""); strings.Contains(answer, "hunter2") {
			t.Errorf("%s: a secret is in %s", path, answer)
		}
	}
	for _, path := range []string{"/", "/private/x", "/?key=x"} {
		body, _ := json.Marshal(asked{URL: "http://localhost" + path, RemoteAddr: alice, Server: e.names["80"],
			Headers: map[string]any{"X-User": "{env.SECRET}"}, Vars: map[string]any{"http.auth.user.id": "{env.SECRET}"}})
		if _, answer := e.admin(http.MethodPost, "explain", string(body)); strings.Contains(answer, "hunter2") {
			t.Errorf("explain %s: a secret is in %s", path, answer)
		}
	}
}

// FuzzExplain: whatever is posted, there is an answer or an error that is the caller's,
// and nothing is charged.
func FuzzExplain(f *testing.F) {
	for _, seed := range []string{
		`{"method":"POST","url":"http://h/login?a=b","remote_addr":"::1","headers":{"X-Forwarded-For":["a","b"],"Content-Type":"application/json"},"body":"{\"a\":1}","vars":{"http.vars.a":[1,{"b":null}]}}`,
		`{"url":"https://[::1]/%00%2f..","remote_addr":"unix","headers":{"Cookie":"a=b","Content-Type":"application/x-www-form-urlencoded"},"body":"a=%zz&b"}`,
		`{"url":"http://h","remote_addr":"1.2.3.4:5","method":"CONNECT","vars":{"{http.request.header.}":0,"":1}}`,
		`null`, `[]`, `{"headers":null}`,
	} {
		f.Add(seed)
	}
	var cfg map[string]any
	if err := json.Unmarshal(adapted(f, strings.Replace(fuzzedSite, "BIND", "unix/"+f.TempDir()+"/site", 1)), &cfg); err != nil {
		f.Fatal(err)
	}
	cfg["admin"] = map[string]any{"disabled": true, "config": map[string]any{"persist": false}}
	cfg["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{"level": "PANIC"}}}
	config, err := json.Marshal(cfg)
	if err != nil {
		f.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = caddy.Stop() })
	f.Fuzz(func(t *testing.T, body string) {
		e := &edge{t: t}
		status, answer := e.admin(http.MethodPost, "explain", body)
		if status != http.StatusOK && status != http.StatusBadRequest {
			t.Errorf("explain %q: got status %d, %s", body, status, answer)
		}
		if n := e.store(0).Memory.Keys; n != 0 {
			t.Errorf("explain %q: %d keys are counted", body, n)
		}
	})
}

const fuzzedSite = `http://:80 {
	bind BIND
	map {path} {p} {
		default x
	}
	@form expression {http.request.method} != "PUT"
	distributed_ratelimit @form {
		zone a {
			key {json.a}{form.a}|{http.request.cookie.a}
			tier {query.plan} {
				gold unlimited
				default 9
			}
			window 1m
		}
		zone b {
			key {http.vars.a}|{p}
			cost {http.request.header.X-Cost} default 1 max 5
			events 5
			window 1m
		}
		zone c {
			concurrent 2
		}
	}
	rewrite /login /x
	reverse_proxy 127.0.0.1:1
}`

// What was changed by hand is in explanations and in the answers about the zone.
func TestExplainKnowsWhatWasSetByHand(t *testing.T) {
	e := start(t, `:80 {
		distributed_ratelimit {
			zone few {
				events 2
				window 1h
			}
		}
		respond ok
	}`)
	q := asked{URL: "http://localhost/", RemoteAddr: alice, Server: e.names["80"]}
	put := func(path string) {
		t.Helper()
		if status, answer := e.admin(http.MethodPut, path, ""); status != http.StatusOK {
			t.Fatalf("PUT %s: got status %d, %s", path, status, answer)
		}
	}
	e.granted(1, alice, "http://localhost/")
	put("zones/few/override?events=7&for=1h&note=sale")
	put("zones/few/bans?key=" + alice + "&for=1h")
	soon(t, "both hold", func() bool {
		z := e.explains(q).handler(t, 0, 1).zone(t, "few")
		return z.Override && z.BlockedBy == "hand"
	})
	z := e.explains(q).handler(t, 0, 1).zone(t, "few")
	z.is(t, alice, 7, 1, false, "blocked")
	if z.BlockedUntil == "" {
		t.Errorf("a key that is banned by hand: %+v", z)
	}
	// What is used is told also where that is more than a limit that was lowered.
	bobs := asked{URL: "http://localhost/", RemoteAddr: bob, Server: e.names["80"]}
	e.granted(4, bob, "http://localhost/")
	put("zones/few/override?events=3&for=1h")
	e.explains(bobs).handler(t, 0, 1).zone(t, "few").is(t, bob, 3, 4, false, "limit")
	put("zones/few/bans?key=" + bob + "&for=1h")
	e.explains(bobs).handler(t, 0, 1).zone(t, "few").is(t, bob, 3, 4, false, "blocked")
	put("zones/few/override?events=7&for=1h&note=sale")
	e.steer("DELETE", "zones/few/bans?key="+bob)
	var zones []struct {
		Overrides []struct {
			Events int64
			Note   string
		}
		Bans int `json:"bans_by_hand"`
	}
	e.adminGet("zones/few", &zones)
	if z := zones[0]; len(z.Overrides) != 1 || z.Overrides[0].Events != 7 || z.Overrides[0].Note != "sale" || z.Bans != 1 {
		t.Errorf("the zone: %+v", z)
	}
}
