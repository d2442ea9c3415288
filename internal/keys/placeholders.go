package keys

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
)

const useClientIP = "write {client_ip} (in JSON {http.vars.client_ip}), which is the client's address"

const (
	differs   = "it differs for each request, so nothing would be limited; " + useClientIP
	noSuch    = "Caddy has no such placeholder; "
	wholeBody = "the whole of a body is never one client's; write {form.<field>} or {json.<path>} for a part of it"
)

// senselessKeys are placeholders that are often tried as keys and cannot
// work, and what to write instead.
var senselessKeys = map[string]string{
	"http.request.remote":      "it holds the port, so that each connection would have a limit of its own; " + useClientIP,
	"http.request.remote.port": "each connection would have a limit of its own; " + useClientIP,
	"http.request.uuid":        differs,
	"http.request.duration":    differs,
	"http.request.duration_ms": differs,
	"http.vars.start_time":     differs,
	"http.vars.uuid":           differs,
	"http.vars.trace_id":       differs,
	"http.vars.span_id":        differs,
	"http.vars.trusted_proxy":  "it is only true or false; " + useClientIP,
	"http.error":               differs,
	"http.error.id":            differs,
	"http.error.trace":         differs,
	"http.time_until_shutdown": differs,
	"http.shutting_down":       "it is only true or false; " + useClientIP,
	"http.request.hostport":    "the client chooses the port in it, so that each one would have a limit of its own; write {host} (in JSON {http.request.host})",
	"http.request.body":        wholeBody,
	"http.request.body_base64": wholeBody,
	"http.request.client_ip":   noSuch + useClientIP,
	"http.request.remote_ip":   noSuch + useClientIP,
	"http.request.remote_host": noSuch + useClientIP,
	"http.request.remote_addr": noSuch + useClientIP,
	"http.request.ip":          noSuch + useClientIP,
	"http.client_ip":           noSuch + useClientIP,
	"remote_ip":                noSuch + useClientIP,
	"remote_addr":              noSuch + useClientIP,
	"ip":                       noSuch + useClientIP,
}

// addressHeaders are request headers that name the client's address, if the
// sender can be trusted. In a key they let anyone choose a fresh limit.
var addressHeaders = []string{
	"x-forwarded-for", "forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "cf-connecting-ipv6",
	"cf-pseudo-ipv4", "fastly-client-ip", "fly-client-ip", "x-cluster-client-ip", "x-original-forwarded-for", "x-forwarded",
	"forwarded-for", "x-appengine-user-ip", "x-azure-clientip", "x-azure-socketip", "cloudfront-viewer-address",
	"x-envoy-external-address", "x-nf-client-connection-ip", "x-vercel-forwarded-for",
}

// shorthands are the short names that a Caddyfile has for placeholders. Where
// one arrives here it was written in JSON, or has characters that Caddy does
// not expect in it.
var shorthands = map[string]string{
	"host": "http.request.host", "hostport": "http.request.hostport", "port": "http.request.port",
	"orig_method": "http.request.orig_method", "orig_uri": "http.request.orig_uri", "orig_path": "http.request.orig_uri.path",
	"orig_dir": "http.request.orig_uri.path.dir", "orig_file": "http.request.orig_uri.path.file", "orig_query": "http.request.orig_uri.query",
	"method": "http.request.method", "uri": "http.request.uri", "path": "http.request.uri.path", "dir": "http.request.uri.path.dir",
	"file": "http.request.uri.path.file", "query": "http.request.uri.query", "remote": "http.request.remote",
	"remote_host": placeholderPeer, "remote_port": "http.request.remote.port", "scheme": "http.request.scheme", "uuid": "http.request.uuid",
	"tls_cipher": "http.request.tls.cipher_suite", "tls_version": "http.request.tls.version",
	"tls_client_fingerprint": "http.request.tls.client.fingerprint", "tls_client_issuer": "http.request.tls.client.issuer",
	"tls_client_serial": "http.request.tls.client.serial", "tls_client_subject": "http.request.tls.client.subject",
	"upstream_hostport": "http.reverse_proxy.upstream.hostport", "client_ip": ClientPlaceholder,
}

