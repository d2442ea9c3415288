package body

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const (
	urlencoded = "application/x-www-form-urlencoded"
	multipartB = "multipart/form-data; boundary=B"
	jsonType   = "application/json"
)

// open opens a body as a server would.
func open(t *testing.T, target, contentType, data string) *Body {
	t.Helper()
	r := httptest.NewRequest("POST", target, strings.NewReader(data))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: 64 << 10, Timeout: time.Minute, Memory: NewMemory(1 << 20)})
	if err != nil {
		t.Fatalf("Open(%q): %v", data, err)
	}
	return b
}

func mustField(t testing.TB, name string) *Field {
	t.Helper()
	f, err := ParseField(name)
	if err != nil {
		t.Fatalf("ParseField(%q): %v", name, err)
	}
	return f
}

// parts writes a multipart form with the boundary B; each part is a name and a
// value, or raw headers that begin with C, an empty line and the value.
func parts(parts ...string) string {
	var b strings.Builder
	for _, part := range parts {
		if !strings.HasPrefix(part, "C") {
			name, value, _ := strings.Cut(part, "=")
			part = `Content-Disposition: form-data; name="` + name + "\"\r\n\r\n" + value
		}
		b.WriteString("--B\r\n" + part + "\r\n")
	}
	return b.String() + "--B--\r\n"
}

