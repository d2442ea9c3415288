package keys

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
)

// This file reads the parts of a key that a client writes, so that one value is
// one key in every spelling: another spelling of a credential would be another
// limit for its owner. What comes twice has no value: a decoy beside the real one
// would be another spelling too, and nobody knows which of the two the application
// behind takes.

// Lack is what a key is short of, or another value that is read.
type Lack uint8

const (
	LackNothing    Lack = iota
	LackMissing         // the request does not have it
	LackUnknown         // nobody knows the placeholder
	LackAmbiguous       // the request has several values of it
	LackOtherType       // the body is neither a form nor JSON, or not the one of both, or encoded
	LackTooLong         // the body is longer than body_limit
	LackUnreadable      // the body is malformed, or broke off
	LackListed          // the plan is not in the table; so say users of a value, as of the next two
	LackNumber          // it is no whole number
	LackBound           // it is above its bound
	Lacks               // how many there are
)

var lackNames = [Lacks]string{"", "missing", "unknown", "ambiguous", "other_type", "too_long", "unreadable", "unlisted", "no_number", "above_max"}

// String is the lack as metrics name it, "" for LackNothing.
func (l Lack) String() string { return lackNames[l] }

// bodyLacks are what keys and values are short of when a body does not have them.
var bodyLacks = [...]Lack{
	body.Found: LackNothing, body.Missing: LackMissing, body.Ambiguous: LackAmbiguous,
	body.OtherType: LackOtherType, body.TooLong: LackTooLong, body.Unreadable: LackUnreadable,
}

// bodyParts is what became of the parts of a key that stand in the body.
type bodyParts struct {
	found, missing bool
	worst          Lack
}

func (p *bodyParts) add(l Lack) {
	switch l {
	case LackNothing:
		p.found = true
	case LackMissing:
		p.missing = true
	case LackOtherType:
		// A key may have a part for forms beside one for JSON.
	default:
		p.worst = max(p.worst, l)
	}
}

// lacked is what a key is short of: nothing if some part has a value and none is in
// doubt. The other parts of the key do not count. Else a client could leave its
// account's limit with a body that is read in two ways.
func (p *bodyParts) lacked() Lack {
	switch {
	case p.worst != LackNothing:
		return p.worst
	case p.found:
		return LackNothing
	case p.missing:
		return LackMissing
	}
	return LackOtherType
}

// one returns a value that was found so many times.
func one(value string, times int) (string, Lack) {
	switch {
	case times > 1:
		return "", LackAmbiguous
	case value == "":
		return "", LackMissing
	}
	return value, LackNothing
}

// headerValue is the value of a header that has one line. name is canonical.
func headerValue(h http.Header, name string) (string, Lack) {
	lines := h[name]
	if len(lines) == 0 {
		return "", LackMissing
	}
	return one(lines[0], len(lines))
}

// cookieValue is the value of a cookie that is sent once. Names are compared
// regardless of case, as Caddy does. What is no proper cookie counts as well:
// the application may be less strict than Go, which drops it.
func cookieValue(h http.Header, name string) (string, Lack) {
	var value string
	times := 0
	for _, line := range h["Cookie"] {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			key, v, _ := strings.Cut(pair, "=")
			if strings.EqualFold(strings.Trim(key, " \t"), name) {
				value = strings.Trim(v, " \t")
				times++
			}
		}
	}
	if n := len(value); n > 1 && value[0] == '"' && value[n-1] == '"' {
		value = value[1 : n-1]
	}
	return one(value, times)
}

// queryValue is the value of a field that the query has once. Go drops pairs
// with a semicolon or a bad escape, but the application may not: a semicolon
// ends a pair here, and what cannot be decoded is taken as it is.
func queryValue(query, name string) (string, Lack) {
	var value string
	times := 0
	for query != "" {
		pair := query
		if end := strings.IndexAny(query, "&;"); end >= 0 {
			pair, query = query[:end], query[end+1:]
		} else {
			query = ""
		}
		key, v, _ := strings.Cut(pair, "=")
		if unescaped(key) == name {
			value = unescaped(v)
			times++
		}
	}
	return one(value, times)
}

func unescaped(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return s
}

// appendCredentials appends what an Authorization header holds. Its scheme is
// written in any case and followed by any number of spaces.
func appendCredentials(dst []byte, value string) []byte {
	value = strings.Trim(value, " \t")
	end := strings.IndexAny(value, " \t")
	if end < 0 {
		return append(dst, value...) // a bare token, whose case counts
	}
	scheme, rest := strings.ToLower(value[:end]), strings.Trim(value[end:], " \t")
	dst = append(append(dst, scheme...), ' ')
	if scheme == "basic" {
		// The last digit of base64 has spare bits, which no server minds.
		if plain, err := base64.StdEncoding.DecodeString(rest); err == nil {
			return base64.StdEncoding.AppendEncode(dst, plain)
		}
	}
	return append(dst, rest...)
}

// hostName is the host in a Host header, without port, brackets and the
// trailing dot of a full name.
func hostName(hostport string) string {
	if inner, ok := strings.CutPrefix(hostport, "["); ok {
		if end := strings.IndexByte(inner, ']'); end >= 0 {
			return inner[:end]
		}
		return hostport
	}
	if colon := strings.IndexByte(hostport, ':'); colon >= 0 && strings.LastIndexByte(hostport, ':') == colon {
		hostport = hostport[:colon]
	}
	return strings.TrimRight(hostport, ".")
}

// hostLabel is the label of a host at a place counted from the right.
func hostLabel(host string, place int) string {
	for ; place > 0; place-- {
		dot := strings.LastIndexByte(host, '.')
		if dot < 0 {
			return ""
		}
		host = host[:dot]
	}
	return host[strings.LastIndexByte(host, '.')+1:]
}

// appendFolded appends a host in lower case. Only ASCII letters have two cases
// here: the server rejects a host with other letters.
func appendFolded(dst []byte, host string) []byte {
	for i := range len(host) {
		c := host[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}
