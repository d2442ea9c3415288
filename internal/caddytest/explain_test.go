package caddytest

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// explained is what tests read of an explanation.
type explained struct {
	Server   string
	Granted  bool
	Ends     string
	Assumed  []string
	Handlers []explainedHandler
}

type explainedHandler struct {
	Client     struct{ IP, Rule, Because string }
	Granted    bool
	Reason     string
	Status     int
	StoreError string `json:"store_error"`
	Error      string
	Zones      []explainedZone
}

type explainedZone struct {
	Zone, Because, Exempt, Key, Plan, Reason, Detail, Source string
	DryRun                                                   bool `json:"dry_run"`
	Applies, Unlimited, Override                             bool
	Limit, Used, Remaining, Share                            *int64
	Units                                                    int64
	Window                                                   float64
	Granted                                                  *bool
	BlockedUntil                                             string `json:"blocked_until"`
	BlockedBy                                                string `json:"blocked_by"`
	MayBan                                                   bool   `json:"may_ban"`
	Lacks                                                    []struct{ Word, Why string }
}

// asked is a request to be explained.
type asked struct {
	Method     string         `json:"method,omitempty"`
	URL        string         `json:"url,omitempty"`
	Headers    map[string]any `json:"headers,omitempty"`
	RemoteAddr string         `json:"remote_addr,omitempty"`
	Body       string         `json:"body,omitempty"`
	Vars       map[string]any `json:"vars,omitempty"`
	Server     string         `json:"server,omitempty"`
}

func (e *edge) explains(a asked) explained {
	e.t.Helper()
	body, err := json.Marshal(a)
	if err != nil {
		e.t.Fatal(err)
	}
	status, answer := e.admin(http.MethodPost, "explain", string(body))
	var x explained
	if err := json.Unmarshal([]byte(answer), &x); status != http.StatusOK || err != nil {
		e.t.Fatalf("explain %s: got status %d, %s", body, status, answer)
	}
	return x
}

// handler returns the explanation of one handler, of so many.
func (x explained) handler(t *testing.T, i, of int) explainedHandler {
	t.Helper()
	if len(x.Handlers) != of {
		t.Fatalf("%d handlers, want %d: %+v", len(x.Handlers), of, x)
	}
	return x.Handlers[i]
}

func (h explainedHandler) zone(t *testing.T, name string) explainedZone {
	t.Helper()
	for _, z := range h.Zones {
		if z.Zone == name {
			return z
		}
	}
	t.Fatalf("no zone %s in %+v", name, h)
	return explainedZone{}
}

// is expects numbers of a zone that applies.
func (z explainedZone) is(t *testing.T, key string, limit, used int64, granted bool, reason string) {
	t.Helper()
	if !z.Applies || z.Granted == nil || z.Limit == nil || z.Used == nil || z.Remaining == nil {
		t.Fatalf("zone %+v: want one that applies, with numbers", z)
	}
	if z.Key != key || *z.Limit != limit || *z.Used != used || *z.Remaining != max(0, limit-used) || *z.Granted != granted || z.Reason != reason {
		t.Errorf("zone %s: key %q, limit %d, used %d, remaining %d, granted %v, reason %q; want %q, %d, %d, granted %v, %q",
			z.Zone, z.Key, *z.Limit, *z.Used, *z.Remaining, *z.Granted, z.Reason, key, limit, used, granted, reason)
	}
}

// An explanation charges nothing, bans nobody and counts in no metric, however often it
// is asked for.
func TestExplainChangesNothing(t *testing.T) {
	e := start(t, `:80 {
		distributed_ratelimit {
			zone few {
				events 2
				window 1h
				block_for 1h
			}
			zone header {
				key {http.request.header.X-User}
				events 2
				window 1h
			}
			zone slots {
				concurrent 1
			}
		}
		respond ok
	}`)
	q := asked{URL: "http://localhost/", RemoteAddr: alice, Server: e.names["80"]}
	for range 5 {
		h := e.explains(q).handler(t, 0, 1)
		h.zone(t, "few").is(t, alice, 2, 0, true, "")
		h.zone(t, "slots").is(t, alice, 1, 0, true, "")
	}
	e.granted(2, alice, "http://localhost/")
	before := e.series("requests_total")
	for range 5 {
		x := e.explains(q)
		h := x.handler(t, 0, 1)
		h.zone(t, "few").is(t, alice, 2, 2, false, "limit")
		if z := h.zone(t, "few"); !z.MayBan || x.Granted || h.Granted || h.Status != 429 || h.Reason != "limit" {
			t.Errorf("a request over the limit: %+v", x)
		}
	}
	for _, metric := range []string{"requests_total", "empty_keys_total", "identified_requests_total", "bans_total", "store_duration_seconds"} {
		if metric == "requests_total" {
			if after := e.series(metric); len(after) != len(before) || after["granted store few"] != 2 || after["refused store few"] != 0 {
				t.Errorf("%s: %v", metric, after)
			}
			continue
		}
	}
	e.sample("empty_keys_total", "missing header", 2)
	e.log.says(0, "request refused")

	e.refused(alice, "http://localhost/")
	z := e.explains(q).handler(t, 0, 1).zone(t, "few")
	z.is(t, alice, 2, 2, false, "blocked")
	if z.BlockedUntil == "" || z.BlockedBy != "block_for" || z.MayBan {
		t.Errorf("a banned client: %+v", z)
	}
}

