package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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
	for _, path := range append(docs, "../../README.md") {
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

	recipes, err := filepath.Glob("../../examples/*/Caddyfile")
	if err != nil || len(recipes) == 0 {
		t.Fatalf("%d examples, %v", len(recipes), err)
	}
	for _, path := range recipes {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts["examples/"+filepath.Base(filepath.Dir(path))] = string(text)
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
