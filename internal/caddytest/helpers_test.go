package caddytest

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/logging"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/map"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	_ "github.com/caddyserver/caddy/v2/modules/metrics"
)

// edge is a real Caddy that runs a configuration in this process. Requests go
// to its HTTP servers directly, with any remote address a test likes, or over
// loopback. There is one at a time: tests that use it do not run in parallel.
type edge struct {
	t     *testing.T
	log   *logBook
	ports map[string]string // port in the Caddyfile -> address on loopback
	names map[string]string // port in the Caddyfile -> name of the server
	kept  string            // folder of Caddy's storage
}

// start runs a Caddyfile until the test ends. Its ports are replaced by free
// ones, on loopback, without TLS; all its logs go into a book.
func start(t *testing.T, caddyfile string) *edge {
	t.Helper()
	e := &edge{t: t, log: openLogBook(t), ports: make(map[string]string), kept: t.TempDir()}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("caddy.Stop: %v", err)
		}
	})
	e.reload(caddyfile)
	return e
}

func (e *edge) reload(caddyfile string) {
	e.t.Helper()
	if err := e.tryReload(caddyfile); err != nil {
		e.t.Fatalf("loading: %v\n%s", err, caddyfile)
	}
}

func (e *edge) tryReload(caddyfile string) error {
	e.t.Helper()
	return caddy.Load(e.config(caddyfile), true)
}

// config adapts a Caddyfile and makes it fit for a test.
func (e *edge) config(caddyfile string) []byte {
	e.t.Helper()
	return e.fit(adapted(e.t, caddyfile))
}

