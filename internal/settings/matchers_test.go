package settings

import (
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// An expression sets up what it calls, so it can only be judged here if that
// cannot be the matcher of a plugin.
func TestExpressionsThatMayCallPlugins(t *testing.T) {
	of := func(matcher caddy.Module) caddy.ModuleInfo {
		return caddy.ModuleInfo{New: func() caddy.Module { return matcher }}
	}
	own := slices.DeleteFunc(caddy.GetModules("http.matchers"), func(info caddy.ModuleInfo) bool {
		return remedies[info.ID.Name()] == "" && info.ID.Name() != "path"
	})
	if len(own) < 5 {
		t.Fatalf("Caddy's own matchers: got %v, want those that are checked", own)
	}
	for name, row := range map[string]struct {
		matchers []caddy.ModuleInfo
		want     bool
	}{
		"Caddy's own":                    {own, false},
		"a plugin that cannot be called": {slices.Concat(own, []caddy.ModuleInfo{of(pluginMatcher{})}), false},
		"a plugin that can":              {slices.Concat(own, []caddy.ModuleInfo{of(new(calledMatcher))}), true},
	} {
		if got := pluginsInExpressions(row.matchers); got != row.want {
			t.Errorf("%s: got %v, want %v", name, got, row.want)
		}
	}
}

type pluginMatcher struct{}

func (pluginMatcher) CaddyModule() caddy.ModuleInfo { return caddy.ModuleInfo{} }

type calledMatcher struct {
	pluginMatcher
	caddyhttp.CELLibraryProducer
}
