package caddytest

import (
	"net/http"
	"testing"
)

// A dry run decides and reports, but never refuses.
func TestDryRunNeverRefuses(t *testing.T) {
	e := start(t, `
http://a.test {
	log
	log_append outcome {http.distributed_ratelimit.outcome}
	distributed_ratelimit 2 1h trial {
		dry_run
		ratelimit_headers always
	}
	respond "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.zone} {http.distributed_ratelimit.remaining}"
}`)
	e.body("granted trial 1", alice, "http://a.test/")
	e.body("granted trial 0", alice, "http://a.test/")
	for range 3 {
		a := e.get(alice, "http://a.test/")
		if a.StatusCode != http.StatusOK || a.body != "dry_run trial 0" {
			t.Fatalf("above the limit: got %d %q", a.StatusCode, a.body)
		}
		for _, name := range []string{"Retry-After", "RateLimit", "RateLimit-Policy", "Cache-Control"} {
			a.header(t, name, "")
		}
	}
	e.body("granted trial 1", bob, "http://a.test/")
	e.sample("requests_total", "granted store trial", 3)
	e.sample("requests_total", "dry_run store trial", 3)
	for _, line := range e.log.says(3, "request would be refused") {
		if line["dry_run"] != true || line["zone"] != "trial" {
			t.Errorf("log line: got %v, want dry_run and the zone", line)
		}
	}
}

// A dry run counts in a log of its own: it does not eat at a zone of the same
// name that is in force elsewhere, nor the other way around.
func TestDryRunCountsForItself(t *testing.T) {
	e := start(t, `
http://trial.test {
	distributed_ratelimit 3 1h z {
		dry_run
	}
	respond "{http.distributed_ratelimit.remaining}"
}
http://a.test {
	distributed_ratelimit 3 1h z
	respond "{http.distributed_ratelimit.remaining}"
}`)
	e.granted(9, alice, "http://trial.test/")
	e.body("2", alice, "http://a.test/")
	e.granted(2, alice, "http://a.test/")
	e.refused(alice, "http://a.test/")
	e.body("2", bob, "http://trial.test/")
}

// A dry run is not charged for what another zone refuses, and does not
// decide whether that one refuses.
func TestDryRunNextToZonesInForce(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit {
		zone trial {
			events 5
			window 1h
			dry_run
		}
		zone force {
			events 2
			window 1h
		}
	}
	respond "{http.distributed_ratelimit.outcome} {http.distributed_ratelimit.zone}"
}
http://trial.test {
	distributed_ratelimit 5 1h trial {
		dry_run
	}
	respond "{http.distributed_ratelimit.remaining}"
}`)
	e.granted(2, alice, "http://a.test/")
	for range 10 {
		a := e.refused(alice, "http://a.test/")
		a.header(t, "RateLimit-Policy", `"force";q=2;w=3600`)
	}
	e.body("2", alice, "http://trial.test/")
	e.granted(5, alice, "http://trial.test/")
	e.body("granted force", bob, "http://a.test/")
}

func TestDryRunWithZeroEvents(t *testing.T) {
	e := start(t, `
http://a.test {
	distributed_ratelimit 0 1h {
		dry_run
	}
	respond "{http.distributed_ratelimit.outcome}"
}`)
	e.body("dry_run", alice, "http://a.test/")
}
