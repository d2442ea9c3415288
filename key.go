package distributedratelimit

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// keyTemplate is a parsed key: literals and placeholders in turn.
type keyTemplate struct {
	text  string // as written
	parts []keyPart
	// address: an address is part of the key, and so must have been verified
	// by a handshake.
	address bool
	body    bool // some part stands in the request's body
	normal  normalization
}

type keyPart struct {
	kind  partKind
	text  string // the literal, or the name of the header, cookie or query field
	name  string // of the placeholder
	label int    // of the host, counted from the right
	field *body.Field
}

type partKind uint8

const (
	partLiteral partKind = iota
	partClient           // the client's address, masked
	partPeer             // the peer's address, masked
	partHost
	partHostLabel
	partServerName // of TLS
	partHeader
	partCredentials // a header with a scheme
	partCookie
	partQuery
	partBody        // a field of a form, or a place in a JSON document
	partPlaceholder // whatever else, which Caddy's replacer knows
)

// addressKey is the default key.
var addressKey = keyTemplate{parts: []keyPart{{kind: partClient}}, address: true}

func (t *keyTemplate) dynamic() bool {
	return slices.ContainsFunc(t.parts, func(p keyPart) bool { return p.kind != partLiteral })
}

// neverEmpty reports whether every request has a value for some part: the keys
// of addresses are never empty, see ipident.Result. A key that reads the body is
// empty if the body has nothing of it, whatever else it holds.
func (t *keyTemplate) neverEmpty() bool {
	return !t.body && slices.ContainsFunc(t.parts, func(p keyPart) bool { return p.kind == partClient || p.kind == partPeer })
}

// The placeholders that the handler fills in itself, because it knows better
// than the server who the client is, and masks addresses.
const (
	placeholderClientVar = "http.vars.client_ip"
	placeholderPeer      = "http.request.remote.host"
)

const (
	headerPrefix = "http.request.header."
	cookiePrefix = "http.request.cookie."
	queryPrefix  = "http.request.uri.query."
)

// parseKey parses the key of a zone, and rejects keys that would limit
// nothing or everybody at once by mistake. The empty key is the default one.
func parseKey(key string) (keyTemplate, error) {
	if key == "" {
		return addressKey, nil
	}
	if err := checkBraces(key); err != nil {
		return keyTemplate{text: key}, err
	}
	return parseTemplate("key", key, checkPlaceholder)
}

// parseTemplate parses text with placeholders, which are checked each. word is what
// errors call it.
func parseTemplate(word, text string, check func(placeholder string) error) (keyTemplate, error) {
	t := keyTemplate{text: text}
	rest := text
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
			return t, fmt.Errorf("%s %q has a brace that is never closed; write \\{ for a literal one", word, text)
		}
		name := rest[:end]
		rest = rest[end+1:]
		if err := check(name); err != nil {
			return t, fmt.Errorf("%s %q: %w", word, text, err)
		}
		part := partOf(name)
		t.address = t.address || part.address()
		t.body = t.body || part.kind == partBody
		t.parts = append(t.parts, part)
	}
	return t, nil
}

// partOf returns the part that a placeholder stands for, with its name in one
// spelling.
func partOf(name string) keyPart {
	switch name {
	case placeholderClientVar, placeholderPrefix + "client_ip":
		return keyPart{kind: partClient}
	case placeholderPeer:
		return keyPart{kind: partPeer}
	case "http.request.host":
		return keyPart{kind: partHost, name: name}
	}
	if label, ok := strings.CutPrefix(name, "http.request.host.labels."); ok {
		place, _ := strconv.Atoi(label)
		return keyPart{kind: partHostLabel, name: name, label: place}
	}
	if header, ok := strings.CutPrefix(name, headerPrefix); ok {
		header = textproto.CanonicalMIMEHeaderKey(header)
		kind := partHeader
		if header == "Authorization" || header == "Proxy-Authorization" {
			kind = partCredentials
		}
		return keyPart{kind: kind, text: header, name: headerPrefix + header}
	}
	if cookie, ok := strings.CutPrefix(name, cookiePrefix); ok {
		cookie = strings.ToLower(cookie)
		return keyPart{kind: partCookie, text: cookie, name: cookiePrefix + cookie}
	}
	if field, ok := strings.CutPrefix(name, queryPrefix); ok {
		return keyPart{kind: partQuery, text: field, name: name}
	}
	if field, err := body.ParseField(name); err == nil {
		return keyPart{kind: partBody, name: name, field: field}
	}
	if strings.EqualFold(name, "http.request.tls.server_name") {
		return keyPart{kind: partServerName, name: "http.request.tls.server_name"}
	}
	return keyPart{kind: partPlaceholder, name: name}
}

// address reports whether the part is an address, the peer's in Caddy's own
// masked form included.
func (p *keyPart) address() bool {
	return p.kind == partClient || p.kind == partPeer || strings.HasPrefix(p.name, placeholderPeer+"/")
}

