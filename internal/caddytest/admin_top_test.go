package caddytest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

type busy struct {
	Zone   string
	DryRun bool `json:"dry_run"`
	Over   float64
	Keys   []struct {
		Key                      string
		Granted, Refused, Missed int64
	}
}

func TestAdminListsTheBusiestKeys(t *testing.T) {
	const config = `:80 {
		distributed_ratelimit {
			log_key
			zone pages {
				events 5
				window 1h
			}
			zone accounts {
				key {http.request.header.X-User}
				key_normalize lower
				on_empty_key skip
				events 4
				window 1h
				dry_run
			}
		}
	}
	:81 {
		distributed_ratelimit {
			zone quiet {
				events 5
				window 1h
			}
			zone shared {
				events 5
				window 1h
			}
		}
	}
	:82 {
		distributed_ratelimit {
			log_key
			zone shared {
				events 5
				window 1h
			}
		}
	}`
	e := start(t, config)
	for i := range 8 {
		e.get("192.0.2.1", "/", with("X-User", []string{"Bob", "bob"}[i%2]))
	}
	for i := range 600 {
		e.get(fmt.Sprintf("198.51.%d.%d", i/250, i%250), "/")
	}
	var top busy
	e.adminGet("top?zone=pages&n=2", &top)
	if len(top.Keys) != 2 || top.Keys[0].Key != "192.0.2.1" || top.Keys[0].Granted != 5 || top.Keys[0].Refused != 3 {
		t.Errorf("zone pages: got %+v, want 192.0.2.1 with 5 granted and 3 refused, and another one", top)
	}
	// What another zone refuses is not charged, and not counted. The value is shown
	// as it was sent, though the key is of what it is made.
	e.adminGet("top?zone=accounts", &top)
	if !top.DryRun || len(top.Keys) != 1 || !strings.EqualFold(top.Keys[0].Key, "bob") || top.Keys[0].Granted != 4 || top.Keys[0].Refused != 4 {
		t.Errorf("zone accounts: got %+v, want bob with 4 granted and 4 refused", top)
	}
	e.look("zones/accounts/keys?key="+top.Keys[0].Key, 4, 0)

	for _, zone := range []string{"quiet", "shared"} {
		e.adminFails(http.StatusConflict, http.MethodGet, "top?zone="+zone, "", "log_key")
	}
	e.adminFails(http.StatusBadRequest, http.MethodGet, "top", "", "accounts, pages, quiet, shared")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "top?zone=pages&n=0", "", "1 and 500")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "top?zone=pages&n=many", "", "whole number")
	e.adminFails(http.StatusNotFound, http.MethodGet, "top?zone=page", "", "pages")

	e.reload(config + "\n")
	e.adminGet("top?zone=pages", &top)
	if len(top.Keys) != 0 {
		t.Errorf("after a reload: got %+v, want counts from then on", top)
	}
}
