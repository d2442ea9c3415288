package distributedratelimit

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"html/template"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
)

// Problem types of draft-ietf-httpapi-ratelimit-headers, section 5.
const (
	problemQuotaExceeded   = "https://iana.org/assignments/http-problem-types#quota-exceeded"
	problemReducedCapacity = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
)

// problemDetails is what a refused client is told (RFC 9457).
type problemDetails struct {
	Type     string   `json:"type"`
	Title    string   `json:"title"`
	Status   int      `json:"status"`
	Detail   string   `json:"detail,omitempty"`
	Violated []string `json:"violated-policies,omitempty"`

	retryAfter int64         // s; 0 if a retry does not help
	wait       time.Duration // the same, exactly
}

func (p *problemDetails) json() []byte {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and a number
	}
	return append(body, '\n')
}

// refuse responds to a request that may not pass.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, e *evaluation) error {
	e.charges.forgetHeaders()
	problem := h.problem(e)
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	e.charges.told.retryAfter = int32(problem.retryAfter)
	if problem.retryAfter > 0 {
		header.Set("Retry-After", strconv.FormatInt(problem.retryAfter, 10))
	}
	if e.api != "" {
		llm.SetRetry(header, problem.wait)
	}
	if r.ProtoMajor == 1 && e.unread() {
		// The server reads the body before it responds, to be able to use the
		// connection again. A client that waits for the response before it
		// sends the body (Expect: 100-continue) would wait for ever.
		header.Set("Connection", "close")
	}
	if refusals[e.reason].limit {
		h.headers.set(header, e.appendHeaderZones(nil, problem.retryAfter))
	}

	if e.api != "" && (h.Refusal == "" || h.Refusal == refusalAuto) {
		writeRefusal(w, problem.Status, "application/json", llm.ErrorBody(e.api, problem.Status, e.reason.String(), problem.Detail))
		return nil
	}
	err := caddyhttp.Error(problem.Status, errors.New(problem.Detail))
	if h.rendersError(r, err) {
		return err
	}
	body, kind := problem.json(), "application/problem+json"
	if h.Refusal != refusalProblem && prefersHTML(r.Header) {
		body, kind = problem.page(), "text/html; charset=utf-8"
	}
	writeRefusal(w, problem.Status, kind, body)
	return nil
}

func writeRefusal(w http.ResponseWriter, status int, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have gone
}

// problem is what a refusal tells: the wait is the longest of the zones that
// refuse.
func (h *Handler) problem(e *evaluation) problemDetails {
	about := &refusals[e.reason]
	problem := problemDetails{
		Type: about.problem, Title: about.title, Detail: about.detail,
		Status: cmp.Or(about.status, h.Status),
	}
	longest := about.wait
	for i := range e.verdicts {
		v := &e.verdicts[i]
		if v.reason == reasonNone || v.zone.DryRun {
			continue
		}
		longest = max(longest, v.wait())
		if v.reason == e.reason {
			v.explain(&problem)
		}
		if about.limit && !v.zone.Hide {
			problem.Violated = append(problem.Violated, v.zone.Name)
		}
	}
	if longest != useless {
		problem.wait = max(h.jittered(longest), time.Millisecond)
		problem.retryAfter = max(wholeSeconds(problem.wait), 1)
	}
	if about.wait == 0 {
		problem.Detail += "; try again in " + strconv.FormatInt(problem.retryAfter, 10) + " s."
	}
	return problem
}

// jittered lengthens a wait at random. It is never shortened: a client that
// comes back too early is refused again.
func (h *Handler) jittered(wait time.Duration) time.Duration {
	if h.Jitter == 0 {
		return wait
	}
	return wait + time.Duration(float64(wait)*h.Jitter*rand.Float64())
}

// rendersError decides between returning an error, which the site's
// handle_errors renders, and writing the response here.
func (h *Handler) rendersError(r *http.Request, err caddyhttp.HandlerError) bool {
	if r.Context().Value(caddyhttp.ErrorCtxKey) != nil {
		// This is an error route: an error out of it is logged as a failure
		// and leaves the response empty.
		return false
	}
	switch h.Refusal {
	case refusalError:
		return true
	case refusalProblem:
		return false
	}
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if server == nil || server.Errors == nil {
		return false
	}
	return handlesError(server, r, err)
}

