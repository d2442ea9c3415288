package caddytest

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// What the handler adds to a request that is granted, without the server
// around it: the difference between the two is its cost.
func BenchmarkHandler(b *testing.B) {
	for name, config := range map[string]string{
		"without": ":80 {\n\trespond ok\n}",
		"memory":  ":80 {\n\tdistributed_ratelimit 1000000000 1h\n\trespond ok\n}",
	} {
		b.Run(name, func(b *testing.B) {
			server := provisioned(b, config)
			w := nowhere{header: make(http.Header)}
			r := httptest.NewRequest(http.MethodGet, "http://example.com/", nil)
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				server.ServeHTTP(w, r)
			}
		})
	}
}

func provisioned(b *testing.B, config string) *caddyhttp.Server {
	b.Helper()
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(adapted(b, "{\n\tadmin off\n\tlog {\n\t\tlevel ERROR\n\t}\n}\n"+config), &cfg); err != nil {
		b.Fatal(err)
	}
	ctx, err := caddy.ProvisionContext(&cfg)
	if err != nil {
		b.Fatal(err)
	}
	app, err := ctx.App("http")
	if err != nil {
		b.Fatal(err)
	}
	return app.(*caddyhttp.App).Servers["srv0"]
}

// nowhere is a response that nobody reads.
type nowhere struct{ header http.Header }

func (w nowhere) Header() http.Header         { return w.header }
func (w nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) WriteHeader(int)               {}
