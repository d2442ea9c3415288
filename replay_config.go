package distributedratelimit

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
)

// This file makes of a configuration what replay needs of it: the servers' routes with
// their matchers, and the limits. What would start something, ask a server or read
// certificates is left out, a store in particular.

// replayConfig is a configuration that was reduced to that.
type replayConfig struct {
	config map[string]any
	// passing are handlers of which nobody knows whether they respond; requests are
	// taken to pass them.
	passing map[string]bool
	// errorRoutes: limits in error routes, which are not replayed.
	errorRoutes bool
	// redacted are, for each zone by its name, the headers that logs redact and its
	// matchers look at.
	redacted map[string][]string
	// reads is what the routes and the limits look at.
	reads replayReads
}

// replayReads is what of a request the configuration looks at, so that the rest of the
// log need not be read.
type replayReads struct {
	headers    map[string]bool // canonical names
	allHeaders bool
	original   bool // the request before rewrites, or what matchers leave behind
	user       bool // who is logged in
	hosts      map[string]bool
}

// replayMark is the name of a variable that stands for a handler that was left out. Its
// value says what that does.
const replayMark = "distributed_ratelimit.replay"

const (
	markResponds     = "responds"
	markAuthenticate = "authenticates"
)

// readReplayConfig reads a configuration, with an adapter if it is not JSON.
func readReplayConfig(file, adapter string) (*replayConfig, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("there is no configuration %s; name yours with --config", file)
		}
		return nil, err
	}
	base := filepath.Base(file)
	if adapter == "" && (strings.HasPrefix(base, "Caddyfile") || strings.HasSuffix(base, ".caddyfile")) && filepath.Ext(base) != ".json" {
		adapter = "caddyfile"
	}
	if adapter != "" {
		a := caddyconfig.GetAdapter(adapter)
		if a == nil {
			return nil, fmt.Errorf("there is no config adapter %q; see caddy list-modules", adapter)
		}
		if text, _, err = a.Adapt(text, map[string]any{"filename": file}); err != nil {
			return nil, fmt.Errorf("%s: %v", file, err)
		}
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("%s is no JSON: %v; for a Caddyfile of another name write --adapter caddyfile", file, err)
	}
	return reduceConfig(config)
}

// reduceConfig leaves out what replay does not need.
func reduceConfig(config map[string]any) (*replayConfig, error) {
	c := &replayConfig{passing: make(map[string]bool), redacted: make(map[string][]string), reads: newReplayReads()}
	apps, _ := config["apps"].(map[string]any)
	http, _ := apps["http"].(map[string]any)
	servers, _ := http["servers"].(map[string]any)
	if len(servers) == 0 {
		return nil, errors.New("the configuration has no HTTP server, and so no limits; name another one with --config")
	}
	reduced := make(map[string]any)
	for name, s := range servers {
		if server, ok := s.(map[string]any); ok {
			reduced[name] = c.server(server)
		}
	}
	kept := map[string]any{"servers": reduced}
	for _, field := range []string{"http_port", "https_port"} {
		if v, ok := http[field]; ok {
			kept[field] = v
		}
	}
	newApps := map[string]any{"http": kept}
	if app, ok := apps[appID].(map[string]any); ok {
		delete(app, "store")
		newApps[appID] = app
		c.reads.look(app)
	}
	c.config = map[string]any{
		"admin":   map[string]any{"disabled": true, "config": map[string]any{"persist": false}},
		"logging": map[string]any{"logs": map[string]any{"default": map[string]any{"level": "ERROR"}}},
		"apps":    newApps,
	}
	return c, nil
}

func (c *replayConfig) server(server map[string]any) map[string]any {
	kept := map[string]any{"automatic_https": map[string]any{"disable": true}}
	for _, field := range []string{"listen", "trusted_proxies", "client_ip_headers", "trusted_proxies_strict", "trusted_proxies_unix"} {
		if v, ok := server[field]; ok {
			kept[field] = v
		}
	}
	if names, ok := server["client_ip_headers"].([]any); ok {
		for _, name := range names {
			c.reads.header(name)
		}
	}
	c.errors(server["errors"])
	kept["routes"] = c.routes(server["routes"])
	if named, ok := server["named_routes"].(map[string]any); ok {
		for name, route := range named {
			if r, ok := route.(map[string]any); ok {
				named[name] = c.route(r)
			}
		}
		kept["named_routes"] = named
	}
	return kept
}

func (c *replayConfig) errors(routes any) {
	text, _ := json.Marshal(routes)
	c.errorRoutes = c.errorRoutes || strings.Contains(string(text), `"handler":"distributed_ratelimit"`)
}

func (c *replayConfig) routes(routes any) []any {
	list, _ := routes.([]any)
	for i, r := range list {
		if route, ok := r.(map[string]any); ok {
			list[i] = c.route(route)
		}
	}
	return list
}

func (c *replayConfig) route(route map[string]any) map[string]any {
	if sets, ok := route["match"].([]any); ok {
		for _, set := range sets {
			c.reads.matchers(set)
		}
	}
	handlers, _ := route["handle"].([]any)
	kept := make([]any, 0, len(handlers))
	for _, h := range handlers {
		if handler, ok := h.(map[string]any); ok {
			if handler = c.handler(handler); handler != nil {
				kept = append(kept, handler)
			}
		}
	}
	route["handle"] = kept
	return route
}

