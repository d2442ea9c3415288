package caddytest

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// admin asks the admin API, as Caddy's admin endpoint does: without a network, so that
// a configuration needs none.
func (e *edge) admin(method, path, body string) (status int, answer string) {
	e.t.Helper()
	info, err := caddy.GetModule("admin.api.distributed_ratelimit")
	if err != nil {
		e.t.Fatal(err)
	}
	r := httptest.NewRequest(method, "/distributed_ratelimit/"+path, strings.NewReader(body))
	w := httptest.NewRecorder()
	for _, route := range info.New().(caddy.AdminRouter).Routes() {
		if strings.HasPrefix(r.URL.Path, route.Pattern) {
			err = route.Handler.ServeHTTP(w, r)
		}
	}
	if failure, ok := errors.AsType[caddy.APIError](err); ok {
		return failure.HTTPStatus, failure.Err.Error()
	}
	if err != nil {
		e.t.Errorf("%s %s: got the error %v (%T), want a caddy.APIError", method, path, err, err)
	}
	text, _ := io.ReadAll(w.Body)
	return w.Code, string(text)
}

// adminGet reads an answer of the admin API into a value.
func (e *edge) adminGet(path string, into any) {
	e.t.Helper()
	status, answer := e.admin(http.MethodGet, path, "")
	if status != http.StatusOK {
		e.t.Fatalf("GET %s: got status %d, %s", path, status, answer)
	}
	if err := json.Unmarshal([]byte(answer), into); err != nil {
		e.t.Fatalf("GET %s: %v in %s", path, err, answer)
	}
}

// adminFails expects an error that says something.
func (e *edge) adminFails(status int, method, path, body string, says ...string) {
	e.t.Helper()
	got, answer := e.admin(method, path, body)
	if got != status {
		e.t.Errorf("%s %s: got status %d, %s; want %d", method, path, got, answer, status)
	}
	for _, text := range says {
		if !strings.Contains(answer, text) {
			e.t.Errorf("%s %s: got %q, want %q in it", method, path, answer, text)
		}
	}
}

type namedZone struct {
	Name, Store string
	DryRun      bool `json:"dry_run"`
}

func TestAdminErrorsNameTheRemedy(t *testing.T) {
	e := start(t, `:80 {
		distributed_ratelimit {
			zone small {
				events 5
				window 1m
			}
		}
	}`)
	e.adminFails(http.StatusNotFound, http.MethodGet, "zone", "", "GET zones/<zone>", "POST explain")
	e.adminFails(http.StatusNotFound, http.MethodGet, "", "", "GET zones")
	e.adminFails(http.StatusNotFound, http.MethodGet, "zones/tiny", "", `no zone is called "tiny"`, "small")
	e.adminFails(http.StatusMethodNotAllowed, http.MethodPost, "zones", "", "use GET")
	e.adminFails(http.StatusMethodNotAllowed, http.MethodGet, "explain", "", "use POST")
	e.adminFails(http.StatusNotFound, http.MethodGet, "zones/small?store=redis", "", `"redis"`, "memory")
}

// Zones of one name in two stores are two limits, and so are the one in force and the
// one that is being tried.
func TestAdminFindsZonesByName(t *testing.T) {
	e := start(t, `:80 {
		distributed_ratelimit {
			zone small {
				events 5
				window 1m
			}
		}
	}
	:81 {
		distributed_ratelimit {
			zone small {
				events 3
				window 1m
				dry_run
			}
			zone other {
				events 3
				window 1m
			}
		}
	}
	:82 {
		distributed_ratelimit {
			store redis redis://127.0.0.1:1
			zone other {
				events 3
				window 1m
			}
		}
	}`)
	var zones []namedZone
	e.adminGet("zones/small", &zones)
	if len(zones) != 2 || zones[0].DryRun || !zones[1].DryRun {
		t.Errorf("zones/small: got %+v, want the one in force, then the dry run", zones)
	}
	e.adminFails(http.StatusBadRequest, http.MethodGet, "zones/other", "", "store", "memory", "127.0.0.1:1")
	e.adminGet("zones/other?store=memory", &zones)
	if len(zones) != 1 || zones[0].Store != "memory" {
		t.Errorf("zones/other of the store memory: got %+v", zones)
	}
	e.adminGet("zones", &zones)
	if len(zones) != 4 {
		t.Errorf("zones: got %+v, want four", zones)
	}
}

// The API follows the configuration that runs: after a reload, after one that failed,
// and when nothing limits any more.
func TestAdminFollowsReloads(t *testing.T) {
	limiting := func(name string) string {
		return ":80 {\n distributed_ratelimit {\n zone " + name + " {\n events 5\n window 1m\n }\n }\n}"
	}
	e := start(t, limiting("first"))
	has := func(want string) {
		t.Helper()
		var zones []namedZone
		e.adminGet("zones", &zones)
		var names []string
		for _, z := range zones {
			names = append(names, z.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("zones: got %q, want %q", got, want)
		}
	}
	has("first")
	e.reload(limiting("second"))
	has("second")

	// The port is taken, so that the HTTP app fails to start, before or after ours has.
	taken := freeAddress(t)
	l := listenOn(t, taken)
	defer l.Close()
	e.ports["83"] = taken
	for range 8 {
		if err := e.tryReload(limiting("third") + "\n:83 {\n respond ok\n}"); err == nil {
			t.Fatal("a configuration started on a port that is taken")
		}
		has("second")
	}

	e.reload(":80 {\n respond ok\n}")
	has("")
	e.adminFails(http.StatusServiceUnavailable, http.MethodGet, "zones/second", "", "no running configuration", "distributed_ratelimit")
	e.adminFails(http.StatusServiceUnavailable, http.MethodGet, "stores", "", "no running configuration")
	e.adminFails(http.StatusServiceUnavailable, http.MethodPost, "explain", "{}", "no running configuration")
	e.reload(limiting("fourth"))
	has("fourth")
}

func listenOn(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
