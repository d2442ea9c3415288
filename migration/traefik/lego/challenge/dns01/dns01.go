// Package dns01 has the options of a challenge by DNS, which do nothing.
package dns01

import (
	"strings"
	"time"
)

// Options are about name servers.
type Options struct{ RecursiveNameservers []string }

// Client asks nobody.
type Client struct{}

// ChallengeOption is an option.
type ChallengeOption struct{}

// NewClient returns a client.
func NewClient(*Options) *Client { return &Client{} }

// SetDefaultClient does nothing.
func SetDefaultClient(*Client) {}

// CondOptions is no option.
func CondOptions(bool, ...ChallengeOption) ChallengeOption { return ChallengeOption{} }

// DisableAuthoritativeNssPropagationRequirement is no option.
func DisableAuthoritativeNssPropagationRequirement() ChallengeOption { return ChallengeOption{} }

// DisableRecursiveNSsPropagationRequirement is no option.
func DisableRecursiveNSsPropagationRequirement() ChallengeOption { return ChallengeOption{} }

// PropagationWait is no option.
func PropagationWait(time.Duration, bool) ChallengeOption { return ChallengeOption{} }

// UnFqdn is a name without its last dot.
func UnFqdn(name string) string { return strings.TrimSuffix(name, ".") }
