package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// The picture, in its own units: a terminal of 80 columns.
const (
	columns, rows = 84, 22
	advance, leap = 8.4, 20.0 // of a character, and of a line
	margin        = 14.0
	typing        = 35 * time.Millisecond // for a character
	pause         = 700 * time.Millisecond
	reading       = 1500 * time.Millisecond // of a comment
	longest       = 2 * time.Second         // that anything takes
	finally       = 6 * time.Second         // before it begins again
	together      = 90 * time.Millisecond   // what comes within this comes at once
	typedAtOnce   = 4                       // characters
)

// glyphs is text that appears at a moment.
type glyphs struct {
	at       time.Duration
	row, col int
	class    string
	text     string
}

// stage lays out what is shown, and when.
type stage struct {
	now      time.Duration
	row, col int
	shown    []glyphs
}

func (s *stage) put(class, text string) {
	if text == "" {
		return
	}
	s.shown = append(s.shown, glyphs{s.now, s.row, s.col, class, text})
	s.col += utf8.RuneCountInString(text)
}

func (s *stage) newLine() { s.row, s.col = s.row+1, 0 }

// typed shows text a few characters at a time.
func (s *stage) typed(class, text string) {
	for runes := []rune(text); len(runes) > 0; {
		n := min(typedAtOnce, len(runes))
		s.now += time.Duration(n) * typing
		s.put(class, string(runes[:n]))
		runes = runes[n:]
	}
}

// printed shows output, in the colors of what it says, and breaks long lines.
func (s *stage) printed(text string) {
	for _, word := range words.FindAllString(text, -1) {
		if word == "\n" {
			s.newLine()
			continue
		}
		if s.col+utf8.RuneCountInString(strings.TrimRight(word, " ")) > columns {
			s.newLine()
		}
		class := "o"
		switch {
		case strings.HasPrefix(word, "200"):
			class = "y"
		case strings.HasPrefix(word, "429"):
			class = "n"
		}
		if last := len(s.shown) - 1; last >= 0 && s.shown[last].at == s.now && s.shown[last].class == class &&
			s.shown[last].row == s.row && s.col > 0 {
			s.shown[last].text += word
			s.col += utf8.RuneCountInString(word)
			continue
		}
		s.put(class, word)
	}
}

var words = regexp.MustCompile(`\n|[^\s]+[ \t]*|[ \t]+`)

// play shows a take.
func (s *stage) play(t take) {
	if strings.HasPrefix(t.text, "#") {
		s.put("c", t.text)
		s.newLine()
		s.now += reading
		return
	}
	s.put("p", "$ ")
	s.now += pause / 2
	s.typed("o", t.text)
	s.now += pause / 3
	s.newLine()
	began := s.now
	var cut, last time.Duration
	for _, p := range t.output {
		if p.after-last > longest {
			cut += p.after - last - longest
		}
		last = p.after
		s.now = max(s.now, (began+p.after-cut)/together*together)
		s.printed(strings.ReplaceAll(strings.ReplaceAll(p.text, "\r", ""), "\t", "  "))
	}
	if s.col > 0 {
		s.newLine()
	}
	s.now += pause
}

const style = `<style>
svg { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
text { white-space: pre; fill: #1f2328 } .back { fill: #f6f8fa; stroke: #d1d9e0 }
.c { fill: #59636e } .p { fill: #0969da } .y { fill: #1a7f37 } .n { fill: #cf222e }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .back { fill: #0d1117; stroke: #3d444d }
.c { fill: #9198a1 } .p { fill: #58a6ff } .y { fill: #3fb950 } .n { fill: #f85149 }
}
g { animation-duration: %.2fs; animation-iteration-count: infinite; animation-timing-function: steps(1) }
@media (prefers-reduced-motion: reduce) { g { animation-play-state: paused; animation-delay: -%.2fs } }
`

// draw makes a film of takes. Everything that appears at one moment is one group,
// which an animation of its own shows; one more group moves everything up when the
// terminal is full.
func draw(takes []take) string {
	var s stage
	for _, t := range takes {
		s.play(t)
	}
	total := s.now + finally
	percent := func(at time.Duration) float64 { return 100 * float64(at) / float64(total) }

	var css, body strings.Builder
	fmt.Fprintf(&css, style, total.Seconds(), (s.now + finally/2).Seconds())
	scrolled := 0
	var scroll strings.Builder
	moment, group := time.Duration(-1), 0
	for _, g := range s.shown {
		if g.at != moment {
			if group > 0 {
				body.WriteString("</g>\n")
			}
			moment, group = g.at, group+1
			fmt.Fprintf(&body, `<g style="animation-name:a%d">`, group)
			fmt.Fprintf(&css, "@keyframes a%d{0%%{opacity:0}%.2f%%{opacity:1}}\n", group, max(percent(g.at), 0.01))
		}
		if g.row-rows+1 > scrolled {
			scrolled = g.row - rows + 1
			fmt.Fprintf(&scroll, "%.2f%%{transform:translateY(%.0fpx)}", percent(g.at), -leap*float64(scrolled))
		}
		fmt.Fprintf(&body, `<text class="%s" x="%.1f" y="%.0f" textLength="%.1f">%s</text>`,
			g.class, advance*float64(g.col), leap*float64(g.row)+15, advance*float64(utf8.RuneCountInString(g.text)), escape(g.text))
	}
	body.WriteString("</g>\n")
	fmt.Fprintf(&css, "@keyframes up{0%%{transform:translateY(0)}%s}\n</style>\n", scroll.String())

	width, height := columns*advance+2*margin, rows*leap+2*margin
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" role="img" aria-label="A terminal: three Caddys together grant 30 of 60 requests, and again 30 of 60 when their Redis is gone">`+"\n", width, height)
	b.WriteString(css.String())
	fmt.Fprintf(&b, `<rect class="back" x="0.5" y="0.5" width="%.0f" height="%.0f" rx="8"/>`+"\n", width-1, height-1)
	fmt.Fprintf(&b, `<svg x="%.0f" y="%.0f" width="%.0f" height="%.0f"><g style="animation-name:up">`+"\n%s</g></svg>\n</svg>\n",
		margin, margin, columns*advance, rows*leap, body.String())
	return b.String()
}

func escape(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
