package caddytest

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// defined puts definitions of matchers into the site of a Caddyfile.
func defined(file string, definitions ...string) string {
	return strings.Replace(file, ":80 {", ":80 {\n"+strings.Join(definitions, "\n"), 1)
}

// What is wrong in a matcher is only found when it is set up: the parser does
// that with Caddy's own, so that the error has a line.
func TestCaddyfileMistakesOfMatchers(t *testing.T) {
	for _, m := range []mistake{
		{"path_regexp", zone("match path_regexp ^/(" + here), []string{"path_regexp", "missing closing )", "re2"}},
		{"path_regexp in a block", zone("match {", "method GET", "path_regexp name ^/["+here, "}"), []string{"path_regexp", "missing closing ]"}},
		{"name of path_regexp", zone(`match path_regexp "--" ^/` + here), []string{"path_regexp", "invalid regexp name"}},
		{"header_regexp", zone("match {", "header_regexp X a*", "header_regexp Y a**"+here, "}"), []string{"header_regexp", "invalid nested repetition"}},
		{"vars_regexp", zone("match vars_regexp {http.vars.x} (?<" + here), []string{"vars_regexp", "invalid"}},
		{"client_ip", zone("exempt client_ip 10.0.0.0/33" + here), []string{"client_ip", "10.0.0.0/33", "write addresses, ranges such as 10.0.0.0/8"}},
		{"client_ip of several lines", zone("exempt {", "client_ip 10.0.0.0/8", "client_ip 10.0.0.300"+here, "path /x", "}"), []string{"client_ip", "10.0.0.300"}},
		{"client_ip beside a placeholder", zone("exempt client_ip {env.DRL_NOT_SET} 10.0.0.256" + here), []string{"10.0.0.256"}},
		{"client_ip range of two addresses", zone("exempt client_ip 10.0.0.1-10.0.0.9" + here), []string{"10.0.0.1-10.0.0.9"}},
		{"remote_ip", zone("match remote_ip localhost" + here), []string{"remote_ip", "localhost", "private_ranges"}},
		{"remote_ip in the short form", site("exempt remote_ip 2001:db8::/129" + here), []string{"remote_ip", "2001:db8::/129"}},
		{"expression", zone("match expression {path}.startsWith(" + here), []string{"expression", "Syntax error"}},
		{"expression in quotes", zone("match {", "method GET", "`{path} == `"+here, "}"), []string{"expression", "Syntax error"}},
		{"expression of a block", zone("match {", "method GET", "expression `nothing({path})`"+here, "}"), []string{"expression", "undeclared reference"}},
		{"expression that is no yes or no", zone("match expression `1 + 1`" + here), []string{"expression", "bool"}},
		{"range in an expression", zone("exempt expression `client_ip('10.0.0.0/99')`" + here), []string{"10.0.0.0/99"}},
		{"host twice", zone("match host a.test b.test A.test" + here), []string{"host", "repeated", "A.test"}},
		{"host twice in two lines", zone("match {"+here, "host a.test", "host a.test", "}"), []string{"match: host", "repeated"}},
		{"host of no name", zone("match host" + here), []string{"host", "cannot be null"}},
		{"file", zone("match file {"+here, "try_policy best", "}"), []string{"file", "unknown try policy best"}},
		{"url_pattern", zone("match url_pattern /:" + here), []string{"url_pattern", "unable to parse"}},
		{"not", zone("match not client_ip 10.0.0.0/33" + here), []string{"client_ip", "10.0.0.0/33"}},
		{"not of a block", zone("match {", "not {", "path /x", "path_regexp )"+here, "}", "}"), []string{"path_regexp", "unexpected )"}},
		{"not of not", zone("match {", "not {", "path /x", "not remote_ip x"+here, "}", "}"), []string{"remote_ip", "'x'"}},
		{"not of no matcher", zone("match {", "not {", "uri /x"+here, "}", "method GET", "}"), []string{`there is no matcher "uri"`}},
		{"not of a name", zone("match not @a" + here), []string{`there is no matcher "@a"`}},
		{"named", defined(zone("match @bad"+here), "@bad path_regexp ("), []string{"@bad is a wrong matcher", "path_regexp", "missing closing )"}},
		{"named, of several", defined(zone("exempt @bad"+here), "@bad {", "client_ip 10.0.0.0/8", "not remote_ip 10.0.0.0/40", "}"), []string{"@bad", "not: remote_ip", "10.0.0.0/40"}},
		{"named, in quotes", defined(zone("exempt @bad"+here), "@bad `{path} ==`"), []string{"@bad", "expression", "Syntax error"}},
	} {
		t.Run(m.name, m.check)
	}
}

// A mistake must be certain: the Caddyfile may be adapted on another machine than
// the server's.
func TestCaddyfileTakesMatchersThatTheServerMayKnow(t *testing.T) {
	for name, file := range map[string]string{
		"range of the environment":             zone("exempt client_ip {env.DRL_NOT_SET}"),
		"range of a file":                      zone("exempt remote_ip 10.0.0.1 {file./nowhere/office}"),
		"range in not":                         zone("match not client_ip {env.DRL_NOT_SET}"),
		"range in a named matcher":             defined(zone("match @a"), "@a client_ip {env.DRL_NOT_SET}/24"),
		"range of the environment, expression": zone("match expression `client_ip('\\{env.DRL_NOT_SET}')`"),
		"needs an app":                         zone("match guarded"),
		"needs an app, in a block":             zone("match {", "path /x", "not guarded", "}"),
		"needs an app, named":                  defined(zone("exempt @a"), "@a guarded"),
		"files that are not there":             zone("match file {", "root /nowhere", "try_files x", "}"),
		"host of the environment":              zone("match host {env.A} {env.B}"),
		"all that is right": zone("match {", "host a.test *.b.test", "path /x/*", "path_regexp r ^/x(.*)$", "method GET POST", "header X-A *",
			"header_regexp X-B b+", "query a=b", "protocol https", "tls", "vars x y", "vars_regexp v {http.vars.x} y+",
			"client_ip private_ranges 203.0.113.7 2001:db8::/32", "remote_ip fe80::1%eth0", "url_pattern /books/:id",
			"expression `{method} == 'GET' && path('/x*') && file()`", "file x", "not path /y", "}"),
	} {
		if _, err := adapt(file); err != nil {
			t.Errorf("%s: got error %v, want none:\n%s", name, err, file)
		}
	}
}

func init() {
	caddy.RegisterModule(new(guardedMatcher))
	caddy.RegisterModule(new(guardedSource))
}

// guardedMatcher and guardedSource are like those of a plugin that cannot be set
// up everywhere. The parser takes them; provisioning fails.
type guardedMatcher struct{}

func (*guardedMatcher) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.matchers.guarded", New: func() caddy.Module { return new(guardedMatcher) }}
}

func (*guardedMatcher) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

func (*guardedMatcher) Provision(caddy.Context) error {
	return errors.New("the matcher finds nothing of what it needs")
}

func (*guardedMatcher) MatchWithError(*http.Request) (bool, error) { return true, nil }

type guardedSource struct{}

func (*guardedSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.ip_sources.guarded", New: func() caddy.Module { return new(guardedSource) }}
}

func (*guardedSource) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

func (*guardedSource) Provision(caddy.Context) error {
	return errors.New("the source finds nothing of what it needs")
}

func (*guardedSource) GetIPRanges(*http.Request) []netip.Prefix { return nil }
