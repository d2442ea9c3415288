// Package acme has the types of an account.
package acme

// Account is an account at an authority.
type Account struct{}

// ExtendedAccount is an account and where it is.
type ExtendedAccount struct {
	Account
	Location string
}
