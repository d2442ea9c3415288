package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

const composeFolder = "examples/compose/"

type composeService struct {
	Image       string
	Build       string
	Environment map[string]string
	Volumes     []string
	Ports       []string
	Networks    composeNetworks
	Healthcheck struct{ Test []string }
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	Security    []string `yaml:"security_opt"`
	Memory      string   `yaml:"mem_limit"`
	Processes   int      `yaml:"pids_limit"`
	Logging     struct{ Driver string }
}

// composeNetworks are the networks of a service, by name, with its address if it has
// one of its own.
type composeNetworks map[string]string

func (n *composeNetworks) UnmarshalYAML(node *yaml.Node) error {
	*n = make(composeNetworks)
	var names []string
	if node.Decode(&names) == nil {
		for _, name := range names {
			(*n)[name] = ""
		}
		return nil
	}
	var full map[string]struct {
		Address string `yaml:"ipv4_address"`
	}
	err := node.Decode(&full)
	for name, network := range full {
		(*n)[name] = network.Address
	}
	return err
}

// composed is the set-up of examples/compose with processes in the place of its
// containers. Each service has a loopback address of its own, and each port of a
// container is one free port, the same for all services.
type composed struct {
	t         *testing.T
	services  map[string]composeService
	addresses map[string]string // by service
	ports     map[string]string // by port of the container
	redis     *redistest.Server
}

func compose(t *testing.T) *composed {
	t.Helper()
	c := &composed{t: t, addresses: make(map[string]string), ports: make(map[string]string)}
	var file struct{ Services map[string]composeService }
	readYAML(t, composeFolder+"compose.yaml", &file)
	c.services = file.Services
	n := 1
	for name := range c.services {
		n++
		c.addresses[name] = fmt.Sprintf("127.0.0.%d", n)
	}
	for _, port := range []string{"8080", "9180", "3000"} {
		_, c.ports[port], _ = net.SplitHostPort(freeAddr(t))
	}
	c.redis = redistest.Start(t, redisArguments(t, composeFolder+"redis.conf")...)
	return c
}

// redisArguments is a configuration file as arguments, since the test's server has its
// own port and folder.
func redisArguments(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(root + path)
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		args = append(args, "--"+fields[0])
		for _, value := range fields[1:] {
			args = append(args, strings.Trim(value, `"`))
		}
	}
	return args
}

// at is where something listens here that is service:port there.
func (c *composed) at(service, port string) string {
	if service == "redis" {
		return c.redis.Addr
	}
	return net.JoinHostPort(c.addresses[service], c.ports[port])
}

var (
	hostPort  = regexp.MustCompile(`\b([a-z][a-z0-9-]*):(\d{4})\b`)
	siteOpens = regexp.MustCompile(`(?m)^(?:http://:\d{4}|\{\$SITE.*\}) \{$`)
	plainPort = regexp.MustCompile(`\b(8080|9180|3000)\b`)
	addresses = regexp.MustCompile(`\b172\.30\.8[12]\.\d+/\d+\b`)
)

// value is that of a variable of the environment, with the addresses that are here.
func (c *composed) value(service, value string) string {
	value = hostPort.ReplaceAllStringFunc(value, func(s string) string {
		name, port, _ := strings.Cut(s, ":")
		if _, ok := c.services[name]; !ok {
			c.t.Errorf("%s names %s, and there is no such service", service, s)
		}
		return c.at(name, port)
	})
	value = strings.ReplaceAll(value, "http://127.0.0.1:", "http://"+c.addresses[service]+":")
	// The balancer and Prometheus, whose connections here come from this address.
	return addresses.ReplaceAllString(plainPort.ReplaceAllStringFunc(value, func(port string) string { return c.ports[port] }), "127.0.0.1/32")
}

// caddyfile is the file that a service has mounted.
func (c *composed) caddyfile(service string) string {
	c.t.Helper()
	for _, volume := range c.services[service].Volumes {
		if source, ok := strings.CutSuffix(volume, ":/etc/caddy/Caddyfile:ro"); ok {
			text, err := os.ReadFile(filepath.Join(root+composeFolder, source))
			if err != nil {
				c.t.Fatal(err)
			}
			return string(text)
		}
	}
	c.t.Fatalf("%s has no Caddyfile", service)
	return ""
}

