package replay

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxPrinted is how many characters of a key are shown.
const maxPrinted = 80

// Printable is text from a log as it can be printed: a stranger has written it, who could
// otherwise move the cursor of a terminal.
func Printable(text string) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > maxPrinted {
			b.WriteString("...")
			break
		}
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// number is a number with commas.
func number(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// percent is a share, with as many digits as it needs.
func percent(part, whole int64) string {
	switch share := 100 * float64(part) / float64(max(whole, 1)); {
	case part == 0 || part == whole:
		return fmt.Sprintf("%.0f %%", share)
	case share < 0.01:
		return "under 0.01 %"
	case share > 99.99:
		return "over 99.99 %"
	default:
		return fmt.Sprintf("%.2f %%", share)
	}
}

func shareText(share float64) string {
	return strconv.FormatFloat(share*100, 'f', -1, 32) + " %"
}

const timeFormat = "2006-01-02 15:04"

// printer remembers the first error of a writer.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// table writes rows whose cells, which end with tabs, stand in columns.
func (p *printer) table(write func(t io.Writer)) {
	var text bytes.Buffer
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	write(t)
	t.Flush() // into memory, which does not fail
	for line := range strings.Lines(text.String()) {
		p.printf("%s\n", strings.TrimRight(line, " \n"))
	}
}

// WriteText writes the result for people.
func (r *Result) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.printf("%s requests from %s to %s UTC (%s)\n", number(r.Requests), r.From.Format(timeFormat), r.To.Format(timeFormat), span(r.To.Sub(r.From)))
	if r.Unlimited > 0 {
		p.printf("%s of them no zone applies to (%s)\n", number(r.Unlimited), percent(r.Unlimited, r.Requests))
	}
	if r.Logged.Compared > 0 {
		p.printf("The log has decisions of its own: %s requests were refused then; the replay decides %s of %s otherwise\n",
			number(r.Logged.Refused), number(r.Logged.Differ), number(r.Logged.Compared))
	}
	for i := range r.Zones {
		r.Zones[i].write(p)
	}
	if len(r.Notes) > 0 {
		p.printf("\n")
	}
	for _, note := range r.Notes {
		p.printf("Note: %s.\n", note)
	}
	p.printf("\n%s lines, %s, in %.1f s: %s lines a second\n", number(r.Lines), size(r.Bytes), r.Seconds, number(int64(r.LinesPerSecond)))
	return p.err
}

func (z *ZoneResult) write(p *printer) {
	p.printf("\nZone %s: %s, by %s%s\n", z.Name, z.Limit, z.Key, map[bool]string{true: ", dry run"}[z.DryRun])
	defer func() {
		for _, note := range z.Notes {
			p.printf("  Note: %s.\n", note)
		}
	}()
	if z.Unreplayed != "" {
		p.printf("  Not replayed: %s.\n", z.Unreplayed)
		return
	}
	p.table(func(t io.Writer) {
		fmt.Fprintf(t, "  requests\t%s\t\n", number(z.Requests))
		fmt.Fprintf(t, "  would be refused\t%s\t%s\n", number(z.Refused), percent(z.Refused, z.Requests))
		fmt.Fprintf(t, "  clients\t%s\t\n", number(int64(z.Clients)))
		fmt.Fprintf(t, "  clients refused\t%s\t%s\n", number(int64(z.ClientsRefused)), percent(int64(z.ClientsRefused), int64(z.Clients)))
		if z.Exempt > 0 {
			fmt.Fprintf(t, "  exempt requests\t%s\t\n", number(z.Exempt))
		}
		if z.Unknown > 0 {
			fmt.Fprintf(t, "  not decidable\t%s\t\n", number(z.Unknown))
		}
	})
	if z.Requests > 0 {
		p.printf("  worst minute: %s UTC, %s of %s requests refused\n", z.Worst.Start.Format(timeFormat), number(z.Worst.Refused), number(z.Worst.Requests))
	}
	z.writeMost(p)
	z.writeSuggestions(p)
}

func (z *ZoneResult) writeMost(p *printer) {
	if len(z.Most) == 0 {
		return
	}
	p.printf("  most affected:\n")
	p.table(func(t io.Writer) {
		fmt.Fprintf(t, "    client\trefused\tof requests\n")
		for _, c := range z.Most {
			fmt.Fprintf(t, "    %s\t%s\t%s\n", c.Key, number(c.Refused), number(c.Requests))
		}
	})
}

func (z *ZoneResult) writeSuggestions(p *printer) {
	if len(z.Curves) == 0 || len(z.Curves[0].Limits) == 0 {
		return
	}
	if z.Curves[0].Window == 0 {
		for _, s := range z.Curves[0].Limits {
			p.printf("  %s of the clients never had more than %s in flight\n", shareText(s.Share), number(s.Limit))
		}
		return
	}
	p.printf("  least limit that a share of the clients would never have noticed:\n")
	p.table(func(t io.Writer) {
		fmt.Fprintf(t, "    window")
		for _, s := range z.Curves[0].Limits {
			fmt.Fprintf(t, "\t%s", shareText(s.Share))
		}
		fmt.Fprintf(t, "\n")
		for _, c := range z.Curves {
			fmt.Fprintf(t, "    %v", c.Window)
			for _, s := range c.Limits {
				fmt.Fprintf(t, "\t%s", number(s.Limit))
			}
			fmt.Fprintf(t, "\n")
		}
	})
}

// span is a length of time in two units at most.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days %d h", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
