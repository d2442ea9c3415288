package caddytest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dunglas/httpsfv"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
)

// limitFields is what a response tells of limits, without what depends on the moment.
func limitFields(a reply) map[string]string {
	fields := make(map[string]string)
	for name, values := range a.Header {
		if strings.Contains(strings.ToLower(name), "rate") && strings.Contains(strings.ToLower(name), "limit") {
			fields[name] = strings.Join(values, " | ")
			if !strings.HasSuffix(name, "-Policy") {
				fields[name] = hour(fields[name])
			}
		}
	}
	return fields
}

func (a reply) tells(t *testing.T, want map[string]string) {
	t.Helper()
	if got := limitFields(a); !maps.Equal(got, want) {
		t.Errorf("status %d tells %q, want %q", a.StatusCode, got, want)
	}
}

func TestHeaderShapes(t *testing.T) {
	type fields = map[string]string
	for _, row := range []struct {
		words            string
		granted, refused fields
	}{
		{
			"ratelimit_headers draft always",
			fields{"Ratelimit-Policy": `"x";q=2;w=3600`, "Ratelimit": `"x";r=1;t=HOUR`},
			fields{"Ratelimit-Policy": `"x";q=2;w=3600`, "Ratelimit": `"x";r=0;t=HOUR`},
		},
		{
			"ratelimit_headers draft7 always",
			fields{"Ratelimit-Policy": "2;w=3600", "Ratelimit": "limit=2, remaining=1, reset=HOUR"},
			fields{"Ratelimit-Policy": "2;w=3600", "Ratelimit": "limit=2, remaining=0, reset=HOUR"},
		},
		{
			"ratelimit_headers draft6 always",
			fields{"Ratelimit-Policy": "2;w=3600", "Ratelimit-Limit": "2", "Ratelimit-Remaining": "1", "Ratelimit-Reset": "HOUR"},
			fields{"Ratelimit-Policy": "2;w=3600", "Ratelimit-Limit": "2", "Ratelimit-Remaining": "0", "Ratelimit-Reset": "HOUR"},
		},
		{
			"ratelimit_headers draft6",
			fields{},
			fields{"Ratelimit-Policy": "2;w=3600", "Ratelimit-Limit": "2", "Ratelimit-Remaining": "0", "Ratelimit-Reset": "HOUR"},
		},
		{
			"ratelimit_headers legacy always\nratelimit_headers_prefix X-Rate-Limit",
			fields{"X-Rate-Limit-Limit": "2", "X-Rate-Limit-Remaining": "1", "X-Rate-Limit-Reset": "HOUR"},
			fields{"X-Rate-Limit-Limit": "2", "X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": "HOUR"},
		},
		{
			"ratelimit_headers draft7 legacy always\nratelimit_headers_prefix RateLimit",
			fields{"Ratelimit-Policy": "2;w=3600", "Ratelimit": "limit=2, remaining=1, reset=HOUR", "Ratelimit-Limit": "2", "Ratelimit-Remaining": "1", "Ratelimit-Reset": "HOUR"},
			fields{"Ratelimit-Policy": "2;w=3600", "Ratelimit": "limit=2, remaining=0, reset=HOUR", "Ratelimit-Limit": "2", "Ratelimit-Remaining": "0", "Ratelimit-Reset": "HOUR"},
		},
	} {
		t.Run(row.words, func(t *testing.T) {
			e := start(t, `
http://a.test {
	distributed_ratelimit 2 1h x {
		`+row.words+`
	}
	respond "hello"
}`)
			e.get(alice, "http://a.test/").tells(t, row.granted)
			e.granted(1, alice, "http://a.test/")
			e.refused(alice, "http://a.test/").tells(t, row.refused)
		})
	}
}