// handlesError reports whether an error route of the server is meant for the
// request with this error. The error routes belong to the listener, not to
// the site: routes of a neighbouring site, or for other statuses, do nothing
// for this request, and the response would have an empty body.
func handlesError(server *caddyhttp.Server, r *http.Request, err caddyhttp.HandlerError) bool {
	// Look at the request as the server would hand it to the error routes:
	// as it came in, with the error in its context and placeholders.
	probe := r.WithContext(r.Context())
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		probe.Method, probe.RemoteAddr, probe.RequestURI = original.Method, original.RemoteAddr, original.RequestURI
		u := new(url.URL)
		*u = *original.URL
		probe.URL = u
	}
	probe = server.Errors.WithError(probe, err)
	defer forgetError(r)
	return anyHandles(server.Errors.Routes, probe, make(map[string]bool))
}

// forgetError removes the placeholders that handlesError set for the sake of
// the matchers; no error has happened as long as none is returned.
func forgetError(r *http.Request) {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	for _, name := range []string{"", ".status_code", ".status_text", ".id", ".trace", ".message"} {
		repl.Delete("http.error" + name)
	}
}

// anyHandles walks routes as the server would, and reports whether the
// request meets a handler in them that is not just a list of routes.
func anyHandles(routes caddyhttp.RouteList, r *http.Request, groups map[string]bool) bool {
	for _, route := range routes {
		if route.Group != "" && groups[route.Group] {
			continue
		}
		matches, err := route.MatcherSets.AnyMatchWithError(r)
		if err != nil || !matches {
			continue
		}
		if route.Group != "" {
			groups[route.Group] = true
		}
		for _, handler := range route.Handlers {
			subroute, ok := handler.(*caddyhttp.Subroute)
			if !ok || anyHandles(subroute.Routes, r, groups) {
				return true
			}
		}
		if route.Terminal {
			return false
		}
	}
	return false
}

// page.html is what people see in a browser. It needs no scripts and nothing from
// elsewhere, and holds nothing that the client has written.
//
//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

func (p *problemDetails) page() []byte {
	var body bytes.Buffer
	if err := pageTemplate.Execute(&body, p); err != nil {
		panic(err) // nothing in it can fail
	}
	return body.Bytes()
}

// acceptBytes is how much of a client's Accept header is read.
const acceptBytes = 2048

// prefersHTML reports whether a client would rather have HTML than JSON, as a
// browser that shows a page: by the weights in its Accept header, and where these are
// equal, if it names HTML but JSON only by a wildcard. A script that takes anything
// gets JSON.
func prefersHTML(h http.Header) bool {
	var html, json preference
	left := acceptBytes
	for _, line := range h["Accept"] {
		line = line[:min(len(line), left)]
		left -= len(line)
		for element := range strings.SplitSeq(line, ",") {
			media, params, _ := strings.Cut(element, ";")
			weight := weightOf(params)
			switch strings.ToLower(strings.Trim(media, " \t")) {
			case "text/html", "application/xhtml+xml":
				html.takes(3, weight)
			case "application/json", "application/problem+json":
				json.takes(3, weight)
			case "text/*":
				html.takes(2, weight)
			case "application/*":
				json.takes(2, weight)
			case "*/*":
				html.takes(1, weight)
				json.takes(1, weight)
			}
		}
	}
	if html.weight != json.weight {
		return html.weight > json.weight
	}
	return html.weight > 0 && html.exact > json.exact
}

// preference is how much a client wants a kind of media, 0 to 1, by the most exact
// of the elements that name it.
type preference struct {
	exact  int
	weight float64
}

func (p *preference) takes(exact int, weight float64) {
	if exact > p.exact {
		*p = preference{exact, weight}
	} else if exact == p.exact {
		p.weight = max(p.weight, weight)
	}
}

// weightOf is the weight q among the parameters of an element.
func weightOf(params string) float64 {
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(param, "=")
		if !strings.EqualFold(strings.Trim(name, " \t"), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.Trim(value, " \t"), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return q
	}
	return 1
}
