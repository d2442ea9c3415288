package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// manualSite is the configuration that the examples on a page of the manual are about.
// Requests may come from any address here: the test stands where a trusted proxy would.
func manualSite(t *testing.T, page string) string {
	t.Helper()
	config := fenced(t, page)[0]
	config = strings.Replace(config, "{\n", "{\n\tadmin ADMIN\n\tservers {\n\t\ttrusted_proxies static 127.0.0.1/32\n\t}\n", 1)
	config = strings.Replace(config, "store redis {env.REDIS_URL}", "store redis {env.REDIS_URL} {\n\t\t\tdial_timeout 20s\n\t\t}\n\t\tbudget 30s", 1)
	if !strings.Contains(config, ":8080 {") {
		t.Fatalf("the configuration of the manual has no site :8080:\n%s", config)
	}
	return strings.Replace(config, ":8080 {", "ADDR {", 1)
}

// shell runs a line of the manual with sh. The caddy in it is this test's, and it asks
// the admin endpoint of p; so does curl.
func (p *process) shell(t *testing.T, line string) string {
	t.Helper()
	binary, err := caddyBinary()
	if err != nil {
		t.Fatalf("building Caddy: %v", err)
	}
	bin := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" --address %s\n", binary, p.admin)
	if err := os.WriteFile(filepath.Join(bin, "caddy"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", strings.NewReplacer("localhost:2019", p.admin, "localhost:8080", p.addr).Replace(line))
	home := filepath.Dir(p.config)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("$ %s\n%v\n%s", line, err, out)
	}
	return string(out)
}

// example is a command in the manual, with what it prints.
type example struct{ line, prints string }

// examples are those in the console blocks of a page.
func examples(t *testing.T, path string) (all []example) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(text), "```console\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		for _, one := range strings.Split("\n"+block, "\n$ ")[1:] {
			line, prints, _ := strings.Cut(one, "\n")
			for strings.HasSuffix(line, "\\") {
				var more string
				more, prints, _ = strings.Cut(prints, "\n")
				line = strings.TrimSuffix(line, "\\") + more
			}
			all = append(all, example{line, prints})
		}
	}
	return all
}

var (
	moments = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?`)
	spans   = regexp.MustCompile(`\b\d+(\.\d+)?(ms|[dhms])((\d+)(\.\d+)?[hms])*\b`)
	servers = regexp.MustCompile(`127\.0\.0\.1:\d+`)
	ids     = regexp.MustCompile(`\b[A-Z2-7]{10}\b`)
	// What is leased depends on the moment.
	leased   = regexp.MustCompile(`(db 0 +up +\d+) +\d+`)
	measured = regexp.MustCompile(`"(reset|over|round_trip)":[0-9.]+`)
	brackets = regexp.MustCompile(`[{}\[\],]`)
	blanks   = regexp.MustCompile(`[\s]+`)
)

// shape is what stays the same of an output from one run to another: times, the
// address of Redis and the width of columns do not. Whole numbers stay.
func shape(text string) string {
	text = moments.ReplaceAllString(text, "MOMENT")
	text = servers.ReplaceAllString(text, "SERVER")
	text = ids.ReplaceAllString(text, "ID")
	text = spans.ReplaceAllString(text, "SPAN")
	text = measured.ReplaceAllString(text, `"$1":N`)
	text = leased.ReplaceAllString(text, "$1 N")
	text = brackets.ReplaceAllString(text, " $0 ") // JSON in the manual is folded
	return strings.TrimSpace(blanks.ReplaceAllString(text, " "))
}

// from sends a request of a client.
func (p *process) from(t *testing.T, client, method, path string) reply {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+p.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Forwarded-For", client)
	sent := time.Now()
	response, err := p.client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	return newReply(response.StatusCode, response.Header, "", sent)
}

// Each command and each call in the manual, as it is written there, does what the manual
// says, on three Caddys with one Redis.
func TestManualOfCommands(t *testing.T) {
	for _, page := range []string{"commands.md", "admin-api.md"} {
		t.Run(page, func(t *testing.T) {
			redis := redistest.Start(t)
			config := manualSite(t, "../../docs/"+page)
			var caddys []*process
			for range 3 {
				caddys = append(caddys, startProcess(t, config, redisEnv(redis)))
			}
			all := examples(t, "../../docs/"+page)
			if len(all) == 0 {
				t.Fatal("the page has no examples")
			}
			// What the examples are about: a client that has tried to log in too often.
			for i := range 7 {
				caddys[i%3].from(t, "192.0.2.7", http.MethodPost, "/login")
			}
			waitFor(t, "the instances know of each other", func() bool {
				return strings.Contains(caddys[0].adminCall(t, http.MethodGet, "stores"), `"instances":3`)
			})
			for _, x := range all {
				if got := caddys[0].shell(t, x.line); shape(got) != shape(x.prints) {
					t.Errorf("$ %s\nprints\n%s\nand in the manual\n%s", x.line, got, x.prints)
				}
			}
		})
	}
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// What is changed by hand on one instance holds on the other two, soon.
func TestAdminHoldsElsewhere(t *testing.T) {
	redis := redistest.Start(t)
	const config = `{
	admin ADMIN
	servers {
		trusted_proxies static 127.0.0.1/32
	}
	distributed_ratelimit {
		store redis {env.REDIS_URL} {
			dial_timeout 20s
		}
		budget 30s
	}
}
ADDR {
	distributed_ratelimit {
		zone pages {
			events 1000
			window 1h
		}
	}
	respond ok
}
`
	var caddys []*process
	for range 3 {
		caddys = append(caddys, startProcess(t, config, redisEnv(redis)))
	}
	const client = "192.0.2.7"
	for _, p := range caddys {
		for range 20 { // more than the overrides below grant, and leases are in hand
			p.from(t, client, http.MethodGet, "/")
		}
	}
	for _, step := range []struct {
		method, path string
		status       int // that each instance answers then
	}{
		{http.MethodPut, "bans?for=1h&client_ip=" + client, http.StatusTooManyRequests},
		{http.MethodDelete, "bans?keep=true&client_ip=" + client, http.StatusOK},
		{http.MethodPut, "override?for=1h&events=0", http.StatusTooManyRequests},
		{http.MethodDelete, "override", http.StatusOK},
		{http.MethodPut, "override?for=1h&events=50", http.StatusTooManyRequests},
		{http.MethodDelete, "keys?client_ip=" + client, http.StatusOK},
		{http.MethodDelete, "override", http.StatusOK},
	} {
		began := time.Now()
		caddys[0].adminCall(t, step.method, "zones/pages/"+step.path)
		var took [3]time.Duration
		crowd(len(caddys), func(i int) {
			for caddys[i].from(t, client, http.MethodGet, "/").status != step.status {
				if time.Since(began) > 30*time.Second {
					t.Errorf("instance %d does not answer with status %d within 30 s of %s %s", i+1, step.status, step.method, step.path)
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			took[i] = time.Since(began).Round(time.Millisecond)
		})
		t.Logf("%-6s %-35s holds on each instance after %v", step.method, step.path, took)
	}
}

// adminCall makes a call to the admin API, which must succeed.
func (p *process) adminCall(t *testing.T, method, path string) string {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+p.admin+"/distributed_ratelimit/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := p.client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: status %d, %s %v", method, path, response.StatusCode, answer, err)
	}
	return string(answer)
}
