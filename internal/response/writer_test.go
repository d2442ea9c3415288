package response

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// witness notes what it is told.
type witness struct {
	told []int
	want bool
	body strings.Builder
}

func (o *witness) Begin(status int, header http.Header) {
	o.told = append(o.told, status)
	header.Set("Seen", "before the header")
}
func (o *witness) WantsBody() bool      { return o.want }
func (o *witness) Pass(p []byte) []byte { o.body.Write(p); return p }
func (o *witness) Rest() []byte         { return nil }

// The observer is told once, of the final status, while it can still add to the
// header.
func TestBeginIsToldOnceAndInTime(t *testing.T) {
	for name, row := range map[string]struct {
		play func(w *Writer)
		want int
	}{
		"nothing":            {func(*Writer) {}, 200},
		"WriteHeader":        {func(w *Writer) { w.WriteHeader(404) }, 404},
		"WriteHeader twice":  {func(w *Writer) { w.WriteHeader(404); w.WriteHeader(200) }, 404},
		"Write":              {func(w *Writer) { io.WriteString(w, "x") }, 200},
		"empty Write":        {func(w *Writer) { w.Write(nil) }, 200},
		"Write, WriteHeader": {func(w *Writer) { io.WriteString(w, "x"); w.WriteHeader(404) }, 200},
		"ReadFrom":           {func(w *Writer) { w.ReadFrom(strings.NewReader("x")) }, 200},
		"empty ReadFrom":     {func(w *Writer) { w.ReadFrom(strings.NewReader("")) }, 200},
		"empty, WriteHeader": {func(w *Writer) { w.ReadFrom(strings.NewReader("")); w.WriteHeader(404) }, 404},
		"failed, WriteHeader": {func(w *Writer) {
			if n, err := w.ReadFrom(brokenBody{io.ErrUnexpectedEOF}); n != 0 || err != io.ErrUnexpectedEOF {
				panic(err)
			}
			w.WriteHeader(404)
		}, 404},
		"Flush":              {func(w *Writer) { http.NewResponseController(w).Flush() }, 200},
		"early hints":        {func(w *Writer) { w.WriteHeader(103); w.WriteHeader(100); w.WriteHeader(401) }, 401},
		"early hints, Write": {func(w *Writer) { w.WriteHeader(103); io.WriteString(w, "x") }, 200},
		"upgrade":            {func(w *Writer) { w.WriteHeader(101) }, 101},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(to http.ResponseWriter, _ *http.Request) {
				o, w := new(witness), new(Writer)
				w.Reset(to, o)
				row.play(w)
				w.End()
				w.End()
				if !slices.Equal(o.told, []int{row.want}) {
					t.Errorf("told %v, want %d once", o.told, row.want)
				}
			}))
			defer server.Close()
			response, err := http.Get(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != row.want || response.Header.Get("Seen") == "" {
				t.Errorf("got status %d, header %v; want status %d and what the observer set", response.StatusCode, response.Header, row.want)
			}
		})
	}
}

// A number that is no status is not told: the server panics on it.
func TestNumbersThatAreNoStatus(t *testing.T) {
	for _, status := range []int{-1, 0, 99, 1000} {
		o, w := new(witness), new(Writer)
		w.Reset(httptest.NewRecorder(), o)
		func() {
			defer func() { _ = recover() }()
			w.WriteHeader(status)
		}()
		if len(o.told) > 0 {
			t.Errorf("WriteHeader(%d): told %v", status, o.told)
		}
	}
}

// reader notes what it is given to read from.
type reader struct {
	http.ResponseWriter
	got []io.Reader
}

func (r *reader) ReadFrom(from io.Reader) (int64, error) {
	r.got = append(r.got, from)
	return io.Copy(io.Discard, from)
}

// The system can send a file by itself only if it is handed on as it is. With
// somebody who wants to see the body, it passes through here.
func TestFilesAreHandedOnAsTheyAre(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	content := strings.Repeat("content ", 1000)
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{false, true} {
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		limited := &io.LimitedReader{R: file, N: 7000}
		to := &reader{ResponseWriter: httptest.NewRecorder()}
		o, w := &witness{want: want}, new(Writer)
		w.Reset(to, o)
		if n, err := w.ReadFrom(limited); n != 7000 || err != nil {
			t.Errorf("ReadFrom: got %d, %v", n, err)
		}
		if same := len(to.got) > 0 && to.got[0] == io.Reader(limited); same == want {
			t.Errorf("body wanted: %v; handed on as it is: %v", want, same)
		}
		if got := o.body.String(); (got == content[:7000]) != want || (got == "") == want {
			t.Errorf("body wanted: %v; saw %d bytes", want, len(got))
		}
	}
}

