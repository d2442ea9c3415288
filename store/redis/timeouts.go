package redis

import "time"

// Bounds on the timeouts of [Options].
const (
	// MaxTimeout bounds how long an operation may take, however long its
	// caller is willing to wait.
	MaxTimeout = 30 * time.Second
	// MinTimeout is the shortest sensible deadline. A shorter one would close
	// connections over every pause of either process.
	MinTimeout = 100 * time.Millisecond
)
