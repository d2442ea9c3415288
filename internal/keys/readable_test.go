package keys

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"pgregory.net/rapid"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// keyOf is the key of a zone that has no other options.
func keyOf(t testing.TB, text string) *Key {
	t.Helper()
	template, err := Parse(text)
	if err != nil {
		t.Fatalf("key %q: %v", text, err)
	}
	return &Key{
		Template: template, Normal: NewNormalization(nil, &template),
		Mask: Mask{V4: 24, V6: 64}, AddressWhenEmpty: !template.ReadsBody(),
	}
}

// What is shown of a key is text that stands for it, whatever strangers write into
// their requests.
func TestReadableKeysAreFoundAgain(t *testing.T) {
	templates := []string{
		"", "{client_ip}", "{http.request.remote.host}", "everybody", "{http.request.header.X-A}",
		"{http.request.header.X-A}{http.request.header.X-B}", "{http.request.header.X-A}|{http.request.header.X-B}",
		"a{http.request.header.X-A}:{client_ip}", "{client_ip}{http.request.header.X-A}", "{http.request.host}/{http.request.uri.query.q}",
		"{http.request.header.Authorization}", "{http.request.cookie.s} {http.request.host.labels.1}",
		"{form.user}{json.user}", "{json.a}|{json.b}", "{form.user}@{http.request.host}{client_ip}", "client_ip={http.request.header.X-A}",
	}
	for i, template := range templates {
		templates[i] = strings.NewReplacer("{client_ip}", "{http.vars.client_ip}").Replace(template)
	}
	value := rapid.OneOf(
		rapid.String(),
		rapid.StringN(0, 400, -1),
		rapid.SampledFrom([]string{"", "a", "A b ", "|", "a|b", "\x00", "%2F", "\xff\xfe", "é", "\u202eabc", "[\"a\",\"b\"]", "[\"a\"]", "hex:6b00", "hex:zz",
			"client_ip=192.0.2.0/24", "192.0.2.1", "192.0.2.0/24", "Bearer  abc", "basic dTpw", "\"", "\\", " ", "😀", "2001:db8::/64", "unix"}),
	)
	rapid.Check(t, func(t *rapid.T) {
		template := rapid.SampledFrom(templates).Draw(t, "template")
		parsed, _ := Parse(template)
		k := &Key{
			Template: parsed, Normal: NewNormalization(nil, &parsed), AddressWhenEmpty: !parsed.ReadsBody(),
			Mask: Mask{V4: rapid.SampledFrom([]int{8, 24, 32}).Draw(t, "v4"), V6: rapid.SampledFrom([]int{20, 64, 128}).Draw(t, "v6")},
		}
		if k.normalizable() && rapid.Bool().Draw(t, "normalize") {
			k.Normal = NewNormalization([]string{"lower", "trim"}, &parsed)
		}

		r := httptest.NewRequest("POST", "http://example.com/", nil)
		r.Host = rapid.SampledFrom([]string{"example.com", "EXAMPLE.com:80", "a.b", "", "[::1]:80"}).Draw(t, "host")
		for _, name := range []string{"X-A", "X-B", "Authorization"} {
			for range rapid.SampledFrom([]int{0, 1, 1, 1, 2}).Draw(t, "lines") {
				r.Header[name] = append(r.Header[name], value.Draw(t, name))
			}
		}
		r.Header.Set("Cookie", "s="+value.Draw(t, "cookie"))
		r.URL.RawQuery = url.Values{"q": {value.Draw(t, "query")}}.Encode()
		peer := rapid.SampledFrom([]string{"192.0.2.77:1", "[2001:db8::1]:2", "[64:ff9b::192.0.2.1]:2", "@", "[2001:0:1::1]:3"}).Draw(t, "peer")
		r.RemoteAddr = peer
		keys := Builder{Replacer: caddy.NewReplacer(), Request: r, Body: bodyOf(t, r, value)}
		client := ipident.Peer(peer)

		bytes, empty, _ := keys.Key(k, client)
		if empty {
			if !k.AddressWhenEmpty {
				return
			}
			bytes = keys.Address(client, k.Mask)
		}
		key := string(bytes)
		text := k.Readable(&keys, client, key)
		found, err := k.Find(text)
		if err != nil || found != key {
			t.Fatalf("key %q of %q is shown as %q, which stands for %q, %v", key, template, text, found, err)
		}
		if !printable(text) || len(text) > MaxReadable {
			t.Fatalf("key %q of %q is shown as %q", key, template, text)
		}
	})
}

// bodyOf gives the request a body of a form or JSON.
func bodyOf(t *rapid.T, r *http.Request, value *rapid.Generator[string]) *body.Body {
	text := ""
	switch rapid.IntRange(0, 3).Draw(t, "body") {
	case 0:
		return nil
	case 1:
		text = url.Values{"user": {value.Draw(t, "form")}, "other": {"x"}}.Encode()
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	default:
		fields := map[string]string{"user": value.Draw(t, "json"), "a": value.Draw(t, "json a")}
		if rapid.Bool().Draw(t, "both") {
			fields["b"] = value.Draw(t, "json b")
		}
		encoded, _ := json.Marshal(fields)
		text = string(encoded)
		r.Header.Set("Content-Type", "application/json")
	}
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
	read, err := body.Open(httptest.NewRecorder(), r, body.Limits{Bytes: 1 << 20, Timeout: time.Minute, Memory: body.NewMemory(256 << 20)})
	if err != nil {
		t.Fatalf("opening the body: %v", err)
	}
	return read
}