// shortFamilies are the same for names that go on after a dot.
var shortFamilies = map[string]string{
	"header": "http.request.header", "cookie": "http.request.cookie", "labels": "http.request.host.labels", "path": "http.request.uri.path",
	"query": "http.request.uri.query", "re": "http.regexp", "vars": "http.vars", "rp": "http.reverse_proxy", "resp": "http.intercept",
	"err": "http.error", "file_match": "http.matchers.file",
}

// families are what the names of Caddy's placeholders begin with, and
// httpFamilies what follows after "http.".
var (
	families     = []string{"http", "system", "time", "env", "file"}
	httpFamilies = []string{
		"request", "vars", "auth", "error", "regexp", "reverse_proxy", "intercept", "matchers", "url_pattern", "response", "distributed_ratelimit",
	}
)

// ofCaddy reports whether the name belongs to a family of Caddy's: without a
// value it is missing, as {http.auth.user.id} is where nobody has logged in,
// but it is no mistake.
func ofCaddy(name string) bool {
	family, rest, _ := strings.Cut(name, ".")
	if family == "http" {
		family, _, _ = strings.Cut(rest, ".")
		return slices.Contains(httpFamilies, family)
	}
	return rest != "" && slices.Contains(families, family)
}

// checkPlaceholder rejects what certainly is a mistake in a key.
func checkPlaceholder(name string) error {
	if why, ok := senselessKeys[name]; ok {
		return fmt.Errorf("{%s} cannot tell clients apart: %s", name, why)
	}
	if family, _, dotted := strings.Cut(name, "."); dotted && family == "time" {
		return fmt.Errorf("{%s} changes with time, so nothing would be limited; remove it: the window is what forgets", name)
	}
	if rest, ok := strings.CutPrefix(name, "http.reverse_proxy."); ok && (strings.Contains(rest, "duration") || strings.Contains(rest, "latency")) {
		return fmt.Errorf("{%s} cannot tell clients apart: %s", name, differs)
	}
	if header, ok := strings.CutPrefix(name, HeaderPrefix); ok && slices.Contains(addressHeaders, strings.ToLower(header)) {
		return fmt.Errorf("{%s} is written by the client, so that anyone could choose a fresh limit; %s, "+
			"and name the header in client_ip_headers and the proxies that set it in trusted_proxies", name, useClientIP)
	}
	return checkExists(name)
}

// checkBraces rejects a key that is the name of a placeholder without its braces: it
// would be the same text, and so one limit, for everybody. A word such as host or path
// may be meant as one.
func checkBraces(key string) error {
	if strings.ContainsAny(key, "{} ") {
		return nil
	}
	short, long := key, ""
	switch family, rest, dotted := strings.Cut(key, "."); {
	case key == "ip", key == "remote_ip", key == "remote_addr", key == "client_ip":
		short, long = "client_ip", ClientPlaceholder
	case key == "remote_host":
		long = placeholderPeer
	case dotted && rest != "" && (family == "form" || family == "json" || family == "http" && ofCaddy(key)):
		long = key
	case dotted && rest != "" && (family == "header" || family == "cookie" || family == "query" || family == "vars"):
		long = shortFamilies[family] + "." + rest
	default:
		return nil
	}
	return fmt.Errorf("key %q has no braces, so that all clients would share one limit; write {%s} (in JSON {%s})", key, short, long)
}

// checkValuePlaceholder rejects what certainly is a mistake in another value that
// is read from a request.
func checkValuePlaceholder(name string) error {
	if why, ok := senselessKeys[name]; ok {
		switch {
		case why == wholeBody:
			return fmt.Errorf("{%s} would hold all of the body in memory; write {form.<field>} or {json.<path>} for a part of it", name)
		case strings.HasPrefix(why, noSuch):
			return noPlaceholder(name, "")
		}
	}
	if long, ok := shorthands[name]; ok {
		return shortForm(name, long)
	}
	if name != "" && !strings.Contains(name, ".") {
		return nil // of the directive map, where {cost} is a good name although {host} is near
	}
	return checkExists(name)
}