// TestFields is a list of what clients and attackers send, and what is found. What
// a typical application reads differently from another one must not be found: the
// comment says who does.
func TestFields(t *testing.T) {
	const disposition = "Content-Disposition: form-data; "
	long := strings.Repeat("x", maxValue+1)
	for _, test := range []struct {
		field, contentType, data string
		value                    string
		outcome                  Outcome
	}{
		// Honest forms.
		{"form.user", urlencoded, "user=ann", "ann", Found},
		{"form.user", urlencoded, "a=1&user=ann&b=2", "ann", Found},
		{"form.user", urlencoded + "; charset=UTF-8", "user=%C3%A9+x", "é x", Found},
		{"form.user", urlencoded, "%75ser=%61nn", "ann", Found},
		{"form.user", urlencoded, "username=bob&user=ann&user-id=7", "ann", Found},
		{"form.user[name]", urlencoded, "user%5Bname%5D=ann&user[password]=x", "ann", Found}, // Rails
		{"form.user.name", urlencoded, "user.name=ann&user.password=x", "ann", Found},        // Spring
		{"form.user", urlencoded, "password=a%zz;b&user=ann", "ann", Found},
		{"form.user", urlencoded, "user=a%26b%3Dc%3Bd", "a&b=c;d", Found},
		{"form.user", urlencoded, "&&user=ann&", "ann", Found},
		{"form.user", urlencoded, "", "", Missing},
		{"form.user", urlencoded, "a=1", "", Missing},
		{"form.user", urlencoded, "user=", "", Missing},
		{"form.user", urlencoded, "User=ann", "", Ambiguous}, // .NET

		// Repeated, in every spelling.
		{"form.user", urlencoded, "user=ann&user=bob", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&user=ann", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&user", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&%75%73%65%72=bob", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&USER=bob", "", Ambiguous},            // .NET
		{"form.task", urlencoded, "task=ann&ta%C5%BFk=bob", "", Ambiguous},       // long s, .NET
		{"form.user", urlencoded, "user=ann&user[]=bob", "", Ambiguous},          // PHP, Rails, Express
		{"form.user", urlencoded, "user=ann&user%5B%5D=bob", "", Ambiguous},      //
		{"form.user", urlencoded, "user=ann&user[a]=bob", "", Ambiguous},         //
		{"form.user", urlencoded, "user=ann&user.a=bob", "", Ambiguous},          // Spring
		{"form.user", urlencoded, "user=ann&[user]=bob", "", Ambiguous},          // Express, Rails
		{"form.user", urlencoded, "user=ann&+user=bob", "", Ambiguous},           // PHP
		{"form.user", urlencoded, "user=ann& user=bob", "", Ambiguous},           // Rack
		{"form.user", urlencoded, "user=ann&user%00x=bob", "", Ambiguous},        // PHP
		{"form.user_id", urlencoded, "user_id=ann&user.id=bob", "", Ambiguous},   // PHP
		{"form.user_id", urlencoded, "user_id=ann&user+id=bob", "", Ambiguous},   // PHP
		{"form.user_id", urlencoded, "user_id=ann&user%5Bid=bob", "", Ambiguous}, // PHP
		{"form.user[name]", urlencoded, "user[name]=ann&user=bob", "", Ambiguous},
		{"form.user[name]", urlencoded, "user[name]=ann&user[][name]=bob", "", Ambiguous},
		{"form.user[name]", urlencoded, "user[name]=ann&user.name=bob", "", Ambiguous},
		{"form.user", urlencoded, "user=ann;user=bob", "", Ambiguous}, // semicolons: older Python, Perl
		{"form.user", urlencoded, "x=1;user=ann", "", Ambiguous},
		{"form.user", urlencoded, "user=ann;x=1", "", Ambiguous},
		{"form.user", urlencoded, "a=1&user=ann&b=;user=bob", "", Ambiguous},

		// Read in another way.
		{"form.user", urlencoded, "user=%zz", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&%zz=1", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&%u0075ser=bob", "", Ambiguous}, // .NET
		{"form.user", urlencoded, "user=ann%FF", "", Ambiguous},            // Python drops or replaces it
		{"form.user", urlencoded, "user=ann&us%FFer=bob", "", Ambiguous},
		{"form.user", urlencoded, "user=ann%00x", "", Ambiguous},
		{"form.user", urlencoded, "user=ann\r\n", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&_charset_=utf-16", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&_charset_=utf-8", "ann", Found},
		{"form.user", urlencoded, `{"x":"&user=ann&","user":"bob"}`, "", Ambiguous}, // JSON whatever the type: PHP
		{"form.user", urlencoded, " \n[\"&user=ann&\"]", "", Ambiguous},
		{"form.user", urlencoded, "\ufeff{\"x\":\"&user=ann&\"}", "", Ambiguous},
		{"form.user", urlencoded, "user=" + long, "", Ambiguous},
		{"form.user", urlencoded, "user=ann&" + long + "=1", "", Ambiguous},
		{"form.user", urlencoded, "user=ann&pad=" + strings.Repeat("x", 60<<10), "ann", Found},
		{"form.user", urlencoded, "user=ann&pad=" + strings.Repeat("x", 64<<10), "", TooLong},

		// Of another type.
		{"form.user", "", "user=ann", "", OtherType},
		{"form.user", "text/plain", "user=ann", "", OtherType},
		{"form.user", urlencoded + "; charset=utf-16", "user=ann", "", OtherType},
		{"form.user", urlencoded + "; charset=ibm037", "user=ann", "", OtherType}, // Tomcat, .NET
		{"form.user", urlencoded + "; charset*=utf-8''utf-8", "user=ann", "", OtherType},
		{"form.user", urlencoded + ", text/plain", "user=ann", "", OtherType},
		{"form.user", jsonType, `{"user":"ann"}`, "", OtherType},
		{"json.user", urlencoded, "user=ann", "", OtherType},

		// Multipart forms.
		{"form.user", multipartB, parts("a=1", "user=ann", "b=2"), "ann", Found},
		{"form.user", `multipart/form-data; boundary="B"`, parts("user=ann"), "ann", Found},
		{"form.user", multipartB, strings.TrimSuffix(parts("user=ann"), "\r\n"), "ann", Found},
		{"form.user", multipartB, parts("user=ann", disposition+"name=\"f\"; filename=\"a b.txt\"\r\nContent-Type: text/plain\r\n\r\nfile"), "ann", Found},
		{"form.user", multipartB, parts(disposition+"name=user\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nann", disposition+"name=f; filename=x; filename*=utf-8''x\r\n\r\nfile"), "ann", Found}, // .NET
		{"form.user", multipartB, parts(disposition + "name=\"user\"\r\nContent-Transfer-Encoding: binary\r\nContent-Length: 3\r\n\r\nann"), "ann", Found},                                              // OkHttp
		{"form.user", multipartB, parts("a=1"), "", Missing},
		{"form.user", multipartB, parts("user=ann", "user=bob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", "User=bob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", "user[]=bob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", "us%65r=bob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", disposition+"name=\"=?utf-8?Q?user?=\"\r\n\r\nbob"), "", Ambiguous},
		{"form.user", multipartB, parts(disposition + "name=\"user\"; filename=\"x\"\r\n\r\nann"), "", Ambiguous},
		{"form.user", multipartB, parts(disposition + "name=\"user\"; filename=\"\"\r\n\r\nann"), "", Ambiguous}, // Go: no file. PHP: a file
		{"form.user", multipartB, parts("user=ann", disposition+"name=\"x\"; name=\"user\"\r\n\r\nbob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", disposition+"name=\"x\"; filename=\"\\\"; name=\"user\"\r\n\r\nbob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", disposition+"name*=utf-8''user\r\n\r\nbob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", disposition+"x=y; name=\"user\"\r\n\r\nbob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", "Content-Disposition: form-data;\r\n name=\"user\"\r\n\r\nbob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", disposition+"name=\"x\"\r\n"+disposition+"name=\"user\"\r\n\r\nbob"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", "Content-Type: multipart/mixed; boundary=C\r\n"+disposition+"name=\"x\"\r\n\r\n--C--"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", "Content-Type:\tMULTIPART/mixed; boundary=C\r\n"+disposition+"name=\"x\"\r\n\r\n--C--"), "", Ambiguous},
		{"form.user", multipartB, parts(disposition + "name=\"user\"\r\nContent-Transfer-Encoding: base64\r\n\r\nYW5u"), "", Ambiguous},
		{"form.user", multipartB, parts(disposition + "name=\"user\"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\nann"), "", Ambiguous},
		{"form.user", multipartB, parts(disposition + "name=\"user\"\r\nContent-Type: application/json\r\n\r\nann"), "", Ambiguous},
		{"form.user", multipartB, parts("_charset_=utf-16", "user=ann"), "", Ambiguous},
		{"form.user", multipartB, "x\r\n" + parts("user=ann"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann") + "x", "", Ambiguous},
		{"form.user", multipartB, parts("user=ann") + parts("user=bob"), "", Ambiguous},
		{"form.user", multipartB, strings.ReplaceAll(parts("user=ann"), "\r\n", "\n"), "", Ambiguous},
		{"form.user", multipartB, strings.TrimSuffix(parts("user=ann"), "--\r\n"), "", Ambiguous},
		{"form.user", multipartB, "--B\r\n" + disposition + "name=\"user\"\r\n\r\n--B--\r\n", "", Ambiguous},
		{"form.user", multipartB, parts("a=\n--B\n" + disposition + "name=\"user\"\n\nbob\n"), "", Ambiguous},
		{"form.user", multipartB, parts("user=ann", "a=--Bx"), "", Ambiguous},
		{"form.user", "multipart/form-data; xboundary=A; boundary=B", parts("user=ann"), "", OtherType}, // PHP
		{"form.user", "multipart/form-data; boundary=B; boundary=C", parts("user=ann"), "", OtherType},
		{"form.user", "multipart/form-data; boundary=B,C", parts("user=ann"), "", OtherType},
		{"form.user", "multipart/form-data; boundary*=utf-8''B", parts("user=ann"), "", OtherType},
		{"form.user", "multipart/form-data; boundary*0=B", parts("user=ann"), "", OtherType},
		{"form.user", "multipart/form-data", parts("user=ann"), "", OtherType},
		{"form.user", "multipart/mixed; boundary=B", parts("user=ann"), "", OtherType},

		// JSON.
		{"json.user", jsonType, `{"user":"ann"}`, "ann", Found},
		{"json.user", jsonType + "; charset=utf-8", ` {"a":{"user":"x"},"user":"\u0061nn"} `, "ann", Found},
		{"json.user", "application/vnd.api+json", `{"\u0075ser":"ann"}`, "ann", Found},
		{"json.a.b.0.c", jsonType, `{"a":{"x":[{}],"b":[{"c":"ann"},{"c":"bob"}]}}`, "ann", Found},
		{"json.1", jsonType, `["ann","bob"]`, "bob", Found},
		{"json.a.0", jsonType, `{"a":{"0":"ann"}}`, "ann", Found},
		{"json.a", jsonType, `{"b":{"x":1,"x":2},"a":"ann"}`, "ann", Found},
		{"json.user", jsonType, `{"user":""}`, "", Missing},
		{"json.user", jsonType, `{"user":null}`, "", Missing},
		{"json.user", jsonType, `{}`, "", Missing},
		{"json.user", jsonType, `"user"`, "", Missing},
		{"json.user", jsonType, ``, "", Missing},
		{"json.a.b", jsonType, `{"a":"b"}`, "", Missing},
		{"json.a.00", jsonType, `{"a":["b"]}`, "", Missing},
		{"json.user", jsonType, `{"user":"ann","user":"bob"}`, "", Ambiguous},
		{"json.user", jsonType, `{"user":"ann","\u0075ser":"bob"}`, "", Ambiguous},
		{"json.user", jsonType, `{"user":"ann","USER":"bob"}`, "", Ambiguous}, // Go, .NET
		{"json.user", jsonType, `{"USER":"bob"}`, "", Ambiguous},
		{"json.task", jsonType, `{"task":"ann","taſk":"bob"}`, "", Ambiguous}, // Go
		{"json.a.b", jsonType, `{"a":{"b":"ann"},"a":{}}`, "", Ambiguous},
		{"json.a.b", jsonType, `{"a":{"b":"ann","B":"bob"}}`, "", Ambiguous},
		{"json.user", jsonType, `{"user":["ann"]}`, "", Ambiguous},
		{"json.user", jsonType, `{"user":{"$gt":""}}`, "", Ambiguous},
		{"json.user", jsonType, `{"user":true}`, "", Ambiguous},
		{"json.user", jsonType, `{"user":"ann\u0000x"}`, "", Ambiguous},
		{"json.user", jsonType, `{"user":"` + long + `"}`, "", Ambiguous},
		{"json.user", jsonType, `{"user":"ann"`, "", Unreadable},
		{"json.user", jsonType, `{"user":"ann"} {"user":"bob"}`, "", Unreadable},
		{"json.user", jsonType, `{"user":"ann",}`, "", Unreadable},
		{"json.user", jsonType, `{"user":"ann"/**/}`, "", Unreadable},
		{"json.user", jsonType, `{'user':'ann'}`, "", Unreadable},
		{"json.user", jsonType, `{"user":"\ud800"}`, "", Unreadable},
		{"json.user", jsonType, "{\"user\":\"ann\xff\"}", "", Unreadable},
		{"json.user", jsonType, "{\"us\xffer\":\"bob\",\"user\":\"ann\"}", "", Unreadable},
		{"json.user", jsonType, "\ufeff" + `{"user":"ann"}`, "", Unreadable}, // Express drops the mark
		{"json.user", jsonType, `{"user":"ann","x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, "", Unreadable},
		{"json.user", jsonType, `user=ann`, "", Unreadable},
		{"json.user", jsonType + "; charset=utf-16", `{"user":"ann"}`, "", OtherType},
		{"json.user", "text/json", `{"user":"ann"}`, "", OtherType},

		// Numbers.
		{"json.n", jsonType, `{"n":1}`, "1", Found},
		{"json.n", jsonType, `{"n":1.0}`, "1", Found},
		{"json.n", jsonType, `{"n":1e0}`, "1", Found},
		{"json.n", jsonType, `{"n":10E-1}`, "1", Found},
		{"json.n", jsonType, `{"n":-0}`, "0", Found},
		{"json.n", jsonType, `{"n":-7}`, "-7", Found},
		{"json.n", jsonType, `{"n":"1"}`, "1", Found},
		{"json.n", jsonType, `{"n":9007199254740991}`, "9007199254740991", Found},
		{"json.n", jsonType, `{"n":9007199254740993}`, "", Ambiguous},
		{"json.n", jsonType, `{"n":1.5}`, "", Ambiguous},
		{"json.n", jsonType, `{"n":1.99999999999999999999}`, "", Ambiguous}, // 2 for some, 1 for others
		{"json.n", jsonType, `{"n":1e999999999}`, "", Ambiguous},
		{"json.n", jsonType, `{"n":1e-999999999}`, "0", Found}, // as all read it
		{"json.n", jsonType, `{"n":0e999999999}`, "0", Found},
		{"json.n", jsonType, `{"n":1.` + strings.Repeat("0", 100) + `}`, "", Ambiguous},
		{"json.n", jsonType, `{"n":01}`, "", Unreadable},
		{"json.n", jsonType, `{"n":NaN}`, "", Unreadable},
	} {
		value, outcome := open(t, "/login", test.contentType, test.data).Value(mustField(t, test.field))
		if value != test.value || outcome != test.outcome {
			t.Errorf("%s in %.200q of type %q: got %q, outcome %d, want %q, outcome %d",
				test.field, test.data, test.contentType, value, outcome, test.value, test.outcome)
		}
	}
}

// TestQuery: Java's getParameter takes the query's field instead of the body's.
func TestQuery(t *testing.T) {
	for _, test := range []struct {
		field, query, contentType, data string
		outcome                         Outcome
	}{
		{"form.user", "a=b", urlencoded, "user=ann", Found},
		{"form.user", "user=bob", urlencoded, "user=ann", Ambiguous},
		{"form.user", "USER=bob", urlencoded, "user=ann", Ambiguous},
		{"form.user", "a=1;user[]=bob", urlencoded, "user=ann", Ambiguous},
		{"form.user", "%75ser=bob", multipartB, parts("user=ann"), Ambiguous},
		{"form.user", "%u0075ser=bob", urlencoded, "user=ann", Ambiguous},
		{"form.user", "username=bob", urlencoded, "user=ann", Found},
		{"json.user", "user=bob", jsonType, `{"user":"ann"}`, Ambiguous},
		{"json.user.name", "user=bob", jsonType, `{"user":{"name":"ann"}}`, Found},
		{"form.user", "user=bob", urlencoded, "", Ambiguous},
		{"form.user", "user=bob", "", "", Ambiguous},
		{"json.user", "user=bob", jsonType, "", Ambiguous},
		{"form.user", "a=b", urlencoded, "", Missing},
	} {
		_, outcome := open(t, "/login?"+test.query, test.contentType, test.data).Value(mustField(t, test.field))
		if outcome != test.outcome {
			t.Errorf("%s with the query %q: got outcome %d, want %d", test.field, test.query, outcome, test.outcome)
		}
	}
}

// TestHeaders: what says that the body is something else.
func TestHeaders(t *testing.T) {
	field := mustField(t, "form.user")
	for _, test := range []struct{ name, value string }{
		{"Content-Type", "multipart/form-data; boundary=B"},
		{"Content-Type", urlencoded},
		{"Content-Encoding", "gzip"},
		{"Content-Encoding", "identity"},
		{"Content-Encoding", ""},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader("user=ann"))
		r.Header.Set("Content-Type", urlencoded)
		r.Header.Add(test.name, test.value)
		b, err := Open(httptest.NewRecorder(), r, Limits{Bytes: 1000, Timeout: time.Minute, Memory: NewMemory(1 << 20)})
		if err != nil {
			t.Fatal(err)
		}
		if value, outcome := b.Value(field); outcome != OtherType {
			t.Errorf("with another header %s: %s: got %q, outcome %d, want outcome %d", test.name, test.value, value, outcome, OtherType)
		}
	}
}

func TestParseField(t *testing.T) {
	for _, name := range []string{"form.", "form.[]", "form. ", "form.a\x00", "json.", "json.a..b", "json.a.", "body.a", "", "json." + strings.Repeat("a.", 32) + "a"} {
		if f, err := ParseField(name); err == nil {
			t.Errorf("ParseField(%q): got %v, want an error", name, f)
		}
	}
}
