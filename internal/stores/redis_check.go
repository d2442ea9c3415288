package stores

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"
)

// check finds mistakes that show before placeholders are expanded. What the
// options may be is up to redis.Options; here are rules about how they are
// written.
func (s *Redis) check() *settings.Mistake {
	if mistake := s.checkPlaceholders(); mistake != nil {
		return mistake
	}
	if mistake := s.checkServers(); mistake != nil {
		return mistake
	}
	if s.TLS != nil && (s.TLS.Cert == "") != (s.TLS.Key == "") {
		return settings.Wrong("tls", "tls has only one of cert and key; a client certificate needs both")
	}
	if _, mistake := s.options(expansion{}); mistake != nil {
		return mistake
	}
	switch s.OnDataLoss {
	case "", DataLossContinue, DataLossCautious:
		return nil
	}
	return settings.Wrong("on_data_loss", "unknown on_data_loss %q; write continue or cautious", s.OnDataLoss)
}

// checkServers finds mistakes in how the servers are written.
func (s *Redis) checkServers() *settings.Mistake {
	given := s.URL != "" || len(s.Address) > 0
	switch {
	case s.Cluster && !given:
		return settings.Wrong("cluster", "a cluster has no default address; write for example: address host:6379, with one or more of its servers")
	case s.Sentinel && !given:
		return settings.Wrong("sentinel", "there is no default address for Sentinels; write for example: address host:26379, with one or more of them")
	case !s.several() && s.URL != "" && len(s.Address) > 0:
		return settings.Wrong("address", "both a URL and an address are given; write one of them, or cluster or sentinel as well")
	case !s.several() && len(s.Address) > 1:
		return settings.Wrong("address", "address has %d servers; write one of them, or cluster or sentinel as well", len(s.Address))
	}
	return nil
}

// several reports whether there may be several addresses.
func (s *Redis) several() bool { return s.Cluster || s.Sentinel }

// checkURL finds what the URL and the fields both give, where which of them
// counts would have to be guessed. o is what raw, the URL, says.
func (s *Redis) checkURL(raw string, o redis.Options) *settings.Mistake {
	switch {
	case o.DB != 0 && s.DB != nil:
		return settings.Wrong("db", "the database is given twice, in the URL and as db; remove one")
	case o.Username != "" && s.Username != "":
		return settings.Wrong("username", "the user name is given twice, in the URL and as username; remove one")
	case o.Password != "" && s.Password != "":
		return settings.Wrong("password", "the password is given twice, in the URL and as password; remove one")
	case s.Sentinel:
		if u, err := url.Parse(strings.TrimSpace(raw)); err == nil && u.Port() == "" && u.Host != "" {
			// The default would be the port of a server.
			return settings.Wrong("store", "the URL has no port; write that of the Sentinel, usually 26379")
		}
	}
	return nil
}

// The fields of redis.Options, in the words of a configuration, and when the
// URL says them.
var (
	redisWords = map[string]string{
		"Address": "address", "Cluster": "cluster", "Sentinels": "sentinel", "MasterName": "master_name",
		"SentinelUsername": "sentinel_username", "SentinelPassword": "sentinel_password",
		"Username": "username", "Password": "password", "DB": "db", "TLS": "tls",
		"Instances": "instances", "KeyPrefix": "key_prefix", "KeySecret": "key_secret",
		"PoolSize": "pool_size", "QueueSize": "queue_size", "Timeout": "timeout", "DialTimeout": "dial_timeout",
	}
	redisWordsOfURL = map[string]string{
		"Address": "the URL's address", "Cluster": "the URL's address", "Sentinels": "the URL's address",
		"Username": "the URL's user name", "DB": "the URL's database",
	}
)

