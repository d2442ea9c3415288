package distributedratelimit

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI answers questions about the running configuration, under
// /distributed_ratelimit/ on Caddy's admin endpoint. Whoever reaches that endpoint may
// change all of Caddy; who may reach it is decided by Caddy's own settings (admin,
// enforce_origin, remote admin). Nothing here is reachable otherwise.
//
// No answer holds a secret of the configuration. A client's key is only in an answer
// to somebody who asked by this key, or sent the request that has it.
type adminAPI struct{}

const adminRoot = "/distributed_ratelimit/"

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.distributed_ratelimit",
		New: func() caddy.Module { return adminAPI{} },
	}
}

// Routes implements caddy.AdminRouter.
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: adminRoot, Handler: caddy.AdminHandlerFunc(serveAdmin)}}
}

// adminRow is one thing that can be asked for. Path is what follows adminRoot; <zone> in
// it is the name of a zone. Serve returns what is encoded as JSON, or an error, which
// should be a caddy.APIError.
type adminRow struct {
	method, path string
	serve        func(*adminCall) (any, error)
}

// adminRows are all of them. It is a function because the rows refer to it in their
// errors.
func adminRows() []adminRow {
	return []adminRow{
		{http.MethodGet, "zones", adminZones},
		{http.MethodGet, "zones/<zone>", adminZone},
		{http.MethodGet, "stores", adminStores},
		{http.MethodPost, "explain", adminExplain},
		{http.MethodGet, "zones/<zone>/keys", adminLook},
		{http.MethodDelete, "zones/<zone>/keys", adminReset},
		{http.MethodPut, "zones/<zone>/bans", adminBan},
		{http.MethodDelete, "zones/<zone>/bans", adminUnban},
		{http.MethodGet, "bans", adminBans},
		{http.MethodPut, "zones/<zone>/override", adminOverride},
		{http.MethodDelete, "zones/<zone>/override", adminEndOverride},
		{http.MethodGet, "overrides", adminOverrides},
		{http.MethodGet, "top", adminTop},
	}
}

// adminCall is one request to the admin API.
type adminCall struct {
	*http.Request
	app  *App   // nil if no running configuration uses the module
	zone string // that the path names
}

// serveAdmin answers one request.
func serveAdmin(w http.ResponseWriter, r *http.Request) error {
	path := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, adminRoot), "/")
	var allowed []string
	for _, row := range adminRows() {
		zone, ok := row.matches(path)
		if !ok {
			continue
		}
		if row.method != r.Method {
			allowed = append(allowed, row.method)
			continue
		}
		answer, err := row.serve(&adminCall{Request: r, app: running.app(), zone: zone})
		if err != nil {
			return err
		}
		return writeAdmin(w, answer)
	}
	if len(allowed) > 0 {
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		return adminError(http.StatusMethodNotAllowed, "%s%s cannot be asked for with %s; use %s",
			adminRoot, path, r.Method, strings.Join(allowed, " or "))
	}
	return adminError(http.StatusNotFound, "there is no %s%s; there are %s", adminRoot, path, adminPaths())
}

// matches reports whether the row is for a path, and the zone that the path names.
func (row *adminRow) matches(path string) (zone string, ok bool) {
	want, got := strings.Split(row.path, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return "", false
	}
	for i := range want {
		switch {
		case want[i] == "<zone>" && got[i] != "":
			zone = got[i]
		case want[i] != got[i]:
			return "", false
		}
	}
	return zone, true
}

// adminPaths lists what can be asked for.
func adminPaths() string {
	var paths []string
	for _, row := range adminRows() {
		paths = append(paths, row.method+" "+row.path)
	}
	return strings.Join(paths, ", ")
}

// adminError is what is wrong with a request, and its remedy, for the person who sent it.
func adminError(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

func writeAdmin(w http.ResponseWriter, answer any) error {
	text, err := json.Marshal(answer)
	if err != nil {
		return adminError(http.StatusInternalServerError, "encoding the answer: %v", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(text, '\n')) // the client may have gone
	return nil
}

var errNotRunning = errors.New("no running configuration limits requests; load one that uses distributed_ratelimit")

// running holds the apps that run: one, and during a reload the next one as well. Caddy
// makes the admin API before the apps, and does not tell it of them.
var running runningApps

type runningApps struct {
	mu   sync.Mutex
	apps []*App // the last one counts
}

// app is the app of the running configuration, nil if there is none.
func (r *runningApps) app() *App {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.apps); n > 0 {
		return r.apps[n-1]
	}
	return nil
}

func (r *runningApps) add(a *App) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apps = append(r.apps, a)
}

// remove takes an app out that has stopped, perhaps again. If a configuration fails to
// start after its app has, the previous one counts again.
func (r *runningApps) remove(a *App) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apps = slices.DeleteFunc(r.apps, func(other *App) bool { return other == a })
}

// Interface guards
var _ caddy.AdminRouter = adminAPI{}
