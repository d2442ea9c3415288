// Package ext has no extensions of the configuration.
package ext

// HTTP is empty.
type HTTP struct{}

// Router is empty.
type Router struct{}
