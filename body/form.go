package body

import (
	"bytes"
	"net/url"
	"strings"
	"unicode/utf8"
)

// formValue finds a field in an urlencoded form.
func formValue(data []byte, f *Field) (string, Outcome) {
	if first := bytes.TrimLeft(data, " \t\r\n"); len(first) == 0 || strings.IndexByte("{[\"\xef", first[0]) >= 0 {
		// Applications that read JSON whatever the Content-Type is would see
		// another document. No browser begins a form with such a character.
		return "", Ambiguous
	}
	value, outcome := scanForm(data, "&", f)
	if bytes.IndexByte(data, ';') >= 0 {
		// A semicolon ends a pair for some applications. It does no harm where
		// all of them find the same.
		other, otherOutcome := scanForm(data, "&;", f)
		if other != value || otherOutcome != outcome {
			return "", Ambiguous
		}
	}
	return value, outcome
}

func scanForm(form []byte, separators string, f *Field) (string, Outcome) {
	var s search
	for len(form) > 0 {
		pair := form
		if end := bytes.IndexAny(form, separators); end >= 0 {
			pair, form = form[:end], form[end+1:]
		} else {
			form = nil
		}
		if len(pair) == 0 {
			continue
		}
		rawName, rawValue, _ := bytes.Cut(pair, []byte("="))
		if len(rawName) > maxName {
			return "", Ambiguous
		}
		name, err := url.QueryUnescape(string(rawName))
		if err != nil {
			return "", Ambiguous // it may be decoded in other ways
		}
		s.field(f, name, func() (string, bool) {
			if len(rawValue) > 3*maxValue { // %xx for each byte
				return "", false
			}
			value, err := url.QueryUnescape(string(rawValue))
			return value, err == nil
		})
	}
	return s.result()
}

// search is the search for one field among the fields of a form.
type search struct {
	value     string
	times     int
	ambiguous bool
}

// field looks at a field of the form, whose value is only decoded where it
// counts.
func (s *search) field(f *Field, name string, value func() (string, bool)) {
	switch {
	case !utf8.ValidString(name):
		s.ambiguous = true
	case name == f.form:
		text, ok := value()
		s.value = text
		s.times++
		s.ambiguous = s.ambiguous || !ok
	case f.alias(name):
		s.ambiguous = true
	case strings.EqualFold(name, "_charset_"):
		// HTML lets a form name the charset of its fields.
		text, ok := value()
		s.ambiguous = s.ambiguous || !ok || !strings.EqualFold(text, "utf-8")
	}
}

func (s *search) result() (string, Outcome) {
	switch {
	case s.ambiguous || s.times > 1:
		return "", Ambiguous
	case s.times == 0:
		return "", Missing
	}
	return s.value, Found
}

// inQuery reports whether an application may find the field in the query.
func (f *Field) inQuery(query string) bool {
	if f.readings == nil {
		return false
	}
	for query != "" {
		pair := query
		if end := strings.IndexAny(query, "&;"); end >= 0 {
			pair, query = query[:end], query[end+1:]
		} else {
			query = ""
		}
		name, _, _ := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(name)
		if err != nil || f.alias(plain) {
			return true
		}
	}
	return false
}
