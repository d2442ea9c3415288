package caddytest

import (
	"regexp"
	"testing"
)

// FuzzCaddyfile: no Caddyfile makes the parser panic, and what it accepts
// provisions or is an error, but never a panic either.
func FuzzCaddyfile(f *testing.F) {
	for _, text := range goldens(f) {
		f.Add(string(text))
	}
	for _, text := range []string{
		site("trusted_proxies static 0.0.0.0/0"),
		zone("match {", "not path /x", "}", "exempt @a", "key {client_ip}{"),
		zone("match `{path} == \"/x\"`", "exempt expression true"),
		global("store memory {", "max_keys 1", "}"),
		redis("tls {", "ca {file./x}", "}", "db 1"),
		":80 {\n\tdistributed_ratelimit 0 30d \"\" {\n\t\tjitter 1e3%\n\t}\n}",
	} {
		f.Add(text)
	}
	// Provisioning reads files, opens sockets in the background and follows
	// imports: what a fuzzer may not choose is left out.
	unsafe := regexp.MustCompile(`import|file|\bca\b|\bcert\b|\bkey\s+/|redis|tls|acme|storage|log|pki|php|events|\{\$`)
	f.Fuzz(func(t *testing.T, text string) {
		config, err := adapt(text)
		if err != nil || unsafe.Match(config) {
			return
		}
		if err := validated(t, config); err != nil {
			t.Skip(err)
		}
	})
}
