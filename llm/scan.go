package llm

import (
	"bytes"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// scanner reads one JSON text as its bytes come, split anywhere, and hands the
// values at a few known places to a sink. Its memory is constant, whatever the
// text's size: the last event of a stream of responses repeats all that was sent
// and received, and jsontext.Decoder, as encoding/json, holds each string whole.
//
// It accepts every valid JSON text up to maxDepth and finds what a whole parse
// finds. It also accepts some invalid ones (control characters in strings,
// numbers such as 1.2.3): it reads what a server has written to find a number in
// it, and does not judge the rest. It never accepts a text that has not ended.
type scanner struct {
	sink  sink
	state state
	inKey bool

	depth   int
	objects [maxDepth / 64]uint64 // bit d: the container at depth d+1 is an object
	places  [maxPlaces + 1]*place // of the containers at depth 1 to known
	known   int                   // deeper containers have no place
	at      *place                // of the value that is read or comes next
	keep    bool                  // the string or number is kept in text
	long    bool                  // but it did not fit
	text    [maxText]byte         // raw, as it stands between its quotes
	size    int                   // of text
	rest    string                // of the literal
	buf     [maxText + 2]byte     // scratch for names with escapes
}

const (
	maxDepth  = 4096
	maxPlaces = 8
	maxText   = maxModel
)

// place is a member that the sink wants to hear of, or one that leads there.
type place struct {
	name  string // of the member; "[]" stands for the elements of an array
	field field
	row   bool // of a table whose rows add up, see reading
	kids  []*place
}

func (p *place) kid(name []byte) *place {
	if p == nil {
		return nil
	}
	for _, k := range p.kids {
		if string(name) == k.name {
			return k
		}
	}
	return nil
}

// sink hears of values at places with a field.
type sink interface {
	open(p *place, kind byte)     // { [ " 0 t n (0 is any number, t true or false)
	number(p *place, text []byte) // nil if it is too long
	string(p *place, text []byte) // nil if it is too long
}

type state byte

const (
	wantValue     state = iota
	wantFirst           // of an array: a value or ]
	wantName            // of an object: a name
	wantFirstName       // a name or }
	wantColon
	wantNext // a comma or the end of the container
	inString
	inEscape
	inNumber
	inLiteral
	done
	failed
)

func (s *scanner) reset(root *place, to sink) {
	s.sink, s.state, s.depth, s.known, s.at = to, wantValue, 0, 0, root
}

// complete says whether the whole text was read. end must be called before.
func (s *scanner) complete() bool { return s.state == done }

// end tells that the text has ended. Only a number at the top ends by that.
func (s *scanner) end() {
	if s.state == inNumber {
		s.endNumber()
	}
}

func (s *scanner) write(p []byte) {
	for i := 0; i < len(p); {
		switch s.state {
		case failed:
			return
		case inString:
			i += s.readString(p[i:])
		case inNumber:
			i += s.readNumber(p[i:])
		case inEscape:
			// What follows the backslash cannot end the string. The digits of
			// \u are ordinary bytes.
			s.save(p[i : i+1])
			s.state = inString
			i++
		default:
			s.step(p[i])
			i++
		}
	}
}

// step reads a byte outside of strings and numbers.
func (s *scanner) step(c byte) {
	if s.state == inLiteral {
		if s.rest[0] != c {
			s.state = failed
			return
		}
		if s.rest = s.rest[1:]; s.rest == "" {
			s.endValue()
		}
		return
	}
	if c == ' ' || c == '\n' || c == '\t' || c == '\r' {
		return
	}
	switch s.state {
	case wantFirst:
		if c == ']' {
			s.close(c)
			return
		}
		s.value(c)
	case wantValue:
		s.value(c)
	case wantFirstName, wantName:
		switch {
		case c == '"':
			s.begin(s.container() != nil)
			s.state, s.inKey = inString, true
		case c == '}' && s.state == wantFirstName:
			s.close(c)
		default:
			s.state = failed
		}
	case wantColon:
		if c != ':' {
			s.state = failed
			return
		}
		s.state = wantValue
	case wantNext:
		s.next(c)
	default: // done: something follows
		s.state = failed
	}
}

// next reads what may follow a value within a container.
func (s *scanner) next(c byte) {
	switch {
	case c != ',':
		s.close(c)
	case s.isObject():
		s.state = wantName
	default:
		s.state, s.at = wantValue, s.container().kid([]byte("[]"))
	}
}

// value reads the first byte of a value.
func (s *scanner) value(c byte) {
	kind := c
	switch c {
	case '{', '[':
	case '"':
		s.begin(s.at != nil && s.at.field != noField)
		s.state, s.inKey = inString, false
	case 't':
		s.state, s.rest = inLiteral, "rue"
	case 'f':
		kind, s.state, s.rest = 't', inLiteral, "alse"
	case 'n':
		s.state, s.rest = inLiteral, "ull"
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		kind = '0'
		s.begin(s.at != nil && s.at.field != noField)
		s.state = inNumber
		s.save([]byte{c})
	default:
		s.state = failed
		return
	}
	if s.at != nil && s.at.field != noField {
		s.sink.open(s.at, kind)
	}
	if c == '{' || c == '[' {
		s.open(c)
	}
}

func (s *scanner) open(c byte) {
	if s.depth == maxDepth {
		s.state = failed
		return
	}
	bit := uint64(1) << (s.depth % 64)
	if s.objects[s.depth/64] &^= bit; c == '{' {
		s.objects[s.depth/64] |= bit
	}
	if s.at != nil && s.depth < maxPlaces { // a place's container has one
		s.known++
		s.places[s.known] = s.at
	}
	s.depth++
	s.state = wantFirstName
	if c == '[' {
		s.state, s.at = wantFirst, s.container().kid([]byte("[]"))
	}
}

func (s *scanner) close(c byte) {
	if s.depth == 0 || c != ']' && c != '}' || (c == '}') != s.isObject() {
		s.state = failed
		return
	}
	if s.known == s.depth {
		s.known--
	}
	s.depth--
	s.endValue()
}

func (s *scanner) endValue() {
	s.state = wantNext
	if s.depth == 0 {
		s.state = done
	}
}

func (s *scanner) isObject() bool {
	d := s.depth - 1
	return d >= 0 && s.objects[d/64]&(1<<(d%64)) != 0
}

// container is the place of the container around, nil if it has none.
func (s *scanner) container() *place {
	if s.known == s.depth && s.depth > 0 {
		return s.places[s.depth]
	}
	return nil
}

// begin starts a string or number, which is kept if somebody asks for it.
func (s *scanner) begin(keep bool) { s.keep, s.long, s.size = keep, false, 0 }

func (s *scanner) save(p []byte) {
	if !s.keep {
		return
	}
	n := copy(s.text[s.size:], p)
	s.size += n
	s.long = s.long || n < len(p)
}

// saved is what was kept, nil if it did not fit.
func (s *scanner) saved() []byte {
	if s.long {
		return nil
	}
	return s.text[:s.size]
}

// readString reads up to the end of the string or of p, or to an escape. Here
// nearly all bytes of a response are read.
func (s *scanner) readString(p []byte) int {
	i := 0
	for i < len(p) && p[i] != '"' && p[i] != '\\' {
		i++
	}
	s.save(p[:i])
	if i == len(p) {
		return i
	}
	if p[i] == '\\' {
		s.save(p[i : i+1])
		s.state = inEscape
		return i + 1
	}
	s.endString()
	return i + 1
}

func (s *scanner) endString() {
	text := s.saved()
	if s.keep && bytes.IndexByte(text, '\\') >= 0 {
		text = s.unescape(text)
	}
	if s.inKey {
		s.state, s.at = wantColon, nil
		if s.keep && text != nil {
			s.at = s.container().kid(text)
		}
		return
	}
	if s.keep {
		s.sink.string(s.at, text)
	}
	s.endValue()
}

// unescape is nil for what cannot be unescaped.
func (s *scanner) unescape(text []byte) []byte {
	quoted := append(append(append(s.buf[:0], '"'), text...), '"')
	plain, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil && len(plain) == 0 {
		return nil
	}
	return plain
}

func (s *scanner) readNumber(p []byte) int {
	i := 0
	for i < len(p) && (p[i] >= '0' && p[i] <= '9' || p[i] == '.' || p[i] == '-' || p[i] == '+' || p[i]|0x20 == 'e') {
		i++
	}
	s.save(p[:i])
	if i < len(p) {
		s.endNumber()
	}
	return i
}

func (s *scanner) endNumber() {
	if s.keep {
		s.sink.number(s.at, s.saved())
	}
	s.endValue()
}

// parseCount reads the digits of a count of tokens. Anything else (12.0, 1e3,
// -1, more than maxTokens) is no count.
func parseCount(text []byte) (int64, bool) {
	if len(text) == 0 || len(text) > 13 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(text), 10, 63)
	return int64(n), err == nil && n <= maxTokens
}
