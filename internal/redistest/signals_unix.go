//go:build unix

package redistest

import "syscall"

// SIGSTOP freezes a process, SIGCONT lets it go on.
const (
	SIGSTOP = syscall.SIGSTOP
	SIGCONT = syscall.SIGCONT
)
