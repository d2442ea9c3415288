package redis

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// TestRemedies: what is reported of a server that is configured wrongly says what
// to write instead. One that wants a password hangs up when a stranger sends it the
// script, so that the report was once "connection reset" and nothing else.
func TestRemedies(t *testing.T) {
	locked := redistest.Start(t, "--requirepass", "sesame")
	plain := redistest.Start(t)
	encrypted := redistest.StartTLS(t, redistest.NewAuthority(t))
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	for _, test := range []struct {
		what    string
		options Options
		want    []string
	}{
		{"no password", Options{Address: locked.Addr}, []string{"NOAUTH", "username and password"}},
		{"a wrong password", Options{Address: locked.Addr, Password: "hunter2"}, []string{"WRONGPASS", "username and password"}},
		{"an unknown user", Options{Address: locked.Addr, Username: "bob", Password: "sesame"}, []string{"WRONGPASS", "username and password"}},
		{"no TLS where there is", Options{Address: encrypted.Addr}, []string{"write rediss:// or tls"}},
		{"TLS where there is none", Options{Address: plain.Addr, TLS: &tls.Config{MinVersion: tls.VersionTLS12}}, []string{"no TLS handshake", "write redis:// and no tls"}},
		{"TLS, and nothing comes back", Options{Address: silent.Addr().String(), TLS: &tls.Config{MinVersion: tls.VersionTLS12}, DialTimeout: 100 * time.Millisecond}, []string{"no TLS handshake", "write redis:// and no tls"}},
		{"something else than Redis", Options{Address: web.Listener.Addr().String()}, []string{"is no Redis", "host and port"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			s, err := Open(test.options)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			w := watch(t, s)
			eventually(t, "the server is reported to be away", func() bool { return len(w.all()) > 0 && w.all()[0].Err != nil })
			report := w.all()[0]
			for _, want := range test.want {
				if report.Condition != store.Away || !strings.Contains(report.Err.Error(), want) {
					t.Errorf("the report is %v, %q; want %q in it", report.Condition, report.Err, want)
				}
			}
		})
	}
}
