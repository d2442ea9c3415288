// Package loglimit keeps strangers from filling the log.
package loglimit

import (
	"sync"
	"time"
)

// Limiter allows a few lines in each span of time and counts the rest. Its zero value is
// ready; it is safe for concurrent use.
type Limiter struct {
	mu         sync.Mutex
	began      time.Time
	lines      int
	suppressed int64
}

// Allow reports whether a line may be written now, and how many were
// suppressed since the last one.
func (l *Limiter) Allow(most int, span time.Duration) (suppressed int64, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.began) >= span {
		l.began, l.lines = now, 0
	}
	if l.lines >= most {
		l.suppressed++
		return 0, false
	}
	l.lines++
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}

// Fading allows a line whose cause may last for ever without anybody who could
// end it: the first at once, and each next one after twice the time, from a minute up to
// an hour. Its zero value is ready; it is safe for concurrent use.
type Fading struct {
	mu         sync.Mutex
	next       time.Time
	span       time.Duration
	suppressed int64
}

// Allow reports whether the line may be written now, and how many were suppressed since
// the last one.
func (l *Fading) Allow() (suppressed int64, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.next) {
		l.suppressed++
		return 0, false
	}
	l.span = min(max(2*l.span, time.Minute), time.Hour)
	l.next = now.Add(l.span)
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}
