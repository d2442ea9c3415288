package distributedratelimit

import (
	"cmp"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/busiest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/loglimit"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
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

	// Which requests the zone applies to: requests that match any of these
	// matcher sets. Default: all.
	MatchRaw caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

	// Which of them are neither limited nor counted: requests that match any
	// of these matcher sets. The matcher client_ip sees the address that the
	// handler decided on, which a forged header cannot change.
	ExemptRaw caddyhttp.RawMatcherSets `json:"exempt,omitempty" caddy:"namespace=http.matchers"`

	// What tells one client from another; placeholders are allowed. Each
	// value has a counter of its own. `{http.vars.client_ip}` is the
	// client's address and `{http.request.remote.host}` the peer's, both
	// masked to the prefixes below. What a client sends, such as a header,
	// is the client's own choice: a client that varies it has no limit, so
	// pair such a zone with one keyed on the address. Default: the client's
	// address.
	Key string `json:"key,omitempty"`

	// The limit: how many requests are granted in any interval of one window,
	// 0 to 1,000,000,000,000. 0 refuses everything. Required, unless there is a
	// tier.
	Events *int64 `json:"events,omitempty"`

	// How many requests are in flight at once at most, in all instances together,
	// 1 to 1,000,000,000, instead of events and window. A request is in flight
	// until its response is over: streams and WebSockets are as long as they are
	// open. A client that is over this limit is refused with a Retry-After of 1
	// second. A key that all clients share lets one client take all slots.
	Concurrent *int64 `json:"concurrent,omitempty"`

	// Limits by plan, instead of events.
	Tier *Tier `json:"tier,omitempty"`

	// How many units of the limit a request takes; all of them or none. One that
	// takes more than the limit is refused, whatever is left. Default: 1.
	Cost *Cost `json:"cost,omitempty"`

	// The length of the window, 1s to 30d. Required. Changing it starts an
	// empty log, so that up to one limit more is granted, once.
	Window caddy.Duration `json:"window,omitempty"`

	// Addresses in the key are cut to this many bits, so that a network
	// counts as one client. Default: 32, each IPv4 address by itself.
	IPv4Prefix *int `json:"ipv4_prefix,omitempty"`

	// The same for IPv6. Default: 64, the smallest network that is handed
	// out: a client with one of its addresses usually has all of them.
	IPv6Prefix *int `json:"ipv6_prefix,omitempty"`

	// How the values in the key are made alike: `lower` makes those one that
	// differ only in case, accents, width or characters that are not seen, as
	// databases do that do not care for case; `trim` leaves out white space around
	// them. Or `off` alone. Values that become one share a limit; one of more than
	// 4 KiB is empty. Addresses and
	// hosts have one spelling anyway. Default: both, if the key reads a body;
	// else off.
	KeyNormalize []string `json:"key_normalize,omitempty"`

	// What to do when the key comes out empty, as when a header is missing:
	// `client` uses the client's address, `skip` does not apply the zone, and
	// `deny` responds with 403. An error if no key of the zone can be empty, as when
	// it holds the client's address. A key that reads a body is empty if the body
	// has nothing of it; `client` is an error there, and `skip` only holds where the
	// body is readable without doubt. Default: `client`, or `deny` for such a key.
	OnEmptyKey string `json:"on_empty_key,omitempty"`

	// What to do while the store is away: see the handler's field of this
	// name. Default: the handler's; `deny` for a zone with usage, whatever that is.
	OnStoreError string `json:"on_store_error,omitempty"`

	// Which responses count: the units that a request takes are given back if no
	// matcher of this list matches its response, before the response is sent.
	// Until then they are taken, so that parallel guesses cannot slip through;
	// parallel requests of one client can therefore be refused while others are
	// pending: size events for them. An error counts with its status, but one of
	// reverse_proxy that could send the request to nobody counts for nothing; and a
	// client that goes away before the response gets nothing back. Matchers are
	// as in the handle_response of reverse_proxy: status codes, classes such as
	// 4, and headers. The zone takes no leases: each request asks the store, and
	// each one that does not count tells it so. Default: every request counts.
	CountIf []caddyhttp.ResponseMatcher `json:"count_if,omitempty"`

	// How long a key is refused, whatever fits, once a request for it was refused
	// because its limit is reached, 1s to 30d. All instances know the ban with
	// their next decision. Requests that come meanwhile do not extend it, and the
	// next one begins only after a request was granted. If units of earlier
	// requests are given back (count_if), it ends at once. It outlasts the window
	// if it is longer. The zone takes no leases, and each of its requests asks the
	// store, also those that are refused. Whoever can use up a limit can ban
	// others who have the same key: with a key such as an account's name, anybody.
	// Default: no bans.
	BlockFor caddy.Duration `json:"block_for,omitempty"`

	// Makes the zone a budget in front of an LLM API: events are tokens or, with prices,
	// micro-dollars (20,000,000 is $20). It excludes cost, count_if, block_for and concurrent, which
	// belong in zones beside it. Such a zone takes no leases, and asks the store for each
	// request. Default: none.
	Usage *Usage `json:"usage,omitempty"`

	// Decides and counts, in a log of its own, and reports what it would have
	// refused in logs, metrics and placeholders, but never refuses.
	DryRun bool `json:"dry_run,omitempty"`

	// Keeps the zone out of response headers and bodies: its name, its limit and
	// what is left of it. Placeholders, logs and metrics tell of it all the same.
	Hide bool `json:"hide,omitempty"`

	match, exempt caddyhttp.MatcherSets
	about         matchersText
	key           keys.Key
	meter         *llm.Meter // or nil
	needsBody     bool
	window        time.Duration
	limit         int64 // of all plans, if there is no tier
	tier          *tier // or nil
	cost          cost
	policy        fallback.Policy
	storeName     string // of the log: a dry run has one of its own
	backend       *backend
	steering      atomic.Pointer[inForce] // what operators have changed, nil for nothing
	same          *Zone                   // stands for the zones of this limit in all handlers
	counters      zoneCounters
	explained     explanations
	top           *busiest.Keys // of the zone that stands for the limit, nil without log_key
	logger        *zap.Logger
	bans          bans
	banLog        loglimit.Limiter
	refusalLog    loglimit.Limiter
	overrunLog    loglimit.Limiter
	missingLog    loglimit.Limiter
}

