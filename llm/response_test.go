package llm

import (
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var sseHeader = http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}}
var jsonHeader = http.Header{"Content-Type": {"application/json"}}

// reply passes a body through a response, split at random places, and returns
// what the client gets.
func reply(resp *Response, body string, random *rand.Rand) string {
	var got strings.Builder
	for p := []byte(body); len(p) > 0; {
		n := len(p)
		if random != nil {
			n = 1 + random.IntN(min(len(p), 1<<(1+random.IntN(10))))
		}
		got.Write(resp.Pass(p[:n]))
		p = p[n:]
	}
	got.Write(resp.End())
	return got.String()
}

func sample(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The samples are written by hand after the types of the SDKs.
var samples = []struct {
	file, path string
	usage      Usage
	outcome    Outcome
}{
	{"chat.json", chatPath, Usage{Input: 19 - 8 - 4, Cached: 8, CacheWrite: 4, Output: 10}, Counted},
	{"chat.sse", chatPath, Usage{Input: 1117 - 1024, Cached: 1024, Output: 46}, Counted},
	{"responses.json", responsesPath, Usage{Input: 36 - 2, Cached: 2, Output: 87}, Counted},
	{"responses.sse", responsesPath, Usage{Input: 37 - 5 - 7, Cached: 5, CacheWrite: 7, Output: 11}, Counted},
	{"responses-incomplete.sse", responsesPath, Usage{Input: 37, Output: 16}, Counted},
	{"messages.json", messagesPath, Usage{Input: 2095, Cached: 50, CacheWrite: 148, CacheWriteHour: 100, Output: 503}, Counted},
	{"messages.sse", messagesPath, Usage{Input: 25, Cached: 9, CacheWrite: 6, Output: 15}, Counted},
	{"messages-iterations.json", messagesPath, Usage{Input: 45, Output: 350 + 300}, Counted},
	{"messages-overloaded.sse", messagesPath, Usage{Input: 25, Output: 1}, Missing},
}

func meterFor(t testing.TB, path string, prices ...Price) *Meter {
	t.Helper()
	api := OpenAI
	if path == messagesPath {
		api = Anthropic
	}
	return newMeter(t, Config{API: api, MaxOutput: 5000, Prices: prices})
}

func header(file string) http.Header {
	if strings.HasSuffix(file, ".sse") {
		return sseHeader
	}
	return jsonHeader
}

func TestSamples(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, row := range samples {
		m := meterFor(t, row.path)
		rsv := reserve(t, m, row.path, `{"stream":true,"model":"m"}`)
		rsv.stripUsage = false
		body := sample(t, row.file)
		for range 50 {
			resp := rsv.Response(200, header(row.file))
			if got := reply(resp, body, random); got != body {
				t.Fatalf("%s: the client gets\n%s", row.file, got)
			}
			s := resp.Settle()
			if s.Usage != row.usage || s.Outcome != row.outcome {
				t.Fatalf("%s: %+v, want %+v, outcome %d", row.file, s, row.usage, row.outcome)
			}
			if want := row.usage.Tokens(); s.Outcome == Counted && s.Units != want || s.Outcome == Missing && s.Units != rsv.Units {
				t.Fatalf("%s: %d units", row.file, s.Units)
			}
		}
	}
}

// A stream that breaks off anywhere before its end costs the reservation; the
// counts that were seen may be those of its beginning.
func TestBrokenOff(t *testing.T) {
	for _, row := range samples {
		if row.outcome != Counted {
			continue
		}
		m := meterFor(t, row.path)
		rsv := reserve(t, m, row.path, `{"stream":true,"model":"m"}`)
		body := strings.TrimRight(sample(t, row.file), "\n")
		last := len(body)
		if row.file == "chat.sse" {
			// Nothing is lost with the last bracket: the SDKs look for less.
			last = strings.Index(body, "[DONE]") + len("[DONE]")
		}
		for n := range body[:last] {
			resp := rsv.Response(200, header(row.file))
			resp.Pass([]byte(body[:n]))
			early := resp.Complete()
			resp.End()
			if s := resp.Settle(); s.Outcome != Missing || s.Units != rsv.Units || early {
				t.Fatalf("%s cut after %d of %d bytes: %+v, complete %v", row.file, n, len(body), s, early)
			}
		}
	}
}

func TestMissingAndFailed(t *testing.T) {
	rsv := reserve(t, meterFor(t, chatPath), chatPath, `{"model":"m"}`)
	for _, row := range []struct {
		name    string
		status  int
		header  http.Header
		body    string
		outcome Outcome
		units   int64
	}{
		{"no usage", 200, jsonHeader, `{"choices":[]}`, Missing, rsv.Units},
		{"null", 200, jsonHeader, `{"usage":null}`, Missing, rsv.Units},
		{"a half", 200, jsonHeader, `{"usage":{"prompt_tokens":3}}`, Missing, rsv.Units},
		{"text as count", 200, jsonHeader, `{"usage":{"prompt_tokens":3,"completion_tokens":"4"}}`, Missing, rsv.Units},
		{"fraction", 200, jsonHeader, `{"usage":{"prompt_tokens":3,"completion_tokens":4.0}}`, Missing, rsv.Units},
		{"negative", 200, jsonHeader, `{"usage":{"prompt_tokens":3,"completion_tokens":-4}}`, Missing, rsv.Units},
		{"a part that is no count", 200, jsonHeader, `{"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":"1"}}}`, Missing, rsv.Units},
		{"another place", 200, jsonHeader, `{"x":{"usage":{"prompt_tokens":3,"completion_tokens":4}}}`, Missing, rsv.Units},
		{"in a text", 200, jsonHeader, `{"x":"\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}"}`, Missing, rsv.Units},
		{"another case", 200, jsonHeader, `{"Usage":{"prompt_tokens":3,"completion_tokens":4}}`, Missing, rsv.Units},
		{"encoded", 200, http.Header{"Content-Encoding": {"gzip"}}, `{"usage":{"prompt_tokens":3,"completion_tokens":4}}`, Missing, rsv.Units},
		{"more than reserved, half", 200, jsonHeader, `{"usage":{"prompt_tokens":900000000}}`, Missing, 900000000},
		{"no body", 204, http.Header{}, ``, Missing, rsv.Units},
		{"redirect", 302, http.Header{}, ``, Missing, rsv.Units},
		{"counted", 200, jsonHeader, `{"usage":{"prompt_tokens":3,"completion_tokens":4}}`, Counted, 7},
		{"escaped names", 200, jsonHeader, `{"us\u0061ge":{"prompt_tokens":3,"completion\u005ftokens":4}}`, Counted, 7},
		{"reasoning in the total only", 200, jsonHeader, `{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":20}}`, Counted, 20},
		{"more than reserved", 200, jsonHeader, `{"usage":{"prompt_tokens":3000000,"completion_tokens":4}}`, Counted, 3000004},
		{"nothing", 200, jsonHeader, `{"usage":{"prompt_tokens":0,"completion_tokens":0}}`, Counted, 0},
		{"bad request", 400, jsonHeader, `{"error":{"message":"no"}}`, Failed, 0},
		{"limited", 429, jsonHeader, ``, Failed, 0},
		{"what was generated", 400, jsonHeader, `{"error":{"message":"no","code":"json_validate_failed","failed_generation":"A poem"}}`, Missing, rsv.Units},
		{"much was generated", 400, jsonHeader, `{"error":{"failed_generation":"` + strings.Repeat("A poem\\n", 1000) + `"}}`, Missing, rsv.Units},
		{"a list was generated", 400, jsonHeader, `{"error":{"failed_generation":["A poem"]}}`, Missing, rsv.Units},
		{"generated in a stream", 400, sseHeader, "data: {\"error\":{\"failed_generation\":\"A poem\"}}\n\ndata: {}\n\n", Missing, rsv.Units},
		{"nothing was generated", 400, jsonHeader, `{"error":{"code":"tool_use_failed","failed_generation":""}}`, Failed, 0},
		{"generated null", 400, jsonHeader, `{"error":{"failed_generation":null}}`, Failed, 0},
		{"choices in an error", 500, jsonHeader, `{"error":{},"choices":[{"message":{"content":"A poem"}}]}`, Missing, rsv.Units},
		{"no choices in an error", 500, jsonHeader, `{"error":{},"choices":[]}`, Failed, 0},
		{"error page", 502, http.Header{"Content-Type": {"text/html"}}, `<html>`, Failed, 0},
		{"error with usage", 500, jsonHeader, `{"usage":{"prompt_tokens":3,"completion_tokens":4}}`, Counted, 7},
		{"error with half a usage", 500, jsonHeader, `{"usage":{"prompt_tokens":3}}`, Missing, rsv.Units},
		{"error that cannot be read", 500, http.Header{"Content-Encoding": {"gzip"}}, `x`, Missing, rsv.Units},
	} {
		resp := rsv.Response(row.status, row.header)
		reply(resp, row.body, nil)
		if s := resp.Settle(); s.Outcome != row.outcome || s.Units != row.units {
			t.Errorf("%s: %+v, want outcome %d and %d", row.name, s, row.outcome, row.units)
		}
	}
}

// The rules of the standard for event streams.
func TestEventStreams(t *testing.T) {
	const usage = `{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}`
	for _, row := range []struct {
		name, body string
		outcome    Outcome
	}{
		{"LF", "data: " + usage + "\n\ndata: [DONE]\n\n", Counted},
		{"CR", "data: " + usage + "\r\rdata: [DONE]\r\r", Counted},
		{"CRLF", "data: " + usage + "\r\n\r\ndata: [DONE]\r\n\r\n", Counted},
		{"mixed", "data: " + usage + "\r\n\rdata: [DONE]\n\r", Counted},
		{"no space", "data:" + usage + "\n\ndata:[DONE]\n\n", Counted},
		{"mark", "\xef\xbb\xbfdata: " + usage + "\n\ndata: [DONE]\n\n", Counted},
		{"half a mark", "\xef\xbbdata: " + usage + "\n\ndata: [DONE]\n\n", Missing},
		{"names and comments", ":\n: hi\n\nid: 1\nevent: x\nretry: 5\ndata: " + usage + "\n: c\n\nevent\ndata: [DONE]\n\n", Counted},
		{"lines", "data: {\"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":3,\ndata\ndata:\ndata:\"completion_tokens\":4}}\n\ndata: [DONE]\n\n", Counted},
		{"no end", "data: " + usage + "\n\ndata: [DONE]", Counted},
		{"not done", "data: " + usage + "\n\n", Missing},
		{"field with another name", "datas: " + usage + "\n\ndata: [DONE]\n\n", Missing},
		{"longer and shorter names", "dat: " + usage + "\n\nd\n\ndata x: " + usage + "\n\ndata: [DONE]\n\n", Missing},
		{"comment", ": data: " + usage + "\n\ndata: [DONE]\n\n", Missing},
		{"indented", " data: " + usage + "\n\ndata: [DONE]\n\n", Missing},
		{"two texts in an event", "data: " + usage + "\ndata: " + usage + "\n\ndata: [DONE]\n\n", Missing},
		{"two spaces", "data: " + usage + "\n\ndata:  [DONE]\n\n", Missing},
		{"a number over two lines", "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":\ndata: 4\ndata: 0}}\n\ndata: [DONE]\n\n", Missing},
		{"error", "data: {\"error\":{\"message\":\"x\"}}\n\n", Missing},
		{"with the last choice", "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\ndata: [DONE]\n\n", Counted},
		{"cumulative", "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\ndata: " + usage + "\n\ndata: [DONE]\n\n", Counted},
	} {
		random := rand.New(rand.NewPCG(5, 6))
		for range 30 {
			rsv := reserve(t, meterFor(t, chatPath), chatPath, `{"model":"m","stream":true,"stream_options":{"include_usage":true}}`)
			resp := rsv.Response(200, sseHeader)
			if got := reply(resp, row.body, random); got != row.body {
				t.Fatalf("%s: the client gets %q", row.name, got)
			}
			s := resp.Settle()
			if s.Outcome != row.outcome || row.outcome == Counted && s.Units != 7 {
				t.Fatalf("%s: %+v", row.name, s)
			}
			if resp.Errored() != (row.name == "error") {
				t.Fatalf("%s: errored %v", row.name, resp.Errored())
			}
		}
	}
}

