// Package http01 has the option of a challenge by HTTP, which does nothing.
package http01

import "time"

// PathPrefix is where an authority looks.
const PathPrefix = "/.well-known/acme-challenge/"

// ChallengeOption is an option.
type ChallengeOption struct{}

// SetDelay is no option.
func SetDelay(time.Duration) ChallengeOption { return ChallengeOption{} }
