package distributedratelimit

import (
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// The words of on_store_error.
const (
	policyLocal = "local"
	policyAllow = "allow"
	policyDeny  = "deny"
)

var policies = map[string]fallback.Policy{policyLocal: fallback.Decide, policyAllow: fallback.Allow, policyDeny: fallback.Deny}

const (
	defaultBudget = 100 * time.Millisecond
	minBudget     = time.Millisecond
	maxBudget     = time.Minute
)

// checkStoreUse checks what the handler and the app both have.
func checkStoreUse(onStoreError string, budget caddy.Duration) *settings.Mistake {
	if mistake := checkPolicy(onStoreError); mistake != nil {
		return mistake
	}
	if b := time.Duration(budget); b != 0 && (b < minBudget || b > maxBudget) {
		return settings.Wrong("budget", "budget %v is not between %v and %v", b, minBudget, maxBudget)
	}
	return nil
}

func checkPolicy(policy string) *settings.Mistake {
	switch policy {
	case "", policyLocal, policyAllow, policyDeny:
		return nil
	}
	return settings.Wrong("on_store_error", "unknown on_store_error %q; write local, allow or deny", policy)
}
