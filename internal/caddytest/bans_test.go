package caddytest

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// A ban is told to the client, logged and counted once, and does not grow.
func TestBansAreToldOnce(t *testing.T) {
	for _, dry := range []bool{false, true} {
		option, want, zone := "", http.StatusTooManyRequests, "banned"
		if dry {
			option, want, zone = "dry_run", http.StatusOK, "banned_dry"
		}
		e := start(t, `
http://a.test {
	distributed_ratelimit 2 1m `+zone+` {
		block_for 1h
		`+option+`
		log_key
	}
	respond "hello"
}`)
		e.granted(2, alice, "http://a.test/")
		for range 5 {
			a := e.status(want, alice, "http://a.test/")
			if !dry && a.Header.Get("Retry-After") != "3600" && a.Header.Get("Retry-After") != "3599" {
				t.Errorf("Retry-After %q, want an hour", a.Header.Get("Retry-After"))
			}
		}
		e.granted(1, bob, "http://a.test/")
		line := e.log.says(1, "client banned")[0]
		if line["zone"] != zone || line["client_ip"] != alice || line["dry_run"] != dry || line["key"] != alice || line["block_for"] != 3600.0 {
			t.Errorf("log line %v", line)
		}
		e.sample("bans_total", zone, 1)
	}
}

// A refusal because of a ban has a reason of its own in the response.
func TestBansHaveAReason(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 1 1m z {
		block_for 1h
	}
	respond "hello"
}`)
	e.granted(1, alice, "http://a.test/")
	for range 2 {
		a := e.refused(alice, "http://a.test/")
		a.header(t, "Cache-Control", "no-store")
		if !strings.Contains(a.body, "more are not granted for a while") || !strings.Contains(a.body, `"violated-policies":["z"]`) {
			t.Errorf("body %s", a.body)
		}
	}
}

// Five successful logins in flight do not ban the sixth for longer than they take.
func TestUnitsThatComeBackEndABan(t *testing.T) {
	var inside sync.WaitGroup
	goOn := make(chan struct{})
	invite(t, "wait", act(func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
		inside.Done()
		<-goOn
		_, err := io.WriteString(w, "welcome")
		return err
	}))
	e := start(t, `
http://a.test {
	distributed_ratelimit 5 1h z {
		count_if status 401
		block_for 1h
	}
	stage wait
}`)
	server := e.server("80")
	for range 2 {
		inside.Add(5)
		var done sync.WaitGroup
		for range 5 {
			done.Go(func() { e.sendTo(server, alice, http.MethodGet, "http://a.test/") })
		}
		inside.Wait()
		e.refused(alice, "http://a.test/")
		goOn <- struct{}{}
		for range 4 {
			goOn <- struct{}{}
		}
		done.Wait()
	}
	e.log.says(2, "client banned")
}

// A ban lasts as long as it says, also longer than the window, and one filling of
// the limit brings about one ban.
func TestOneFillingBansOnce(t *testing.T) {
	for name, row := range map[string]struct {
		window, ban string
		least       time.Duration
	}{
		"longer than the window":  {"1s", "3s", 3 * time.Second},
		"shorter than the window": {"3s", "1s", 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, `
http://a.test {
	distributed_ratelimit 2 `+row.window+` z`+row.window+` {
		block_for `+row.ban+`
	}
	respond "hello"
}`)
			began := time.Now()
			e.granted(2, alice, "http://a.test/")
			e.refused(alice, "http://a.test/")
			eventually(t, func() bool { return e.get(alice, "http://a.test/").StatusCode == http.StatusOK })
			if took := time.Since(began); took < row.least {
				t.Errorf("granted again after %v, want %v at least", took, row.least)
			}
			e.sample("bans_total", "z"+row.window, 1)
		})
	}
}
