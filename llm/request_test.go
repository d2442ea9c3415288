package llm

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func rate(t testing.TB, s string) Rate {
	t.Helper()
	r, err := ParseRate(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func price(t testing.TB, match, input, cached, output string) Price {
	t.Helper()
	p := Price{Match: match, Input: rate(t, input), Output: rate(t, output)}
	if cached != "" {
		p.Cached = new(rate(t, cached))
	}
	return p
}

func newMeter(t testing.TB, cfg Config) *Meter {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const (
	chatPath      = "/v1/chat/completions"
	responsesPath = "/v1/responses"
	messagesPath  = "/v1/messages"
)

func reserve(t testing.TB, m *Meter, path, body string) *Reservation {
	t.Helper()
	rsv, refusal := m.Reserve("POST", path, http.Header{}, []byte(body))
	if refusal != nil {
		t.Fatalf("Reserve(%s, %s) is refused: %s: %s", path, body, refusal.Reason, refusal.Message)
	}
	return rsv
}

func refused(t testing.TB, m *Meter, path, body string) *Refusal {
	t.Helper()
	_, refusal := m.Reserve("POST", path, http.Header{}, []byte(body))
	if refusal == nil {
		t.Fatalf("Reserve(%s, %s) is granted", path, body)
	}
	return refusal
}

func TestRoute(t *testing.T) {
	for _, row := range []struct {
		api          API
		method, path string
		want         Route
	}{
		{OpenAI, "POST", chatPath, Metered},
		{OpenAI, "POST", responsesPath, Metered},
		{OpenAI, "POST", messagesPath, Unmetered},
		{OpenAI, "GET", "/v1/models", Free},
		{OpenAI, "HEAD", "/v1/models/gpt-5", Free},
		{OpenAI, "DELETE", "/v1/models/ft:gpt-5:me", Unmetered},
		{OpenAI, "GET", "/v1/models/..", Unmetered},
		{OpenAI, "GET", "/v1/models/a%2f..%2f..%2fbatches", Unmetered},
		{OpenAI, "OPTIONS", chatPath, Free},
		{OpenAI, "GET", responsesPath, Unmetered}, // a WebSocket
		{OpenAI, "GET", "/v1/responses/resp_1", Free},
		{OpenAI, "POST", "/v1/responses/input_tokens", Free},
		{OpenAI, "POST", "/v1/responses/resp_1/cancel", Free},
		{OpenAI, "POST", "/v1/responses/compact", Unmetered},
		{OpenAI, "POST", "/v1/embeddings", Unmetered},
		{OpenAI, "POST", "/v1/batches", Unmetered},
		{OpenAI, "POST", "/v1/audio/speech", Unmetered},
		{OpenAI, "POST", "/v1/chat/completions/", Unmetered},
		{OpenAI, "POST", "/v1//chat/completions", Unmetered},
		{OpenAI, "POST", "/v1/chat/%63ompletions", Unmetered},
		{OpenAI, "post", chatPath, Unmetered},
		{Anthropic, "POST", messagesPath, Metered},
		{Anthropic, "POST", "/v1/messages/count_tokens", Free},
		{Anthropic, "POST", "/v1/messages/batches", Unmetered},
		{Anthropic, "POST", "/v1/complete", Unmetered},
		{Anthropic, "GET", "/v1/models/claude-opus-4-1", Free},
	} {
		m := newMeter(t, Config{API: row.api})
		if got := m.Route(row.method, row.path); got != row.want {
			t.Errorf("%s: Route(%s %s) = %v, want %v", row.api, row.method, row.path, got, row.want)
		}
		_, refusal := m.Reserve(row.method, row.path, http.Header{}, []byte(`{"max_tokens":1,"max_output_tokens":1}`))
		if (row.want != Metered) != (refusal != nil && refusal.Reason == ReasonUnmetered) {
			t.Errorf("%s: Reserve(%s %s) = %v", row.api, row.method, row.path, refusal)
		}
	}
}

// Tokens: the whole body is input, at a byte for each, and the bound is output.
func TestReserveTokens(t *testing.T) {
	for _, row := range []struct {
		name, path, body string
		output, extra    int64
	}{
		{"max_tokens", chatPath, `{"max_tokens":10}`, 10, 0},
		{"max_completion_tokens", chatPath, `{"max_completion_tokens":10}`, 10, 0},
		{"the largest", chatPath, `{"max_completion_tokens":10,"max_tokens":20}`, 20, 0},
		{"times n", chatPath, `{"n":3,"max_tokens":20}`, 60, 0},
		{"n null", chatPath, `{"n":null,"max_tokens":20}`, 20, 0},
		{"escaped name", chatPath, `{"max\u005ftokens":20}`, 20, 0},
		{"other case is another name", chatPath, `{"max_tokens":100000,"seed":1}`, 100000, 0},
		{"product too large", chatPath, `{"n":1000000000000,"max_tokens":1000000000000}`, maxTokens, 0},
		{"nested bounds are none", chatPath, `{"max_tokens":20,"metadata":{"max_tokens":9}}`, 20, 0},
		{"tools", chatPath, `{"max_tokens":20,"tools":[{"type":"function","function":{"name":"f"}}]}`, 20, OverheadTools},
		{"format of output", messagesPath, `{"max_tokens":20,"output_config":{"format":{"type":"json_schema"}}}`, 20, OverheadTools},
		{"responses", responsesPath, `{"max_output_tokens":7,"input":"hi"}`, 7, 0},
		{"max_tokens is none of responses'", responsesPath, `{"max_output_tokens":7,"input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}]}`, 7, 0},
		{"messages", messagesPath, `{"max_tokens":30}`, 30, 0},
		{"nothing but the cache", messagesPath, `{"max_tokens":0}`, 0, 0},
		{"thinking within", messagesPath, `{"max_tokens":3000,"thinking":{"type":"enabled","budget_tokens":2000}}`, 3000, 0},
		{"thinking beyond", messagesPath, `{"max_tokens":1000,"thinking":{"type":"enabled","budget_tokens":2000}}`, 3000, 0},
		{"adaptive", messagesPath, `{"max_tokens":1000,"thinking":{"type":"adaptive"}}`, 1000, 0},
		{"client tools", messagesPath, `{"max_tokens":1,"tools":[{"name":"a"},{"type":"bash_20250124","name":"bash"}]}`, 1, 2 * OverheadTools},
	} {
		t.Run(row.name, func(t *testing.T) {
			api := OpenAI
			if row.path == messagesPath {
				api = Anthropic
			}
			rsv := reserve(t, newMeter(t, Config{API: api}), row.path, row.body)
			input := int64(len(row.body)) + Overhead + row.extra
			if rsv.Output != row.output || rsv.Input != input || rsv.Units != input+row.output {
				t.Errorf("%s: input %d, output %d, units %d; want %d, %d", row.body, rsv.Input, rsv.Output, rsv.Units, input, row.output)
			}
			if rsv.Written || string(rsv.Body) != row.body {
				t.Errorf("body became %s", rsv.Body)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	image := `{"max_tokens":1,"messages":[{"content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}`
	for _, row := range []struct {
		path, body string
		want       Reason
	}{
		// One reading.
		{chatPath, `{"max_tokens":100000,"max_tokens":1}`, ReasonMalformed},
		{chatPath, `{"max_tokens":100000,"max\u005ftokens":1}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"stream_options":{"include_usage":true,"include_usage":false}}`, ReasonMalformed},
		{messagesPath, `{"max_tokens":1,"messages":[{"content":[{"type":"image","type":"text","text":"x"}]}]}`, ReasonMalformed},
		{messagesPath, `{"max_tokens":1,"messages":[{"content":"x","conten\u0074":[]}]}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"messages":[{` + strings.Repeat(`"a":0,`, 2) + `"b":0}]}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"messages":[` + manyNames(maxNames+1) + `]}`, ReasonMalformed},
		{chatPath, `{"max_tokens":100000,"MAX_TOKENS":1}`, ReasonUnbounded}, // no field of the API
		{chatPath, `{"max_tokens":1} {"max_tokens":100}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1`, ReasonMalformed},
		{chatPath, `[{"max_tokens":1}]`, ReasonMalformed},
		{chatPath, ``, ReasonMalformed},
		{chatPath, "\xef\xbb\xbf" + `{"max_tokens":1}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"messages":[{"content":"` + "\xff" + `"}]}`, ReasonMalformed}, // becomes three bytes
		{chatPath, `{"max_tokens":1,"messages":` + strings.Repeat("[", 20000), ReasonMalformed},
		// Bounds.
		{chatPath, `{"max_tokens":0}`, ReasonMalformed},
		{chatPath, `{"max_tokens":-1}`, ReasonMalformed},
		{messagesPath, `{"max_tokens":-0}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1e3}`, ReasonMalformed},
		{chatPath, `{"max_tokens":10.0}`, ReasonMalformed},
		{chatPath, `{"max_tokens":"10"}`, ReasonMalformed},
		{chatPath, `{"max_tokens":true}`, ReasonMalformed},
		{chatPath, `{"max_tokens":99999999999999999999}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"n":0}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"n":"2"}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"model":["gpt"]}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"stream":"yes"}`, ReasonMalformed},
		{chatPath, `{"max_tokens":1,"stream":1}`, ReasonMalformed},
		{chatPath, `{"model":"gpt-5"}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":null}`, ReasonUnbounded},
		{responsesPath, `{"max_tokens":5}`, ReasonUnbounded},
		// What bytes do not bound.
		{chatPath, image, ReasonUnbounded},
		{chatPath, strings.Replace(image, "https://x", "data:image/png;base64,AAAA", 1), ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"messages":[{"content":[{"type":"file","file":{"file_id":"f"}}]}]}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"AAAA"}}]}]}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"messages":[{"content":[{"text":"no type"}]}]}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"messages":[{"audio":{"id":"a"}}]}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"modalities":["text","audio"]}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"prediction":{"content":"x"}}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"web_search_options":{}}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"model":"gpt-4o-search-preview"}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"tools":[{"type":"web_search"}]}`, ReasonUnbounded},
		{chatPath, `{"max_tokens":1,"best_of":9}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"previous_response_id":"r"}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"conversation":"c"}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"prompt":{"id":"p"}}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"context_management":[{"type":"compaction"}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"input":[{"id":"msg_1"}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"input":[{"type":"item_reference","id":"msg_1"}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"input":[{"type":null,"id":"msg_1"}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"input":[{"type":"reasoning","id":"rs_1","summary":[]}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"input":[{"role":"user","content":[{"type":"input_file","file_url":"u"}]}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"input":[{"type":"function_call_output","output":[{"type":"input_image","file_id":"f"}]}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"tools":[{"type":"mcp","server_url":"u"}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"tools":[{"type":"code_interpreter"}]}`, ReasonUnbounded},
		{responsesPath, `{"max_output_tokens":1,"background":true}`, ReasonUnmetered},
		{messagesPath, `{"max_tokens":1,"messages":[{"content":[{"type":"image","source":{"type":"base64","data":"AAAA"}}]}]}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"messages":[{"content":[{"type":"document","source":{"type":"url","url":"u"}}]}]}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"messages":[{"content":[{"type":"document","source":{"type":"content","content":[{"type":"image","source":{"type":"url"}}]}}]}]}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"messages":[{"content":[{"type":"tool_result","content":[{"type":"image","source":{"type":"file"}}]}]}]}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"messages":[{"content":[{"type":"tool_result","content":[{"type":"tool_reference","tool_name":"t"}]}]}]}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"tools":[{"type":"web_search_20250305"}]}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"mcp_servers":[]}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"container":"c"}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"fallbacks":[{"model":"dear"}]}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"thread":{"type":"continue"}}`, ReasonUnbounded},
		{messagesPath, `{"max_tokens":1,"thinking":{"type":"endless"}}`, ReasonUnbounded},
	} {
		api := OpenAI
		if row.path == messagesPath {
			api = Anthropic
		}
		refusal := refused(t, newMeter(t, Config{API: api}), row.path, row.body)
		if refusal.Reason != row.want || refusal.Status != 400 {
			t.Errorf("%.100s: %d %s (%s), want 400 %s", row.body, refusal.Status, refusal.Reason, refusal.Message, row.want)
		}
	}
}

func manyNames(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, `,"%d":0`, i)
	}
	return "{" + s.String()[1:] + "}"
}

// In what is only text for the model, names may be whatever they are, and an
// object's are its own.
func TestNamesThatAreNotRead(t *testing.T) {
	m := newMeter(t, Config{API: Anthropic})
	reserve(t, m, messagesPath, `{"max_tokens":1,"messages":[{"content":[{"type":"tool_use","input":{"a":1,"a":2}}]}]}`)
	reserve(t, m, messagesPath, `{"max_tokens":1,"metadata":`+manyNames(maxNames+1)+`}`)
	reserve(t, m, messagesPath, `{"max_tokens":1,"messages":[`+manyNames(maxNames)+`]}`)
	reserve(t, m, messagesPath, `{"max_tokens":1,"messages":[{"content":[{"type":"tool_result","content":[{"type":"text","text":"x"}],"id":"1"}],"id":"2"}],"type":null}`)
	reserve(t, m, messagesPath, `{"max_tokens":1,"messages":[{"content":[{"content":[{"text":"x","type":"text"}],"type":"tool_result"}],"text":"x"}]}`)
}

// A body of many names takes no more memory than any other.
func TestMemoryOfNames(t *testing.T) {
	m := newMeter(t, Config{API: OpenAI})
	body := []byte(`{"max_tokens":1,"metadata":` + manyNames(100_000) + `}`)
	allocs := testing.AllocsPerRun(3, func() {
		if _, refusal := m.Reserve("POST", chatPath, http.Header{}, body); refusal != nil {
			t.Fatal(refusal)
		}
	})
	if allocs > 100 {
		t.Errorf("%v allocations for 100,000 names", allocs)
	}
}

func TestHeaders(t *testing.T) {
	m := newMeter(t, Config{API: OpenAI})
	for _, row := range []struct {
		header http.Header
		ok     bool
	}{
		{http.Header{}, true},
		{http.Header{"Content-Type": {"application/json"}}, true},
		{http.Header{"Content-Type": {"application/json; charset=UTF-8"}}, true},
		{http.Header{"Content-Type": {"application/json; charset=utf-16"}}, false},
		{http.Header{"Content-Type": {"application/json", "text/plain"}}, false},
		{http.Header{"Content-Type": {"multipart/form-data; boundary=x"}}, false},
		{http.Header{"Content-Encoding": {"gzip"}}, false},
		{http.Header{"Content-Encoding": {""}}, false},
	} {
		_, refusal := m.Reserve("POST", chatPath, row.header, []byte(`{"max_tokens":1}`))
		if (refusal == nil) != row.ok || refusal != nil && refusal.Status != 415 {
			t.Errorf("%v: %v", row.header, refusal)
		}
	}
}

// What is written into a body leaves every other byte as it was.
func TestRewrite(t *testing.T) {
	cfg := Config{API: OpenAI, MaxOutput: 64}
	for _, row := range []struct{ path, body, want string }{
		{chatPath, `{}`, `{"max_completion_tokens":64}`},
		{chatPath, ` {  "model" : "m"}` + "\n", ` {"max_completion_tokens":64,  "model" : "m"}` + "\n"},
		{chatPath, `{"max_completion_tokens":  null , "a\/b":null}`, `{"max_completion_tokens":  64 , "a\/b":null}`},
		{chatPath, `{"max_tokens":null}`, `{"max_completion_tokens":64,"max_tokens":null}`},
		{chatPath, `{"max_tokens":5,"stream":true}`, `{"stream_options":{"include_usage":true},"max_tokens":5,"stream":true}`},
		{chatPath, `{"max_tokens":5,"stream":true,"stream_options":null}`, `{"max_tokens":5,"stream":true,"stream_options":{"include_usage":true}}`},
		{chatPath, `{"max_tokens":5,"stream":true,"stream_options":{ }}`, `{"max_tokens":5,"stream":true,"stream_options":{"include_usage":true }}`},
		{chatPath, `{"max_tokens":5,"stream_options":{"include_usage":false},"stream":true}`, `{"max_tokens":5,"stream_options":{"include_usage":true},"stream":true}`},
		{chatPath, `{"max_tokens":5,"stream_options":{"include_obfuscation":false},"stream":true}`, `{"max_tokens":5,"stream_options":{"include_usage":true,"include_obfuscation":false},"stream":true}`},
		{chatPath, `{"max_tokens":5,"stream_options":{"include_usage":true},"stream":true}`, ""},
		{chatPath, `{"max_tokens":5,"stream":false}`, ""},
		{chatPath, `{"stream":true}`, `{"max_completion_tokens":64,"stream_options":{"include_usage":true},"stream":true}`},
		{responsesPath, `{"stream":true}`, `{"max_output_tokens":64,"stream":true}`},
		{responsesPath, `{"stream":true,"max_output_tokens":1}`, ""},
	} {
		rsv := reserve(t, newMeter(t, cfg), row.path, row.body)
		want := row.want
		if want == "" {
			want = row.body
		}
		if string(rsv.Body) != want || rsv.Written != (row.want != "") {
			t.Errorf("%s became\n%s, want\n%s", row.body, rsv.Body, want)
		}
		if !json.Valid(rsv.Body) {
			t.Errorf("%s is no JSON", rsv.Body)
		}
	}
	off := newMeter(t, Config{API: OpenAI, MaxOutput: 64, EnforceOff: true})
	if rsv := reserve(t, off, chatPath, `{"stream":true}`); rsv.Written || rsv.Output != 64 || rsv.stripUsage {
		t.Errorf("enforce off: %+v", rsv)
	}
	old := newMeter(t, Config{API: OpenAI, MaxOutput: 64, MaxOutputField: "max_tokens"})
	if rsv := reserve(t, old, chatPath, `{}`); string(rsv.Body) != `{"max_tokens":64}` {
		t.Errorf("max_tokens: %s", rsv.Body)
	}
}

// A client that adds a small image to a long text reserves no less for the text,
// and cannot pass text off as an image.
func TestMaxInput(t *testing.T) {
	m := newMeter(t, Config{API: Anthropic, MaxInput: 1000})
	part := func(data string) string {
		return `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + data + `"}}`
	}
	body := func(text, part string) string {
		return `{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"` + text + `"},` + part + `]}]}`
	}
	long := strings.Repeat("text ", 1000)
	for _, row := range []struct {
		name, body string
		least      int64
		most       int64
	}{
		{"image", body("hi", part("AAAA")), 1000, 1000 + Overhead},
		{"large image", body("hi", part(strings.Repeat("A", 100000))), 1000, 1000 + Overhead},
		{"long text, image", body(long, part("AAAA")), 5000, 6000},
		{"text as image", body("hi", part(long)), 5000, 6000},
		{"text beside an image", body("hi", `{"type":"document","title":"`+long+`","source":{"type":"url"}}`), 5000, 6000},
		{"base64 as text", body(strings.Repeat("A", 5000), part("AAAA")), 5000, 6000},
	} {
		rsv := reserve(t, m, messagesPath, row.body)
		if rsv.Unbounded == "" || rsv.Input < row.least || rsv.Input > row.most {
			t.Errorf("%s: input %d (%s), want %d to %d", row.name, rsv.Input, rsv.Unbounded, row.least, row.most)
		}
	}
}

