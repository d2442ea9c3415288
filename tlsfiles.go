package distributedratelimit

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

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
