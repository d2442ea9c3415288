package redis

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// writes is how often the script has written.
func writes(t *testing.T, server *redistest.Server) int {
	t.Helper()
	return server.Calls(t, "set") + server.Calls(t, "del")
}

// TestBanIsStoredWithTheLog: a key without a ban has no byte of one; a ban is written
// once, and hammering on it writes nothing; its key lives until the ban ends.
func TestBanIsStoredWithTheLog(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	s.Close() // heartbeats would write
	request := one("client", 2)
	request.Block = 2 * request.Window
	name := s.keys.of(&request.Key)
	granted(t, s, request)
	granted(t, s, request)
	atRest(t, s)
	length := func(entries, ban int) {
		t.Helper()
		if got, want := server.Do(t, "STRLEN", name), int64(headerSize+entries*entrySize+ban); got != want {
			t.Errorf("%v bytes stored, want %d", got, want)
		}
	}
	length(2, 0)
	before := writes(t, server)
	for range 20 {
		if d := take(t, s, request)[0]; !d.Blocked {
			t.Fatalf("%+v, want it blocked", d)
		}
		request.Block += time.Minute // it has no say
	}
	take(t, s, one("other", 2), request)
	if got := writes(t, server) - before; got != 1 {
		t.Errorf("%d writes by refusals, want one: the ban", got)
	}
	length(2, banSize)
	if ttl := server.Do(t, "PTTL", name).(int64); ttl > (2*request.Window+2*time.Second).Milliseconds() || ttl < (2*request.Window-patience).Milliseconds() {
		t.Errorf("%d ms to live, want until the ban ends", ttl)
	}
}

// TestBanByHand: what another program has written at the end of a log bans until then:
// refunds do not end it, whatever becomes of the log.
func TestBanByHand(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, Options{Address: server.Addr})
	a := one("somebody", 3)
	name := s.keys.of(&a.Key)
	charged := []store.Decision{take(t, s, a)[0], take(t, s, a)[0]}
	until := time.Now().Add(2 * a.Window).UnixMicro()
	ban := string(append(appendNumber(appendNumber(nil, until, 7), until, 7), 1))
	server.Do(t, "APPEND", name, ban)
	kept := func(what string) {
		t.Helper()
		if d := take(t, s, a)[0]; !d.Blocked || d.RetryAfter < a.Window {
			t.Errorf("%s: %+v, want it blocked", what, d)
		}
		value, _ := server.Do(t, "GET", name).(string)
		if !strings.HasSuffix(value, ban) || strings.Count(value, ban) != 1 {
			t.Errorf("%s: stored is %x, want %x at its end, once", what, value, ban)
		}
	}
	kept("at first")
	a.Block = time.Minute
	kept("when it is refused again")
	for _, d := range charged {
		if err := s.Refund(time.Second, []store.Refund{{Key: a.Key, Charge: d.Charge, Units: 1}}); err != nil {
			t.Fatal(err)
		}
		kept("after a refund")
	}
	if ttl := server.Do(t, "PTTL", name).(int64); ttl <= a.Window.Milliseconds()*3/2 {
		t.Errorf("%d ms to live, want as long as the ban", ttl)
	}
	report := a
	report.Unreported = []store.Spent{{Age: time.Minute, Units: 2}}
	take(t, s, report)
	value, _ := server.Do(t, "GET", name).(string)
	if !strings.HasSuffix(value, ban) || len(value) != headerSize+entrySize+banSize {
		t.Errorf("after a report: stored is %x", value)
	}
	server.Do(t, "SET", name, strings.Repeat("\x00", headerSize)+ban) // the admin has emptied the log
	kept("with an empty log")
}

// TestBanIsAnotherMasters: a ban that has been replicated is in force on the server that
// takes over; and nothing is given back there that was charged before, so that no refund
// ends it.
func TestBanIsAnotherMasters(t *testing.T) {
	t.Parallel()
	master, replica := pair(t)
	proxy := redistest.NewProxy(t, master.Addr)
	s := warmed(t, Options{Address: proxy.Addr})
	tagged(t, s, master)
	request := one("client", 1)
	request.Block = 2 * request.Window
	refund := charge(t, s, request)
	if d := take(t, s, request)[0]; !d.Blocked {
		t.Fatalf("%+v, want a ban", d)
	}
	master.WaitReplicated(t, replica)
	replica.Do(t, "REPLICAOF", "NO", "ONE")
	proxy.Redirect(replica.Addr)
	proxy.Cut()
	eventually(t, "the server is asked", func() bool { return s.Refund(patience, []store.Refund{refund}) == nil })
	if d := take(t, s, request)[0]; !d.Blocked || d.Remaining != 0 {
		t.Errorf("%+v after the failover, want the ban and no refund", d)
	}
}

// TestBansOverShards: of a call whose keys are on several servers, the one that does
// not fit begins a ban, and what the others were charged is refunded without one.
func TestBansOverShards(t *testing.T) {
	t.Parallel()
	r := &clusterRig{Cluster: redistest.StartCluster(t, masters, 0), keys: newKeys(DefaultKeyPrefix, nil)}
	s := warmed(t, r.options())
	var requests []store.Request
	for i := range masters {
		a := one(r.client(i), 2)
		a.Block = 2 * a.Window
		requests = append(requests, a)
	}
	granted(t, s, requests[0])
	granted(t, s, requests[0])
	for range 5 {
		d := take(t, s, requests...)
		if !d[0].Blocked || store.Granted(requests, d) {
			t.Fatalf("%+v, want the first blocked", d)
		}
	}
	for _, a := range requests[1:] {
		eventually(t, fmt.Sprintf("%s has both of its units", a.Client), func() bool {
			a.Units = 0
			d := take(t, s, a)[0]
			return !d.Blocked && d.Remaining == 2
		})
	}
}
