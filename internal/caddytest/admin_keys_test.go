package caddytest

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

// lookedAt is what the admin API says of a key.
type lookedAt struct {
	Zone, Store, Key, Plan string
	DryRun                 bool `json:"dry_run"`
	Limit, Used, Remaining *int64
	Reset                  float64
	BlockedUntil           string `json:"blocked_until"`
	BlockedBy              string `json:"blocked_by"`
	Source                 string
}

// look expects what is used of a key's limit, -1 for no limit.
func (e *edge) look(query string, used, remaining int64) lookedAt {
	e.t.Helper()
	var got lookedAt
	e.adminGet(query, &got)
	if got.Used == nil || *got.Used != used || (got.Remaining == nil) != (remaining < 0) || got.Remaining != nil && *got.Remaining != remaining {
		e.t.Errorf("GET %s: got %s used and %s remaining, want %d and %d (%+v)", query, number(got.Used), number(got.Remaining), used, remaining, got)
	}
	return got
}

func number(n *int64) string {
	if n == nil {
		return "nothing"
	}
	return strconv.FormatInt(*n, 10)
}

func TestAdminLooksAtKeys(t *testing.T) {
	e := start(t, `:80 {
		distributed_ratelimit {
			log_key
			zone pages {
				events 5
				window 1h
				ipv4_prefix 24
			}
			zone tokens {
				key {http.request.header.X-Token}
				events 3
				window 1h
				block_for 2h
			}
			zone paths {
				key "{http.request.header.X-A}|{http.request.header.X-B}"
				on_empty_key skip
				window 1h
				tier {http.request.header.X-Plan} {
					free 2
					pro 1000
					staff unlimited
					default free
				}
			}
		}
	}`)
	weird := "a\x00 b%2F/ü" + strings.Repeat("x", 80)
	for range 4 {
		e.get("192.0.2.7", "/", with("X-Token", "secret"), with("X-A", "a|b"), with("X-B", "c"), with("X-Plan", "pro"))
	}
	e.get("192.0.2.8", "/", func(r *http.Request) { r.Header["X-Token"] = []string{weird} })
	e.get("192.0.2.9", "/")

	for _, query := range []string{"key=192.0.2.0/24", "client_ip=192.0.2.99", "key=" + url.QueryEscape("client_ip=192.0.2.1")} {
		if got := e.look("zones/pages/keys?"+query, 5, 0); got.Key != "192.0.2.0/24" || got.Reset < 3500 || got.Source != "store" {
			t.Errorf("%s: got %+v", query, got)
		}
	}
	e.look("zones/pages/keys?key=198.51.100.0/24", 0, 5)

	got := e.look("zones/tokens/keys?key=secret", 3, 0)
	if got.BlockedUntil == "" || got.BlockedBy != "block_for" {
		t.Errorf("the key is not blocked by its rule: %+v", got)
	}
	got = e.look("zones/tokens/keys?key="+url.QueryEscape(weird), 1, 2)
	if !strings.HasPrefix(got.Key, "hex:68") {
		t.Errorf("a key that is not printable is shown as %q", got.Key)
	}
	e.look("zones/tokens/keys?key="+got.Key, 1, 2)
	e.look("zones/tokens/keys?client_ip=192.0.2.9", 1, 2)

	query := "zones/paths/keys?key=" + url.QueryEscape(`["a|b","c"]`)
	e.look(query, 3, 0) // the fourth request was refused by another zone
	e.look(query+"&plan=pro", 3, 997)
	e.look(query+"&plan=staff", 3, -1)
	e.adminFails(http.StatusBadRequest, http.MethodGet, query+"&plan=gold", "", "free, pro, staff, default")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/paths/keys?key=a%7Cb%7Cc", "", "several keys", "JSON")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/paths/keys?client_ip=192.0.2.7", "", "key= instead")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/pages/keys?plan=pro&key=192.0.2.1", "", "no plans")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/pages/keys", "", "key", "client_ip")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/pages/keys?key=a&key=b", "", "twice")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/pages/keys?kye=a", "", `"kye"`, "client_ip")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/tokens/keys?key=50%zz", "", "%25")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/tokens/keys?key=a;b", "", "%3B")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/pages/keys?key=nobody", "", "no address")
	e.adminFails(http.StatusNotFound, http.MethodGet, "zones/page/keys?key=a", "", "pages, paths, tokens")
	e.adminFails(http.StatusMethodNotAllowed, http.MethodPost, "zones/pages/keys?key=a", "", "GET or DELETE")
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/tokens/keys", `{"key": ["secret"]}`, "no JSON object")
	if status, answer := e.admin(http.MethodGet, "zones/tokens/keys", `{"key": "secret"}`); status != http.StatusOK || !strings.Contains(answer, `"used":3`) {
		t.Errorf("with the key in the body: got status %d, %s", status, answer)
	}
}

// A zone in dry run has a log of its own, which a parameter chooses. Requests in flight
// are not in a log, but can be looked at.
func TestAdminChoosesTheLog(t *testing.T) {
	e := start(t, `:80 {
		distributed_ratelimit {
			zone dotted.name-1 {
				events 5
				window 1h
			}
			zone parallel {
				concurrent 3
			}
		}
	}
	:81 {
		distributed_ratelimit {
			zone dotted.name-1 {
				events 2
				window 1h
				dry_run
			}
		}
	}`)
	e.get("192.0.2.7", "/")
	for range 3 {
		e.get("192.0.2.7", "http://example.com:81/")
	}
	const query = "zones/dotted.name-1/keys?client_ip=192.0.2.7"
	e.look(query, 1, 4)
	e.look(query+"&dry_run=false", 1, 4)
	if got := e.look(query+"&dry_run=true", 2, 0); !got.DryRun {
		t.Errorf("the answer does not say that it is of the dry run: %+v", got)
	}
	e.adminFails(http.StatusBadRequest, http.MethodGet, query+"&dry_run=maybe", "", "true or false")
	e.look("zones/parallel/keys?client_ip=192.0.2.7", 0, 3)
	e.adminFails(http.StatusNotFound, http.MethodGet, "zones/parallel/keys?client_ip=192.0.2.7&dry_run=true", "", "leave the parameter out")
}