// The event that include_usage brings is taken out for clients that have not
// asked for it, and no other.
func TestTakesUsageOut(t *testing.T) {
	const (
		first = `data: {"choices":[{"delta":{"content":"a"}}],"usage":null}` + "\n\n"
		empty = `data: {"choices":[],"prompt_filter_results":[],"usage":null}` + "\n\n"
		usage = `data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}` + "\n\n"
		late  = `data: {"usage":{"prompt_tokens":3,"completion_tokens":4},"choices":[{"a":1}]}` + "\n\n"
		moder = `data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4},"moderation":{"x":1}}` + "\n\n"
		bare  = `data: {"usage":{"prompt_tokens":3,"completion_tokens":4}}` + "\n\n"
		done  = "data: [DONE]\n\n"
		ping  = ": ping\n\n"
	)
	for _, row := range []struct{ name, body, want string }{
		{"taken out", first + usage + done, first + done},
		{"others stay", empty + first + ping + late + moder + bare + done, empty + first + ping + late + moder + bare + done},
		{"without an end", first + strings.TrimRight(usage, "\n"), first},
		{"cut off", first + usage[:len(usage)-10], first + usage[:len(usage)-10]},
		{"name and comment go, too", first + "event: u\n: c\n" + usage + done, first + done},
		{"comment before stays", ": c\n" + usage + done, ": c\n" + done},
		{"error", first + "data: {\"error\":{},\"choices\":[],\"usage\":{}}\n\n", first + "data: {\"error\":{},\"choices\":[],\"usage\":{}}\n\n"},
	} {
		for _, end := range []string{"\n", "\r", "\r\n"} {
			body, want := strings.ReplaceAll(row.body, "\n", end), strings.ReplaceAll(row.want, "\n", end)
			random := rand.New(rand.NewPCG(7, 8))
			for i := range 200 {
				if i == 0 {
					random = nil
				} else if i == 1 {
					random = rand.New(rand.NewPCG(7, 8))
				}
				rsv := reserve(t, meterFor(t, chatPath), chatPath, `{"model":"m","stream":true}`)
				resp := rsv.Response(200, sseHeader)
				if !resp.Filters() {
					t.Fatal("nothing is filtered")
				}
				if got := reply(resp, body, random); got != want {
					t.Fatalf("%s, line end %q: the client gets\n%q, want\n%q", row.name, end, got, want)
				}
				if s := resp.Settle(); strings.Contains(row.body, done) && s.Units != 7 {
					t.Fatalf("%s: %+v", row.name, s)
				}
			}
		}
	}
	asked := reserve(t, meterFor(t, chatPath), chatPath, `{"stream":true,"stream_options":{"include_usage":true}}`)
	if resp := asked.Response(200, sseHeader); resp.Filters() {
		t.Error("the client asked for the usage, and it is taken out")
	}
	plain := reserve(t, meterFor(t, chatPath), chatPath, `{"stream":true}`)
	if resp := plain.Response(400, jsonHeader); resp.Filters() {
		t.Error("a JSON body is filtered")
	}
}

