package redis

import (
	"crypto/tls"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// renewal is a source of secrets that a test changes.
type renewal struct {
	calls atomic.Int64
	now   atomic.Pointer[Secrets] // nil: it fails
}

func renewing(s Secrets) *renewal {
	r := &renewal{}
	r.now.Store(&s)
	return r
}

func (r *renewal) renew() (Secrets, error) {
	r.calls.Add(1)
	if s := r.now.Load(); s != nil {
		return *s, nil
	}
	return Secrets{}, errors.New("the file is empty")
}

func TestSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := renewing(Secrets{Password: "first"})
		s := newSecrets(Options{Password: "configured", Renew: r.renew})
		want := func(password string, calls int64) {
			t.Helper()
			if got := s.get().Password; got != password || r.calls.Load() != calls {
				t.Errorf("%q after %d renewals, want %q after %d", got, r.calls.Load(), password, calls)
			}
		}
		want("first", 1)
		r.now.Store(&Secrets{Password: "second"})
		want("first", 1) // for the other steps of making a connection
		time.Sleep(secretsTime)
		want("second", 2)
		r.now.Store(nil)
		time.Sleep(secretsTime)
		want("second", 3)
		want("second", 3) // not again at once
		r.now.Store(&Secrets{Password: "third", SentinelPassword: "sentinel"})
		time.Sleep(secretsTime)
		want("third", 4)
		got := s.redact("second third sentinel other")
		if want := "[password] [password] [password] other"; got != want {
			t.Errorf("redacted: %q, want %q", got, want)
		}
		// What is not a password is renewed, and forgets none.
		r.now.Store(&Secrets{Password: "third", SentinelPassword: "sentinel", Username: "somebody"})
		time.Sleep(secretsTime)
		want("third", 5)
		if got := s.redact("second"); s.get().Username != "somebody" || got != "[password]" {
			t.Errorf("user %q, redacted: %q", s.get().Username, got)
		}
	})
}

// TestSecretsHang: while a file cannot be read, errors can still be told.
func TestSecretsHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s := newSecrets(Options{Password: "configured", Renew: func() (Secrets, error) {
			<-hang
			return Secrets{}, nil
		}})
		go s.get()
		synctest.Wait()
		if got := s.redact("configured"); got != "[password]" {
			t.Errorf("redacted: %q", got)
		}
		close(hang)
	})
}

// discreet calls until there is no error, or there is one, and wants no password
// in an error or a report.
func discreet(t *testing.T, s *Store, w *watcher, works bool, passwords ...string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		for _, password := range passwords {
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the password is in %q", err)
			}
		}
	}
	eventually(t, "what is wanted", func() bool {
		err := s.Take(time.Now(), brief, []store.Request{one("client", plenty)}, make([]store.Decision, 1))
		check(err)
		return (err == nil) == works
	})
	for _, r := range w.all() {
		check(r.Err)
	}
}

// TestRotatedPassword changes the password, first the server's, while the store
// is in use. The connections that there are stay, new ones take the new one.
func TestRotatedPassword(t *testing.T) {
	t.Parallel()
	passwords := []string{"first-hunter2", "second-hunter3", "third-hunter4"}
	t.Run("default user", func(t *testing.T) {
		server := redistest.Start(t, "--requirepass", passwords[0])
		conn := server.Dial(t)
		rotate(t, server.Addr, "", passwords, func(password string) {
			if _, err := conn.Do("CONFIG", "SET", "requirepass", password); err != nil {
				t.Error(err)
			}
			_, _ = conn.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		})
	})
	t.Run("user", func(t *testing.T) {
		server := redistest.Start(t)
		server.Do(t, "ACL", "SETUSER", "limiter", "on", ">"+passwords[0], "~*", "+@all")
		conn := server.Dial(t)
		rotate(t, server.Addr, "limiter", passwords, func(password string) {
			if _, err := conn.Do("ACL", "SETUSER", "limiter", "resetpass", ">"+password); err != nil {
				t.Error(err)
			}
			_, _ = conn.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		})
	})
}

// rotate goes through passwords; set changes the server's, and closes all
// connections.
func rotate(t *testing.T, address, user string, passwords []string, set func(password string)) {
	t.Helper()
	r := renewing(Secrets{Username: user, Password: passwords[0]})
	s := warmed(t, Options{Address: address, Username: user, Password: "never-hunter1", Renew: r.renew})
	w := watch(t, s)
	secret := append([]string{"never-hunter1"}, passwords...)

	set(passwords[1])
	discreet(t, s, w, false, secret...)
	r.now.Store(nil) // the file is being written
	calls := r.calls.Load()
	eventually(t, "it is asked for the secrets", func() bool { return r.calls.Load() > calls })
	discreet(t, s, w, false, secret...)
	r.now.Store(&Secrets{Username: user, Password: passwords[1]})
	discreet(t, s, w, true, secret...)

	// The other way round: a connection keeps what it was opened with.
	r.now.Store(&Secrets{Username: user, Password: passwords[2]})
	discreet(t, s, w, true, secret...)
	set(passwords[2])
	discreet(t, s, w, true, secret...)

	// A file that cannot be read is no reason to stop.
	r.now.Store(nil)
	set(passwords[2]) // which closes the connections
	discreet(t, s, w, true, secret...)
}

// TestRenewedCertificates has server and store move to another authority. Each
// takes no certificate but of its own.
func TestRenewedCertificates(t *testing.T) {
	t.Parallel()
	first, second := redistest.NewAuthority(t), redistest.NewAuthority(t)
	server := redistest.StartTLS(t, first)
	r := renewing(Secrets{TLS: first.Config(t)})
	s := warmed(t, Options{Address: server.Addr, TLS: &tls.Config{}, Renew: r.renew})
	w := watch(t, s)

	server.Do(t, "CONFIG", "SET", "tls-cert-file", second.CertFile, "tls-key-file", second.KeyFile, "tls-ca-cert-file", second.CAFile)
	server.Do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	if got := w.last(t, away); got.Err == nil || !strings.Contains(got.Err.Error(), "certificate") {
		t.Errorf("report %+v; want that it is the certificate", got)
	}
	r.now.Store(&Secrets{TLS: second.Config(t)})
	start := time.Now()
	w.last(t, up)
	t.Logf("up again after %v", time.Since(start))
	granted(t, s, one("client", plenty))
}
