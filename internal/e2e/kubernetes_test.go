package e2e

import (
	"bytes"
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

type probe struct {
	HTTPGet struct {
		Path string
		Port string
	} `yaml:"httpGet"`
}

type podContainer struct {
	Args []string
	Env  []struct {
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
}

// deployment reads the one in examples/kubernetes; schemas are for make lint to check.
func deployment(t *testing.T) (replicas, grace int, container podContainer) {
	t.Helper()
	text, err := os.ReadFile(root + "examples/kubernetes/caddy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for documents := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var d struct {
			Kind string
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
		err := documents.Decode(&d)
		if errors.Is(err, io.EOF) {
			t.Fatal("no Deployment")
		} else if err != nil && d.Kind == "Deployment" {
			t.Fatal(err)
		}
		if d.Kind == "Deployment" {
			return d.Spec.Replicas, d.Spec.Template.Spec.Grace, d.Spec.Template.Spec.Containers[0]
		}
	}
}

// A pod with the Caddyfile, the environment and the probes of examples/kubernetes: it is
// ready without Redis, limits, and while it ends it serves, but says that it is not ready.
func TestKubernetes(t *testing.T) {
	replicas, grace, container := deployment(t)
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
