// Package tlsalpn01 has the option of a challenge by TLS, which does nothing.
package tlsalpn01

import (
	"errors"
	"time"
)

// ACMETLS1Protocol is the challenge's protocol.
const ACMETLS1Protocol = "acme-tls/1"

// ChallengeOption is an option.
type ChallengeOption struct{}

// SetDelay is no option.
func SetDelay(time.Duration) ChallengeOption { return ChallengeOption{} }

// ChallengeBlocks refuses.
func ChallengeBlocks(string, string) ([]byte, []byte, error) {
	return nil, nil, errors.New("this build of Traefik answers no challenges")
}
