package e2e

import (
	"flag"
	"fmt"
	"math"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

var update = flag.Bool("update", false, "write the measured table of faults into docs/faults-measured.md")

// What every fault meets: some instances on one store, limits shared.
const (
	faultInstances = 3
	faultLimit     = 60
	faultWindow    = 2 * time.Second
	faultBudget    = 100 * time.Millisecond
	// The fault begins when the limit has just been used up for the second
	// time: what is forgotten then is granted again.
	healthyTime = 2400 * time.Millisecond
	faultTime   = 3 * time.Second
)

// hotClient asks for far more than its limit on every instance. Others are
// seen once each.
const hotClient = "192.0.2.1"

// fault is something that goes wrong between the instances and Redis, or in
// it, while requests come.
type fault struct {
	name string
	long time.Duration // faultTime if it is 0

	// servers starts what the instances talk to; one server behind a proxy if
	// it is nil.
	servers func(t *testing.T) *rig
	// before is called before there are instances.
	before func(t *testing.T, r *rig)
	// inject begins the fault, and returns what ends it.
	inject func(t *testing.T, r *rig) (end func())

	// most is the largest share of the limit that may be granted in any
	// interval of one window.
	most float64
	// quiet faults are none for the limiter: nothing is decided locally.
	quiet bool
	// stays is for faults after which the store does not come back, and absent
	// for those before which it was never there.
	stays, absent bool
	// failover is for faults that last until another server has taken over:
	// recovery is reckoned from their beginning.
	failover bool
}

// rig is the servers of a fault, and the instances on them.
type rig struct {
	server *redistest.Server
	// Each instance has a proxy of its own: in one process, stores of equal
	// addresses would share what they know, as over a reload.
	proxies   network
	options   func(i int) string // of the store of an instance, in a Caddyfile
	authority *redistest.Authority
	sentinel  *redistest.Sentinel
	cluster   *redistest.Cluster
	hot       string // key of the log of hotClient, on a cluster
	instances []*instance

	// connections is how many were made so far; nil if only those that are
	// open can be counted.
	connections func() int
}

// findHot waits until the log of hotClient, the only one so far, is there.
func (r *rig) findHot(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		r.instances[0].get(hotClient)
		for _, node := range r.cluster.Nodes {
			for _, key := range node.Keys(t) {
				if !strings.Contains(key, ":instances") {
					r.hot = key
					return
				}
			}
		}
	}
	t.Fatal("no log appears in the cluster")
}

// network is the proxies that the instances talk through.
type network []*redistest.Proxy

func (n network) each(do func(p *redistest.Proxy)) {
	for _, p := range n {
		do(p)
	}
}

func (n network) sum(of func(p *redistest.Proxy) int) (sum int) {
	n.each(func(p *redistest.Proxy) { sum += of(p) })
	return sum
}

// oneServer is a rig of one server behind proxies.
func oneServer(t *testing.T, args ...string) *rig {
	return behindProxies(t, redistest.Start(t, args...), "")
}

// behindProxies is a rig of a server, with further options of the store.
func behindProxies(t *testing.T, server *redistest.Server, options string) *rig {
	r := &rig{server: server}
	for range faultInstances {
		r.proxies = append(r.proxies, redistest.NewProxy(t, server.Addr))
	}
	r.options = func(i int) string { return "address " + r.proxies[i].Addr + "\n" + options }
	r.connections = func() int { return r.proxies.sum((*redistest.Proxy).Accepted) }
	return r
}

// start provisions the instances.
func (r *rig) start(t *testing.T) {
	t.Helper()
	for i := range faultInstances {
		r.instances = append(r.instances, newInstance(t, faultConfig(r.options(i))))
	}
}

// faultConfig is the site of each instance. The body tells who decided.
func faultConfig(options string) string {
	return fmt.Sprintf(`{
	admin off
	log {
		level ERROR
	}
	distributed_ratelimit {
		store redis {
			%s
			instances %d
		}
		budget %v
	}
}
:80 {
	distributed_ratelimit %d %v
	respond {http.distributed_ratelimit.source}
}
`, options, faultInstances, faultBudget, faultLimit, faultWindow)
}

// seen is a request, and what came of it.
type seen struct {
	reply
	instance int
	hot      bool
}

func (s *seen) took() time.Duration { return s.span.To.Sub(s.span.From) }

// local reports whether an instance decided by itself because the store was
// away. Of refusals it is not known.
func (s *seen) local() bool { return s.status == http.StatusOK && s.body == "local" }

// load sends requests to the instances until it is stopped.
type load struct {
	mu      sync.Mutex
	all     []seen
	pauses  []time.Duration // by how much this machine overslept meanwhile
	files   int             // most that were open at a time
	stop    chan struct{}
	running sync.WaitGroup
}

