package distributedratelimit

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
)

// walk follows one request through the routes of a server, as the server would, without
// doing what handlers do for real. Handlers that only change the request or what
// placeholders say are run, on the request that is explained; others are passed over.
type walk struct {
	app    *App
	server *namedServer
	vars   map[string]any
	used   bool // vars have been put in place
	groups map[string]bool
	depth  int
	answer explainAnswer
}

// How the walk treats Caddy's handlers, by the names of their modules.
var (
	// runHandlers change the request, variables or placeholders, and nothing else that
	// lasts.
	runHandlers = []string{"rewrite", "vars", "map", "headers", "request_body"}
	// responseHandlers only look at the response, and hand on the request as it is.
	responseHandlers = []string{"encode", "templates", "tracing", "log_append", "intercept", "push", "copy_response", "copy_response_headers"}
	// lastHandlers respond themselves.
	lastHandlers = []string{"static_response", "error", "file_server", "reverse_proxy", "acme_server", "metrics"}
)

// maxDepth bounds how many handlers a request is followed through: named routes may
// invoke each other without end.
const maxDepth = 10_000

func newWalk(app *App, server *namedServer, q *explainRequest) *walk {
	return &walk{
		app: app, server: server, vars: q.Vars, groups: make(map[string]bool),
		answer: explainAnswer{Server: server.name, Handlers: []explainedHandler{}, Assumed: []string{}, Granted: true},
	}
}

// run follows the request to its end.
func (x *walk) run(r *http.Request) {
	w := new(deafWriter)
	repl := caddy.NewReplacer()
	r = caddyhttp.PrepareRequest(r, repl, w, x.server.Server)
	end := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		x.ends("nothing: no handler responds")
		return nil
	})
	if err := x.routes(x.server.Routes, end).ServeHTTP(w, r); err != nil {
		x.ends(fmt.Sprintf("an error: %v", err))
	}
	if len(x.vars) > 0 && !x.used {
		x.assume("vars were not used: no handler was passed over before the end")
	}
}

// ends notes what responds to the request. Only the first one counts.
func (x *walk) ends(what string) {
	if x.answer.Ends == "" {
		x.answer.Ends = what
	}
}

// routes makes a handler of a list of routes and what comes after them.
func (x *walk) routes(list caddyhttp.RouteList, next caddyhttp.Handler) caddyhttp.Handler {
	for _, route := range slices.Backward(list) {
		next = x.route(route, next)
	}
	return next
}

// route makes a handler of a route, as Caddy does: see caddyhttp.RouteList.Compile.
func (x *walk) route(route caddyhttp.Route, next caddyhttp.Handler) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if route.Group != "" && x.groups[route.Group] {
			return next.ServeHTTP(w, r)
		}
		matches, err := route.MatcherSets.AnyMatchWithError(r)
		if err != nil {
			return err
		}
		if !matches {
			return next.ServeHTTP(w, r)
		}
		if route.Group != "" {
			x.groups[route.Group] = true
		}
		stack := next
		if route.Terminal {
			stack = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
				x.ends("nothing: no handler responds, and the route is the last one")
				return nil
			})
		}
		for _, handler := range slices.Backward(route.Handlers) {
			stack = x.handler(handler, stack)
		}
		return stack.ServeHTTP(w, r)
	})
}

var errEndless = errors.New("more handlers follow than can be explained; do routes invoke each other?")

// handler stands in for a handler in front of others.
func (x *walk) handler(of caddyhttp.MiddlewareHandler, next caddyhttp.Handler) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if x.depth++; x.depth > maxDepth {
			return errEndless
		}
		switch h := of.(type) {
		case *Handler:
			return x.explain(h, w, r, next)
		case *caddyhttp.Subroute:
			return x.routes(h.Routes, next).ServeHTTP(w, r)
		case *caddyhttp.Invoke:
			if route := x.server.NamedRoutes[h.Name]; route != nil {
				return x.route(*route, next).ServeHTTP(w, r)
			}
		}
		name := handlerName(of)
		switch {
		case slices.Contains(runHandlers, name):
			return of.ServeHTTP(w, r, next)
		case slices.Contains(responseHandlers, name):
		case slices.Contains(lastHandlers, name) && !goesOn(of):
			x.ends(name)
			return nil
		default:
			x.assume("%s is not run: it is taken to let the request pass, and to set what vars say", name)
			x.putVars(r)
		}
		return next.ServeHTTP(w, r)
	})
}

// handlerName is the last part of the name of a handler's module.
func handlerName(h caddyhttp.MiddlewareHandler) string {
	if module, ok := h.(caddy.Module); ok {
		return strings.TrimPrefix(string(module.CaddyModule().ID), "http.handlers.")
	}
	return fmt.Sprintf("%T", h)
}

// goesOn reports whether a handler that responds may also hand on the request: a
// reverse_proxy with handle_response, as forward_auth is, and a file_server with
// pass_thru. Their packages are not imported for it.
func goesOn(h caddyhttp.MiddlewareHandler) bool {
	of := reflect.Indirect(reflect.ValueOf(h))
	if of.Kind() != reflect.Struct {
		return false
	}
	responses, through := of.FieldByName("HandleResponse"), of.FieldByName("PassThru")
	return responses.Kind() == reflect.Slice && responses.Len() > 0 || through.Kind() == reflect.Bool && through.Bool()
}

// putVars sets what handlers would have set.
func (x *walk) putVars(r *http.Request) {
	x.used = true
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	for _, name := range slices.Sorted(maps.Keys(x.vars)) {
		value := x.vars[name]
		name = strings.Trim(name, "{}")
		if header, ok := strings.CutPrefix(name, keys.HeaderPrefix); ok {
			r.Header.Set(header, caddy.ToString(value))
			continue
		}
		if name, ok := strings.CutPrefix(name, "http.vars."); ok {
			caddyhttp.SetVar(r.Context(), name, value)
			continue
		}
		repl.Set(name, value)
	}
}

// deafWriter is the response that nobody gets.
type deafWriter struct{ header http.Header }

func (w *deafWriter) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

func (*deafWriter) Write(p []byte) (int, error) { return len(p), nil }
func (*deafWriter) WriteHeader(int)             {}

// ReadFrom, Flush and the deadlines are what handlers ask for.
func (*deafWriter) ReadFrom(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) }
func (*deafWriter) Flush()                              {}
func (*deafWriter) SetReadDeadline(time.Time) error     { return nil }
func (*deafWriter) SetWriteDeadline(time.Time) error    { return nil }
