package distributedratelimit

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// This file is about what logs tell of decisions: lines about refusals, and a field in the
// lines of the access log.

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

// accessLogField is the object in the lines of the access log that tells what became of
// the request. It tells what the placeholders do, and never a key.
const accessLogField = "rate_limit"

// annotate adds the field to the request's line in the access log, if its server writes
// one. It is written only with the line.
func (c *charges) annotate(ctx context.Context) {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || server.Logs == nil {
		return
	}
	if extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Add(zap.Inline((*accessRecord)(c)))
	}
}

// accessRecord is charges as the access log has them: nothing if no zone applied.
type accessRecord charges

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (c *accessRecord) MarshalLogObject(line zapcore.ObjectEncoder) error {
	if c.told.outcome == outcomeNone {
		return nil
	}
	return line.AddObject(accessLogField, zapcore.ObjectMarshalerFunc(c.fields))
}

func (c *accessRecord) fields(object zapcore.ObjectEncoder) error {
	told := &c.told
	object.AddString("outcome", told.outcome.String())
	object.AddString("zone", told.zone.Name)
	if told.reason != reasonNone {
		object.AddString("reason", told.reason.String())
	}
	object.AddString("source", told.source.String())
	if told.counted {
		object.AddInt64("limit", told.limit)
		object.AddInt64("remaining", told.remaining)
	}
	if told.retryAfter > 0 {
		object.AddInt64("retry_after", int64(told.retryAfter))
	}
	if c.at > 0 {
		object.AddInt64("at", c.at)
	}
	// The server has an opinion of its own, which the line holds anyway.
	client := c.client.String()
	if logged, _ := c.repl.GetString("http.vars.client_ip"); logged != client {
		object.AddString("client_ip", client)
	}
	if tries := c.dryRuns(); len(tries) > 0 {
		return object.AddArray("would_refuse", tries)
	}
	return nil
}

// dryRuns are the zones in dry run that would have refused the request.
func (c *accessRecord) dryRuns() (tries dryRuns) {
	for i := range c.zones {
		if z := &c.zones[i]; z.zone.DryRun && z.reason != reasonNone {
			tries = append(tries, dryRun{z.zone.Name, z.reason})
		}
	}
	return tries
}

type dryRuns []dryRun

type dryRun struct {
	zone   string
	reason reason
}

// MarshalLogArray implements zapcore.ArrayMarshaler.
func (d dryRuns) MarshalLogArray(array zapcore.ArrayEncoder) error {
	for _, try := range d {
		if err := array.AppendObject(try); err != nil {
			return err
		}
	}
	return nil
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (d dryRun) MarshalLogObject(object zapcore.ObjectEncoder) error {
	object.AddString("zone", d.zone)
	object.AddString("reason", d.reason.String())
	return nil
}

// Interface guards
var (
	_ zapcore.ObjectMarshaler = (*accessRecord)(nil)
	_ zapcore.ArrayMarshaler  = dryRuns(nil)
	_ zapcore.ObjectMarshaler = dryRun{}
)