// An event that is too long to be held is passed on, whatever it holds: memory is
// bounded.
func TestHoldsLittle(t *testing.T) {
	rsv := reserve(t, meterFor(t, chatPath), chatPath, `{"model":"m","stream":true}`)
	resp := rsv.Response(200, sseHeader)
	const head, tail = `data: {"pad":"`, `","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}` + "\n\n"
	var got strings.Builder
	got.Write(resp.Pass([]byte(head)))
	for range 100 {
		got.Write(resp.Pass([]byte(strings.Repeat("x", maxHeld/10))))
		if len(resp.events.held) > maxHeld {
			t.Fatalf("%d bytes are held", len(resp.events.held))
		}
	}
	got.Write(resp.Pass([]byte(tail)))
	if want := head + strings.Repeat("x", 100*(maxHeld/10)) + tail; got.String() != want {
		t.Errorf("%d of %d bytes were passed on", got.Len(), len(want))
	}
	got.Reset()
	got.Write(resp.Pass([]byte(`data: {"choices":[],"usage":{}}` + "\n\n")))
	if got.Len() > 0 {
		t.Errorf("the next event is not filtered: %q", got.String())
	}
}

// Whatever is whole is passed on with the very call that completes it, and a
// comment at its line's end.
func TestDelaysNothing(t *testing.T) {
	for _, end := range []string{"\n", "\r", "\r\n"} {
		event := strings.ReplaceAll("data: {\"choices\":[],\"x\":1}\n\n", "\n", end)
		comment := ": ping" + end
		stream := strings.Repeat(event+comment, 5)
		due := 0 // bytes that must have been passed on
		rsv := reserve(t, meterFor(t, chatPath), chatPath, `{"model":"m","stream":true}`)
		resp := rsv.Response(200, sseHeader)
		passed := 0
		for i := range stream {
			passed += len(resp.Pass([]byte{stream[i]}))
			if strings.HasSuffix(stream[:i+1], event) || strings.HasSuffix(stream[:i+1], comment) {
				due = i + 1
			}
			if passed < due {
				t.Fatalf("line end %q: %d bytes came, %d are due, %d were passed on", end, i+1, due, passed)
			}
		}
	}
	// The first choice decides: the rest of a long event is not held.
	rsv := reserve(t, meterFor(t, chatPath), chatPath, `{"model":"m","stream":true}`)
	resp := rsv.Response(200, sseHeader)
	if got := resp.Pass([]byte(`data: {"choices":[{"delta":{"content":"long`)); len(got) == 0 {
		t.Error("an event with a choice is held")
	}
}