// inWords is an error of redis.Options in the words of the configuration, and
// the place of the mistake in it.
func (s *Redis) inWords(err error) *settings.Mistake {
	var mistake *redis.OptionError
	if !errors.As(err, &mistake) {
		return settings.Wrong("store", "%v", err)
	}
	word := redisWords[mistake.Field]
	place := word
	switch {
	case mistake.Field == "DB" && s.DB == nil,
		mistake.Field == "Address" && s.URL != "",
		mistake.Element == 1 && s.URL != "":
		return ofURL(mistake)
	case mistake.Field == "MasterName" && s.MasterName == "":
		place = "sentinel"
	case mistake.Element > 0:
		word, place = "address", "address"
		if n := len(s.Address); n > 1 {
			number := mistake.Element
			if s.URL != "" { // it has the first
				number--
			}
			word = fmt.Sprintf("address %d of %d", number, n)
		}
	}
	return settings.Wrong(place, "%s", mistake.Text(func(field string) string {
		if field == mistake.Field {
			return word
		}
		return redisWords[field]
	}))
}

// ofURL is the same for an error in what the URL says.
func ofURL(err error) *settings.Mistake {
	var mistake *redis.OptionError
	if !errors.As(err, &mistake) {
		return settings.Wrong("store", "%v", err)
	}
	return settings.Wrong("store", "%s", mistake.Text(func(field string) string {
		if field == mistake.Field {
			return redisWordsOfURL[field]
		}
		return redisWords[field]
	}))
}

// checkPlaceholders finds placeholders that Caddy does not have. The values of
// the others are known to the server only.
func (s *Redis) checkPlaceholders() *settings.Mistake {
	texts := []struct{ field, text string }{
		{"store", s.URL}, {"username", s.Username}, {"password", s.Password}, {"sentinel_username", s.SentinelUsername},
		{"sentinel_password", s.SentinelPassword}, {"master_name", s.MasterName}, {"key_prefix", s.KeyPrefix}, {"key_secret", s.KeySecret},
	}
	for _, address := range s.Address {
		texts = append(texts, struct{ field, text string }{"address", address})
	}
	for _, t := range texts {
		if mistake := checkPlaceholders(t.field, t.text); mistake != nil {
			return mistake
		}
	}
	return nil
}

// checkPlaceholders does not read the files that the text names.
func checkPlaceholders(field, text string) *settings.Mistake {
	repl := caddy.NewReplacer().WithoutFile()
	repl.Map(func(name string) (any, bool) { return "", strings.HasPrefix(name, "file.") })
	if _, err := repl.ReplaceOrErr(text, false, true); err != nil {
		// The error names the placeholder, never a value.
		return settings.Wrong(field, "%s of the redis store: %v; write for example {env.NAME} or {file./path}, and \\{ for a literal brace", strings.Replace(field, "store", "url", 1), err)
	}
	return nil
}

// checkFiles finds files that are there but wrong.
//
// A file that is missing, or that this user may not read, is no mistake here:
// the Caddyfile may be adapted on another machine than the server's, or before
// the file is made. Caddy does the same with the files of its directive tls.
// Provision reads all files, and reports then that one is missing.
func (t *TLS) checkFiles() *settings.Mistake {
	for _, file := range []struct{ field, path string }{{"ca", t.CA}, {"cert", t.Cert}, {"key", t.Key}} {
		if mistake := checkPlaceholders(file.field, file.path); mistake != nil {
			return mistake
		}
	}
	if text := fileThere(t.CA); text != nil {
		if _, err := authorities(t.CA, text); err != nil {
			return settings.Wrong("ca", "%v", err)
		}
	}
	cert, key := fileThere(t.Cert), fileThere(t.Key)
	if cert != nil && !holdsCertificate(cert) {
		return settings.Wrong("cert", "tls cert of the redis store: %s holds no certificate in PEM", t.Cert)
	}
	if cert == nil || key == nil {
		return nil
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		return settings.Wrong("key", "%v; write the key of the certificate in %s", pairError(err), t.Cert)
	}
	return nil
}

func holdsCertificate(text []byte) bool {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			return true
		}
	}
	return false
}

// maxTLSFile is far more than certificates need.
const maxTLSFile = 4 << 20

// fileThere returns what a file holds, nil if that cannot be known here. Only
// regular files are read: a pipe would be empty for the server after that, and
// a device may never end.
func fileThere(path string) []byte {
	if path == "" || settings.HasPlaceholder(path) {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxTLSFile {
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return content
}
