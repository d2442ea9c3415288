package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// settled waits until there are no more goroutines than there were.
func settled(t *testing.T, before int) {
	t.Helper()
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestOpenWarms(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	open(t, Options{Address: proxy.Addr})
	eventually(t, "the script is loaded", func() bool {
		return server.Do(t, "SCRIPT", "EXISTS", scriptSHA).([]any)[0] == int64(1)
	})
	if proxy.Accepted() != 1 {
		t.Errorf("%d connections to warm up", proxy.Accepted())
	}
	if keys := logs(t, server); len(keys) != 0 {
		t.Errorf("warming up left keys %q", keys)
	}
}

// TestOpenWhileDown opens a store of a server that comes later.
func TestOpenWhileDown(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	start := time.Now()
	s := open(t, Options{Address: server.Addr})
	if took := time.Since(start); took > time.Second {
		t.Errorf("opening took %v", took)
	}
	failed(t, s, patience, store.KindUnavailable)
	server.Restart(t)
	eventually(t, "the script is loaded", func() bool {
		return server.Do(t, "SCRIPT", "EXISTS", scriptSHA).([]any)[0] == int64(1)
	})
}

// TestClose closes stores at every stage of their lives: nothing remains.
func TestClose(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	warmed(t, Options{Address: server.Addr}).Close() // goroutines that the library starts once
	before := runtime.NumGoroutine()
	closed := func(what string) {
		t.Helper()
		eventually(t, what+": connections are closed", func() bool { return proxy.Open() == 0 })
		settled(t, before)
	}

	o := Options{Address: proxy.Addr, Timeout: 5 * time.Second}
	open(t, o).Close()
	closed("at once")

	s := warmed(t, o)
	granted(t, s, one("client", plenty))
	s.Close()
	s.Close()
	closed("idle")

	// Calls of an old configuration.
	granted(t, s, one("client", plenty))
	granted(t, s, one("client", plenty))
	closed("used after it was closed")
	if got := used(t, s, "client", plenty); got != 3 {
		t.Errorf("%d units used, want 3", got)
	}
	closed("looked at after it was closed")

	// Calls under way.
	s = warmed(t, o)
	var group sync.WaitGroup
	var c tally
	for range 16 {
		group.Go(func() {
			for range 50 {
				c.take(t, s, "flight", patience)
			}
		})
	}
	time.Sleep(5 * time.Millisecond)
	s.Close()
	group.Wait()
	if c.granted.Load() != 16*50 {
		t.Errorf("%d of %d calls granted while the store was closed", c.granted.Load(), 16*50)
	}
	closed("in use")

	// A server that is down, and one that says nothing.
	server.Stop()
	s = open(t, o)
	failed(t, s, 20*time.Millisecond, store.KindTimeout)
	s.Close()
	server.Cont()
	closed("stopped server")
	server.Kill()
	s = open(t, o)
	failed(t, s, patience, store.KindUnavailable, store.KindBroken)
	s.Close()
	closed("killed server")
}

func TestRefund(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	request := one("client", 10)
	request.Units = 4
	decision := take(t, s, request)[0]
	refund := store.Refund{Key: request.Key, Charge: decision.Charge, Units: 1}
	other := one("other", 10)
	decision = take(t, s, other)[0]
	// Two of one key in one call, and one of another that empties its log.
	err := s.Refund(patience, []store.Refund{refund, {Key: other.Key, Charge: decision.Charge, Units: 1}, refund})
	if err != nil {
		t.Fatal(err)
	}
	if got := used(t, s, "client", 10); got != 2 {
		t.Errorf("%d units used, want 2", got)
	}
	if got := logs(t, server); len(got) != 2 { // and the one of warming up
		t.Errorf("keys %q; the empty log should have been deleted", got)
	}
	if err := s.Refund(patience, nil); err != nil {
		t.Errorf("nothing to refund: %v", err)
	}
	refund.Units = -1
	if err := s.Refund(patience, []store.Refund{refund}); err == nil {
		t.Error("negative units were refunded")
	}
	server.Kill()
	refund.Units = 1
	if err := s.Refund(patience, []store.Refund{refund}); err == nil {
		t.Error("units were refunded on a server that is down")
	}
}

// TestLeastRights is what a user must be allowed, and no more. The manual says
// the same.
func TestLeastRights(t *testing.T) {
	server := redistest.Start(t)
	server.Do(t, "ACL", "SETUSER", "limiter", "on", ">hunter2", "resetkeys", "~drl:*", "resetchannels", "-@all",
		"+evalsha", "+eval", "+script|load", "+time", "+get", "+mget", "+set", "+del", "+info")
	s := warmed(t, Options{Address: server.Addr, Username: "limiter", Password: "hunter2"})
	request := one("client", 10)
	decision := take(t, s, request)[0]
	if err := s.Refund(patience, []store.Refund{{Key: request.Key, Charge: decision.Charge, Units: 1}}); err != nil {
		t.Errorf("Return: %v", err)
	}
	if got := used(t, s, "client", 10); got != 0 {
		t.Errorf("%d units used after all were refunded", got)
	}

	// What is done by hand takes no more.
	if err := s.Amend(patience, request.Key, store.Amendment{Ban: time.Minute}); err != nil {
		t.Errorf("Amend: %v", err)
	}
	if err := s.Amend(patience, request.Key, store.Amendment{Unban: true}); err != nil {
		t.Errorf("Amend: %v", err)
	}
	names := watchedNames(t, s)
	postedBy(t, s, "notice", time.Minute)
	eventually(t, "the notice is there", func() bool { return names() == "notice" })
	if found, err := s.Withdraw(patience, 'x', "notice"); !found || err != nil {
		t.Errorf("Withdraw: %v, %v", found, err)
	}

	// Many at once, which share runs of the script.
	server.Do(t, "CONFIG", "RESETSTAT")
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() { granted(t, s, one(fmt.Sprint("client", i), 10)) })
	}
	group.Wait()
	var runs int
	stats := server.Do(t, "INFO", "commandstats").(string)
	if _, after, ok := strings.Cut(stats, "cmdstat_evalsha:"); !ok {
		t.Errorf("no runs of the script in %q", stats)
	} else if _, err := fmt.Sscanf(after, "calls=%d,", &runs); err != nil || runs >= 200 {
		t.Errorf("200 calls in %d runs of the script, %v; want several in one", runs, err)
	}
	// Without the right to that, it shows before there is such a load.
	server.Do(t, "ACL", "SETUSER", "limiter", "-mget")
	w := watch(t, open(t, Options{Address: server.Addr, Username: "limiter", Password: "hunter2"}))
	if r := w.last(t, away); r.Err == nil || !strings.Contains(r.Err.Error(), "+mget") {
		t.Errorf("without +mget: %+v; want the remedy", r)
	}
	server.Do(t, "ACL", "SETUSER", "limiter", "+mget")

	// Another prefix is none of its keys.
	s = open(t, Options{Address: server.Addr, Username: "limiter", Password: "hunter2", KeyPrefix: "other"})
	if e := failed(t, s, patience, store.KindReply); !e.Unexecuted {
		t.Errorf("%v: not certain that it was not executed", e)
	}
	// Another database takes one right more.
	o := Options{Address: server.Addr, Username: "limiter", Password: "hunter2", DB: 3}
	failed(t, open(t, o), patience, store.KindUnavailable)
	server.Do(t, "ACL", "SETUSER", "limiter", "+select")
	warmed(t, o)
}

