package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Every example starts with the command that the page of examples names, as the shell
// takes it, and answers. Only its address is another one: SITE, or PORT, is a
// free one. There is no Redis and no backend.
func TestExamplesStart(t *testing.T) {
	binary, err := caddyBinary()
	if err != nil {
		t.Fatal(err)
	}
	// Where the commands are run: the repository, with bin/caddy in it.
	folder := t.TempDir()
	for from, to := range map[string]string{binary: "bin/caddy", root + "examples": "examples"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, to)), 0o755); err != nil {
			t.Fatal(err)
		}
		whole, err := filepath.Abs(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(whole, filepath.Join(folder, to)); err != nil {
			t.Fatal(err)
		}
	}

	page := pageOf(t, "examples/README.md")
	commands := regexp.MustCompile(`(?m)^[A-Z].* bin/caddy run --config examples/([a-z-]+)/Caddyfile$`).FindAllStringSubmatch(page, -1)
	named := make(map[string]bool)
	for _, command := range commands {
		named[command[1]] = true
		t.Run(command[1], func(t *testing.T) { startsWith(t, folder, command[0], command[1]) })
	}
	folders, err := filepath.Glob(root + "examples/*/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range folders {
		name := filepath.Base(filepath.Dir(path))
		if name == "compose" || strings.HasPrefix(name, "kubernetes") {
			named[name] = true // with a test of its own
		}
		if !named[name] || !strings.Contains(page, "["+name+"]("+name+"/") {
			t.Errorf("examples/README.md has no command for %s, or no row in its table", name)
		}
	}
}

func startsWith(t *testing.T, folder, command, name string) {
	text := pageOf(t, "examples/"+name+"/Caddyfile")
	home := t.TempDir()
	env := append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home, "CADDY_ADMIN="+freeAddr(t))
	addr := freeAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	env = append(env, "SITE=http://"+addr, "PORT="+port)
	if !regexp.MustCompile(`(?m)^(\{\$SITE:|http://[a-z]+\.localhost:\{\$PORT:).* \{$`).MatchString(text) {
		t.Fatalf("no site of %s has its address from the environment", name)
	}
	output := new(lockedBuffer)
	// exec, so that it is Caddy and not the shell that is ended.
	cmd := exec.Command("bash", "-c", "exec env "+command)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = folder, env, output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })

	client := &http.Client{Timeout: time.Minute}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := client.Get("http://" + addr + "/")
		if err == nil {
			resp.Body.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s: Caddy has ended:\n%s", command, output)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: no answer: %v\n%s", command, err, output)
		}
	}
}