// Routes are walked as the server does, groups, terminal routes, subroutes and named
// routes included; what changes the request is run, what does work is not.
func TestExplainWalksRoutes(t *testing.T) {
	e := start(t, `&(common) {
		distributed_ratelimit {
			zone named {
				events 9
				window 1h
			}
		}
	}
	:80 {
		map {path} {tier} {
			~^/gold gold
			default free
		}
		route /auth/* {
			basic_auth {
				alice $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
			}
			distributed_ratelimit {
				zone user {
					key {http.auth.user.id}
					on_empty_key deny
					events 9
					window 1h
				}
			}
			respond "hello"
			distributed_ratelimit {
				zone never {
					events 9
					window 1h
				}
			}
		}
		handle_path /old/* {
			route {
				rewrite * /new{uri}
				distributed_ratelimit {
					zone rewritten {
						match path /new/*
						key {http.request.uri.path}
						events 9
						window 1h
					}
				}
				respond "old"
			}
		}
		handle /old/x {
			distributed_ratelimit {
				zone group {
					events 9
					window 1h
				}
			}
		}
		route /gold* {
			request_header X-Tier {tier}
			distributed_ratelimit {
				zone mapped {
					key {http.request.header.X-Tier}
					tier {tier} {
						gold 7
						default 1
					}
					window 1h
				}
			}
			reverse_proxy 127.0.0.1:1
		}
		handle /named {
			invoke common
			respond "named"
		}
		handle /fail {
			error 418
		}
	}`)
	ask := func(path string, vars map[string]any) explained {
		t.Helper()
		return e.explains(asked{URL: "http://localhost" + path, RemoteAddr: alice, Vars: vars, Server: e.names["80"]})
	}
	x := ask("/auth/", map[string]any{"http.auth.user.id": "alice"})
	x.handler(t, 0, 1).zone(t, "user").is(t, "alice", 9, 0, true, "")
	if x.Ends != "static_response" || len(x.Assumed) != 1 || !strings.Contains(x.Assumed[0], "authentication") {
		t.Errorf("behind authentication: %+v", x)
	}
	x = ask("/auth/", nil)
	if h := x.handler(t, 0, 1); h.Reason != "empty_key" || h.Status != 403 || x.Granted {
		t.Errorf("nobody: %+v", x)
	}
	x = ask("/old/y", nil)
	x.handler(t, 0, 1).zone(t, "rewritten").is(t, "/new/y", 9, 0, true, "")
	x = ask("/old/x", nil) // which is in the group of the handles, too
	x.handler(t, 0, 1).zone(t, "group").is(t, alice, 9, 0, true, "")
	x = ask("/golden", map[string]any{"http.auth.user.id": "alice"})
	x.handler(t, 0, 1).zone(t, "mapped").is(t, "gold", 7, 0, true, "")
	if x.Ends != "reverse_proxy" || x.handler(t, 0, 1).zone(t, "mapped").Plan != "gold" || len(x.Assumed) != 1 || !strings.Contains(x.Assumed[0], "vars were not used") {
		t.Errorf("mapped: %+v", x)
	}
	x = ask("/named", nil)
	x.handler(t, 0, 1).zone(t, "named").is(t, alice, 9, 0, true, "")
	if x := ask("/fail", nil); x.Ends != "error" || len(x.Handlers) != 0 {
		t.Errorf("an error: %+v", x)
	}
	if x := ask("/", nil); !strings.HasPrefix(x.Ends, "nothing") || !x.Granted {
		t.Errorf("no route: %+v", x)
	}
}