// handler returns what stands for a handler, nil for one that passes all requests on and
// changes nothing that limits look at.
func (c *replayConfig) handler(h map[string]any) map[string]any {
	name, _ := h["handler"].(string)
	mark := func(does string) map[string]any { return map[string]any{"handler": "vars", replayMark: does} }
	switch name {
	case "distributed_ratelimit":
		delete(h, "store")
		c.limits(h)
		return h
	case "subroute":
		c.errors(h["errors"])
		return map[string]any{"handler": name, "routes": c.routes(h["routes"])}
	case "vars", "invoke":
		c.reads.look(h)
		return h
	case "rewrite", "map", "headers":
		if name == "headers" {
			delete(h, "response")
			if h["request"] == nil {
				return nil
			}
			c.reads.allHeaders = true
		}
		c.reads.original = true
		c.reads.look(h)
		return h
	case "authentication":
		return mark(markAuthenticate)
	case "file_server":
		if pass, _ := h["pass_thru"].(bool); pass {
			return nil
		}
		return mark(markResponds)
	case "reverse_proxy":
		if routes, ok := h["handle_response"].([]any); ok && len(routes) > 0 {
			return nil // forward_auth passes requests on
		}
		return mark(markResponds)
	case "static_response", "error", "acme_server", "metrics":
		return mark(markResponds)
	case "encode", "push", "request_body", "templates", "tracing", "intercept", "log_append", "timeouts", "copy_response", "copy_response_headers":
		return nil
	}
	c.passing[name] = true
	return nil
}

// limits takes in what a handler with limits looks at.
func (c *replayConfig) limits(h map[string]any) {
	c.reads.look(h)
	c.reads.sets(h["exempt"])
	zones, _ := h["zones"].([]any)
	for _, z := range zones {
		zone, ok := z.(map[string]any)
		if !ok {
			continue
		}
		own := newReplayReads()
		for _, sets := range []any{zone["match"], zone["exempt"], h["exempt"]} {
			c.reads.sets(sets)
			own.sets(sets)
		}
		name, _ := zone["name"].(string)
		c.redacted[name] = nil
		for _, header := range credentialHeaders {
			if own.headers[header] {
				c.redacted[name] = append(c.redacted[name], header)
			}
		}
	}
}

func newReplayReads() replayReads {
	return replayReads{headers: make(map[string]bool), hosts: make(map[string]bool)}
}

// anyHeader reports whether headers are of interest at all.
func (r *replayReads) anyHeader() bool { return r.allHeaders || len(r.headers) > 0 }

func (r *replayReads) sets(sets any) {
	list, _ := sets.([]any)
	for _, set := range list {
		r.matchers(set)
	}
}

// plainMatchers look at nothing but the request as it is, and leave nothing behind.
var plainMatchers = []string{"host", "path", "method", "header", "query", "remote_ip", "client_ip", "protocol", "tls", "not", "vars", "header_regexp", "path_regexp", "vars_regexp"}

// matchers takes in what a set of matchers looks at.
func (r *replayReads) matchers(set any) {
	matchers, _ := set.(map[string]any)
	for name, m := range matchers {
		switch name {
		case "host":
			if hosts, ok := m.([]any); ok {
				for _, h := range hosts {
					if host, ok := h.(string); ok && !strings.ContainsAny(host, "*{") {
						r.hosts[host] = true
					}
				}
			}
		case "header", "header_regexp":
			if fields, ok := m.(map[string]any); ok {
				for field := range fields {
					r.header(field)
				}
			}
		case "protocol":
			r.header("Content-Type") // of gRPC
		case "not":
			r.sets(m)
		}
		if strings.HasSuffix(name, "_regexp") || !slices.Contains(plainMatchers, name) {
			r.original = true
			r.allHeaders = r.allHeaders || name == "expression" || !slices.Contains(plainMatchers, name)
		}
		r.look(m)
	}
}

func (r *replayReads) header(name any) {
	if text, ok := name.(string); ok {
		r.headers[textproto.CanonicalMIMEHeaderKey(text)] = true
	}
}

// look takes in the placeholders in a part of the configuration.
func (r *replayReads) look(part any) {
	switch part := part.(type) {
	case map[string]any:
		for name, p := range part {
			r.look(name)
			r.look(p)
		}
	case []any:
		for _, p := range part {
			r.look(p)
		}
	case string:
		r.text(part)
	}
}

func (r *replayReads) text(text string) {
	for rest := text; ; {
		open := strings.IndexByte(rest, '{')
		if open < 0 {
			return
		}
		rest = rest[open+1:]
		name, _, _ := strings.Cut(rest, "}")
		switch {
		case strings.HasPrefix(name, keys.HeaderPrefix):
			r.header(strings.TrimPrefix(name, keys.HeaderPrefix))
		case strings.HasPrefix(name, keys.CookiePrefix):
			r.header("Cookie")
		case strings.HasPrefix(name, "http.auth."):
			r.user = true
		case strings.HasPrefix(name, "http.regexp."), strings.HasPrefix(name, "http.request.orig_"), strings.HasPrefix(name, "http.matchers."):
			r.original = true
		}
	}
}

// load provisions the configuration, without starting anything. cancel ends it.
func (c *replayConfig) load() (app *caddyhttp.App, cancel func(), err error) {
	text, err := json.Marshal(c.config)
	if err != nil {
		return nil, nil, err
	}
	var config *caddy.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, nil, err
	}
	ctx, err := caddy.ProvisionContext(config)
	if err != nil {
		return nil, nil, fmt.Errorf("the configuration is not valid: %v; see caddy validate", err)
	}
	loaded, err := ctx.App("http")
	if err != nil {
		return nil, nil, err
	}
	app, ok := loaded.(*caddyhttp.App)
	if !ok {
		return nil, nil, fmt.Errorf("the app http is %T, which is not Caddy's", loaded)
	}
	return app, func() {}, nil
}

// passingNames are the handlers of which nobody knows what they do.
func (c *replayConfig) passingNames() []string {
	var names []string
	for name := range c.passing {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
