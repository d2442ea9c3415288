package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const sentinelFolder = "examples/kubernetes-sentinel/"

// pods are those of examples/kubernetes-sentinel that hold counts or watch, as processes:
// with its scripts, configuration files, commands and probes. Each has a loopback address
// of its own, and by LD_PRELOAD they know each other by the names that they have there.
type pods struct {
	t         *testing.T
	addresses map[string]string // by name, such as redis-0.redis
	ports     map[string]string // by number there
	names     string            // the file of names.c
	env       []string
	all       map[string]*pod // by name, such as redis-0
}

type pod struct {
	pods      *pods
	name      string
	dir       string
	container podContainer
	cmd       *exec.Cmd
	ended     chan struct{}
	output    *lockedBuffer
}

const adminPassword, caddyPassword = "of-the-administrator", "of-caddy"

func startPods(t *testing.T) *pods {
	t.Helper()
	p := &pods{t: t, addresses: make(map[string]string), ports: make(map[string]string), all: make(map[string]*pod)}
	for _, port := range []string{"6379", "26379"} {
		_, p.ports[port], _ = net.SplitHostPort(freeAddr(t))
	}
	p.names = filepath.Join(t.TempDir(), "names")
	for _, kind := range []string{"redis", "sentinel"} {
		replicas, _, container := workload(t, sentinelFolder+kind+".yaml", "StatefulSet")
		for i := range replicas {
			name := fmt.Sprintf("%s-%d", kind, i)
			p.addresses[name+"."+kind] = fmt.Sprintf("127.0.0.%d", 21+len(p.addresses))
			p.all[name] = &pod{pods: p, name: name, dir: t.TempDir(), container: container, output: new(lockedBuffer)}
		}
	}
	library := filepath.Join(t.TempDir(), "names.so")
	cc, err := exec.Command("go", "env", "CC").Output()
	if err != nil {
		t.Fatal(err)
	}
	args := append(strings.Fields(string(cc)), "-shared", "-fPIC", "-o", library, "testdata/names.c", "-ldl")
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	// Go resolves names by itself unless it is told not to.
	p.env = []string{"LD_PRELOAD=" + library, "NAMES=" + p.names, "GODEBUG=netdns=cgo"}
	p.publish()
	for _, pod := range p.all {
		pod.write()
		pod.start()
	}
	return p
}