// fit replaces addresses and logs in a configuration.
func (e *edge) fit(config []byte) []byte {
	e.t.Helper()
	var cfg map[string]any
	if err := json.Unmarshal(config, &cfg); err != nil {
		e.t.Fatalf("reading the configuration: %v", err)
	}
	cfg["admin"] = map[string]any{"disabled": true, "config": map[string]any{"persist": false}}

	cfg["storage"] = map[string]any{"module": "file_system", "root": e.kept}

	logs, _ := dig(cfg, "logging", "logs").(map[string]any)
	if logs == nil {
		logs = make(map[string]any)
	}
	if logs["default"] == nil {
		logs["default"] = map[string]any{"level": "DEBUG"}
	}
	for _, l := range logs {
		l := l.(map[string]any)
		l["writer"] = map[string]any{"output": "book", "name": e.log.name}
		l["encoder"] = map[string]any{"format": "json"}
	}
	cfg["logging"] = map[string]any{"logs": logs}

	e.names = make(map[string]string)
	servers, _ := dig(cfg, "apps", "http", "servers").(map[string]any)
	for name, s := range servers {
		server := s.(map[string]any)
		server["automatic_https"] = map[string]any{"disable": true}
		var listen []string
		for _, a := range server["listen"].([]any) {
			address := a.(string)
			if !strings.HasPrefix(address, "unix/") {
				_, port, _ := strings.Cut(address, ":")
				e.names[port] = name
				if e.ports[port] == "" {
					e.ports[port] = freeAddress(e.t)
				}
				address = e.ports[port]
			}
			listen = append(listen, address)
		}
		server["listen"] = listen
	}
	out, err := json.Marshal(cfg)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

func dig(v any, path ...string) any {
	for _, name := range path {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// adapt turns a Caddyfile into JSON.
func adapt(caddyfile string) ([]byte, error) {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	return config, err
}

func adapted(t testing.TB, caddyfile string) []byte {
	t.Helper()
	config, err := adapt(caddyfile)
	if err != nil {
		t.Fatalf("adapting: %v\n%s", err, caddyfile)
	}
	return config
}

// server returns the running server of a port in the Caddyfile.
func (e *edge) server(port string) *caddyhttp.Server {
	e.t.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured("http")
	if err != nil {
		e.t.Fatalf("no HTTP app: %v", err)
	}
	server := app.(*caddyhttp.App).Servers[e.names[port]]
	if server == nil {
		e.t.Fatalf("no server has port %s", port)
	}
	return server
}

// reply is what a client gets.
type reply struct {
	*http.Response
	body string
}

// get sends a request from an address to the server on the URL's port, 80
// if it has none.
func (e *edge) get(from, url string, change ...func(*http.Request)) reply {
	e.t.Helper()
	return e.send(from, http.MethodGet, url, change...)
}

func (e *edge) send(from, method, url string, change ...func(*http.Request)) reply {
	e.t.Helper()
	port := "80"
	if _, rest, ok := strings.Cut(strings.TrimPrefix(url, "http://"), ":"); ok {
		port, _, _ = strings.Cut(rest, "/")
	}
	return e.sendTo(e.server(port), from, method, url, change...)
}

// sendTo is send for goroutines of a test, which must not stop it.
func (e *edge) sendTo(server *caddyhttp.Server, from, method, url string, change ...func(*http.Request)) reply {
	r := httptest.NewRequest(method, url, nil)
	r.RemoteAddr = from
	if !strings.HasPrefix(from, "@") && !strings.HasPrefix(from, "[") {
		r.RemoteAddr = net.JoinHostPort(from, "40000")
	}
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	server.ServeHTTP(w, r)
	return reply{w.Result(), w.Body.String()}
}

// dial sends a request over loopback.
func (e *edge) dial(r *http.Request) reply {
	e.t.Helper()
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		e.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		e.t.Fatalf("%s %s: reading the body: %v", r.Method, r.URL, err)
	}
	return reply{response, string(body)}
}

// with sets a header line; each use adds one.
func with(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Add(name, value) }
}

// granted expects that many requests to pass.
func (e *edge) granted(n int, from, url string, change ...func(*http.Request)) {
	e.t.Helper()
	for i := range n {
		if a := e.get(from, url, change...); a.StatusCode != http.StatusOK {
			e.t.Fatalf("request %d of %d from %s to %s: got status %d (%s), want 200", i+1, n, from, url, a.StatusCode, a.body)
		}
	}
}

// refused expects a request to be refused with status 429.
func (e *edge) refused(from, url string, change ...func(*http.Request)) reply {
	e.t.Helper()
	return e.status(http.StatusTooManyRequests, from, url, change...)
}

func (e *edge) status(want int, from, url string, change ...func(*http.Request)) reply {
	e.t.Helper()
	a := e.get(from, url, change...)
	if a.StatusCode != want {
		e.t.Fatalf("request from %s to %s: got status %d (%s), want %d", from, url, a.StatusCode, a.body, want)
	}
	return a
}

// body expects the body of a reply.
func (e *edge) body(want, from, url string, change ...func(*http.Request)) {
	e.t.Helper()
	if a := e.get(from, url, change...); a.body != want {
		e.t.Fatalf("request from %s to %s: got status %d, body %q, want body %q", from, url, a.StatusCode, a.body, want)
	}
}

// header expects the value of a header, "" for none.
func (a reply) header(t *testing.T, name, want string) {
	t.Helper()
	if got := strings.Join(a.Header.Values(name), " | "); got != want {
		t.Errorf("header %s: got %q, want %q (status %d)", name, got, want, a.StatusCode)
	}
}

// series returns the running configuration's samples of a metric, by their
// label values in the order of the labels' names.
func (e *edge) series(metric string) map[string]float64 {
	e.t.Helper()
	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		e.t.Fatalf("gathering metrics: %v", err)
	}
	samples := make(map[string]float64)
	for _, family := range families {
		if family.GetName() != "caddy_distributed_ratelimit_"+metric {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			samples[strings.Join(labels, " ")] = value
		}
	}
	return samples
}

// sample expects one sample of a metric.
func (e *edge) sample(metric, labels string, want float64) {
	e.t.Helper()
	samples := e.series(metric)
	if got, ok := samples[labels]; !ok || got != want {
		e.t.Errorf("metric %s{%s}: got %v (there: %v), want %v; all: %v", metric, labels, got, ok, want, samples)
	}
}