// start runs a service that is a Caddy.
func (c *composed) start(service string) *process {
	c.t.Helper()
	text := siteOpens.ReplaceAllString(c.caddyfile(service), "$0\n\tbind "+c.addresses[service])
	text = plainPort.ReplaceAllStringFunc(text, func(port string) string { return c.ports[port] })
	// On a busy machine Redis would be away for a moment, and more be granted.
	text = strings.Replace(text, "\tdistributed_ratelimit {\n\t\tstore", "\tdistributed_ratelimit {\n\t\tbudget 30s\n\t\tstore", 1)
	text = strings.Replace(text, "\t\t\tinstances 3\n", "\t\t\tinstances 3\n\t\t\tdial_timeout 20s\n", 1)
	env := []string{}
	for name, value := range c.services[service].Environment {
		env = append(env, name+"="+c.value(service, value))
	}
	p := &process{addr: c.at(service, "9180"), env: env, output: new(lockedBuffer)}
	p.config = filepath.Join(c.t.TempDir(), "Caddyfile")
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	p.client = &http.Client{Timeout: time.Minute}
	c.t.Cleanup(p.kill)
	p.start(c.t)
	if status, _ := c.fetch(c.value(service, c.services[service].Environment["HEALTH_URL"])); status != http.StatusOK {
		c.t.Errorf("the health check of %s: status %d\n%s", service, status, p.output)
	}
	return p
}

func (c *composed) fetch(url string) (int, string) {
	c.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		c.t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Error(err)
	}
	return resp.StatusCode, string(body)
}

// Three Caddys behind one port, with the files of examples/compose: the one port grants
// exactly the limit, whatever a client writes into its header, all three have had their
// part in it, and Prometheus would find them.
func TestCompose(t *testing.T) {
	c := compose(t)
	for _, service := range []string{"backend", "caddy-1", "caddy-2", "caddy-3"} {
		c.start(service)
	}
	balancer := c.start("balancer")
	balancer.addr = c.at("balancer", "8080")

	var rec record
	crowd(90, func(i int) {
		r := balancer.get(t, "/", "X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i), "Forwarded", fmt.Sprintf("for=192.0.2.%d", i))
		rec.add(r)
		if r.status == http.StatusOK && !strings.HasPrefix(r.body, "Hello by way of 127.0.0.1.") {
			t.Errorf("the body is %q", r.body)
		}
	})
	rec.strict(t, 30, time.Minute)
	if len(rec.spans) < 30 {
		t.Errorf("%d granted of 90, want 30: %d refused, others %v", len(rec.spans), rec.refused, rec.other)
	}
	if keys := logKeys(t, c.redis); len(keys) != 1 {
		t.Errorf("the 90 requests of one client have the keys %q in Redis, want one", keys)
	}
	// The balancer's word for who the client is counts: another client has its own limit.
	other := &process{addr: balancer.addr, client: &http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 99)}}).DialContext,
	}}}
	if r := other.get(t, "/"); r.status != http.StatusOK {
		t.Errorf("another client: status %d, want 200", r.status)
	}
	// What is neither the balancer nor Prometheus is believed nothing, and told nothing.
	other.addr = c.at("caddy-1", "8080")
	if r := other.get(t, "/", "X-Forwarded-For", "192.0.2.200"); r.status != http.StatusOK {
		t.Errorf("past the balancer: status %d, want 200", r.status)
	}
	if keys := logKeys(t, c.redis); len(keys) != 2 {
		t.Errorf("two clients, one of them also past the balancer, have the keys %q in Redis", keys)
	}
	other.addr = c.at("caddy-1", "9180")
	for path, want := range map[string]int{"/metrics": http.StatusForbidden, "/healthz": http.StatusOK} {
		if r := other.get(t, path); r.status != want {
			t.Errorf("%s for a stranger: status %d, want %d", path, r.status, want)
		}
	}

	var prometheus struct {
		Scrape []struct {
			Path   string                       `yaml:"metrics_path"`
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	readYAML(t, composeFolder+"prometheus.yml", &prometheus)
	targets := prometheus.Scrape[0].Static[0].Targets
	if len(targets) != 3 || prometheus.Scrape[0].Path != "" {
		t.Errorf("Prometheus scrapes %v at %q", targets, prometheus.Scrape[0].Path)
	}
	for _, target := range targets {
		name, port, _ := strings.Cut(target, ":")
		_, text := c.fetch("http://" + c.at(name, port) + "/metrics")
		if requests(text, "granted", "store")+requests(text, "refused", "store")+requests(text, "granted", "lease")+requests(text, "refused", "lease") == 0 {
			t.Errorf("%s has had no request:\n%s", target, text)
		}
	}
	for setting, want := range map[string]string{"maxmemory-policy": "noeviction", "appendonly": "yes", "maxmemory": "268435456"} {
		if got := fmt.Sprint(c.redis.Do(t, "config", "get", setting)); !strings.Contains(got, want) {
			t.Errorf("Redis has %s, want %s", got, want)
		}
	}
}

// What can be seen of the rest: nothing is published but the one port and, to this
// machine alone, what shows metrics; images have versions; every file is there; Redis is
// on no network but its own; no container has more rights than it needs.
func TestComposeFile(t *testing.T) {
	var file struct{ Services map[string]composeService }
	readYAML(t, composeFolder+"compose.yaml", &file)
	published := map[string][]string{"balancer": {"${PORT:-8080}:8080"}, "prometheus": {"127.0.0.1:9090:9090"}, "grafana": {"127.0.0.1:3000:3000"}}
	onNetwork := make(map[string][]string)
	built := 0
	for name, service := range file.Services {
		if !slices.Equal(service.Ports, published[name]) {
			t.Errorf("%s publishes %v, want %v", name, service.Ports, published[name])
		}
		if service.Build != "" {
			built++
		}
		if service.Image != "caddy-distributed-ratelimit" && !regexp.MustCompile(`:v?\d+\.\d+\.\d+`).MatchString(service.Image) {
			t.Errorf("%s is of %q, without a version", name, service.Image)
		}
		for _, volume := range service.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if !strings.HasPrefix(source, ".") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root+composeFolder, source)); err != nil {
				t.Errorf("%s mounts %s: %v", name, source, err)
			}
			if !strings.HasSuffix(volume, ":ro") {
				t.Errorf("%s can write to %s", name, source)
			}
		}
		for network := range service.Networks {
			onNetwork[network] = append(onNetwork[network], name)
		}
		if !service.ReadOnly || !slices.Equal(service.CapDrop, []string{"ALL"}) || !slices.Equal(service.Security, []string{"no-new-privileges:true"}) ||
			service.Memory == "" || service.Processes == 0 || service.Logging.Driver != "local" {
			t.Errorf("%s is not as confined as it can be: %+v", name, service)
		}
	}
	// More services that build the same image would write it at the same time.
	if built != 1 {
		t.Errorf("%d services build the image, want 1", built)
	}
	for network, want := range map[string]string{
		"counts": "caddy-1 caddy-2 caddy-3 redis",
		"front":  "balancer caddy-1 caddy-2 caddy-3",
		"back":   "backend caddy-1 caddy-2 caddy-3",
		"watch":  "caddy-1 caddy-2 caddy-3 prometheus",
	} {
		slices.Sort(onNetwork[network])
		if got := strings.Join(onNetwork[network], " "); got != want {
			t.Errorf("on the network %s are %s, want %s", network, got, want)
		}
	}
	if got := file.Services["redis"].Networks; len(got) != 1 {
		t.Errorf("Redis is on %v", got)
	}
	for _, name := range []string{"caddy-1", "caddy-2", "caddy-3"} {
		if got, want := file.Services[name].Environment["BALANCER"], file.Services["balancer"].Networks["front"]+"/32"; got != want {
			t.Errorf("%s believes %s, and the balancer is %s", name, got, want)
		}
	}
}

