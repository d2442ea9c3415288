package llm

import "strings"

// Route says what becomes of a request by its method and path alone.
type Route int

const (
	Unmetered Route = iota // not in the table: what it costs is not known
	Metered                // its body says what it may cost
	Free                   // it costs nothing
)

// endpoint is what a metered request asks for.
type endpoint int

const (
	none endpoint = iota
	chat
	responses
	messages
)

// path is a row of the table. {id} stands for one segment.
type path struct {
	methods  string // separated by spaces
	pattern  string
	endpoint endpoint // none: free
}

// Everything that is not here is unmetered: batches, files, embeddings, audio,
// images, realtime, WebSockets (GET /v1/responses), and what is yet to come.
var (
	openaiPaths = []path{
		{"POST", "/v1/chat/completions", chat},
		{"GET", "/v1/chat/completions", none},
		{"GET POST DELETE", "/v1/chat/completions/{id}", none}, // POST changes metadata
		{"GET", "/v1/chat/completions/{id}/messages", none},
		{"POST", "/v1/responses", responses},
		{"POST", "/v1/responses/input_tokens", none},
		{"GET DELETE", "/v1/responses/{id}", none},
		{"GET", "/v1/responses/{id}/input_items", none},
		{"POST", "/v1/responses/{id}/cancel", none},
		{"POST", "/v1/moderations", none},
		{"GET", "/v1/models", none},
		{"GET", "/v1/models/{id}", none},
	}
	anthropicPaths = []path{
		{"POST", "/v1/messages", messages},
		{"POST", "/v1/messages/count_tokens", none},
		{"GET", "/v1/models", none},
		{"GET", "/v1/models/{id}", none},
	}
)

// Route looks a request up in the table. The path is the one that the upstream
// gets, escaped as it is sent (http.Request.URL.EscapedPath): a decoded one
// could hide a slash. Paths are compared to the letter, so that nothing can be
// read in two ways: a doubled or trailing slash is unmetered.
func (m *Meter) Route(method, escapedPath string) Route {
	switch row := m.find(method, escapedPath); {
	case row == nil:
		return Unmetered
	case row.endpoint == none || method == "OPTIONS":
		return Free
	}
	return Metered
}

func (m *Meter) find(method, escapedPath string) *path {
	for i := range m.paths {
		row := &m.paths[i]
		if row.allows(method) && fits(row.pattern, escapedPath) {
			return row
		}
	}
	return nil
}

// allows answers preflight requests of browsers, too, and HEAD where there is
// GET.
func (p *path) allows(method string) bool {
	if method == "OPTIONS" {
		return true
	}
	if method == "HEAD" {
		method = "GET"
	}
	for m := range strings.SplitSeq(p.methods, " ") {
		if m == method {
			return true
		}
	}
	return false
}

func fits(pattern, path string) bool {
	before, after, wild := strings.Cut(pattern, "{id}")
	if !wild {
		return path == pattern
	}
	rest, ok := strings.CutPrefix(path, before)
	if !ok {
		return false
	}
	id, ok := strings.CutSuffix(rest, after)
	return ok && isID(id)
}

// isID accepts what identifiers of both APIs consist of. It is narrow so that
// no server reads another path: no escapes, slashes, or dots alone.
func isID(s string) bool {
	if strings.Trim(s, ".") == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-_.:", c) >= 0:
		default:
			return false
		}
	}
	return true
}
