package replay

import (
	"bytes"
	"math"
	"strconv"
	"time"
)

// Line is what one line of an access log tells of a request. Its texts are parts of the
// line, and valid as long as that is.
type Line struct {
	// Start and End are when the request came and when it was done, in microseconds
	// since 1970.
	Start, End int64
	Status     int64
	Method     []byte
	Host       []byte
	URI        []byte
	Proto      []byte
	RemoteIP   []byte
	RemotePort []byte
	ClientIP   []byte // as the server saw it; empty if the log does not tell
	UserID     []byte
	TLS        *TLS // nil without TLS
	// Headers are those of the request and the response, as JSON objects; nil if
	// the log has none.
	Headers, RespHeaders []byte
	// Common: the log is in the common or the combined format, which tells neither the
	// host nor more than two headers.
	Common bool
	// Logged is the limiter's own outcome, if the log has it.
	Logged []byte

	tls TLS
}

// TLS is what is known of the connection.
type TLS struct {
	Version, CipherSuite uint16
	Proto, ServerName    []byte
	Resumed              bool
}

// kind is what a line is.
type kind uint8

const (
	kindRequest kind = iota
	kindOther        // a line of a log, but not of an access log
	kindBroken
)

// parse reads a line of whichever format.
func (l *Line) parse(line []byte) kind {
	*l = Line{}
	if len(line) > 0 && line[0] != '{' {
		// The console format of Caddy has columns in front of the JSON.
		if k := l.parseCommon(line); k != kindBroken {
			return k
		}
		start := bytes.IndexByte(line, '{')
		if start < 0 {
			return kindBroken
		}
		return l.parseConsole(line, start)
	}
	return l.parseJSON(line)
}

// parseConsole reads a line in Caddy's format for terminals: the time, tabs, and the
// fields as JSON.
func (l *Line) parseConsole(line []byte, start int) kind {
	k := l.parseJSON(line[start:])
	if k != kindOther || l.Status < 0 {
		return k
	}
	stamp, _, _ := bytes.Cut(line[:start], []byte{'\t'})
	end, ok := parseTimeText(string(stamp))
	if !ok || len(l.Method) == 0 {
		return kindOther
	}
	l.setTimes(end, l.End, 0)
	return kindRequest
}

// parseJSON reads a line in Caddy's JSON format.
func (l *Line) parseJSON(line []byte) kind {
	s := scanner{data: line}
	var end, duration, at int64
	status, request := false, false
	whole := s.fields(func(name []byte) (ok bool) {
		switch string(name) {
		case "ts":
			end, ok = s.time()
			return ok
		case "duration":
			duration, ok = s.duration()
			return ok
		case "status":
			status = true
			l.Status, ok = s.integer()
			return ok
		case "user_id":
			l.UserID, ok = s.text()
			return ok
		case "request":
			request = true
			return l.request(&s)
		case "resp_headers":
			l.RespHeaders, ok = s.lists()
			return ok
		case "rate_limit":
			return l.decision(&s, &at)
		}
		_, ok = s.value()
		return ok
	})
	switch {
	case !whole:
		return kindBroken
	case !request || !status || end == 0 || len(l.Method) == 0:
		l.End = duration
		if !request || !status {
			l.Status = -1
		}
		return kindOther
	}
	l.setTimes(end, duration, at)
	return kindRequest
}

// maxDuration bounds how long a request took: a larger number comes from elsewhere, or
// has another unit.
const maxDuration = 365 * 24 * 3600 * 1_000_000

func (l *Line) setTimes(end, duration, at int64) {
	if duration < 0 || duration > maxDuration {
		duration = 0
	}
	l.Start, l.End = end-duration, end
	if at > 0 && at <= end+1_000_000 && at >= l.Start-1_000_000 {
		l.Start = at
		l.End = max(end, at)
	}
}

func (l *Line) request(s *scanner) bool {
	return s.fields(func(name []byte) (ok bool) {
		switch string(name) {
		case "remote_ip":
			l.RemoteIP, ok = s.text()
		case "remote_port":
			l.RemotePort, ok = s.text()
		case "client_ip":
			l.ClientIP, ok = s.text()
		case "proto":
			l.Proto, ok = s.text()
		case "method":
			l.Method, ok = s.text()
		case "host":
			l.Host, ok = s.text()
		case "uri":
			l.URI, ok = s.text()
		case "headers":
			l.Headers, ok = s.lists()
		case "tls":
			return l.readTLS(s)
		default:
			_, ok = s.value()
		}
		return ok
	})
}

