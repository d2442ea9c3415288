package distributedratelimit

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
)

// warnOfKeys warns of keys that may be no limit. It is called before zones are
// provisioned, which takes their matchers away.
func (h *Handler) warnOfKeys(ctx caddy.Context) {
	server, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	anyHost := !namesItsHosts(server)
	templates := make([]keys.Template, len(h.Zones))
	var addresses []*Zone // limited by the address alone
	for i, zone := range h.Zones {
		templates[i], _ = keys.Parse(zone.Key) // check has found the mistakes
		if templates[i].AddressAlone() {
			addresses = append(addresses, zone)
		}
	}
	for i, zone := range h.Zones {
		key := &templates[i]
		covers := func(by *Zone) bool { return by.covers(zone) }
		if chosen := key.ChosenByClient(anyHost); chosen != "" && !slices.ContainsFunc(addresses, covers) {
			h.logger.Warn("the client chooses a part of this key, and so has as many limits as it likes; "+
				"put a zone beside it, in the same distributed_ratelimit, that is keyed on the address alone (no key, or key {client_ip}) and has no match or the same one",
				zap.String("zone", zone.Name), zap.String("key", zone.Key), zap.String("placeholder", "{"+chosen+"}"))
		}
		h.warnOfForeign(zone, "key", key)
		if zone.Tier != nil {
			plan, _ := keys.ParseValue(readTier.String(), zone.Tier.Plan)
			h.warnOfChosen(zone, readTier, &plan, anyHost)
		}
		if zone.Cost != nil && zone.Cost.From != "" {
			from, _ := keys.ParseValue(readCost.String(), zone.Cost.From)
			h.warnOfChosen(zone, readCost, &from, anyHost)
		}
	}
}

// warnOfForeign warns of a placeholder that Caddy itself does not have.
func (h *Handler) warnOfForeign(zone *Zone, word string, t *keys.Template) {
	if foreign := t.Foreign(); foreign != "" {
		h.logger.Warn("Caddy itself does not have this placeholder of a "+word+"; unless a plugin or the directive map sets it, it is empty",
			zap.String("zone", zone.Name), zap.String(word, t.Text()), zap.String("placeholder", "{"+foreign+"}"))
	}
}

// warnOfChosen warns of what a word of the zone reads from the client's own words.
func (h *Handler) warnOfChosen(zone *Zone, word readWord, t *keys.Template, anyHost bool) {
	h.warnOfForeign(zone, word.String(), t)
	chosen := t.ChosenByClient(anyHost)
	if chosen == "" {
		return
	}
	const remedy = "; let authentication or map say it, and read it from there: in a route, write authentication, then for example " +
		"vars %s {http.auth.user.%[1]s}, then distributed_ratelimit with {http.vars.%[1]s}. " +
		"A header that forward_auth sets with copy_headers, or that this server always overwrites, is safe"
	fields := []zap.Field{zap.String("zone", zone.Name), zap.String(word.String(), t.Text()), zap.String("placeholder", "{"+chosen+"}")}
	switch word {
	case readTier:
		h.logger.Warn("the client writes what this tier reads, and so chooses its own plan"+fmt.Sprintf(remedy, "plan"), fields...)
	case readCost:
		h.logger.Warn("the client writes what this cost reads, and so chooses its own price, between min and max"+fmt.Sprintf(remedy, "cost"), fields...)
	}
}

// covers reports whether z limits every request that other applies to.
func (z *Zone) covers(other *Zone) bool {
	return (!z.DryRun || other.DryRun) && (len(z.MatchRaw) == 0 || sameMatchers(z.MatchRaw, other.MatchRaw))
}

func sameMatchers(a, b caddyhttp.RawMatcherSets) bool {
	return slices.EqualFunc(a, b, func(x, y caddy.ModuleMap) bool {
		if len(x) != len(y) {
			return false
		}
		for name, raw := range x {
			if other, ok := y[name]; !ok || string(raw) != string(other) {
				return false
			}
		}
		return true
	})
}

// namesItsHosts reports whether every site of a server is for hosts that are
// named in full, so that no request passes with a host of the client's making.
func namesItsHosts(server *caddyhttp.Server) bool {
	if server == nil {
		return false
	}
	return !slices.ContainsFunc(server.Routes, func(route caddyhttp.Route) bool {
		return len(route.MatcherSets) == 0 || slices.ContainsFunc(route.MatcherSets, func(set caddyhttp.MatcherSet) bool {
			return !slices.ContainsFunc(set, namesHosts)
		})
	})
}

func namesHosts(matcher any) bool {
	var hosts caddyhttp.MatchHost
	switch m := matcher.(type) {
	case caddyhttp.MatchHost:
		hosts = m
	case *caddyhttp.MatchHost:
		hosts = *m
	}
	return len(hosts) > 0 && !slices.ContainsFunc(hosts, func(host string) bool { return strings.ContainsAny(host, "*{") })
}

// warnOfRemoteIP warns of matchers that look at the peer although that is a
// proxy: `exempt remote_ip private_ranges` exempts everybody then. It is called
// before the matchers are loaded, which drops their JSON. zone is empty for the
// matchers of the handler.
func (h *Handler) warnOfRemoteIP(zone, word string, sets caddyhttp.RawMatcherSets) {
	if !h.identity.TrustsProxies() {
		return
	}
	raw, err := json.Marshal(sets)
	if err == nil && remoteIPMatcher.Match(raw) {
		h.logger.Warn("remote_ip in a zone is the address of the proxy for every client behind one; write client_ip for that of the client",
			zap.String("zone", zone), zap.String("in", word))
	}
}

// remoteIPMatcher finds the matcher also within not and in an expression.
var remoteIPMatcher = regexp.MustCompile(`"remote_ip":|remote_ip\(`)
