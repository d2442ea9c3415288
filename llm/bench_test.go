package llm

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkPass tells what it costs to read a response as it passes: large texts
// as in the last event of a stream of responses, and many small events.
func BenchmarkPass(b *testing.B) {
	echo := `data: {"type":"response.completed","response":{"instructions":"` + strings.Repeat("All work and no play makes Jack a dull boy. ", 25000) +
		`","usage":{"input_tokens":37,"output_tokens":11}}}` + "\n\n"
	quoted := strings.ReplaceAll(echo, "work", `\"work\"`)
	delta := `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1741570283,"model":"gpt-5","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}],"usage":null}` + "\n\n"
	for _, row := range []struct {
		name, path, request, body string
		header                    http.Header
		chunk                     int
	}{
		{"echo", responsesPath, `{"max_output_tokens":1}`, echo, sseHeader, 32 << 10},
		{"escapes", responsesPath, `{"max_output_tokens":1}`, quoted, sseHeader, 32 << 10},
		{"deltas", chatPath, `{"max_tokens":1,"stream":true,"stream_options":{"include_usage":true}}`, strings.Repeat(delta, 5000), sseHeader, len(delta)},
		{"deltas filtered", chatPath, `{"max_tokens":1,"stream":true}`, strings.Repeat(delta, 5000), sseHeader, len(delta)},
	} {
		b.Run(row.name, func(b *testing.B) {
			rsv := reserve(b, newMeter(b, Config{API: OpenAI}), row.path, row.request)
			resp := rsv.Response(200, row.header)
			body := []byte(row.body)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				for at := 0; at < len(body); at += row.chunk {
					resp.Pass(body[at:min(at+row.chunk, len(body))])
				}
			}
		})
	}
}

func BenchmarkReserve(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			var body strings.Builder
			body.WriteString(`{"model":"gpt-5","stream":true,"messages":[`)
			for body.Len() < size {
				body.WriteString(`{"role":"user","content":[{"type":"text","text":"All work and no play makes Jack a dull boy.\nAll work and no play makes Jack a dull boy."}]},`)
			}
			body.WriteString(`{"role":"user","content":"go"}]}`)
			m := newMeter(b, Config{API: OpenAI, MaxOutput: 100})
			b.SetBytes(int64(body.Len()))
			b.ReportAllocs()
			for b.Loop() {
				reserve(b, m, chatPath, body.String())
			}
		})
	}
}