func startLoad(r *rig) *load {
	l := &load{stop: make(chan struct{})}
	every := func(pause time.Duration, do func(n int)) {
		l.running.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-l.stop:
					return
				case <-time.After(pause):
					do(n)
				}
			}
		})
	}
	for i, in := range r.instances {
		ask := func(client string, hot bool) {
			s := seen{reply: in.get(client), instance: i, hot: hot}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.all = append(l.all, s)
		}
		for range 2 {
			every(20*time.Millisecond, func(int) { ask(hotClient, true) })
		}
		every(20*time.Millisecond, func(n int) {
			ask(fmt.Sprintf("10.%d.%d.%d", i, n/256, n%256), false)
		})
	}
	const tick = 5 * time.Millisecond
	l.running.Go(func() {
		for {
			began := time.Now()
			select {
			case <-l.stop:
				return
			case <-time.After(tick):
				over := time.Since(began) - tick
				open := openFiles()
				l.mu.Lock()
				l.files = max(l.files, open)
				l.pauses = append(l.pauses, over)
				l.mu.Unlock()
			}
		}
	})
	return l
}

func (l *load) end() []seen {
	close(l.stop)
	l.running.Wait()
	return l.all
}

// since returns when each instance decided by the store again after at, if all
// did.
func (l *load) back(instances int, at time.Time) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := make(map[int]time.Time)
	for i := range l.all {
		s := &l.all[i]
		shared := s.status == http.StatusOK && s.body != "local"
		if !s.hot && shared && s.span.From.After(at) {
			if _, ok := first[s.instance]; !ok {
				first[s.instance] = s.span.To
			}
		}
	}
	last := at
	for _, t := range first {
		if t.After(last) {
			last = t
		}
	}
	return last, len(first) == instances
}

// row is what is known about a fault afterwards.
type row struct {
	name        string
	decisions   string
	share       float64       // 0 if it was not measured
	added       time.Duration // likewise
	connections string
	recovery    string
}

func (r row) String() string {
	share, added := "–", "–"
	if r.share > 0 {
		share = fmt.Sprintf("%.2f", r.share)
	}
	if r.added > 0 {
		added = milliseconds(r.added)
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s |", r.name, r.decisions, share, added, r.connections, r.recovery)
}

func milliseconds(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
}

// percentile is the nearest-rank one.
func percentile(all []time.Duration, p float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[max(0, int(math.Ceil(p*float64(len(sorted))))-1)]
}

// run makes a fault happen to instances under load, and checks what every
// fault must leave standing: no answer but 200 and 429, no request held up for
// longer than the budget and a tenth, the limit within its bound, the store in
// use again soon, and nothing that grew.
func (f *fault) run(t *testing.T) row {
	var r *rig
	if f.servers != nil {
		r = f.servers(t)
	} else {
		r = oneServer(t)
	}
	if f.before != nil {
		f.before(t, r)
	}
	r.start(t)
	if r.cluster != nil {
		r.findHot(t)
	}
	for _, in := range r.instances {
		// Until what is built once is there, and the store is known.
		for i := 0; in.get("192.0.2.250").body == "local" && i < 100 && !f.absent; i++ {
			time.Sleep(10 * time.Millisecond)
		}
	}

	l := startLoad(r)
	began := time.Now()
	time.Sleep(healthyTime)
	held := holding(r)
	connections := 0
	if r.connections != nil {
		connections = r.connections()
	}
	start := time.Now()
	end := f.inject(t, r)
	long := f.long
	if long == 0 {
		long = faultTime
	}
	time.Sleep(time.Until(start.Add(long)))
	end()
	over := time.Now()
	recovered, back := over, false
	for deadline := over.Add(45 * time.Second); !back && time.Now().Before(deadline) && !f.stays; {
		time.Sleep(20 * time.Millisecond)
		recovered, back = l.back(len(r.instances), over)
	}
	if !back && !f.stays {
		t.Errorf("the store is not in use again 30 s after the fault")
	}
	time.Sleep(faultWindow) // what is granted now adds to what was granted before
	all := l.end()

	result := row{name: f.name, connections: fmt.Sprintf("at most %d open", max(0, l.files-held.files)), recovery: fmt.Sprintf("%.1f s", recovered.Sub(over).Seconds())}
	if f.stays {
		result.recovery = "none"
	}
	if f.failover {
		last := start
		for i := range all {
			if s := &all[i]; s.local() && s.span.To.After(last) {
				last = s.span.To
			}
		}
		result.recovery = fmt.Sprintf("%.1f s, failover included", last.Sub(start).Seconds())
	}
	if r.connections != nil {
		result.connections = fmt.Sprint(r.connections() - connections)
	}
	statuses := make(map[int]int)
	var spans []storetest.Span
	var before, during []time.Duration
	local := 0
	for i := range all {
		s := &all[i]
		statuses[s.status]++
		if s.hot && s.granted() {
			spans = append(spans, s.span)
		}
		if s.local() {
			local++
		}
		if s.span.From.Before(start) {
			if s.span.From.After(began.Add(healthyTime / 2)) {
				before = append(before, s.took())
			}
		} else if s.span.From.Before(recovered) {
			during = append(during, s.took())
		}
	}
	most, at := storetest.Most(spans, faultWindow)
	result.share = float64(most) / faultLimit
	result.decisions = fmt.Sprintf("%d × 200, %d × 429", statuses[http.StatusOK], statuses[http.StatusTooManyRequests])
	for status, n := range statuses {
		if status != http.StatusOK && status != http.StatusTooManyRequests {
			t.Errorf("%d answers with status %d", n, status)
			result.decisions += fmt.Sprintf(", %d × %d", n, status)
		}
	}
	bound := f.most
	if local > 0 && bound < 2 {
		bound = 2 // a busy machine may look like an outage
	}
	if result.share > bound {
		t.Errorf("%d granted in the %v from %v after the fault began, limit %d: %.2f of it, want at most %.2f",
			most, faultWindow, at.Sub(start), faultLimit, result.share, bound)
	}
	result.added = max(0, percentile(during, 0.99)-percentile(before, 0.5))
	if noise := percentile(l.pauses, 0.99); result.added > faultBudget+faultBudget/10+2*noise {
		t.Errorf("99 %% of %d requests were answered within %v, want %v and a tenth (and this machine overslept by up to %v)",
			len(during), percentile(during, 0.99), faultBudget, noise)
	}
	// What timed out may be under way for a moment.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now := holding(r)
		if now.within(held, r) {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("%+v after the fault, %+v before it with requests under way", now, held)
			break
		}
	}
	t.Logf("%v (%d decided locally; overslept %v)", result, local, percentile(l.pauses, 0.99))
	return result
}