// publish tells everybody the addresses, as the cluster's DNS does.
func (p *pods) publish() {
	p.t.Helper()
	var text strings.Builder
	for name, address := range p.addresses {
		fmt.Fprintf(&text, "%s=%s ", name, address)
	}
	if err := os.WriteFile(p.names+".new", []byte(text.String()), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(p.names+".new", p.names); err != nil {
		p.t.Fatal(err)
	}
}

// renew starts a pod that has ended as one that is made anew: with another address, and
// without what was in its memory.
func (p *pod) renew() {
	t := p.pods.t
	t.Helper()
	kind, _, _ := strings.Cut(p.name, "-")
	p.pods.addresses[p.name+"."+kind] = fmt.Sprintf("127.0.1.%d", 21+len(p.name)+int(p.name[len(p.name)-1]))
	p.pods.publish()
	if err := os.RemoveAll(p.dir + "/run"); err != nil {
		t.Fatal(err)
	}
	p.write()
	p.start()
}

var redisPorts = regexp.MustCompile(`\b2?6379\b`)

// here is a text with the ports and folders of this machine.
func (p *pod) here(text string) string {
	text = redisPorts.ReplaceAllStringFunc(text, func(port string) string { return p.pods.ports[port] })
	return strings.NewReplacer("/etc/redis/", p.dir+"/etc/", "/run/secrets/redis/", p.dir+"/secrets/", "/run/redis", p.dir+"/run",
		"dir /data", "dir "+p.dir+"/data", "127.0.0.1", p.address(),
		// Sooner, since a test waits for it.
		"down-after-milliseconds limits 3000", "down-after-milliseconds limits 1000").Replace(text)
}

func (p *pod) address() string {
	kind, _, _ := strings.Cut(p.name, "-")
	return p.pods.addresses[p.name+"."+kind]
}

// write fills the folders that are mounted there.
func (p *pod) write() {
	t := p.pods.t
	t.Helper()
	files := map[string]string{"secrets/ADMIN_PASSWORD": adminPassword, "secrets/CADDY_PASSWORD": caddyPassword}
	for _, name := range []string{"redis.conf", "sentinel.conf", "redis.sh"} {
		files["etc/"+name] = p.here(pageOf(t, sentinelFolder+name))
	}
	for _, folder := range []string{"etc", "secrets", "run", "data"} {
		if err := os.MkdirAll(filepath.Join(p.dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (p *pod) command(args ...string) *exec.Cmd {
	for i := range args {
		args[i] = p.here(args[i])
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), append(p.pods.env, "POD="+p.name)...)
	return cmd
}

func (p *pod) start() {
	t := p.pods.t
	t.Helper()
	p.cmd = p.command(append(slices.Clone(p.container.Command), "--bind", p.address())...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	p.ended = ended
	go func(cmd *exec.Cmd) { _ = cmd.Wait(); close(ended) }(p.cmd)
	t.Cleanup(p.kill)
}

func (p *pod) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// probe runs the command of a probe or a hook.
func (p *pod) probe(e podExec) error {
	if len(e.Exec.Command) == 0 {
		return errors.New("it has no command")
	}
	if out, err := p.command(slices.Clone(e.Exec.Command)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %v: %w: %s", p.name, e.Exec.Command, err, out)
	}
	return nil
}

// ask sends a command as a user, "" for none.
func (p *pod) ask(user, password string, command ...string) string {
	port := "6379"
	if strings.HasPrefix(p.name, "sentinel") {
		port = "26379"
	}
	args := []string{"timeout", "20", "redis-cli", "--no-auth-warning", "-h", p.address(), "-p", port}
	if user != "" {
		args = append(args, "--user", user, "--pass", password)
	}
	out, _ := p.command(append(args, command...)...).CombinedOutput()
	return strings.TrimSpace(string(out))
}

func (p *pod) admin(command ...string) string { return p.ask("default", adminPassword, command...) }

// within waits until there is no error any more.
func (p *pods) within(what string, check func() error) {
	p.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(250 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			for _, pod := range p.all {
				p.t.Logf("%s:\n%s", pod.name, pod.output)
			}
			p.t.Fatalf("not within two minutes: %s: %v", what, err)
		}
	}
}

// ready waits until the readiness probes of all pods succeed.
func (p *pods) ready() {
	p.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(p.all)) {
		p.within(name+" is ready", func() error { return p.all[name].probe(p.all[name].container.Readiness.podExec) })
	}
}

// master waits until all Sentinels name the same master, another than the old one, and it
// says so itself.
func (p *pods) master(old string) (master *pod) {
	p.t.Helper()
	p.within("a master", func() error {
		names := make(map[string]bool)
		for i := range 3 {
			reply := p.all[fmt.Sprintf("sentinel-%d", i)].admin("sentinel", "get-master-addr-by-name", "limits")
			name, _, _ := strings.Cut(reply, "\n")
			names[name] = true
		}
		named := slices.Sorted(maps.Keys(names))
		pod := strings.TrimSuffix(named[0], ".redis")
		if master = p.all[pod]; len(named) != 1 || master == nil || pod == old {
			return fmt.Errorf("the Sentinels name %v", named)
		}
		if role := master.admin("role"); !strings.HasPrefix(role, "master") {
			return fmt.Errorf("%s says %s", pod, role)
		}
		return nil
	})
	return master
}

// caddy starts one with the Caddyfile of the folder.
func (p *pods) caddy(backend string) *process {
	p.t.Helper()
	text := strings.ReplaceAll(pageOf(p.t, sentinelFolder+"Caddyfile"), "127.0.0.1:2019", "ADMIN")
	text = redisPorts.ReplaceAllStringFunc(text, func(port string) string { return p.ports[port] })
	text = strings.ReplaceAll(text, "/run/secrets/redis/", p.all["redis-0"].dir+"/secrets/")
	// Longer than a slow machine takes for all of the test; and on a busy one Redis would
	// be away for a moment.
	text = strings.Replace(text, "30 1m", "30 1h", 1)
	text = strings.Replace(text, "\t\tstore redis {\n", "\t\tbudget 30s\n\t\tstore redis {\n\t\t\tdial_timeout 20s\n", 1)
	health := freeAddr(p.t)
	text = strings.Replace(text, "http://:8080 {", "http://:{$SITE_PORT} {\n\tbind 127.0.0.1", 1)
	text = strings.Replace(text, "http://:9180 {", "http://:{$HEALTH_PORT} {\n\tbind 127.0.0.1", 1)
	c := &process{addr: freeAddr(p.t), admin: freeAddr(p.t), output: new(lockedBuffer), client: &http.Client{Timeout: time.Minute}}
	c.env = append(slices.Clone(p.env), "BACKEND="+backend, "SITE_PORT="+portOf(c.addr), "HEALTH_PORT="+portOf(health), "METRICS="+health)
	c.config = filepath.Join(p.t.TempDir(), "Caddyfile")
	c.write(p.t, text)
	p.t.Cleanup(c.kill)
	c.start(p.t)
	return c
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// byStore is how many requests a Caddy has decided with Redis.
func byStore(t *testing.T, c *process) float64 {
	t.Helper()
	health := strings.TrimPrefix(c.env[len(c.env)-1], "METRICS=")
	_, text := (&composed{t: t}).fetch("http://" + health + "/metrics")
	return requests(text, "granted", "store") + requests(text, "refused", "store")
}

// client asks as one of many clients, which the proxy in front tells apart.
func client(t *testing.T, c *process, address string) int {
	t.Helper()
	return c.get(t, "/", "X-Forwarded-For", address).status
}

// Redis by Sentinel, as examples/kubernetes-sentinel starts it: the first server becomes
// the master, the others follow it, strangers are let in nowhere, and Caddy goes on
// through the next master when it is killed, with the counts. Servers and Sentinels come
// back, and one that ends in order hands over first.
func TestKubernetesSentinel(t *testing.T) {
	p := startPods(t)
	p.ready()
	first := p.master("")
	if first.name != "redis-0" {
		t.Errorf("the first master is %s", first.name)
	}
	for _, pod := range p.all {
		for _, e := range []podExec{pod.container.Startup.podExec, pod.container.Liveness.podExec} {
			if err := pod.probe(e); err != nil {
				t.Error(err)
			}
		}
	}
	first.letsNobodyIn(t)
	p.all["sentinel-0"].letsNobodyIn(t)
	for setting, want := range map[string]string{
		"maxmemory-policy": "noeviction", "maxmemory": "268435456", "appendonly": "yes", "appendfsync": "everysec",
		"min-replicas-to-write": "1", "min-replicas-max-lag": "10",
	} {
		if got := first.admin("config", "get", setting); got != setting+"\n"+want {
			t.Errorf("Redis has %q, want %s", got, want)
		}
	}

	backend := newHello(t)
	caddy := p.caddy(backend)
	granted, asked := 0, time.Now()
	for i := 0; client(t, caddy, "192.0.2.1") == http.StatusOK; i++ {
		granted++
	}
	if granted != 30 || byStore(t, caddy) == 0 {
		t.Errorf("%d requests granted, want 30, %v of the store", granted, byStore(t, caddy))
	}
	p.replicated(first)
	p.seen()
	first.kill()
	second := p.master(first.name)

	p.asks(caddy, second)
	// Another Caddy knows nothing but what Redis knows, once it has reached it.
	other := p.caddy(backend)
	p.asks(other, second)
	if status := client(t, other, "192.0.2.1"); time.Since(asked) > 50*time.Second {
		t.Logf("after %v the window may be over: status %d", time.Since(asked), status)
	} else if status != http.StatusTooManyRequests {
		t.Errorf("after the failover, a client that was refused before has status %d", status)
	}

	first.renew()
	p.ready()
	if role := first.admin("role"); !strings.HasPrefix(role, "slave") {
		t.Errorf("the first master comes back as %s", role)
	}
	// A Sentinel whose pod is made anew takes the master from the others, and is not
	// another one for them.
	lost := p.all["sentinel-0"]
	lost.kill()
	lost.renew()
	p.ready()
	p.master(first.name)
	p.within("sentinel-1 knows the others, and no more", func() error {
		if got := p.all["sentinel-1"].admin("sentinel", "ckquorum", "limits"); !strings.HasPrefix(got, "OK 3 usable Sentinels") {
			return errors.New(got)
		}
		if got := p.all["sentinel-1"].admin("sentinel", "sentinels", "limits"); strings.Count(got, "runid") != 2 {
			return errors.New(got)
		}
		return nil
	})
	// All see the servers where they are now, or the first could not be the master again.
	p.seen()

	if err := second.probe(second.container.Lifecycle.PreStop); err != nil {
		t.Errorf("handing over: %v\n%s", err, second.output)
	}
	third := p.master(second.name)
	if err := second.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	select {
	case <-second.ended:
	case <-time.After(time.Minute):
		t.Error("Redis does not end within a minute")
	}
	if err := first.probe(first.container.Lifecycle.PreStop); err != nil && first != third {
		t.Errorf("handing over where there is nothing to: %v", err)
	}
}

// asks waits until a Caddy's requests are decided by the master again.
func (p *pods) asks(caddy *process, master *pod) {
	p.t.Helper()
	before, n := byStore(p.t, caddy), 0
	p.within("Caddy goes on with "+master.name, func() error {
		n++
		client(p.t, caddy, fmt.Sprintf("198.51.100.%d", n%250))
		if byStore(p.t, caddy) == before {
			return errors.New("no request was decided by the store")
		}
		return nil
	})
}

// seen waits until all Sentinels know of both replicas, which they ask the master for every
// ten seconds: before that they have nobody to name.
func (p *pods) seen() {
	p.t.Helper()
	p.within("the Sentinels see all servers", func() error {
		for i := range 3 {
			got := p.all[fmt.Sprintf("sentinel-%d", i)].admin("sentinel", "replicas", "limits")
			if strings.Count(got, "master-link-status\nok") != 2 || strings.Contains(got, "s_down") {
				return errors.New(got)
			}
		}
		return nil
	})
}

// letsNobodyIn: not without a password; and Caddy's user can do nothing but limit.
func (p *pod) letsNobodyIn(t *testing.T) {
	t.Helper()
	if got := p.ask("", "", "info"); !strings.HasPrefix(got, "NOAUTH") {
		t.Errorf("%s says to a stranger: %.80s", p.name, got)
	}
	forbidden := [][]string{{"flushall"}, {"config", "get", "requirepass"}, {"get", "other"}, {"acl", "list"}}
	if strings.HasPrefix(p.name, "sentinel") {
		forbidden = [][]string{{"sentinel", "failover", "limits"}, {"sentinel", "masters"}, {"info"}}
	}
	for _, command := range forbidden {
		if got := p.ask("caddy", caddyPassword, command...); !strings.HasPrefix(got, "NOPERM") {
			t.Errorf("%s says to Caddy's %v: %.80s", p.name, command, got)
		}
	}
}

// replicated waits until the other servers have all that the master has.
func (p *pods) replicated(master *pod) {
	p.t.Helper()
	offset := regexp.MustCompile(`master_repl_offset:\d+`)
	for name, pod := range p.all {
		if pod != master && strings.HasPrefix(name, "redis") {
			p.within(name+" has everything", func() error {
				want := offset.FindString(master.admin("info", "replication"))
				if got := offset.FindString(pod.admin("info", "replication")); got != want {
					return fmt.Errorf("it is at %s of %s", got, want)
				}
				return nil
			})
		}
	}
}
