package keys

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// This file is keys as people read and write them: what logs and the admin API show
// of a key is text that the admin API takes for this very key. There are four forms,
// of which the first that does is shown:
//
//	/login|192.0.2.7          the key as its template makes it of the values
//	["a|b","c"]               the values of its placeholders, where the text could be
//	                          several keys or is not printable
//	hex:6b04...               the key's bytes, if it is longer than MaxReadable or
//	                          not UTF-8
//	client_ip=192.0.2.7       the address that stands in for an empty key
//
// Strangers choose what stands in keys: nobody's key may read like another's.

// MaxReadable is the longest key that is shown as text, in bytes.
const MaxReadable = 200

const (
	readableHex    = "hex:"
	readableClient = "client_ip="
)

// Readable returns a key of the builder's request as a person would write it: as text
// that Find takes for the key. key is what Builder.Key or Builder.Address returned, and
// is not empty.
func (k *Key) Readable(b *Builder, client ipident.Result, key string) string {
	if key[0] == formAddress {
		if !k.OnlyClient() {
			return StandIn(key[1:])
		}
		return key[1:]
	}
	plain, values := b.values(k, client)
	if text, ok := k.shown(key, plain, values); ok {
		return text
	}
	return Hex(key)
}

// StandIn is the readable form of an address that stands in for an empty key.
func StandIn(address string) string { return readableClient + address }

// ValuesOf is the text that the request's values make of the template. Unlike a key it has
// no bound, and may be that of other requests.
func (k *Key) ValuesOf(b *Builder, client ipident.Result) string {
	text, _ := b.values(k, client)
	return text
}

// ReadableOf is the readable form of a key that was given as a text.
func (k *Key) ReadableOf(key, text string) string {
	if decoded, ok := k.Decode(key); ok {
		return decoded
	}
	if len(text) <= MaxReadable && printable(text) {
		return text
	}
	return Hex(key)
}

// Hex is the readable form that every key has.
func Hex(key string) string { return readableHex + hex.EncodeToString([]byte(key)) }

// Hashed reports whether nothing of a key's values is left in it.
func Hashed(key string) bool { return key != "" && key[0] == formHash }

// Values are the values in a key one after the other, for people who do not give it back.
// It is "" for the empty key, and of no use if the key is hashed.
func Values(key string) string {
	if key == "" || key[0] != formTemplate {
		return strings.TrimPrefix(key, string(formAddress))
	}
	var b strings.Builder
	for rest := key[1:]; rest != ""; {
		n, width := binary.Uvarint([]byte(rest))
		if width <= 0 || uint64(len(rest)-width) < n {
			break
		}
		b.WriteString(rest[width : width+int(n)])
		rest = rest[width+int(n):]
	}
	return b.String()
}

// Decode reads a key back. That fails if its values were made alike or hashed.
func (k *Key) Decode(key string) (string, bool) {
	switch {
	case !k.Decodable(key):
		return "", false
	case key[0] == formAddress && k.OnlyClient():
		return key[1:], true
	case key[0] == formAddress:
		return StandIn(key[1:]), true
	}
	plain, values := "", []string(nil)
	parts := 0
	for rest := []byte(key[1:]); len(rest) > 0; parts++ {
		length, n := binary.Uvarint(rest)
		if n <= 0 || length > uint64(len(rest)-n) {
			return "", false
		}
		part := string(rest[n : n+int(length)])
		rest = rest[n+int(length):]
		if plain += part; parts < len(k.parts) && k.parts[parts].kind != partLiteral {
			values = append(values, part)
		}
	}
	return k.shown(key, plain, values)
}

// Decodable reports whether a key may be read back.
func (k *Key) Decodable(key string) bool {
	return key != "" && (key[0] == formAddress || key[0] == formTemplate && !k.Normal.Any())
}

// shown is the first of the readable forms that stands for the key, unless only its
// bytes do.
func (k *Key) shown(key, plain string, values []string) (string, bool) {
	for _, text := range []string{plain, valuesJSON(values)} {
		if len(text) > MaxReadable || !printable(text) {
			continue
		}
		if found, err := k.Find(text); err == nil && found == key {
			return text, true
		}
	}
	return "", false
}

