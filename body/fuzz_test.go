package body

import (
	"bytes"
	"encoding/json"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// The fuzz tests hold every value that is found against what the standard library
// finds in the same body: it must be the only one there.

func FuzzForm(f *testing.F) {
	for _, seed := range []string{
		"user=ann", "a=1&user=ann&b=%zz;c", "user=ann&user[]=b", "user=a;b", "%75ser=ann", "+user=a", "user=ann&USER=b", "user=%E9", "user%00x=b&user=a",
	} {
		f.Add(seed)
	}
	field := mustField(f, "form.user")
	f.Fuzz(func(t *testing.T, data string) {
		value, outcome := formValue([]byte(data), field)
		if outcome != Found || value == "" || !plain(value) {
			return
		}
		values, _ := url.ParseQuery(data)
		if !slices.Equal(values["user"], []string{value}) {
			t.Fatalf("formValue(%q): got %q, the standard library has %q", data, value, values["user"])
		}
		// One pair more with the name in another spelling, anywhere, must not go unnoticed.
		for _, more := range []string{"user=x", "us%65r=x", "USER=x", "user[]=x", "user.a=x", "[user]=x", "%20user=x", "user%00=x"} {
			for _, other := range []string{data + "&" + more, more + "&" + data} {
				if got, outcome := formValue([]byte(other), field); outcome == Found {
					t.Fatalf("formValue(%q): got %q", other, got)
				}
			}
		}
	})
}

func FuzzMultipart(f *testing.F) {
	for _, seed := range []string{
		parts("user=ann"), parts("a=1", "user=ann", "b=\r\n--"), strings.ReplaceAll(parts("user=ann"), "\r\n", "\n"),
		parts("Content-Disposition: form-data; name=user; filename=x; filename*=utf-8''x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nann"),
	} {
		f.Add(seed)
	}
	field := mustField(f, "form.user")
	f.Fuzz(func(t *testing.T, data string) {
		value, outcome := multipartValue([]byte(data), "B", field)
		if outcome != Found {
			return
		}
		form, err := multipart.NewReader(strings.NewReader(data), "B").ReadForm(1 << 20)
		if err != nil {
			t.Fatalf("multipartValue(%q): got %q, the standard library %v", data, value, err)
		}
		if !slices.Equal(form.Value["user"], []string{value}) && len(value) <= maxValue {
			t.Fatalf("multipartValue(%q): got %q, the standard library has %q", data, value, form.Value["user"])
		}
		for name := range form.File {
			if strings.EqualFold(name, "user") {
				t.Fatalf("multipartValue(%q): got %q, the standard library has a file of this name", data, value)
			}
		}
		// A reader that splits at the delimiter wherever it stands finds the same.
		if n := bytes.Count([]byte(data), []byte("--B")); n != strings.Count(data, "\r\n--B")+1 {
			t.Fatalf("multipartValue(%q): got %q, and there are %d delimiters", data, value, n)
		}
	})
}

func FuzzJSON(f *testing.F) {
	for _, seed := range []string{
		`{"user":"ann"}`, `{"a":{"user":1e0}}`, `{"user":"a","USER":"b"}`, `{"user":1.0,"x":[[{}]]}`, `{"\u0075ser":"\ud83d\ude00"}`, `{"user":9007199254740991}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data string) {
		value, outcome := jsonValue([]byte(data), []string{"user"})
		if outcome != Found {
			return
		}
		var folded struct{ User any } // encoding/json takes names in any case
		decoder := json.NewDecoder(strings.NewReader(data))
		decoder.UseNumber()
		if err := decoder.Decode(&folded); err != nil {
			t.Fatalf("jsonValue(%q): got %q, the standard library %v", data, value, err)
		}
		var exact map[string]any
		if err := json.Unmarshal([]byte(data), &exact); err != nil {
			t.Fatalf("jsonValue(%q): got %q, the standard library %v", data, value, err)
		}
		switch user := folded.User.(type) {
		case string:
			if user != value || exact["user"] != value {
				t.Fatalf("jsonValue(%q): got %q, the standard library has %q and %q", data, value, user, exact["user"])
			}
		case json.Number:
			n, _ := json.Number(value).Float64()
			if exact["user"] != n {
				t.Fatalf("jsonValue(%q): got %q, the standard library has %v", data, value, exact["user"])
			}
		default:
			t.Fatalf("jsonValue(%q): got %q, the standard library has %v", data, value, folded.User)
		}
	})
}

// FuzzRequest: with any headers and any body, nothing panics, what is found is what
// Request.ParseMultipartForm finds, and the next handler gets the same bytes.
func FuzzRequest(f *testing.F) {
	f.Add(urlencoded, "user=ann", "a=b")
	f.Add(multipartB, parts("user=ann"), "")
	f.Add(`multipart/form-data; boundary="B"; charset=utf-8`, parts("user=ann"), "user=x")
	f.Add(jsonType, `{"user":"ann"}`, "")
	fields := []*Field{mustField(f, "form.user"), mustField(f, "form.user[a]"), mustField(f, "form.a.b"), mustField(f, "json.user"), mustField(f, "json.a.0")}
	f.Fuzz(func(t *testing.T, contentType, data, query string) {
		request := func() *http.Request {
			r := httptest.NewRequest("POST", "/", strings.NewReader(data))
			r.URL.RawQuery = query
			r.Header.Set("Content-Type", contentType)
			return r
		}
		r := request()
		memory := NewMemory(1 << 20)
		b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: 4 << 10, Timeout: time.Minute, Memory: memory})
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range fields {
			value, outcome := b.Value(field)
			if (value != "") != (outcome == Found) {
				t.Fatalf("%v of %q: got %q with outcome %d", field, data, value, outcome)
			}
			if outcome != Found || field.kind != kindForm {
				continue
			}
			whole := request()
			err := whole.ParseMultipartForm(1 << 20)
			if values := whole.Form[field.form]; !slices.Equal(values, []string{value}) {
				t.Fatalf("%v of %q with type %q and query %q: got %q, the standard library has %q (%v)", field, data, contentType, query, value, values, err)
			}
		}
		var after bytes.Buffer
		if _, err := after.ReadFrom(r.Body); err != nil || after.String() != data {
			t.Fatalf("handed on %q (%v), want %q", after.String(), err, data)
		}
		if used := memory.Used(); used != 0 {
			t.Fatalf("%d bytes are held after all was handed on", used)
		}
	})
}
