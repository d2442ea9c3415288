package caddytest

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/proxyprotocol"
)

// sendOver sends a request over a connection, behind a PROXY header if there is
// one, and returns the body.
func sendOver(t *testing.T, conn net.Conn, proxy []byte, header string) string {
	t.Helper()
	defer conn.Close()
	conn.Write(proxy)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n"+header+"\r\n")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return string(body)
}

// A client that bound its end of a Unix socket to a relative path that reads
// like an address had that address: one of its choice as a key, a trusted
// proxy's, or one that is exempt.
func TestUnixSocketsNamedLikeAnAddress(t *testing.T) {
	for _, row := range []struct{ name, servers, client string }{
		{"203.0.113.9:80", "", "unix"},
		{"10.0.0.1:80", "trusted_proxies static 10.0.0.0/8", "unix"},
		{"10.0.0.1:80", "trusted_proxies_unix", "198.51.100.7"},
	} {
		t.Run(row.name+" "+row.servers, func(t *testing.T) {
			t.Chdir(t.TempDir())
			socket := filepath.Join(t.TempDir(), "s")
			start(t, "{\nservers {\n"+row.servers+"\n}\n}\n"+`
http://a.test {
	bind unix/`+socket+`
	distributed_ratelimit {
		zone z {
			exempt remote_ip 203.0.113.0/24 10.0.0.0/8
			events 5
			window 1h
		}
	}
	respond "{http.distributed_ratelimit.client_ip} {http.distributed_ratelimit.outcome}"
}`)
			dialer := net.Dialer{LocalAddr: &net.UnixAddr{Name: row.name, Net: "unix"}}
			conn, err := dialer.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			if got := sendOver(t, conn, nil, "X-Forwarded-For: 198.51.100.7\r\n"); got != row.client+" granted" {
				t.Errorf("a client that named its socket %s: got %q, want %q", row.name, got, row.client+" granted")
			}
		})
	}
}

// proxyV2 is a header of the PROXY protocol, version 2.
func proxyV2(family byte, body []byte) []byte {
	h := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21"), family)
	return append(binary.BigEndian.AppendUint16(h, uint16(len(body))), body...)
}

// A PROXY header for AF_UNIX names a socket, one for TCP an address, whatever
// the listener is.
func TestUnixSocketsInAProxyHeader(t *testing.T) {
	unix := make([]byte, 216)
	copy(unix, "203.0.113.9:80")
	copy(unix[108:], "/run/proxy.sock")
	for name, row := range map[string]struct {
		header []byte
		want   string
	}{
		"AF_UNIX":    {proxyV2(0x31, unix), "unix"},
		"TCP4":       {proxyV2(0x11, []byte{203, 0, 113, 9, 10, 0, 0, 1, 0, 80, 0, 80}), "203.0.113.9"},
		"version 1":  {[]byte("PROXY TCP4 203.0.113.9 10.0.0.1 80 80\r\n"), "203.0.113.9"},
		"no address": {[]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"), "own"},
	} {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(name+" over "+network, func(t *testing.T) {
				socket, bind := filepath.Join(t.TempDir(), "s"), ""
				if network == "unix" {
					bind = "bind unix/" + socket
				}
				e := start(t, `
{
	servers {
		listener_wrappers {
			proxy_protocol {
				allow 127.0.0.0/8
			}
		}
	}
}
http://a.test {
	`+bind+`
	distributed_ratelimit 5 1h
	respond "{http.distributed_ratelimit.client_ip}"
}`)
				address, want := socket, row.want
				if network == "tcp" {
					address = e.ports["80"]
				}
				if want == "own" {
					want = map[string]string{"unix": "unix", "tcp": "127.0.0.1"}[network]
				}
				conn, err := net.Dial(network, address)
				if err != nil {
					t.Fatal(err)
				}
				if got := sendOver(t, conn, row.header, ""); got != want {
					t.Errorf("the client: got %q, want %q", got, want)
				}
			})
		}
	}
}

func init() { caddy.RegisterModule(new(swappingSource)) }

// swappingSource is an IP source whose ranges a test chooses, request by request.
type swappingSource struct {
	Name string `json:"name"`
}

type swapping func() []netip.Prefix

func (*swappingSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.ip_sources.swapping", New: func() caddy.Module { return new(swappingSource) }}
}

func (s *swappingSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.AllArgs(&s.Name) {
		return d.ArgErr()
	}
	return nil
}

func (s *swappingSource) GetIPRanges(*http.Request) []netip.Prefix {
	swap, err := guest[swapping](s.Name)
	if err != nil {
		return nil
	}
	return swap()
}

