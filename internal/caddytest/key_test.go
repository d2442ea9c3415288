package caddytest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// keyed runs a site with one zone, and returns the keys of requests to it.
func keyed(t *testing.T, options ...string) (key func(from string, change ...func(*http.Request)) string) {
	t.Helper()
	r := newRig(t, "keys")
	e := start(t, `
{
	distributed_ratelimit {
		store rig keys
		budget 5s
	}
	servers {
		trusted_proxies static 10.0.0.0/8
	}
}
http://a.test {
	distributed_ratelimit {
		zone z {
			events 1000
			window 1h
			`+strings.Join(options, "\n")+`
		}
	}
	respond "ok"
}`)
	return func(from string, change ...func(*http.Request)) string {
		t.Helper()
		e.granted(1, from, "http://a.test/", change...)
		requests := r.requested()
		if len(requests) != 1 || requests[0].Key.Zone != "z" {
			t.Fatalf("an HTTP request from %s: got the requests %+v to the store, want one of zone z", from, requests)
		}
		if n := len(requests[0].Key.Client); n > store.MaxClientBytes {
			t.Errorf("key of %d bytes, want at most %d", n, store.MaxClientBytes)
		}
		return requests[0].Key.Client
	}
}

// same and different compare the keys of two requests.
func same(t *testing.T, what, a, b string) {
	t.Helper()
	if a != b {
		t.Errorf("keys of %s: got %q and %q, want equal ones", what, a, b)
	}
}

func different(t *testing.T, what, a, b string) {
	t.Helper()
	if a == b {
		t.Errorf("keys of %s: got %q twice, want different ones", what, a)
	}
}

func TestKeyIsTheMaskedAddress(t *testing.T) {
	for _, key := range []string{"", "key {client_ip}", "key {http.distributed_ratelimit.client_ip}", "key {remote_host}"} {
		t.Run(key, func(t *testing.T) {
			k := keyed(t, key)
			different(t, "two IPv4 addresses", k("198.51.100.1"), k("198.51.100.2"))
			same(t, "an IPv4 address in two forms", k("198.51.100.1"), k("::ffff:198.51.100.1"))
			same(t, "a network of 64 bits", k("2001:db8::1"), k("2001:db8::ffff"))
			same(t, "an IPv6 address in two forms", k("2001:DB8:0:0::1"), k("2001:db8::1%eth0"))
			different(t, "two networks of 64 bits", k("2001:db8:0:1::1"), k("2001:db8:0:2::1"))
			different(t, "IPv4-mapped addresses", k("::ffff:198.51.100.1"), k("::ffff:198.51.100.2"))
		})
		t.Run(key+" with prefixes", func(t *testing.T) {
			k := keyed(t, key, "ipv4_prefix 24", "ipv6_prefix 48")
			same(t, "a network of 24 bits", k("198.51.100.1"), k("198.51.100.2"))
			different(t, "two networks of 24 bits", k("198.51.100.1"), k("198.51.101.1"))
			same(t, "a network of 48 bits", k("2001:db8:0:1::1"), k("2001:db8:0:2::1"))
			different(t, "two networks of 48 bits", k("2001:db8:1::1"), k("2001:db8:2::1"))
			different(t, "IPv4 and IPv6", k("198.51.100.1"), k("2001:db8::1"))
		})
	}
}

// {client_ip} is the client behind a proxy, {remote_host} the proxy.
func TestKeysTellClientFromPeer(t *testing.T) {
	const proxy = "10.0.0.1"
	one, two := with(forwarded, "203.0.113.1"), with(forwarded, "203.0.113.2")
	t.Run("client", func(t *testing.T) {
		k := keyed(t, "key {client_ip}")
		different(t, "two clients of one proxy", k(proxy, one), k(proxy, two))
		same(t, "a client with and without proxy", k(proxy, one), k("203.0.113.1"))
	})
	t.Run("peer", func(t *testing.T) {
		k := keyed(t, "key {remote_host}")
		same(t, "two clients of one proxy", k(proxy, one), k(proxy, two))
	})
}

