package distributedratelimit

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// keyTemplate is a parsed key: literals and placeholders in turn.
type keyTemplate struct {
	parts []keyPart
	// address: an address is part of the key, so that the connection's
	// source must have been verified.
	address bool
}

type keyPart struct {
	kind partKind
	text string // the literal, or the placeholder's name
}

type partKind uint8

const (
	partLiteral partKind = iota
	partClient           // the client's address, masked
	partPeer             // the peer's address, masked
	partPlaceholder
)

// addressKey is the default key.
var addressKey = keyTemplate{parts: []keyPart{{kind: partClient}}, address: true}

func (t *keyTemplate) dynamic() bool {
	return slices.ContainsFunc(t.parts, func(p keyPart) bool { return p.kind != partLiteral })
}

// The placeholders that the handler answers itself, because it knows better
// than the server who the client is, and masks addresses.
const (
	placeholderClientVar = "http.vars.client_ip"
	placeholderPeer      = "http.request.remote.host"
)

// parseKey parses the key of a zone, and rejects keys that would limit
// nothing or everybody at once by mistake. The empty key is the default one.
func parseKey(key string) (keyTemplate, error) {
	if key == "" {
		return addressKey, nil
	}
	var t keyTemplate
	rest := key
	for rest != "" {
		open := strings.IndexByte(rest, '{')
		if open < 0 {
			t.literal(rest)
			break
		}
		if open > 0 && rest[open-1] == '\\' {
			t.literal(rest[:open-1] + "{")
			rest = rest[open+1:]
			continue
		}
		t.literal(rest[:open])
		rest = rest[open+1:]
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return t, fmt.Errorf("key %q has a brace that is never closed; write \\{ for a literal one", key)
		}
		name := rest[:end]
		rest = rest[end+1:]
		if err := checkPlaceholder(name); err != nil {
			return t, fmt.Errorf("key %q: %w", key, err)
		}
		part := keyPart{kind: partPlaceholder, text: name}
		switch name {
		case placeholderClientVar, placeholderPrefix + "client_ip":
			part, t.address = keyPart{kind: partClient}, true
		case placeholderPeer:
			part, t.address = keyPart{kind: partPeer}, true
		default:
			// The peer's address in Caddy's own masked form.
			t.address = t.address || strings.HasPrefix(name, placeholderPeer+"/")
		}
		t.parts = append(t.parts, part)
	}
	return t, nil
}

// sameKey reports whether two keys that parse tell clients apart alike, such
// as the default and {http.vars.client_ip}.
func sameKey(a, b string) bool {
	x, errA := parseKey(a)
	y, errB := parseKey(b)
	return errA == nil && errB == nil && slices.Equal(x.parts, y.parts)
}

// keyText is a key as messages name it.
func keyText(key string) string {
	if key == "" {
		return "the client's address"
	}
	return strconv.Quote(key)
}

func (t *keyTemplate) literal(text string) {
	if text == "" {
		return
	}
	if n := len(t.parts); n > 0 && t.parts[n-1].kind == partLiteral {
		t.parts[n-1].text += text
		return
	}
	t.parts = append(t.parts, keyPart{kind: partLiteral, text: text})
}

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

// keyBuilder builds the keys of one request.
type keyBuilder struct {
	repl       *caddy.Replacer
	remoteAddr string // of the peer
	buf        []byte
}

// The first byte of a key tells its form, so that no key of one form can
// equal one of another.
const (
	formAddress  = 'a' // the client's address alone
	formTemplate = 'k' // each part preceded by its length, so that a|bc is not ab|c
	formHash     = 'h' // the first half of the SHA-256 of what is too long
)

// build returns the key of a client, valid until the next call, and whether
// it came out empty: none of its placeholders had a value. What is the same
// in all keys, its literals, does not tell clients apart.
func (b *keyBuilder) build(t *keyTemplate, client ipident.Result, v4, v6 int) (key []byte, empty bool) {
	if len(t.parts) == 1 && t.parts[0].kind == partClient {
		b.buf = client.AppendKey(append(b.buf[:0], formAddress), v4, v6)
		return b.buf, false
	}
	b.buf = append(b.buf[:0], formTemplate)
	empty = t.dynamic()
	for _, part := range t.parts {
		start := len(b.buf)
		b.buf = b.appendPart(b.buf, part, client, v4, v6)
		n := len(b.buf) - start
		if part.kind != partLiteral && n > 0 {
			empty = false
		}
		var prefix [binary.MaxVarintLen64]byte
		b.buf = slices.Insert(b.buf, start, prefix[:binary.PutUvarint(prefix[:], uint64(n))]...)
	}
	if len(b.buf) > store.MaxClientBytes {
		sum := sha256.Sum256(b.buf)
		b.buf = append(append(b.buf[:0], formHash), sum[:16]...)
	}
	return b.buf, empty
}

func (b *keyBuilder) appendPart(dst []byte, part keyPart, client ipident.Result, v4, v6 int) []byte {
	switch part.kind {
	case partLiteral:
		return append(dst, part.text...)
	case partClient:
		return client.AppendKey(dst, v4, v6)
	case partPeer:
		return ipident.Peer(b.remoteAddr).AppendKey(dst, v4, v6)
	default:
		// A placeholder that is not known counts as empty.
		value, _ := b.repl.GetString(part.text)
		return append(dst, value...)
	}
}

// readable returns the key as a person would write it, for logs.
func (b *keyBuilder) readable(t *keyTemplate, client ipident.Result, v4, v6 int) string {
	var out []byte
	for _, part := range t.parts {
		out = b.appendPart(out, part, client, v4, v6)
	}
	return string(out)
}
