package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority is a certificate authority of a test.
type Authority struct {
	CAFile            string // its certificate
	CertFile, KeyFile string // a certificate of 127.0.0.1 and localhost, for servers and clients
	pool              *x509.CertPool
	ca                *x509.Certificate
	caKey             *ecdsa.PrivateKey
}

// NewAuthority makes one up.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{pool: x509.NewCertPool()}
	var err error
	a.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	ca := certificate(t, "redistest authority", time.Now().Add(time.Hour))
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, a.caKey.Public(), a.caKey)
	check(t, err)
	a.ca, err = x509.ParseCertificate(der)
	check(t, err)
	a.pool.AddCert(a.ca)
	a.CAFile = write(t, "ca.crt", "CERTIFICATE", der)
	a.issue(t, time.Now().Add(time.Hour))
	return a
}

// Expired is the same authority with a certificate for servers that has
// expired.
func (a *Authority) Expired(t testing.TB) *Authority {
	t.Helper()
	expired := *a
	expired.issue(t, time.Now().Add(-time.Minute))
	return &expired
}

// issue makes a certificate for servers and clients.
func (a *Authority) issue(t testing.TB, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	leaf := certificate(t, "redistest", until)
	leaf.DNSNames, leaf.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.ca, key.Public(), a.caKey)
	check(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	a.CertFile = write(t, "leaf.crt", "CERTIFICATE", der)
	a.KeyFile = write(t, "leaf.key", "PRIVATE KEY", keyDER)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
}

func write(t testing.TB, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	check(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}

func certificate(t testing.TB, name string, until time.Time) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(t, err)
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: until.Add(-2 * time.Hour), NotAfter: until,
		BasicConstraintsValid: true,
	}
}

// Config trusts the authority, and has a certificate of it to show.
func (a *Authority) Config(t testing.TB) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(a.CertFile, a.KeyFile)
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.pool, Certificates: []tls.Certificate{cert}}
}

// StartTLS starts a server whose Addr takes TLS only, with a certificate of
// the authority, and asks clients for theirs.
func StartTLS(t testing.TB, a *Authority, args ...string) *Server {
	t.Helper()
	return start(t, &Server{tls: true, args: append([]string{
		"--tls-cert-file", a.CertFile, "--tls-key-file", a.KeyFile, "--tls-ca-cert-file", a.CAFile,
	}, args...)})
}