// A dearer model than the one asked for is charged at its own price.
func TestDearerModelAnswers(t *testing.T) {
	prices := []Price{price(t, "cheap", "1", "", "1"), price(t, "dear*", "5", "", "5"), price(t, "default", "100", "", "100")}
	for _, row := range []struct {
		path, asked, body, match string
		units                    int64
	}{
		{chatPath, "cheap", `{"model":"dear-1","usage":{"prompt_tokens":3,"completion_tokens":4}}`, "dear*", 35},
		{chatPath, "dear-1", `{"model":"cheap","usage":{"prompt_tokens":3,"completion_tokens":4}}`, "dear*", 35},
		{chatPath, "cheap", `{"usage":{"prompt_tokens":3,"completion_tokens":4}}`, "cheap", 7},
		{chatPath, "cheap", `{"model":"` + strings.Repeat("cheap", 100) + `","usage":{"prompt_tokens":3,"completion_tokens":4}}`, "default", 700},
		{messagesPath, "cheap", `{"model":"cheap","usage":{"input_tokens":3,"output_tokens":4,"iterations":[{"model":"dear-2","input_tokens":1}]}}`, "dear*", 35},
	} {
		rsv := reserve(t, meterFor(t, row.path, prices...), row.path, `{"model":"`+row.asked+`"}`)
		resp := rsv.Response(200, jsonHeader)
		reply(resp, row.body, nil)
		if s := resp.Settle(); s.Units != row.units || s.Price != row.match {
			t.Errorf("%s: %+v, want %d by %s", row.body, s, row.units, row.match)
		}
	}
}

