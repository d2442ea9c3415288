package llm

import (
	"bytes"
	"io"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// facts is what one reading of a request's body found.
type facts struct {
	endpoint endpoint
	model    string
	stream   bool

	bounded        bool     // the request bounds its output
	boundNames     []string // in these fields
	maxOutput      int64    // by this, the largest of its bounds
	choices        int64    // how many of them it asks for; 0 is one
	thinking       int64    // budget for thinking
	describedTools int64    // sets of tools that the API describes to the model

	unknown         string // the first thing that may change anything
	unbounded       string // the first thing whose input bytes do not bound
	mediaBytes      int64  // bytes of the body that are base64 of images and files
	predictionBytes int64
	background      bool
	tiers           []tier // values that may change the price

	usageAsked bool

	top               object
	streamOptions     object
	nullStreamOptions span
	includeUsage      span            // a value that is not true
	nullBounds        map[string]span // bounds that are null
}

// maxModel is the longest name of a model, in bytes, that is told apart.
const maxModel = 256

type tier struct{ field, value string }

// reader walks through a body once. Its methods end the walk by a panic with a
// *Refusal, which read recovers: each value would need three lines otherwise.
type reader struct {
	*facts
	dec    *jsontext.Decoder
	accept []string // see Config
	names  []string // of the objects around the value that is read
}

// maxNames is how many members an object that is read may have. The largest that
// either API knows has about forty.
const maxNames = 128

// read reads the body of a request. jsontext is strict where readers differ: it
// rejects text that is not UTF-8, and whatever JSON does not allow. It would
// reject names that are there twice, too, but remembers all of them: a body of
// 8 MiB makes that a hundred. So each object that is read checks its own; in the
// others nothing depends on a name.
func read(e endpoint, body []byte, accept []string) (f *facts, refusal *Refusal) {
	r := &reader{
		facts:  &facts{endpoint: e},
		dec:    jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true)),
		accept: accept,
	}
	defer func() {
		if p := recover(); p != nil {
			stop, ok := p.(*Refusal)
			if !ok {
				panic(p)
			}
			f, refusal = nil, stop
		}
	}()
	if r.dec.PeekKind() != '{' {
		r.checkSyntax()
		panic(refuse(ReasonMalformed, "the body is no JSON object"))
	}
	switch e {
	case chat:
		r.chat()
	case responses:
		r.responses()
	case messages:
		r.messages()
	}
	if _, err := r.dec.ReadToken(); err != io.EOF {
		panic(refuse(ReasonMalformed, "the body goes on after its JSON object"))
	}
	return r.facts, nil
}

func (r *reader) fail() {
	panic(refuse(ReasonMalformed, "the body is no valid JSON near byte %d", r.dec.InputOffset()))
}

// checkSyntax fails for what is no JSON at all.
func (r *reader) checkSyntax() {
	if err := r.dec.SkipValue(); err != nil {
		r.fail()
	}
}

func (r *reader) token() jsontext.Token {
	tok, err := r.dec.ReadToken()
	if err != nil {
		r.fail()
	}
	return tok
}

// value reads a whole value and says where it stands.
func (r *reader) value() (jsontext.Value, span) {
	v, err := r.dec.ReadValue()
	if err != nil {
		r.fail()
	}
	to := int(r.dec.InputOffset())
	return v, span{to - len(v), to}
}

func (r *reader) skip() {
	if err := r.dec.SkipValue(); err != nil {
		r.fail()
	}
}

// object calls member for each member of an object; member must read its value.
// Any other value is skipped, and false is returned.
func (r *reader) object(member func(name string)) (object, bool) {
	if r.dec.PeekKind() != '{' {
		r.skip()
		return object{}, false
	}
	r.token()
	o := object{inside: int(r.dec.InputOffset()), empty: true}
	around := len(r.names)
	for r.dec.PeekKind() != '}' {
		o.empty = false
		name := r.name()
		r.once(name, r.names[around:])
		r.names = append(r.names, name)
		member(name)
	}
	r.names = r.names[:around]
	r.token()
	return o, true
}

// name reads a member's name. The known ones are not copied: a body has tens of
// thousands of them.
func (r *reader) name() string {
	raw, _ := r.value()
	if known, ok := knownNames[string(raw)]; ok {
		return known
	}
	if plain, err := jsontext.AppendUnquote(nil, raw); err == nil {
		return string(plain)
	}
	panic(refuse(ReasonMalformed, "the body has a name that is no text near byte %d", r.dec.InputOffset()))
}

// once refuses an object with two members of one name: some readers take the
// first and some the last.
func (r *reader) once(name string, before []string) {
	if slices.Contains(before, name) {
		panic(refuse(ReasonMalformed, "the body has %s twice in one object, near byte %d: write it once", quotable(name), r.dec.InputOffset()))
	}
	if len(before) == maxNames {
		panic(refuse(ReasonMalformed, "the body has an object with more than %d members, near byte %d", maxNames, r.dec.InputOffset()))
	}
}

