// Package certificate obtains no certificates.
package certificate

import (
	"context"
	"errors"

	"github.com/go-acme/lego/v5/certcrypto"
)

var errNone = errors.New("this build of Traefik obtains no certificates")

// Resource is a certificate.
type Resource struct {
	ID                      string
	Domains                 []string
	PrivateKey, Certificate []byte
}

// ObtainRequest asks for a certificate.
type ObtainRequest struct {
	Domains                  []string
	EmailAddresses           []string
	Bundle, EnableCommonName bool
	PreferredChain, Profile  string
	KeyType                  certcrypto.KeyType
}

// RenewOptions are about a renewal.
type RenewOptions struct {
	EmailAddresses           []string
	Bundle, EnableCommonName bool
	PreferredChain, Profile  string
}

// Certifier refuses.
type Certifier struct{}

// Obtain refuses.
func (*Certifier) Obtain(context.Context, ObtainRequest) (*Resource, error) { return nil, errNone }

// Renew refuses.
func (*Certifier) Renew(context.Context, Resource, *RenewOptions) (*Resource, error) {
	return nil, errNone
}
