package body

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// What takes the body's place is handed on, and counts in the memory's budget until it
// has been read.
func TestReplace(t *testing.T) {
	memory := NewMemory(4096)
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"a":1}`))
	r.Header.Set("Content-Type", "application/json")
	b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: 1 << 20, Timeout: time.Second, Memory: memory})
	if err != nil || !b.Complete() || b.Begun() {
		t.Fatalf("Open: %v, complete %v, begun %v", err, b.Complete(), b.Begun())
	}
	before := memory.Used()
	if err := b.Replace(make([]byte, 4096)); err != ErrMemory || memory.Used() != before || string(b.Bytes()) != `{"a":1}` {
		t.Errorf("Replace by too much: %v, %d bytes used, body %q", err, memory.Used(), b.Bytes())
	}
	text := strings.Repeat("b", 1000)
	if err := b.Replace([]byte(text)); err != nil || memory.Used() < 1000 {
		t.Errorf("Replace: %v, %d bytes used", err, memory.Used())
	}
	if got, err := io.ReadAll(r.Body); string(got) != text || err != nil || !b.Begun() || memory.Used() != 0 {
		t.Errorf("read %d bytes, %v; begun %v, %d bytes used", len(got), err, b.Begun(), memory.Used())
	}

	r = httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{}`))
	r.Header.Set("Content-Type", "application/json")
	b, _ = Open(httptest.NewRecorder(), r, Limits{Bytes: 1 << 20, Timeout: time.Second, Memory: memory})
	b.Release() // the request is over
	if err := b.Replace([]byte(text)); err != nil || memory.Used() != 0 {
		t.Errorf("Replace when the request is over: %v, %d bytes used", err, memory.Used())
	}
}
