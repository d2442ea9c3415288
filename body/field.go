package body

import (
	"fmt"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Field is a field of a form, or a place in a JSON document.
type Field struct {
	name     string // as ParseField took it
	form     string // name of the form's field
	path     []string
	kind     kind
	readings [][]string // what applications may take for it, see readings
}

// Outcome is what became of the search for a field.
type Outcome uint8

const (
	Found      Outcome = iota
	Missing            // the body does not have it, or there is no body
	Ambiguous          // it is repeated, too long, or read differently by some applications
	OtherType          // the body is not of the field's type, or encoded
	TooLong            // the body is longer than the limit
	Unreadable         // the body is malformed, or broke off
)

const (
	formPrefix = "form."
	jsonPrefix = "json."

	// maxPath is how many steps a path in a JSON document may have.
	maxPath = 32
	// maxName and maxValue are the longest name in a form, and the longest value
	// of a field, in bytes. They bound what is copied out of a body.
	maxName  = 1 << 10
	maxValue = 4 << 10
)

// IsField reports whether a name is meant for ParseField.
func IsField(name string) bool {
	return strings.HasPrefix(name, formPrefix) || strings.HasPrefix(name, jsonPrefix)
}

// ParseField parses the name of a field: form.<name>, or json.<path> with a path
// of names and places in arrays such as a.b.0.c.
func ParseField(name string) (*Field, error) {
	if form, ok := strings.CutPrefix(name, formPrefix); ok {
		f := &Field{name: name, form: form, kind: kindForm, readings: readings(form)}
		if f.readings == nil || !plain(form) {
			return nil, fmt.Errorf("%q names no field of a form; write for example form.username", name)
		}
		return f, nil
	}
	path, ok := strings.CutPrefix(name, jsonPrefix)
	if !ok {
		return nil, fmt.Errorf("%q is no field of a body; write form.<field> or json.<path>", name)
	}
	f := &Field{name: name, path: strings.Split(path, "."), kind: kindJSON}
	if slices.Contains(f.path, "") {
		return nil, fmt.Errorf("%q has an empty step; write names, or places in arrays, with a dot between them, for example json.user.name", name)
	}
	if len(f.path) > maxPath {
		return nil, fmt.Errorf("%q has more than %d steps", name, maxPath)
	}
	if len(f.path) == 1 {
		f.readings = [][]string{f.path}
	}
	return f, nil
}

// String is the name of the field.
func (f *Field) String() string { return f.name }

type kind uint8

const (
	kindOther kind = iota
	kindForm
	kindJSON
)

// content is what a request says about its body.
type content struct {
	kind     kind
	boundary string // of a multipart form, else empty
}

// multipartType is what clients send for a multipart form. PHP takes the first
// parameter that ends in boundary, and knows no quotes within; so nothing stands
// before it, and no special character in it.
var multipartType = regexp.MustCompile(`(?i)^multipart/form-data[ \t]*;[ \t]*boundary=("[0-9A-Za-z'()+_./:=?-]{1,70}"|[0-9A-Za-z'()+_.:-]{1,70})[ \t]*(;[ \t]*charset="?utf-8"?[ \t]*)?$`)

// contentOf reads the headers of a body. Everything unusual is another type.
func contentOf(h http.Header) content {
	lines := h["Content-Type"]
	if len(lines) != 1 || len(h["Content-Encoding"]) > 0 || strings.Contains(lines[0], "*") {
		// An asterisk begins a value in another charset, or in several pieces:
		// mime puts them together, and many servers do not.
		return content{}
	}
	mediaType, params, err := mime.ParseMediaType(lines[0])
	if err != nil {
		return content{}
	}
	switch charset := params["charset"]; {
	case charset == "", strings.EqualFold(charset, "utf-8"), strings.EqualFold(charset, "utf8"):
	default:
		return content{}
	}
	switch {
	case mediaType == "application/x-www-form-urlencoded":
		return content{kind: kindForm}
	case mediaType == "multipart/form-data" && multipartType.MatchString(lines[0]):
		return content{kind: kindForm, boundary: params["boundary"]}
	case mediaType == "application/json", strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json"):
		return content{kind: kindJSON}
	}
	return content{}
}

// finding is a field that was looked for before.
type finding struct {
	field   *Field
	value   string
	outcome Outcome
}

// Value finds a field. The value is empty unless the outcome is Found.
func (b *Body) Value(f *Field) (string, Outcome) {
	for i := range b.found {
		if b.found[i].field.name == f.name {
			return b.found[i].value, b.found[i].outcome
		}
	}
	value, outcome := b.value(f)
	switch {
	case outcome != Found:
		value = ""
	case value == "":
		outcome = Missing
	case len(value) > maxValue, !plain(value):
		value, outcome = "", Ambiguous
	}
	b.found = append(b.found, finding{f, value, outcome})
	return value, outcome
}

func (b *Body) value(f *Field) (string, Outcome) {
	data, consumed := b.Bytes(), b.consumed()
	switch {
	case b.complete && !consumed && len(data) == 0:
		if f.inQuery(b.query) {
			// Where the query's field is taken for one of the body, no body is needed.
			return "", Ambiguous
		}
		return "", Missing
	case b.content.kind == kindOther:
		return "", OtherType
	case b.tooLong:
		return "", TooLong
	case !b.complete || consumed:
		return "", Unreadable
	case b.content.kind != f.kind:
		return "", OtherType
	case f.inQuery(b.query):
		// Many applications do not tell a field of the query from one of the
		// body: Java takes the first of both, the query's.
		return "", Ambiguous
	}
	switch {
	case f.kind == kindJSON:
		return jsonValue(data, f.path)
	case b.content.boundary != "":
		return multipartValue(data, b.content.boundary, f)
	default:
		return formValue(data, f)
	}
}

// plain reports whether all applications take a value for the same text. What is
// not UTF-8 is decoded, replaced or left out; a text may end at a control
// character, or begin after it.
func plain(value string) bool {
	return utf8.ValidString(value) && !strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c == 0x7f })
}
