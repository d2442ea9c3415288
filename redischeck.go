package distributedratelimit

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// checkPlaceholders finds placeholders that Caddy does not have. What the others
// hold is known to the server.
func (s *RedisStore) checkPlaceholders() *configError {
	texts := []struct{ field, text string }{
		{"store", s.URL}, {"username", s.Username}, {"password", s.Password}, {"sentinel_username", s.SentinelUsername},
		{"sentinel_password", s.SentinelPassword}, {"master_name", s.MasterName}, {"key_prefix", s.KeyPrefix}, {"key_secret", s.KeySecret},
	}
	for _, address := range s.Address {
		texts = append(texts, struct{ field, text string }{"address", address})
	}
	for _, t := range texts {
		if problem := checkPlaceholders(t.field, t.text); problem != nil {
			return problem
		}
	}
	return nil
}

// checkPlaceholders does not read the files that the text names.
func checkPlaceholders(field, text string) *configError {
	repl := caddy.NewReplacer().WithoutFile()
	repl.Map(func(name string) (any, bool) { return "", strings.HasPrefix(name, "file.") })
	if _, err := repl.ReplaceOrErr(text, false, true); err != nil {
		// The error names the placeholder, never a value.
		return wrong(field, "%s of the redis store: %v; write for example {env.NAME} or {file./path}, and \\{ for a literal brace", strings.Replace(field, "store", "url", 1), err)
	}
	return nil
}

// authorities are the certificates in a file.
func authorities(path string, text []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("tls ca of the redis store: %s holds no certificate in PEM; name a file with those of the authorities to trust", path)
	}
	return pool, nil
}

// pairError names the mistake in a certificate and its key.
func pairError(err error) error { return fmt.Errorf("tls cert of the redis store: %v", err) }

// checkFiles finds files that are there but wrong.
//
// A file that is missing, or that this user may not read, is no mistake here:
// the Caddyfile may be adapted on another machine than that of the server, or
// before the file is made. Caddy does the same with the files of its directive
// tls. Provision reads them all, and reports one that is missing then.
func (t *RedisTLS) checkFiles() *configError {
	for _, file := range []struct{ field, path string }{{"ca", t.CA}, {"cert", t.Cert}, {"key", t.Key}} {
		if problem := checkPlaceholders(file.field, file.path); problem != nil {
			return problem
		}
	}
	if text := fileThere(t.CA); text != nil {
		if _, err := authorities(t.CA, text); err != nil {
			return wrong("ca", "%v", err)
		}
	}
	cert, key := fileThere(t.Cert), fileThere(t.Key)
	if cert != nil && !holdsCertificate(cert) {
		return wrong("cert", "tls cert of the redis store: %s holds no certificate in PEM", t.Cert)
	}
	if cert == nil || key == nil {
		return nil
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		return wrong("key", "%v; write the key of the certificate in %s", pairError(err), t.Cert)
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
	if path == "" || hasPlaceholder(path) {
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