// array calls element for each element of an array; element must read it. Any
// other value is skipped, and false is returned.
func (r *reader) array(element func()) bool {
	if r.dec.PeekKind() != '[' {
		r.skip()
		return false
	}
	r.token()
	for r.dec.PeekKind() != ']' {
		element()
	}
	r.token()
	return true
}

// text reads a string. Any other value is skipped: null and what is none are
// the same here, and the upstream refuses the latter.
func (r *reader) text() string {
	if r.dec.PeekKind() != '"' {
		r.skip()
		return ""
	}
	return r.token().String()
}

// kind reads a string that is one of few.
func (r *reader) kind() string {
	if r.dec.PeekKind() != '"' {
		r.skip()
		return ""
	}
	return r.name()
}

// knownNames are names and types by how they stand in a body.
var knownNames = func() map[string]string {
	m := make(map[string]string)
	for _, n := range []string{"role", "content", "type", "text", "name", "id", "call_id", "tool_call_id", "tool_use_id",
		"tool_calls", "function", "arguments", "parameters", "description", "input", "output", "input_schema", "source",
		"data", "url", "image_url", "cache_control", "message", "input_text", "output_text", "tool_use", "tool_result"} {
		m[`"`+n+`"`] = n
	}
	return m
}()

// present skips a value and says whether it is anything but null.
func (r *reader) present() bool {
	null := r.dec.PeekKind() == 'n'
	r.skip()
	return !null
}

// truth reads a boolean or null.
func (r *reader) truth(name string) bool {
	switch r.dec.PeekKind() {
	case 't', 'f':
		return r.token().Bool()
	case 'n':
		r.skip()
		return false
	}
	r.checkSyntax()
	panic(refuse(ReasonMalformed, "%s is neither true nor false", name))
}

// count reads a positive integer. It refuses the other ways to write one (1e3,
// 12.0, "12"): readers differ on them. least is 1, or 0 where an API takes it.
func (r *reader) count(name string, least int64) int64 {
	v, _ := r.value()
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil || n < least || n > maxTokens || v[0] == '-' {
		panic(refuse(ReasonMalformed, "%s is no positive integer below 10^12", name))
	}
	return n
}

// bound reads a bound of the output; several count as the largest.
func (r *reader) bound(name string, least int64) {
	if r.dec.PeekKind() == 'n' {
		_, at := r.value()
		if r.nullBounds == nil {
			r.nullBounds = make(map[string]span)
		}
		r.nullBounds[name] = at
		return
	}
	r.maxOutput = max(r.maxOutput, r.count(name, least))
	r.bounded = true
	r.boundNames = append(r.boundNames, name)
}

// suspect notes what is not known, unless the configuration accepts its name.
func (r *reader) suspect(what, name string) {
	if r.unknown == "" && !slices.Contains(r.accept, name) {
		r.unknown = what + " " + quotable(name)
	}
}

// mark notes what bytes do not bound, but MaxInput does.
func (r *reader) mark(what string) {
	if r.unbounded == "" {
		r.unbounded = what
	}
}

// markPresent notes a member that bytes do not bound, unless it is null.
func (r *reader) markPresent(name string) {
	if r.present() {
		r.mark(name)
	}
}

// tier notes a value that may change the price, unless it is among the usual.
func (r *reader) tier(field string, usual ...string) {
	if r.dec.PeekKind() == 'n' {
		r.skip()
		return
	}
	if value := r.text(); !slices.Contains(usual, value) {
		r.addTier(field, value)
	}
}

// addTier keeps a few: more than there are fields of this kind mean nothing.
func (r *reader) addTier(field, value string) {
	if len(r.tiers) < 8 && !slices.Contains(r.tiers, tier{field, value}) {
		r.tiers = append(r.tiers, tier{field, value})
	}
}

// readModel reads the model's name, which must be text: another reader could
// make a name of anything else.
func (r *reader) readModel() {
	if r.dec.PeekKind() != '"' {
		r.checkSyntax()
		panic(refuse(ReasonMalformed, "model is no text"))
	}
	r.model = r.text()
	if len(r.model) > maxModel {
		panic(refuse(ReasonMalformed, "the name of the model is longer than %d bytes", maxModel))
	}
}

// media skips a value that holds an image or file, and counts its bytes if it
// is text in base64. It says whether there was one.
func (r *reader) media() int64 {
	v, _ := r.value()
	if v.Kind() != '"' || !isBase64(v[1:len(v)-1]) {
		return 0
	}
	return int64(len(v))
}

// isBase64 accepts plain base64 and data URLs. What it accepts is not counted
// as text, so that it must be none: a text in its place does not decode, and
// the API refuses it.
func isBase64(v []byte) bool {
	if rest, ok := bytes.CutPrefix(v, []byte("data:")); ok {
		_, data, ok := bytes.Cut(rest[:min(len(rest), 100)], []byte(";base64,"))
		if !ok {
			return false
		}
		v = rest[len(rest[:min(len(rest), 100)])-len(data):]
	}
	for _, c := range v {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '+', c == '/', c == '=', c == '-', c == '_', c == '\\':
		default:
			return false
		}
	}
	return true
}
