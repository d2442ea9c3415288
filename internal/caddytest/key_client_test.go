package caddytest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// limitedTo runs a site for one host with a zone of that many requests.
func limitedTo(t *testing.T, events int, options string) *edge {
	t.Helper()
	return start(t, fmt.Sprintf(`
http://a.test {
	distributed_ratelimit {
		zone z {
			events %d
			window 1h
			%s
		}
	}
	respond "ok"
}`, events, options))
}

// passed sends requests and counts how many are granted.
func (e *edge) passed(n int, from string, change func(i int, r *http.Request)) int {
	e.t.Helper()
	granted := 0
	for i := range n {
		switch a := e.get(from, "http://a.test/", func(r *http.Request) { change(i, r) }); a.StatusCode {
		case http.StatusOK:
			granted++
		case http.StatusTooManyRequests:
		default:
			e.t.Fatalf("request %d: got status %d (%s), want 200 or 429", i, a.StatusCode, a.body)
		}
	}
	return granted
}

// randomCase writes a name in the i-th of its spellings.
func randomCase(name string, i int) string {
	spelt := []byte(name)
	for j := range spelt {
		if i>>(j%8)&1 == 1 {
			spelt[j] = strings.ToUpper(name)[j]
		}
	}
	return string(spelt)
}

// Caddy takes a host in any case and with any port.
// Each of these spellings had a limit of its own.
func TestHostInAnySpellingIsOneKey(t *testing.T) {
	const limit = 3
	for name, change := range map[string]func(i int, r *http.Request){
		"case":         func(i int, r *http.Request) { r.Host = randomCase("a.test", i) },
		"port":         func(i int, r *http.Request) { r.Host = fmt.Sprintf("a.test:%d", i+1) },
		"port of zero": func(i int, r *http.Request) { r.Host = "a.test:" + strings.Repeat("0", i) },
	} {
		for _, key := range []string{"{client_ip}-{host}", "{host}", "{client_ip}{labels.1}"} {
			t.Run(name+" "+key, func(t *testing.T) {
				e := limitedTo(t, limit, "key "+key)
				if got := e.passed(200, alice, change); got != limit {
					t.Errorf("200 requests to one host in many spellings: %d passed, want %d", got, limit)
				}
				e.log.says(0, "the client chooses a part of this key")
			})
		}
	}
}

func TestKeysOfHosts(t *testing.T) {
	host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	r := newRig(t, "hosts")
	for _, key := range []string{"{host}", "{labels.0}.{labels.1}"} {
		e := start(t, `
{
	distributed_ratelimit {
		store rig hosts
		budget 5s
	}
}
:80 {
	distributed_ratelimit {
		zone z {
			events 1000
			window 1h
			key `+key+`
		}
	}
}`)
		k := func(name string) string {
			e.get(alice, "http://a.test/", host(name))
			return r.requested()[0].Key.Client
		}
		same(t, "a host with a trailing dot", k("www.test"), k("WWW.test.:80"))
		different(t, "two hosts", k("www.test"), k("ww.test"))
		if key == "{host}" {
			same(t, "an IPv6 literal with and without port", k("[2001:db8::a]"), k("[2001:DB8::A]:443"))
			different(t, "two IPv6 literals", k("[2001:db8::1]"), k("[2001:db8::2]"))
			different(t, "an IDN and another", k("xn--bcher-kva.test"), k("xn--bcher-kvb.test"))
		}
	}
}

// A credential in several spellings, or beside a decoy, had a limit for each.
func TestCredentialsInAnySpellingAreOneKey(t *testing.T) {
	const limit = 3
	schemes := []string{"Bearer x", "bearer x", "BEARER  x", "Bearer \t x", "bEARER x", "Bearer x "}
	basic := []string{"Basic YTpi", "basic YTpi", "Basic   YTpi"}
	spare := []string{"Basic YTpiYg==", "Basic YTpiYh==", "Basic YTpiYi==", "Basic YTpiYn=="}
	for name, row := range map[string]struct {
		key    string
		change func(i int, r *http.Request)
	}{
		"second header line": {"{header.X-Api-Key}", func(i int, r *http.Request) {
			r.Header["X-Api-Key"] = []string{"real", fmt.Sprint("decoy", i)}
		}},
		"first header line": {"{header.X-Api-Key}", func(i int, r *http.Request) {
			r.Header["X-Api-Key"] = []string{fmt.Sprint("decoy", i), "real"}
		}},
		"two lines and the address": {"{client_ip}-{header.X-Api-Key}", func(i int, r *http.Request) {
			r.Header["X-Api-Key"] = []string{"real", fmt.Sprint("decoy", i)}
		}},
		"scheme":             {"{header.Authorization}", func(i int, r *http.Request) { r.Header.Set("Authorization", schemes[i%len(schemes)]) }},
		"scheme for proxies": {"{header.proxy-authorization}", func(i int, r *http.Request) { r.Header.Set("Proxy-Authorization", schemes[i%len(schemes)]) }},
		"basic":              {"{header.Authorization}", func(i int, r *http.Request) { r.Header.Set("Authorization", basic[i%len(basic)]) }},
		"spare bits":         {"{header.Authorization}", func(i int, r *http.Request) { r.Header.Set("Authorization", spare[i%len(spare)]) }},
		"decoy cookie": {"{cookie.sid}", func(i int, r *http.Request) {
			r.Header.Set("Cookie", fmt.Sprintf("SID=x%d; sid=real", i))
		}},
		"decoy cookie on another line": {"{cookie.sid}", func(i int, r *http.Request) {
			r.Header["Cookie"] = []string{fmt.Sprintf("sid=x%d", i), "sid=real"}
		}},
		"decoy beside what is no cookie to Go": {"{cookie.sid}", func(i int, r *http.Request) {
			r.Header.Set("Cookie", fmt.Sprintf("sid=x%d; sid=re\\al", i))
		}},
		"quoted cookie": {"{cookie.sid}", func(i int, r *http.Request) {
			r.Header.Set("Cookie", []string{"sid=real", `sid="real"`, "sid = real", "Sid=real"}[i%4])
		}},
		"query twice":            {"{query.api_key}", func(i int, r *http.Request) { r.URL.RawQuery = fmt.Sprintf("api_key=real&api_key=x%d", i) }},
		"query twice, escaped":   {"{query.api_key}", func(i int, r *http.Request) { r.URL.RawQuery = fmt.Sprintf("api_key=x%d&%%61pi_key=real", i) }},
		"query, semicolon":       {"{query.api_key}", func(i int, r *http.Request) { r.URL.RawQuery = fmt.Sprintf("api_key=real;x=1&api_key=x%d", i) }},
		"query, escaped value":   {"{query.api_key}", func(i int, r *http.Request) { r.URL.RawQuery = []string{"api_key=real", "api_key=%72eal"}[i%2] }},
		"query, a bad neighbour": {"{query.api_key}", func(i int, r *http.Request) { r.URL.RawQuery = fmt.Sprintf("api_key=real&x=%%%d", i) }},
	} {
		t.Run(name, func(t *testing.T) {
			e := limitedTo(t, limit, "key "+row.key)
			if got := e.passed(12, alice, row.change); got != limit {
				t.Errorf("12 requests with one credential: %d passed, want %d", got, limit)
			}
		})
	}
}

