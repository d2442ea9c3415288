package distributedratelimit

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// The parsers of the handler, the app and the stores share what follows.

// places remembers where options stand, so that each is given once, and
// mistakes that are found later point at their line.
type places map[place]caddyfile.Dispenser

type place struct{ zone, field string } // zone is empty outside of zones

// mark remembers that a field stands at the current token.
func (p places) mark(d *caddyfile.Dispenser, zone, field string) { p[place{zone, field}] = *d }

// once marks the option at the current token, and rejects it if it was there
// before.
func (p places) once(d *caddyfile.Dispenser, zone string) error {
	if first, ok := p[place{zone, d.Val()}]; ok {
		return d.Errf("%s is already given on line %d; remove one", d.Val(), first.Line())
	}
	p.mark(d, zone, d.Val())
	return nil
}

// locate turns a mistake into an error that points at its line, or at the
// nearest thing that is written at all.
func (p places) locate(d *caddyfile.Dispenser, mistake *configError) error {
	for _, where := range []place{{mistake.zone, mistake.field}, {"", mistake.field}, {mistake.zone, "zone"}, {"", "zone"}} {
		if at, ok := p[where]; ok {
			return at.Errf("%v", mistake)
		}
	}
	return d.Errf("%v", mistake)
}

func parseWord(d *caddyfile.Dispenser, into *string) error {
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

func parseInteger(d *caddyfile.Dispenser, into *int) error {
	word, text := d.Val(), ""
	if err := parseWord(d, &text); err != nil {
		return err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return d.Errf("%s %q is not a whole number", word, text)
	}
	*into = n
	return nil
}

// parseSize parses a number of bytes.
func parseSize(d *caddyfile.Dispenser, into *int64) error {
	word, text := d.Val(), ""
	if err := parseWord(d, &text); err != nil {
		return err
	}
	size, err := humanize.ParseBytes(text)
	if err != nil || size == 0 || size > math.MaxInt64 {
		return d.Errf("%s %q is not a size above zero; write for example 64KiB or 1MiB", word, text)
	}
	*into = int64(size)
	return nil
}

func parseDuration(d *caddyfile.Dispenser, into *caddy.Duration) error {
	word, text := d.Val(), ""
	if err := parseWord(d, &text); err != nil {
		return err
	}
	duration, err := caddy.ParseDuration(text)
	if err != nil || duration <= 0 {
		return d.Errf("%s %q is not a duration above zero; write for example 100ms, 10s, 1m or 1d%s", word, text, secondsHint(text))
	}
	*into = caddy.Duration(duration)
	return nil
}

var rateForm = regexp.MustCompile(`^(\d+) ?r?/([smhd])$`)

// rateWords reads a rate as other servers write it, 30r/m, 30/m or 30 r/m.
func rateWords(args []string) (events, window string, ok bool) {
	m := rateForm.FindStringSubmatch(strings.Join(args, " "))
	if m == nil {
		return "", "", false
	}
	return m[1], "1" + m[2], true
}

// secondsHint is what to write for a duration without a unit.
func secondsHint(text string) string {
	if n, err := strconv.Atoi(text); err != nil || n <= 0 {
		return ""
	}
	return "; for seconds write " + text + "s"
}

func parseTrustedProxies(d *caddyfile.Dispenser, into *ClientAddress) error {
	if !d.NextArg() {
		return d.Err("trusted_proxies needs an IP source; write for example: trusted_proxies static private_ranges")
	}
	at, name := *d, d.Val()
	if name == "hops" {
		if err := parseInteger(d, &into.TrustedHops); err != nil {
			return err
		}
		if into.TrustedHops == 0 {
			return d.Err("hops 0 are not between 1 and 32; write how many proxies a request passes")
		}
		return nil
	}
	if looksLikeRange(name) {
		rest := append([]string{name}, d.RemainingArgs()...)
		return d.Errf("%q is not an IP source; write: trusted_proxies static %s", name, strings.Join(rest, " "))
	}
	id := "http.ip_sources." + name
	if _, err := caddy.GetModule(id); err != nil {
		return d.Errf("there is no IP source %q; write for example: trusted_proxies static private_ranges, or build Caddy with the plugin that has the module %s", name, id)
	}
	module, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	ipSource, ok := module.(caddyhttp.IPRangeSource)
	if !ok {
		return d.Errf("module %q is not an IP source; write for example: trusted_proxies static private_ranges", name)
	}
	if err := checkStaticRanges(ipSource); err != nil {
		return at.Errf("trusted_proxies: %v", err)
	}
	into.TrustedProxiesRaw = caddyconfig.JSONModuleObject(ipSource, "source", name, nil)
	return nil
}

// checkStaticRanges finds mistakes in ranges that are written out. The ranges of
// other IP sources are only known to the server.
func checkStaticRanges(ipSource caddyhttp.IPRangeSource) error {
	static, ok := ipSource.(*caddyhttp.StaticIPRange)
	if !ok {
		return nil
	}
	module, err := provisionAlone("http.ip_sources.static", caddyconfig.JSON(static, nil))
	switch {
	case err != nil && slices.ContainsFunc(static.Ranges, hasPlaceholder):
		return fmt.Errorf("%v; the IP source static knows no placeholders, but environment variables can be written as {$PROXIES}", err)
	case err != nil:
		return fmt.Errorf("%v; %s", err, writeRanges)
	}
	return checkTrustable(module.(caddyhttp.IPRangeSource))
}

func looksLikeRange(word string) bool {
	if word == "private_ranges" {
		return true
	}
	if _, err := netip.ParsePrefix(word); err == nil {
		return true
	}
	_, err := netip.ParseAddr(word)
	return err == nil
}

func parseClientIPHeaders(d *caddyfile.Dispenser, into *ClientAddress) error {
	if into.ClientIPHeaders = d.RemainingArgs(); len(into.ClientIPHeaders) == 0 {
		return d.Err("client_ip_headers needs the name of a header; write for example: client_ip_headers X-Forwarded-For")
	}
	return nil
}

// parseStore parses: store <name> ...
func parseStore(d *caddyfile.Dispenser) (json.RawMessage, error) {
	if !d.NextArg() {
		return nil, d.Err("store needs a name; write memory or redis")
	}
	name := d.Val()
	id := "distributed_ratelimit.stores." + name
	if _, err := caddy.GetModule(id); err != nil {
		return nil, d.Errf("there is no store %q; write memory or redis, or build Caddy with the plugin that has the module %s", name, id)
	}
	module, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return nil, err
	}
	s, ok := module.(store.Store)
	if !ok {
		return nil, d.Errf("module %s is not a store", id)
	}
	return caddyconfig.JSONModuleObject(s, "module", name, nil), nil
}

// unknownOption rejects a word that is no option; known lists the options. For
// options of other rate limiters the error says what to write here.
func unknownOption(d *caddyfile.Dispenser, known string) error {
	switch word := d.Val(); word {
	case "distributed":
		return d.Err("distributed is not an option here: limits are shared by all instances with the same store; write the global option: distributed_ratelimit { store redis <url> }")
	case "storage":
		return d.Err("storage is not an option here; write the global option: distributed_ratelimit { store redis <url> }")
	case "sweep_interval":
		return d.Err("sweep_interval is not an option here: nothing needs to be swept; remove it")
	default:
		return d.Errf("unknown option %q; write %s", word, known)
	}
}
