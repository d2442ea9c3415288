package settings

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// ParseMatchers parses a named matcher, or a block or line of matchers, behind the word at
// the current token. A matcher that the server could not set up is an error, as far
// as that does not depend on the machine.
func ParseMatchers(p httpcaddyfile.Helper) (caddy.ModuleMap, error) {
	word, start := p.Val(), *p.Dispenser
	if p.NextArg() {
		name := p.Val()
		p.Prev()
		if strings.HasPrefix(name, "@") {
			set, _, err := p.MatcherToken()
			if err != nil {
				return nil, p.Errf("matcher %s is not defined; define it in this site: %s <matchers>", name, name)
			}
			if err := checkMatchers(set); err != nil {
				// Caddy does not tell where the name is defined.
				return nil, p.Errf("%s is a wrong matcher: %v", name, err)
			}
			if p.NextArg() {
				return nil, p.Errf("%s takes one named matcher; repeat %s for another: any of them counts", word, word)
			}
			return set, nil
		}
	}
	if err := lookAtMatchers(start, word); err != nil {
		return nil, err
	}
	set, err := caddyhttp.ParseCaddyfileNestedMatcherSet(p.Dispenser)
	if err != nil {
		return nil, err
	}
	if len(set) == 0 {
		return nil, start.Errf("%s has no matcher; write %s @name, or %s { <matchers> }", word, word, word)
	}
	if err := checkMatchers(set); err != nil {
		// Each line is right by itself, such as that of a host which is
		// listed twice.
		return nil, start.Errf("%s: %v", word, err)
	}
	return set, nil
}

// lookAtMatchers looks ahead at a matcher set, which follows word, for what is
// wrong in one of its lines. Caddy's parser finds some of it too, but points at
// the end of the set.
func lookAtMatchers(ahead caddyfile.Dispenser, word string) error {
	for nesting := ahead.Nesting(); ahead.NextArg() || ahead.NextBlock(nesting); {
		at, name := ahead, ahead.Val()
		if ahead.Token().Quoted() {
			expression := caddyconfig.JSON(caddyhttp.MatchExpression{Expr: name}, nil)
			if err := checkMatcher("expression", expression); err != nil {
				return at.Errf("%v", err)
			}
			continue
		}
		module, err := caddy.GetModule("http.matchers." + name)
		if err != nil {
			return noMatcher(&at, name, word)
		}
		if err := lookAtMatcher(at, module, ahead.NextSegment()); err != nil {
			return err
		}
	}
	return nil
}

// lookAtMatcher looks at one matcher, which stands at the given place and is
// written in tokens.
func lookAtMatcher(at caddyfile.Dispenser, module caddy.ModuleInfo, tokens []caddyfile.Token) error {
	if module.ID.Name() == "not" {
		nested := caddyfile.NewDispenser(tokens)
		nested.Next()
		return lookAtMatchers(*nested, "not")
	}
	if remedies[module.ID.Name()] == "" {
		return nil
	}
	matcher, ok := module.New().(caddyfile.Unmarshaler)
	if !ok || matcher.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)) != nil {
		return nil // Caddy's parser says so
	}
	if err := checkMatcher(module.ID.Name(), caddyconfig.JSON(matcher, nil)); err != nil {
		return at.Errf("%v", err)
	}
	return nil
}

// noMatcher says what to write instead of a word that is no matcher.
func noMatcher(d *caddyfile.Dispenser, name, word string) error {
	switch {
	case name == "*" && word == "match":
		return d.Err("match * is every request, as without match; remove it")
	case name == "*" && word == "exempt":
		return d.Errf("%s * is every request, so that the zone would do nothing; remove the zone", word)
	case strings.HasPrefix(name, "@") && word != "not":
		return d.Errf("a named matcher stands by itself; write: %s %s", word, name)
	case strings.HasPrefix(name, "/"):
		return d.Errf("%q is not a matcher; write: %s path %s", name, word, name)
	case LooksLikeRange(name):
		return d.Errf("%q is not a matcher; write: %s client_ip %s", name, word, name)
	}
	return d.Errf("there is no matcher %q; see https://caddyserver.com/docs/caddyfile/matchers", name)
}

const (
	writeRegexp = "see https://github.com/google/re2/wiki/Syntax"
	seeMatchers = "see https://caddyserver.com/docs/caddyfile/matchers"
)

// remedies are the matchers whose mistakes show wherever the Caddyfile is
// parsed, and what to write instead.
//
// They are Caddy's own, and are set up from nothing but what is written. What a
// plugin's matcher needs, such as an app or a file, may only be there when the
// server loads the configuration: to set it up here would find mistakes where
// there are none. Caddy's other matchers take everything that they can parse.
var remedies = map[string]string{
	"client_ip":     WriteRanges,
	"expression":    seeMatchers + "#expression",
	"file":          seeMatchers + "#file",
	"header_regexp": writeRegexp,
	"host":          seeMatchers + "#host",
	"path_regexp":   writeRegexp,
	"remote_ip":     WriteRanges,
	"url_pattern":   "see https://urlpattern.spec.whatwg.org",
	"vars_regexp":   writeRegexp,
}

// checkMatchers finds a matcher of the set that could not be set up.
func checkMatchers(set caddy.ModuleMap) error {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if err := checkMatcher(name, set[name]); err != nil {
			return err
		}
	}
	return nil
}

// checkMatcher sets the matcher up as the server would, if that can be done
// here. Whatever may depend on the machine is taken to be right.
func checkMatcher(name string, raw json.RawMessage) error {
	switch name {
	case "not":
		var sets []caddy.ModuleMap
		if err := json.Unmarshal(raw, &sets); err != nil {
			return nil
		}
		for _, set := range sets {
			if err := checkMatchers(set); err != nil {
				return fmt.Errorf("not: %w", err)
			}
		}
		return nil
	case "client_ip", "remote_ip":
		raw = withoutPlaceholders(raw)
	case "expression":
		// An escaped placeholder is left to the functions: client_ip expands
		// it when it is set up.
		if strings.Contains(string(raw), `\\{`) || pluginsInExpressions(caddy.GetModules("http.matchers")) {
			return nil
		}
	}
	remedy := remedies[name]
	if remedy == "" {
		return nil
	}
	if _, err := ProvisionAlone("http.matchers."+name, raw); err != nil {
		return fmt.Errorf("%s: %v; %s", name, err, remedy)
	}
	return nil
}

// withoutPlaceholders leaves out ranges with placeholders, such as {env.OFFICE}:
// they are expanded when the matcher is set up, by the environment of the
// server.
func withoutPlaceholders(raw json.RawMessage) json.RawMessage {
	var matcher struct {
		Ranges []string `json:"ranges,omitempty"`
	}
	if err := json.Unmarshal(raw, &matcher); err != nil {
		return raw
	}
	matcher.Ranges = slices.DeleteFunc(matcher.Ranges, HasPlaceholder)
	return caddyconfig.JSON(matcher, nil)
}

// pluginsInExpressions reports whether expressions may call matchers that are
// not Caddy's own. An expression sets up what it calls.
func pluginsInExpressions(matchers []caddy.ModuleInfo) bool {
	return slices.ContainsFunc(matchers, func(info caddy.ModuleInfo) bool {
		matcher := info.New()
		kind := reflect.TypeOf(matcher)
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		_, called := matcher.(caddyhttp.CELLibraryProducer)
		return called && !strings.HasPrefix(kind.PkgPath(), "github.com/caddyserver/caddy/v2/")
	})
}
