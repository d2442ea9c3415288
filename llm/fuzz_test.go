package llm

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// whole is what a reading must find, read from a whole parse.
type whole struct {
	counted
	rows        counted
	usage, bad  bool
	kind        string
	models      []string
	choice, any bool // of choices
	moderation  bool
	failed      bool
}

// parse walks through the text with encoding/json's tokens, so that every one of
// several members with one name counts, as it does for the scanner.
func parse(text []byte, root *place) (w whole, ok bool) {
	if !json.Valid(text) {
		return w, false
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	w.value(dec, root)
	return w, true
}

func (w *whole) value(dec *json.Decoder, p *place) {
	tok, err := dec.Token()
	if err != nil {
		panic(err)
	}
	f := noField
	if p != nil {
		f = p.field
	}
	delim, _ := tok.(json.Delim)
	switch f {
	case usageField:
		w.usage = w.usage || delim == '{'
	case choicesField:
		w.any = w.any || delim == '['
	case choiceField:
		w.choice = true
	case moderationField:
		w.moderation = w.moderation || tok != nil
	case errorField:
		w.failed = w.failed || tok != nil
	case typeField:
		if s, isText := tok.(string); isText {
			w.kind = s
		}
	case modelField:
		if s, isText := tok.(string); isText {
			w.models = append(w.models, s)
		}
	case noField:
	default:
		w.count(p, tok)
	}
	switch delim {
	case '{':
		for dec.More() {
			name, err := dec.Token()
			if err != nil {
				panic(err)
			}
			w.value(dec, p.kid([]byte(name.(string))))
		}
		dec.Token()
	case '[':
		for dec.More() {
			w.value(dec, p.kid([]byte("[]")))
		}
		dec.Token()
	}
}

func (w *whole) count(p *place, tok json.Token) {
	if tok == nil {
		return
	}
	number, isNumber := tok.(json.Number)
	n, err := number.Int64()
	if !isNumber || err != nil || n < 0 || n > maxTokens || number[0] == '-' || strings.Trim(string(number), "0123456789") != "" {
		w.bad = true
		return
	}
	if p.row {
		w.rows.n[p.field] = min(w.rows.n[p.field]+n, maxTokens)
		w.rows.seen[p.field] = true
		return
	}
	w.n[p.field] = max(w.n[p.field], n)
	w.seen[p.field] = true
}

var roots = []*place{chatRoot, responsesRoot, responsesEvent, messagesRoot, messagesEvent}

// FuzzScanner holds the scanner against a whole parse, split at random places.
func FuzzScanner(f *testing.F) {
	for _, row := range samples {
		body := sample(f, row.file)
		if strings.HasSuffix(row.file, ".json") {
			f.Add([]byte(body), uint8(0), uint64(1))
			f.Add([]byte(body), uint8(3), uint64(1))
			continue
		}
		for line := range strings.SplitSeq(body, "\n") {
			if data, ok := strings.CutPrefix(line, "data: {"); ok {
				f.Add([]byte("{"+data), uint8(len(line)), uint64(1))
			}
		}
	}
	f.Add([]byte(`{"\u0075sage":{"prompt_tokens":1e3,"completion_tokens":[1],"total_tokens":-0},"model":"\ud800\n","choices":[[]]}`), uint8(0), uint64(2))
	f.Add([]byte(` 12 `), uint8(0), uint64(3))
	f.Fuzz(func(t *testing.T, text []byte, which uint8, seed uint64) {
		root := roots[int(which)%len(roots)]
		got, models, complete := scanSplit(text, root, rand.New(rand.NewPCG(seed, 1)))
		want, valid := parse(text, root)
		if !valid || !utf8.Valid(text) || strings.Count(string(text), "{")+strings.Count(string(text), "[") > maxDepth {
			return
		}
		if !complete {
			t.Fatalf("%q is valid, and the scanner fails", text)
		}
		if got.counted != want.counted || got.rows != want.rows || got.bad != want.bad || got.usage != want.usage ||
			got.choice != want.choice || got.choices != want.any || got.moderation != want.moderation || got.failed != want.failed {
			t.Fatalf("%q\nscanned %+v\nparsed  %+v", text, got, want)
		}
		if got.kind != "" && got.kind != want.kind {
			t.Fatalf("%q: type %q, want %q", text, got.kind, want.kind)
		}
		if len(models) != len(want.models) {
			t.Fatalf("%q: models %q, want %q", text, models, want.models)
		}
		for i, m := range models {
			if m != want.models[i] && len(want.models[i])*6 <= maxModel {
				t.Fatalf("%q: models %q, want %q", text, models, want.models)
			}
		}
	})
}

func scanSplit(text []byte, root *place, random *rand.Rand) (r reading, models []string, complete bool) {
	r.model = func(name []byte) { models = append(models, string(name)) }
	var s scanner
	s.reset(root, &r)
	for len(text) > 0 {
		n := 1 + random.IntN(len(text))
		if random.IntN(2) == 0 {
			n = min(n, 1+random.IntN(3))
		}
		s.write(text[:n])
		text = text[n:]
	}
	s.end()
	return r, models, s.complete()
}

// FuzzStream holds the reading of streams against one that has it all at once:
// the same events and the same bytes for the client, however it is split.
func FuzzStream(f *testing.F) {
	for _, row := range samples {
		if strings.HasSuffix(row.file, ".sse") {
			body := sample(f, row.file)
			for _, end := range []string{"\n", "\r", "\r\n"} {
				f.Add([]byte(strings.ReplaceAll(body, "\n", end)), row.path == messagesPath, uint64(1))
			}
		}
	}
	f.Add([]byte("\xef\xbb\xbfdata\r\r\n:c\n\rdata:[DONE]\r\n\r\n\n"), false, uint64(1))
	f.Fuzz(func(t *testing.T, body []byte, anthropic bool, seed uint64) {
		path := chatPath
		if anthropic {
			path = messagesPath
		}
		rsv := reserve(t, meterFor(t, path), path, `{"stream":true}`)
		random := rand.New(rand.NewPCG(seed, 1))
		resp := rsv.Response(200, sseHeader)
		got := reply(resp, string(body), random)
		s := resp.Settle()

		want := settleWhole(rsv, splitEvents(body))
		if s != want {
			t.Fatalf("%q: %+v, want %+v", body, s, want)
		}
		if anthropic && got != string(body) {
			t.Fatalf("%q became %q", body, got)
		}
		checkFiltered(t, string(body), got)
	})
}

// splitEvents is the standard's algorithm on the whole text: the data of each
// event, the last one even if no empty line ends it.
func splitEvents(body []byte) (events []string) {
	text := strings.TrimPrefix(string(body), bomText)
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
	var data []string
	for line := range strings.SplitSeq(text+"\n\n", "\n") {
		name, value, _ := strings.Cut(line, ":")
		switch {
		case line == "" && data != nil:
			events, data = append(events, strings.Join(data, "\n")), nil
		case name == "data":
			data = append(data, strings.TrimPrefix(value, " "))
		}
	}
	return events
}

func settleWhole(rsv *Reservation, events []string) Settlement {
	var c counted
	var over, bad bool
	for _, e := range events {
		over = over || rsv.endpoint == chat && strings.HasPrefix(e, doneText)
		r, _, complete := scanSplit([]byte(e), rsv.endpoint.root(true), rand.New(rand.NewPCG(1, 1)))
		if !complete {
			continue
		}
		if r.usage {
			c.merge(&r)
			bad = bad || r.bad
		}
		over = over || rsv.endpoint == messages && r.kind == "message_stop"
	}
	s := Settlement{Usage: c.total(rsv.meter.cfg.API, false)}
	s.Units = s.Usage.Tokens()
	if over && !bad && c.whole() {
		s.Outcome = Counted
	} else {
		s.Units = max(s.Units, rsv.Units)
	}
	return s
}

// checkFiltered: what the client gets are the events that were sent, in order,
// without some that have usage.
func checkFiltered(t *testing.T, sent, got string) {
	t.Helper()
	rest := splitEvents([]byte(got))
	for _, e := range splitEvents([]byte(sent)) {
		if len(rest) > 0 && rest[0] == e {
			rest = rest[1:]
		} else if !strings.Contains(e, "sage") && !strings.Contains(e, `\u`) {
			t.Fatalf("%q became %q: event %q is missing", sent, got, e)
		}
	}
	if len(rest) > 0 {
		t.Fatalf("%q became %q: events %q were never sent", sent, got, rest)
	}
}

// FuzzReserve holds the reader of requests against encoding/json: what it
// accepts is one JSON object, read in one way, and so is what it makes of it.
func FuzzReserve(f *testing.F) {
	for _, body := range requestSamples(f) {
		f.Add([]byte(body), uint8(0))
		f.Add([]byte(body), uint8(1))
		f.Add([]byte(body), uint8(2))
	}
	f.Fuzz(func(t *testing.T, body []byte, which uint8) {
		path := []string{chatPath, responsesPath, messagesPath}[which%3]
		api := OpenAI
		if path == messagesPath {
			api = Anthropic
		}
		m := newMeter(t, Config{API: api, MaxOutput: 77, MaxInput: 1000})
		before := bytes.Clone(body)
		rsv, refusal := m.Reserve("POST", path, http.Header{}, body)
		if !bytes.Equal(body, before) {
			t.Fatalf("Reserve changed the body %q to %q", before, body)
		}
		if refusal != nil {
			if !utf8.ValidString(refusal.Message) || len(refusal.Message) > 300 {
				t.Fatalf("message %q", refusal.Message)
			}
			return
		}
		checkBound(t, m, path, rsv, body)
	})
}

func checkBound(t *testing.T, m *Meter, path string, rsv *Reservation, body []byte) {
	t.Helper()
	var was, is map[string]any
	for _, b := range []struct {
		text []byte
		into *map[string]any
	}{{body, &was}, {rsv.Body, &is}} {
		dec := json.NewDecoder(bytes.NewReader(b.text))
		dec.UseNumber()
		if err := dec.Decode(b.into); err != nil {
			t.Fatalf("accepted %q, which encoding/json does not: %v", b.text, err)
		}
		if _, err := dec.Token(); err != io.EOF {
			t.Fatalf("accepted %q, which goes on", b.text)
		}
	}
	bounded := false
	for _, name := range []string{"max_tokens", "max_completion_tokens", "max_output_tokens"} {
		n, ok := is[name].(json.Number)
		if _, known := map[string]int{m.field(chat): 1, m.field(responses): 1, m.field(messages): 1, "max_tokens": 1}[name]; !ok || !known {
			continue
		}
		v, err := n.Int64()
		if err == nil && v <= rsv.Output {
			bounded = true
		} else if rsv.Unbounded == "" {
			t.Fatalf("%q: %s is %s, output %d", rsv.Body, name, n, rsv.Output)
		}
	}
	if !bounded {
		t.Fatalf("%q is not bounded by %d", rsv.Body, rsv.Output)
	}
	// All other members are as they were.
	for name, value := range was {
		if name == "stream_options" || value == nil || strings.HasPrefix(name, "max_") {
			continue
		}
		a, _ := json.Marshal(value)
		b, _ := json.Marshal(is[name])
		if !bytes.Equal(a, b) {
			t.Fatalf("%q: %s became %s", body, name, b)
		}
	}
	if path == chatPath && is["stream"] == true {
		if o, _ := is["stream_options"].(map[string]any); o["include_usage"] != true {
			t.Fatalf("%q has no include_usage", rsv.Body)
		}
	}
	// Reading what was written finds the same, and has nothing to write.
	again, refusal := m.Reserve("POST", path, http.Header{}, rsv.Body)
	if refusal != nil || again.Written || again.Output != rsv.Output {
		t.Fatalf("%q, read again: %v, %+v", rsv.Body, refusal, again)
	}
}

func requestSamples(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/request-*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no samples of requests", err)
	}
	var bodies []string
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, string(b))
	}
	return append(bodies, `{}`, `{"max_tokens":null,"stream":true,"stream_options":{}}`,
		`{"max_tokens":5,"n":2,"stream":true,"stream_options":{"include_usage":null}}`,
		`{"max_tokens":0,"thinking":{"type":"enabled","budget_tokens":3}}`)
}
