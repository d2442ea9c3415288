package redis

import (
	"errors"
	"strings"
	"sync"
	"time"
)

// secrets are the passwords and certificates that hold now. They are renewed
// before a connection is made, at most every secretsTime: the steps of making
// one use the same.
type secrets struct {
	renew func() (Secrets, error) // nil if they never change

	renewing sync.Mutex // held while renew runs, which may take its time
	renewed  time.Time

	mu     sync.Mutex
	now    Secrets
	before Secrets // which an error may still hold
}

// secretsTime is for how long secrets are not renewed again.
const secretsTime = 100 * time.Millisecond

func newSecrets(o Options) *secrets {
	return &secrets{renew: o.Renew, now: Secrets{
		Username: o.Username, Password: o.Password,
		SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
		TLS: o.TLS,
	}}
}

func (s *secrets) get() Secrets {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	if s.renew != nil && time.Since(s.renewed) >= secretsTime {
		// A file that is just being replaced may be empty or half written:
		// then the next connection finds the new one.
		if fresh, err := s.renew(); err == nil {
			s.replace(fresh)
		}
		s.renewed = time.Now()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *secrets) replace(fresh Secrets) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fresh.Password != s.now.Password || fresh.SentinelPassword != s.now.SentinelPassword {
		s.before = s.now
	}
	s.now = fresh
}

// redacted returns err without the passwords, which no error is known to hold,
// and without what it wraps.
func (s *secrets) redacted(err error) error { return errors.New(s.redact(err.Error())) }

// redact removes the passwords from a text.
func (s *secrets) redact(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range []string{
		s.now.Password, s.now.SentinelPassword, s.before.Password, s.before.SentinelPassword,
	} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "[password]")
		}
	}
	return text
}
