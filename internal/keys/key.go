package keys

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

// Template is text with placeholders that is read from requests: literals and
// placeholders in turn. The zero Template reads nothing. It does not change, and is safe
// for concurrent use.
type Template struct {
	text  string // as written
	parts []part
	// address: an address is part of the key, and so must have been verified
	// by a handshake.
	address bool
	body    bool // some part stands in the request's body
}

type part struct {
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

// addressKey is the template of the default key.
var addressKey = Template{parts: []part{{kind: partClient}}, address: true}

// Dynamic reports whether the template has a placeholder.
func (t *Template) Dynamic() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.kind != partLiteral })
}

// NeverEmpty reports whether every request has a value for some part: the keys
// of addresses are never empty, see ipident.Result. A key that reads the body is
// empty if the body has nothing of it, whatever else it holds.
func (t *Template) NeverEmpty() bool {
	return !t.body && slices.ContainsFunc(t.parts, func(p part) bool { return p.kind == partClient || p.kind == partPeer })
}

// The placeholders that are filled in here, because we know better than the server
// who the client is, and mask addresses.
const (
	// ClientPlaceholder is the address of the client, and ownPlaceholder another name
	// of it.
	ClientPlaceholder = "http.vars.client_ip"
	ownPlaceholder    = "http.distributed_ratelimit.client_ip"
	placeholderPeer   = "http.request.remote.host"
)

// What names of placeholders begin with that stand for a header, a cookie, or a field
// of the query.
const (
	HeaderPrefix = "http.request.header."
	CookiePrefix = "http.request.cookie."
	queryPrefix  = "http.request.uri.query."
)

// Parse parses the key of a zone, and rejects keys that would limit
// nothing or everybody at once by mistake. The empty key is the default one, the
// client's address. Errors say what to write instead.
func Parse(key string) (Template, error) {
	if key == "" {
		return addressKey, nil
	}
	if err := checkBraces(key); err != nil {
		return Template{text: key}, err
	}
	return parseTemplate("key", key, checkPlaceholder)
}

