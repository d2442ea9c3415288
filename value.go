package distributedratelimit

import (
	"fmt"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// valueTemplate is text with placeholders that a word of a zone reads a value from
// for each request, such as the plan of tier. It reads what clients write as keys
// do: what comes twice is empty.
type valueTemplate struct{ keyTemplate }

// readWord is a word of a zone that reads a value.
type readWord uint8

const (
	readCost readWord = iota
	readTier
)

// readWords are their names.
var readWords = [...]string{readCost: "cost", readTier: "tier"}

func (w readWord) String() string { return readWords[w] }

// parseValue parses what a word of a zone is read from.
func parseValue(word readWord, text string) (valueTemplate, error) {
	if text == "" {
		return valueTemplate{}, fmt.Errorf("%s is empty; write a placeholder", word)
	}
	t, err := parseTemplate(word.String(), text, checkValuePlaceholder)
	return valueTemplate{t}, err
}

// sameValue reports whether two texts that parse read the same.
func sameValue(a, b string) bool {
	x, errA := parseValue(readTier, a)
	y, errB := parseValue(readTier, b)
	return errA == nil && errB == nil && sameParts(x.parts, y.parts)
}

// value returns what a template reads from the request, valid until the builder is
// used again. lacked is why it is of no use: it is empty, or a part of it has
// several values.
func (b *keyBuilder) value(t *valueTemplate, client ipident.Result, v4, v6 int) (value []byte, lacked lack) {
	b.buf = b.buf[:0]
	empty := true
	for i := range t.parts {
		part := &t.parts[i]
		start := len(b.buf)
		var short lack
		b.buf, short = b.appendPart(b.buf, part, client, v4, v6)
		lacked = max(lacked, short)
		if part.kind != partLiteral && len(b.buf) > start {
			empty = false
		}
	}
	if lacked == lackMissing && !empty {
		lacked = lackNothing
	}
	return b.buf, lacked
}

// replaces counts a value that a default or a bound stands for.
func (z *Zone) replaces(keys *keyBuilder, word readWord, t *valueTemplate, lacked lack) {
	if keys.probe.lacks(z, word.String(), lacked) {
		return
	}
	z.counters.replace(word, lacked)
	z.explain(word.String(), &t.keyTemplate, lacked)
}
