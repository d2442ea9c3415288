package caddytest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

func init() {
	caddy.RegisterModule(new(tracedHandler))
	httpcaddyfile.RegisterHandlerDirective("traced", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		s := new(tracedHandler)
		if !h.AllArgs(&s.Name) {
			return nil, h.ArgErr()
		}
		return s, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("traced", httpcaddyfile.After, "tracing")
}

// tracedHandler is the directive tracing, with an exporter that a test can read.
type tracedHandler struct {
	Name string `json:"name"`

	spans *spans
}

type spans struct {
	*tracetest.InMemoryExporter
	provider *trace.TracerProvider
}

func openSpans(t *testing.T) *spans {
	s := &spans{InMemoryExporter: tracetest.NewInMemoryExporter()}
	s.provider = trace.NewTracerProvider(trace.WithSyncer(s.InMemoryExporter))
	invite(t, t.Name(), s)
	return s
}

func (*tracedHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.traced", New: func() caddy.Module { return new(tracedHandler) }}
}

func (h *tracedHandler) Provision(caddy.Context) (err error) {
	h.spans, err = guest[*spans](h.Name)
	return err
}

func (h *tracedHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	ctx, span := h.spans.provider.Tracer("test").Start(r.Context(), "request")
	defer span.End()
	return next.ServeHTTP(w, r.WithContext(ctx))
}

// taken is the spans since the last time, in the order of their ends, as text; that of the
// store must be a child of the request's.
func (s *spans) taken(t *testing.T) (list []string) {
	t.Helper()
	all := s.GetSpans()
	s.Reset()
	if len(all) == 0 {
		t.Fatal("no span")
	}
	requests := make(map[oteltrace.SpanID]tracetest.SpanStub)
	for _, span := range all {
		if span.Name == "request" {
			requests[span.SpanContext.SpanID()] = span
		}
	}
	for _, span := range all {
		text := span.Name
		slices.SortFunc(span.Attributes, func(a, b attribute.KeyValue) int { return strings.Compare(string(a.Key), string(b.Key)) })
		for _, a := range span.Attributes {
			text += fmt.Sprintf(" %s=%s", strings.TrimPrefix(string(a.Key), "distributed_ratelimit."), a.Value.String())
		}
		if span.Status.Description != "" {
			text += ": " + span.Status.Description
		}
		list = append(list, text)
		if span.Name == "request" {
			continue
		}
		request, ok := requests[span.Parent.SpanID()]
		if !ok || span.StartTime.Before(request.StartTime) || span.EndTime.After(request.EndTime) || !span.StartTime.Before(span.EndTime) {
			t.Errorf("span %s from %v to %v: want it within a request, from %v to %v", text, span.StartTime, span.EndTime, request.StartTime, request.EndTime)
		}
	}
	return list
}

func (s *spans) tell(t *testing.T, want ...string) {
	t.Helper()
	if got := s.taken(t); !slices.Equal(got, want) {
		t.Errorf("spans: got %q, want %q", got, want)
	}
}

// Where the site has tracing, a call to the store has a span, and the request's span tells
// the decision. What is decided in the process has none.
func TestTracing(t *testing.T) {
	s := openSpans(t)
	server := redistest.Start(t)
	e := start(t, onRedis(server, `
http://a.test {
	traced `+t.Name()+`
	distributed_ratelimit {
		zone tight {
			events 1
			window 1h
		}
		zone tried {
			events 1
			window 1h
			dry_run
		}
	}
	respond "ok"
}
http://b.test {
	traced `+t.Name()+`
	distributed_ratelimit {
		zone one {
			concurrent 1
		}
	}
	respond "ok"
}
http://c.test {
	traced `+t.Name()+`
	respond "ok"
}
http://d.test {
	distributed_ratelimit 5 1h untraced
	respond "ok"
}`))
	e.becomes("store_up", equals(1))
	e.granted(1, alice, "http://a.test/")
	s.tell(t, "distributed_ratelimit store outcome=granted source=store zones=[\"tight\",\"tried\"]", "request outcome=granted reason= source=store zone=tight")
	e.refused(alice, "http://a.test/")
	s.tell(t, "distributed_ratelimit store outcome=refused source=store zones=[\"tight\",\"tried\"]", "request outcome=refused reason=limit source=store zone=tight")
	// The refusal is remembered for a second, which is long ago on a busy machine.
	var spans []string
	for range 20 {
		e.refused(alice, "http://a.test/")
		if spans = s.taken(t); len(spans) == 1 {
			break
		}
	}
	if want := []string{"request outcome=refused reason=limit source=cache zone=tight"}; !slices.Equal(spans, want) {
		t.Errorf("spans of a remembered refusal: got %q, want %q", spans, want)
	}
	e.granted(1, alice, "http://b.test/")
	s.tell(t, "distributed_ratelimit store outcome=granted source=store zones=[\"one\"]", "request outcome=granted reason= source=store zone=one")
	e.granted(1, alice, "http://c.test/")
	s.tell(t, "request")
	e.granted(1, alice, "http://d.test/")

	server.Kill()
	e.becomes("store_up", equals(0))
	e.granted(1, bob, "http://a.test/")
	s.tell(t, "distributed_ratelimit store outcome=granted source=local zones=[\"tight\",\"tried\"]: the store did not answer", "request outcome=granted reason= source=local zone=tight")
}

// The memory of the process is no call.
func TestTracingInMemory(t *testing.T) {
	s := openSpans(t)
	e := start(t, "http://a.test {\n\ttraced "+t.Name()+"\n\tdistributed_ratelimit 1 1h z\n\trespond ok\n}")
	e.granted(1, alice, "http://a.test/")
	s.tell(t, "request outcome=granted reason= source=store zone=z")
}
