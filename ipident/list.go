package ipident

import "strings"

// The bounds of a walk, counted from the right. A chain of proxies is a handful
// of hops; a server's default limit on headers is a mebibyte, and asking about
// trust can cost microseconds a hop.
const (
	maxHops  = 32
	maxBytes = 4 << 10
)

// walk reads a list header from right to left: from the element the peer
// appended, to the one the hop before it appended, for as long as the writer of
// an element is trusted. The first address that is not a trusted proxy is the
// client.
//
// The threat: everything to the left of what trusted proxies appended came with
// the request and says what the client likes. So the walk never looks further
// left than the first element that no trusted proxy vouches for; and an element
// that does not parse ends it. To step over that element would be to take the
// word of whoever stands behind it.
func (r Rules) walk(peer Result, lines []string, trusted Trust) Result {
	client := peer // the nearest address attested so far
	client.Reason = ReasonNoHeader
	unread := unreadElements{lines: lines, bytes: maxBytes, quotes: r.form == formForwarded}
	for hops := 0; ; hops++ {
		element, found := unread.last()
		switch {
		case found == foundNothing:
			return client
		case found == foundTooLong || hops == maxHops:
			client.Reason = ReasonTooLong
			return client
		}
		named := r.named(client, element)
		if named.Reason == ReasonMalformed || !trusted(named.Addr) {
			return named
		}
		client = named
		client.Reason = ReasonAllTrusted
	}
}

// nth reads the element that the outermost of the proxies appended. Those to its
// right are only counted: each is some proxy's, whatever it wrote.
func (r Rules) nth(peer Result, lines []string) Result {
	client := peer
	unread := unreadElements{lines: lines, bytes: maxBytes, quotes: r.form == formForwarded}
	for hop := 1; ; hop++ {
		element, found := unread.last()
		switch {
		case found == foundTooLong:
			client.Reason = ReasonTooLong
			return client
		case found == foundNothing && hop == 1:
			client.Reason = ReasonNoHeader
			return client
		case found == foundNothing:
			client.Reason = ReasonTooFewHops
			return client
		case hop < r.hops:
			continue
		}
		return r.named(client, element)
	}
}

// unreadElements is the part of a list header that a walk has not read. It
// takes elements off its right end without joining lines or splitting them:
// the client decides how long those are.
type unreadElements struct {
	lines  []string // all but the last are unread
	line   string   // what is unread of the line at the end, if open
	open   bool
	bytes  int  // how many more may be looked at
	quotes bool // commas within quoted strings do not separate elements
}

type found uint8

const (
	foundElement found = iota
	foundNothing       // no element is left
	foundTooLong       // the byte bound ends within the element, or before it
)

// last takes off the last element that is not empty, without the spaces and
// tabs around it.
//
// An element costs its length and one byte for the comma to its left. An
// element at the beginning of a line pays for that comma too, though there is
// none: otherwise an element just within the bound would be found when it
// begins the line and not found when a stranger's text precedes it.
func (u *unreadElements) last() (string, found) {
	for {
		if !u.open {
			if len(u.lines) == 0 {
				return "", foundNothing
			}
			u.line, u.lines = u.lines[len(u.lines)-1], u.lines[:len(u.lines)-1]
			u.open = true
		}
		window := u.line[max(0, len(u.line)-u.bytes):]
		comma := u.lastComma(window)
		if comma < 0 && len(u.line) >= u.bytes {
			return "", foundTooLong
		}
		element := window[comma+1:]
		u.bytes -= len(element) + 1
		if comma < 0 {
			u.open = false
		} else {
			u.line = u.line[:len(u.line)-len(element)-1]
		}
		if element = trim(element); element != "" {
			return element, foundElement
		}
	}
}

func (u *unreadElements) lastComma(s string) int {
	if u.quotes {
		return lastCommaUnquoted(s)
	}
	return strings.LastIndexByte(s, ',')
}

// trim removes the whitespace that HTTP allows around elements, which is spaces
// and tabs. Nothing else is whitespace here: an address with a no-break space
// or a line break beside it was not written by a proxy.
func trim(s string) string { return strings.Trim(s, " \t") }
