package ipident

import (
	"net/netip"
	"strings"
)

// The Forwarded header of RFC 7239 has quoted strings, in which commas and
// semicolons are plain text:
//
//	Forwarded: for=192.0.2.60;host="a,b", for="[2001:db8::1]:4711";proto=https
//
// The threat: quotes are normally paired from the left, and the left end is the
// client's. A client that sends one unbalanced quote would swallow what the
// proxy appended, or split it in places of its choice. So elements are cut off
// from the right (lastCommaUnquoted), and each is then read strictly as a whole
// (parseForwarded).
//
// Why this cannot be confused from the left: in an element that follows the
// grammar each quote either begins a string, after "=", or ends one, after an
// even number of backslashes, or is text within one, after an odd number. The
// quotes that begin or end strings are therefore exactly those with an even
// number of backslashes before them, and that run of backslashes lies within
// the element. So the scan from the right toggles at the same quotes as a
// reading from the left would, is outside quotes when it reaches the comma
// before the element, and has looked at nothing beyond that comma. Text that
// does not follow the grammar may be cut anywhere, but that is a stranger's, and
// the element with the stranger's own address stands to the right of it.

// lastCommaUnquoted returns the index of the last comma of s that is not within
// a quoted string, with quotes paired from the right, or -1. It takes linear
// time: each run of backslashes is counted for one quote.
func lastCommaUnquoted(s string) int {
	quoted := false
	for i := len(s) - 1; i >= 0; i-- {
		switch s[i] {
		case ',':
			if !quoted {
				return i
			}
		case '"':
			backslashes := i - len(strings.TrimRight(s[:i], `\`))
			if backslashes%2 == 0 {
				quoted = !quoted
			}
		}
	}
	return -1
}

// parseForwarded reads one element of a Forwarded header and returns the
// address of its one "for" parameter.
//
// It is RFC 7239 with two concessions to what proxies are seen to write: spaces
// and tabs around semicolons, and in values without quotes also the characters
// of a host with a port. An element without "for", or with more than one, has
// no address that everybody would agree on, and is malformed. So are "unknown"
// and names such as "_hidden": those hops are not addresses.
func parseForwarded(s string) (netip.Addr, bool) {
	var addr netip.Addr
	for {
		s = strings.TrimLeft(s, " \t;")
		if s == "" {
			return addr, addr.IsValid()
		}
		n := lenWhile(s, isTokenByte)
		if n == 0 || n == len(s) || s[n] != '=' {
			return netip.Addr{}, false
		}
		name := s[:n]
		value, rest, quoted, ok := cutValue(s[n+1:])
		if !ok {
			return netip.Addr{}, false
		}
		if strings.EqualFold(name, "for") {
			if addr.IsValid() {
				return netip.Addr{}, false
			}
			if addr, ok = parseNode(value, quoted); !ok {
				return netip.Addr{}, false
			}
		}
		if s = strings.TrimLeft(rest, " \t"); s != "" && s[0] != ';' {
			return netip.Addr{}, false
		}
	}
}

// parseNode reads the value of a "for" parameter. IPv6 has to be in quotes and
// brackets, with or without a port: in "2001:db8::1:443" the port, which the
// client chooses, would be taken for a part of the address. An address needs no
// escapes, so a value with backslashes does not parse.
func parseNode(value string, quoted bool) (netip.Addr, bool) {
	bracketed := strings.HasPrefix(value, "[")
	if bracketed && !quoted || !bracketed && strings.Count(value, ":") > 1 {
		return netip.Addr{}, false
	}
	return parseAddress(value)
}

// cutValue cuts the value of a parameter off the left end of s. A quoted one is
// returned without its quotes but with its escapes.
func cutValue(s string) (value, rest string, quoted, ok bool) {
	if s == "" || s[0] != '"' {
		n := lenWhile(s, isUnquotedByte)
		return s[:n], s[n:], false, n > 0
	}
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return s[1:i], s[i+1:], true, true
		case c == '\\':
			i++
			if i == len(s) || !isQuotedByte(s[i]) {
				return "", "", false, false
			}
		case !isQuotedByte(c):
			return "", "", false, false
		}
	}
	return "", "", false, false
}

// lenWhile returns how many bytes at the left end of s are in a class.
func lenWhile(s string, class func(byte) bool) int {
	for i := range len(s) {
		if !class(s[i]) {
			return i
		}
	}
	return len(s)
}

// isTokenByte reports whether c may be in a token of RFC 9110, such as a header
// or parameter name.
func isTokenByte(c byte) bool {
	switch {
	case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return true
	}
	return c != 0 && strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// isUnquotedByte adds what is seen in unquoted values. No quote, backslash or
// comma may ever be among it: the scan from the right relies on that.
func isUnquotedByte(c byte) bool {
	return isTokenByte(c) || c == ':' || c == '/' || c == '[' || c == ']'
}

// isQuotedByte reports whether c may be within a quoted string, escaped or, if
// it is neither a quote nor a backslash, as it is.
func isQuotedByte(c byte) bool { return c == '\t' || c >= ' ' && c != 0x7f }
