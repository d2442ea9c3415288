package caddytest

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// The manual lists all metrics, and no others.
func TestMetricsAreDocumented(t *testing.T) {
	start(t, twoZones)
	descs := make(chan *prometheus.Desc)
	ctx := caddy.ActiveContext()
	go func() {
		ctx.GetMetricsRegistry().Describe(descs)
		close(descs)
	}()
	var there []string
	name := regexp.MustCompile(`fqName: "caddy_distributed_ratelimit_([a-z_]+)"`)
	for desc := range descs {
		if m := name.FindStringSubmatch(desc.String()); m != nil {
			there = append(there, m[1])
		}
	}
	page, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| .* \\| .* \\| .* \\|$").FindAllStringSubmatch(string(page), -1) {
		told = append(told, m[1])
	}
	slices.Sort(there)
	slices.Sort(told)
	if len(there) == 0 || !slices.Equal(there, told) {
		t.Errorf("metrics in docs/monitoring.md: got %v, want those that are there: %v", told, there)
	}
}