// What is not known is refused even where MaxInput stands in for unbounded
// input: it may cost output, or other models.
func TestUnknown(t *testing.T) {
	for _, row := range []struct{ path, body, name string }{
		{chatPath, `{"max_tokens":1,"best_of":20}`, "best_of"},
		{chatPath, `{"max_tokens":1,"tools":[{"type":"oracle"}]}`, "oracle"},
		{chatPath, `{"max_tokens":1,"MAX_TOKENS":1}`, "MAX_TOKENS"},
		{responsesPath, `{"max_output_tokens":1,"context_management":[{"type":"compaction"}]}`, "context_management"},
		{messagesPath, `{"max_tokens":1,"fallbacks":[{"model":"dear","max_tokens":100000}]}`, "fallbacks"},
		{messagesPath, `{"max_tokens":1,"compaction":{}}`, "compaction"},
		{messagesPath, `{"max_tokens":1,"tools":[{"type":"advisor_20260301","model":"dear"}]}`, "advisor_20260301"},
		{messagesPath, `{"max_tokens":1,"thinking":{"type":"endless"}}`, "endless"},
	} {
		cfg := Config{API: OpenAI, MaxInput: 1000}
		if row.path == messagesPath {
			cfg.API = Anthropic
		}
		if r := refused(t, newMeter(t, cfg), row.path, row.body); r.Reason != ReasonUnbounded || !strings.Contains(r.Message, row.name) {
			t.Errorf("%s: %v", row.body, r)
		}
		cfg.Accept = []string{row.name}
		reserve(t, newMeter(t, cfg), row.path, row.body)
	}
	// null is the same as nothing.
	reserve(t, newMeter(t, Config{API: OpenAI}), chatPath, `{"max_tokens":1,"best_of":null}`)
}

