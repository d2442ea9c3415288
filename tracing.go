package distributedratelimit

import (
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Where the site has tracing, the request's span tells the decision, and a call to the
// store has a span of its own. Attributes hold names of zones and words of fixed lists,
// never a key.
const (
	tracerName = "github.com/caddy-distributed-ratelimit/distributed-ratelimit"
	spanName   = "distributed_ratelimit store"

	attributeOutcome = attribute.Key("distributed_ratelimit.outcome")
	attributeZone    = attribute.Key("distributed_ratelimit.zone")
	attributeZones   = attribute.Key("distributed_ratelimit.zones")
	attributeReason  = attribute.Key("distributed_ratelimit.reason")
	attributeSource  = attribute.Key("distributed_ratelimit.source")
)

// traceCall makes a span of a call to the store that is just over, about the verdicts with
// these indices. It is made afterwards since nobody knows before whether the store will be
// asked: what is decided in this process has no span.
func (e *evaluation) traceCall(waited time.Duration, indices []int) {
	if waited == 0 || e.h.backend.here {
		return
	}
	parent := trace.SpanFromContext(e.r.Context())
	if !parent.IsRecording() {
		return
	}
	end := time.Now()
	zones := make([]string, 0, len(indices))
	var outcome outcome
	var source store.Source
	for _, i := range indices {
		v := &e.verdicts[i]
		zones = append(zones, v.zone.Name)
		if worse := v.outcome(); severity[worse] > severity[outcome] {
			outcome, source = worse, v.Source
		}
	}
	_, span := parent.TracerProvider().Tracer(tracerName).Start(e.r.Context(), spanName,
		trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(end.Add(-waited)),
		trace.WithAttributes(
			attributeZones.StringSlice(zones), attributeOutcome.String(outcome.String()), attributeSource.String(source.String()),
		))
	if source == store.FromLocal || source == store.FromPolicy {
		span.SetStatus(codes.Error, "the store did not answer")
	}
	span.End(trace.WithTimestamp(end))
}

// severity orders what zones say of a request.
var severity = [outcomes]int{outcomeGranted: 1, outcomeDryRun: 2, outcomeRefused: 3}

// outcome is what the zone by itself says.
func (v *verdict) outcome() outcome {
	switch {
	case v.silent():
		return outcomeNone
	case v.reason == reasonNone:
		return outcomeGranted
	case v.zone.DryRun:
		return outcomeDryRun
	}
	return outcomeRefused
}

// traceDecision writes what is told of the request into its span.
func (c *charges) traceDecision(e *evaluation) {
	span := trace.SpanFromContext(e.r.Context())
	if !span.IsRecording() || c.told.outcome == outcomeNone {
		return
	}
	span.SetAttributes(
		attributeOutcome.String(c.told.outcome.String()), attributeZone.String(c.told.zone.Name),
		attributeReason.String(c.told.reason.String()), attributeSource.String(c.told.source.String()),
	)
}
