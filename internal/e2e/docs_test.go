package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// Every Caddyfile in the documentation, and every example, is one that Caddy
// takes, without the Redis that they name.
func TestDocumentedCaddyfiles(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://:secret@127.0.0.1:1")
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, path := range append(docs, "../../README.md", "../../examples/kubernetes/README.md") {
		for i, text := range fenced(t, path) {
			texts[fmt.Sprintf("%s, Caddyfile %d", filepath.Base(path), i+1)] = text
		}
	}
	if len(texts) < 5 {
		t.Errorf("only %d Caddyfiles found in the documentation", len(texts))
	}
	example, err := os.ReadFile("../../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	texts["Caddyfile.example"] = string(example)
	texts["Caddyfile.example on Redis"] = strings.ReplaceAll(string(example), "{$RATELIMIT_STORE:memory}", "redis {env.REDIS_URL}")

	secrets := t.TempDir() + "/"
	if err := os.WriteFile(secrets+"CADDY_PASSWORD", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	recipes, err := filepath.Glob("../../examples/*/Caddyfile")
	if err != nil || len(recipes) == 0 {
		t.Fatalf("%d examples, %v", len(recipes), err)
	}
	for _, path := range recipes {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// The password is mounted there.
		texts["examples/"+filepath.Base(filepath.Dir(path))] = strings.ReplaceAll(string(text), "/run/secrets/redis/", secrets)
	}

	for name, text := range texts {
		t.Run(name, func(t *testing.T) {
			adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": name})
			if err != nil {
				t.Fatalf("adapting: %v\n%s", err, text)
			}
			var cfg caddy.Config
			if err := json.Unmarshal(adapted, &cfg); err != nil {
				t.Fatal(err)
			}
			provisioning.Lock()
			defer provisioning.Unlock()
			if err := caddy.Validate(&cfg); err != nil {
				t.Errorf("validating: %v\n%s", err, text)
			}
		})
	}
}

// fenced returns the blocks of a document that are marked as Caddyfiles.
func fenced(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, part := range strings.Split(string(text), "```caddyfile\n")[1:] {
		block, _, closed := strings.Cut(part, "```")
		if !closed {
			t.Errorf("%s: a block is not closed", path)
		}
		blocks = append(blocks, block)
	}
	return blocks
}

// manualPages is README.md, CONTRIBUTING.md and all pages in docs, by path.
func manualPages(t *testing.T) map[string]string {
	t.Helper()
	paths := []string{"README.md", "CONTRIBUTING.md"}
	docs, err := filepath.Glob(root + "docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range docs {
		paths = append(paths, "docs/"+filepath.Base(path))
	}
	pages := make(map[string]string)
	for _, path := range paths {
		pages[path] = pageOf(t, path)
	}
	return pages
}

// TestDocumentedLinks: what the pages link to within the repository is there,
// headings included.
func TestDocumentedLinks(t *testing.T) {
	pages := manualPages(t)
	links := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	found := 0
	for path, text := range pages {
		for _, m := range links.FindAllStringSubmatch(withoutBlocks(text), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			found++
			to := filepath.Join(filepath.Dir(path), target)
			if target == "" {
				to = path
			}
			if _, err := os.Stat(root + to); err != nil {
				t.Errorf("%s links to %s, and there is no such file", path, m[1])
				continue
			}
			if anchor != "" && strings.HasSuffix(to, ".md") && !anchors(pageOf(t, to))[anchor] {
				t.Errorf("%s links to %s, and there is no such heading", path, m[1])
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d links found", found)
	}
}

// TestDocumentedIndex: the index links to every page of the manual, and the README stays
// short and links to what one looks for there.
func TestDocumentedIndex(t *testing.T) {
	index, readme := pageOf(t, "docs/README.md"), pageOf(t, "README.md")
	for path := range manualPages(t) {
		if page, ok := strings.CutPrefix(path, "docs/"); ok && page != "README.md" && !strings.Contains(index, "]("+page+")") {
			t.Errorf("docs/README.md does not link to %s", page)
		}
	}
	for _, target := range []string{
		"docs/README.md", "docs/getting-started.md", "docs/recipes.md", "docs/configuration.md", "docs/migrating.md",
		"docs/replay.md", "docs/operating.md", "docs/monitoring.md", "docs/commands.md", "docs/admin-api.md",
		"docs/versions.md", "docs/writing-a-store.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md",
		"examples/README.md", "examples/compose/README.md", "examples/kubernetes/README.md", "examples/kubernetes-sentinel/README.md",
	} {
		if !strings.Contains(readme, "]("+target+")") {
			t.Errorf("README.md does not link to %s", target)
		}
	}
	if lines := strings.Count(readme, "\n"); lines > 200 {
		t.Errorf("README.md has %d lines, more than 200", lines)
	}
}

// anchors is by what names the headings of a page can be linked to, as GitHub
// makes them.
func anchors(text string) map[string]bool {
	names := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(withoutBlocks(text), -1) {
		name := strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")
		names[regexp.MustCompile(`[^a-z0-9_-]`).ReplaceAllString(name, "")] = true
	}
	return names
}

// withoutBlocks is a page without its fenced blocks.
func withoutBlocks(text string) string {
	return regexp.MustCompile("(?ms)^ *```.*?^ *```").ReplaceAllString(text, "")
}

// TestOperatingNamesWhatIsThere: what the page for the person on call quotes of
// log lines, errors and metrics stands so in the code.
func TestOperatingNamesWhatIsThere(t *testing.T) {
	var code strings.Builder
	for _, folder := range []string{"", "internal/identity/", "internal/keys/", "internal/stores/", "store/redis/", "store/fallback/"} {
		files, err := filepath.Glob(root + folder + "*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(source)
		}
	}
	page := withoutBlocks(pageOf(t, "docs/operating.md"))
	quoted := 0
	for _, pattern := range []string{
		"`([a-z']+(?: [a-z'A-Z]+){2,})`", // three words and more
		"`((?:store|requests|refusals|identified|empty|bans|usage)_[a-z_]+)(?:\\{[^`]*)?`", // a metric
	} {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(page, -1) {
			quoted++
			if !strings.Contains(code.String(), m[1]) {
				t.Errorf("the page quotes `%s`, and the code has no such text", m[1])
			}
		}
	}
	if quoted < 40 {
		t.Errorf("only %d quotations found", quoted)
	}
}

// TestDocumentedCommands: every command of this plugin that the manual names is
// there, with its flags.
func TestDocumentedCommands(t *testing.T) {
	binary, err := caddyBinary()
	if err != nil {
		t.Fatalf("building Caddy: %v", err)
	}
	help := make(map[string]string)
	found := 0
	for path, text := range manualPages(t) {
		for _, m := range regexp.MustCompile("caddy distributed-ratelimit ([a-z]+)([^`\n]*)").FindAllStringSubmatch(text, -1) {
			command, args := m[1], m[2]
			if help[command] == "" {
				out, err := exec.Command(binary, "distributed-ratelimit", command, "--help").CombinedOutput()
				if err != nil || !strings.Contains(string(out), "caddy distributed-ratelimit "+command+" ") {
					t.Errorf("%s names the command %s: %v\n%s", path, command, err, out)
					continue
				}
				help[command] = string(out)
			}
			found++
			for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(args, -1) {
				if !strings.Contains(help[command], flag+" ") {
					t.Errorf("%s: %s has no flag %s", path, command, flag)
				}
			}
		}
	}
	if found < 8 {
		t.Errorf("only %d commands found", found)
	}
}

// TestOperatingHasEveryAlert: the page says what to do about each alert.
func TestOperatingHasEveryAlert(t *testing.T) {
	page := pageOf(t, "docs/operating.md")
	alerts := regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(pageOf(t, "docs/monitoring/alerts.yml"), -1)
	if len(alerts) < 5 {
		t.Errorf("only %d alerts found", len(alerts))
	}
	for _, alert := range alerts {
		if !strings.Contains(page, "| `"+alert[1]+"` |") {
			t.Errorf("the page does not say what to do about %s", alert[1])
		}
	}
}

// TestMonitoringHasEveryAlert: the page has a row for each alert, with its severity, and for
// no other.
func TestMonitoringHasEveryAlert(t *testing.T) {
	var there, told []string
	for _, m := range regexp.MustCompile(`(?s)- alert: (\w+)\n.*?severity: (\w+)\n`).FindAllStringSubmatch(pageOf(t, "docs/monitoring/alerts.yml"), -1) {
		there = append(there, m[1]+" "+m[2])
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(RateLimit\\w+)` \\| .* \\| (\\w+) \\|$").FindAllStringSubmatch(pageOf(t, "docs/monitoring.md"), -1) {
		told = append(told, m[1]+" "+m[2])
	}
	if len(there) < 5 || !slices.Equal(there, told) {
		t.Errorf("docs/monitoring.md has the alerts %v, want those of monitoring/alerts.yml in their order: %v", told, there)
	}
}
