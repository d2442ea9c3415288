package caddytest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// What the handler adds to a request that is granted, without the server
// around it: the difference to a site without a limit is its cost. One that only
// sets a variable shows what any directive costs.
func BenchmarkHandler(b *testing.B) {
	const zone = "zone %s {\n\t\t\tevents 1000000000\n\t\t\twindow 1h\n\t\t}\n"
	for _, c := range []struct{ name, directive string }{
		{"without", ""},
		{"set", "vars x y"},
		{"memory", "distributed_ratelimit 1000000000 1h"},
		{"log_key", "distributed_ratelimit 1000000000 1h {\n\t\tlog_key\n\t}"},
		{"zones", "distributed_ratelimit {\n\t\t" + fmt.Sprintf(zone, "a") + "\t\t" + fmt.Sprintf(zone, "b") + "\t}"},
		{"logged", "log\n\tdistributed_ratelimit 1000000000 1h"}, // with the work on the line's fields, without the line
		{"always", "distributed_ratelimit 1000000000 1h {\n\t\tratelimit_headers always\n\t}"},
	} {
		b.Run(c.name, func(b *testing.B) {
			server := provisioned(b, ":80 {\n\t"+c.directive+"\n\trespond ok\n}")
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
