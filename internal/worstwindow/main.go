// Command worstwindow draws what each limiter granted at most within one window,
// from the tables of docs/benchmarks.md to docs/benchmarks/worst.svg:
//
//	go run ./internal/worstwindow
//
// make bench runs it after it has written the tables.
package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

const (
	from = "docs/benchmarks.md"
	to   = "docs/benchmarks/worst.svg"
)

func main() {
	page, err := os.ReadFile(from)
	if err == nil {
		var picture string
		if picture, err = draw(string(page)); err == nil {
			err = os.WriteFile(to, []byte(picture), 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "worstwindow:", err)
		os.Exit(1)
	}
}

// bar is what a limiter granted at most in any window of any attack, in percent
// of the limit.
type bar struct {
	limiter string
	percent float64
}

// read finds the tables of attacks in the page, and the worst row of each limiter.
// This module's rows are one bar.
func read(page string) ([]bar, error) {
	_, section, ok := strings.Cut(page, "\n## Accuracy\n")
	if !ok {
		return nil, fmt.Errorf("%s has no section Accuracy", from)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var bars []bar
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 8 || !strings.Contains(cells[4], "%") {
			continue
		}
		percent, err := strconv.ParseFloat(strings.Trim(cells[4], " %"), 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w in: %s", from, err, line)
		}
		name := strings.TrimSpace(cells[0])
		if strings.HasPrefix(name, "this module") {
			name = "this module"
		}
		i := slices.IndexFunc(bars, func(b bar) bool { return b.limiter == name })
		if i < 0 {
			bars = append(bars, bar{limiter: name})
			i = len(bars) - 1
		}
		bars[i].percent = max(bars[i].percent, percent)
	}
	if len(bars) == 0 {
		return nil, fmt.Errorf("%s has no rows of attacks", from)
	}
	return bars, nil
}

// The picture, in its own units.
const (
	width, left, right = 760, 280, 70
	top, step, height  = 64, 30, 18
	scale              = 500.0 // percent, the right end
)

// head is the style, for light and dark pages.
const head = `<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.back { fill: #ffffff } .title { font-weight: 600; font-size: 15px } .note { font-size: 12px; fill: #59636e }
.over { fill: #cf222e } .held { fill: #1a7f37 } .limit { stroke: #59636e; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .back { fill: #0d1117 } .note { fill: #9198a1 } .over { fill: #f85149 } .held { fill: #3fb950 } .limit { stroke: #9198a1 }
}
</style>
`

func draw(page string) (string, error) {
	bars, err := read(page)
	if err != nil {
		return "", err
	}
	x := func(percent float64) float64 { return left + min(percent, scale)/scale*(width-left-right) }
	bottom := top + len(bars)*step
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="The most that each limiter granted within one window, in percent of the limit">`+"\n", width, bottom+46)
	b.WriteString(head)
	fmt.Fprintf(&b, `<rect class="back" width="%d" height="%d" rx="6"/>`+"\n", width, bottom+46)
	fmt.Fprintf(&b, `<text class="title" x="20" y="28">The most requests granted within one window, in percent of the limit</text>`+"\n")
	fmt.Fprintf(&b, `<text class="note" x="%.0f" y="%d" text-anchor="middle">the limit</text>`+"\n", x(100), top-8)
	for i, bar := range bars {
		y, class := top+i*step, "over"
		if bar.percent <= 100 {
			class = "held"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/><text x="%.1f" y="%d">%.4g %%</text>`+"\n",
			left-10, y+height-4, escape(bar.limiter), class, left, y, x(bar.percent)-left, height, x(bar.percent)+6, y+height-4, bar.percent)
	}
	fmt.Fprintf(&b, `<line class="limit" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`+"\n", x(100), top-4, x(100), bottom)
	fmt.Fprintf(&b, `<text class="note" x="20" y="%d">Eight instances of each (Express: one), sixteen attackers, the worst of three attacks. x/time/rate counts for each process.</text>`+"\n", bottom+16)
	fmt.Fprintf(&b, `<text class="note" x="20" y="%d">Measured side by side by make bench: docs/benchmarks.md.</text>`+"\n", bottom+34)
	b.WriteString("</svg>\n")
	return b.String(), nil
}

func escape(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
