package distributedratelimit

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// Zone is one limit. Its name is its identity: zones of one name, in any
// number of sites and in all instances that use one store, are one limit with
// one set of counters, and must be configured alike.
type Zone struct {
	// What the limit is called in responses, logs and metrics, and in the
	// store: 1 to 64 letters, digits, dots, underscores or hyphens. Clients
	// that are refused see it.
	Name string `json:"name,omitempty"`

	// Which requests the zone applies to: those that match any of these
	// matcher sets. Default: all.
	MatchRaw caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

	// Which of them are neither limited nor counted: those that match any of
	// these matcher sets. The matcher client_ip sees the address that the
	// handler decided on, which a forged header cannot change.
	ExemptRaw caddyhttp.RawMatcherSets `json:"exempt,omitempty" caddy:"namespace=http.matchers"`

	// What tells one client from another; placeholders are allowed. Each
	// value has a counter of its own. `{http.vars.client_ip}` is the
	// client's address and `{http.request.remote.host}` the peer's, both
	// masked to the prefixes below. What a client sends, such as a header,
	// is the client's own choice: whoever varies it has no limit, so pair
	// such a zone with one keyed on the address. Default: the client's
	// address.
	Key string `json:"key,omitempty"`

	// The limit: how many requests are granted in any interval of one window,
	// 0 to 1,000,000,000,000. 0 refuses everything. Required.
	Events *int64 `json:"events,omitempty"`

	// The length of the window, 1s to 30d. Required. Changing it starts an
	// empty log, so that up to one limit more is granted, once.
	Window caddy.Duration `json:"window,omitempty"`

	// Addresses in the key are cut to this many bits, so that a network
	// counts as one client. Default: 32, each IPv4 address by itself.
	IPv4Prefix *int `json:"ipv4_prefix,omitempty"`

	// The same for IPv6. Default: 64, the smallest network that is handed
	// out: whoever has an IPv6 address usually has all of it.
	IPv6Prefix *int `json:"ipv6_prefix,omitempty"`

	// What to do when the key comes out empty, as when a header is missing:
	// `client` uses the client's address, `skip` does not apply the zone, and
	// `deny` answers 403. An error if no key of the zone can be empty, as when
	// it holds the client's address. Default: `client`.
	OnEmptyKey string `json:"on_empty_key,omitempty"`

	// What to do when the store gives no answer: see the handler's field of
	// this name. Default: the handler's.
	OnStoreError string `json:"on_store_error,omitempty"`

	// Decides and counts, in a log of its own, and reports what it would have
	// refused in logs, metrics and placeholders, but never refuses.
	DryRun bool `json:"dry_run,omitempty"`

	match, exempt caddyhttp.MatcherSets
	key           keyTemplate
	window        time.Duration
	limit         int64
	v4, v6        int
	policy        fallback.Policy
	storeName     string // of the log: a dry run has one of its own
	counters      outcomeCounters
	emptyKeys     lackCounters
	unknown       sync.Once // the warning of a placeholder that nobody knows
	logger        *zap.Logger
	refusals      logLimiter
}

const (
	emptyKeyClient = "client"
	emptyKeySkip   = "skip"
	emptyKeyDeny   = "deny"

	defaultIPv4Prefix = 32
	defaultIPv6Prefix = 64
)

