package redis

import (
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// patience is how long a call waits whose test is not about waiting: an
// outage of the machine is no failure of the store.
const patience = 5 * time.Second

// open returns a store that is closed with its test.
func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// one is a request for a unit of a limit, in a window that does not pass during a
// test.
func one(client string, limit int64) store.Request {
	return store.Request{Key: store.Key{Zone: "zone", Client: client, Window: time.Hour}, Limit: limit, Units: 1}
}

// take wants a decision, as soon as the server is known to be there.
func take(t testing.TB, s *Store, requests ...store.Request) []store.Decision {
	t.Helper()
	decisions := make([]store.Decision, len(requests))
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := s.Take(time.Now(), patience, requests, decisions)
		if err == nil {
			return decisions
		}
		if store.ErrorKind(err) != store.KindAway || time.Now().After(deadline) {
			t.Fatalf("Take(%+v): %v", requests, err)
		}
	}
}

// granted wants one unit to be granted.
func granted(t testing.TB, s *Store, a store.Request) {
	t.Helper()
	if got := take(t, s, a)[0]; !got.Granted {
		t.Fatalf("%+v: refused: %+v", a, got)
	}
}

// failed wants a call to fail with an error of a kind, or because the server is
// known to be away.
func failed(t testing.TB, s *Store, wait time.Duration, kinds ...store.Kind) *store.Error {
	t.Helper()
	err := s.Take(time.Now(), wait, []store.Request{one("failed", 1000)}, make([]store.Decision, 1))
	var e *store.Error
	if !errors.As(err, &e) {
		t.Fatalf("Take: %v; want a store.Error of %v", err, kinds)
	}
	for _, kind := range append(kinds, store.KindAway) {
		if e.Kind == kind {
			return e
		}
	}
	t.Fatalf("Take: %v (unexecuted %v); want one of %v", e, e.Unexecuted, kinds)
	return nil
}

// used looks at how many units of a limit are in use.
func used(t testing.TB, s *Store, client string, limit int64) int64 {
	t.Helper()
	a := one(client, limit)
	a.Units = 0
	return limit - take(t, s, a)[0].Remaining
}

// logs are the keys of a server's database 0 but for the list of instances.
func logs(t testing.TB, server *redistest.Server) []string {
	t.Helper()
	return slices.DeleteFunc(server.Keys(t), func(key string) bool { return strings.Contains(key, ":instances") })
}

// atRest waits until a closed store of one server has sent its last heartbeat.
func atRest(t testing.TB, s *Store) {
	t.Helper()
	eventually(t, "the store is at rest", func() bool {
		s.one.mu.Lock()
		defer s.one.mu.Unlock()
		return s.one.closed && s.one.workers == 0
	})
}

// eventually waits until something holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// warmed opens a store and waits until its script is loaded.
func warmed(t testing.TB, o Options) *Store {
	t.Helper()
	s := open(t, o)
	granted(t, s, one("warm", 1000))
	return s
}

// withClock is a script with a clock that the caller sets: the seconds and the
// microseconds come before the other arguments.
func withClock(t testing.TB, script string) string {
	t.Helper()
	const line = "\nlocal time = redis.call('TIME')\n"
	if strings.Count(script, line) != 1 || strings.Count(script, "'TIME'") != 1 {
		t.Fatalf("the script does not read the clock in one line %q", line)
	}
	return strings.Replace(script, line, "\nlocal time = {table.remove(ARGV, 1), table.remove(ARGV, 1)}\n", 1)
}

// clocked runs the script at moments of the test's choice.
type clocked struct {
	conn   *redistest.Conn
	sha    string
	amend  string // name of the script that amends
	keys   *keys
	origin int64 // of the server
}

func newClocked(t testing.TB, server *redistest.Server) *clocked {
	t.Helper()
	sha := server.Do(t, "SCRIPT", "LOAD", withClock(t, source)).(string)
	amend := server.Do(t, "SCRIPT", "LOAD", withClock(t, amendSource)).(string)
	return &clocked{conn: server.Dial(t), sha: sha, amend: amend, keys: newKeys(DefaultKeyPrefix, nil), origin: identityOf(t, server)}
}

// identityOf is the identity of a server's data.
func identityOf(t testing.TB, server *redistest.Server) int64 {
	t.Helper()
	run, history := server.Info(t, "server", "run_id"), server.Info(t, "replication", "master_replid")
	if len(run) != 40 || len(history) != 40 {
		t.Fatalf("run %q, history %q", run, history)
	}
	sum := sha1.Sum([]byte(run + history))
	return int64(binary.BigEndian.Uint64(sum[:8]) >> (64 - 52))
}

// send sends a command of the script, to be executed at a moment.
func (c *clocked) send(now int64, command []any) error {
	n := command[2].(int)
	sha := c.sha
	if command[1] == amendScript.sha {
		sha = c.amend
	}
	args := append([]any{"EVALSHA", sha}, command[2:3+n]...)
	args = append(args, strconv.FormatInt(now/1e6, 10), strconv.FormatInt(now%1e6, 10))
	return c.conn.Send(append(args, command[3+n:]...)...)
}

// keyOf is the server's name of a log.
func (c *clocked) keyOf(key store.Key) string {
	h := c.keys.hash(key.Client)
	return c.keys.key(&key, &h)
}

// takeCommand is the command that decides requests in one call.
func (k *keys) takeCommand(requests []store.Request) []any {
	return commandOf(k.takeCall(patience, requests))
}

// commandOf is the command of a run of calls.
func commandOf(calls ...*call) []any {
	r := runPool.New().(*run)
	for _, c := range calls {
		r.add(c)
	}
	args := r.command()
	for i, arg := range args {
		switch arg := arg.(type) {
		case *string:
			args[i] = *arg
		case []byte:
			args[i] = string(arg)
		}
	}
	return args
}
