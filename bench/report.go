package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// report is all that a run has found out. Sections add to it; render and draw
// show it; nobody else formats figures.
type report struct {
	Quick    bool
	Sections []string
	Machine  machine
	Took     time.Duration
	Goals    []goal
	Missing  []string // what could not be measured, and why

	Speeds   []speed
	Script   scriptCost
	Calls    []callCount
	Sites    []siteCalls
	Far      []farCalls
	Growth   growth
	Accuracy []outcome
	Handler  []handlerCost
	Web      []webResult
}

// missing notes something that could not be measured. Nothing is left out in
// silence.
func (rep *report) missing(format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	if !slices.Contains(rep.Missing, note) {
		rep.Missing = append(rep.Missing, note)
	}
}

// speed returns how fast a subject was, or nil if it was not measured.
func (rep *report) speed(subject string, what situation, delayed bool) *speed {
	for i := range rep.Speeds {
		if s := &rep.Speeds[i]; s.Subject == subject && s.Situation == what && s.Delayed == delayed {
			return s
		}
	}
	return nil
}

// bestRival returns the fastest of the others that count in Redis.
func (rep *report) bestRival(what situation, delayed bool) (best *speed) {
	for i := range rep.Speeds {
		s := &rep.Speeds[i]
		if s.Shared && !isOurs(s.Subject) && s.Situation == what && s.Delayed == delayed && (best == nil || s.PerSecond > best.PerSecond) {
			best = s
		}
	}
	return best
}

func (rep *report) calls(subject, traffic string) *callCount {
	for i := range rep.Calls {
		if c := &rep.Calls[i]; c.Subject == subject && c.Traffic == traffic {
			return c
		}
	}
	return nil
}

func (rep *report) web(server string) *webResult {
	for i := range rep.Web {
		if w := &rep.Web[i]; w.Server == server {
			return w
		}
	}
	return nil
}

// isOurs reports whether a subject is this module.
func isOurs(subject string) bool { return strings.HasPrefix(subject, "this module") }
