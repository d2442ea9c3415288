package distributedratelimit

import (
	"cmp"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
)

// headerStyle says which headers tell clients about their limits, and when.
type headerStyle struct {
	draft, legacy *headerShape // nil for none
	when          headersWhen
}

type headersWhen uint8

const (
	headersOff headersWhen = iota
	headersRefused
	headersAlways
)

const (
	headerWords   = "draft, draft7 or draft6, and legacy or legacy_epoch, then refused or always; or off"
	prefixExample = "ratelimit_headers_prefix X-Rate-Limit"
)

// checkHeaderStyle finds mistakes in the words and in the prefix of the legacy
// fields, which is empty unless it is set.
func checkHeaderStyle(words []string, prefix string) *settings.Mistake {
	var draft, legacy, when string
	for i, word := range words {
		if slices.Contains(words[:i], word) {
			return settings.Wrong("ratelimit_headers", "ratelimit_headers has %q twice; remove one", word)
		}
		kind, why := &when, "always includes refusals"
		switch {
		case draftShapes[word] != nil:
			kind, why = &draft, "they are versions of the same fields; write the one that your clients read"
		case legacyWriters[word] != nil:
			kind, why = &legacy, "they give one field two meanings; write the one that your clients read"
		case word == "off":
			if len(words) > 1 {
				return settings.Wrong("ratelimit_headers", "ratelimit_headers off stands alone; remove it or the other words")
			}
			continue
		case word != "refused" && word != "always":
			return settings.Wrong("ratelimit_headers", "unknown word %q in ratelimit_headers; write "+headerWords, word)
		}
		if *kind != "" {
			return settings.Wrong("ratelimit_headers", "ratelimit_headers %s and %s exclude each other: %s", *kind, word, why)
		}
		*kind = word
	}
	return checkHeaderPrefix(prefix, draft, legacy)
}

// checkHeaderPrefix finds mistakes in the prefix, where these words are written.
func checkHeaderPrefix(prefix, draft, legacy string) *settings.Mistake {
	switch {
	case prefix == "":
		return nil
	case legacy == "":
		return settings.Wrong("ratelimit_headers_prefix", "ratelimit_headers_prefix names the fields of legacy and legacy_epoch; write ratelimit_headers with one of these words, or remove it")
	case len(prefix) > maxHeaderPrefix || !headerName.MatchString(prefix):
		return settings.Wrong("ratelimit_headers_prefix", "ratelimit_headers_prefix %q does not begin a name of a header; "+
			"write 1 to %d letters, digits and hyphens without a hyphen at the end, for example: "+prefixExample, prefix, maxHeaderPrefix)
	case draft == "draft6" && strings.EqualFold(prefix, "RateLimit"):
		return settings.Wrong("ratelimit_headers_prefix", "ratelimit_headers_prefix %s gives the names of draft6 to other fields; remove draft6, or choose another prefix", prefix)
	}
	return nil
}

const maxHeaderPrefix = 64

var headerName = regexp.MustCompile(`^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$`)

// parseHeaderStyle reads what checkHeaderStyle has passed.
func parseHeaderStyle(words []string, prefix string) headerStyle {
	style := headerStyle{when: headersRefused}
	for _, word := range words {
		switch {
		case draftShapes[word] != nil:
			style.draft = draftShapes[word]
		case legacyWriters[word] != nil:
			style.legacy = legacyShape(word, cmp.Or(prefix, legacyPrefix))
		case word == "always":
			style.when = headersAlways
		case word == "off":
			style.when = headersOff
		}
	}
	if style.legacy == nil && style.draft == nil {
		style.draft = draftShapes["draft"]
	}
	return style
}

// headerZone is what headers tell about one zone.
type headerZone struct {
	name             string
	unit             string // of limit and remaining; empty for requests
	limit, remaining int64
	window, reset    int64 // s; reset is noReset if waiting does not help
	decided          int64 // when, in seconds since 1970, rounded up
	reason           reason
	wait             time.Duration // if there is a reason
}

const (
	noReset = -1
	// notCounted stands for what remains of a limit that was not looked at: the
	// policy is told, and nothing else.
	notCounted = -1
)