// sameKey reports whether two keys that parse tell clients apart alike, such
// as the default and {http.vars.client_ip}.
func sameKey(a, b string) bool {
	x, errA := parseKey(a)
	y, errB := parseKey(b)
	return errA == nil && errB == nil && sameParts(x.parts, y.parts)
}

func sameParts(a, b []keyPart) bool {
	return slices.EqualFunc(a, b, func(x, y keyPart) bool {
		x.field, y.field = nil, nil // they have a name
		return x == y
	})
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

// keyBuilder builds the keys of one request.
type keyBuilder struct {
	repl    *caddy.Replacer
	request *http.Request
	body    *body.Body // nil until it is read
	probe   *probe     // of an evaluation that only explains; else nil
	buf     []byte
}

// The first byte of a key tells its form, so that no key of one form can
// equal one of another.
const (
	formAddress  = 'a' // the client's address alone
	formTemplate = 'k' // each part preceded by its length, so that a|bc is not ab|c
	formHash     = 'h' // the first half of the SHA-256 of what is too long
)

// build returns the key of a client, valid until the next call, and whether it
// came out empty: none of its placeholders had a value. Literals do not count,
// as they do not tell clients apart. lacked is what an empty key is short of, or
// a part with several values: such a part is left out, so that a client cannot
// make another key with it. What stands in a body and may be read in several ways
// makes the whole key empty.
func (b *keyBuilder) build(t *keyTemplate, client ipident.Result, v4, v6 int) (key []byte, empty bool, lacked lack) {
	if len(t.parts) == 1 && t.parts[0].kind == partClient {
		b.buf = client.AppendKey(append(b.buf[:0], formAddress), v4, v6)
		return b.buf, false, lackNothing
	}
	b.buf = append(b.buf[:0], formTemplate)
	empty = t.dynamic()
	var inBody bodyParts
	for i := range t.parts {
		part := &t.parts[i]
		start := len(b.buf)
		var short lack
		b.buf, short = b.appendPart(b.buf, part, client, v4, v6)
		if t.normal.any() && short == lackNothing && part.normalizable() {
			b.buf, short = t.normal.normalize(b.buf, start)
		}
		if part.kind == partBody {
			inBody.add(short)
			if short == lackOtherType {
				// {form.name}{json.name} is one name, and one limit, whichever
				// type its owner sends.
				continue
			}
		} else {
			lacked = max(lacked, short)
		}
		n := len(b.buf) - start
		if part.kind != partLiteral && n > 0 {
			empty = false
		}
		b.buf = prefixed(b.buf, start)
	}
	if t.body && inBody.lacked() != lackNothing {
		return nil, true, inBody.lacked()
	}
	b.buf = hashed(b.buf)
	if lacked == lackMissing && !empty {
		lacked = lackNothing
	}
	return b.buf, empty, lacked
}

// prefixed puts the length of a key's part, from start on, before it.
func prefixed(key []byte, start int) []byte {
	var prefix [binary.MaxVarintLen64]byte
	return slices.Insert(key, start, prefix[:binary.PutUvarint(prefix[:], uint64(len(key)-start))]...)
}

// hashed is what stands for a key in the store.
func hashed(key []byte) []byte {
	if len(key) <= store.MaxClientBytes {
		return key
	}
	sum := sha256.Sum256(key)
	return append(append(key[:0], formHash), sum[:16]...)
}

func (b *keyBuilder) appendPart(dst []byte, part *keyPart, client ipident.Result, v4, v6 int) ([]byte, lack) {
	var value string
	var lacked lack
	switch part.kind {
	case partLiteral:
		return append(dst, part.text...), lackNothing
	case partClient:
		return client.AppendKey(dst, v4, v6), lackNothing
	case partPeer:
		return ipident.Peer(remoteAddr(b.request)).AppendKey(dst, v4, v6), lackNothing
	case partHost:
		value, lacked = one(hostName(b.request.Host), 1)
		return appendFolded(dst, value), lacked
	case partHostLabel:
		value, lacked = one(hostLabel(hostName(b.request.Host), part.label), 1)
		return appendFolded(dst, value), lacked
	case partServerName:
		if b.request.TLS == nil {
			return dst, lackMissing
		}
		value, lacked = one(hostName(b.request.TLS.ServerName), 1)
		return appendFolded(dst, value), lacked
	case partHeader:
		value, lacked = headerValue(b.request.Header, part.text)
	case partCredentials:
		value, lacked = headerValue(b.request.Header, part.text)
		return appendCredentials(dst, value), lacked
	case partCookie:
		value, lacked = cookieValue(b.request.Header, part.text)
	case partQuery:
		value, lacked = queryValue(b.request.URL.RawQuery, part.text)
	case partBody:
		if b.body == nil {
			return dst, lackMissing
		}
		var outcome body.Outcome
		value, outcome = b.body.Value(part.field)
		lacked = bodyLacks[outcome]
	default:
		var known bool
		value, known = b.repl.GetString(part.name)
		if value, lacked = one(value, 1); !known && !ofCaddy(part.name) {
			lacked = lackUnknown
		}
	}
	return append(dst, value...), lacked
}
