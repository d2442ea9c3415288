package distributedratelimit

import (
	"cmp"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// headerStyle says which headers tell clients about their limits, and when.
type headerStyle struct {
	draft, legacy bool
	when          headersWhen
}

type headersWhen uint8

const (
	headersOff headersWhen = iota
	headersRefused
	headersAlways
)

func checkHeaderStyle(words []string) *configError {
	for i, word := range words {
		switch word {
		case "draft", "legacy", "refused", "always", "off":
		default:
			return wrong("ratelimit_headers", "unknown word %q in ratelimit_headers; write draft, legacy or both, then refused or always; or off", word)
		}
		if slices.Contains(words[:i], word) {
			return wrong("ratelimit_headers", "ratelimit_headers has %q twice; remove one", word)
		}
	}
	if slices.Contains(words, "off") && len(words) > 1 {
		return wrong("ratelimit_headers", "ratelimit_headers off stands alone; remove it or the other words")
	}
	if slices.Contains(words, "refused") && slices.Contains(words, "always") {
		return wrong("ratelimit_headers", "ratelimit_headers refused and always exclude each other; always includes refusals")
	}
	return nil
}

// parseHeaderStyle reads words that checkHeaderStyle has passed.
func parseHeaderStyle(words []string) headerStyle {
	style := headerStyle{when: headersRefused}
	for _, word := range words {
		switch word {
		case "draft":
			style.draft = true
		case "legacy":
			style.legacy = true
		case "always":
			style.when = headersAlways
		case "off":
			style.when = headersOff
		}
	}
	style.draft = style.draft || !style.legacy
	return style
}

// headerZone is what headers tell about one zone.
type headerZone struct {
	name             string
	limit, remaining int64
	window, reset    int64 // s; reset is noReset if waiting does not help
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
	for i := range e.verdicts {
		v := &e.verdicts[i]
		if v.zone.DryRun || v.zone.Hide || v.zone.Concurrent != nil || !v.counted && v.reason != reasonTooCostly {
			continue
		}
		zone := headerZone{
			name: v.zone.Name, limit: v.limit, remaining: v.Remaining,
			window: wholeSeconds(v.zone.window), reset: wholeSeconds(v.Reset),
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
	if s.draft {
		var room [2][128]byte
		policy, limit := room[0][:0], room[1][:0]
		for i := range zones {
			z := &zones[i]
			policy = appendItem(policy, z.name, "q", z.limit, "w", z.window)
			if z.remaining != notCounted {
				limit = appendItem(limit, z.name, "r", z.remaining, "t", z.reset)
			}
		}
		values := []string{string(policy), string(limit)}
		header["Ratelimit-Policy"] = values[0:1:1]
		if delete(header, "Ratelimit"); len(limit) > 0 {
			header["Ratelimit"] = values[1:2:2]
		}
	}
	if s.legacy {
		// These can tell of one zone only: the one nearest to its limit.
		z := slices.MinFunc(zones, func(a, b headerZone) int {
			return cmp.Compare(share(true, a.remaining, a.limit), share(true, b.remaining, b.limit))
		})
		header["X-Ratelimit-Limit"] = []string{strconv.FormatInt(z.limit, 10)}
		delete(header, "X-Ratelimit-Remaining")
		delete(header, "X-Ratelimit-Reset")
		if z.remaining != notCounted {
			header["X-Ratelimit-Remaining"] = []string{strconv.FormatInt(z.remaining, 10)}
		}
		if z.reset != noReset {
			header["X-Ratelimit-Reset"] = []string{strconv.FormatInt(z.reset, 10)}
		}
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
	hw.style.draft = hw.style.draft || style.draft
	hw.style.legacy = hw.style.legacy || style.legacy
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
	style.draft = style.draft && header["Ratelimit"] == nil && header["Ratelimit-Policy"] == nil
	style.legacy = style.legacy && header["X-Ratelimit-Limit"] == nil &&
		header["X-Ratelimit-Remaining"] == nil && header["X-Ratelimit-Reset"] == nil
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
