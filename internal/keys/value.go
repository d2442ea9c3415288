package keys

import (
	"fmt"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// ParseValue parses text that a word of a zone, such as cost, reads a value from for each
// request. Values are read as keys are: what comes twice is empty. Errors say what to
// write instead.
func ParseValue(word, text string) (Template, error) {
	if text == "" {
		return Template{}, fmt.Errorf("%s is empty; write a placeholder", word)
	}
	return parseTemplate(word, text, checkValuePlaceholder)
}

// SameValue reports whether two texts that parse read the same.
func SameValue(a, b string) bool {
	x, errA := ParseValue("value", a)
	y, errB := ParseValue("value", b)
	return errA == nil && errB == nil && sameParts(x.parts, y.parts)
}

// Value returns what a template reads from the request, valid until the builder is
// used again. lacked is why it is of no use: it is empty, or a part of it has
// several values.
func (b *Builder) Value(t *Template, client ipident.Result, mask Mask) (value []byte, lacked Lack) {
	b.buf = b.buf[:0]
	empty := true
	for i := range t.parts {
		part := &t.parts[i]
		start := len(b.buf)
		var short Lack
		b.buf, short = b.appendPart(b.buf, part, client, mask)
		lacked = max(lacked, short)
		if part.kind != partLiteral && len(b.buf) > start {
			empty = false
		}
	}
	if lacked == LackMissing && !empty {
		lacked = LackNothing
	}
	return b.buf, lacked
}
