package caddytest

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// zoneView is what tests read of an answer about a zone.
type zoneView struct {
	Name, Store, Key, Cost string
	DryRun                 bool `json:"dry_run"`
	Events, Concurrent     int64
	Window                 float64
	BlockFor               float64 `json:"block_for"`
	OnError                string  `json:"on_store_error"`
	OnEmptyKey             string  `json:"on_empty_key"`
	Match, Exempt          []string
	Tier                   struct {
		Plan    string
		Limits  map[string]any
		Default any
	}
	UsedBy []struct {
		Server   string
		Listen   []string
		Handlers int
	} `json:"used_by"`
	Counters struct {
		Requests, Refusals map[string]map[string]int
	}
	AtMost *float64 `json:"at_most"`
}

func (e *edge) zone(name string) zoneView {
	e.t.Helper()
	var zones []zoneView
	e.adminGet("zones/"+name, &zones)
	if len(zones) != 1 {
		e.t.Fatalf("zones/%s: got %d of them", name, len(zones))
	}
	return zones[0]
}

// What the configuration says of a zone is told in its own words, but for values that may
// be secrets; counters are those of the metrics.
func TestAdminZone(t *testing.T) {
	e := start(t, `:80 {
		distributed_ratelimit {
			exempt header X-Secret hunter2
			zone login {
				match {
					method POST
					path /login /signin
					header X-Token hunter2
				}
				match path /other
				key {http.request.header.X-User}
				events 2
				window 15m
				block_for 1h
				on_store_error deny
				cost {http.vars.cost} default 1 max 3
			}
			zone plans {
				tier {http.vars.plan} {
					gold unlimited
					free 10
					default free
				}
				window 1d
			}
			zone slots {
				concurrent 7
			}
		}
		respond ok
	}
	:81 {
		distributed_ratelimit {
			zone plans {
				tier {http.vars.plan} {
					gold unlimited
					free 10
					default free
				}
				window 1d
			}
		}
		respond ok
	}`)
	if _, answer := e.admin(http.MethodGet, "zones", ""); strings.Contains(answer, "hunter2") {
		t.Errorf("a matcher's value that may be a secret is shown: %s", answer)
	}
	z := e.zone("login")
	if z.Events != 2 || z.Window != 900 || z.BlockFor != 3600 || z.Key != "{http.request.header.X-User}" || z.OnError != "deny" ||
		z.OnEmptyKey != "client" || z.Cost != "{http.vars.cost} default 1 max 3 min 1" || z.Store != "memory" {
		t.Errorf("login: %+v", z)
	}
	if want := []string{"header, method POST, path /login /signin", "path /other"}; !reflect.DeepEqual(z.Match, want) {
		t.Errorf("match: got %q, want %q", z.Match, want)
	}
	if want := []string{"header"}; !reflect.DeepEqual(z.Exempt, want) {
		t.Errorf("exempt: got %q, want %q", z.Exempt, want)
	}
	if z := e.zone("plans"); z.Tier.Plan != "{http.vars.plan}" || z.Tier.Limits["gold"] != "unlimited" || z.Tier.Limits["free"] != 10. || z.Tier.Default != "free" || len(z.UsedBy) != 2 {
		t.Errorf("plans: %+v", z)
	}
	if z := e.zone("slots"); z.Concurrent != 7 || z.Window != 0 || z.Key != "{http.vars.client_ip}" || z.UsedBy[0].Server == "" || z.UsedBy[0].Handlers != 1 || len(z.UsedBy[0].Listen) != 1 {
		t.Errorf("slots: %+v", z)
	}

	for range 3 {
		e.get(alice, "http://localhost/other")
	}
	z = e.zone("login")
	e.sample("requests_total", "granted store login", 2) // the answer counts nothing
	if got := z.Counters.Requests; got["granted"]["store"] != 2 || got["refused"]["store"] != 1 {
		t.Errorf("requests: %v, want two granted and one refused", got)
	}
	if got := z.Counters.Refusals["refused"]; got["blocked"] != 1 || got["limit"] != 0 {
		t.Errorf("refusals: %v, want one", got)
	}
}

