package distributedratelimit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxExplain bounds what is read of a POST to explain, in bytes.
const maxExplain = 16 << 20

// explainRequest is the body of POST explain: a request as this server would get it.
type explainRequest struct {
	// Method is GET if it is empty.
	Method string `json:"method"`
	// URL is the whole of it, such as https://example.com/login?next=/.
	URL string `json:"url"`
	// Headers are what the server gets, including what proxies in front of it add.
	Headers map[string]oneOrMore `json:"headers"`
	// RemoteAddr is who is connected: an address, with a port or without, of the proxy
	// in front if there is one; or "unix" for a Unix socket.
	RemoteAddr string `json:"remote_addr"`
	Body       string `json:"body"`
	// Vars are placeholders, such as http.auth.user.id, http.vars.plan or
	// http.request.header.X-User, that handlers would set which are not run here.
	Vars map[string]any `json:"vars"`
	// Server is the name of the HTTP server, if the URL leaves a doubt.
	Server string `json:"server"`
}

// oneOrMore is the values of a header, in JSON a text or a list of them.
type oneOrMore []string

// UnmarshalJSON implements json.Unmarshaler.
func (m *oneOrMore) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*m = oneOrMore{one}
		return nil
	}
	var more []string
	if err := json.Unmarshal(data, &more); err != nil {
		return errors.New("a header is neither a text nor a list of texts")
	}
	*m = more
	return nil
}

const explainForm = `{"method":"POST","url":"https://example.com/login","headers":{"X-Forwarded-For":"203.0.113.7"},"remote_addr":"10.0.0.1"}`

// adminExplain answers POST explain.
func adminExplain(c *adminCall) (answer any, err error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(c.Body, maxExplain+1))
	switch {
	case err != nil:
		return nil, adminError(http.StatusBadRequest, "reading the request to explain: %v", err)
	case len(text) > maxExplain:
		return nil, adminError(http.StatusRequestEntityTooLarge, "the request to explain is longer than %d MiB; leave out a part of its body", maxExplain>>20)
	}
	var asked explainRequest
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&asked); err != nil {
		return nil, adminError(http.StatusBadRequest, "the request to explain cannot be read (%v); send for example: %s", err, explainForm)
	}
	server, r, dropped, err := asked.request(c.Context(), app)
	if err != nil {
		return nil, err
	}
	// Other people's matchers and handlers look at a request that did not come through
	// the server: if one of them cannot cope with that, the server goes on.
	defer func() {
		if p := recover(); p != nil {
			err = adminError(http.StatusInternalServerError, "explaining the request failed in a handler or a matcher: %v", p)
		}
	}()
	x := newWalk(app, server, &asked)
	for _, name := range dropped {
		x.assume("the server drops the header %s, whose name is not safe behind it", name)
	}
	x.run(r)
	return x.answer, nil
}

func (x *walk) assume(format string, args ...any) {
	x.answer.Assumed = append(x.answer.Assumed, fmt.Sprintf(format, args...))
}
