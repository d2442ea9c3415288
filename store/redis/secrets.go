package redis

import (
	"strings"
	"sync"
	"time"
)

// secrets are those that hold now. They are renewed before a connection is
// made, and at most that often: the parts of making one agree.
type secrets struct {
	renew func() (Secrets, error) // nil if they never change

	renewing sync.Mutex // held while renew runs, which may take its time
	renewed  time.Time

	mu     sync.Mutex
	now    Secrets
	before Secrets // what an error may still speak of
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

// redact removes the passwords from a text, which none is known to hold.
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
