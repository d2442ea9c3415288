package distributedratelimit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// adminZones answers GET zones.
func adminZones(c *adminCall) (any, error) {
	if c.app == nil {
		return []zoneAnswer{}, nil
	}
	return c.app.zoneAnswers(c.app.usedZones())
}

// adminZone answers GET zones/<zone>: a list as well, since a zone may be in force and
// a dry run.
func adminZone(c *adminCall) (any, error) {
	zones, err := c.zones()
	if err != nil {
		return nil, err
	}
	return c.app.zoneAnswers(zones)
}

func (a *App) zoneAnswers(zones []*usedZone) ([]zoneAnswer, error) {
	counted, err := countsByZone()
	if err != nil {
		return nil, err
	}
	answers := make([]zoneAnswer, 0, len(zones))
	for _, z := range zones {
		answer := z.configured()
		answer.UsedBy = a.usersOf(z)
		answer.Counters = counted[z.Name].orNone()
		answer.AtMost = multipleOf(z.atMost(time.Now()))
		if z.Concurrent != nil {
			n := inFlight.of(z.Name)
			answer.InFlight = &n
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

// configured is what the configuration says of the zone.
func (z *usedZone) configured() zoneAnswer {
	answer := zoneAnswer{
		Name: z.Name, Store: z.store, DryRun: z.DryRun, Hide: z.Hide,
		Events: z.Events, Concurrent: z.Concurrent,
		Window: seconds(z.window), BlockFor: seconds(time.Duration(z.BlockFor)),
		Key:   z.Key,
		Match: z.about.match, Exempt: slices.Clone(z.about.exempt),
		CountIf: len(z.CountIf) > 0, OnError: policyName(z.policy), LogKey: z.logKey(),
		Overrides: []overrideAnswer{},
	}
	if z.Key == "" {
		answer.Key = "{" + keys.ClientPlaceholder + "}"
	}
	if z.key.Normal.Any() {
		answer.KeyNormalize = z.key.Normal.String()
	}
	if z.key.Dynamic() && !z.key.NeverEmpty() {
		answer.OnEmptyKey = z.whenEmpty(&z.key.Template)
	}
	if z.keyedOnAddress() {
		answer.IPv4Prefix, answer.IPv6Prefix = z.key.Mask.V4, z.key.Mask.V6
	}
	if z.Tier != nil {
		answer.Tier = &tierAnswer{Plan: z.Tier.Plan, Limits: z.Tier.Limits, Default: *z.Tier.Default}
	}
	if z.Cost != nil {
		answer.Cost = strings.TrimPrefix(z.Cost.text(), "cost ")
	}
	if z.Usage != nil {
		answer.Usage = &usageAnswer{API: z.Usage.API, Unit: "tokens"}
		if len(z.Usage.Prices) > 0 {
			answer.Usage.Unit = "micro-dollars"
		}
	}
	for _, o := range z.Zone.overrides() {
		answer.Overrides = append(answer.Overrides, o.answer(z.idle(&o)))
	}
	answer.BansByHand = z.Zone.bansByHand()
	for _, h := range z.handlers {
		answer.Exempt = append(answer.Exempt, h.about.exempt...)
	}
	slices.Sort(answer.Exempt)
	answer.Exempt = slices.Compact(answer.Exempt)
	return answer
}

func policyName(p fallback.Policy) string {
	for name, policy := range policies {
		if policy == p {
			return name
		}
	}
	return ""
}

// shownMatchers are the matchers whose values are shown. Others may hold secrets, such as
// a header's value, or are long; of them the name must do.
var shownMatchers = []string{"method", "path", "host", "protocol"}

// matchersText is the matchers of a zone or a handler, for people.
type matchersText struct{ match, exempt []string }

// shortMatchers are matcher sets in a few words, each set in one text.
func shortMatchers(sets caddyhttp.RawMatcherSets) []string {
	var texts []string
	for _, set := range sets {
		var words []string
		for _, name := range slices.Sorted(maps.Keys(set)) {
			word := name
			if slices.Contains(shownMatchers, name) {
				var values []string
				var value string
				switch {
				case json.Unmarshal(set[name], &values) == nil:
					word += " " + strings.Join(values, " ")
				case json.Unmarshal(set[name], &value) == nil:
					word += " " + value
				}
			}
			words = append(words, word)
		}
		texts = append(texts, strings.Join(words, ", "))
	}
	return texts
}

// usersOf lists the servers whose handlers have the zone. A handler may be in another
// place than a server's routes, such as an app that is no HTTP app.
func (a *App) usersOf(z *usedZone) []usedBy {
	users := []usedBy{}
	servers := a.servers()
	for _, h := range z.handlers {
		name, listen := "", []string(nil)
		for n, server := range servers {
			if server == h.server {
				name, listen = n, server.Listen
			}
		}
		i := slices.IndexFunc(users, func(u usedBy) bool { return u.Server == name })
		if i < 0 {
			i = len(users)
			users = append(users, usedBy{Server: name, Listen: listen})
		}
		users[i].Handlers++
	}
	slices.SortFunc(users, func(a, b usedBy) int { return strings.Compare(a.Server, b.Server) })
	return users
}

// servers are the HTTP servers of the configuration, by their names.
func (a *App) servers() map[string]*caddyhttp.Server {
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return nil
	}
	if app, ok := app.(*caddyhttp.App); ok {
		return app.Servers
	}
	return nil
}

// atMost is how many times the limit one key may be granted at most in any interval of
// one window that ends now: 1 as long as all is well, +Inf if nobody bounds it.
func (z *usedZone) atMost(now time.Time) float64 {
	stats := z.backend.Stats()
	return z.atMostBy(&stats, now)
}

// slotsTime is how long a store that has lost slots, or was away, may grant too many of
// them: until the processes have told it what they hold, give or take.
const slotsTime = 15 * time.Second

// atMostBy is atMost by what is known of the zone's store. Of a table of limits it is
// the one that may be exceeded most.
func (z *usedZone) atMostBy(stats *fallback.Stats, now time.Time) float64 {
	most := 0.0
	for _, limit := range z.limitsNow() {
		if limit != unlimited {
			most = max(most, z.backend.Excess(stats, now, limit, cmp.Or(z.window, slotsTime), z.policy))
		}
	}
	return 1 + most
}

// adminCounters are the counters that answers hold.
var adminCounters = func() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics.requests, metrics.refusals, metrics.settled, metrics.bans)
	return registry
}()