func TestWrongPassword(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "right-one")
	for _, o := range []Options{
		{Password: "hunter2"},
		{Username: "somebody", Password: "hunter2"},
		{Username: "default", Password: "hunter2"},
		{},
	} {
		o.Address = server.Addr
		s := open(t, o)
		e := failed(t, s, patience, store.KindUnavailable, store.KindReply)
		if !e.Unexecuted {
			t.Errorf("%v: not certain that it was not executed", e)
		}
		if strings.Contains(e.Error(), "hunter2") || strings.Contains(s.String(), "hunter2") {
			t.Errorf("the password is in %q or %q", e, s)
		}
	}
	warmed(t, Options{Address: server.Addr, Password: "right-one"})
}

func TestRedact(t *testing.T) {
	s := newSecrets(Options{Password: "hunter2"})
	e := classify(s, errors.New("cannot log in with hunter2"), false)
	if strings.Contains(e.Error(), "hunter2") {
		t.Error(e)
	}
}

func TestUnixSocket(t *testing.T) {
	server := redistest.Start(t)
	for _, address := range []string{server.Socket, "unix/" + server.Socket} {
		s := warmed(t, Options{Address: address})
		granted(t, s, one(address, 10))
		if got, want := s.String(), "redis "+address+" db 0"; got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
	}
}

