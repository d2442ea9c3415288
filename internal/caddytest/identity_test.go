package caddytest

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// who is a site that responds with the client that the handler has decided on.
const who = `
http://a.test {
	distributed_ratelimit 1000 1h z {
		%OPTIONS%
	}
	respond "{http.distributed_ratelimit.client_ip}"
}`

// client expects who the client of a request is.
func (e *edge) client(want, peer string, change ...func(*http.Request)) {
	e.t.Helper()
	e.body(want, peer, "http://a.test/", change...)
}

func addressSite(servers, options string) string {
	if servers != "" {
		servers = "{\n" + servers + "\n}\n"
	}
	return servers + strings.Replace(who, "%OPTIONS%", options, 1)
}

const forwarded = "X-Forwarded-For"

func TestClientWithoutTrustedProxies(t *testing.T) {
	e := start(t, addressSite("", ""))
	e.client("198.51.100.1", alice, with(forwarded, "1.2.3.4"))
	e.client("198.51.100.1", "::ffff:198.51.100.1", with(forwarded, "1.2.3.4"))
	e.client("2001:db8::1", "2001:DB8:0::1%eth0")
	e.client("unix", "@")
}

// With no rules of its own the handler trusts whom the server trusts, and
// walks the list from the right whether the server is strict or not.
func TestClientByTheServersRules(t *testing.T) {
	for name, strict := range map[string]string{"strict": "trusted_proxies_strict", "not strict": ""} {
		t.Run(name, func(t *testing.T) {
			e := start(t, addressSite("servers {\ntrusted_proxies static 10.0.0.0/8 2001:db8:1::/48\n"+strict+"\n}", ""))
			const peer = "10.0.0.1"
			e.client("198.51.100.1", alice, with(forwarded, "1.2.3.4"))
			e.client("203.0.113.9", peer, with(forwarded, "203.0.113.9"))
			e.client("203.0.113.9", peer, with(forwarded, "1.2.3.4, 203.0.113.9, 10.0.0.2"))
			e.client("203.0.113.9", peer, with(forwarded, "1.2.3.4"), with(forwarded, "203.0.113.9"), with(forwarded, "10.0.0.2"))
			e.client("203.0.113.9", peer, with(forwarded, "1.2.3.4, [::ffff:203.0.113.9]:80, ::ffff:10.0.0.2"))
			e.client("2001:db8::9", peer, with(forwarded, "1.2.3.4, [2001:db8::9]:443, 2001:db8:1::7"))
			// What does not parse stops the walk.
			e.client("10.0.0.2", peer, with(forwarded, "1.2.3.4, nonsense, 10.0.0.2"))
			e.client("10.0.0.1", peer, with(forwarded, "1.2.3.4, nonsense"))
			e.client("10.0.0.3", peer, with(forwarded, "10.0.0.3, 10.0.0.2"))
			e.client("10.0.0.1", peer)
			e.client("203.0.113.9", "::ffff:10.0.0.1", with(forwarded, "1.2.3.4, 203.0.113.9"))
			e.client("203.0.113.9", "2001:db8:1::1", with(forwarded, "203.0.113.9"))
		})
	}
}

func TestClientByTheHandlersRules(t *testing.T) {
	const servers = "servers {\ntrusted_proxies static 10.0.0.0/8\n}"
	t.Run("ranges", func(t *testing.T) {
		e := start(t, addressSite(servers, "trusted_proxies static 172.16.0.0/12"))
		e.client("10.0.0.1", "10.0.0.1", with(forwarded, "203.0.113.9"))
		e.client("203.0.113.9", "172.16.0.1", with(forwarded, "1.2.3.4, 203.0.113.9, 172.16.0.2"))
	})
	t.Run("header", func(t *testing.T) {
		e := start(t, addressSite(servers, "client_ip_headers X-Real-IP"))
		e.client("203.0.113.9", "10.0.0.1", with("X-Real-IP", "203.0.113.9"), with(forwarded, "1.2.3.4"))
		e.client("10.0.0.1", "10.0.0.1", with(forwarded, "1.2.3.4"))
		e.client("10.0.0.1", "10.0.0.1", with("X-Real-IP", "1.2.3.4"), with("X-Real-IP", "203.0.113.9"))
	})
	t.Run("Forwarded", func(t *testing.T) {
		e := start(t, addressSite("", "trusted_proxies static private_ranges\nclient_ip_headers Forwarded"))
		e.client("2001:db8::9", "10.0.0.1", with("Forwarded", `for=1.2.3.4, for="[2001:db8::9]:80";proto=https`))
	})
}

