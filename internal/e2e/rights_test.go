package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// TestDocumentedRights: the user that the manual makes can do all that Caddy needs,
// and the steps that it gives for a change of its password disturb nobody.
func TestDocumentedRights(t *testing.T) {
	redis := redistest.Start(t)
	documented := func(page, pattern string) {
		t.Helper()
		command := regexp.MustCompile(pattern).FindStringSubmatch(pageOf(t, page))
		if command == nil {
			t.Fatalf("%s has no %s", page, pattern)
		}
		var args []any
		for word := range strings.FieldsSeq(command[1]) {
			args = append(args, strings.Replace(word, "<old", "<password", 1))
		}
		redis.Do(t, args...)
	}
	documented("docs/running-redis.md", `(?m)^(ACL SETUSER caddy on .*)$`)

	secret := filepath.Join(t.TempDir(), "secret")
	write := func(password string) {
		if err := os.WriteFile(secret, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("password")
	caddy := startProcess(t, fmt.Sprintf(`{
	admin ADMIN
	distributed_ratelimit {
		budget 10s
		store redis redis://%s {
			username caddy
			password {file.%s}
		}
	}
}
ADDR {
	distributed_ratelimit {
		zone one {
			events 5
			window 1h
		}
		zone two {
			events 10
			window 1h
		}
		zone three {
			concurrent 5
		}
	}
	respond "ok"
}
`, redis.Addr, secret))
	statuses := func(n, want int) {
		t.Helper()
		for range n {
			if r := caddy.get(t, "/"); r.status != want {
				t.Fatalf("status %d, want %d\n%s", r.status, want, caddy.output)
			}
		}
	}
	statuses(5, http.StatusOK)
	statuses(1, http.StatusTooManyRequests)
	if output := caddy.output.String(); strings.Contains(output, "the store gives no answer") {
		t.Fatalf("the limit was not decided by Redis\n%s", output)
	}
	// The line may come after the response that it is about.
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(caddy.output.String(), `"source":"store"`); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the limit was not decided by Redis\n%s", caddy.output)
		}
	}

	documented("docs/operating.md", "`(ACL SETUSER caddy >new)`")
	write("new")
	documented("docs/operating.md", "`(ACL SETUSER caddy <old)`")
	redis.Do(t, "CLIENT", "KILL", "USER", "caddy")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if list, _ := redis.Do(t, "CLIENT", "LIST").(string); strings.Contains(list, " user=caddy ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("Caddy does not come back with the new password\n%s", caddy.output)
		}
	}
	statuses(1, http.StatusTooManyRequests)
	for _, trouble := range []string{"NOPERM", "WRONGPASS", "NOAUTH"} {
		if strings.Contains(caddy.output.String(), trouble) {
			t.Errorf("%s in the log\n%s", trouble, caddy.output)
		}
	}
}
