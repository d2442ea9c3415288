package distributedratelimit

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

var zoneName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// check finds the first mistake in the zone's configuration.
func (z *Zone) check() *settings.Mistake {
	if z.Name == "" {
		return settings.Wrong("zone", "a zone needs a name; instances and sites share a limit by it")
	}
	if !zoneName.MatchString(z.Name) {
		return settings.Wrong("zone", "zone name %q is not 1 to 64 letters, digits, dots, underscores or hyphens", z.Name)
	}
	if mistake := z.checkUsage(); mistake != nil {
		return mistake
	}
	if mistake := z.checkLimits(); mistake != nil {
		return mistake
	}
	if mistake := z.checkWindow(); mistake != nil {
		return mistake
	}
	if mistake := checkMatcherSets("match", z.MatchRaw); mistake != nil {
		return mistake
	}
	if mistake := checkMatcherSets("exempt", z.ExemptRaw); mistake != nil {
		return mistake
	}
	if mistake := checkCountIf(z.CountIf); mistake != nil {
		return mistake
	}
	if mistake := z.checkBlockFor(); mistake != nil {
		return mistake
	}
	if mistake := z.checkKey(); mistake != nil {
		return mistake
	}
	return checkPolicy(z.OnStoreError)
}

// checkLimits checks how much the zone grants, and what a request takes of it.
func (z *Zone) checkLimits() *settings.Mistake {
	if z.Concurrent != nil {
		return z.checkConcurrent()
	}
	switch {
	case z.Events != nil && z.Tier != nil:
		return settings.Wrong("tier", "tier stands instead of events; remove events, and write its number as that of a plan or of default")
	case z.Events == nil && z.Tier == nil:
		return settings.Wrong("events", "events is missing; write how many requests are granted in a window, or a tier of limits by plan, or concurrent, how many are in flight at once")
	case z.Events != nil && (*z.Events < 0 || *z.Events > store.MaxEvents):
		return settings.Wrong("events", "events %d is not between 0 and %d", *z.Events, int64(store.MaxEvents))
	}
	if z.Tier != nil {
		if mistake := z.Tier.check(); mistake != nil {
			return mistake
		}
	}
	if z.Cost != nil {
		if mistake := z.Cost.check(); mistake != nil {
			return mistake
		}
	}
	return z.checkCostOfLimits()
}

func (z *Zone) checkWindow() *settings.Mistake {
	if z.Concurrent != nil {
		return nil // it has none
	}
	window := time.Duration(z.Window)
	if window == 0 {
		return settings.Wrong("window", "window is missing; write how long the events count, for example 1m")
	}
	if window > 0 && window < time.Microsecond {
		return settings.Wrong("window", "window %v is too short; in JSON a bare number is in nanoseconds: write \"%[2]ds\"", window, int64(window))
	}
	if window < store.MinWindow || window > store.MaxWindow {
		return settings.Wrong("window", "window %s is not between %s and %s", windowText(window), windowText(store.MinWindow), windowText(store.MaxWindow))
	}
	if window%time.Microsecond != 0 {
		return settings.Wrong("window", "window %v is finer than a microsecond; round it", window)
	}
	return nil
}

// checkKey checks what tells clients apart.
func (z *Zone) checkKey() *settings.Mistake {
	key, err := z.parseKey()
	if err != nil {
		return settings.Wrong("key", "%w", err)
	}
	if mistake := z.checkPrefixes(&key); mistake != nil {
		return mistake
	}
	if z.IPv4Prefix != nil && (*z.IPv4Prefix < 1 || *z.IPv4Prefix > 32) {
		return settings.Wrong("ipv4_prefix", "ipv4_prefix %d is not between 1 and 32 bits", *z.IPv4Prefix)
	}
	if z.IPv6Prefix != nil && (*z.IPv6Prefix < 1 || *z.IPv6Prefix > 128) {
		return settings.Wrong("ipv6_prefix", "ipv6_prefix %d is not between 1 and 128 bits", *z.IPv6Prefix)
	}
	switch z.OnEmptyKey {
	case "", emptyKeyClient, emptyKeySkip, emptyKeyDeny:
	default:
		return settings.Wrong("on_empty_key", "unknown on_empty_key %q; write client, skip or deny", z.OnEmptyKey)
	}
	if err := keys.CheckNormalize(z.KeyNormalize, &key.Template); err != nil {
		return settings.Wrong("key_normalize", "%w", err)
	}
	return z.checkOnEmptyKey(&key)
}

// checkPrefixes and checkOnEmptyKey reject settings that have nothing to apply
// to: their author believes that they do something.
func (z *Zone) checkPrefixes(key *keys.Key) *settings.Mistake {
	for _, prefix := range []struct {
		field string
		set   *int
	}{{"ipv4_prefix", z.IPv4Prefix}, {"ipv6_prefix", z.IPv6Prefix}} {
		if prefix.set != nil && !key.MayUseAddress() {
			return settings.Wrong(prefix.field, "%s %d: the key %q holds no address; remove the prefix, or write {client_ip} in the key", prefix.field, *prefix.set, z.Key)
		}
	}
	return nil
}