func TestKeysThatPeopleWrite(t *testing.T) {
	const twoHeaders = "{http.request.header.X-A}|{http.request.header.X-B}"
	for _, c := range []struct{ key, text, want, mistake string }{
		{"", "192.0.2.77", "a192.0.2.0/24", ""},
		{"", "192.0.2.0/24", "a192.0.2.0/24", ""},
		{"", "192.0.0.0/16", "", "a network of 24 bits"},
		{"", "2001:db8::1", "a2001:db8::/64", ""},
		{"", "::ffff:192.0.2.1", "a192.0.2.0/24", ""},
		{"", "unix", "aunix", ""},
		{"", "nobody", "", "no address"},
		{"", "client_ip=192.0.2.77", "a192.0.2.0/24", ""},
		{"", "", "", "empty"},
		{"{http.request.remote.host}", "192.0.2.77", "k\x0c192.0.2.0/24", ""},
		{"{http.request.header.X-A}", "abc", "k\x03abc", ""},
		{"{http.request.header.X-A}", `["abc"]`, "k\x03abc", ""},
		{"{http.request.header.X-A}", "client_ip=192.0.2.77", "a192.0.2.0/24", ""},
		{"{http.request.header.X-A}", "client_ip=abc", "k\x0dclient_ip=abc", ""},
		{"{http.request.header.X-A}", `[""]`, "", "no key"},
		{"{http.request.header.X-A}", "hex:" + hex.EncodeToString([]byte("k\x03abc")), "k\x03abc", ""},
		{"{http.request.header.X-A}", "hex:00", "k\x06hex:00", ""}, // no key begins like that
		{twoHeaders, "a|b", "k\x01a\x01|\x01b", ""},
		{twoHeaders, "a|b|c", "", `["first","second"]`},
		{twoHeaders, `["a|b","c"]`, "k\x03a|b\x01|\x01c", ""},
		{twoHeaders, `["a","b","c"]`, "", "no key"},
		{twoHeaders, "a", "", "no key"},
		{"{http.request.header.X-A}{http.vars.client_ip}", "login192.0.2.0/24", "k\x05login\x0c192.0.2.0/24", "several"},
		{"{http.request.header.X-A}/{http.vars.client_ip}", "login/192.0.2.77", "k\x05login\x01/\x0c192.0.2.0/24", ""},
		{"{form.user}{json.user}", "Bob", "", ""},
		{"all", "all", "k\x03all", ""},
		{"all", "some", "", "no key"},
	} {
		k := keyOf(t, c.key)
		got, err := k.Find(c.text)
		switch {
		case c.mistake != "" && (err == nil || !strings.Contains(err.Error(), c.mistake)):
			t.Errorf("key %q, %q: got %q, %v, want an error about %q", c.key, c.text, got, err, c.mistake)
		case c.mistake == "" && (err != nil || got != c.want && c.want != ""):
			t.Errorf("key %q, %q: got %q, %v, want %q", c.key, c.text, got, err, c.want)
		case err != nil && len(c.text) > 5 && strings.Contains(err.Error(), c.text):
			t.Errorf("key %q, %q: the error holds the key: %v", c.key, c.text, err)
		}
	}
}

// A key that was given in any form is shown in the one form that logs have.
func TestReadableFormOfKeysThatPeopleWrite(t *testing.T) {
	for _, c := range []struct{ key, text, want string }{
		{"", "192.0.2.77", "192.0.2.0/24"},
		{"", "client_ip=192.0.2.77", "192.0.2.0/24"},
		{"{http.request.remote.host}", "192.0.2.77", "192.0.2.0/24"},
		{"{http.request.header.X-A}", "client_ip=192.0.2.77", "client_ip=192.0.2.0/24"},
		{"{http.request.header.X-A}", `["abc"]`, "abc"},
		{"{http.request.header.X-A}", "hex:" + hex.EncodeToString([]byte("k\x03abc")), "abc"},
		{"{http.request.header.X-A}", "a\x00b", `["a\u0000b"]`},
		{"{http.request.header.X-A}", strings.Repeat("long ", 30), strings.Repeat("long ", 30)},
		{"{http.request.header.X-A}|{http.request.header.X-B}", `["a|b","c"]`, `["a|b","c"]`},
		{"{form.user}{json.user}", "Bob", "Bob"},
	} {
		k := keyOf(t, c.key)
		key, err := k.Find(strings.TrimSpace(c.text))
		if err != nil {
			t.Errorf("key %q, %q: %v", c.key, c.text, err)
			continue
		}
		if got := k.ReadableOf(key, strings.TrimSpace(c.text)); got != strings.TrimSpace(c.want) {
			t.Errorf("key %q, %q: shown as %q, want %q", c.key, c.text, got, c.want)
		}
	}
}

// A stranger's value that reads like another form of a key is not shown as such: it
// would stand for somebody else's key.
func TestNobodysKeyReadsLikeAnothers(t *testing.T) {
	k := keyOf(t, "{http.request.header.X-A}")
	for _, value := range []string{"hex:6b03616263", "client_ip=192.0.2.7", `["abc"]`} {
		other, err := k.Find(value)
		if err != nil {
			t.Fatalf("%q: %v", value, err)
		}
		key := "k" + string(prefixed([]byte(value), 0))
		shown, _ := k.Decode(key)
		if found, err := k.Find(shown); err != nil || found != key || shown == value {
			t.Errorf("the value %q is shown as %q, which stands for %q, %v; another client's key is %q", value, shown, found, err, other)
		}
	}
}
