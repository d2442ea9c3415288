package caddytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Ranges of proxies that are written out can be judged where they stand.
func TestCaddyfileMistakesOfTrustedRanges(t *testing.T) {
	for ranges, wants := range map[string][]string{
		"10.0.0.0/33":                     {"10.0.0.0/33", "write addresses, ranges such as 10.0.0.0/8"},
		"private_ranges localhost":        {"localhost", "write addresses"},
		"10.0.0.1-10.0.0.9":               {"10.0.0.1-10.0.0.9"},
		"{env.DRL_NOT_SET}":               {"{env.DRL_NOT_SET}", "{$PROXIES}"},
		"0.0.0.0/0":                       {"0.0.0.0/0 covers every address", "list the networks of the proxies"},
		"private_ranges ::/0":             {"::/0 covers every address"},
		"::ffff:0:0/96":                   {"covers every address"},
		"0.0.0.0/1 128.0.0.0/1":           {"cover 100 % of 0.0.0.0/0", "list the networks of the proxies"},
		"2000::/3":                        {"cover 100 % of 2000::/3"},
		"0.0.0.0/3 32.0.0.0/3 64.0.0.0/8": {"of 0.0.0.0/0", "list the networks of the proxies"},
	} {
		t.Run(ranges, func(t *testing.T) {
			for place, file := range map[string]func(...string) string{"handler": site, "global": global} {
				t.Run(place, mistake{file: file("budget 1s", "trusted_proxies static "+ranges+here), wants: append(wants, "trusted_proxies: ")}.check)
			}
		})
	}
	for _, ranges := range []string{"static private_ranges", "static 0.0.0.0/3 32.0.0.0/3", "static 10.0.0.1 2001:db8::/32", "static", "swapping anybody"} {
		for _, file := range []string{site("trusted_proxies " + ranges), global("trusted_proxies " + ranges)} {
			if config, err := adapt(file); err != nil {
				t.Errorf("trusted_proxies %s: got error %v, want none", ranges, err)
			} else if err := validated(t, config); err != nil {
				t.Errorf("trusted_proxies %s: provisioning: got error %v, want none", ranges, err)
			}
		}
	}
}

// on_empty_key has nothing to do where no key is ever empty.
func TestCaddyfileMistakesOfEmptyKeys(t *testing.T) {
	for _, m := range []mistake{
		{"the default key", zone("on_empty_key deny" + here), []string{"on_empty_key deny", "the client's address, which is never empty", "remove on_empty_key, or write a key"}},
		{"the default key of the short form", site("on_empty_key client" + here), []string{"on_empty_key client", "without a key"}},
		{"the default key, written out", zone("on_empty_key skip"+here, "key {client_ip}"), []string{"on_empty_key skip", "every client has the address in it"}},
		{"the peer", zone("key {remote_host}", "on_empty_key skip"+here), []string{"every client has the address in it"}},
		{"a key for everybody", zone("key everybody", "on_empty_key deny"+here), []string{`"everybody" is never empty`, "it has no placeholder", "remove on_empty_key"}},
		{"an address beside a header", zone("key {client_ip}-{header.X}", "on_empty_key deny"+here), []string{"every client has the address in it", "or the address from the key"}},
		{"unknown", zone("key everybody", "on_empty_key allow"+here), []string{`unknown on_empty_key "allow"`}},
	} {
		t.Run(m.name, m.check)
	}
	for _, key := range []string{"{header.X}", "user-{header.X}", "{host}{path}", "{http.request.remote.host/24}", "{http.auth.user.id}"} {
		for _, word := range []string{"client", "skip", "deny"} {
			if config, err := adapt(zone("key "+key, "on_empty_key "+word)); err != nil {
				t.Errorf("key %s, on_empty_key %s: got error %v, want none", key, word, err)
			} else if err := validated(t, config); err != nil {
				t.Errorf("key %s, on_empty_key %s: provisioning: got error %v, want none", key, word, err)
			}
		}
	}
	for _, fields := range []string{`"on_empty_key": "deny"`, `"key": "all", "on_empty_key": "deny"`, `"key": "{http.vars.client_ip}{http.request.uri.query.x}", "on_empty_key": "deny"`} {
		err := validated(t, []byte(zoneJSON(`"events": 1, "window": "1m", `+fields)))
		if err == nil || !strings.Contains(err.Error(), "never empty") {
			t.Errorf("provisioning {%s}: got error %v, want one that says never empty", fields, err)
		}
	}
}

