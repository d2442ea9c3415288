package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

const monitoring = "../../docs/monitoring/"

// debianProgram finds a program of Debian's package prometheus.
func debianProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("no %s in PATH; install it (apt-get install prometheus, brew install prometheus), or run scripts/test-needs: %v", name, err)
	}
	return path
}

// The alert rules are right over the times that they are written for. The expectations
// leave out the annotations, which would stand there a second time.
func TestAlertRules(t *testing.T) {
	promtool := debianProgram(t, "promtool")
	rules, err := os.ReadFile(monitoring + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("testdata/alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	bare := regexp.MustCompile(`(?m)^ {8}annotations:\n(?: {10}.*\n)*`).ReplaceAllString(string(rules), "")
	dir := t.TempDir()
	for name, text := range map[string]string{"whole.yml": string(rules), "alerts.yml": bare, "alerts_test.yml": string(tests)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"check", "rules", "whole.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if strings.Count(string(tests), "alertname: "+m[1]) < 2 {
			t.Errorf("alert %s: testdata/alerts_test.yml does not say when it fires and when not", m[1])
		}
	}
}

// Two clusters that one Prometheus scrapes, as two jobs, may have stores and zones of the same
// names. Nothing adds them up, or compares one with the other.
func TestMonitoringTellsClustersApart(t *testing.T) {
	for file, sums := range map[string]string{"alerts.yml": `(?:by|on) \((.*?)\)`, "dashboard.json": `by \((.*?store.*?)\)`} {
		text, err := os.ReadFile(monitoring + file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(sums).FindAllStringSubmatch(string(text), -1)
		if len(found) < 5 {
			t.Errorf("%s: %d sums were found, which is too few to be read right", file, len(found))
		}
		for _, by := range found {
			if !strings.Contains(by[1], "job") {
				t.Errorf("%s: %s adds clusters up; write job as well", file, by[0])
			}
		}
	}
	text, err := os.ReadFile(monitoring + "dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, expr := range regexp.MustCompile(`"expr": (".*")`).FindAllStringSubmatch(string(text), -1) {
		if strings.Count(expr[1], "caddy_") != strings.Count(expr[1], `{job=~\"$job\"`) {
			t.Errorf("dashboard.json: %s is not about the chosen job alone", expr[1])
		}
	}
}

// prometheus is a real one, which scrapes several times a second.
type prometheus struct {
	t      *testing.T
	addr   string
	output *lockedBuffer

	provoked []string // alerts
}

// hasty are rules and queries for a test that has no minutes: all spans are some seconds,
// and nothing has to last before an alert fires.
func hasty(text string) string {
	text = regexp.MustCompile(`(?m)^( *for:) \w+$`).ReplaceAllString(text, "$1 0s")
	return regexp.MustCompile(`\[(\d+[mh]|\$__rate_interval)\]`).ReplaceAllString(text, "[6s]")
}

func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	p := &prometheus{t: t, addr: freeAddr(t), output: new(lockedBuffer)}
	rules, err := os.ReadFile(monitoring + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"alerts.yml": hasty(string(rules)),
		"prometheus.yml": fmt.Sprintf(`
global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: caddy
    static_configs: [{targets: [%q]}]
`, target),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(debianProgram(t, "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+p.addr, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = p.output, p.output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return p
}

type sample struct {
	Metric map[string]string
	Value  [2]any
}

// query returns the samples of an expression, nil if Prometheus is not there yet.
func (p *prometheus) query(expr string) []sample {
	p.t.Helper()
	response, err := http.Get("http://" + p.addr + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil
	}
	var answer struct {
		Status, Error string
		Data          struct{ Result []sample }
	}
	if response.StatusCode == http.StatusServiceUnavailable {
		return nil // it is starting
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
		p.t.Fatalf("query %s: %v %s", expr, err, body)
	}
	return answer.Data.Result
}

// number is the value of an expression that has one sample, 0 if it has none.
func (p *prometheus) number(expr string) (n float64) {
	p.t.Helper()
	if samples := p.query(expr); len(samples) > 0 {
		_, _ = fmt.Sscan(samples[0].Value[1].(string), &n)
	}
	return n
}

// firing lists the alerts that fire, by name and zone, but for the one that a busy machine
// brings about.
func (p *prometheus) firing() []string {
	p.t.Helper()
	var names []string
	for _, s := range p.query(`ALERTS{alertstate="firing", alertname!="RateLimitStoreSlow"}`) {
		names = append(names, strings.TrimSpace(s.Metric["alertname"]+" "+s.Metric["zone"]))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// waits waits until something holds, while do is done over and over.
func (p *prometheus) waits(what string, do func(), holds func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("not within a minute: %s; alerts that fire: %q\nPrometheus: %s", what, p.firing(), p.output)
		}
		do()
	}
}

// fires wants an alert to fire, and meanwhile none that was not provoked. What else the
// cause brings about are its companions.
func (p *prometheus) fires(alert string, do func(), companions ...string) {
	p.t.Helper()
	p.provoked = append(append(p.provoked, alert), companions...)
	p.waits(alert+" fires", do, func() bool {
		firing := p.firing()
		for _, other := range firing {
			if !slices.Contains(p.provoked, other) {
				p.t.Fatalf("waiting for %s: %s fires", alert, other)
			}
		}
		return slices.Contains(firing, alert)
	})
}

const watched = `{
	admin ADMIN
	distributed_ratelimit {
		store redis redis://%s
		budget 2s
	}
}
ADDR {
	distributed_ratelimit {
		zone wide {
			key {header.X-Client}
			events 10000
			window 1h
			block_for 1h
		}
		zone small {
			match path /small
			key {header.X-Client}
			events 5
			window 1h
		}
		zone flooded {
			match path /flooded
			events 50
			window 1h
		}
		zone logins {
			match path /logins
			key {header.X-Client}
			events 100
			window 1h
			count_if status 401
		}
		zone tried {
			key {header.X-Client}
			tier {header.X-Plan} {
				paid 1000
				default 500
			}
			window 1h
			dry_run
		}
		zone flights {
			concurrent 100
		}
		zone tokens {
			match path /v1/*
			events 100000
			window 1h
			usage openai {
				max_output 100
			}
		}
	}
	respond "ok"
}
`

// Each alert fires when the thing happens, and not otherwise; each query of the dashboard
// has an answer. With a real Caddy, Redis and Prometheus.
func TestMonitoring(t *testing.T) {
	server := redistest.Start(t)
	caddy := startProcess(t, fmt.Sprintf(watched, server.Addr))
	p := startPrometheus(t, caddy.admin)
	clients := 0
	visit := func(path, client string) int {
		t.Helper()
		request, err := http.NewRequest(http.MethodGet, "http://"+caddy.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Client", client)
		response, err := caddy.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		return response.StatusCode
	}
	newcomers := func(path string) {
		for range 5 {
			clients++
			visit(path, fmt.Sprint("client ", clients))
		}
	}

	// While all is well nothing fires, whatever clients do within their limits.
	p.waits("a start", func() { newcomers("/") }, func() bool {
		return p.number("caddy_distributed_ratelimit_store_up") == 1 &&
			p.number("sum(rate(caddy_distributed_ratelimit_requests_total[6s]))") > 0
	})
	const scrapes = "count_over_time(up[30m])"
	begin := p.number(scrapes)
	p.waits("ten scrapes", func() { newcomers("/logins") }, func() bool { return p.number(scrapes) >= begin+10 })
	if firing := p.firing(); len(firing) > 0 {
		t.Errorf("while all is well: got %q, want no alert", firing)
	}
	p.answersDashboard()

	p.fires("RateLimitNear small", func() {
		clients++
		for range 5 {
			visit("/small", fmt.Sprint("client ", clients))
		}
	})
	// The last tenth of its 50 units are near misses: a tenth, or more, as scrapes see them.
	p.fires("RateLimitFlood flooded", func() {
		for range 50 {
			visit("/flooded", "somebody")
		}
	}, "RateLimitNear flooded")
	server.Do(t, "FLUSHALL")
	p.fires("RateLimitDataLost", func() {})

	// The first requests use up their time for slots; when it is back, units are reported.
	server.Stop()
	p.fires("RateLimitStoreAway", func() { newcomers("/") }, "RateLimitStoreErrors", "RateLimitUnreported")
	if worst := p.number("caddy_distributed_ratelimit_worst_case_limits"); worst < 2 {
		t.Errorf("while the store is away: worst_case_limits %v, want at least 2", worst)
	}
	server.Cont()
	p.waits("RateLimitStoreAway ends", func() {}, func() bool { return !slices.Contains(p.firing(), "RateLimitStoreAway") })
}

// answersDashboard runs all queries of the dashboard.
func (p *prometheus) answersDashboard() {
	p.t.Helper()
	file, err := os.ReadFile(monitoring + "dashboard.json")
	if err != nil {
		p.t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(file, &dashboard); err != nil {
		p.t.Fatal(err)
	}
	queries := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries++
			expr := hasty(strings.NewReplacer("$job", ".*", "$zone", ".*", "$instance", ".*").Replace(target.Expr))
			if len(p.query(expr)) == 0 {
				p.t.Errorf("panel %q: no series for %s", panel.Title, expr)
			}
		}
	}
	if queries < 30 {
		p.t.Errorf("the dashboard has %d queries, which is too few to be read right", queries)
	}
}