// Prometheus takes its configuration and the alerts as they are mounted. The health check
// of Redis knows a server that loads its data from one that answers.
func TestComposeServices(t *testing.T) {
	var file struct{ Services map[string]composeService }
	readYAML(t, composeFolder+"compose.yaml", &file)
	dir := t.TempDir()
	rules := 0
	for _, volume := range file.Services["prometheus"].Volumes {
		source, rest, _ := strings.Cut(volume, ":")
		target, _, _ := strings.Cut(rest, ":")
		name, ok := strings.CutPrefix(target, "/etc/prometheus/")
		if !ok {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root+composeFolder, source))
		if err != nil {
			t.Fatal(err)
		}
		rules += strings.Count(string(text), "- alert: ")
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	promtool := debianProgram(t, "promtool")
	out, err := exec.Command(promtool, "check", "config", filepath.Join(dir, "prometheus.yml")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("%d rules found", rules)) || rules == 0 {
		t.Errorf("promtool check config: %v, want %d rules\n%s", err, rules, out)
	}

	redis := redistest.Start(t)
	_, port, _ := net.SplitHostPort(redis.Addr)
	healthy := func() ([]byte, error) {
		args := slices.Insert(slices.Clone(file.Services["redis"].Healthcheck.Test[1:]), 1, "-p", port)
		return exec.Command(args[0], args[1:]...).CombinedOutput()
	}
	if out, err := healthy(); err != nil {
		t.Errorf("the health check of Redis: %v\n%s", err, out)
	}
	redis.RestartLoading(t, 30*time.Second)
	if out, err := healthy(); err == nil {
		t.Errorf("Redis counts as healthy while it loads its data: %s", out)
	}
}
