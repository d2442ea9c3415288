package migration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// installedIn is the directory of what npm has installed, once there is one.
var installedIn string

// npm installs what node/package.json names, once in a process, and returns its
// directory.
var npm = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "migration")
	if err != nil {
		return "", err
	}
	installedIn = dir
	if err := os.CopyFS(dir, os.DirFS("node")); err != nil {
		return "", err
	}
	cmd := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--fetch-timeout=60000", "--fetch-retries=2")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %v; it takes Node 20 or later with npm, and npm's registry:\n%s", err, out)
	}
	return dir, nil
})

// installed is npm's directory. Without Node or npm's registry, the test is skipped on
// a developer's machine, and fails where CI is set.
func installed(t *testing.T) string {
	t.Helper()
	dir, err := npm()
	switch {
	case err == nil:
		return dir
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return ""
}

// node runs a script that listens on the port in PORT, and returns its URL.
func node(t *testing.T, script string, env ...string) string {
	t.Helper()
	port := freePort(t)
	cmd := exec.Command("node", script)
	cmd.Dir = installed(t)
	cmd.Env = append(append(os.Environ(), "PORT="+port), env...)
	program(t, port, cmd)
	return "http://127.0.0.1:" + port
}

// copied puts a file beside the packages, as npm install would have them beside it.
func copied(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.ReplaceAll(strings.TrimPrefix(path, "../"), "/", "-")
	if err := os.WriteFile(filepath.Join(installed(t), name), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// read is what a client's parser makes of header fields.
type read struct {
	Limit, Remaining, Reset float64
}

// parsed has ratelimit-header-parser read the fields of responses; nil stands for one
// in which it finds nothing.
func parsed(t *testing.T, answers ...answer) []*read {
	t.Helper()
	var fields []map[string]string
	for _, a := range answers {
		f := make(map[string]string)
		for name := range a.header {
			f[strings.ToLower(name)] = a.header.Get(name)
		}
		fields = append(fields, f)
	}
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", "parse.mjs")
	cmd.Dir = installed(t)
	var failed bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node parse.mjs: %v\n%s", err, failed.String())
	}
	var found []*read
	if err := json.Unmarshal(out, &found); err != nil || len(found) != len(answers) {
		t.Fatalf("parse.mjs says %q: %v", out, err)
	}
	return found
}