// holds is what there is of things that could grow.
type holds struct{ goroutines, files, connections int }

func holding(r *rig) holds {
	h := holds{goroutines: runtime.NumGoroutine(), files: openFiles()}
	h.connections = r.proxies.sum((*redistest.Proxy).Open)
	return h
}

// within reports whether nothing has grown, but for connections, of which each
// instance may have 9 to a server. Through the proxy, which is in this process
// too, each takes three files and a few goroutines.
func (h holds) within(before holds, r *rig) bool {
	const pool = faultInstances * 9
	switch {
	case r.proxies != nil:
		more := max(0, h.connections-before.connections)
		return h.connections <= pool && h.goroutines <= before.goroutines+4*more && h.files <= before.files+3*more+6
	case r.cluster != nil:
		return h.goroutines <= before.goroutines && h.files <= before.files+pool*len(r.cluster.Nodes)
	default:
		return h.goroutines <= before.goroutines && h.files <= before.files+pool
	}
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0 // not Linux
	}
	return len(entries)
}

// table is the rows of all tests that measure faults, in the order in which
// the manual has them.
var table struct {
	mu   sync.Mutex
	rows []row
}

func note(r row) {
	table.mu.Lock()
	defer table.mu.Unlock()
	table.rows = append(table.rows, r)
}

const (
	tableBegin = "<!-- measured by go test ./internal/e2e -run Fault -update -->\n"
	tableEnd   = "<!-- end of what was measured -->\n"
	tableHead  = "| fault | what clients saw | largest share of *L* in any *W* | added latency, p99 | connections opened | recovery |\n|---|---|---|---|---|---|\n"
	manual     = "../../docs/faults-measured.md"
)

// writeTable puts what was measured into the manual. Rows of faults that were
// not measured this time stay.
func writeTable() error {
	text, err := os.ReadFile(manual)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(text), tableBegin)
	old, tail, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table", manual)
	}
	lines := make(map[string]string)
	var names []string
	put := func(name, line string) {
		if _, ok := lines[name]; !ok {
			names = append(names, name)
		}
		lines[name] = line
	}
	for line := range strings.Lines(old) {
		if name := rowName(line); name != "" {
			put(name, strings.TrimRight(line, "\n"))
		}
	}
	for _, r := range table.rows {
		put(r.name, r.String())
	}
	var b strings.Builder
	for _, name := range names {
		b.WriteString(lines[name] + "\n")
	}
	return os.WriteFile(manual, []byte(head+tableBegin+tableHead+b.String()+tableEnd+tail), 0o644)
}

var rowPattern = regexp.MustCompile(`^\| ([^|]+) \|`)

// rowName is the fault that a line of the table is about, "" if there is none.
func rowName(line string) string {
	m := rowPattern.FindStringSubmatch(line)
	if m == nil || m[1] == "fault" {
		return ""
	}
	return m[1]
}

// TestFaultsAreInTheManual: the table has a row for each fault, and no other.
func TestFaultsAreInTheManual(t *testing.T) {
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), tableBegin)
	body, _, ok := strings.Cut(rest, tableEnd)
	if !ok {
		t.Fatalf("%s has no table of faults", manual)
	}
	want := make(map[string]bool)
	for _, f := range faults {
		want[f.name] = true
	}
	for _, name := range otherFaults {
		want[name] = true
	}
	for line := range strings.Lines(body) {
		name := rowName(line)
		if name != "" && !want[name] {
			t.Errorf("nothing measures the fault %q", name)
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("the table lacks the fault %q; run: go test ./internal/e2e -run Fault -update", name)
	}
}
