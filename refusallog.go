package distributedratelimit

import (
	"cmp"
	"strings"
	"time"

	"go.uber.org/zap"
)

const (
	// refusalLines is how many refusals a zone may log in a second.
	refusalLines = 3
	// loggedBytes is how much of each text that a stranger wrote a line holds.
	loggedBytes = 256
)

// logRefusal logs that a zone refuses the request, or would in force.
func (e *evaluation) logRefusal(v *verdict) {
	if !e.h.logger.Core().Enabled(zap.InfoLevel) {
		return
	}
	suppressed, ok := v.zone.refusalLog.Allow(refusalLines, time.Second)
	if !ok {
		return
	}
	message, why := "request refused", e.reason
	if v.zone.DryRun {
		message, why = "request would be refused", v.reason
	}
	wait := v.wait()
	if wait == useless {
		wait = 0
	}
	status := cmp.Or(refusals[why].status, e.h.Status)
	if v.refusal != nil && v.reason == why {
		status = v.refusal.Status
	}
	fields := []zap.Field{
		zap.String("zone", v.zone.Name),
		zap.Stringer("reason", v.reason),
		zap.Int("status", status),
		zap.Stringer("client_ip", e.charges.client),
		zap.String("host", bounded(e.r.Host)),
		zap.String("method", bounded(e.r.Method)),
		zap.String("path", bounded(e.r.URL.Path)),
		zap.Stringer("source", v.Source),
		zap.Duration("retry_after", wait),
		zap.Bool("dry_run", v.zone.DryRun),
		zap.Int64("suppressed", suppressed),
	}
	if v.limit > 0 || v.reason == reasonZero { // else the plan was not read
		fields = append(fields, zap.Int64("limit", v.limit))
	}
	if v.zone.window > 0 {
		fields = append(fields, zap.Duration("window", v.zone.window))
	}
	if e.h.LogKey {
		fields = append(fields, zap.String("key", v.zone.readable(&e.keys, e.charges.client, v.client)))
	}
	e.h.logger.Info(message, fields...)
}

// bounded cuts what a stranger wrote to a length that is fit for a log. What is cut
// off is not kept in memory.
func bounded(text string) string {
	if len(text) <= loggedBytes {
		return text
	}
	return strings.ToValidUTF8(text[:loggedBytes], "") + "..."
}