// values returns the values in a key, and its text.
func (b *Builder) values(k *Key, client ipident.Result) (text string, values []string) {
	var out []byte
	for i := range k.parts {
		start := len(out)
		out, _ = b.appendPart(out, &k.parts[i], client, k.Mask)
		if k.parts[i].kind != partLiteral {
			values = append(values, string(out[start:]))
		}
	}
	return string(out), values
}

// printable reports whether all of a text is seen.
func printable(text string) bool {
	return utf8.ValidString(text) && strings.TrimSpace(text) == text &&
		strings.IndexFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) < 0
}

// valuesJSON is a list of values as JSON, with all escaped that is not printable. It
// is "" if a value is not UTF-8.
func valuesJSON(values []string) string {
	var b strings.Builder
	for i, value := range values {
		if !utf8.ValidString(value) {
			return ""
		}
		b.WriteString([]string{"[", ","}[min(i, 1)])
		b.WriteByte('"')
		for _, c := range value {
			switch {
			case c == '"' || c == '\\':
				b.WriteByte('\\')
				b.WriteRune(c)
			case unicode.IsPrint(c):
				b.WriteRune(c)
			case c > 0xffff:
				high, low := utf16.EncodeRune(c)
				fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
			default:
				fmt.Fprintf(&b, `\u%04x`, c)
			}
		}
		b.WriteByte('"')
	}
	b.WriteByte(']')
	return b.String()
}

var errKeyEmpty = errors.New("the key is empty; write it as explain or the log show it")

// Find returns the key that a person means with a text. Its errors do not hold the
// text, which may be a secret.
func (k *Key) Find(text string) (string, error) {
	if text == "" {
		return "", errKeyEmpty
	}
	if digits, ok := strings.CutPrefix(text, readableHex); ok {
		key, err := hex.DecodeString(digits)
		if err == nil && len(key) > 0 && len(key) <= store.MaxClientBytes && strings.IndexByte("akh", key[0]) >= 0 {
			return string(key), nil
		}
	}
	if address, ok := strings.CutPrefix(text, readableClient); ok && k.MayUseAddress() {
		if key, err := k.FindAddress(address); err == nil {
			return key, nil
		}
	}
	var values []string
	if text[0] == '[' && json.Unmarshal([]byte(text), &values) == nil && len(values) == k.placeholders() {
		key, ok := k.from(values)
		if !ok {
			return "", fmt.Errorf("these values make no key of the zone, which is %s; write them as explain or the log show them", InWords(k.text))
		}
		return key, nil
	}
	return k.findText(text)
}

// FindAddress returns the key of a client that is told by its address alone. Its errors do
// not hold the address.
func (k *Key) FindAddress(address string) (string, error) {
	switch {
	case len(k.parts) == 1 && k.parts[0].kind == partPeer:
		return k.findText(address)
	case !k.OnlyClient() && (!k.Dynamic() || !k.AddressWhenEmpty || k.NeverEmpty()):
		return "", fmt.Errorf("the key of the zone is %s, which is never an address alone; write key= instead of client_ip=", InWords(k.text))
	}
	text, ok := k.addressText(address)
	if !ok {
		return "", k.notAddress()
	}
	return string(formAddress) + text, nil
}

func (k *Key) notAddress() error {
	return fmt.Errorf("that is no address; write for example 192.0.2.7, or a network of %d bits, or of %d bits for IPv6", k.Mask.V4, k.Mask.V6)
}

// addressText is an address as it stands in the zone's keys.
func (k *Key) addressText(text string) (string, bool) {
	if text == "unix" || text == "unknown" {
		return text, true
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return string(ipident.AppendKey(nil, addr, k.Mask.V4, k.Mask.V6)), true
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return "", false
	}
	bits := k.Mask.V6
	if prefix.Addr().Is4() {
		bits = k.Mask.V4
	}
	return prefix.String(), prefix.Bits() == bits && bits < prefix.Addr().BitLen() && prefix == prefix.Masked()
}

