// Package caddytest tests the plugin from outside, as Caddy uses it:
// configurations are adapted, loaded and used over HTTP in this process. Tests
// with several processes are in internal/e2e.
package caddytest