// appendHeaderZones appends the zones that are in force. retryAfter is that of the
// response, 0 if it has none: for a zone that refused, the header's reset must
// not promise an earlier time. Zones that limit requests in flight have no window, and
// so no place there.
func (e *evaluation) appendHeaderZones(zones []headerZone, retryAfter int64) []headerZone {
	// A client that waits for a moment must not find it too early. So this is
	// rounded up, as the seconds from there on are.
	decided := time.Now().Add(time.Second - 1).Unix()
	for i := range e.verdicts {
		v := &e.verdicts[i]
		if v.zone.DryRun || v.zone.Hide || v.zone.Concurrent != nil || !v.counted && v.reason != reasonTooCostly {
			continue
		}
		zone := headerZone{
			name: v.zone.Name, limit: v.limit, remaining: v.Remaining,
			window: wholeSeconds(v.zone.window), reset: wholeSeconds(v.Reset),
			decided: decided, reason: v.reason, wait: v.wait(),
		}
		if v.zone.Usage != nil {
			zone.unit = v.zone.unit()
		}
		switch {
		case !v.counted:
			zone.remaining, zone.reset = notCounted, noReset
		case v.wait() == useless:
			zone.reset = noReset
		case v.reason != reasonNone:
			zone.reset = max(retryAfter, wholeSeconds(v.RetryAfter))
		}
		zones = append(zones, zone)
	}
	return zones
}

// set writes the headers for some zones, replacing what is there.
func (s headerStyle) set(header http.Header, zones []headerZone) {
	if s.when == headersOff || len(zones) == 0 {
		return
	}
	if s.draft != nil {
		s.draft.set(header, zones)
	}
	if s.legacy != nil {
		s.legacy.set(header, zones)
	}
}

// wholeSeconds rounds up to seconds.
func wholeSeconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}

// appendItem appends an item to a structured field list (RFC 9651): a string
// with two integer parameters, of which the second may be noReset. Names of
// zones need no escaping in it.
func appendItem(dst []byte, name, param1 string, value1 int64, param2 string, value2 int64) []byte {
	if len(dst) > 0 {
		dst = append(dst, ", "...)
	}
	dst = append(dst, '"')
	dst = append(dst, name...)
	dst = append(dst, `";`...)
	dst = append(dst, param1...)
	dst = strconv.AppendInt(append(dst, '='), value1, 10)
	if value2 == noReset {
		return dst
	}
	dst = append(dst, ';')
	dst = append(dst, param2...)
	return strconv.AppendInt(append(dst, '='), value2, 10)
}

// appendUnit appends the quota unit to a policy, as a parameter of its item: without
// one, clients take the quota for one of requests. It comes last, because some clients
// look for the others by their place.
func appendUnit(dst []byte, z *headerZone) []byte {
	if z.unit == "" {
		return dst
	}
	return append(append(append(dst, `;qu="`...), z.unit...), '"')
}

// headerWriter adds the headers to the response to a granted request at the last
// moment, when it shows whether the upstream has set some itself. Several
// handlers that a request passes share one.
type headerWriter struct {
	caddyhttp.ResponseWriterWrapper
	style headerStyle
	done  bool
	zones []headerZone
	few   [2]headerZone // room for the zones of most requests
}

// announce makes the response tell about the zones of an evaluation.
func (c *charges) announce(w http.ResponseWriter, style headerStyle, e *evaluation) http.ResponseWriter {
	if c.headers == nil || c.headers.done {
		c.headers = &headerWriter{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
		c.headers.zones = c.headers.few[:0]
		w = c.headers
	}
	hw := c.headers
	hw.style.when = headersAlways
	hw.style.draft = cmp.Or(hw.style.draft, style.draft)
	hw.style.legacy = cmp.Or(hw.style.legacy, style.legacy)
	hw.zones = e.appendHeaderZones(hw.zones, 0)
	return w
}

// forgetHeaders keeps what was announced out of the response: the request is
// refused after all, and the response tells of the zones that refused.
func (c *charges) forgetHeaders() {
	if c.headers != nil {
		c.headers.zones = nil
	}
}

// finishHeaders adds the headers to a response that nobody has begun to
// write: the server will, or an error route.
func (c *charges) finishHeaders(w http.ResponseWriter) {
	if w == http.ResponseWriter(c.headers) {
		c.headers.add()
	}
}

func (hw *headerWriter) add() {
	if hw.done {
		return
	}
	hw.done = true
	header := hw.Header()
	style := hw.style
	style.draft = style.draft.unlessSet(header)
	style.legacy = style.legacy.unlessSet(header)
	style.set(header, hw.zones)
}

// WriteHeader implements http.ResponseWriter.
func (hw *headerWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		hw.add()
	}
	hw.ResponseWriterWrapper.WriteHeader(status)
}

// ReadFrom implements io.ReaderFrom.
func (hw *headerWriter) ReadFrom(r io.Reader) (int64, error) {
	hw.add()
	return hw.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError lets http.ResponseController flush: it sends the header.
func (hw *headerWriter) FlushError() error {
	hw.add()
	return http.NewResponseController(hw.ResponseWriter).Flush()
}

// Write implements http.ResponseWriter.
func (hw *headerWriter) Write(p []byte) (int, error) {
	hw.add()
	return hw.ResponseWriterWrapper.Write(p)
}