var zoneName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// check finds the first mistake in the zone's configuration.
func (z *Zone) check() *configError {
	if z.Name == "" {
		return wrong("zone", "a zone needs a name; instances and sites share a limit by it")
	}
	if !zoneName.MatchString(z.Name) {
		return wrong("zone", "zone name %q is not 1 to 64 letters, digits, dots, underscores or hyphens", z.Name)
	}
	if z.Events == nil {
		return wrong("events", "events is missing; write how many requests are granted in a window")
	}
	if *z.Events < 0 || *z.Events > store.MaxEvents {
		return wrong("events", "events %d is not between 0 and %d", *z.Events, int64(store.MaxEvents))
	}
	window := time.Duration(z.Window)
	if window == 0 {
		return wrong("window", "window is missing; write how long the events count, for example 1m")
	}
	if window > 0 && window < time.Microsecond {
		return wrong("window", "window %v is too short; in JSON a bare number is in nanoseconds: write \"%[2]ds\"", window, int64(window))
	}
	if window < store.MinWindow || window > store.MaxWindow {
		return wrong("window", "window %s is not between %s and %s", windowText(window), windowText(store.MinWindow), windowText(store.MaxWindow))
	}
	if window%time.Microsecond != 0 {
		return wrong("window", "window %v is finer than a microsecond; round it", window)
	}
	if problem := checkMatcherSets("match", z.MatchRaw); problem != nil {
		return problem
	}
	if problem := checkMatcherSets("exempt", z.ExemptRaw); problem != nil {
		return problem
	}
	key, err := parseKey(z.Key)
	if err != nil {
		return wrong("key", "%w", err)
	}
	if problem := z.checkPrefixes(&key); problem != nil {
		return problem
	}
	if z.IPv4Prefix != nil && (*z.IPv4Prefix < 1 || *z.IPv4Prefix > 32) {
		return wrong("ipv4_prefix", "ipv4_prefix %d is not between 1 and 32 bits", *z.IPv4Prefix)
	}
	if z.IPv6Prefix != nil && (*z.IPv6Prefix < 1 || *z.IPv6Prefix > 128) {
		return wrong("ipv6_prefix", "ipv6_prefix %d is not between 1 and 128 bits", *z.IPv6Prefix)
	}
	switch z.OnEmptyKey {
	case "", emptyKeyClient, emptyKeySkip, emptyKeyDeny:
	default:
		return wrong("on_empty_key", "unknown on_empty_key %q; write client, skip or deny", z.OnEmptyKey)
	}
	if problem := z.checkOnEmptyKey(&key); problem != nil {
		return problem
	}
	return checkPolicy(z.OnStoreError)
}

// checkPrefixes and checkOnEmptyKey reject settings that have nothing to apply
// to: whoever wrote them believes that they do something.
func (z *Zone) checkPrefixes(key *keyTemplate) *configError {
	for _, prefix := range []struct {
		field string
		set   *int
	}{{"ipv4_prefix", z.IPv4Prefix}, {"ipv6_prefix", z.IPv6Prefix}} {
		if prefix.set != nil && !z.mayUseAddress(key) {
			return wrong(prefix.field, "%s %d: the key %q holds no address; remove the prefix, or write {client_ip} in the key", prefix.field, *prefix.set, z.Key)
		}
	}
	return nil
}

func (z *Zone) checkOnEmptyKey(key *keyTemplate) *configError {
	switch {
	case z.OnEmptyKey == "":
		return nil
	case !key.dynamic():
		return wrong("on_empty_key", "on_empty_key %s: the key %q is never empty, as it has no placeholder; remove on_empty_key", z.OnEmptyKey, z.Key)
	case z.Key == "":
		return wrong("on_empty_key", "on_empty_key %s: without a key the limit is on the client's address, which is never empty; remove on_empty_key, or write a key", z.OnEmptyKey)
	case key.neverEmpty():
		return wrong("on_empty_key", "on_empty_key %s: the key %q is never empty, as every client has the address in it; remove on_empty_key, or the address from the key", z.OnEmptyKey, z.Key)
	}
	return nil
}

// checkMatcherSets rejects sets without a matcher, which match every request:
// an empty exemption would turn the zone off without a word.
func checkMatcherSets(field string, sets caddyhttp.RawMatcherSets) *configError {
	for i, set := range sets {
		if len(set) == 0 {
			return wrong(field, "set %d of %s has no matcher, so that it matches every request; give it one, or remove it", i, field)
		}
	}
	return nil
}

