package main

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// The web servers that are compared.

//go:embed node/package.json node/package-lock.json node/server.js
var nodeFiles embed.FS

const nameExpress = "express-rate-limit + rate-limit-redis"

// nodePackages are the packages whose versions the report gives.
var nodePackages = []string{"express", "express-rate-limit", "rate-limit-redis", "redis"}

// installNode installs the pinned packages into a directory of the run, once.
func (r *rig) installNode() (dir string, err error) {
	if r.webOnce {
		return r.nodeDir, r.nodeFail
	}
	r.webOnce = true
	defer func() { r.nodeFail = err }()
	if _, err := exec.LookPath("node"); err != nil {
		return "", err
	}
	dir = r.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "server.js"} {
		data, err := nodeFiles.ReadFile("node/" + name)
		r.must(err)
		r.must(os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}
	r.log("npm ci")
	cmd := exec.CommandContext(r.ctx, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-timeout=30000", "--fetch-retries=1")
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %v: %s", err, lastLine(output))
	}
	r.nodeDir = dir
	return dir, nil
}

func lastLine(output []byte) string {
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	return lines[len(lines)-1]
}

// nodeVersions returns the versions of what installNode has installed.
func (r *rig) nodeVersions() (versions []version) {
	for _, name := range nodePackages {
		data, err := os.ReadFile(filepath.Join(r.nodeDir, "node_modules", name, "package.json"))
		if err != nil {
			continue // it is named as missing elsewhere
		}
		var about struct {
			Version string `json:"version"`
		}
		r.must(json.Unmarshal(data, &about))
		versions = append(versions, version{name, about.Version})
	}
	return versions
}

// startNode starts Express. Settings are limit (redis or none), events and
// window in milliseconds.
func (r *rig) startNode(settings map[string]string) (*process, error) {
	dir, err := r.installNode()
	if err != nil {
		return nil, err
	}
	port := strconv.Itoa(r.freePort())
	cmd := exec.Command("node", "server.js")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NODE_ENV=production", "PORT="+port, "REDIS_URL=redis://"+r.redis.Addr,
		"LIMIT="+settings["limit"], "EVENTS="+settings["events"], "WINDOW_MS="+settings["window"])
	p, err := r.launch(cmd, "http://127.0.0.1:"+port+"/")
	if err != nil {
		return nil, err
	}
	r.empty() // of the request that found it running
	return p, nil
}

// buildCaddy builds the Caddy of the module under test.
func (r *rig) buildCaddy() (string, error) {
	path := filepath.Join(r.dir, "caddy")
	r.log("building Caddy")
	cmd := exec.CommandContext(r.ctx, "go", "build", "-o", path, "./cmd/caddy")
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/caddy in %s: %v: %s", r.root, err, lastLine(output))
	}
	return path, nil
}

// startCaddy starts a Caddy whose only site answers "ok", with a limiter on
// a store or, if that is empty, without one.
func (r *rig) startCaddy(program, store string) (*process, error) {
	port := r.freePort()
	global, directive := "", ""
	if store != "" {
		global = "distributed_ratelimit {\n\t\tstore " + store + "\n\t}"
		directive = fmt.Sprintf("distributed_ratelimit %d 1m bench", plenty.limit)
	}
	dir := r.TempDir()
	config := filepath.Join(dir, "Caddyfile")
	r.must(os.WriteFile(config, fmt.Appendf(nil, `{
	admin off
	auto_https off
	persist_config off
	%s
}

http://:%d {
	bind 127.0.0.1
	%s
	respond "ok"
}
`, global, port, directive), 0o644))
	cmd := exec.Command(program, "run", "--config", config, "--adapter", "caddyfile")
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	return r.launch(cmd, fmt.Sprintf("http://127.0.0.1:%d/", port))
}

// openHTTP returns a limiter that asks a web server: 200 is granted, 429
// refused. Each has connections of its own.
func openHTTP(url string) func() (limiter, error) {
	return func() (limiter, error) {
		transport := &http.Transport{MaxIdleConnsPerHost: attackers}
		client := &http.Client{Transport: transport}
		return &rival{func(string) (bool, error) {
			response, err := client.Get(url)
			if err != nil {
				return false, err
			}
			_, err = io.Copy(io.Discard, response.Body)
			if err := errors.Join(err, response.Body.Close()); err != nil {
				return false, err
			}
			switch response.StatusCode {
			case http.StatusOK:
				return true, nil
			case http.StatusTooManyRequests:
				return false, nil
			}
			return false, fmt.Errorf("status %s", response.Status)
		}, transport.CloseIdleConnections}, nil
	}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
