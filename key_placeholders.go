package distributedratelimit

import (
	"fmt"
	"slices"
	"strings"
)

const useClientIP = "write {client_ip} (in JSON {http.vars.client_ip}), which is the client's address"

// senselessKeys are placeholders that are often tried as keys and cannot
// work, and what to write instead.
var senselessKeys = map[string]string{
	"http.request.remote":      "it holds the port, so that each connection would have a limit of its own; " + useClientIP,
	"http.request.remote.port": "each connection would have a limit of its own; " + useClientIP,
	"http.request.uuid":        "it differs for each request, so nothing would be limited; " + useClientIP,
	"http.request.duration":    "it differs for each request, so nothing would be limited; " + useClientIP,
	"http.request.duration_ms": "it differs for each request, so nothing would be limited; " + useClientIP,
	"http.request.client_ip":   "Caddy has no such placeholder; " + useClientIP,
	"http.request.remote_ip":   "Caddy has no such placeholder; " + useClientIP,
	"http.request.remote_host": "Caddy has no such placeholder; " + useClientIP,
	"http.request.remote_addr": "Caddy has no such placeholder; " + useClientIP,
	"http.request.ip":          "Caddy has no such placeholder; " + useClientIP,
	"http.client_ip":           "Caddy has no such placeholder; " + useClientIP,
	"client_ip":                "this short form exists in Caddyfiles only; write {http.vars.client_ip}",
	"remote_host":              "this short form exists in Caddyfiles only; write {http.request.remote.host}",
	"remote_ip":                "Caddy has no such placeholder; " + useClientIP,
	"remote_addr":              "Caddy has no such placeholder; " + useClientIP,
	"remote":                   "it holds the port, so that each connection would have a limit of its own; " + useClientIP,
	"remote_port":              "each connection would have a limit of its own; " + useClientIP,
	"uuid":                     "it differs for each request, so nothing would be limited; " + useClientIP,
	"ip":                       "Caddy has no such placeholder; " + useClientIP,
}

// addressHeaders are request headers that name the client's address to
// whoever trusts the sender. As a key they let anyone choose one.
var addressHeaders = []string{
	"x-forwarded-for", "forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "cf-connecting-ipv6",
	"cf-pseudo-ipv4", "fastly-client-ip", "fly-client-ip", "x-cluster-client-ip", "x-original-forwarded-for", "x-forwarded",
	"forwarded-for", "x-appengine-user-ip", "x-azure-clientip", "x-azure-socketip", "cloudfront-viewer-address",
	"x-envoy-external-address", "x-nf-client-connection-ip", "x-vercel-forwarded-for",
}

// requestPlaceholders are what Caddy has below http.request: whole names, and
// prefixes of names where they end in a dot or a slash.
var requestPlaceholders = []string{
	"method", "scheme", "proto", "proto_name", "host", "host.labels.", "port", "hostport",
	"local", "local.host", "local.port", "remote.host", "remote.host/",
	"uri", "uri_escaped", "uri.path", "uri.path_escaped", "uri.path.", "uri.query", "uri.query_escaped", "uri.query.", "uri.prefixed_query",
	"uri.prefixed_query_escaped", "body", "body_base64", "orig_method", "orig_uri", "orig_uri.", "header.", "cookie.", "tls.",
}

// checkPlaceholder rejects what certainly is a mistake in a key.
func checkPlaceholder(name string) error {
	if why, ok := senselessKeys[name]; ok {
		return fmt.Errorf("{%s} cannot tell clients apart: %s", name, why)
	}
	if name == "" {
		return fmt.Errorf("{} names no placeholder; write \\{ for a literal brace")
	}
	if strings.HasPrefix(name, "time.") {
		return fmt.Errorf("{%s} changes with time, so nothing would be limited; remove it: the window is what forgets", name)
	}
	rest, ok := strings.CutPrefix(name, "http.request.")
	if !ok {
		return nil
	}
	if header, ok := strings.CutPrefix(rest, "header."); ok && slices.Contains(addressHeaders, strings.ToLower(header)) {
		return fmt.Errorf("{%s} is written by whoever sends the request, so anyone could choose a fresh limit; %s, "+
			"and name the header in client_ip_headers and the proxies that set it in trusted_proxies", name, useClientIP)
	}
	for _, known := range requestPlaceholders {
		prefix := known[len(known)-1] == '.' || known[len(known)-1] == '/'
		if rest == known || (prefix && strings.HasPrefix(rest, known)) {
			return nil
		}
	}
	return fmt.Errorf("{%s} is no placeholder of Caddy; every request would have an empty key. See https://caddyserver.com/docs/conventions#placeholders", name)
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
