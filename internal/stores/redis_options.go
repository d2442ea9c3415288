package stores

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"
)

// expansion puts the values of placeholders into texts. Without a replacer,
// before the values may be known, something right stands in for them.
type expansion struct{ repl *caddy.Replacer }

// standsIn reports whether something else stands in for the text.
func (e expansion) standsIn(text string) bool { return e.repl == nil && settings.HasPlaceholder(text) }

func (e expansion) expand(word, text string) (string, *settings.Mistake) {
	if e.repl == nil {
		switch {
		case !settings.HasPlaceholder(text):
			return text, nil
		case word == "url":
			return "redis://:x@localhost:6379", nil
		case word == "address":
			return "localhost:6379", nil
		}
		return "x", nil
	}
	expanded, err := e.repl.ReplaceOrErr(text, true, true)
	if err != nil {
		// The error names the placeholder, never a value.
		return "", settings.Wrong(word, "%s of the redis store: %v; set it, or remove the line", word, err)
	}
	return strings.TrimRight(expanded, "\r\n"), nil // a file's last line ends
}

// textOf is a text by its word, and where its value belongs.
type textOf struct {
	word, text string
	set        *string
}

func (e expansion) expandAll(texts ...textOf) *settings.Mistake {
	for _, t := range texts {
		if t.text == "" {
			continue
		}
		value, mistake := e.expand(t.word, t.text)
		if mistake != nil {
			return mistake
		}
		*t.set = value
	}
	return nil
}

// options puts the settings together, and has them judged.
func (s *Redis) options(e expansion) (redis.Options, *settings.Mistake) {
	o, mistake := s.access(e)
	if mistake != nil {
		return o, mistake
	}
	secret := ""
	if mistake := e.expandAll(
		textOf{"master_name", s.MasterName, &o.MasterName},
		textOf{"key_prefix", s.KeyPrefix, &o.KeyPrefix},
		textOf{"key_secret", s.KeySecret, &secret},
	); mistake != nil {
		return o, mistake
	}
	if secret != "" {
		o.KeySecret = []byte(secret)
	}
	if s.DB != nil {
		o.DB = *s.DB
	}
	if mistake := s.addServers(&o, e); mistake != nil {
		return o, mistake
	}
	o.Timeout, o.DialTimeout = time.Duration(s.Timeout), time.Duration(s.DialTimeout)
	o.PoolSize, o.QueueSize = s.PoolSize, s.QueueSize
	o.Instances = cmp.Or(s.AssumedInstances, 1)
	if s.changeable() {
		settings := *s
		settings.pooled = nil
		o.Renew = settings.renew
	}
	if err := o.Validate(); err != nil {
		return o, s.inWords(err)
	}
	return o, nil
}

// addServers adds the addresses to what the URL says.
func (s *Redis) addServers(o *redis.Options, e expansion) *settings.Mistake {
	var servers []string
	if o.Address != "" {
		servers = append(servers, o.Address)
	}
	for _, address := range s.Address {
		expanded, mistake := e.expand("address", address)
		if mistake != nil {
			return mistake
		}
		servers = append(servers, expanded)
	}
	o.Address = ""
	if s.Cluster {
		o.Cluster = servers
	}
	if s.Sentinel {
		o.Sentinels = servers
	}
	switch {
	case s.several():
	case len(servers) > 0:
		o.Address = servers[0]
	default:
		o.Address = "localhost:6379"
	}
	return nil
}

// access is the part of the options that may change while the store is open:
// who we are, and whom we trust. It has the rest of what the URL says, too.
func (s *Redis) access(e expansion) (redis.Options, *settings.Mistake) {
	var o redis.Options
	if s.URL != "" {
		raw, mistake := e.expand("url", s.URL)
		if mistake != nil {
			return o, mistake
		}
		var err error
		if o, err = redis.ParseURL(raw); err != nil {
			return o, ofURL(err)
		}
		if !e.standsIn(s.URL) {
			if mistake := s.checkURL(raw, o); mistake != nil {
				return o, mistake
			}
		}
	}
	if mistake := e.expandAll(
		textOf{"username", s.Username, &o.Username},
		textOf{"password", s.Password, &o.Password},
		textOf{"sentinel_username", s.SentinelUsername, &o.SentinelUsername},
		textOf{"sentinel_password", s.SentinelPassword, &o.SentinelPassword},
	); mistake != nil {
		return o, mistake
	}
	if s.TLS != nil {
		config, mistake := s.TLS.config(o.TLS, e)
		if mistake != nil {
			return o, mistake
		}
		o.TLS = config
	}
	return o, nil
}

// renew reads the secrets again.
func (s *Redis) renew() (redis.Secrets, error) {
	o, mistake := s.access(expansion{caddy.NewReplacer()})
	if mistake != nil {
		return redis.Secrets{}, mistake
	}
	return redis.Secrets{
		Username: o.Username, Password: o.Password,
		SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
		TLS: o.TLS,
	}, nil
}

// changeable reports whether renew can find anything new.
func (s *Redis) changeable() bool {
	if s.TLS != nil && (s.TLS.CA != "" || s.TLS.Cert != "") {
		return true
	}
	return slices.ContainsFunc([]string{s.URL, s.Username, s.Password, s.SentinelUsername, s.SentinelPassword}, settings.HasPlaceholder)
}

// config reads the files, and adds to base, which may be nil. It reads none as
// long as something stands in for placeholders.
func (t *TLS) config(base *tls.Config, e expansion) (*tls.Config, *settings.Mistake) {
	config := base
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if e.repl == nil {
		return config, nil
	}
	config.InsecureSkipVerify = t.InsecureSkipVerify
	var ca, cert, key string
	if mistake := e.expandAll(
		textOf{"tls server_name", t.ServerName, &config.ServerName},
		textOf{"tls ca", t.CA, &ca}, textOf{"tls cert", t.Cert, &cert}, textOf{"tls key", t.Key, &key},
	); mistake != nil {
		return nil, mistake
	}
	if t.CA != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, settings.Wrong("ca", "tls ca of the redis store: %v", err)
		}
		if config.RootCAs, err = authorities(ca, pem); err != nil {
			return nil, settings.Wrong("ca", "%v", err)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, settings.Wrong("cert", "%v", pairError(err))
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// authorities are the certificates in a file.
func authorities(path string, text []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("tls ca of the redis store: %s holds no certificate in PEM; name a file with the certificates of the authorities to trust", path)
	}
	return pool, nil
}

// pairError names the mistake in a certificate and its key.
func pairError(err error) error { return fmt.Errorf("tls cert of the redis store: %v", err) }