func (l *Line) readTLS(s *scanner) bool {
	if s.space() != '{' {
		_, ok := s.value()
		return ok
	}
	l.TLS = &l.tls
	return s.fields(func(name []byte) (ok bool) {
		var n int64
		switch string(name) {
		case "version":
			n, ok = s.integer()
			l.tls.Version = uint16(n)
		case "cipher_suite":
			n, ok = s.integer()
			l.tls.CipherSuite = uint16(n)
		case "proto":
			l.tls.Proto, ok = s.text()
		case "server_name":
			l.tls.ServerName, ok = s.text()
		default:
			_, ok = s.value()
		}
		return ok
	})
}

// decision reads what the limiter decided at the time.
func (l *Line) decision(s *scanner, at *int64) bool {
	if s.space() != '{' {
		_, ok := s.value()
		return ok
	}
	return s.fields(func(name []byte) (ok bool) {
		switch string(name) {
		case "at":
			*at, ok = s.integer()
		case "outcome":
			l.Logged, ok = s.text()
		default:
			_, ok = s.value()
		}
		return ok
	})
}

// integer reads a whole number, or 0 for another value.
func (s *scanner) integer() (int64, bool) {
	text, ok := s.value()
	if !ok {
		return 0, false
	}
	var n int64
	for _, c := range text {
		if c < '0' || c > '9' || n > math.MaxInt64/10-1 {
			return 0, true
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// duration reads how long a request took, in microseconds: a number of seconds, or text
// such as 1.5ms.
func (s *scanner) duration() (int64, bool) {
	text, ok := s.value()
	if !ok {
		return 0, false
	}
	if len(text) > 1 && text[0] == '"' {
		d, err := time.ParseDuration(string(text[1 : len(text)-1]))
		if err != nil {
			return 0, true
		}
		return d.Microseconds(), true
	}
	return micros(text), true
}

// micros is a number of seconds in microseconds, 0 if it is none.
func micros(text []byte) int64 {
	var whole, part int64
	digits := -1 // behind the point
	for i, c := range text {
		switch {
		case c >= '0' && c <= '9' && digits < 0 && whole < 1<<40:
			whole = whole*10 + int64(c-'0')
		case c >= '0' && c <= '9' && digits >= 0 && digits < 6:
			part = part*10 + int64(c-'0')
			digits++
		case c >= '0' && c <= '9' && digits == 6: // finer than a microsecond
		case c == '.' && digits < 0 && i > 0:
			digits = 0
		default:
			f, err := strconv.ParseFloat(string(text), 64)
			if err != nil || !(f >= 0 && f < 1<<40) {
				return 0
			}
			return int64(f * 1e6)
		}
	}
	for ; digits >= 0 && digits < 6; digits++ {
		part *= 10
	}
	return whole*1_000_000 + part
}

// time reads when the line was written, in microseconds since 1970; 0 if it is no time.
// Loggers write seconds, and can be told to write milliseconds, nanoseconds or text.
func (s *scanner) time() (int64, bool) {
	text, ok := s.value()
	if !ok {
		return 0, false
	}
	if len(text) > 1 && text[0] == '"' {
		t, _ := parseTimeText(string(text[1 : len(text)-1]))
		return t, true
	}
	whole := bytes.IndexByte(text, '.')
	if whole < 0 {
		whole = len(text)
	}
	if whole <= 11 && !bytes.ContainsAny(text, "eE") {
		return micros(text), true // seconds
	}
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !(f > 0) {
		return 0, true
	}
	for f > 1e11 { // milliseconds, microseconds, nanoseconds
		f /= 1e3
	}
	return int64(f * 1e6), true
}

// timeLayouts are how Caddy's loggers can be told to write the time. Those without a
// zone are in the local one, or in UTC; the difference to the other lines is what counts.
var timeLayouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.000Z0700", "2006/01/02 15:04:05.000", "2006/01/02 15:04:05",
	"2006-01-02 15:04:05.000", "02/Jan/2006:15:04:05 -0700",
}

func parseTimeText(text string) (int64, bool) {
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, text); err == nil && t.Year() >= 1970 && t.Year() < 2500 {
			return t.UnixMicro(), true
		}
	}
	return 0, false
}