// A list that changed between two hops led to an address that neither list
// yields.
func TestRangesAreAskedForOnceARequest(t *testing.T) {
	lists := [][]netip.Prefix{
		{netip.MustParsePrefix("10.0.0.0/8")},
		{netip.MustParsePrefix("172.16.0.0/12")},
	}
	var looks atomic.Int64
	invite(t, "turns", swapping(func() []netip.Prefix { return lists[(looks.Add(1)-1)%2] }))
	e := start(t, addressSite("", "trusted_proxies swapping turns"))
	// By the first list 172.16.0.1 is the client, by the second 10.0.0.1.
	e.client("172.16.0.1", "10.0.0.1", with(forwarded, "203.0.113.9, 172.16.0.1"))
	e.client("10.0.0.1", "10.0.0.1", with(forwarded, "203.0.113.9, 172.16.0.1"))
	if got := looks.Load(); got != 2 {
		t.Errorf("two requests read the ranges %d times, want 2", got)
	}
}

// An IP source that made a new slice each time had 8,000 ranges compiled for each
// hop. Bytes are counted, not time.
func TestEqualRangesAreCompiledOnce(t *testing.T) {
	var list []netip.Prefix
	for i := range 8000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	var fresh atomic.Bool
	invite(t, "large", swapping(func() []netip.Prefix {
		if fresh.Load() {
			return slices.Clone(list)
		}
		return list
	}))
	e := start(t, addressSite("", "trusted_proxies swapping large"))
	bytes := func() int64 {
		const requests = 100
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range requests {
			e.client("203.0.113.9", "10.0.0.1", with(forwarded, "203.0.113.9, 10.0.0.2, 10.0.0.3"))
		}
		runtime.ReadMemStats(&after)
		return int64(after.TotalAlloc-before.TotalAlloc) / requests
	}
	same := bytes()
	fresh.Store(true)
	// The IP source's own copy is some 256 kB; compiling doubles it at least.
	if copies, one := bytes()-same, int64(8000*32); copies > one*3/2 {
		t.Errorf("a new slice with equal ranges costs %d bytes a request, want about one slice of %d", copies, one)
	}
}

// When an IP source came to hold everybody, all trust was off silently.
func TestRangesThatComeToHoldEverybodyAreLogged(t *testing.T) {
	ranges := new(roaming)
	ranges.set("10.0.0.0/8")
	invite(t, "growing", ranges)
	e := start(t, addressSite("", "trusted_proxies roaming growing"))
	e.client("203.0.113.9", "10.0.0.1", with(forwarded, "203.0.113.9"))
	ranges.set("0.0.0.0/1", "128.0.0.0/1")
	for range 20 {
		e.client("10.0.0.1", "10.0.0.1", with(forwarded, "203.0.113.9"))
	}
	for _, line := range e.log.says(1, "the IP source of trusted_proxies holds ranges that cannot be trusted") {
		if text, _ := line["error"].(string); line["level"] != "warn" || !strings.Contains(text, "100 % of 0.0.0.0/0") {
			t.Errorf("log line: got %v, want a warning with what the IP source holds", line)
		}
	}
}

// Behind a trusted proxy, exempt remote_ip private_ranges silently exempted
// everybody.
func TestRemoteIPInAZoneBehindAProxyIsWarnedOf(t *testing.T) {
	const server, app = "servers {\ntrusted_proxies static 10.0.0.0/8\n}", "distributed_ratelimit {\ntrusted_proxies static 10.0.0.0/8\n}"
	for _, row := range []struct {
		global, option string
		warnings       int
	}{
		{server, "exempt remote_ip private_ranges", 1},
		{app, "exempt remote_ip private_ranges", 1},
		{"", "exempt remote_ip private_ranges\ntrusted_proxies static 10.0.0.0/8", 1},
		{"distributed_ratelimit {\ntrusted_proxies hops 1\n}", "exempt remote_ip private_ranges", 1},
		{server, "match not remote_ip private_ranges", 1},
		{server, "exempt expression `remote_ip('10.0.0.0/8')`", 1},
		{server, "exempt client_ip private_ranges", 0},
		{"", "exempt remote_ip private_ranges", 0},
	} {
		t.Run(row.global+" "+row.option, func(t *testing.T) {
			e := start(t, addressSite(row.global, row.option))
			for _, line := range e.log.says(row.warnings, "remote_ip in a zone") {
				if !strings.Contains(line["msg"].(string), "write client_ip") {
					t.Errorf("warning: got %v, want one that names client_ip", line)
				}
			}
		})
	}
}

// Behind load balancers whose ranges are not known, their number is trusted.
func TestClientByTheNumberOfHops(t *testing.T) {
	const app = "distributed_ratelimit {\ntrusted_proxies hops 2\n}\nservers {\ntrusted_proxies static 10.0.0.0/8\n}"
	e := start(t, addressSite(app, ""))
	e.client("203.0.113.9", alice, with(forwarded, "1.2.3.4, 203.0.113.9, 192.0.2.7"))
	e.client("198.51.100.1", alice, with(forwarded, "203.0.113.9"))
	e.reload(addressSite(app, "trusted_proxies hops 1"))
	e.client("192.0.2.7", alice, with(forwarded, "1.2.3.4, 203.0.113.9, 192.0.2.7"))
	e.reload(addressSite(app, "trusted_proxies static 10.0.0.0/8"))
	e.client("198.51.100.1", alice, with(forwarded, "203.0.113.9, 192.0.2.7"))
}
