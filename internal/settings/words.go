package settings

import (
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"
)

// Places remembers where options stand, so that each is given once, and
// mistakes that are found later point at their line.
type Places map[place]caddyfile.Dispenser

type place struct{ zone, field string } // zone is empty outside of zones

// Mark remembers that a field stands at the current token. zone is empty outside of
// zones.
func (p Places) Mark(d *caddyfile.Dispenser, zone, field string) { p[place{zone, field}] = *d }

// Find returns where a field stands, if it is written.
func (p Places) Find(zone, field string) (at caddyfile.Dispenser, ok bool) {
	at, ok = p[place{zone, field}]
	return at, ok
}

// Once marks the option at the current token, and rejects it if it was there
// before.
func (p Places) Once(d *caddyfile.Dispenser, zone string) error {
	if first, ok := p[place{zone, d.Val()}]; ok {
		return d.Errf("%s is already given on line %d; remove one", d.Val(), first.Line())
	}
	p.Mark(d, zone, d.Val())
	return nil
}

// Locate turns a mistake into an error that points at its line, or at the
// nearest thing that is written at all.
func (p Places) Locate(d *caddyfile.Dispenser, mistake *Mistake) error {
	for _, where := range []place{{mistake.Zone, mistake.Field}, {"", mistake.Field}, {mistake.Zone, "zone"}, {"", "zone"}} {
		if at, ok := p[where]; ok {
			return at.Errf("%v", mistake)
		}
	}
	return d.Errf("%v", mistake)
}

// The functions that parse a word take it at the current token, and leave its setting
// as it is if they fail. Their errors name the line, the word and what to write.

// ParseWord parses a word with one argument, which is not empty.
func ParseWord(d *caddyfile.Dispenser, into *string) error {
	word := d.Val()
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.Errf("%s takes one argument, not %d", word, len(args))
	}
	if args[0] == "" {
		return d.Errf("%s is empty; write a value, or remove it for the default", word)
	}
	*into = args[0]
	return nil
}

// ParseFlag parses a word without arguments.
func ParseFlag(d *caddyfile.Dispenser, into *bool) error {
	word := d.Val()
	if d.NextArg() {
		return d.Errf("%s takes no argument; remove %q", word, d.Val())
	}
	*into = true
	return nil
}

// ParseInteger parses a word with a whole number of any sign.
func ParseInteger(d *caddyfile.Dispenser, into *int) error {
	word, text := d.Val(), ""
	if err := ParseWord(d, &text); err != nil {
		return err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return d.Errf("%s %q is not a whole number", word, text)
	}
	*into = n
	return nil
}

// ParseSize parses a word with a number of bytes above zero, such as 64KiB.
func ParseSize(d *caddyfile.Dispenser, into *int64) error {
	word, text := d.Val(), ""
	if err := ParseWord(d, &text); err != nil {
		return err
	}
	size, err := humanize.ParseBytes(text)
	if err != nil || size == 0 || size > math.MaxInt64 {
		return d.Errf("%s %q is not a size above zero; write for example 64KiB or 1MiB", word, text)
	}
	*into = int64(size)
	return nil
}

// ParseDuration parses a word with a duration above zero, in the units of Go or in days.
func ParseDuration(d *caddyfile.Dispenser, into *caddy.Duration) error {
	word, text := d.Val(), ""
	if err := ParseWord(d, &text); err != nil {
		return err
	}
	duration, err := caddy.ParseDuration(text)
	if err != nil || duration <= 0 {
		return d.Errf("%s %q is not a duration above zero; write for example 100ms, 10s, 1m or 1d%s", word, text, SecondsHint(text))
	}
	*into = caddy.Duration(duration)
	return nil
}

var rateForm = regexp.MustCompile(`^(\d+) ?r?/([smhd])$`)

// ParseRate reads a rate as other servers write it, 30r/m, 30/m or 30 r/m. The events
// and the window, such as 1m, are as a zone has them.
func ParseRate(args []string) (events, window string, ok bool) {
	m := rateForm.FindStringSubmatch(strings.Join(args, " "))
	if m == nil {
		return "", "", false
	}
	return m[1], "1" + m[2], true
}

// SecondsHint ends an error with what to write for a duration without a unit. It is
// empty for any other text.
func SecondsHint(text string) string {
	if n, err := strconv.Atoi(text); err != nil || n <= 0 {
		return ""
	}
	return "; for seconds write " + text + "s"
}

// HasPlaceholder reports whether text can be judged only once its
// placeholders are expanded.
func HasPlaceholder(text string) bool { return strings.Contains(text, "{") }
