package distributedratelimit

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
)

// counts reports whether a response is one that a zone with count_if counts.
func (z *Zone) counts(status int, header http.Header) bool {
	for i := range z.CountIf {
		if z.CountIf[i].Match(status, header) {
			return true
		}
	}
	return false
}

// checkCountIf rejects matchers of responses that match all of them, or none.
func checkCountIf(matchers []caddyhttp.ResponseMatcher) *settings.Mistake {
	for i := range matchers {
		m := &matchers[i]
		if len(m.StatusCode) == 0 && len(m.Headers) == 0 {
			return settings.Wrong("count_if", "count_if names no response; write for example: count_if status 401 403, or remove it to count every request")
		}
		for _, status := range m.StatusCode {
			switch {
			case status == statusClientGone:
				return settings.Wrong("count_if", "count_if status 499: a client that goes away is counted in any case; remove 499")
			case status == 1 || status >= 100 && status < 200 && status != http.StatusSwitchingProtocols:
				return settings.Wrong("count_if", "count_if status %s is not final, the response comes after it; write the status of the response, such as 101 or 401", statusText(status))
			case status > 0 && status < 10 && status < 6, status >= 100 && status <= 599:
			default:
				return settings.Wrong("count_if", "count_if status %d is none; write 101 to 599, or a class such as 4xx", status)
			}
		}
	}
	return nil
}

// statusText is a status as it is written in a Caddyfile.
func statusText(status int) string {
	if status < 10 {
		return fmt.Sprintf("%dxx", status)
	}
	return fmt.Sprint(status)
}

// countIf parses a matcher of responses, and adds it to others:
//
//	count_if [status <code...>] | [header <field> [<value>]]
//	count_if {
//	    status <code...>
//	    header <field> [<value>]
//	}
func (p *handlerParser) countIf(z *Zone) error {
	word, at := p.Val(), *p.Dispenser
	matchers := make(map[string]caddyhttp.ResponseMatcher)
	if next := *p.Dispenser; next.NextArg() && strings.HasPrefix(next.Val(), "@") {
		return p.Errf("count_if takes no named matcher, which is about requests; write: count_if status <code...>, count_if header <field> [<value>], or both in a block")
	}
	if next := *p.Dispenser; next.NextArg() && isStatus(next.Val()) {
		codes := append([]string{next.Val()}, next.RemainingArgs()...)
		return p.Errf("count_if does not say of what; write: count_if status %s", strings.Join(codes, " "))
	}
	if err := caddyhttp.ParseNamedResponseMatcher(p.NewFromNextSegment(), matchers); err != nil {
		return err
	}
	matcher := matchers[word]
	if mistake := checkCountIf([]caddyhttp.ResponseMatcher{matcher}); mistake != nil {
		return at.Errf("%v", mistake) // it may be one of several
	}
	z.CountIf = append(z.CountIf, matcher)
	p.at.Mark(&at, z.Name, word)
	return nil
}

func isStatus(text string) bool {
	return len(text) == 3 && text[0] >= '1' && text[0] <= '5' && strings.Trim(text[1:], "0123456789x") == ""
}
