package caddytest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// Guest modules that stand for the world around the handler.

func init() {
	caddy.RegisterModule(new(bookWriter))
	caddy.RegisterModule(new(rigStore))
	caddy.RegisterModule(new(farStore))
	caddy.RegisterModule(new(stageHandler))
	caddy.RegisterModule(new(brokenMatcher))
	caddy.RegisterModule(new(roamingSource))
	httpcaddyfile.RegisterHandlerDirective("stage", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		s := new(stageHandler)
		if !h.AllArgs(&s.Act) {
			return nil, h.ArgErr()
		}
		return s, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("stage", httpcaddyfile.Before, "respond")
}

// guests holds what the modules of a test refer to by name.
var guests sync.Map

// invite makes a guest known under a name until the test ends.
func invite(t *testing.T, name string, guest any) {
	t.Helper()
	guests.Store(name, guest)
	t.Cleanup(func() { guests.Delete(name) })
}

func guest[T any](name string) (T, error) {
	g, _ := guests.Load(name)
	t, ok := g.(T)
	if !ok {
		return t, errors.New("there is no guest " + name)
	}
	return t, nil
}

// logBook keeps everything that is logged.
type logBook struct {
	t    *testing.T
	name string
	mu   sync.Mutex
	buf  bytes.Buffer
}

var books atomic.Int64

func openLogBook(t *testing.T) *logBook {
	t.Helper()
	// Caddy keeps a writer open by its name; each test has one of its own,
	// also when it runs several times.
	book := &logBook{t: t, name: fmt.Sprintf("log %d of %s", books.Add(1), t.Name())}
	invite(t, book.name, book)
	return book
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBook) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// find returns the lines whose message holds some text.
func (b *logBook) find(message string) []map[string]any {
	b.t.Helper()
	var found []map[string]any
	for line := range strings.Lines(b.text()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			b.t.Fatalf("log line %q: %v", line, err)
		}
		if msg, _ := fields["msg"].(string); strings.Contains(msg, message) {
			found = append(found, fields)
		}
	}
	return found
}

// says expects a number of lines with a message.
func (b *logBook) says(times int, message string) []map[string]any {
	b.t.Helper()
	found := b.find(message)
	if len(found) != times {
		b.t.Errorf("log lines with %q: got %d, want %d; the log:\n%s", message, len(found), times, b.text())
	}
	return found
}

// bookWriter is a log output that writes into a book.
type bookWriter struct {
	Name string `json:"name"`
}

func (*bookWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.book", New: func() caddy.Module { return new(bookWriter) }}
}
func (w *bookWriter) String() string    { return w.Name }
func (w *bookWriter) WriterKey() string { return w.Name }
func (w *bookWriter) OpenWriter() (io.WriteCloser, error) {
	book, err := guest[*logBook](w.Name)
	return bookCloser{book}, err
}

type bookCloser struct{ *logBook }

func (bookCloser) Close() error { return nil }

// rig is a store that does what a test says: it counts in memory until it is
// told to fail or to hang.
type rig struct {
	memory   *store.Memory
	mu       sync.Mutex
	err      error
	delay    time.Duration
	first    bool           // of each call only the first request is decided
	pending  *store.Pending // calls are executed, but time out
	behind   []store.Decision
	source   store.Source // of all decisions
	requests []store.Request
	refunds  []store.Refund
}

func newRig(t *testing.T, name string) *rig {
	t.Helper()
	r := &rig{memory: store.NewMemory(0)}
	invite(t, name, r)
	return r
}

// breaks makes the store fail from now on; nil mends it.
func (r *rig) breaks(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// hangs makes the store take that long.
func (r *rig) hangs(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = d
}

// lags makes calls time out although they are executed; arrive delivers the
// decisions of the last one.
func (r *rig) lags() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = new(store.Pending)
}

// arrive delivers what lags held back, and ends it.
func (r *rig) arrive() {
	r.mu.Lock()
	pending, decisions := r.pending, r.behind
	r.pending, r.behind = nil, nil
	r.mu.Unlock()
	pending.Deliver(decisions)
}

// requested returns the requests to the store since the last look.
func (r *rig) requested() []store.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests := r.requests
	r.requests = nil
	return requests
}

func (r *rig) refunded() []store.Refund {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refunds
}

// rigStore is the module of a rig.
type rigStore struct {
	Name string `json:"name"`
	*rig
}

func (*rigStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "distributed_ratelimit.stores.rig", New: func() caddy.Module { return new(rigStore) }}
}

func (s *rigStore) Provision(caddy.Context) (err error) {
	s.rig, err = guest[*rig](s.Name)
	return err
}

func (s *rigStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.AllArgs(&s.Name) {
		return d.ArgErr()
	}
	return nil
}

func (s *rigStore) String() string { return "rig " + s.Name }