// An empty key follows on_empty_key, and is never a limit that all share.
func TestEmptyKeys(t *testing.T) {
	for _, key := range []string{"{header.X-User}", "user-{header.X-User}", "{header.X-User}:{cookie.session}", "{vars.nothing}", "{unknown.placeholder}"} {
		t.Run(key, func(t *testing.T) {
			site := func(options string) string {
				return `
http://a.test {
	distributed_ratelimit 2 1h z {
		key "` + key + `"
		` + options + `
	}
	respond "{http.distributed_ratelimit.outcome}"
}`
			}
			t.Run("client", func(t *testing.T) {
				e := start(t, site(""))
				e.granted(2, alice, "http://a.test/")
				e.refused(alice, "http://a.test/")
				e.granted(2, bob, "http://a.test/")
			})
			t.Run("skip", func(t *testing.T) {
				e := start(t, site("on_empty_key skip"))
				e.granted(5, alice, "http://a.test/")
				e.body("", alice, "http://a.test/")
			})
			t.Run("deny", func(t *testing.T) {
				e := start(t, site("on_empty_key deny"))
				a := e.status(http.StatusForbidden, alice, "http://a.test/")
				a.header(t, "Retry-After", "")
				a.header(t, "Cache-Control", "no-store")
				a.header(t, "Content-Type", "application/problem+json")
				if strings.Contains(a.body, "quota") {
					t.Errorf("body: got %s, want nothing about a quota", a.body)
				}
			})
			t.Run("deny in a dry run", func(t *testing.T) {
				e := start(t, site("on_empty_key deny\ndry_run"))
				e.body("dry_run", alice, "http://a.test/")
			})
		})
	}
}

// A request that is denied for its empty key costs nothing in other zones.
func TestDeniedKeysCostNothing(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone one {
			events 5
			window 1h
		}
		zone two {
			key {header.X-User}
			on_empty_key deny
			events 5
			window 1h
		}
	}
	respond "{http.distributed_ratelimit.remaining}"
}`)
	for range 10 {
		e.status(http.StatusForbidden, alice, "http://a.test/")
	}
	e.body("4", alice, "http://a.test/", with("X-User", "me"))
}

func TestKeysOfHeaders(t *testing.T) {
	k := keyed(t, "key {header.X-User}")
	same(t, "one user at two addresses", k(alice, with("X-User", "u")), k(bob, with("X-User", "u")))
	different(t, "two users", k(alice, with("X-User", "u")), k(alice, with("X-User", "v")))
	different(t, "a user called like an address, and that address", k(alice, with("X-User", "198.51.100.1")), k(alice))
	different(t, "a user called like the key of an address", k(alice, with("X-User", k(alice))), k(alice))

	long := strings.Repeat("x", 5000)
	same(t, "a long key", k(alice, with("X-User", long)), k(bob, with("X-User", long)))
	different(t, "long keys that differ at their ends", k(alice, with("X-User", long+"1")), k(alice, with("X-User", long+"2")))
	different(t, "bytes of any kind", k(alice, with("X-User", "\xff\x00")), k(alice, with("X-User", "\xff")))
}

// Parts of a key do not run into each other.
func TestPartsOfKeysAreKeptApart(t *testing.T) {
	pair := func(a, b string) []func(*http.Request) {
		return []func(*http.Request){with("A", a), with("B", b)}
	}
	for _, key := range []string{"{header.A}{header.B}", "{header.A}:{header.B}", "{header.A}|{header.B}"} {
		t.Run(key, func(t *testing.T) {
			k := keyed(t, "key "+key)
			different(t, "a, bc and ab, c", k(alice, pair("a", "bc")...), k(alice, pair("ab", "c")...))
			different(t, "a, b:c and a:b, c", k(alice, pair("a", "b:c")...), k(alice, pair("a:b", "c")...))
			different(t, "a, b|c and a|b, c", k(alice, pair("a", "b|c")...), k(alice, pair("a|b", "c")...))
			different(t, "one empty part and the other", k(alice, pair("a", "")...), k(alice, pair("", "a")...))
			same(t, "equal parts", k(alice, pair("a", "b")...), k(bob, pair("a", "b")...))
		})
	}
}

// A key of literals is one limit for all: it is never empty.
func TestKeyForEverybody(t *testing.T) {
	k := keyed(t, "key everybody")
	same(t, "two clients", k(alice), k(bob))
	k = keyed(t, `key "\{x"`)
	same(t, "two clients", k(alice), k(bob))
}

func TestKeysAreLoggedOnlyOnDemand(t *testing.T) {
	for name, option := range map[string]string{"by default": "", "log_key": "log_key"} {
		t.Run(name, func(t *testing.T) {
			e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone z {
			key "{client_ip} {header.X-Key}"
			events 0
			window 1h
		}
		zone y {
			key "{header.X-Key}"
			events 1
			window 1h
		}
		`+option+`
	}
}`)
			for range 5 {
				e.refused(alice, "http://a.test/", with("X-Key", secret))
			}
			if logged := strings.Contains(e.log.text(), secret); logged != (option != "") {
				t.Errorf("the key is in the log: %v; the log:\n%s", logged, e.log.text())
			}
			if strings.Contains(e.get(alice, "http://a.test/", with("X-Key", secret)).body, secret) {
				t.Error("the key is in the body of a refusal")
			}
			for _, line := range e.log.find("request refused") {
				if option != "" && line["key"] != alice+" "+secret {
					t.Errorf("logged key: got %q, want the address and the header", line["key"])
				}
			}
		})
	}
}
