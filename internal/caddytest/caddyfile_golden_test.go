package caddytest

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"

	distributedratelimit "github.com/caddy-distributed-ratelimit/distributed-ratelimit"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// goldens returns the Caddyfiles in testdata/adapt by name.
func goldens(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "adapt", "*.caddyfile"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden Caddyfiles: %v", err)
	}
	files := make(map[string][]byte)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(path), ".caddyfile")] = text
	}
	return files
}

// Every Caddyfile in testdata/adapt adapts to the JSON next to it, which
// loads without a Redis server and is the same after a round trip.
func TestCaddyfileAdapts(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://:secret@127.0.0.1:1")
	t.Setenv("REDIS_PASSWORD", "secret")
	t.Setenv("SENTINEL_PASSWORD", "secret")
	t.Setenv("KEY_SECRET", "secret")
	for name, text := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			if formatted := caddyfile.Format(text); !bytes.Equal(formatted, text) {
				t.Errorf("the Caddyfile is not formatted; want:\n%s", formatted)
			}
			var indented bytes.Buffer
			if err := json.Indent(&indented, adapted(t, string(text)), "", "\t"); err != nil {
				t.Fatal(err)
			}
			indented.WriteByte('\n')
			path := filepath.Join("testdata", "adapt", name+".json")
			if *update {
				if err := os.WriteFile(path, indented.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v; run: go test ./internal/caddytest -run TestCaddyfileAdapts -update", err)
			}
			if !bytes.Equal(indented.Bytes(), want) {
				t.Errorf("adapting %s.caddyfile: got\n%s\nwant\n%s", name, indented.Bytes(), want)
			}

			if err := validated(t, want); err != nil {
				t.Errorf("provisioning: %v", err)
			}
			roundTrip(t, want)
		})
	}
}

// validated provisions a configuration without running it.
func validated(t testing.TB, config []byte) error {
	t.Helper()
	var cfg caddy.Config
	if err := json.Unmarshal(config, &cfg); err != nil {
		return err
	}
	cfg.Admin = &caddy.AdminConfig{Disabled: true}
	cfg.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{
		"default": {BaseLog: caddy.BaseLog{WriterRaw: []byte(`{"output": "discard"}`)}},
	}}
	return caddy.Validate(&cfg)
}

// roundTrip expects that every handler and the app keep all their fields when
// they are read from JSON and written to it.
func roundTrip(t *testing.T, config []byte) {
	t.Helper()
	var cfg any
	if err := json.Unmarshal(config, &cfg); err != nil {
		t.Fatal(err)
	}
	check := func(part, module any) {
		t.Helper()
		before, _ := json.Marshal(part)
		if err := json.Unmarshal(before, module); err != nil {
			t.Fatalf("reading %s: %v", before, err)
		}
		after, err := json.Marshal(module)
		if err != nil {
			t.Fatalf("writing %s: %v", before, err)
		}
		var again any
		_ = json.Unmarshal(after, &again)
		if after, _ := json.Marshal(again); !bytes.Equal(before, after) {
			t.Errorf("round trip of %T: got %s, want %s", module, after, before)
		}
	}
	if app := dig(cfg, "apps", "distributed_ratelimit"); app != nil {
		check(app, new(distributedratelimit.App))
	}
	handlers := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if v["handler"] == "distributed_ratelimit" {
				delete(v, "handler")
				check(v, new(distributedratelimit.Handler))
				handlers++
			}
			for _, w := range v {
				walk(w)
			}
		case []any:
			for _, w := range v {
				walk(w)
			}
		}
	}
	walk(dig(cfg, "apps", "http"))
	if handlers == 0 {
		t.Error("the golden configuration has no handler of ours")
	}
}

func TestDirectiveStandsBeforeRewritesAndAuthentication(t *testing.T) {
	config := string(adapted(t, string(goldens(t)["order"])))
	places := []int{
		strings.Index(config, `"handler":"headers"`), strings.Index(config, `"handler":"distributed_ratelimit"`),
		strings.Index(config, `"handler":"rewrite"`), strings.Index(config, `"handler":"authentication"`),
		strings.Index(config, `"handler":"static_response"`),
	}
	for i, place := range places {
		if place < 0 || (i > 0 && place < places[i-1]) {
			t.Errorf("order of header, distributed_ratelimit, rewrite, basic_auth and respond: got offsets %v, want ascending ones", places)
		}
	}
}
