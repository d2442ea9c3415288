package distributedratelimit

import (
	"net/http"
	"testing"
)

// What others add to one of the headers does not show in another one.
func TestHeadersAreApart(t *testing.T) {
	header := make(http.Header)
	style := headerStyle{draft: draftShapes["draft"], when: headersAlways}
	style.set(header, []headerZone{{name: "z", limit: 10, remaining: 9, window: 60, reset: 6}})
	header.Add("RateLimit-Policy", `"upstream";q=1`)
	header.Add("RateLimit", `"upstream";r=1`)
	for name, want := range map[string][2]string{
		"RateLimit-Policy": {`"z";q=10;w=60`, `"upstream";q=1`},
		"RateLimit":        {`"z";r=9;t=6`, `"upstream";r=1`},
	} {
		if got := header.Values(name); len(got) != 2 || [2]string(got) != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}
