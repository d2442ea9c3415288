package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-distributed-ratelimit/distributed-ratelimit"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// instance is a server with the handler, without a listener: requests are
// handed to it directly, so that a test can come from any address.
type instance struct{ server *caddyhttp.Server }

// newInstances provisions n servers from one Caddyfile. Each has a store of
// its own: stores of equal settings are shared within a process, so the %d in
// the Caddyfile, a pool_size, tells them apart.
func newInstances(t *testing.T, n int, config string) []*instance {
	t.Helper()
	instances := make([]*instance, n)
	for i := range instances {
		instances[i] = newInstance(t, fmt.Sprintf(config, i+2))
	}
	return instances
}

// provisioning is done one at a time: Caddy sets a global variable then.
var provisioning sync.Mutex

func newInstance(t *testing.T, config string) *instance {
	t.Helper()
	provisioning.Lock()
	defer provisioning.Unlock()
	adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), nil)
	if err != nil {
		t.Fatalf("adapting: %v %v\n%s", err, warnings, config)
	}
	var cfg caddy.Config
	if err := json.Unmarshal(adapted, &cfg); err != nil {
		t.Fatal(err)
	}
	ctx, err := caddy.ProvisionContext(&cfg)
	if err != nil {
		t.Fatalf("provisioning: %v\n%s", err, config)
	}
	t.Cleanup(func() { cleanUp(&cfg) })
	app, err := ctx.App("http")
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range app.(*caddyhttp.App).Servers {
		return &instance{server}
	}
	t.Fatalf("no server in\n%s", config)
	return nil
}

// cleanUp ends a configuration as a reload would, which Caddy offers for the
// one that runs only: stores have goroutines, which would otherwise outlive
// their test.
func cleanUp(cfg *caddy.Config) {
	field := reflect.ValueOf(cfg).Elem().FieldByName("cancelFunc")
	cancel := *(*context.CancelCauseFunc)(field.Addr().UnsafePointer())
	cancel(errors.New("the test is over"))
}

// reply is what came of a request.
type reply struct {
	status     int
	header     http.Header
	body       string
	span       storetest.Span // from before it was sent to after it was answered
	retryAfter time.Duration
}

func (r reply) granted() bool { return r.status == http.StatusOK }

// get sends a request from an address.
func (in *instance) get(from string, header ...string) reply {
	r := httptest.NewRequest(http.MethodGet, "http://example.com/", nil)
	r.RemoteAddr = from + ":1234"
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	sent := time.Now()
	in.server.ServeHTTP(w, r)
	return newReply(w.Code, w.Header(), w.Body.String(), sent)
}

func newReply(status int, header http.Header, body string, sent time.Time) reply {
	r := reply{status: status, header: header, body: body, span: storetest.Span{From: sent, To: time.Now(), Units: 1}}
	if seconds, err := strconv.Atoi(header.Get("Retry-After")); err == nil {
		r.retryAfter = time.Duration(seconds) * time.Second
	}
	return r
}

// record collects the grants of a test.
type record struct {
	mu      sync.Mutex
	spans   []storetest.Span
	refused int
	other   map[int]int // by status
	sent    []time.Time // all requests
}

func (rec *record) add(r reply) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.sent = append(rec.sent, r.span.From)
	switch r.status {
	case http.StatusOK:
		rec.spans = append(rec.spans, r.span)
	case http.StatusTooManyRequests:
		rec.refused++
	default:
		if rec.other == nil {
			rec.other = make(map[int]int)
		}
		rec.other[r.status]++
	}
}

// strict checks every interval of the history.
func (rec *record) strict(t *testing.T, limit int64, window time.Duration) {
	t.Helper()
	if len(rec.other) > 0 {
		t.Errorf("statuses other than 200 and 429: %v", rec.other)
	}
	if most, at := storetest.Most(rec.spans, window); most > limit {
		t.Errorf("%d granted within the %v from %v, limit %d (of %d granted, %d refused)", most, window, at, limit, len(rec.spans), rec.refused)
	}
}

// utilisation compares the record with an exact log of the same requests: the
// time it takes that log to grant as many as were granted, as a share of the
// time it took.
func (rec *record) utilisation(limit int, window time.Duration) float64 {
	slices.SortFunc(rec.sent, time.Time.Compare)
	var exact []time.Time
	for _, at := range rec.sent {
		if n := len(exact); n < limit || !at.Before(exact[n-limit].Add(window)) {
			exact = append(exact, at)
		}
	}
	var last time.Time
	for _, span := range rec.spans {
		if span.From.After(last) {
			last = span.From
		}
	}
	if len(exact) < len(rec.spans) {
		return 0 // more than an exact log: not strict
	}
	began := rec.sent[0]
	return float64(exact[len(rec.spans)-1].Sub(began)) / float64(last.Sub(began))
}

// crowd runs f n times at once.
func crowd(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