// What is one value stays one.
func TestSingleValuesAreKeys(t *testing.T) {
	k := keyed(t, "key {header.X-List}|{cookie.sid}|{query.q}")
	query := func(q string) func(*http.Request) { return func(r *http.Request) { r.URL.RawQuery = q } }
	different(t, "lists on one line", k(alice, with("X-List", "a, b")), k(alice, with("X-List", "a, c")))
	different(t, "cookies", k(alice, with("Cookie", "sid=a; sid2=x")), k(alice, with("Cookie", "sid=b; sid2=x")))
	different(t, "queries", k(alice, query("q=a&qq=1")), k(alice, query("q=b&qq=1")))
	different(t, "queries in two cases", k(alice, query("q=a")), k(alice, query("q=A")))
	k = keyed(t, "key {header.Authorization}")
	different(t, "tokens", k(alice, with("Authorization", "Bearer x")), k(alice, with("Authorization", "Bearer X")))
	different(t, "bare tokens", k(alice, with("Authorization", "x")), k(alice, with("Authorization", "X")))
	different(t, "schemes", k(alice, with("Authorization", "Bearer x")), k(alice, with("Authorization", "Token x")))
	different(t, "passwords", k(alice, with("Authorization", "Basic YTpi")), k(alice, with("Authorization", "Basic YTpj")))
}

// Empty keys are counted by the reason, and follow on_empty_key.
func TestEmptyKeysAreCounted(t *testing.T) {
	const file = `
http://a.test {
	distributed_ratelimit {
		zone deny {
			key {header.X-Api-Key}
			on_empty_key deny
			events 100
			window 1h
		}
	}
	respond "ok"
}
http://b.test {
	distributed_ratelimit {
		zone both {
			key {client_ip}-{header.X-Api-Key}
			events 100
			window 1h
		}
		zone odd {
			key {odd.one}
			events 100
			window 1h
		}
		zone login {
			key {http.auth.user.id}
			events 100
			window 1h
		}
	}
	respond "ok"
}`
	e := start(t, file)
	two := func(r *http.Request) { r.Header["X-Api-Key"] = []string{"a", "b"} }
	e.granted(1, alice, "http://a.test/", with("X-Api-Key", "a"))
	for labels, got := range e.series("empty_keys_total") {
		if got != 0 {
			t.Errorf("metric %s after a request with a key: got %v, want 0", labels, got)
		}
	}
	e.status(http.StatusForbidden, alice, "http://a.test/")
	for range 2 {
		e.status(http.StatusForbidden, alice, "http://a.test/", two)
	}
	e.sample("empty_keys_total", "missing deny", 1)
	e.sample("empty_keys_total", "ambiguous deny", 2)

	e.granted(3, alice, "http://b.test/")
	e.granted(2, alice, "http://b.test/", two)
	e.sample("empty_keys_total", "ambiguous both", 2)
	e.sample("empty_keys_total", "unknown odd", 5)
	e.sample("empty_keys_total", "missing login", 5)
	if _, ok := e.series("empty_keys_total")["missing both"]; ok {
		t.Error("a key with an address counts as missing")
	}
	e.log.says(1, "nobody knows a placeholder of this key")

	e.reload(strings.ReplaceAll(file, "zone odd", "zone other"))
	if _, ok := e.series("empty_keys_total")["unknown odd"]; ok {
		t.Error("a zone that was removed has a series")
	}
	e.sample("empty_keys_total", "missing login", 5)
}
