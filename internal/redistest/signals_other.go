//go:build !unix

package redistest

import "syscall"

// There are no such signals here, and to send one fails. Tests that take them do not run
// here, but compile.
const (
	SIGSTOP = syscall.Signal(-1)
	SIGCONT = syscall.Signal(-2)
)