func (s *rigStore) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	if wait <= 0 {
		return &store.Error{Kind: store.KindBudget, Unexecuted: true, Err: errors.New("no time to wait")}
	}
	s.mu.Lock()
	err, delay, pending, source, first := s.err, s.delay, s.pending, s.source, s.first
	s.requests = append(s.requests, requests...)
	s.mu.Unlock()
	if delay > wait {
		time.Sleep(wait)
		return &store.Error{Kind: store.KindTimeout, Err: errors.New("no reply in time")}
	}
	time.Sleep(delay)
	if first {
		fates := make([]store.Fate, len(requests))
		for i := range fates {
			decisions[i], fates[i] = store.Decision{Skipped: true}, store.FateUnexecuted
		}
		if err := s.takeHere(wait, requests[:1], decisions[:1]); err != nil {
			return err
		}
		fates[0] = store.FateDecided
		behind := new(store.Pending)
		behind.Deliver(slices.Clone(decisions))
		return &store.Error{Kind: store.KindAway, Pending: behind, Fates: fates, Err: errors.New("one of two is away")}
	}
	if pending != nil {
		behind := make([]store.Decision, len(requests))
		if err := s.takeHere(wait, requests, behind); err != nil {
			return err
		}
		s.mu.Lock()
		s.behind = behind
		s.mu.Unlock()
		return &store.Error{Kind: store.KindTimeout, Pending: pending, Err: errors.New("no reply in time")}
	}
	if err != nil {
		// What a store leaves behind when it fails means nothing.
		for i := range decisions {
			decisions[i] = store.Decision{Granted: true, Remaining: 99, Charge: store.Charge{Stamp: 1, Mark: 1}}
		}
		return err
	}
	err = s.takeHere(wait, requests, decisions)
	for i := range decisions {
		decisions[i].Source = source
	}
	return err
}

func (s *rigStore) Refund(wait time.Duration, refunds []store.Refund) error {
	s.mu.Lock()
	delay := s.delay
	s.mu.Unlock()
	time.Sleep(min(delay, wait))
	s.mu.Lock()
	s.refunds = append(s.refunds, refunds...)
	s.mu.Unlock()
	for _, g := range refunds {
		if g.Origin != rigOrigin {
			panic("the origin of a charge was lost")
		}
	}
	return s.memory.Refund(wait, refunds)
}

// rigOrigin is the identity of a rig's data.
const rigOrigin = 7

func (s *rigStore) takeHere(wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	err := s.memory.Take(time.Now(), wait, requests, decisions)
	for i := range decisions {
		if decisions[i].Charged() {
			decisions[i].Origin = rigOrigin
		}
	}
	return err
}

// far is a rig that is shared with other instances, and reports how its servers
// fare.
type far struct {
	*rig
	watch     sync.Mutex
	instances int
	watchers  map[int]func(store.Report)
	next      int
	known     []store.Report // for new watchers
}

func newFar(t *testing.T, name string, instances int) *far {
	t.Helper()
	f := &far{rig: newRig(t, name), instances: instances, watchers: make(map[int]func(store.Report))}
	guests.Store(name, f)
	return f
}

// report reports to all watchers.
func (f *far) report(r store.Report) {
	f.watch.Lock()
	defer f.watch.Unlock()
	if r.Instances = f.instances; r.Server == "" {
		r.Server = "far:1"
	}
	for _, do := range f.watchers {
		do(r)
	}
	r.Lost = ""
	f.known = []store.Report{r}
}

func (f *far) watching() int {
	f.watch.Lock()
	defer f.watch.Unlock()
	return len(f.watchers)
}

// farStore is the module of a far.
type farStore struct {
	rigStore
	IsCautious bool `json:"cautious,omitempty"`
	far        *far
}

func (*farStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "distributed_ratelimit.stores.far", New: func() caddy.Module { return new(farStore) }}
}

func (s *farStore) Provision(caddy.Context) (err error) {
	if s.far, err = guest[*far](s.Name); err == nil {
		s.rig = s.far.rig
	}
	return err
}

func (s *farStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	args := d.RemainingArgs()
	s.Name, s.IsCautious = args[0], len(args) > 1
	return nil
}

func (s *farStore) String() string { return "far " + s.Name }
func (s *farStore) FallbackSettings() fallback.Settings {
	return fallback.Settings{Cautious: s.IsCautious}
}

func (s *farStore) Instances() int {
	s.far.watch.Lock()
	defer s.far.watch.Unlock()
	return s.far.instances
}

func (s *farStore) Watch(do func(store.Report)) (stop func()) {
	s.far.watch.Lock()
	defer s.far.watch.Unlock()
	id := s.far.next
	s.far.next++
	s.far.watchers[id] = do
	for _, r := range s.far.known {
		do(r)
	}
	return func() {
		s.far.watch.Lock()
		defer s.far.watch.Unlock()
		delete(s.far.watchers, id)
	}
}

// stageHandler runs a function of a test as an HTTP handler.
type stageHandler struct {
	Act string `json:"act"`
}

type act func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error

func (*stageHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.stage", New: func() caddy.Module { return new(stageHandler) }}
}

func (s *stageHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	play, err := guest[act](s.Act)
	if err != nil {
		return err
	}
	return play(w, r, next)
}

// brokenMatcher fails, on all paths or on one.
type brokenMatcher struct {
	Path string `json:"path,omitempty"`
}

func (*brokenMatcher) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.matchers.broken", New: func() caddy.Module { return new(brokenMatcher) }}
}

func (m *brokenMatcher) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.Args(&m.Path)
	return nil
}

func (m *brokenMatcher) MatchWithError(r *http.Request) (bool, error) {
	if m.Path != "" && m.Path != r.URL.Path {
		return false, nil
	}
	return false, caddyhttp.Error(http.StatusTeapot, errors.New("the matcher is broken"))
}

// roamingSource is an IP source whose ranges change.
type roamingSource struct {
	Name string `json:"name"`
}

type roaming struct {
	mu     sync.Mutex
	ranges []netip.Prefix
}

func (r *roaming) set(ranges ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ranges = nil
	for _, text := range ranges {
		r.ranges = append(r.ranges, netip.MustParsePrefix(text))
	}
}

func (*roamingSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.ip_sources.roaming", New: func() caddy.Module { return new(roamingSource) }}
}

func (s *roamingSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.AllArgs(&s.Name) {
		return d.ArgErr()
	}
	return nil
}

func (s *roamingSource) GetIPRanges(*http.Request) []netip.Prefix {
	r, err := guest[*roaming](s.Name)
	if err != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ranges
}