const (
	emptyKeyClient = "client"
	emptyKeySkip   = "skip"
	emptyKeyDeny   = "deny"

	// dryRunSuffix is in the store's name of a zone that is tried out. No name of a
	// zone holds this character.
	dryRunSuffix = "~dry"

	defaultIPv4Prefix = 32
	defaultIPv6Prefix = 64
)

func (z *Zone) provision(ctx caddy.Context, h *Handler) error {
	h.warnOfRemoteIP(z.Name, "match", z.MatchRaw)
	h.warnOfRemoteIP(z.Name, "exempt", z.ExemptRaw)
	z.about = matchersText{shortMatchers(z.MatchRaw), shortMatchers(z.ExemptRaw)} // loading them empties the fields
	var err error
	if z.match, err = loadMatchers(ctx, z, "MatchRaw", z.MatchRaw); err != nil {
		return fmt.Errorf("match: %v", err)
	}
	if z.exempt, err = loadMatchers(ctx, z, "ExemptRaw", z.ExemptRaw); err != nil {
		return fmt.Errorf("exempt: %v", err)
	}
	if z.key, err = z.parseKey(); err != nil {
		return err
	}
	z.needsBody = z.writtenWithBody()
	z.window = time.Duration(z.Window)
	if z.tier, err = newTier(z.Tier); err != nil {
		return err
	}
	switch {
	case z.Concurrent != nil:
		z.limit = *z.Concurrent
	case z.tier == nil:
		z.limit = *z.Events
	}
	z.cost = newCost(z.Cost)
	z.policy = policies[cmp.Or(z.OnStoreError, h.policy)]
	if z.Usage != nil {
		z.policy = policies[cmp.Or(z.OnStoreError, policyDeny)]
	}
	z.storeName = z.Name
	if z.DryRun {
		// A zone of this name may be in force elsewhere, while this one is
		// being tried out: requests that a dry run lets pass must not use up
		// that limit.
		z.storeName += dryRunSuffix
	}
	z.counters.zone = z.Name
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

// loadMatchers loads the matchers of a field of a zone or handler, which holds sets.
func loadMatchers(ctx caddy.Context, of any, field string, sets caddyhttp.RawMatcherSets) (caddyhttp.MatcherSets, error) {
	if sets == nil {
		return nil, nil
	}
	raw, err := ctx.LoadModule(of, field)
	if err != nil {
		return nil, err
	}
	var loaded caddyhttp.MatcherSets
	if err := loaded.FromInterface(raw); err != nil {
		return nil, err
	}
	return loaded, nil
}

// anyMatches reports whether a request matches one of some matcher sets; no sets match
// nothing.
func anyMatches(sets caddyhttp.MatcherSets, r *http.Request) (bool, error) {
	if len(sets) == 0 {
		return false, nil
	}
	return sets.AnyMatchWithError(r)
}

// applies reports whether the zone limits the request, and if not, whether an
// exemption is the reason. A matcher's error is returned, never taken for a no:
// a limit that is skipped when something fails is none.
func (z *Zone) applies(r *http.Request) (applies, exempt bool, err error) {
	if len(z.match) > 0 {
		matches, err := z.match.AnyMatchWithError(r)
		if err != nil || !matches {
			return false, false, err
		}
	}
	exempt, err = anyMatches(z.exempt, r)
	return err == nil && !exempt, exempt, err
}

// possible lists the reasons for which the zone may refuse.
func (z *Zone) possible() []reason {
	list := []reason{reasonLimit}
	if z.Concurrent != nil {
		list[0] = reasonBusy
	}
	if z.BlockFor > 0 {
		list = append(list, reasonBlocked)
	}
	if z.tier == nil && z.limit == 0 || z.tier != nil && z.tier.has(0) {
		list = append(list, reasonZero)
	}
	if z.Cost != nil {
		list = append(list, reasonTooCostly)
	}
	if z.whenEmpty(&z.key.Template) == emptyKeyDeny {
		list = append(list, reasonEmptyKey)
	}
	if z.policy == fallback.Deny {
		list = append(list, reasonStoreAway)
	}
	if z.needsBody {
		list = append(list, reasonBodyMemory, reasonSlowBody)
	}
	if z.Usage != nil {
		list = append(list, reasonTooCostly, reasonUnbounded, reasonUnmetered, reasonMalformed, reasonEncoded, reasonTooLong)
	}
	return list
}

// exact reports whether every decision is the store's own: what was charged may be
// refunded at any moment, and a ban begin elsewhere: nothing that is known here holds
// for long.
func (z *Zone) exact() bool { return len(z.CountIf) > 0 || z.BlockFor > 0 || z.Usage != nil }

// keyedOnAddress reports whether an address that is not verified could choose
// the key of a request.
func (z *Zone) keyedOnAddress() bool { return z.key.MayUseAddress() }