// The body is seen whichever way it goes.
func TestBodyIsSeen(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(to http.ResponseWriter, _ *http.Request) {
		o, w := &witness{want: true}, new(Writer)
		w.Reset(to, o)
		io.WriteString(w, "one ")
		io.Copy(w, strings.NewReader("two "))
		http.NewResponseController(w).Flush()
		io.Copy(w, io.LimitReader(strings.NewReader("three and more"), 5))
		w.End()
		if got := o.body.String(); got != "one two three" {
			t.Errorf("saw %q", got)
		}
	}))
	defer server.Close()
	response, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got, err := io.ReadAll(response.Body); string(got) != "one two three" {
		t.Errorf("received %q, %v", got, err)
	}
}

// cutter takes the letter x out of a body, holds back what follows a y until more
// comes, and adds a last word.
type cutter struct {
	witness
	held []byte
}

func (c *cutter) Begin(status int, header http.Header) {
	c.witness.Begin(status, header)
	header.Del("Content-Length")
}

func (c *cutter) Pass(p []byte) []byte {
	out := append(c.held, strings.ReplaceAll(string(p), "x", "")...)
	c.held = nil
	if i := strings.IndexByte(string(out), 'y'); i >= 0 {
		out, c.held = out[:i], out[i:]
	}
	return out
}
func (c *cutter) Rest() []byte { return append(c.held, " end"...) }

// The client gets what the observer makes of the body, and the handler is told that
// all of its bytes were written.
func TestBodyIsReplaced(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(to http.ResponseWriter, _ *http.Request) {
		o, w := &cutter{witness: witness{want: true}}, new(Writer)
		w.Reset(to, o)
		w.Header().Set("Content-Length", "22")
		for _, part := range []string{"one", "xxx", "txwo"} {
			if n, err := io.WriteString(w, part); n != len(part) || err != nil {
				t.Errorf("writing %q: got %d, %v", part, n, err)
			}
		}
		http.NewResponseController(w).Flush()
		if n, err := io.Copy(w, strings.NewReader("threexy")); n != 7 || err != nil {
			t.Errorf("copying: got %d, %v", n, err)
		}
		w.Write(nil)
		w.End()
		w.End()
	}))
	defer server.Close()
	response, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got, err := io.ReadAll(response.Body); string(got) != "onetwothreey end" {
		t.Errorf("received %q, %v", got, err)
	}
}

// A Writer used for one response is none for the next.
func TestWriterTakesNoAllocation(t *testing.T) {
	o, w, to := new(witness), new(Writer), httptest.NewRecorder()
	allocs := testing.AllocsPerRun(100, func() {
		o.told = o.told[:0]
		w.Reset(to, o)
		w.End()
		if !w.Begun() || len(o.told) != 1 {
			t.Errorf("told %v", o.told)
		}
	})
	if allocs > 1 { // the witness's header
		t.Errorf("%v allocations", allocs)
	}
}

type brokenBody struct{ err error }

func (b brokenBody) Read([]byte) (int, error) { return 0, b.err }
func (brokenBody) Close() error               { return nil }

func TestRequestBodies(t *testing.T) {
	for _, row := range []struct {
		err    error
		broken bool
	}{
		{io.EOF, false},
		{http.ErrBodyReadAfterClose, false}, // a handler's mistake
		{io.ErrUnexpectedEOF, true},
		{errors.New("connection reset"), true},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Body = brokenBody{row.err}
		body := WatchBody(r)
		if body.Broken() {
			t.Error("broken before it was read")
		}
		if _, err := r.Body.Read(make([]byte, 1)); err != row.err {
			t.Errorf("read: got %v, want %v", err, row.err)
		}
		if body.Broken() != row.broken {
			t.Errorf("after %v: broken %v", row.err, body.Broken())
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	if body := WatchBody(r); body.Broken() || r.Body != http.NoBody {
		t.Error("a request without a body has one now")
	}
}