// parseTemplate parses text with placeholders, which are checked each. word is what
// errors call it.
func parseTemplate(word, text string, check func(placeholder string) error) (Template, error) {
	t := Template{text: text}
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
func partOf(name string) part {
	switch name {
	case ClientPlaceholder, ownPlaceholder:
		return part{kind: partClient}
	case placeholderPeer:
		return part{kind: partPeer}
	case "http.request.host":
		return part{kind: partHost, name: name}
	}
	if label, ok := strings.CutPrefix(name, "http.request.host.labels."); ok {
		place, _ := strconv.Atoi(label)
		return part{kind: partHostLabel, name: name, label: place}
	}
	if header, ok := strings.CutPrefix(name, HeaderPrefix); ok {
		header = textproto.CanonicalMIMEHeaderKey(header)
		kind := partHeader
		if header == "Authorization" || header == "Proxy-Authorization" {
			kind = partCredentials
		}
		return part{kind: kind, text: header, name: HeaderPrefix + header}
	}
	if cookie, ok := strings.CutPrefix(name, CookiePrefix); ok {
		cookie = strings.ToLower(cookie)
		return part{kind: partCookie, text: cookie, name: CookiePrefix + cookie}
	}
	if field, ok := strings.CutPrefix(name, queryPrefix); ok {
		return part{kind: partQuery, text: field, name: name}
	}
	if field, err := body.ParseField(name); err == nil {
		return part{kind: partBody, name: name, field: field}
	}
	if strings.EqualFold(name, "http.request.tls.server_name") {
		return part{kind: partServerName, name: "http.request.tls.server_name"}
	}
	return part{kind: partPlaceholder, name: name}
}

// Text is the template as it is written; "" for the default key.
func (t *Template) Text() string { return t.text }

// ReadsBody reports whether a part stands in the request's body.
func (t *Template) ReadsBody() bool { return t.body }

// OnlyClient reports whether a key is the client's address alone.
func (t *Template) OnlyClient() bool { return len(t.parts) == 1 && t.parts[0].kind == partClient }

// placeholders is how many values a key has.
func (t *Template) placeholders() int {
	n := 0
	for i := range t.parts {
		if t.parts[i].kind != partLiteral {
			n++
		}
	}
	return n
}

// address reports whether the part is an address, the peer's in Caddy's own
// masked form included.
func (p *part) address() bool {
	return p.kind == partClient || p.kind == partPeer || strings.HasPrefix(p.name, placeholderPeer+"/")
}

// Same reports whether two keys that parse tell clients apart alike, such
// as the default and {http.vars.client_ip}.
func Same(a, b string) bool {
	x, errA := Parse(a)
	y, errB := Parse(b)
	return errA == nil && errB == nil && sameParts(x.parts, y.parts)
}

func sameParts(a, b []part) bool {
	return slices.EqualFunc(a, b, func(x, y part) bool {
		x.field, y.field = nil, nil // they have a name
		return x == y
	})
}

// InWords is the text of a key as messages name it.
func InWords(key string) string {
	if key == "" {
		return "the client's address"
	}
	return strconv.Quote(key)
}

func (t *Template) literal(text string) {
	if text == "" {
		return
	}
	if n := len(t.parts); n > 0 && t.parts[n-1].kind == partLiteral {
		t.parts[n-1].text += text
		return
	}
	t.parts = append(t.parts, part{kind: partLiteral, text: text})
}

// Mask is how many bits of addresses count, 1 to 32 and 1 to 128. A client is a network of
// that size.
type Mask struct{ V4, V6 int }

// Key is what tells the clients of a limit apart.
type Key struct {
	Template
	Normal Normalization
	Mask   Mask
	// AddressWhenEmpty: the client's address stands for a key that comes out empty.
	AddressWhenEmpty bool
}

// MayUseAddress reports whether a key holds an address, or one takes its place when it
// comes out empty.
func (k *Key) MayUseAddress() bool { return k.address || k.Dynamic() && k.AddressWhenEmpty }

// Builder builds the keys of one request, and reads other values from it. It may be used
// for one request after another, which spares allocations, but not concurrently.
type Builder struct {
	Replacer *caddy.Replacer // of the request
	Request  *http.Request
	Body     *body.Body // nil until it is read

	buf []byte
}

// The first byte of a key tells its form, so that no key of one form can
// equal one of another.
const (
	formAddress  = 'a' // the client's address alone
	formTemplate = 'k' // each part preceded by its length, so that a|bc is not ab|c
	formHash     = 'h' // the first half of the SHA-256 of what is too long
)

// Key returns the key of a client, valid until the next call, and whether it
// came out empty: none of its placeholders had a value. Literals do not count,
// as they do not tell clients apart. lacked is what an empty key is short of, or
// a part with several values: such a part is left out, so that a client cannot
// make another key with it. What stands in a body and may be read in several ways
// makes the whole key empty.
func (b *Builder) Key(k *Key, client ipident.Result) (key []byte, empty bool, lacked Lack) {
	t := &k.Template
	if t.OnlyClient() {
		return b.Address(client, k.Mask), false, LackNothing
	}
	b.buf = append(b.buf[:0], formTemplate)
	empty = t.Dynamic()
	var inBody bodyParts
	for i := range t.parts {
		part := &t.parts[i]
		start := len(b.buf)
		var short Lack
		b.buf, short = b.appendPart(b.buf, part, client, k.Mask)
		if k.Normal.Any() && short == LackNothing && part.normalizable() {
			b.buf, short = k.Normal.normalize(b.buf, start)
		}
		if part.kind == partBody {
			inBody.add(short)
			if short == LackOtherType {
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
	if t.body && inBody.lacked() != LackNothing {
		return nil, true, inBody.lacked()
	}
	b.buf = hashed(b.buf)
	if lacked == LackMissing && !empty {
		lacked = LackNothing
	}
	return b.buf, empty, lacked
}

// Address returns the key of a client that is told by its address alone, valid until the
// next call.
func (b *Builder) Address(client ipident.Result, mask Mask) []byte {
	b.buf = client.AppendKey(append(b.buf[:0], formAddress), mask.V4, mask.V6)
	return b.buf
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

func (b *Builder) appendPart(dst []byte, part *part, client ipident.Result, mask Mask) ([]byte, Lack) {
	var value string
	var lacked Lack
	switch part.kind {
	case partLiteral:
		return append(dst, part.text...), LackNothing
	case partClient:
		return client.AppendKey(dst, mask.V4, mask.V6), LackNothing
	case partPeer:
		return ipident.Peer(ipident.RemoteAddr(b.Request)).AppendKey(dst, mask.V4, mask.V6), LackNothing
	case partHost:
		value, lacked = one(hostName(b.Request.Host), 1)
		return appendFolded(dst, value), lacked
	case partHostLabel:
		value, lacked = one(hostLabel(hostName(b.Request.Host), part.label), 1)
		return appendFolded(dst, value), lacked
	case partServerName:
		if b.Request.TLS == nil {
			return dst, LackMissing
		}
		value, lacked = one(hostName(b.Request.TLS.ServerName), 1)
		return appendFolded(dst, value), lacked
	case partHeader:
		value, lacked = headerValue(b.Request.Header, part.text)
	case partCredentials:
		value, lacked = headerValue(b.Request.Header, part.text)
		return appendCredentials(dst, value), lacked
	case partCookie:
		value, lacked = cookieValue(b.Request.Header, part.text)
	case partQuery:
		value, lacked = queryValue(b.Request.URL.RawQuery, part.text)
	case partBody:
		if b.Body == nil {
			return dst, LackMissing
		}
		var outcome body.Outcome
		value, outcome = b.Body.Value(part.field)
		lacked = bodyLacks[outcome]
	default:
		var known bool
		value, known = b.Replacer.GetString(part.name)
		if value, lacked = one(value, 1); !known && !ofCaddy(part.name) {
			lacked = LackUnknown
		}
	}
	return append(dst, value...), lacked
}