// countsByZone reads the metrics, which no request counts a second time for it.
func countsByZone() (map[string]*zoneCounts, error) {
	families, err := adminCounters.Gather()
	if err != nil {
		return nil, fmt.Errorf("reading the counters: %v", err)
	}
	zones := make(map[string]*zoneCounts)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			label := make(map[string]string)
			for _, pair := range m.GetLabel() {
				label[pair.GetName()] = pair.GetValue()
			}
			of := zones[label["zone"]]
			if of == nil {
				of = &zoneCounts{Requests: make(counts), Refusals: make(counts)}
				zones[label["zone"]] = of
			}
			of.add(strings.TrimPrefix(family.GetName(), "caddy_distributed_ratelimit_"), label, uint64(math.Round(m.GetCounter().GetValue())))
		}
	}
	return zones, nil
}

// add takes in one series.
func (c *zoneCounts) add(metric string, label map[string]string, n uint64) {
	switch metric {
	case "requests_total":
		c.Requests.add(label["outcome"], label["source"], n)
	case "refusals_total":
		c.Refusals.add(label["outcome"], label["reason"], n)
	case "settled_requests_total":
		if c.Settled == nil {
			c.Settled = make(map[string]uint64)
		}
		c.Settled[label["result"]] = n
	case "bans_total":
		c.Bans = n
	}
}

func (c counts) add(outer, inner string, n uint64) {
	if c[outer] == nil {
		c[outer] = make(map[string]uint64)
	}
	c[outer][inner] += n
}

func (c *zoneCounts) orNone() zoneCounts {
	if c == nil {
		return zoneCounts{Requests: counts{}, Refusals: counts{}}
	}
	return *c
}
