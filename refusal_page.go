package distributedratelimit

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"strconv"
	"strings"
)

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