// storeView is what tests read of an answer about a store.
type storeView struct {
	Name, Condition string
	Servers         []struct {
		Server, Condition, Error, How string
		Since                         time.Time
		Losses                        int
	}
	Instances  int
	Leases     struct{ Keys, Units, Refusals int }
	Memory     struct{ Keys, Max_keys int }
	Unreported struct{ Keys, Units int }
	InFlight   int        `json:"in_flight"`
	Local      *time.Time `json:"last_decided_locally"`
	AtMost     *float64   `json:"at_most"`
}

func (e *edge) store(of int) storeView {
	e.t.Helper()
	var stores []storeView
	e.adminGet("stores", &stores)
	if of >= len(stores) {
		e.t.Fatalf("stores: got %+v, want %d", stores, of+1)
	}
	return stores[of]
}

// A store's answer follows it from well to away and back, and holds no password.
func TestAdminStores(t *testing.T) {
	redis := redistest.Start(t, "--requirepass", "hunter2")
	t.Setenv("REDIS_URL", "redis://:hunter2@"+redis.Addr)
	e := start(t, `{
		distributed_ratelimit {
			store redis {env.REDIS_URL} {
				key_secret hunter2
			}
			budget 5s
		}
	}
	:80 {
		distributed_ratelimit {
			zone z {
				events 10
				window 1m
			}
			zone open {
				events 10
				window 1m
				on_store_error allow
			}
			zone slots {
				concurrent 3
			}
		}
		respond ok
	}
	:81 {
		distributed_ratelimit {
			store memory
			zone z {
				events 10
				window 1m
			}
		}
		respond ok
	}`)
	secret := func() {
		t.Helper()
		for _, path := range []string{"stores", "zones"} {
			if _, answer := e.admin(http.MethodGet, path, ""); strings.Contains(answer, "hunter2") {
				t.Errorf("%s: a secret is in %s", path, answer)
			}
		}
	}
	soon(t, "the store is up", func() bool { return e.store(0).Condition == "up" })
	e.granted(3, alice, "http://localhost/")
	e.granted(2, alice, "http://localhost:81/")
	s := e.store(0)
	if s.Instances != 1 || len(s.Servers) != 1 || s.Servers[0].Server != redis.Addr || s.Servers[0].Since.IsZero() || s.AtMost == nil || *s.AtMost != 1 || s.Unreported.Keys != 0 {
		t.Errorf("a store that is well: %+v", s)
	}
	if m := e.store(1); m.Name != "memory" || m.Condition != "up" || m.Memory.Keys != 1 || m.Memory.Max_keys != 100_000 {
		t.Errorf("the memory: %+v", m)
	}
	secret()

	redis.Kill()
	soon(t, "the store is away", func() bool {
		e.get(alice, "http://localhost/")
		return e.store(0).Condition == "away"
	})
	e.get(bob, "http://localhost/")
	s = e.store(0)
	if s.Servers[0].Error == "" || s.Local == nil || s.Unreported.Keys == 0 || s.Unreported.Units == 0 || s.AtMost != nil {
		t.Errorf("a store that is away, with a zone that lets pass: %+v", s)
	}
	if z := e.zone("open"); z.AtMost != nil {
		t.Errorf("a zone that lets pass: at most %v, want no bound", *z.AtMost)
	}
	var zones []zoneView
	e.adminGet("zones/z?store="+strings.ReplaceAll(s.Name, " ", "+"), &zones)
	if len(zones) != 1 || zones[0].AtMost == nil || *zones[0].AtMost != 2 {
		t.Errorf("a zone that is limited locally: %+v, want at most twice the limit", zones)
	}
	secret()

	redis.Restart(t)
	soon(t, "the loss is noticed", func() bool { return e.store(0).Servers[0].Losses == 1 })
	soon(t, "all is reported", func() bool { return e.store(0).Unreported.Keys == 0 })
	if s := e.store(0); s.Servers[0].How == "" {
		t.Errorf("after a loss: %+v", s)
	}
	secret()
}
