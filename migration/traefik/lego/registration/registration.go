// Package registration has the options of a registration.
package registration

// RegisterOptions are about an account.
type RegisterOptions struct{ TermsOfServiceAgreed bool }

// RegisterEABOptions are about an account that exists elsewhere.
type RegisterEABOptions struct {
	TermsOfServiceAgreed bool
	Kid, HmacEncoded     string
}