// findText finds the values in the text that a key's template makes of them.
func (k *Key) findText(text string) (string, error) {
	if k.OnlyClient() {
		return k.FindAddress(text)
	}
	s := keySearch{key: k}
	s.find(0, text)
	switch {
	case len(s.found) == 1 && s.steps <= maxKeySteps:
		return s.found[0], nil
	case len(s.found) > 0 || s.steps > maxKeySteps:
		return "", fmt.Errorf("this may be several keys of the zone, whose key is %s; write the values of its %d placeholders as JSON, for example %s",
			InWords(k.text), k.placeholders(), valuesJSON([]string{"first", "second"}))
	case len(k.parts) == 1 && k.parts[0].address():
		return "", k.notAddress()
	}
	return "", fmt.Errorf("this is no key of the zone, whose key is %s; write it as explain or the log show it", InWords(k.text))
}

// maxKeySteps bounds the search for values. Beyond it a text counts as ambiguous.
const maxKeySteps = 20_000

// keySearch looks for all keys that a text may be.
type keySearch struct {
	key    *Key
	values []string
	found  []string // different keys, at most two
	steps  int
}

// find goes through the ways in which the template's parts from i on make the text.
func (s *keySearch) find(i int, text string) {
	parts := s.key.parts
	if s.steps++; s.steps > maxKeySteps || len(s.found) > 1 {
		return
	}
	switch {
	case i == len(parts):
		if text == "" {
			s.add()
		}
	case parts[i].kind == partLiteral:
		if rest, ok := strings.CutPrefix(text, parts[i].text); ok {
			s.find(i+1, rest)
		}
	case i == len(parts)-1:
		s.with(i, text, "")
	default:
		for end := range len(text) + 1 {
			if next := &parts[i+1]; next.kind != partLiteral || strings.HasPrefix(text[end:], next.text) {
				s.with(i, text[:end], text[end:])
			}
		}
	}
}

func (s *keySearch) with(i int, value, rest string) {
	s.values = append(s.values, value)
	s.find(i+1, rest)
	s.values = s.values[:len(s.values)-1]
}

func (s *keySearch) add() {
	key, ok := s.key.from(s.values)
	if ok && (len(s.found) == 0 || s.found[0] != key) {
		s.found = append(s.found, key)
	}
}

// from builds the key that has these values, as [Builder.Key] does for a
// request that has them. It fails if no request can have the key.
func (k *Key) from(values []string) (string, bool) {
	t := &k.Template
	if t.OnlyClient() {
		text, ok := k.addressText(values[0])
		return string(formAddress) + text, ok
	}
	normal := make([]string, 0, len(values))
	form, inJSON := false, false // where values of a body were found
	for i, n := 0, 0; i < len(t.parts); i++ {
		part := &t.parts[i]
		if part.kind == partLiteral {
			normal = append(normal, part.text)
			continue
		}
		value, ok := k.partText(part, values[n])
		if n++; !ok {
			return "", false
		}
		if part.kind == partBody && value != "" {
			isForm := strings.HasPrefix(part.name, "form.")
			form, inJSON = form || isForm, inJSON || !isForm
		}
		normal = append(normal, value)
	}
	if form && inJSON || t.body && !form && !inJSON {
		return "", false // no body is both, and without a value the key is empty
	}
	buf, empty := []byte{formTemplate}, t.Dynamic()
	for i := range t.parts {
		part := &t.parts[i]
		if part.kind == partBody && strings.HasPrefix(part.name, "form.") != form {
			continue
		}
		empty = empty && (part.kind == partLiteral || normal[i] == "")
		start := len(buf)
		buf = prefixed(append(buf, normal[i]...), start)
	}
	return string(hashed(buf)), !empty
}

// partText is the value of a part as it stands in keys.
func (k *Key) partText(part *part, value string) (string, bool) {
	switch part.kind {
	case partClient, partPeer:
		text, ok := k.addressText(value)
		return text, ok
	case partHost, partHostLabel, partServerName:
		value = string(appendFolded(nil, value))
	case partCredentials:
		value = string(appendCredentials(nil, value))
	}
	if value == "" || !k.Normal.Any() || !part.normalizable() {
		return value, true
	}
	normal, lacked := k.Normal.normalize([]byte(value), 0)
	return string(normal), lacked != LackAmbiguous
}
