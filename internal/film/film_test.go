package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// text is all text that a picture shows, which must be well-formed.
func text(t *testing.T, picture string) string {
	t.Helper()
	var b strings.Builder
	shown := false
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		token, err := d.Token()
		switch {
		case errors.Is(err, io.EOF):
			return b.String()
		case err != nil:
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			shown = token.Name.Local == "text"
		case xml.CharData:
			if shown {
				b.Write(token)
			}
		case xml.EndElement:
			shown = false
		}
	}
}

// TestFilmIsUpToDate: the film shows these scenes, is small, and needs nothing
// from elsewhere.
func TestFilmIsUpToDate(t *testing.T) {
	film, err := os.ReadFile("../../docs/film.svg")
	if err != nil {
		t.Fatal(err)
	}
	if len(film) > 100_000 {
		t.Errorf("%d bytes", len(film))
	}
	for _, word := range []string{"<script", "<image", "href", "url("} {
		if strings.Contains(string(film), word) {
			t.Errorf("it has %s", word)
		}
	}
	rest := text(t, string(film))
	for _, sc := range scenes {
		_, after, ok := strings.Cut(rest, sc.text)
		if !ok {
			t.Fatalf("%q is not in it, or not in its place; run scripts/film", sc.text)
		}
		rest = after
	}
}

// TestDraw: lines break where the terminal ends, what is too slow is cut, and
// everything has its moment.
func TestDraw(t *testing.T) {
	var s stage
	s.play(take{"# said <at once>", nil})
	s.play(take{"ask", []piece{
		{time.Second, strings.Repeat("200 ", 20)},
		{time.Hour, "429 429 \n"},
	}})
	var rows []int
	for i, g := range s.shown {
		if i > 0 && g.at < s.shown[i-1].at {
			t.Errorf("%q comes before what is shown before it", g.text)
		}
		if g.class == "y" || g.class == "n" {
			rows = append(rows, g.row)
		}
	}
	if want := []int{2, 2, 3}; !slices.Equal(rows, want) {
		t.Errorf("the output stands in rows %v, want %v", rows, want)
	}
	if s.now > 15*time.Second {
		t.Errorf("it takes %v", s.now)
	}
	if got := text(t, draw([]take{{"# said <at once>", nil}})); got != "# said <at once>" {
		t.Errorf("%q", got)
	}
}