// A moment is never told too early: a client that waits for it is granted. It is not
// told more than two seconds late, either: the moment and the time until then are
// both rounded up.
func TestResetAsAMoment(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1h x {
		ratelimit_headers legacy_epoch always
	}
	respond "hello"
}`)
	before := time.Now()
	a := e.get(alice, "http://a.test/")
	after := time.Now()
	b := e.refused(alice, "http://a.test/")
	for _, a := range []reply{a, b} {
		a.header(t, "X-RateLimit-Limit", "1")
		a.header(t, "X-RateLimit-Remaining", "0")
		n, err := strconv.ParseInt(a.Header.Get("X-RateLimit-Reset"), 10, 64)
		// The store may run a little behind this clock: its counts are in microseconds.
		if reset := time.Unix(n, 0); err != nil || reset.Before(before.Add(time.Hour-time.Millisecond)) || reset.After(after.Add(time.Hour+3*time.Second+time.Since(after))) {
			t.Errorf("status %d: X-RateLimit-Reset %q, want an hour after %d", a.StatusCode, a.Header.Get("X-RateLimit-Reset"), before.Unix())
		}
	}
}

// Where one zone only can be told of, it is the one that refused, even if another one
// has less left; and the policies begin with it.
func TestOneZoneIsTold(t *testing.T) {
	site := func(shape string) string {
		return `
http://a.test {
	distributed_ratelimit {
		zone wide {
			events 100
			window 1h
		}
		zone tight {
			events 1000
			window 1h
			cost {query.m} default 1 max 995
		}
		zone units {
			events 10
			window 1h
			cost {query.n} default 4 max 10
		}
		ratelimit_headers ` + shape + ` always
	}
	respond "hello"
}`
	}
	for shape, want := range map[string][2]map[string]string{
		"draft7": {
			{"Ratelimit-Policy": "1000;w=3600, 100;w=3600, 10;w=3600", "Ratelimit": "limit=1000, remaining=5, reset=HOUR"},
			{"Ratelimit-Policy": "10;w=3600, 100;w=3600, 1000;w=3600", "Ratelimit": "limit=10, remaining=6, reset=HOUR"},
		},
		"draft6": {
			{"Ratelimit-Policy": "1000;w=3600, 100;w=3600, 10;w=3600", "Ratelimit-Limit": "1000", "Ratelimit-Remaining": "5", "Ratelimit-Reset": "HOUR"},
			{"Ratelimit-Policy": "10;w=3600, 100;w=3600, 1000;w=3600", "Ratelimit-Limit": "10", "Ratelimit-Remaining": "6", "Ratelimit-Reset": "HOUR"},
		},
		"legacy": {
			{"X-Ratelimit-Limit": "1000", "X-Ratelimit-Remaining": "5", "X-Ratelimit-Reset": "HOUR"},
			{"X-Ratelimit-Limit": "10", "X-Ratelimit-Remaining": "6", "X-Ratelimit-Reset": "HOUR"},
		},
	} {
		t.Run(shape, func(t *testing.T) {
			e := start(t, site(shape))
			for i, a := range []reply{e.get(alice, "http://a.test/?m=995"), e.refused(alice, "http://a.test/?n=8")} {
				a.tells(t, want[i])
			}
		})
	}
}

// What cannot be told is left out: no waiting helps against a limit of 0, and a
// request that takes more than the limit was not counted.
func TestShapesLeaveOutWhatNobodyKnows(t *testing.T) {
	type fields = map[string]string
	for words, want := range map[string][2]fields{
		"draft7": {
			{"Ratelimit-Policy": "0;w=3600", "Ratelimit": "limit=0, remaining=0"},
			{"Ratelimit-Policy": "5;w=3600"},
		},
		"draft6": {
			{"Ratelimit-Policy": "0;w=3600", "Ratelimit-Limit": "0", "Ratelimit-Remaining": "0"},
			{"Ratelimit-Policy": "5;w=3600", "Ratelimit-Limit": "5"},
		},
		"legacy_epoch": {
			{"X-Ratelimit-Limit": "0", "X-Ratelimit-Remaining": "0"},
			{"X-Ratelimit-Limit": "5"},
		},
	} {
		t.Run(words, func(t *testing.T) {
			e := start(t, `
http://a.test {
	distributed_ratelimit /zero 0 1h zero {
		ratelimit_headers `+words+`
	}
	distributed_ratelimit /costly 5 1h costly {
		cost {query.n} default 1 max 9
		ratelimit_headers `+words+`
	}
	respond "hello"
}`)
			e.refused(alice, "http://a.test/zero").tells(t, want[0])
			e.refused(alice, "http://a.test/costly?n=6").tells(t, want[1])
		})
	}
}

// What the upstream has set stays, and what belongs to the same shape is left out.
func TestShapesOfTheUpstreamStay(t *testing.T) {
	type fields = map[string]string
	for words, want := range map[string]fields{
		"draft6":       {"Ratelimit-Reset": "upstream", "X-Ratelimit-Limit": "upstream"},
		"draft7":       {"Ratelimit-Reset": "upstream", "X-Ratelimit-Limit": "upstream", "Ratelimit-Policy": "10;w=3600", "Ratelimit": "limit=10, remaining=9, reset=HOUR"},
		"legacy_epoch": {"Ratelimit-Reset": "upstream", "X-Ratelimit-Limit": "upstream"},
	} {
		t.Run(words, func(t *testing.T) {
			e := start(t, `
