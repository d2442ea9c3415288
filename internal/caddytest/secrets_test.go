package caddytest

import (
	"strings"
	"testing"
)

// A password that stands in the configuration is shown by caddy adapt and the
// admin API. Nobody warned its author.
func TestSecretsInTheConfigurationAreWarnedOf(t *testing.T) {
	const warning = "a secret stands in the configuration itself, which caddy adapt and the admin API show; write a placeholder such as {env.REDIS_URL} or {file./run/secrets/redis} ({$REDIS_URL} is replaced before, and shown)"
	t.Setenv("REDIS_URL", "redis://:hunter2@127.0.0.1:1")
	t.Setenv("SECRET", "hunter2")
	for _, row := range []struct {
		store, option string
	}{
		{"redis redis://:hunter2@127.0.0.1:1", "url"},
		{"redis {$REDIS_URL}", "url"},
		{"redis redis://127.0.0.1:1 {\n\t\t\tpassword hunter2\n\t\t}", "password"},
		{"redis redis://127.0.0.1:1 {\n\t\t\tkey_secret hunter2\n\t\t}", "key_secret"},
		{"redis {env.REDIS_URL}", ""},
		{"redis redis://127.0.0.1:1 {\n\t\t\tpassword {env.SECRET}\n\t\t\tkey_secret {env.SECRET}\n\t\t}", ""},
		{"redis redis://127.0.0.1:1", ""},
	} {
		t.Run(row.store, func(t *testing.T) {
			e := start(t, "{\n\tdistributed_ratelimit {\n\t\tstore "+row.store+"\n\t}\n}\nhttp://a.test {\n\tdistributed_ratelimit 1 1h\n}")
			if row.option == "" {
				e.log.says(0, warning)
				return
			}
			if line := e.log.says(1, warning)[0]; line["option"] != row.option {
				t.Errorf("option: got %v, want %s", line["option"], row.option)
			}
			if strings.Contains(e.log.text(), "hunter2") {
				t.Error("the log shows the secret")
			}
		})
	}
}