// checkExists rejects what Caddy does not have. Such a name may come from a plugin,
// and one without a dot from the directive map: it is a mistake only if it is nearly
// a name of Caddy's own.
func checkExists(name string) error {
	if name == "" {
		return fmt.Errorf("{} names no placeholder; write \\{ for a literal brace")
	}
	if body.IsField(name) {
		_, err := body.ParseField(name)
		return err
	}
	family, rest, dotted := strings.Cut(name, ".")
	switch {
	case !dotted:
		return checkShorthand(name)
	case family == "time" || family == "system":
		if _, known := caddy.NewReplacer().Get(name); !known {
			return noPlaceholder(name, "")
		}
		return nil
	case family == "http":
		return checkHTTPPlaceholder(name, rest)
	case slices.Contains(families, family):
		return nil
	}
	if long, ok := shortFamilies[family]; ok {
		return fmt.Errorf("{%s} is a short form that Caddyfiles have for letters, digits, - and _ only; write {%s.%s}", name, long, rest)
	}
	if near := nearest(family, append(sortedKeys(shortFamilies), families...)); near != "" {
		return noPlaceholder(name, near+"."+rest)
	}
	return nil
}

func checkShorthand(name string) error {
	if long, ok := shorthands[name]; ok {
		return shortForm(name, long)
	}
	near := nearest(name, sortedKeys(shorthands))
	if near == "" {
		return nil
	}
	return noPlaceholder(name, near+"} (in JSON {"+shorthands[near])
}

func shortForm(name, long string) error {
	return fmt.Errorf("{%s} is a short form that exists in Caddyfiles only; write {%s}", name, long)
}

func checkHTTPPlaceholder(name, rest string) error {
	family, rest, _ := strings.Cut(rest, ".")
	switch {
	case family == "response":
		return fmt.Errorf("{%s} is not known before the response; "+useClientIP, name)
	case slices.Contains(httpFamilies, family) && family != "request":
		return nil
	case family != "request":
		if near := nearest(family, httpFamilies); near != "" {
			return noPlaceholder(name, "http."+near+"."+rest)
		}
		return nil
	}
	if header, ok := strings.CutPrefix(rest, "header."); ok && strings.EqualFold(header, "host") {
		return fmt.Errorf("{%s} is always empty in Caddy; write {host} (in JSON {http.request.host})", name)
	}
	if strings.HasSuffix(rest, ".") {
		return fmt.Errorf("{%s} ends in a dot; write the name that is to follow", name)
	}
	if field, ok := strings.CutPrefix(rest, "form."); ok {
		return fmt.Errorf("{%s} is no placeholder; write {form.%s} for the field of a form", name, field)
	}
	if field, ok := strings.CutPrefix(rest, "json."); ok {
		return fmt.Errorf("{%s} is no placeholder; write {json.%s} for a place in a JSON body", name, field)
	}
	if !isOfRequest(name) {
		return noPlaceholder(name, "")
	}
	return nil
}

// noPlaceholder is the error for a name that Caddy does not have; meant is the
// name that was probably meant, or empty.
func noPlaceholder(name, meant string) error {
	if meant != "" {
		return fmt.Errorf("{%s} is no placeholder of Caddy; did you mean {%s}? A placeholder that the directive map or a plugin sets needs a name "+
			"that is less like it", name, meant)
	}
	return fmt.Errorf("{%s} is no placeholder of Caddy; it would be empty in every request. See https://caddyserver.com/docs/conventions#placeholders", name)
}

// isOfRequest asks Caddy whether it has a placeholder below http.request.
func isOfRequest(name string) bool {
	// Some are read from the listener's address, without a look whether there is one.
	ctx := context.WithValue(context.Background(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{}))
	r := (&http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Header: make(http.Header), RemoteAddr: "192.0.2.1:1"}).WithContext(ctx)
	repl := caddy.NewReplacer()
	caddyhttp.PrepareRequest(r, repl, nil, nil)
	_, known := repl.Get(name)
	return known
}

// nearest returns the name among known that differs from name by a slip of
// the pen: one letter, or two in a longer name. Very short names have too
// many neighbours.
func nearest(name string, known []string) string {
	for most := 1; most <= 2; most++ {
		for _, k := range known {
			shorter := min(len(name), len(k))
			if shorter >= 4 && (most == 1 || shorter > 5) && slips(name, k) <= most {
				return k
			}
		}
	}
	return ""
}

// slips counts the letters that were left out, added, changed or swapped with
// their neighbour to make b from a.
func slips(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			changed := 1
			if a[i-1] == b[j-1] {
				changed = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+changed)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