func (z *Zone) checkOnEmptyKey(key *keys.Key) *settings.Mistake {
	switch {
	case z.OnEmptyKey == "":
		return nil
	case !key.Dynamic():
		return settings.Wrong("on_empty_key", "on_empty_key %s: the key %q is never empty, as it has no placeholder; remove on_empty_key", z.OnEmptyKey, z.Key)
	case z.Key == "":
		return settings.Wrong("on_empty_key", "on_empty_key %s: without a key the limit is on the client's address, which is never empty; remove on_empty_key, or write a key", z.OnEmptyKey)
	case key.ReadsBody() && z.OnEmptyKey == emptyKeyClient:
		return settings.Wrong("on_empty_key", "on_empty_key client: the client's address is no substitute for what stands in a body: whoever pads the body, or names the field twice, would have a limit of its own instead of the account's; remove on_empty_key, which is deny then, or write skip")
	case key.NeverEmpty():
		return settings.Wrong("on_empty_key", "on_empty_key %s: the key %q is never empty, as every client has the address in it; remove on_empty_key, or the address from the key", z.OnEmptyKey, z.Key)
	}
	return nil
}

// checkMatcherSets rejects sets without a matcher, which match every request:
// an empty exemption would turn the zone off silently.
func checkMatcherSets(field string, sets caddyhttp.RawMatcherSets) *settings.Mistake {
	for i, set := range sets {
		if len(set) == 0 {
			return settings.Wrong(field, "set %d of %s has no matcher, so that it matches every request; give it one, or remove it", i, field)
		}
	}
	return nil
}

// conflict is the first setting that keeps z and other, which have one name, from
// being one limit, nil if there is none.
func (z *Zone) conflict(other *Zone) *settings.Mistake {
	const remedy = "zones of one name are one limit: make them equal, or rename one"
	switch {
	case (z.Concurrent == nil) != (other.Concurrent == nil):
		return settings.Wrong(z.limitWord(), "%s here and %s in another handler; "+remedy, z.limitText(), other.limitText())
	case z.Window != other.Window:
		return settings.Wrong("window", "window %s here and %s in another handler; "+remedy,
			windowText(time.Duration(z.Window)), windowText(time.Duration(other.Window)))
	case !keys.Same(z.Key, other.Key):
		return settings.Wrong("key", "key %s here and %s in another handler; "+remedy, keys.InWords(z.Key), keys.InWords(other.Key))
	case z.normalization() != other.normalization():
		return settings.Wrong("key_normalize", "key_normalize %s here and %s in another handler; "+remedy, z.normalization(), other.normalization())
	case z.ipv4Prefix() != other.ipv4Prefix():
		return settings.Wrong("ipv4_prefix", "ipv4_prefix %d here and %d in another handler; "+remedy, z.ipv4Prefix(), other.ipv4Prefix())
	case z.ipv6Prefix() != other.ipv6Prefix():
		return settings.Wrong("ipv6_prefix", "ipv6_prefix %d here and %d in another handler; "+remedy, z.ipv6Prefix(), other.ipv6Prefix())
	case z.BlockFor != other.BlockFor:
		return settings.Wrong("block_for", "%s here and %s in another handler; "+remedy, z.blockText(), other.blockText())
	case (len(z.CountIf) > 0) != (len(other.CountIf) > 0):
		return settings.Wrong("count_if", "count_if in one handler and not in another; the responses may differ, but "+remedy)
	case z.unit() != other.unit():
		return settings.Wrong("usage", "this zone counts %s here and %s in another handler; the models and their prices may differ, but "+remedy, z.unit(), other.unit())
	case z.Events != nil && other.Events != nil && *z.Events != *other.Events:
		return settings.Wrong("events", "events %d here and %d in another handler; "+remedy, *z.Events, *other.Events)
	case z.limitText() != other.limitText():
		return settings.Wrong(z.limitWord(), "%s here and %s in another handler; "+remedy, z.limitText(), other.limitText())
	case !z.Cost.same(other.Cost):
		return settings.Wrong("cost", "%s here and %s in another handler; "+remedy+", or write cost {http.vars.cost} in both and set it with vars or map",
			z.Cost.text(), other.Cost.text())
	}
	return nil
}

// limitText is the limit as messages name it, in one spelling.
func (z *Zone) limitText() string {
	switch {
	case z.Concurrent != nil:
		return fmt.Sprintf("concurrent %d", *z.Concurrent)
	case z.Tier != nil:
		return z.Tier.text()
	}
	return fmt.Sprintf("events %d", *z.Events)
}

func (z *Zone) limitWord() string {
	switch {
	case z.Concurrent != nil:
		return "concurrent"
	case z.Tier != nil:
		return "tier"
	}
	return "events"
}

// windowText renders a window the way people write it: 1m, 1h30m, 30d.
func windowText(d time.Duration) string {
	if d < 0 {
		return d.String()
	}
	var b strings.Builder
	for _, unit := range []struct {
		size time.Duration
		name string
	}{
		{24 * time.Hour, "d"},
		{time.Hour, "h"},
		{time.Minute, "m"},
		{time.Second, "s"},
		{time.Millisecond, "ms"},
		{time.Microsecond, "us"},
	} {
		if n := d / unit.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
			d -= n * unit.size
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}
