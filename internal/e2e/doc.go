// Package e2e holds the tests of the whole: several instances, as servers in
// one process and as processes of their own, in front of one real Redis. It
// has no code but tests.
package e2e
