package replay

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

const jsonLine = `{"level":"info","ts":1764000000.1234567,"logger":"http.log.access.log0","msg":"handled request",` +
	`"request":{"remote_ip":"203.0.113.77","remote_port":"51234","client_ip":"198.51.100.4","proto":"HTTP/2.0","method":"GET",` +
	`"host":"www.example.com","uri":"/a?b=\u003cc\\\"","headers":{"User-Agent":["a \"b\" ]}","second"],"X-N":[]},` +
	`"tls":{"resumed":false,"version":772,"cipher_suite":4865,"proto":"h2","server_name":"www.example.com"}},` +
	`"bytes_read":0,"user_id":"u\ud83d\ude00","duration":0.25,"size":12345,"status":200,"resp_headers":{"Server":["Caddy"]}}`

// common has the line of a request in the forms that Caddy's loggers write.
func TestLine(t *testing.T) {
	const at = 1764000000_123456
	change := func(old, new string) string { return strings.Replace(jsonLine, old, new, 1) }
	tests := []struct {
		name, line string
		kind       kind
		start, end int64
	}{
		{"JSON", jsonLine, kindRequest, at - 250_000, at},
		{"white space", strings.ReplaceAll(jsonLine, `,"`, ` , "`), kindRequest, at - 250_000, at},
		{"milliseconds", change("1764000000.1234567", "1764000000123.456"), kindRequest, at - 250_000, at},
		{"nanoseconds", change("1764000000.1234567", "1764000000123456000"), kindRequest, at - 250_000, at},
		{"exponent", change("1764000000.1234567", "1.764000000123456e9"), kindRequest, at - 250_000, at},
		{"RFC 3339", change("1764000000.1234567", `"2025-11-24T16:00:00.123456Z"`), kindRequest, at - 250_000, at},
		{"ISO 8601", change("1764000000.1234567", `"2025-11-24T16:00:00.123Z"`), kindRequest, at - 456 - 250_000, at - 456},
		{"duration as text", change("0.25", `"250ms"`), kindRequest, at - 250_000, at},
		{"no duration", change("0.25", "null"), kindRequest, at, at},
		{"time of the decision", change(`"status"`, `"rate_limit":{"outcome":"refused","zone":"a","at":1764000000000007},"status"`), kindRequest, 1764000000_000007, at},
		{"senseless time of the decision", change(`"status"`, `"rate_limit":{"at":7},"status"`), kindRequest, at - 250_000, at},
		{"another logger", `{"level":"info","ts":1764000000.1,"msg":"using config from file"}`, kindOther, 0, 0},
		{"an error of the server", `{"level":"error","ts":1764000000.1,"request":{"method":"GET"},"msg":"x"}`, kindOther, 0, 0},
		{"cut off", jsonLine[:len(jsonLine)-20], kindBroken, 0, 0},
		{"cut off in a string", jsonLine[:200], kindBroken, 0, 0},
		{"an open escape", `{"a":"b\`, kindBroken, 0, 0},
		{"nested too deeply", `{"a":` + strings.Repeat("[", 1000), kindBroken, 0, 0},
		{"nothing", "", kindBroken, 0, 0},
		{"garbage", "\x00\xff{[", kindBroken, 0, 0},
		{"console", "2025/11/24 16:00:00.123\tINFO\thttp.log.access\thandled request\t" + `{"request":{"method":"GET","host":"a"},"duration":0.25,"status":200}`, kindRequest, at - 456 - 250_000, at - 456},
		{"common", `203.0.113.77 - alice [24/Nov/2025:16:00:00 +0000] "GET /a?b=c HTTP/2.0" 200 12345`, kindRequest, at - 123_456, at - 123_456},
		{"combined", `203.0.113.77 - alice [24/Nov/2025:17:00:00 +0100] "GET /a?b=c HTTP/2.0" 200 12345 "-" "a \"b\""`, kindRequest, at - 123_456, at - 123_456},
		{"console, a time in the path", "2025/11/24 16:00:00.123\tINFO\thttp.log.access\thandled request\t" + `{"request":{"method":"GET","host":"a","uri":"/[2030-01-01T00:00:00Z]","headers":{"A":["b"]}},"duration":0.25,"status":200}`, kindRequest, at - 456 - 250_000, at - 456},
		{"common, a time in the name", `203.0.113.77 - a [24/Nov/2035:16:00:00 +0000] [24/Nov/2025:16:00:00 +0000] "GET /a?b=c HTTP/2.0" 200 12345`, kindRequest, at - 123_456, at - 123_456},
		{"common, a line in the name", `203.0.113.77 - a [24/Nov/2035:16:00:00 +0000] \"POST / HTTP/1.1\" 500 1 [24/Nov/2025:16:00:00 +0000] "GET /a?b=c HTTP/2.0" 200 12345`, kindRequest, at - 123_456, at - 123_456},
		{"common, no request", `203.0.113.77 - - [24/Nov/2025:16:00:00 +0000] "" 400 0`, kindOther, 0, 0},
	}
	for _, tt := range tests {
		var l Line
		if got := l.parse([]byte(tt.line)); got != tt.kind {
			t.Errorf("%s: kind %d, want %d", tt.name, got, tt.kind)
			continue
		}
		if tt.kind != kindRequest {
			continue
		}
		if l.Start != tt.start || l.End != tt.end {
			t.Errorf("%s: from %d to %d, want %d to %d", tt.name, l.Start, l.End, tt.start, tt.end)
		}
		if string(l.Method) != "GET" || l.Status != 200 {
			t.Errorf("%s: method %q, status %d", tt.name, l.Method, l.Status)
		}
	}
}

func TestLineTexts(t *testing.T) {
	var l Line
	l.parse([]byte(jsonLine))
	var headers []string
	EachHeader(l.Headers, func(name []byte) bool { return true }, func(name, value []byte) {
		headers = append(headers, fmt.Sprintf("%s: %s", name, value))
	})
	got := fmt.Sprintf("%s|%s|%s|%s|%s|%s|%s|%d|%s|%q", l.RemoteIP, l.RemotePort, l.ClientIP, l.Proto, l.Host, l.URI, l.UserID, l.TLS.Version, l.TLS.ServerName, headers)
	want := `203.0.113.77|51234|198.51.100.4|HTTP/2.0|www.example.com|/a?b=<c\"|u😀|772|www.example.com|["User-Agent: a \"b\" ]}" "User-Agent: second"]`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// Headers whose end does not look like others' hide nothing behind it.
	for _, headers := range []string{`{}`, `{"A":[]}`, `{"A":["x"],"B":[]}`, `{ "A": ["x"] }`, `{"A":["\"]}"]}`, `{"A":["x\\\\"]}`, `{"A":["]}"]}`, `null`, `{"A":"x"}`, `{"A":["x"],"B":"x"}`, `{"A":["x"],"B":""}`} {
		for _, response := range []string{headers, `{"Server":["Caddy"]}`} {
			line := `{"ts":1764000000,"request":{"headers":` + headers + `,"method":"GET","uri":"/x"},"status":200,"resp_headers":` + response + `,"user_id":"u"}`
			if k := l.parse([]byte(line)); k != kindRequest || string(l.URI) != "/x" || string(l.UserID) != "u" || string(l.Headers) != headers {
				t.Errorf("headers %s: kind %d, URI %s, user %s, headers %s", headers, k, l.URI, l.UserID, l.Headers)
			}
		}
	}
	l.parse([]byte(`203.0.113.77 - alice [24/Nov/2025:17:00:00 +0100] "GET /a HTTP/2.0" 200 1 "-" "a \"b\""`))
	if string(l.UserID) != "alice" || string(l.Headers) != `{"User-Agent":["a \"b\""]}` {
		t.Errorf("user %s, headers %s", l.UserID, l.Headers)
	}
}

// What strangers write must neither stop the replay nor be taken for what it is not: on
// lines that are JSON, the reader agrees with encoding/json.
func FuzzLine(f *testing.F) {
	f.Add([]byte(jsonLine))
	f.Add([]byte(`203.0.113.77 - alice [24/Nov/2025:17:00:00 +0100] "GET /a HTTP/2.0" 200 1 "-" "a \"b\""`))
	f.Add([]byte(`2025/11/24 16:00:00.123	INFO	x	{"request":{"method":"GET"},"duration":0.25,"status":200}`))
	f.Add([]byte(`{"ts":1e9,"status":200,"request":{"method":"\ud800","uri":"\u0000"}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var l Line
		k := l.parse(line)
		EachHeader(l.Headers, func([]byte) bool { return true }, func(_, _ []byte) {})
		if k == kindRequest && l.Start > l.End {
			t.Errorf("it begins at %d and ends at %d", l.Start, l.End)
		}
		if len(line) == 0 || line[0] != '{' {
			return
		}
		var want struct {
			Request struct {
				Method string `json:"method"`
				URI    string `json:"uri"`
			} `json:"request"`
			UserID string `json:"user_id"`
		}
		// Names that differ in case, or come twice, or bytes that are not UTF-8, are not
		// what Caddy writes.
		if k != kindRequest || json.Unmarshal(line, &want) != nil || strings.Count(strings.ToLower(string(line)), `"request"`) != 1 ||
			strings.Contains(string(line), `\u00`) || strings.ToValidUTF8(string(line), "") != string(line) ||
			strings.Count(strings.ToLower(string(line)), `method"`) != 1 || strings.Count(strings.ToLower(string(line)), `uri"`) > 1 ||
			strings.Count(strings.ToLower(string(line)), `user_id"`) > 1 {
			return
		}
		if string(l.Method) != want.Request.Method || string(l.URI) != want.Request.URI || string(l.UserID) != want.UserID {
			t.Errorf("read %q %q %q, want %+v", l.Method, l.URI, l.UserID, want)
		}
	})
}

func BenchmarkLine(b *testing.B) {
	line := []byte(jsonLine)
	b.SetBytes(int64(len(line)))
	var l Line
	for b.Loop() {
		l.parse(line)
	}
}

// Whatever clients write into headers, the rest of the line is read.
func TestHeadersHideNothing(t *testing.T) {
	pieces := []string{`]`, `}`, `"`, `\`, `[`, `,`, `:`, `{`, "a", " ", `"]}`, `[]`, `\"]}`}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		headers := make(map[string][]string)
		for range 1 + random.IntN(3) {
			value := ""
			for range random.IntN(6) {
				value += pieces[random.IntN(len(pieces))]
			}
			headers[fmt.Sprint(random.IntN(3), pieces[random.IntN(len(pieces))])] = []string{value}
		}
		object, _ := json.Marshal(headers)
		line := fmt.Sprintf(`{"request":{"headers":%s,"method":"GET","uri":"/x"},"ts":1764000000,"status":200,"resp_headers":%[1]s,"user_id":"u"}`, object)
		var l Line
		if l.parse([]byte(line)) != kindRequest || string(l.URI) != "/x" || string(l.UserID) != "u" || string(l.Headers) != string(object) {
			t.Fatalf("read URI %q, user %q, headers %q of %s", l.URI, l.UserID, l.Headers, line)
		}
	}
}
