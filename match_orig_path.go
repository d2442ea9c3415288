package distributedratelimit

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(MatchOrigPath{})
}

// MatchOrigPath matches requests by the path that the client asked for, whatever
// rewrite, uri, handle_path and try_files have made of it since. Apart from that it
// is the matcher path, with the same patterns: exact, or with * at the end, at the
// beginning or within.
//
// It is meant for handlers inside route, handle and handle_path, whose path may be
// another one already. A pattern that is to match the changed path never matches.
type MatchOrigPath []string

// CaddyModule returns the Caddy module information.
func (MatchOrigPath) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.matchers.orig_path",
		New: func() caddy.Module { return new(MatchOrigPath) },
	}
}

// UnmarshalCaddyfile parses: orig_path <patterns...>
func (m *MatchOrigPath) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	if err := (*caddyhttp.MatchPath)(m).UnmarshalCaddyfile(d); err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return d.Errf("%v", err)
	}
	return nil
}

// Provision sets up the patterns.
func (m MatchOrigPath) Provision(ctx caddy.Context) error {
	if err := m.check(); err != nil {
		return err
	}
	return caddyhttp.MatchPath(m).Provision(ctx)
}

// check rejects what no path matches, so that a limit would be none.
func (m MatchOrigPath) check() error {
	if len(m) == 0 {
		return fmt.Errorf("orig_path needs a pattern; write for example: orig_path /login")
	}
	for _, pattern := range m {
		if !strings.HasPrefix(pattern, "/") && !strings.HasPrefix(pattern, "*") && !strings.HasPrefix(pattern, "{") {
			return fmt.Errorf("orig_path %q never matches, as all paths begin with a slash; write /%s", pattern, pattern)
		}
	}
	return nil
}

// MatchWithError reports whether the original path matches.
func (m MatchOrigPath) MatchWithError(r *http.Request) (bool, error) {
	original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if ok && original.URL != nil && (original.URL.Path != r.URL.Path || original.URL.RawPath != r.URL.RawPath) {
		rewritten := r
		r = rewritten.WithContext(rewritten.Context())
		r.URL = &url.URL{Path: original.URL.Path, RawPath: original.URL.RawPath}
	}
	return caddyhttp.MatchPath(m).MatchWithError(r)
}

// Interface guards
var (
	_ caddy.Provisioner                 = MatchOrigPath{}
	_ caddyfile.Unmarshaler             = (*MatchOrigPath)(nil)
	_ caddyhttp.RequestMatcherWithError = MatchOrigPath{}
)
