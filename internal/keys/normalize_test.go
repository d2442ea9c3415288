package keys

import (
	"strings"
	"testing"
)

// FuzzNormalize: whatever a client sends, its key is the same in any case, with any
// space around it, and when a collator is used again.
func FuzzNormalize(f *testing.F) {
	for _, seed := range []string{"", "ann", "Ånn", "ß", "a\u0300\u0316\u0301", "\u0300", "\xff\xfe", "한국", "İi", "\u0e40\u0e01", "a" + strings.Repeat("\u0301", 100)} {
		f.Add(seed)
	}
	both := Normalization{lower: true, trim: true}
	f.Fuzz(func(t *testing.T, value string) {
		key := func(value string) string {
			normal, _ := both.normalize([]byte("x"+value), 1)
			return string(normal)
		}
		want := key(value)
		if again := key(value); again != want {
			t.Errorf("normalize(%q): got %q and then %q", value, want, again)
		}
		if spaced := key(" \t" + value + "\u00a0"); spaced != want {
			t.Errorf("normalize(%q): got %q, with space around it %q", value, want, spaced)
		}
		for i := range len(value) {
			if value[i] >= 0x80 {
				return // the cases of other letters are the library's
			}
		}
		if upper := key(strings.ToUpper(value)); upper != want {
			t.Errorf("normalize(%q): got %q, in upper case %q", value, want, upper)
		}
	})
}

// A collator is slow: what a client makes it read is bounded, whatever the client sends.
func TestLongValuesAreNotNormalized(t *testing.T) {
	both := Normalization{lower: true, trim: true}
	for _, row := range []struct {
		value string
		want  Lack
	}{
		{strings.Repeat("a", maxNormalized), LackNothing},
		{strings.Repeat(" ", 1<<20) + "ann", LackNothing}, // this is no work
		{strings.Repeat("a", maxNormalized+1), LackAmbiguous},
		{strings.Repeat("가", 1<<18), LackAmbiguous},
		{strings.Repeat("\u0301", 10), LackMissing},
	} {
		normal, lacked := both.normalize([]byte("x"+row.value), 1)
		if lacked != row.want || (len(normal) > 1) != (row.want == LackNothing) {
			t.Errorf("normalize of %d bytes %.6q...: got %d bytes, %q, want %q", len(row.value), row.value, len(normal)-1, lacked, row.want)
		}
	}
}
