package replay

import (
	"bytes"
	"unicode/utf8"
)

// scanner walks through one JSON value. It reads what it is asked for and skips the
// rest without looking closely: a log has fifty values in a line, of which a dozen are
// of interest. What it accepts may be no proper JSON; what it returns are parts of the
// line.
type scanner struct {
	data []byte
	pos  int
}

// maxDepth bounds how deep values are nested.
const maxDepth = 64

// space skips white space, and returns the byte behind it, 0 at the end.
func (s *scanner) space() byte {
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; c {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return c
		}
	}
	return 0
}

// next reports whether c comes next, and passes it.
func (s *scanner) next(c byte) bool {
	if s.pos < len(s.data) && s.data[s.pos] == c || s.space() == c {
		s.pos++
		return true
	}
	return false
}

// raw reads a string without its quotes, as it is written.
func (s *scanner) raw() (text []byte, ok bool) {
	if !s.next('"') {
		return nil, false
	}
	start := s.pos
	for {
		end := bytes.IndexByte(s.data[s.pos:], '"')
		if end < 0 {
			return nil, false
		}
		s.pos += end + 1
		if end == 0 || s.data[s.pos-2] != '\\' {
			break
		}
		// An odd number of backslashes in front of a quote makes it a part of the string.
		n := s.pos - 2
		for n >= start && s.data[n] == '\\' {
			n--
		}
		if (s.pos-2-n)%2 == 0 {
			break
		}
	}
	return s.data[start : s.pos-1], true
}

// text reads a string.
func (s *scanner) text() ([]byte, bool) {
	raw, ok := s.raw()
	if ok && bytes.IndexByte(raw, '\\') >= 0 {
		return unescape(raw)
	}
	return raw, ok
}

// number reads a number, or another bare word, as it is written.
func (s *scanner) number() ([]byte, bool) {
	s.space()
	start := s.pos
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ',', '}', ']', ' ', '\t', '\r', '\n', '"', '{', '[', ':':
			return s.data[start:s.pos], s.pos > start
		}
		s.pos++
	}
	return s.data[start:s.pos], s.pos > start
}

// value skips a value, and returns it as it is written.
func (s *scanner) value() ([]byte, bool) {
	c := s.space()
	start := s.pos
	switch c {
	case '"':
		if _, ok := s.raw(); !ok {
			return nil, false
		}
	case '{', '[':
		if !s.nested() {
			return nil, false
		}
	default:
		return s.number()
	}
	return s.data[start:s.pos], true
}

// lists skips an object of lists of texts, as headers are. It looks for the end that such
// an object has as Caddy writes it, and only if that is not clear at its parts. A quote
// inside of a text has a backslash in front, and one that begins a text has one of [,:{ or
// white space in front: with anything else in front of it, "]} is the end. Clients choose
// the texts, and must not be able to hide their requests.
func (s *scanner) lists() ([]byte, bool) {
	s.space()
	start := s.pos
	rest := s.data[start:]
	end, replaced := closing(rest)
	if end < 1 || replaced || rest[0] != '{' || bytes.IndexByte([]byte("\\[,:{ \t\r\n"), rest[end-1]) >= 0 {
		return s.value()
	}
	object := rest[:end+3]
	// An empty object or list, white space, or a text instead of the last list, as the
	// filter replace of Caddy's logs writes it, would have hidden the end. Who writes white
	// space does so from the first header on.
	colon := bytes.IndexByte(object, ':')
	if colon < 2 || object[1] != '"' || object[colon+1] != '[' || spaced(object) {
		return s.value()
	}
	s.pos += len(object)
	return object, true
}

// closing is where the first "]} is, -1 if there is none, and whether "} is in front of it.
// Braces are rare in headers, and quotes are not.
func closing(text []byte) (end int, replaced bool) {
	for from := 0; ; {
		brace := bytes.IndexByte(text[from:], '}')
		if brace < 0 {
			return -1, replaced
		}
		if brace += from; brace >= 2 && text[brace-1] == ']' && text[brace-2] == '"' {
			return brace - 2, replaced
		}
		replaced = replaced || brace > 0 && text[brace-1] == '"'
		from = brace + 1
	}
}

// spaced reports whether [] or a bracket with a space behind it is in an object, which
// ends with a brace.
func spaced(object []byte) bool {
	for from := 1; ; {
		bracket := bytes.IndexByte(object[from:], ']')
		if bracket < 0 {
			return false
		}
		if bracket += from; object[bracket-1] == '[' || object[bracket+1] == ' ' {
			return true
		}
		from = bracket + 1
	}
}

// nested skips an object or an array.
func (s *scanner) nested() bool {
	depth := 0
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case '"':
			if _, ok := s.raw(); !ok {
				return false
			}
			continue
		case '{', '[':
			if depth++; depth > maxDepth {
				return false
			}
		case '}', ']':
			if depth--; depth == 0 {
				s.pos++
				return true
			}
		}
		s.pos++
	}
	return false
}

// fields calls do with the name of each field of an object, which then reads its value.
// It reports whether the object was whole.
func (s *scanner) fields(do func(name []byte) bool) bool {
	if !s.next('{') {
		return false
	}
	if s.next('}') {
		return true
	}
	for {
		// A name with an escape in it is none that is looked for.
		name, ok := s.raw()
		if !ok || !s.next(':') || !do(name) {
			return false
		}
		if s.next(',') {
			continue
		}
		return s.next('}')
	}
}

// elements calls do at each element of an array, which then reads it.
func (s *scanner) elements(do func() bool) bool {
	if !s.next('[') {
		return false
	}
	if s.next(']') {
		return true
	}
	for do() {
		if s.next(',') {
			continue
		}
		return s.next(']')
	}
	return false
}

// unescape is a string without its escapes. A surrogate by itself becomes U+FFFD.
func unescape(raw []byte) ([]byte, bool) {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			continue
		}
		if i++; i == len(raw) {
			return nil, false
		}
		switch c := raw[i]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := hex4(raw[i+1:])
			if !ok {
				return nil, false
			}
			i += 4
			if r >= 0xd800 && r < 0xdc00 && len(raw) >= i+7 && raw[i+1] == '\\' && raw[i+2] == 'u' {
				if low, ok := hex4(raw[i+3:]); ok && low >= 0xdc00 && low < 0xe000 {
					r = (r-0xd800)<<10 | (low - 0xdc00) + 0x10000
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			return nil, false
		}
	}
	return out, true
}

func hex4(digits []byte) (rune, bool) {
	if len(digits) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range digits[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
