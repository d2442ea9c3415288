package llmtest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// post sends a request as a client without any manners of its own would: it
// decodes nothing that it did not ask for.
func post(ctx context.Context, s *Server, path, behaviour, body string, header ...string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set(Header, behaviour)
	r.Header.Set("Anthropic-Version", "2023-06-01")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	return client.Do(r)
}

// ask is post to the end of the response.
func ask(t *testing.T, s *Server, path, behaviour, body string, header ...string) (int, string, error) {
	t.Helper()
	resp, err := post(t.Context(), s, path, behaviour, body, header...)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

const (
	chatPath      = "/v1/chat/completions"
	responsesPath = "/v1/responses"
	messagesPath  = "/v1/messages"

	chatBody      = `{"model":"gpt-5","messages":[{"role":"user","content":"hi"}],"max_completion_tokens":50}`
	responsesBody = `{"model":"gpt-5","input":"hi","max_output_tokens":50}`
	messagesBody  = `{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":"hi"}],"max_tokens":50}`
)

func streamed(body string) string {
	return strings.Replace(body, `{"model"`, `{"stream":true,"model"`, 1)
}

// What the ledger says was spent is what the request's bound allows, what the
// response tells, and what that costs.
func TestLedger(t *testing.T) {
	const cached = "input=10,cached=100,written=40,written1h=7,reasoning=5,output=30"
	tests := []struct {
		name, path, behaviour, body string
		spent                       Tokens
		micro                       int64
		tells                       string // part of the response
	}{
		{"chat", chatPath, "input=9", chatBody, Tokens{Input: 9, Output: 20}, 212, // 11.25 and 200, rounded up
			`"prompt_tokens":9,"completion_tokens":20,"total_tokens":29`},
		{"bounded", chatPath, "input=8,output=1000", chatBody, Tokens{Input: 8, Output: 50}, 510, `"finish_reason":"length"`},
		{"n", chatPath, "input=8", strings.Replace(chatBody, "{", `{"n":3,`, 1), Tokens{Input: 8, Output: 60}, 610, `"completion_tokens":60`},
		{"n streamed", chatPath, "input=8", streamed(strings.Replace(chatBody, "{", `{"n":3,`, 1)), Tokens{Input: 8, Output: 60}, 610, `"index":2`},
		{"cached chat", chatPath, cached, chatBody, Tokens{10, 100, 40, 7, 30, 5}, 384, // 57 at 1.25, 100 at 0.125, 30 at 10
			`"prompt_tokens":157,"completion_tokens":30,"total_tokens":187,"prompt_tokens_details":{"cached_tokens":100,"cache_write_tokens":47`},
		{"cached responses", responsesPath, cached, responsesBody, Tokens{10, 100, 40, 7, 30, 5}, 384,
			`"input_tokens":157,"input_tokens_details":{"cached_tokens":100,"cache_write_tokens":47},"output_tokens":30,"output_tokens_details":{"reasoning_tokens":5}`},
		{"cached messages", messagesPath, cached, messagesBody, Tokens{10, 100, 40, 7, 30, 5}, 702, // 30, 30, 150, 42, 450
			`"input_tokens":10,"cache_creation_input_tokens":47,"cache_read_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":40,"ephemeral_1h_input_tokens":7},"output_tokens":30`},
		{"streamed messages", messagesPath, "input=1,output=3", streamed(messagesBody), Tokens{Input: 1, Output: 3}, 48, `"stop_reason":"end_turn"`},
		{"incomplete", responsesPath, "input=0,output=50", streamed(responsesBody), Tokens{Output: 50}, 500, "event: response.incomplete"},
		{"stored", responsesPath, "input=0,output=0", strings.Replace(responsesBody, "{", `{"previous_response_id":"resp_1",`, 1),
			Tokens{Input: stored}, 3750, `"previous_response_id":"resp_1"`},
		{"another model answers", chatPath, "input=0,output=1,answered=gpt-5-pro", chatBody, Tokens{Output: 1}, 120, `"model":"gpt-5-pro"`},
		{"unknown model", chatPath, "input=1,output=1", strings.Replace(chatBody, "gpt-5", "gpt-9", 1), Tokens{Input: 1, Output: 1}, 135, `"model":"gpt-9"`},
		{"by the model's name", chatPath, "output=9", strings.Replace(chatBody, "gpt-5", "gpt-5:input=1,output=2", 1),
			Tokens{Input: 1, Output: 2}, 22, `"model":"gpt-5"`},
		{"the last of several names", chatPath, "input=1,output=80",
			strings.Replace(chatBody, "{", `{"max_completion_tokens":2,"MAX_COMPLETION_TOKENS":1,`, 1), Tokens{Input: 1, Output: 50}, 502, ""},
		{"an error", chatPath, "status=500", chatBody, Tokens{}, 0, `"type":"server_error"`},
		{"an error that costs", messagesPath, "status=500,usage=error,input=1,output=1", messagesBody, Tokens{Input: 1, Output: 1}, 18, `"output_tokens":1`},
		{"nobody meters it", "/v1/batches", "", "{}", Tokens{Input: 1000}, 15000, ""},
		{"counting is free", "/v1/messages/count_tokens", "", messagesBody, Tokens{}, 0, `"input_tokens"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := Start(t)
			_, text, err := ask(t, s, test.path, test.behaviour, test.body)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(text, test.tells) {
				t.Errorf("no %s in\n%s", test.tells, text)
			}
			e := s.Since(0)[0]
			if e.Tokens != test.spent || e.Micro() != test.micro {
				t.Errorf("%v, want %+v and %d", e, test.spent, test.micro)
			}
		})
	}
}

// What the real APIs refuse, the server does too: a proxy that writes into
// requests must not be forgiven what they do not forgive.
func TestRefusedRequests(t *testing.T) {
	for _, test := range [][3]string{
		{chatPath, `{"model":"gpt-5","messages":[],"max_tokens":5}`, "max_completion_tokens"},
		{chatPath, `{"model":"gpt-4o","messages":[],"max_tokens":5,"max_completion_tokens":5}`, "at the same time"},
		{chatPath, `{"model":"gpt-5","messages":[],"stream_options":{"include_usage":true}}`, "stream_options"},
		{chatPath, `{"model":"gpt-5","messages":[],"max_completion_tokens":0}`, "positive integer"},
		{chatPath, `{"model":"gpt-5","messages":[],"n":1.5}`, "positive integer"},
		{chatPath, `{"messages":[]}`, "model"},
		{chatPath, `{"model`, "parse"},
		{messagesPath, `{"model":"claude-sonnet-4-6","messages":[]}`, "max_tokens"},
		{responsesPath, `{"model":"gpt-5","input":"","max_output_tokens":"9"}`, "positive integer"},
	} {
		s := Start(t)
		status, text, err := ask(t, s, test[0], "", test[1])
		if status != http.StatusBadRequest || !strings.Contains(text, test[2]) || !strings.Contains(text, "invalid_request_error") {
			t.Errorf("POST %s %s: %d %s %v", test[0], test[1], status, text, err)
		}
		if tokens, _ := Spent(s.Since(0)); tokens != 0 {
			t.Errorf("POST %s %s: %d tokens spent", test[0], test[1], tokens)
		}
	}
}

// A stream of OpenAI's chat tells its usage if that is asked for: null in every
// chunk, and the numbers in one more that has no choices.
func TestIncludeUsage(t *testing.T) {
	s := Start(t)
	_, silent, _ := ask(t, s, chatPath, "", streamed(chatBody))
	if strings.Contains(silent, "usage") {
		t.Errorf("usage that nobody asked for:\n%s", silent)
	}
	asking := strings.Replace(streamed(chatBody), "{", `{"stream_options":{"include_usage":true},`, 1)
	_, told, _ := ask(t, s, chatPath, "", asking)
	if got := strings.Count(told, `"usage":null`); got != 6 {
		t.Errorf("%d chunks with a usage of null, want 6:\n%s", got, told)
	}
	if strings.Count(told, `"choices":[],"usage":{"prompt_tokens":`) != 1 {
		t.Errorf("no chunk with the usage:\n%s", told)
	}
	if ledger := s.Since(0); ledger[0].Told || !ledger[1].Told {
		t.Errorf("told: %t and %t, want only the second", ledger[0].Told, ledger[1].Told)
	}
	if _, text, _ := ask(t, s, chatPath, "usage=none", asking); strings.Contains(text, "usage") {
		t.Errorf("usage that is not to be told:\n%s", text)
	}
}

// The bill does not stop with the client.
func TestHangUp(t *testing.T) {
	for _, test := range []struct {
		name, behaviour string
		least, most     int // of the output
		read            bool
	}{
		{"before the response", "output=40,wait=1h", 40, 40, false},
		{"no response", "output=40,break=hang", 40, 40, false},
		{"during the stream", "output=40,events=40,every=300ms", 40, 40, true},
		{"during the stream, which ends soon", "output=40,events=40,every=300ms,after=2", 3, 20, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := Start(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if !test.read {
				go func() {
					for len(s.Ledger()) == 0 || s.Ledger()[0].Tokens.Output == 0 {
						time.Sleep(time.Millisecond)
					}
					cancel()
				}()
			}
			resp, err := post(ctx, s, chatPath, test.behaviour, streamed(chatBody))
			if (err == nil) != test.read {
				t.Fatal(err)
			}
			if test.read {
				// The head, and the first word.
				if _, err := io.ReadFull(resp.Body, make([]byte, 400)); err != nil {
					t.Fatal(err)
				}
				cancel()
				resp.Body.Close()
			}
			e := s.Since(0)[0]
			if !e.HungUp || e.Tokens.Output < test.least || e.Tokens.Output > test.most {
				t.Errorf("%v, want %d to %d tokens of output for a client that hung up", e, test.least, test.most)
			}
		})
	}
}

func TestBroken(t *testing.T) {
	for _, path := range []string{chatPath, responsesPath, messagesPath} {
		body := map[string]string{chatPath: chatBody, responsesPath: responsesBody, messagesPath: messagesBody}[path]
		for _, how := range []string{breakHead, breakCut, breakReset, breakError} {
			for _, body := range []string{body, streamed(body)} {
				s := Start(t)
				status, text, err := ask(t, s, path, "output=40,break="+how, body)
				stream := strings.Contains(body, `"stream":true`)
				failed := how != breakError
				if (err != nil) != failed {
					t.Errorf("%s, %s, stream %t: %d %v\n%s", path, how, stream, status, err, text)
				}
				if how == breakError && stream && !strings.Contains(text, `"error"`) {
					t.Errorf("%s, no error midway in\n%s", path, text)
				}
				if midway := stream && how != breakHead; midway != (s.Since(0)[0].Tokens.Output < 40) {
					t.Errorf("%s, %s, stream %t: %v", path, how, stream, s.Since(0)[0])
				}
			}
		}
	}
}

// Lines that end otherwise, pieces and encodings change how a stream is
// written, and nothing else.
func TestWire(t *testing.T) {
	for path, body := range map[string]string{chatPath: chatBody, responsesPath: responsesBody, messagesPath: messagesBody} {
		for _, body := range []string{body, streamed(body)} {
			s := Start(t)
			_, plain, err := ask(t, s, path, "tricky", body)
			if err != nil {
				t.Fatal(err)
			}
			_, crlf, _ := ask(t, s, path, "tricky,crlf,split=3", body)
			if got := strings.ReplaceAll(crlf, "\r\n", "\n"); got != plain {
				t.Errorf("%s: in pieces, with CR LF:\n%s\nplain:\n%s", path, crlf, plain)
			}
			if _, text, _ := ask(t, s, path, "tricky,gzip=asked", body); text != plain {
				t.Errorf("%s: encoded though nobody asked:\n%s", path, text)
			}
			_, encoded, _ := ask(t, s, path, "tricky,gzip=asked", body, "Accept-Encoding", "br, gzip")
			decoder, err := gzip.NewReader(strings.NewReader(encoded))
			if err != nil {
				t.Fatalf("%s: not encoded: %v", path, err)
			}
			var text bytes.Buffer
			if _, err := io.Copy(&text, decoder); err != nil || text.String() != plain {
				t.Errorf("%s: decoded: %v\n%s\nplain:\n%s", path, err, text.String(), plain)
			}
			_, huge, _ := ask(t, s, path, "huge=1000000", body)
			if len(huge) < 1_000_000 {
				t.Errorf("%s: %d bytes, want a million more than usual", path, len(huge))
			}
		}
	}
}

func TestUnknownBehaviour(t *testing.T) {
	s := Start(t)
	if status, text, err := ask(t, s, chatPath, "outptu=1", chatBody); status != http.StatusNotImplemented || !strings.Contains(text, "outptu") {
		t.Errorf("%d %s %v", status, text, err)
	}
}

// HTTP/2 without TLS, as a proxy may speak it to its upstream.
func TestHTTP2(t *testing.T) {
	s := Start(t)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	for _, how := range []string{"", "break=reset"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+chatPath, strings.NewReader(streamed(chatBody)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(Header, how)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		whole := strings.HasSuffix(string(text), "data: [DONE]\n\n")
		if resp.ProtoMajor != 2 || (err == nil) != (how == "") || whole != (how == "") {
			t.Errorf("%q: HTTP/%d, whole %t, %v", how, resp.ProtoMajor, whole, errors.Unwrap(err))
		}
	}
}
