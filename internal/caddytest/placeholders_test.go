package caddytest

import (
	"fmt"
	"strings"
	"testing"
)

var facts = []string{"outcome", "zone", "limit", "remaining", "reset", "retry_after", "source", "client_ip"}

// told is all placeholders in a row, and logTold the directives that put them
// into the access log.
var told, logTold = func() (told, logTold string) {
	for i, fact := range facts {
		if i > 0 {
			told += " "
		}
		told += "{http.distributed_ratelimit." + fact + "}"
		logTold += "log_append told_" + fact + " {http.distributed_ratelimit." + fact + "}\n"
	}
	return told, "log\n" + logTold
}()

// logged is the row of a line in the access log.
func logged(line map[string]any) string {
	var row []string
	for _, fact := range facts {
		row = append(row, fmt.Sprint(line["told_"+fact]))
	}
	return strings.Join(row, " ")
}

func (e *edge) told(want, body string) {
	e.t.Helper()
	if got := hour(body); got != want {
		e.t.Errorf("placeholders: got %q, want %q", got, want)
	}
}

// What handlers, error routes, header directives and the access log see.
func TestPlaceholders(t *testing.T) {
	e := start(t, `
http://a.test {
	`+logTold+`
	header >X-Told "`+told+`"
	route {
		distributed_ratelimit {
			zone wide {
				events 100
				window 1h
			}
			zone tight {
				exempt path /free
				events 2
				window 1h
			}
			refusal error
		}
		header X-Left {http.distributed_ratelimit.remaining}
		respond "`+told+`"
	}
	handle_errors {
		respond "`+told+`"
	}
}`)
	const granted = "granted tight 2 1 HOUR  store 198.51.100.1"
	a := e.get(alice, "http://a.test/")
	e.told(granted, a.body)
	e.told(granted, a.Header.Get("X-Told"))
	a.header(t, "X-Left", "1")
	e.told("granted wide 100 98 HOUR  store 198.51.100.1", e.get(alice, "http://a.test/free").body)
	e.granted(1, alice, "http://a.test/")

	const refused = "refused tight 2 0 HOUR HOUR store 198.51.100.1"
	e.told(refused, e.refused(alice, "http://a.test/").body)

	lines := e.log.says(4, "handled request")
	for i, want := range map[int]string{0: granted, 3: refused} {
		e.told(want, logged(lines[i]))
	}
}

func TestPlaceholdersWhenNothingApplies(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone z {
			match path /limited
			events 2
			window 1h
		}
		zone free {
			exempt path /free
			events 0
			window 1h
			match path /free
		}
	}
	respond "`+told+`"
}`)
	e.body("       198.51.100.1", alice, "http://a.test/")
	e.body("exempt free     policy 198.51.100.1", alice, "http://a.test/free")
}

// Over several handlers the placeholders tell of the request: the zone that
// refused, else the zone in force that is nearest to its limit.
func TestPlaceholdersOverSeveralHandlers(t *testing.T) {
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 2 1h tight
		distributed_ratelimit 100 1h wide
		distributed_ratelimit 100 1h free {
			exempt path /*
		}
		respond "`+told+`"
	}
}
http://trial.test {
	route {
		distributed_ratelimit 0 1h trial {
			dry_run
		}
		distributed_ratelimit 100 1h wide
		respond "`+told+`"
	}
}
http://error.test {
	`+logTold+`
	distributed_ratelimit 0 1h closed
	handle_errors {
		distributed_ratelimit 100 1h wide
		respond "`+told+`"
	}
}`)
	e.told("granted tight 2 1 HOUR  store 198.51.100.1", e.get(alice, "http://a.test/").body)
	// A dry run takes nothing from a zone in force.
	e.told("granted wide 100 98 HOUR  store 198.51.100.1", e.get(alice, "http://trial.test/").body)
	const refused = "refused closed 0 0 0  policy 198.51.100.1"
	e.told(refused, e.refused(alice, "http://error.test/").body)
	for _, line := range e.log.says(1, "handled request") {
		e.told(refused, logged(line))
	}
}