// Why a zone does not apply, and who the client is.
func TestExplainTellsWhy(t *testing.T) {
	e := start(t, `{
		servers {
			trusted_proxies static 10.0.0.0/8
		}
	}
	:80 {
		distributed_ratelimit {
			exempt path /healthz
			zone all {
				events 9
				window 1h
			}
			zone other {
				match path /other
				events 9
				window 1h
			}
			zone spared {
				exempt {
					client_ip 203.0.113.7
					method GET
				}
				events 9
				window 1h
			}
			zone skipped {
				key {http.request.header.X-User}
				on_empty_key skip
				events 9
				window 1h
			}
			zone unlimited {
				tier {http.request.header.X-Plan} {
					gold unlimited
					default 0
				}
				window 1h
			}
			zone tried {
				events 0
				window 1h
				dry_run
			}
			zone dear {
				cost {http.request.header.X-Cost} default 1 max 10
				events 5
				window 1h
				dry_run
			}
		}
		distributed_ratelimit {
			zone all {
				events 9
				window 1h
			}
		}
		respond ok
	}`)
	x := e.explains(asked{URL: "http://localhost/", RemoteAddr: "10.0.0.1:5", Server: e.names["80"],
		Headers: map[string]any{"X-Forwarded-For": []string{"203.0.113.7"}, "x-plan": "gold", "X-Cost": "7", "X_Y": "z"}})
	h := x.handler(t, 0, 2)
	if h.Client.IP != "203.0.113.7" || !strings.Contains(h.Client.Because, "X-Forwarded-For") {
		t.Errorf("client: %+v", h.Client)
	}
	for name, because := range map[string]string{"other": "not_matched", "spared": "exempt", "skipped": "empty_key", "unlimited": "free"} {
		if z := h.zone(t, name); z.Applies || z.Because != because {
			t.Errorf("%s: %+v, want it not to apply because %s", name, z, because)
		}
	}
	if z := h.zone(t, "spared"); z.Exempt != "the zone's exempt client_ip, method GET" {
		t.Errorf("spared by %q", z.Exempt)
	}
	if z := h.zone(t, "unlimited"); !z.Unlimited || z.Plan != "gold" {
		t.Errorf("unlimited: %+v", z)
	}
	if z := h.zone(t, "tried"); !z.DryRun || z.Reason != "zero" || *z.Granted {
		t.Errorf("a limit of 0 in a dry run: %+v", z)
	}
	if z := h.zone(t, "dear"); z.Reason != "too_costly" || z.Units != 7 || *z.Limit != 5 {
		t.Errorf("too costly: %+v", z)
	}
	if z := h.zone(t, "skipped"); len(z.Lacks) != 1 || z.Lacks[0].Word != "key" || z.Lacks[0].Why != "missing" {
		t.Errorf("what is missing: %+v", z)
	}
	if z := x.handler(t, 1, 2).zone(t, "all"); z.Because != "charged" {
		t.Errorf("the same limit again: %+v", z)
	}
	if !x.Granted || len(x.Assumed) != 1 || !strings.Contains(x.Assumed[0], "X_y") {
		t.Errorf("a dry run refuses, or the header is not dropped: %+v", x)
	}
	x = e.explains(asked{URL: "http://localhost/healthz", RemoteAddr: alice, Server: e.names["80"]})
	if z := x.handler(t, 0, 2).zone(t, "all"); z.Because != "exempt" || z.Exempt != "the handler's exempt path /healthz" {
		t.Errorf("exempt by the handler: %+v", z)
	}
	if h := x.handler(t, 0, 2); h.Client.Rule != "untrusted_peer" || h.Client.IP != alice {
		t.Errorf("client: %+v", h.Client)
	}
}

func TestExplainErrors(t *testing.T) {
	e := start(t, ":80 {\n distributed_ratelimit 5 1m\n}\n:81 {\n respond ok\n}")
	post := func(body string, says ...string) {
		t.Helper()
		e.adminFails(http.StatusBadRequest, http.MethodPost, "explain", body, says...)
	}
	post(``, "send for example")
	post(`{"uri":"/"}`, "uri", "send for example")
	post(`{"url":"/login"}`, "whole URL")
	post(`{"url":"http://h/"}`, "remote_addr", "proxy")
	post(`{"url":"http://h/","remote_addr":"localhost"}`, "remote_addr")
	post(`{"url":"http://h:1/","remote_addr":"::1"}`, "port 1", "server", e.names["80"], e.names["81"])
	post(`{"url":"http://h/","remote_addr":"::1","server":"x"}`, `"x"`, e.names["80"])
	server := `,"server":"` + e.names["80"] + `"}`
	post(`{"url":"http://h/","remote_addr":"::1","headers":{"a b":"c"}`+server, "a b")
	post(`{"url":"http://h/","remote_addr":"::1","headers":{"a":"c\nd"}`+server, "line breaks")
	post(`{"url":"http://h/","remote_addr":"::1","headers":{"a":1}`+server, "list of texts")
	post(`{"url":"http://h/","remote_addr":"::1","method":"G T"`+server, "G T")
}
