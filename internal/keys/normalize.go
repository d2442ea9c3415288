package keys

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/text/collate"
	"golang.org/x/text/language"
)

// The words of key_normalize.
const (
	normalizeLower = "lower"
	normalizeTrim  = "trim"
	normalizeOff   = "off"
)

// Normalization is how the values of a key are made alike before they are compared.
// Values that become one share a limit: that is stricter than the limit for each, and
// never more than it. The zero Normalization leaves them as they are; equal ones are ==.
type Normalization struct{ lower, trim bool }

// NewNormalization takes the words of key_normalize, without mistakes. Without any, the
// values of bodies are made alike: applications look up accounts that way.
func NewNormalization(words []string, of *Template) Normalization {
	if len(words) == 0 {
		return Normalization{lower: of.body, trim: of.body}
	}
	return Normalization{lower: slices.Contains(words, normalizeLower), trim: slices.Contains(words, normalizeTrim)}
}

// String is the words of it.
func (n Normalization) String() string {
	switch n {
	case Normalization{}:
		return normalizeOff
	case Normalization{lower: true}:
		return normalizeLower
	case Normalization{trim: true}:
		return normalizeTrim
	}
	return normalizeLower + " " + normalizeTrim
}

// Any reports whether it changes any value.
func (n Normalization) Any() bool { return n.lower || n.trim }

// CheckNormalize finds the first mistake in the words of key_normalize for a key.
func CheckNormalize(words []string, of *Template) error {
	for i, word := range words {
		switch {
		case word != normalizeLower && word != normalizeTrim && word != normalizeOff:
			return fmt.Errorf("unknown key_normalize %q; write lower, trim, both, or off", word)
		case slices.Contains(words[:i], word):
			return fmt.Errorf("key_normalize has %s twice; remove one", word)
		case word == normalizeOff && len(words) > 1:
			return fmt.Errorf("key_normalize off stands alone; remove off, or the other words")
		}
	}
	if len(words) > 0 && !of.normalizable() {
		return fmt.Errorf("key_normalize %s: the key holds nothing that can be written in several ways; remove it, or write for example key {form.username}", strings.Join(words, " "))
	}
	return nil
}

// normalizable reports whether the key has a part that normalization changes:
// addresses and hosts have one spelling.
func (t *Template) normalizable() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.normalizable() })
}

func (p *part) normalizable() bool {
	switch p.kind {
	case partHeader, partCredentials, partCookie, partQuery, partBody, partPlaceholder:
		return !p.address()
	}
	return false
}

// collators compare as databases do that do not care for case: MySQL's default also
// takes é for e, ß for ss and full width letters for others, and passes over
// characters that are not seen. A collator belongs to one goroutine at a time.
var collators = sync.Pool{New: func() any { return &collator{Collator: collate.New(language.Und, collate.Loose)} }}

type collator struct {
	*collate.Collator
	buffer collate.Buffer
}

// maxNormalized is the longest value that is made alike, in bytes, as the longest of
// a body: a collator takes up to a second of a processor for a header of a megabyte.
const maxNormalized = 4 << 10

// normalize makes the values alike that dst ends with, from start on, and tells if that
// leaves nothing. A value that is too long is left out.
func (n Normalization) normalize(dst []byte, start int) ([]byte, Lack) {
	if n.trim {
		value := bytes.TrimFunc(dst[start:], unseen)
		dst = append(dst[:start], value...)
	}
	if len(dst)-start > maxNormalized {
		return dst[:start], LackAmbiguous
	}
	if n.lower && len(dst) > start {
		c := collators.Get().(*collator)
		dst = append(dst[:start], c.Key(&c.buffer, dst[start:])...)
		c.buffer.Reset()
		collators.Put(c)
	}
	if len(dst) == start {
		return dst, LackMissing
	}
	return dst, LackNothing
}

// unseen reports whether a character is not seen at the end of a value.
func unseen(c rune) bool {
	return unicode.IsSpace(c) || unicode.In(c, unicode.Cc, unicode.Cf)
}
