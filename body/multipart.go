package body

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/url"
	"regexp"
	"strings"
)

// Parsers of multipart forms differ in everything that clients normally do not
// send. So the form is first held against what they do send; after that, there is
// only one way to take it apart.
var (
	// dispositionLine is the header of a field or a file. Escapes with a
	// backslash are left in, taken out, or end the name, depending on the parser.
	dispositionLine = regexp.MustCompile(`(?i)^Content-Disposition:[ \t]*form-data[ \t]*;[ \t]*name=("[^"\\\x00-\x1f\x7f]*"|[0-9A-Za-z!#$&+.^_|~-]+)` +
		`([ \t]*;[ \t]*filename=("[^"\\\x00-\x1f\x7f]*"|[0-9A-Za-z!#$&+.^_|~-]+))?([ \t]*;[ \t]*filename\*=utf-8''[0-9A-Za-z!#$&+.^_|~%-]*)?[ \t]*$`)
	// typeLine is the type of a field or a file.
	typeLine = regexp.MustCompile(`(?i)^Content-Type:[ \t]*([0-9a-z!#$&+.^_|~-]+)/[0-9a-z!#$&+.^_|~-]+[ \t]*(;[ \t]*[0-9a-z-]+=("[^"\\\x00-\x1f\x7f]*"|[^\x00-\x20";\\\x7f]+)[ \t]*)*$`)
	// textType is the type of a field that is read.
	textType = regexp.MustCompile(`(?i)^text/plain[ \t]*(;[ \t]*charset="?utf-8"?[ \t]*)?$`)
	// otherLine changes nothing about the content.
	otherLine = regexp.MustCompile(`(?i)^(Content-Length:[ \t]*[0-9]+|Content-Transfer-Encoding:[ \t]*(7bit|8bit|binary))[ \t]*$`)
)

// multipartValue finds a field in a multipart form.
func multipartValue(data []byte, boundary string, f *Field) (string, Outcome) {
	if !usual(data, boundary) {
		return "", Ambiguous
	}
	var s search
	for form := multipart.NewReader(bytes.NewReader(data), boundary); ; {
		part, err := form.NextRawPart()
		if err == io.EOF {
			return s.result()
		}
		if err != nil {
			return "", Unreadable
		}
		name := part.FormName()
		if unescaped, err := url.PathUnescape(name); strings.Contains(name, "=?") || err == nil && unescaped != name && f.alias(unescaped) {
			return "", Ambiguous // some parsers decode it
		}
		file := strings.Contains(strings.ToLower(part.Header.Get("Content-Disposition")), "filename")
		mediaType := part.Header.Get("Content-Type")
		text := mediaType == "" || textType.MatchString(mediaType)
		s.field(f, name, func() (string, bool) {
			value, err := io.ReadAll(io.LimitReader(part, maxValue+1))
			return string(value), err == nil && !file && text
		})
	}
}

// usual reports whether a form has the layout that clients send.
func usual(data []byte, boundary string) bool {
	// The delimiter nowhere but as a line of its own, and the end at the end.
	delimiter := []byte("--" + boundary)
	rest, first := data, true
	for {
		at := bytes.Index(rest, delimiter)
		switch {
		case at < 0, first && at != 0, !first && !bytes.HasSuffix(rest[:at], []byte("\r\n")):
			return false
		case !first && !usualHeader(rest[:at]):
			return false
		}
		rest, first = rest[at+len(delimiter):], false
		if end, ok := bytes.CutPrefix(rest, []byte("--")); ok {
			return len(end) == 0 || string(end) == "\r\n"
		}
		var ok bool
		if rest, ok = bytes.CutPrefix(rest, []byte("\r\n")); !ok {
			return false
		}
	}
}

// usualHeader reports whether a part of a form begins with the headers of one
// field or file, each on one line.
func usualHeader(part []byte) bool {
	header, value, _ := bytes.Cut(part, []byte("\r\n\r\n"))
	if !bytes.HasSuffix(value, []byte("\r\n")) || len(header) > maxPartHeader {
		return false
	}
	names, types, others := 0, 0, make(map[string]bool)
	for line := range strings.SplitSeq(string(header), "\r\n") {
		name, _, _ := strings.Cut(line, ":")
		switch name = strings.ToLower(name); {
		case dispositionLine.MatchString(line):
			names++
		case typeLine.MatchString(line) && !strings.EqualFold(typeLine.FindStringSubmatch(line)[1], "multipart"):
			types++ // a form in a form is one for some parsers
		case otherLine.MatchString(line) && !others[name]:
			others[name] = true
		default:
			return false
		}
	}
	return names == 1 && types <= 1
}

// maxPartHeader is longer than the headers of any field or file.
const maxPartHeader = 4096
