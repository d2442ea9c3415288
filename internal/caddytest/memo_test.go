package caddytest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// remembers returns what the storage of an edge remembers, "" for nothing.
func (e *edge) remembers() string {
	e.t.Helper()
	text := ""
	err := filepath.WalkDir(filepath.Join(e.kept, "distributed_ratelimit"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || len(d.Name()) != 32 { // not the name of a file that is being written
			return err
		}
		value, err := os.ReadFile(path)
		text += string(value)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.t.Fatal(err)
	}
	return text
}

// restart ends this "process", with all that it knew, and starts another one
// with the same storage. The store is away, and has not been reached by it.
func (e *edge) restart(f *far, caddyfile string) {
	e.t.Helper()
	if err := caddy.Stop(); err != nil {
		e.t.Fatalf("caddy.Stop: %v", err)
	}
	f.away()
	e.reload(caddyfile)
}

// away is a store that a fresh process has not reached.
func (f *far) away() {
	f.watch.Lock()
	f.instances = 1
	f.watch.Unlock()
	f.breaks(errAway)
	f.report(store.Report{Condition: store.Away, Err: errAway})
}

const alone = "nobody knows how many instances share it"

// Four instances restart while the store is down, as after a power cut. They
// have never seen each other, and each used to grant the whole limit.
func TestInstancesAreRememberedOverARestart(t *testing.T) {
	line := "distributed_ratelimit 11 1h z"
	e, f := remote(t, 4, line)
	f.report(store.Report{Condition: store.Up})
	soon(t, "the number of instances is written", func() bool { return e.remembers() == "4" })
	e.restart(f, onFar("far redis", line))
	e.body("granted local 1", alice, "http://a.test/") // of floor(11/4)
	e.granted(1, alice, "http://a.test/")
	e.refused(alice, "http://a.test/")
	e.log.says(0, alone)
}

// The first time there is nothing to remember: that is logged, once.
func TestNobodyKnowsHowManyInstancesThereAre(t *testing.T) {
	f := newFar(t, "redis", 1)
	f.away()
	line := "distributed_ratelimit 11 1h z"
	e := start(t, onFar("far redis", line))
	f.report(store.Report{Condition: store.Away, Err: errAway})
	e.reload(onFar("far redis", line+"a"))
	lines := e.log.says(1, alone)
	if len(lines) == 1 && lines[0]["level"] != "warn" {
		t.Errorf("got %v, want a warning", lines[0])
	}
}

// A configuration that is only validated writes nothing. What the store tells the
// running one counts.
func TestValidationRemembersNothing(t *testing.T) {
	f := newFar(t, "redis", 4)
	e := start(t, "http://b.test {\n\trespond ok\n}")
	f.report(store.Report{Condition: store.Up})
	config := onFar("far redis", "distributed_ratelimit 11 1h z")
	if err := e.validate(config); err != nil {
		t.Fatal(err)
	}
	if got := e.remembers(); got != "" {
		t.Errorf("a validation wrote %q", got)
	}
	e.reload(config)
	soon(t, "the configuration that runs writes", func() bool { return e.remembers() == "4" })
}

// A broken storage is logged once, and does not disturb limiting.
func TestBrokenStorage(t *testing.T) {
	f := newFar(t, "redis", 4)
	f.report(store.Report{Condition: store.Up})
	config := onFar("far redis", "distributed_ratelimit 11 1h z")
	e := start(t, "http://b.test {\n\trespond ok\n}")
	// A file where the storage's folder ought to be.
	if err := os.WriteFile(filepath.Join(e.kept, "distributed_ratelimit"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e.reload(config)
	e.granted(1, alice, "http://a.test/")
	soon(t, "it is logged", func() bool { return len(e.log.find("cannot be kept in Caddy's storage")) > 0 })
	e.reload(config + "\n")
	e.granted(1, alice, "http://a.test/")
	e.log.says(1, "cannot be kept in Caddy's storage")
}