// Once the last event has passed, a client that hangs up changes nothing.
func TestComplete(t *testing.T) {
	for _, row := range samples {
		rsv := reserve(t, meterFor(t, row.path), row.path, `{"model":"m","stream":true}`)
		resp := rsv.Response(200, header(row.file))
		resp.Pass([]byte(sample(t, row.file)))
		if resp.Complete() != (row.outcome == Counted) {
			t.Errorf("%s: complete is %v", row.file, resp.Complete())
		}
		if s := resp.Settle(); s.Outcome != row.outcome || s.Usage != row.usage {
			t.Errorf("%s: %+v", row.file, s)
		}
	}
}

func TestCacheWritesForAnHour(t *testing.T) {
	for _, row := range []struct {
		usage   string
		hour    bool
		w5, w1h int64
	}{
		{`"cache_creation_input_tokens":10`, false, 10, 0},
		{`"cache_creation_input_tokens":10`, true, 0, 10}, // not said: the dearer
		{`"cache_creation_input_tokens":10,"cache_creation":{"ephemeral_5m_input_tokens":10,"ephemeral_1h_input_tokens":0}`, true, 10, 0},
		{`"cache_creation_input_tokens":10,"cache_creation":{"ephemeral_5m_input_tokens":4,"ephemeral_1h_input_tokens":6}`, true, 4, 6},
		{`"cache_creation_input_tokens":20,"cache_creation":{"ephemeral_5m_input_tokens":4,"ephemeral_1h_input_tokens":6}`, false, 4, 16},
		{`"cache_creation":{"ephemeral_5m_input_tokens":4,"ephemeral_1h_input_tokens":6}`, false, 4, 6},
	} {
		body := `{"max_tokens":1}`
		if row.hour {
			body = `{"max_tokens":1,"cache_control":{"ttl":"1h"}}`
		}
		rsv := reserve(t, meterFor(t, messagesPath), messagesPath, body)
		resp := rsv.Response(200, jsonHeader)
		reply(resp, `{"usage":{"input_tokens":1,"output_tokens":2,`+row.usage+`}}`, nil)
		if u := resp.Settle().Usage; u.CacheWrite != row.w5 || u.CacheWriteHour != row.w1h {
			t.Errorf("%s (asked %v): %+v", row.usage, row.hour, u)
		}
	}
}