func TestClientByTheGlobalOptionsRules(t *testing.T) {
	const app = "distributed_ratelimit {\ntrusted_proxies static 172.16.0.0/12\nclient_ip_headers X-Real-IP\n}"
	e := start(t, addressSite(app+"\nservers {\ntrusted_proxies static 10.0.0.0/8\n}", ""))
	e.client("203.0.113.9", "172.16.0.1", with("X-Real-IP", "203.0.113.9"))
	e.client("10.0.0.1", "10.0.0.1", with("X-Real-IP", "203.0.113.9"), with(forwarded, "203.0.113.9"))

	// The handler's own rules come first, each by itself.
	e.reload(addressSite(app, "client_ip_headers True-Client-IP"))
	e.client("203.0.113.9", "172.16.0.1", with("True-Client-IP", "203.0.113.9"), with("X-Real-IP", "1.2.3.4"))
}

// In named routes and error routes the server's rules hold too.
func TestClientInNamedAndErrorRoutes(t *testing.T) {
	e := start(t, `
{
	servers {
		trusted_proxies static 10.0.0.0/8
		client_ip_headers X-Real-IP
	}
}
&(limited) {
	distributed_ratelimit 100 1h named
	respond /named "{http.distributed_ratelimit.client_ip}"
}
http://a.test {
	invoke /named limited
	error /error 500
	handle_errors {
		distributed_ratelimit 100 1h errors
		respond "{http.distributed_ratelimit.client_ip}"
	}
}`)
	for _, path := range []string{"/named", "/error"} {
		e.body("203.0.113.9", "10.0.0.1", "http://a.test"+path, with("X-Real-IP", "203.0.113.9"), with(forwarded, "1.2.3.4"))
	}
}

// The ranges of an IP source may change at any time. If they come to hold every
// address, they are not trusted.
func TestClientByRangesThatChange(t *testing.T) {
	for name, where := range map[string][2]string{
		"handler": {"", "trusted_proxies roaming moving"},
		"global":  {"distributed_ratelimit {\ntrusted_proxies roaming moving\n}", ""},
		"server":  {"servers {\ntrusted_proxies roaming moving\n}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			ranges := new(roaming)
			ranges.set("10.0.0.0/8")
			invite(t, "moving", ranges)
			e := start(t, addressSite(where[0], where[1]))
			e.client("203.0.113.9", "10.0.0.1", with(forwarded, "203.0.113.9"))
			e.client("172.16.0.1", "172.16.0.1", with(forwarded, "203.0.113.9"))
			ranges.set("172.16.0.0/12")
			e.client("10.0.0.1", "10.0.0.1", with(forwarded, "203.0.113.9"))
			e.client("203.0.113.9", "172.16.0.1", with(forwarded, "203.0.113.9"))
			if name != "server" {
				ranges.set("0.0.0.0/0")
				e.client("10.0.0.1", "10.0.0.1", with(forwarded, "203.0.113.9"))
			}
		})
	}
}

// A server that trusts everybody vouches for nobody: then the address next to
// the peer is believed, which the peer itself has seen, and none beyond it.
func TestServerThatTrustsEverybody(t *testing.T) {
	for _, ranges := range []string{"0.0.0.0/0", "::/0", "0.0.0.0/1 128.0.0.0/1", "0.0.0.0/2 64.0.0.0/2", "2000::/4 3000::/4 203.0.113.0/24"} {
		t.Run(ranges, func(t *testing.T) {
			e := start(t, addressSite("servers {\ntrusted_proxies static "+ranges+"\n}", ""))
			peer := alice
			if strings.HasPrefix(ranges, "2000:") || ranges == "::/0" {
				peer = "2001:db8:5::1"
			} else if strings.HasPrefix(ranges, "0.0.0.0/2") {
				peer = "20.0.0.1"
			}
			e.client("203.0.113.9", peer, with(forwarded, "1.2.3.4, 203.0.113.9"))
			e.client(peer, peer)
			// A client that the proxy sees under the proxy's own address.
			e.client(peer, peer, with(forwarded, "1.2.3.4, "+peer))
			for _, line := range e.log.says(1, "the server's trusted_proxies hold every address") {
				if line["level"] != "warn" || !strings.Contains(line["msg"].(string), "Change trusted_proxies in the servers option") {
					t.Errorf("warning: got %v, want a warning that names the line to change", line)
				}
			}
		})
	}
}

// Where the server reads several headers, only the first is read.
func TestSeveralHeadersOfTheServer(t *testing.T) {
	e := start(t, addressSite("servers {\ntrusted_proxies static 10.0.0.0/8\nclient_ip_headers X-Real-IP X-Forwarded-For\n}", ""))
	e.client("203.0.113.9", "10.0.0.1", with("X-Real-IP", "203.0.113.9"), with(forwarded, "1.2.3.4"))
	e.client("10.0.0.1", "10.0.0.1", with(forwarded, "1.2.3.4"))
	e.log.says(1, "only the first of the server's client_ip_headers is read")
}

