package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// TestOperatingCommands runs the commands of docs/operating.md in the order of the
// page, about this test's own address, and sees that the ones that change something
// do.
func TestOperatingCommands(t *testing.T) {
	redis := redistest.Start(t)
	caddy := startProcess(t, `{
	admin ADMIN
	distributed_ratelimit {
		budget 10s
		store redis {env.REDIS_URL}
	}
}
ADDR {
	distributed_ratelimit 2 1h api {
		log_key
	}
	respond "ok"
}
`, "REDIS_URL=redis://"+redis.Addr)
	binary, err := caddyBinary()
	if err != nil {
		t.Fatal(err)
	}
	until := func(status int, after string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); caddy.get(t, "/").status != status; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after %s, requests do not get %d\n%s", after, status, caddy.output)
			}
		}
	}
	until(http.StatusTooManyRequests, "two requests")

	// What requests get after a command.
	effects := map[string]int{
		"reset":          http.StatusOK,
		"ban":            http.StatusTooManyRequests,
		"unban":          http.StatusOK,
		"override --for": http.StatusOK,
		"override --end": http.StatusTooManyRequests,
	}
	ran := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^ *caddy (distributed-ratelimit ([a-z]+)[^#\n]*)`).FindAllStringSubmatch(pageOf(t, "docs/operating.md"), -1) {
		line, command := m[1], m[2]
		line = strings.NewReplacer("https://api.example.com", "http://"+caddy.addr, "192.0.2.7", "127.0.0.1").Replace(line)
		cmd := exec.Command("bash", "-c", `"$CADDY" `+line+` --address "$ADMIN"`)
		cmd.Env = append(os.Environ(), "CADDY="+binary, "ADMIN="+caddy.admin, "HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil || len(out) == 0 {
			t.Errorf("%s: %v\n%s", line, err, out)
			continue
		}
		for _, flag := range []string{" --end", " --for"} {
			if command == "override" && strings.Contains(line, flag) {
				command += flag
			}
		}
		ran[command] = true
		if status, ok := effects[command]; ok {
			until(status, line)
		}
		for deadline := time.Now().Add(30 * time.Second); command == "ban" && !strings.Contains(caddy.output.String(), `"reason":"blocked"`); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after %s, nothing is refused for a ban\n%s", line, caddy.output)
			}
			caddy.get(t, "/")
		}
		if command == "unban" {
			until(http.StatusTooManyRequests, "its requests") // used up, for the override
		}
	}
	for command := range effects {
		if !ran[command] {
			t.Errorf("the page has no command %s", command)
		}
	}
}
