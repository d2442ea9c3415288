package e2e

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// podExec is a probe or a hook that is a command.
type podExec struct {
	Exec struct{ Command []string }
}

type probe struct {
	podExec `yaml:",inline"`
	HTTPGet struct {
		Path string
		Port string
	} `yaml:"httpGet"`
}

type podContainer struct {
	Command, Args []string
	Env           []struct {
		Name, Value string
		From        struct {
			Secret struct{ Name, Key string } `yaml:"secretKeyRef"`
		} `yaml:"valueFrom"`
	}
	Ports []struct {
		Name string
		Port int `yaml:"containerPort"`
	}
	Startup   probe `yaml:"startupProbe"`
	Readiness probe `yaml:"readinessProbe"`
	Liveness  probe `yaml:"livenessProbe"`
	Lifecycle struct {
		PreStop podExec `yaml:"preStop"`
	}
}

// document reads the only one of a kind in a file; schemas are for make lint to check.
func document(t *testing.T, path, kind string, to any) {
	t.Helper()
	for documents := yaml.NewDecoder(strings.NewReader(pageOf(t, path))); ; {
		var node yaml.Node
		if err := documents.Decode(&node); errors.Is(err, io.EOF) {
			t.Fatalf("%s: no %s", path, kind)
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		var head struct{ Kind string }
		if err := node.Decode(&head); err != nil || head.Kind != kind {
			continue
		}
		if err := node.Decode(to); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return
	}
}

func workload(t *testing.T, path, kind string) (replicas, grace int, container podContainer) {
	t.Helper()
	var d struct {
		Spec struct {
			Replicas int
			Template struct {
				Spec struct {
					Grace      int `yaml:"terminationGracePeriodSeconds"`
					Containers []podContainer
				}
			}
		}
	}
	document(t, path, kind, &d)
	return d.Spec.Replicas, d.Spec.Template.Spec.Grace, d.Spec.Template.Spec.Containers[0]
}

// A pod with the Caddyfile, the environment and the probes of examples/kubernetes: it is
// ready without Redis, limits, and while it ends it serves, but says that it is not ready.
func TestKubernetes(t *testing.T) {
	replicas, grace, container := workload(t, "examples/kubernetes/caddy.yaml", "Deployment")
	ports := make(map[string]string) // here, by name
	numbers := make(map[string]string)
	for _, port := range container.Ports {
		_, ports[port.Name], _ = net.SplitHostPort(freeAddr(t))
		numbers[strconv.Itoa(port.Port)] = ports[port.Name]
	}
	redis := redistest.Start(t)
	redis.Kill()
	backend := newHello(t)
	env := []string{"SHUTDOWN_DELAY=1m"}
	for _, v := range container.Env {
		switch v.Name {
		case "REDIS_URL":
			if v.From.Secret.Name != "redis" || v.From.Secret.Key != "REDIS_URL" {
				t.Errorf("REDIS_URL is from %+v", v.From)
			}
			v.Value = "redis://" + redis.Addr
		case "BACKEND":
			v.Value = backend
		case "REPLICAS":
			if v.Value != strconv.Itoa(replicas) {
				t.Errorf("REPLICAS is %s, and there are %d", v.Value, replicas)
			}
		}
		env = append(env, v.Name+"="+v.Value)
	}
	if want := "caddy run --config /etc/caddy/Caddyfile --adapter caddyfile"; strings.Join(container.Args, " ") != want {
		t.Errorf("a pod runs %v; the image and this test run %q", container.Args, want)
	}

	text, err := os.ReadFile(root + "examples/kubernetes/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	ends := regexp.MustCompile(`SHUTDOWN_DELAY:(\d+)s}\s+grace_period (\d+)s`).FindSubmatch(text)
	if delay, _ := strconv.Atoi(string(ends[1])); delay == 0 {
		t.Error("no delay before the shutdown")
	} else if period, _ := strconv.Atoi(string(ends[2])); delay+period >= grace {
		t.Errorf("a pod needs %d s + %d s to end, and has %d s", delay, period, grace)
	}
	caddyfile := regexp.MustCompile(`(?m)^http://:(\d+) \{$`).ReplaceAllStringFunc(string(text), func(s string) string {
		return "http://:" + numbers[strings.Trim(s, "htp:/ {")] + " {\n\tbind 127.0.0.1"
	})
	p := &process{addr: "127.0.0.1:" + ports["health"], admin: freeAddr(t), env: env, output: new(lockedBuffer)}
	p.config = t.TempDir() + "/Caddyfile"
	p.client = &http.Client{Timeout: time.Minute}
	p.write(t, strings.ReplaceAll(caddyfile, "127.0.0.1:2019", "ADMIN"))
	t.Cleanup(p.kill)
	p.start(t)

	ask := func(pr probe) int {
		at := &process{addr: "127.0.0.1:" + ports[pr.HTTPGet.Port], client: p.client}
		return at.get(t, pr.HTTPGet.Path).status
	}
	for _, pr := range []probe{container.Startup, container.Readiness, container.Liveness} {
		if got := ask(pr); got != http.StatusOK {
			t.Errorf("%+v without Redis: status %d", pr, got)
		}
	}
	site := &process{addr: "127.0.0.1:" + ports["http"], client: p.client}
	if r := site.get(t, "/"); r.status != http.StatusOK || r.body != "hello" {
		t.Errorf("without Redis: status %d, %q", r.status, r.body)
	}

	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ask(container.Readiness) != http.StatusServiceUnavailable; {
		if time.Now().After(deadline) {
			t.Fatalf("a pod that ends is ready:\n%s", p.output)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if got := ask(container.Liveness); got != http.StatusOK {
		t.Errorf("a pod that ends: the liveness probe has status %d", got)
	}
	if r := site.get(t, "/"); r.status != http.StatusOK {
		t.Errorf("a pod that ends: status %d", r.status)
	}
}

// What a namespace with pod-security.kubernetes.io/enforce: restricted asks for, and what
// else a pod can do without.
func TestKubernetesPodSecurity(t *testing.T) {
	type pod struct {
		Token    *bool `yaml:"automountServiceAccountToken"`
		Links    *bool `yaml:"enableServiceLinks"`
		Security struct {
			NonRoot bool                  `yaml:"runAsNonRoot"`
			User    int                   `yaml:"runAsUser"`
			Seccomp struct{ Type string } `yaml:"seccompProfile"`
		} `yaml:"securityContext"`
		Containers []struct {
			Image    string
			Limits   struct{ Limits map[string]string } `yaml:"resources"`
			Security struct {
				Escalation *bool                   `yaml:"allowPrivilegeEscalation"`
				ReadOnly   bool                    `yaml:"readOnlyRootFilesystem"`
				Drop       struct{ Drop []string } `yaml:"capabilities"`
			} `yaml:"securityContext"`
		}
	}
	for path, kind := range map[string]string{
		"examples/kubernetes/caddy.yaml": "Deployment",
		sentinelFolder + "redis.yaml":    "StatefulSet",
		sentinelFolder + "sentinel.yaml": "StatefulSet",
	} {
		var d struct {
			Spec struct{ Template struct{ Spec pod } }
		}
		document(t, path, kind, &d)
		p := d.Spec.Template.Spec
		c := p.Containers[0]
		no := func(b *bool) bool { return b != nil && !*b }
		if !no(p.Token) || !no(p.Links) || !p.Security.NonRoot || p.Security.User == 0 || p.Security.Seccomp.Type != "RuntimeDefault" || len(p.Containers) != 1 ||
			!no(c.Security.Escalation) || !c.Security.ReadOnly || strings.Join(c.Security.Drop.Drop, "") != "ALL" || c.Limits.Limits["memory"] == "" {
			t.Errorf("%s is not as confined as it can be: %+v", path, p)
		}
	}
	// The two Caddyfiles differ in the store, and in what they say of themselves.
	store := regexp.MustCompile(`(?s)\A.*\n#   BACKEND|\t\tstore redis .*?instances`)
	own := store.ReplaceAllString(pageOf(t, "examples/kubernetes/Caddyfile"), "")
	if other := store.ReplaceAllString(pageOf(t, sentinelFolder+"Caddyfile"), ""); own != other {
		t.Errorf("examples/kubernetes/Caddyfile has\n%s\nand that of Sentinel\n%s", own, other)
	}
}

func newHello(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}