// A forged header neither passes an exemption for private addresses nor
// changes the key.
func TestForgedHeadersChangeNothing(t *testing.T) {
	for name, row := range map[string]struct{ servers, peer, header string }{
		"no proxies":            {"", alice, "192.168.0.%"},
		"peer is not trusted":   {"servers {\ntrusted_proxies static 10.0.0.0/8\n}", alice, "192.168.0.%"},
		"behind a proxy":        {"servers {\ntrusted_proxies static 10.0.0.0/8\n}", "10.0.0.1", "192.168.0.%, 198.51.100.1"},
		"strict":                {"servers {\ntrusted_proxies static 10.0.0.0/8\ntrusted_proxies_strict\n}", "10.0.0.1", "192.168.0.%, 198.51.100.1"},
		"strict and nonsense":   {"servers {\ntrusted_proxies static 10.0.0.0/8\ntrusted_proxies_strict\n}", "10.0.0.1", "192.168.0.%, 198.51.100.1, 10.0.0.1"},
		"trust in the handler":  {"distributed_ratelimit {\ntrusted_proxies static 10.0.0.0/8\n}\nservers {\ntrusted_proxies static 10.0.0.0/8\n}", "10.0.0.1", "192.168.0.%, 198.51.100.1"},
		"everybody trusted":     {"servers {\ntrusted_proxies static 0.0.0.0/0\n}", "10.0.0.1", "192.168.0.%, 198.51.100.1"},
		"everybody, strict too": {"servers {\ntrusted_proxies static 0.0.0.0/0\ntrusted_proxies_strict\n}", "10.0.0.1", "192.168.0.%, 198.51.100.1"},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, "{\n"+row.servers+`
}
http://a.test {
	distributed_ratelimit {
		zone z {
			exempt client_ip private_ranges
			events 3
			window 1h
		}
		zone named {
			key {client_ip}
			events 3
			window 1h
		}
	}
	respond "ok"
}`)
			forge := func(i int) func(*http.Request) {
				return with(forwarded, strings.ReplaceAll(row.header, "%", string(rune('1'+i))))
			}
			for i := range 3 {
				e.granted(1, row.peer, "http://a.test/", forge(i))
			}
			for i := range 6 {
				e.refused(row.peer, "http://a.test/", forge(i))
			}
		})
	}
}

// Unix-socket peers have no address: they share one limit, and say so once,
// unless the server trusts them as proxies.
func TestUnixSocketListener(t *testing.T) {
	for name, trusted := range map[string]bool{"untrusted": false, "trusted": true} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			servers := ""
			if trusted {
				servers = "{\nservers {\ntrusted_proxies_unix\n}\n}"
			}
			start := start(t, servers+`
http://a.test {
	bind unix/`+socket+`
	distributed_ratelimit 2 1h
	respond "{http.distributed_ratelimit.client_ip}"
}`)
			client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
				return net.Dial("unix", socket)
			}}}
			defer client.CloseIdleConnections()
			get := func(from string) (int, string) {
				t.Helper()
				r, _ := http.NewRequest(http.MethodGet, "http://a.test/", nil)
				r.Header.Set(forwarded, from)
				response, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				body, _ := io.ReadAll(response.Body)
				return response.StatusCode, string(body)
			}
			for i, from := range []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"} {
				wantStatus, wantBody := http.StatusOK, "unix"
				if trusted {
					wantBody = from
				} else if i == 2 {
					wantStatus = http.StatusTooManyRequests
				}
				if status, body := get(from); status != wantStatus || (status == http.StatusOK && body != wantBody) {
					t.Errorf("request %d for %s: got %d %q, want %d %q", i+1, from, status, body, wantStatus, wantBody)
				}
			}
			warnings := 1
			if trusted {
				warnings = 0
			}
			start.log.says(warnings, "clients on a Unix socket have no address")
		})
	}
}

func TestUnreadableHeadersAreLoggedNowAndThen(t *testing.T) {
	e := start(t, addressSite("servers {\ntrusted_proxies static 10.0.0.0/8\n}", ""))
	before := e.series("identified_requests_total")["malformed"]
	for range 100 {
		e.client("10.0.0.1", "10.0.0.1", with(forwarded, "x"))
	}
	e.log.says(1, "the client's address could not be read from the header")
	if got := e.series("identified_requests_total")["malformed"] - before; got != 100 {
		t.Errorf("metric identified_requests_total{malformed}: got %v more, want 100", got)
	}
}