func TestReserveDollars(t *testing.T) {
	cfg := Config{API: OpenAI, MaxInput: 1000, Prices: []Price{
		price(t, "gpt-5", "1", "0.1", "10"),
		price(t, "gpt-5-20*", "2", "", "20"),
		price(t, "default", "15", "", "120"),
	}}
	m := newMeter(t, cfg)
	for _, row := range []struct {
		model, match string
		in, out      int64 // hundredths of a micro-dollar
	}{
		{"gpt-5", "gpt-5", 125, 1000}, // writing the cache is the dearest
		{"gpt-5-2025-08-07", "gpt-5-20*", 250, 2000},
		{"gpt-5-pro", "default", 1875, 12000},
		{"GPT-5", "default", 1875, 12000},
		{"", "default", 1875, 12000},
	} {
		rsv := reserve(t, m, chatPath, `{"model":"`+row.model+`","max_tokens":1000}`)
		want := (rsv.Input*row.in + rsv.Output*row.out + 99) / 100
		if rsv.Units != want || rsv.Price != row.match {
			t.Errorf("%s: %d by %q, want %d by %q", row.model, rsv.Units, rsv.Price, want, row.match)
		}
	}
	// A dearer tier is not covered by MaxInput, which tells tokens, not prices.
	if r := refused(t, m, chatPath, `{"max_tokens":1,"service_tier":"priority"}`); r.Reason != ReasonUnbounded {
		t.Error(r)
	}
	if r := refused(t, m, chatPath, `{"max_tokens":1,"modalities":["text","audio"]}`); r.Reason != ReasonUnbounded {
		t.Error(r)
	}
	if r := refused(t, m, chatPath, `{"max_tokens":1,"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"AAAA"}}]}]}`); r.Reason != ReasonUnbounded {
		t.Error(r)
	}
	// What a prediction gets wrong is billed as output, for each choice.
	if rsv := reserve(t, m, chatPath, `{"max_tokens":10,"n":2,"prediction":{"content":"xx"}}`); rsv.Output != 2*(10+16) {
		t.Errorf("with a prediction: output %d", rsv.Output)
	}
	reserve(t, m, chatPath, `{"max_tokens":1,"service_tier":"flex"}`)
	cfg.Tiers = []string{"priority"}
	reserve(t, newMeter(t, cfg), chatPath, `{"max_tokens":1,"service_tier":"priority"}`)
	reserve(t, newMeter(t, Config{API: OpenAI}), chatPath, `{"max_tokens":1,"service_tier":"priority"}`)

	small := newMeter(t, Config{API: OpenAI, MaxRequest: 1000})
	if r := refused(t, small, chatPath, `{"max_tokens":900}`); r.Reason != ReasonTooCostly {
		t.Error(r)
	}
	reserve(t, small, chatPath, `{"max_tokens":800}`)
}

