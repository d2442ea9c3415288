package replay

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// The end of headers is found where a plain search finds it.
func TestClosing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		text := make([]byte, 1+random.IntN(12))
		text[0] = '{'
		for i := range text[1:] {
			text[1+i] = `"]}[ a`[random.IntN(6)]
		}
		end, replaced := closing(text)
		want := bytes.Index(text, []byte(`"]}`))
		if end != want {
			t.Fatalf("%s ends at %d, want %d", text, end, want)
		}
		if end < 0 {
			continue
		}
		object := text[:end+3]
		if has := bytes.Contains(object, []byte(`"}`)); replaced != has {
			t.Fatalf("%s has a quote before a brace: %v, want %v", object, replaced, has)
		}
		if has := bytes.Contains(object, []byte("[]")) || bytes.Contains(object, []byte("] ")); spaced(object) != has {
			t.Fatalf("%s is spaced: %v, want %v", object, !has, has)
		}
	}
}