// Files of TLS that are there can be judged. Files that are missing here may be
// on the server.
func TestCaddyfileMistakesOfTLSFiles(t *testing.T) {
	dir := t.TempDir()
	name := func(file string) string { return filepath.Join(dir, file) }
	put := func(file string, content []byte) {
		if err := os.WriteFile(name(file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := certificate(t)
	_, other := certificate(t)
	put("cert", cert)
	put("key", key)
	put("other", other)
	put("text", []byte("no certificate"))
	put("empty", nil)
	put("broken", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
	in := func(lines ...string) string {
		return strings.ReplaceAll(redis("tls {", strings.Join(lines, "\n"), "}"), "DIR", dir)
	}
	for _, m := range []mistake{
		{"ca", in("server_name x", "ca DIR/text"+here), []string{name("text") + " holds no certificate in PEM", "authorities"}},
		{"empty ca", in("ca DIR/empty" + here), []string{"holds no certificate"}},
		{"ca that is a key", in("ca DIR/key"+here, "server_name x"), []string{"holds no certificate"}},
		{"cert", in("cert DIR/text"+here, "key DIR/key"), []string{name("text") + " holds no certificate"}},
		{"cert and key swapped", in("cert DIR/key"+here, "key DIR/cert"), []string{name("key") + " holds no certificate"}},
		{"broken cert", in("key DIR/nowhere", "cert DIR/broken"+here), []string{name("broken") + " holds no certificate"}},
		{"key", in("cert DIR/cert", "key DIR/text"+here), []string{"tls cert of the redis store", "key input", "write the key of the certificate in " + name("cert")}},
		{"key of another cert", in("key DIR/other"+here, "cert DIR/cert"), []string{"does not match", name("cert")}},
	} {
		t.Run(m.name, m.check)
	}
	for _, file := range []string{
		in("ca DIR/nowhere", "cert DIR/nowhere", "key DIR/key"), in("cert DIR/cert", "key DIR/nowhere"), in("cert DIR/cert", "key DIR/key", "ca DIR/cert"),
		in("ca {env.DRL_NOT_SET}", "cert {file.DIR/text}", "key DIR/other"), in("ca DIR"), in("ca /dev/zero"),
	} {
		if _, err := adapt(file); err != nil {
			t.Errorf("got error %v, want none:\n%s", err, file)
		}
	}
}

// Placeholders are expanded by the server, but which ones there are is known.
func TestCaddyfileMistakesOfPlaceholdersOfRedis(t *testing.T) {
	for _, m := range []mistake{
		{"url", global("store redis {REDIS_URL}" + here), []string{"url of the redis store", "unrecognized placeholder {REDIS_URL}", "write for example {env.NAME}"}},
		{"password", redis("password {nothing.at.all}" + here), []string{"password of the redis store", "{nothing.at.all}"}},
		{"address", redis("address {http.request.host}:6379" + here), []string{"address of the redis store", "{http.request.host}"}},
		{"master_name", redis("address a:1", "sentinel", "master_name {master}"+here), []string{"master_name of the redis store"}},
		{"sentinel_password", redis("address a:1", "sentinel", "master_name m", "sentinel_password {x}"+here), []string{"sentinel_password of the redis store"}},
		{"key_secret", redis("key_secret {KEY_SECRET}"+here, "db 1"), []string{"key_secret of the redis store"}},
		{"ca", redis("tls {", "ca {CA}"+here, "server_name x", "}"), []string{"ca of the redis store", "{CA}"}},
	} {
		t.Run(m.name, m.check)
	}
	for _, line := range []string{"password {env.DRL_NOT_SET}", "password {file./nowhere/x}", `password a\{b\}c`, "address {env.DRL_NOT_SET}:1", "key_prefix {system.hostname}"} {
		if _, err := adapt(redis(line)); err != nil {
			t.Errorf("%s: got error %v, want none", line, err)
		}
	}
}

// The handler may have the hops, and the global option the header, or the other
// way round.
func TestCaddyfileMistakesTogetherWithTheGlobalOption(t *testing.T) {
	file := func(shared, own string) string {
		return "{\n\tdistributed_ratelimit {\n" + shared + "\n\t}\n}\n" + site("budget 1s", own)
	}
	for _, m := range []mistake{
		{"hops here", file("client_ip_headers X-Real-IP", "trusted_proxies hops 2"+here), []string{"together with the global option", "X-Real-Ip", "not a list"}},
		{"header here", file("trusted_proxies hops 2", "client_ip_headers X-Real-IP"+here), []string{"together with the global option", "not a list"}},
	} {
		t.Run(m.name, m.check)
	}
	for _, fine := range []string{
		file("trusted_proxies hops 2", "client_ip_headers Forwarded"), file("client_ip_headers Forwarded", "trusted_proxies hops 2"),
		file("trusted_proxies hops 2", "trusted_proxies static private_ranges\nclient_ip_headers X-Real-IP"),
		file("trusted_proxies static private_ranges", "client_ip_headers X-Real-IP"), file("trusted_proxies static private_ranges", "trusted_proxies hops 2"),
		file("client_ip_headers X-Real-IP", "trusted_proxies hops 2\nclient_ip_headers X-Forwarded-For"),
	} {
		if config, err := adapt(fine); err != nil {
			t.Errorf("got error %v, want none:\n%s", err, fine)
		} else if err := validated(t, config); err != nil {
			t.Errorf("provisioning: got error %v, want none:\n%s", err, fine)
		}
	}
}

// certificate is a new certificate and its key, in PEM.
func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secretDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secretDER})
}