// Anthropic's writes for an hour cost more; a request can only ask for them with
// words that are in its body.
func TestReserveCacheWrites(t *testing.T) {
	m := newMeter(t, Config{API: Anthropic, Prices: []Price{price(t, "default", "1", "0.1", "0")}})
	for _, row := range []struct {
		body string
		want int64 // hundredths of a micro-dollar for each token
	}{
		{`{"max_tokens":1}`, 100},
		{`{"max_tokens":1,"cache_control":{"type":"ephemeral"}}`, 125},
		{`{"max_tokens":1,"cache_control":{"type":"ephemeral","ttl":"1h"}}`, 200},
		{`{"max_tokens":1,"cache\u005fcontrol":{"type":"ephemeral","ttl":"\u0031h"}}`, 200},
	} {
		rsv := reserve(t, m, messagesPath, row.body)
		if want := (rsv.Input*row.want + 99) / 100; rsv.Units != want {
			t.Errorf("%s: %d, want %d", row.body, rsv.Units, want)
		}
	}
}

// A server that obeys only max_tokens must get the client's bound in that field, too:
// what a client has bounded by another one would be unbounded there.
func TestBoundInTheFieldThatIsObeyed(t *testing.T) {
	meter := newMeter(t, Config{API: OpenAI, MaxOutput: 4096, MaxOutputField: "max_tokens"})
	for body, want := range map[string]string{
		`{"max_completion_tokens":10}`:                 `"max_tokens":10`,
		`{"max_completion_tokens":10,"max_tokens":20}`: `"max_tokens":20`,
		`{"max_tokens":20}`:                            `"max_tokens":20`,
		`{}`:                                           `"max_tokens":4096`,
	} {
		rsv := reserve(t, meter, chatPath, body)
		if !strings.Contains(string(rsv.Body), want) || strings.Count(string(rsv.Body), `"max_tokens"`) != 1 {
			t.Errorf("%s became %s, want %s in it", body, rsv.Body, want)
		}
	}
}