http://a.test {
	distributed_ratelimit 10 1h x {
		ratelimit_headers `+words+` always
	}
	header RateLimit-Reset upstream
	header X-RateLimit-Limit upstream
	respond "hello"
}`)
			e.get(alice, "http://a.test/").tells(t, want)
		})
	}
}

// Two handlers with different shapes send the first one's draft and the first one's
// legacy fields, of all zones.
func TestShapesOfTwoHandlers(t *testing.T) {
	e := start(t, `
http://a.test {
	route {
		distributed_ratelimit 10 1h one {
			ratelimit_headers draft6 always
		}
		distributed_ratelimit 4 1h two {
			ratelimit_headers draft7 legacy always
			ratelimit_headers_prefix X-Rate-Limit
		}
		respond "hello"
	}
}`)
	e.get(alice, "http://a.test/").tells(t, map[string]string{
		"Ratelimit-Policy": "4;w=3600, 10;w=3600", "Ratelimit-Limit": "4", "Ratelimit-Remaining": "3", "Ratelimit-Reset": "HOUR",
		"X-Rate-Limit-Limit": "4", "X-Rate-Limit-Remaining": "3", "X-Rate-Limit-Reset": "HOUR",
	})
}

// threeZones has names and numbers at their bounds.
const threeZones = `
http://a.test {
	distributed_ratelimit {
		zone a_name-with.all-that-names-may-have-0123456789-and-as-long-as-is {
			events 1000000000000
			window 30d
		}
		zone b {
			events 3
			window 1s
		}
		zone 1 {
			events 2
			window 1h
		}
		ratelimit_headers SHAPE always
	}
	respond "hello"
}`

// A library for structured fields reads every shape of the draft back, and finds the
// numbers of all zones.
func TestStructuredFieldsReadTheDrafts(t *testing.T) {
	longest := strings.Fields(threeZones)[5]
	names := []string{longest, "b", "1"}
	quotas := []int64{1000000000000, 3, 2}
	windows := []int64{30 * 86400, 1, 3600}

	list := func(t *testing.T, h http.Header, name string) httpsfv.List {
		t.Helper()
		parsed, err := httpsfv.UnmarshalList(h.Values(name))
		if err != nil {
			t.Fatalf("%s %q: %v", name, h.Values(name), err)
		}
		return parsed
	}
	integer := func(t *testing.T, p *httpsfv.Params, name string) int64 {
		t.Helper()
		value, _ := p.Get(name)
		n, ok := value.(int64)
		if !ok {
			t.Fatalf("parameter %s: got %v (%T), want an integer", name, value, value)
		}
		return n
	}
	replies := func(t *testing.T, shape string) []reply {
		t.Helper()
		e := start(t, strings.Replace(threeZones, "SHAPE", shape, 1))
		granted := e.get(alice, "http://a.test/")
		e.granted(1, alice, "http://a.test/")
		return []reply{granted, e.refused(alice, "http://a.test/")}
	}

	t.Run("draft", func(t *testing.T) {
		for i, a := range replies(t, "draft") {
			policies, limits := list(t, a.Header, "RateLimit-Policy"), list(t, a.Header, "RateLimit")
			if len(policies) != len(names) {
				t.Fatalf("%d policies, want %d", len(policies), len(names))
			}
			for n, member := range policies {
				item := member.(httpsfv.Item)
				if item.Value != names[n] || integer(t, item.Params, "q") != quotas[n] || integer(t, item.Params, "w") != windows[n] {
					t.Errorf("policy %d is %v %v", n, item.Value, a.Header.Values("RateLimit-Policy"))
				}
			}
			// A refusal tells of what was asked: zones that were not have only a policy.
			found := false
			for _, member := range limits {
				item := member.(httpsfv.Item)
				n := slices.Index(names, item.Value.(string))
				if n < 0 || integer(t, item.Params, "r") > quotas[n] || integer(t, item.Params, "t") > windows[n] {
					t.Errorf("limit %v: %v", item.Value, a.Header.Values("RateLimit"))
				}
				if item.Value == "1" {
					found = true
					if got := integer(t, item.Params, "r"); got != int64(1-i) {
						t.Errorf("%d remain of zone 1, want %d", got, 1-i)
					}
				}
			}
			if !found {
				t.Errorf("nothing is told of the limit that refuses: %v", a.Header)
			}
		}
	})

	t.Run("draft7", func(t *testing.T) {
		for i, a := range replies(t, "draft7") {
			dictionary, err := httpsfv.UnmarshalDictionary(a.Header.Values("RateLimit"))
			if err != nil {
				t.Fatalf("RateLimit %q: %v", a.Header.Values("RateLimit"), err)
			}
			member := func(name string) int64 {
				m, ok := dictionary.Get(name)
				if !ok {
					t.Fatalf("no %s in %q", name, a.Header.Values("RateLimit"))
				}
				return m.(httpsfv.Item).Value.(int64)
			}
			if member("limit") != 2 || member("remaining") != int64(1-i) || member("reset") < 3500 || len(dictionary.Names()) != 3 {
				t.Errorf("RateLimit is %q, want what remains of 2", a.Header.Values("RateLimit"))
			}
			checkQuotas(t, list(t, a.Header, "RateLimit-Policy"), integer)
		}
	})

	t.Run("draft6", func(t *testing.T) {
		for i, a := range replies(t, "draft6") {
			for name, want := range map[string]int64{"RateLimit-Limit": 2, "RateLimit-Remaining": int64(1 - i), "RateLimit-Reset": -1} {
				item, err := httpsfv.UnmarshalItem(a.Header.Values(name))
				if got, ok := item.Value.(int64); err != nil || !ok || want >= 0 && got != want || want < 0 && got < 3500 {
					t.Errorf("%s is %q (%v), want %d", name, a.Header.Values(name), err, want)
				}
			}
			checkQuotas(t, list(t, a.Header, "RateLimit-Policy"), integer)
		}
	})
}

// Clients can tell tokens and micro-dollars from requests.
func TestHeadersTellUnits(t *testing.T) {
	backend := llmtest.Start(t)
	const requests, tokens = "zone requests {\nevents 10\nwindow 1h\n}\n", "zone tokens {\nwindow 1h\n" + tokenBudget + "\n}"
	for shape, want := range map[string]string{
		"draft":  `"requests";q=10;w=3600, "tokens";q=100000;w=3600;qu="tokens", "budget";q=20000000;w=3600;qu="micro-dollars"`,
		"draft7": `10;w=3600, 100000;w=3600;qu="tokens", 20000000;w=3600;qu="micro-dollars"`,
		"draft6": `10;w=3600, 100000;w=3600;qu="tokens", 20000000;w=3600;qu="micro-dollars"`,
	} {
		site := budgetSite(backend, requests+tokens, fmt.Sprintf(dollarBudget, "openai"))
		e := start(t, strings.Replace(site, "ratelimit_headers", "ratelimit_headers "+shape, 1))
		a := e.ask("/v1/chat/completions", "", chatBody(""))
		a.header(t, "RateLimit-Policy", want)
		policies, err := httpsfv.UnmarshalList(a.Header.Values("RateLimit-Policy"))
		if err != nil || len(policies) != 3 {
			t.Fatalf("%s: RateLimit-Policy %q: %v", shape, a.Header.Values("RateLimit-Policy"), err)
		}
		if unit, _ := policies[2].(httpsfv.Item).Params.Get("qu"); unit != "micro-dollars" {
			t.Errorf("%s: the unit is %v", shape, unit)
		}
	}
}

// checkQuotas expects the policies of threeZones, the one of zone 1 first.
func checkQuotas(t *testing.T, policies httpsfv.List, integer func(*testing.T, *httpsfv.Params, string) int64) {
	t.Helper()
	var got [][2]int64
	for _, member := range policies {
		item := member.(httpsfv.Item)
		got = append(got, [2]int64{item.Value.(int64), integer(t, item.Params, "w")})
	}
	if want := [][2]int64{{2, 3600}, {1000000000000, 30 * 86400}, {3, 1}}; !slices.Equal(got, want) {
		t.Errorf("policies: got %v, want %v", got, want)
	}
}