func TestTLS(t *testing.T) {
	authority := redistest.NewAuthority(t)
	server := redistest.StartTLS(t, authority)
	s := warmed(t, Options{Address: server.Addr, TLS: authority.Config(t)})
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for range 20 {
				var decisions [1]store.Decision
				if err := s.Take(time.Now(), patience, []store.Request{one("client", plenty)}, decisions[:]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if got := used(t, s, "client", plenty); got != 16*20 {
		t.Errorf("%d units used, want %d", got, 16*20)
	}

	for what, config := range map[string]*tls.Config{
		"unknown authority": {RootCAs: x509.NewCertPool(), Certificates: authority.Config(t).Certificates},
		"wrong name":        {RootCAs: authority.Config(t).RootCAs, Certificates: authority.Config(t).Certificates, ServerName: "example.com"},
	} {
		s := open(t, Options{Address: server.Addr, TLS: config})
		e := failed(t, s, patience, store.KindUnavailable)
		if !e.Unexecuted || !strings.Contains(e.Error(), "certificate") {
			t.Errorf("%s: %v, unexecuted %v", what, e, e.Unexecuted)
		}
	}
	failed(t, open(t, Options{Address: server.Addr}), patience, store.KindUnavailable, store.KindBroken)
	// Without a certificate of its own it hears why or, just as well, that the
	// connection is no more.
	failed(t, open(t, Options{Address: server.Addr, TLS: &tls.Config{RootCAs: authority.Config(t).RootCAs}}), patience, store.KindUnavailable, store.KindBroken)
}

// allSlots makes a server a cluster of its own.
func allSlots(t *testing.T, server *redistest.Server) {
	t.Helper()
	add := []any{"CLUSTER", "ADDSLOTS"}
	for slot := range slots {
		add = append(add, slot)
	}
	server.Do(t, add...)
	eventually(t, "the cluster is up", func() bool {
		return strings.Contains(server.Do(t, "CLUSTER", "INFO").(string), "cluster_state:ok")
	})
}

// TestClusterTLS: the certificate is of the name by which a server goes, which
// may be that of its host.
func TestClusterTLS(t *testing.T) {
	authority := redistest.NewAuthority(t)
	server := redistest.StartTLS(t, authority, "--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-announce-ip", "127.0.0.2")
	allSlots(t, server)
	_, port, _ := net.SplitHostPort(server.Addr)
	o := Options{Cluster: []string{"localhost:" + port}, TLS: authority.Config(t)}
	s := open(t, o)
	e := errorOf(t, s, one("client", 10))
	if !e.Unexecuted || !strings.Contains(e.Error(), "certificate is valid for 127.0.0.1, not 127.0.0.2") && !strings.Contains(e.Error(), "refused") {
		t.Errorf("an address that is not in the certificate: %v, unexecuted %v", e, e.Unexecuted)
	}

	if len(server.Do(t, "CONFIG", "GET", "cluster-announce-hostname").([]any)) == 0 {
		return // servers before 7.0 have no names
	}
	server.Do(t, "CONFIG", "SET", "cluster-announce-hostname", "localhost")
	server.Do(t, "CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
	s = warmed(t, o)
	if n := s.cluster.table.Load()[0]; n.name != "localhost:"+port {
		t.Errorf("the server is called %s", n.name)
	}
}

// TestClusterSlots: on a server that insists on slots, one call asks all the
// zones of a client.
func TestClusterSlots(t *testing.T) {
	server := redistest.Start(t, "--cluster-enabled", "yes")
	allSlots(t, server)
	s := warmed(t, Options{Address: server.Addr})
	a, b := one("client", 2), one("client", 1)
	b.Key.Zone, b.Window = "other", time.Minute
	decisions := take(t, s, a, b)
	if !decisions[0].Charged() || !decisions[1].Charged() {
		t.Errorf("%+v; want both charged", decisions)
	}
	err := s.Refund(patience, []store.Refund{
		{Key: a.Key, Charge: decisions[0].Charge, Units: 1},
		{Key: b.Key, Charge: decisions[1].Charge, Units: 1},
	})
	if err != nil {
		t.Errorf("Return: %v", err)
	}
}

// TestDatabases: databases, prefixes and secrets keep counts apart.
func TestDatabases(t *testing.T) {
	server := redistest.Start(t)
	names := map[string]bool{}
	for _, o := range []Options{
		{},
		{DB: 1},
		{KeyPrefix: "other"},
		{KeySecret: []byte("pepper"), KeyPrefix: "secret"},
	} {
		o.Address = server.Addr
		s := warmed(t, o)
		if got := take(t, s, one("client", 2))[0]; got.Remaining != 1 {
			t.Errorf("%v: %+v; counts are not its own", s, got)
		}
		names[s.String()] = true
	}
	if len(names) != 4 {
		t.Errorf("four stores have the names %v", names)
	}
	for name := range names {
		if strings.Contains(name, "pepper") {
			t.Errorf("the name %q has a secret in it", name)
		}
	}
}
