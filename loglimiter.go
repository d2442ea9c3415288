package distributedratelimit

import (
	"sync"
	"time"
)

// logLimiter keeps strangers from filling the log: it allows a few lines in
// each span of time and counts the rest. Its zero value is ready; it is safe for
// concurrent use.
type logLimiter struct {
	mu         sync.Mutex
	began      time.Time
	lines      int
	suppressed int64
}

const (
	logSecond = time.Second
	logMinute = time.Minute
)

// allow reports whether a line may be written now, and how many were
// suppressed since the last one.
func (l *logLimiter) allow(most int, span time.Duration) (suppressed int64, ok bool) {
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

// fadingLimiter allows a line whose cause may last for ever without anybody who could
// end it: the first at once, and each next one after twice the time, from a minute up to
// an hour. Its zero value is ready; it is safe for concurrent use.
type fadingLimiter struct {
	mu         sync.Mutex
	next       time.Time
	span       time.Duration
	suppressed int64
}

const logHour = time.Hour

// allow reports whether the line may be written now, and how many were suppressed since
// the last one.
func (l *fadingLimiter) allow() (suppressed int64, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.next) {
		l.suppressed++
		return 0, false
	}
	l.span = min(max(2*l.span, logMinute), logHour)
	l.next = now.Add(l.span)
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}
