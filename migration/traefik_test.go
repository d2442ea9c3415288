//go:build traefik

package migration

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// traefik runs middlewares, in YAML as in Traefik's manual, in front of a backend, and
// returns its URL. It believes X-Forwarded-For of its peers, unless they are told to be
// strangers.
func traefik(t *testing.T, middlewares string, b *backend, strangers ...bool) string {
	t.Helper()
	found := os.Getenv("TRAEFIK")
	if found == "" {
		t.Fatal("TRAEFIK does not say where Traefik is: run make migration-traefik")
	}
	dir, port := t.TempDir(), freePort(t)
	trust := "    forwardedHeaders:\n      trustedIPs: [127.0.0.0/8]\n"
	if len(strangers) > 0 {
		trust = ""
	}
	var names []string
	for line := range strings.Lines(middlewares) {
		if name := strings.TrimRight(line, ":\n"); strings.HasPrefix(name, "    ") && name[4] != ' ' {
			names = append(names, strings.TrimSpace(name))
		}
	}
	for name, text := range map[string]string{
		"static.yaml": "global:\n  checkNewVersion: false\nentryPoints:\n  web:\n    address: 127.0.0.1:" + port + "\n" + trust +
			"providers:\n  file:\n    filename: " + dir + "/dynamic.yaml\n",
		"dynamic.yaml": middlewares + "  routers:\n    all:\n      rule: PathPrefix(`/`)\n      middlewares: [" + strings.Join(names, ", ") + "]\n      service: app\n" +
			"    ready:\n      rule: Path(`/ready`)\n      priority: 1000\n      service: app\n" +
			"  services:\n    app:\n      loadBalancer:\n        servers:\n          - url: " + b.URL + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program(t, port, exec.Command(found, "--configFile="+dir+"/static.yaml"))
	url := "http://127.0.0.1:" + port
	for deadline := time.Now().Add(patience); get(t, one, url+"/ready").status != http.StatusOK; {
		if time.Now().After(deadline) {
			t.Fatal("Traefik does not load its configuration")
		}
		time.Sleep(20 * time.Millisecond)
	}
	return url
}

// limitOf is a middleware rateLimit, its options in braces.
func limitOf(options string) string {
	return "http:\n  middlewares:\n    limit:\n      rateLimit: {" + options + "}\n"
}

func inFlightOf(options string) string {
	return "http:\n  middlewares:\n    limit:\n      inFlightReq: {" + options + "}\n"
}

func forwarded(list string) func(*http.Request) { return with("X-Forwarded-For", list) }

func host(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }

// The two configurations of the page: a burst of 20 for each client behind one proxy, and
// five in flight.
func TestFromTraefik(t *testing.T) {
	run := map[string]func(t *testing.T, b *backend) string{
		"there": func(t *testing.T, b *backend) string { return traefik(t, block(t, "Traefik", "yaml"), b) },
		"here": func(t *testing.T, b *backend) string {
			t.Setenv("REDIS_URL", "redis://"+redistest.Start(t).Addr)
			return site(t, strings.ReplaceAll(block(t, "Traefik", "caddyfile"), "app:3000", b.addr()))
		},
	}
	for name, start := range run {
		t.Run(name+", a burst", func(t *testing.T) {
			url := start(t, newBackend(t))
			began := time.Now()
			got := granted(t, 50, 429, one, url+"/", forwarded("192.0.2.1"))
			// There ten more in each second that this takes, and one that was held back;
			// here twenty more in each window.
			if most := 21 + int(time.Since(began)/(100*time.Millisecond))*2; got < 20 || got > most {
				t.Errorf("%d of 50 granted, want 20 to %d", got, most)
			}
			want(t, "another client of the proxy", granted(t, 3, 429, one, url+"/", forwarded("192.0.2.1, 192.0.2.2")), 3)
		})
		t.Run(name+", in flight", func(t *testing.T) {
			b := newBackend(t)
			url := start(t, b)
			for range 5 {
				held(t, b, one, url+"/wait", forwarded("192.0.2.1"))
			}
			if a := get(t, one, url+"/", forwarded("192.0.2.1")); a.status != 429 {
				t.Errorf("the sixth in flight: status %d, want 429", a.status)
			}
			want(t, "another client", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.2")), 1)
		})
	}
}

const slowly = "average: 1, period: 1h"

func TestTraefikRows(t *testing.T) {
	rows(t, "Traefik", map[string]func(t *testing.T){
		"average": func(t *testing.T) {
			url := traefik(t, limitOf("average: 0, burst: 1"), newBackend(t))
			want(t, "average 0", granted(t, 30, 429, one, url+"/"), 30)
			url = traefik(t, limitOf("burst: 1"), newBackend(t))
			want(t, "without average", granted(t, 30, 429, one, url+"/"), 30)
		},
		"period": func(t *testing.T) {
			url := traefik(t, limitOf("average: 2, period: 2h, burst: 3"), newBackend(t))
			want(t, "a burst", granted(t, 5, 429, one, url+"/"), 3)
			if n, err := strconv.Atoi(get(t, one, url+"/").header.Get("Retry-After")); err != nil || n < 3000 || n > 3600 {
				t.Errorf("Retry-After %d, %v; want a unit in an hour", n, err)
			}
		},
		"burst": func(t *testing.T) {
			want(t, "1 unless set", granted(t, 3, 429, one, traefik(t, limitOf(slowly), newBackend(t))+"/"), 1)
		},
		"a short delay": traefikHoldsBack,
		"a client that pauses": func(t *testing.T) {
			// Three seconds fill five of a hundred. The bucket is full.
			url := traefik(t, limitOf("average: 100, period: 1m, burst: 100"), newBackend(t))
			want(t, "at once", granted(t, 100, 429, one, url+"/"), 100)
			time.Sleep(3100 * time.Millisecond)
			want(t, "after three seconds", granted(t, 100, 429, one, url+"/"), 100)
		},
		"sourceCriterion": func(t *testing.T) {
			b := newBackend(t)
			url := traefik(t, limitOf(slowly+", sourceCriterion: {requestHost: true, requestHeaderName: X-Key}"), b)
			if a := get(t, one, url+"/"); a.status != http.StatusNotFound {
				t.Errorf("two criteria at once: status %d, want no router", a.status)
			}
		},
		"sourceCriterion.ipStrategy": func(t *testing.T) {
			url := traefik(t, limitOf(slowly), newBackend(t))
			want(t, "one peer, two clients", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.1"))+granted(t, 1, 429, one, url+"/", forwarded("192.0.2.2")), 1)
			want(t, "another peer", granted(t, 1, 429, two, url+"/"), 1)
		},
		"ipStrategy.depth": func(t *testing.T) {
			url := traefik(t, limitOf(slowly+", sourceCriterion: {ipStrategy: {depth: 2}}"), newBackend(t))
			want(t, "the last but one", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.9, 192.0.2.1, 192.0.2.3")), 1)
			want(t, "the same", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.8, 192.0.2.1, 192.0.2.4")), 0)
			want(t, "another", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.1, 192.0.2.2, 192.0.2.3")), 1)
			// Nobody is that far from the right: all of those are one.
			want(t, "a short list", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.5")), 1)
			want(t, "another short list", granted(t, 1, 429, two, url+"/", forwarded("192.0.2.6")), 0)
		},
		"ipStrategy.excludedIPs": func(t *testing.T) {
			url := traefik(t, limitOf(slowly+", sourceCriterion: {ipStrategy: {excludedIPs: [10.0.0.0/8]}}"), newBackend(t))
			want(t, "behind two proxies", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.9, 192.0.2.1, 10.0.0.1, 10.0.0.2")), 1)
			want(t, "behind one", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.1, 10.0.0.1")), 0)
			want(t, "another", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.2, 10.0.0.1")), 1)
			want(t, "proxies alone", granted(t, 1, 429, one, url+"/", forwarded("10.0.0.3")), 1)
			want(t, "no list", granted(t, 1, 429, two, url+"/"), 0)
		},
		"ipStrategy.ipv6Subnet": func(t *testing.T) {
			for options, second := range map[string]int{"depth: 1": 1, "depth: 1, ipv6Subnet: 64": 0} {
				url := traefik(t, limitOf(slowly+", sourceCriterion: {ipStrategy: {"+options+"}}"), newBackend(t))
				want(t, "an address", granted(t, 1, 429, one, url+"/", forwarded("2001:db8::1")), 1)
				want(t, "the next with "+options, granted(t, 1, 429, one, url+"/", forwarded("2001:db8::2")), second)
			}
		},
		"forwardedHeaders.trustedIPs": func(t *testing.T) {
			// The field of a stranger is not there: all have an empty source.
			url := traefik(t, limitOf(slowly+", sourceCriterion: {ipStrategy: {depth: 1}}"), newBackend(t), true)
			want(t, "a stranger", granted(t, 1, 429, one, url+"/", forwarded("192.0.2.1")), 1)
			want(t, "another", granted(t, 1, 429, two, url+"/", forwarded("192.0.2.2")), 0)
		},
		"sourceCriterion.requestHeaderName": func(t *testing.T) {
			url := traefik(t, limitOf(slowly+", sourceCriterion: {requestHeaderName: X-Key}"), newBackend(t))
			want(t, "a key", granted(t, 2, 429, one, url+"/", with("X-Key", "a")), 1)
			want(t, "another", granted(t, 2, 429, one, url+"/", with("X-Key", "b")), 1)
			want(t, "no key", granted(t, 1, 429, one, url+"/")+granted(t, 1, 429, two, url+"/"), 1)
		},
		"sourceCriterion.requestHost": func(t *testing.T) {
			url := traefik(t, limitOf(slowly+", sourceCriterion: {requestHost: true}"), newBackend(t))
			want(t, "a host", granted(t, 1, 429, one, url+"/", host("a.test"))+granted(t, 1, 429, two, url+"/", host("a.test")), 1)
			want(t, "another", granted(t, 1, 429, one, url+"/", host("b.test")), 1)
		},
		"redis": traefikOnRedis,
		"inFlightReq.amount": func(t *testing.T) {
			b := newBackend(t)
			config := inFlightOf("amount: 2")
			first, second := traefik(t, config, b), traefik(t, config, b)
			for _, url := range []string{first, first, second, second} {
				held(t, b, one, url+"/wait", host("a.test"))
			}
			want(t, "the fifth", granted(t, 1, 429, one, first+"/", host("a.test"))+granted(t, 1, 429, one, second+"/", host("a.test")), 0)
			want(t, "without an amount", granted(t, 2, 429, one, traefik(t, "http:\n  middlewares:\n    limit:\n      inFlightReq: {sourceCriterion: {requestHost: true}}\n", b)+"/"), 0)
		},
		"inFlightReq.sourceCriterion": func(t *testing.T) {
			b := newBackend(t)
			url := traefik(t, inFlightOf("amount: 1"), b)
			held(t, b, one, url+"/wait", host("a.test"))
			want(t, "another client of the host", granted(t, 1, 429, two, url+"/", host("a.test")), 0)
			want(t, "another host", granted(t, 1, 429, two, url+"/", host("b.test")), 1)
		},
		"429": func(t *testing.T) {
			url := traefik(t, limitOf(slowly), newBackend(t))
			get(t, one, url+"/")
			if a := get(t, one, url+"/"); a.status != 429 || a.body != "Too Many Requests" {
				t.Errorf("status %d, %q", a.status, a.body)
			}
		},
		"Retry-After": func(t *testing.T) {
			b := newBackend(t)
			url := traefik(t, inFlightOf("amount: 1"), b)
			held(t, b, one, url+"/wait", host("a.test"))
			if a := get(t, one, url+"/", host("a.test")); a.status != 429 || a.header.Get("Retry-After") != "" {
				t.Errorf("inFlightReq: status %d, %v", a.status, a.header)
			}
		},
		"X-Retry-In": func(t *testing.T) {
			url := traefik(t, limitOf(slowly), newBackend(t))
			get(t, one, url+"/")
			if in, err := time.ParseDuration(get(t, one, url+"/").header.Get("X-Retry-In")); err != nil || in < 50*time.Minute || in > time.Hour {
				t.Errorf("X-Retry-In %v, %v", in, err)
			}
		},
	})
}

// One in two seconds: a request that comes at most half a second too early is held back
// for as long. On a machine that was busy just then, there is nothing to see; then again.
func traefikHoldsBack(t *testing.T) {
	url := traefik(t, limitOf("average: 1, period: 2s, burst: 1"), newBackend(t))
	for range 10 {
		refused := time.Now()
		for {
			began := time.Now()
			if get(t, one, url+"/").status == http.StatusTooManyRequests {
				refused = began
				continue
			}
			if took := time.Since(began); began.Sub(refused) < 200*time.Millisecond && took > 200*time.Millisecond {
				return
			}
			break
		}
	}
	t.Error("of ten requests that were granted none was held back")
}

// Two instances share a bucket in Redis, average 0 refuses everything there, and while
// Redis is away the answer is 500.
func traefikOnRedis(t *testing.T) {
	server := redistest.Start(t)
	config := limitOf(slowly + ", burst: 10, redis: {endpoints: [\"" + server.Addr + "\"]}")
	first, second := traefik(t, config, newBackend(t)), traefik(t, config, newBackend(t))
	want(t, "two instances", granted(t, 7, 429, one, first+"/")+granted(t, 7, 429, one, second+"/"), 10)
	if keys := server.Keys(t); len(keys) != 1 || keys[0] != "rate:limit@file:127.0.0.1" {
		t.Errorf("Redis has the keys %v", keys)
	}

	none := traefik(t, limitOf("average: 0, redis: {endpoints: [\""+server.Addr+"\"]}"), newBackend(t))
	want(t, "average 0", granted(t, 3, 429, one, none+"/"), 0)
	server.Kill()
	if a := get(t, one, first+"/"); a.status != http.StatusInternalServerError {
		t.Errorf("while Redis is away: status %d", a.status)
	}
}