func (z *Zone) provision(ctx caddy.Context, h *Handler) error {
	z.warnOfRemoteIP(h)
	var err error
	if z.match, err = loadMatchers(ctx, z, "MatchRaw"); err != nil {
		return fmt.Errorf("match: %v", err)
	}
	if z.exempt, err = loadMatchers(ctx, z, "ExemptRaw"); err != nil {
		return fmt.Errorf("exempt: %v", err)
	}
	if z.key, err = parseKey(z.Key); err != nil {
		return err
	}
	z.window = time.Duration(z.Window)
	z.limit = *z.Events
	z.v4, z.v6 = z.ipv4Prefix(), z.ipv6Prefix()
	z.policy = policies[firstNonZero(z.OnStoreError, h.policy)]
	z.storeName = z.Name
	if z.DryRun {
		// A zone of this name may be in force elsewhere, while this one is
		// being tried out: requests that a dry run lets pass must not eat at
		// that limit. No name of a zone holds this character.
		z.storeName += "~dry"
	}
	z.counters.zone, z.emptyKeys.zone = z.Name, z.Name
	z.logger = h.logger
	return nil
}

func (z *Zone) ipv4Prefix() int {
	if z.IPv4Prefix != nil {
		return *z.IPv4Prefix
	}
	return defaultIPv4Prefix
}

func (z *Zone) ipv6Prefix() int {
	if z.IPv6Prefix != nil {
		return *z.IPv6Prefix
	}
	return defaultIPv6Prefix
}

func loadMatchers(ctx caddy.Context, z *Zone, field string) (caddyhttp.MatcherSets, error) {
	if (field == "MatchRaw" && z.MatchRaw == nil) || (field == "ExemptRaw" && z.ExemptRaw == nil) {
		return nil, nil
	}
	raw, err := ctx.LoadModule(z, field)
	if err != nil {
		return nil, err
	}
	var sets caddyhttp.MatcherSets
	if err := sets.FromInterface(raw); err != nil {
		return nil, err
	}
	return sets, nil
}

// applies tells whether the zone limits the request: in the first result, and
// in the second one whether an exemption is the reason why not. A matcher's
// error is returned, never taken for an answer: a limit that is skipped when
// something fails is none.
func (z *Zone) applies(r *http.Request) (applies, exempt bool, err error) {
	if len(z.match) > 0 {
		matches, err := z.match.AnyMatchWithError(r)
		if err != nil || !matches {
			return false, false, err
		}
	}
	if len(z.exempt) > 0 {
		exempt, err := z.exempt.AnyMatchWithError(r)
		if err != nil || exempt {
			return false, exempt, err
		}
	}
	return true, false, nil
}

var errEmptyKey = errors.New("the request has nothing of what the limit is keyed on")

// request fills in what the zone asks the store for this request. It returns
// errEmptyKey if the key came out empty and the zone denies that, and false
// if the zone does not apply for want of a key.
func (z *Zone) request(into *store.Request, keys *keyBuilder, client ipident.Result) (bool, error) {
	bytes, empty, lacked := keys.build(&z.key, client, z.v4, z.v6)
	if lacked != lackNothing {
		z.lacks(lacked)
	}
	if empty {
		switch z.OnEmptyKey {
		case emptyKeySkip:
			return false, nil
		case emptyKeyDeny:
			return false, errEmptyKey
		}
		bytes, _, _ = keys.build(&addressKey, client, z.v4, z.v6)
	}
	*into = store.Request{
		Key:    store.Key{Zone: z.storeName, Client: string(bytes), Window: z.window},
		Limit:  z.limit,
		Units:  1,
		Shadow: z.DryRun,
	}
	return true, nil
}

// lacks takes note of what the key of a request was short of.
func (z *Zone) lacks(lacked lack) {
	z.emptyKeys.inc(lacked)
	if lacked == lackUnknown {
		z.unknown.Do(func() {
			z.logger.Warn("nobody knows a placeholder of this key, so that it is empty; correct its name, "+
				"or put the directive that sets it before distributed_ratelimit",
				zap.String("zone", z.Name), zap.String("key", z.Key))
		})
	}
}

// keyedOnAddress reports whether an unverified source address could choose
// the key of a request.
func (z *Zone) keyedOnAddress() bool { return z.mayUseAddress(&z.key) }

// mayUseAddress reports whether a key of the zone holds an address, or one takes
// its place when it comes out empty.
func (z *Zone) mayUseAddress(key *keyTemplate) bool {
	return key.address || (key.dynamic() && (z.OnEmptyKey == "" || z.OnEmptyKey == emptyKeyClient))
}
