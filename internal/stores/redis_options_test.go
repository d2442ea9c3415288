package stores

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	redisstore "github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"
)

func opened(t *testing.T, s *Redis) redisstore.Options {
	t.Helper()
	o, err := s.options(expansion{caddy.NewReplacer()})
	if err != nil {
		t.Fatalf("options of %+v: %v", s, err)
	}
	return o
}

func write(t *testing.T, path string, text []byte) string {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Where the addresses of a URL and of the lines go.
func TestRedisServers(t *testing.T) {
	t.Setenv("DRL_HOST", "d:4")
	for _, c := range []struct {
		name      string
		store     Redis
		address   string
		cluster   []string
		sentinels []string
	}{
		{"nothing", Redis{}, "localhost:6379", nil, nil},
		{"address", Redis{Address: []string{"{env.DRL_HOST}"}}, "d:4", nil, nil},
		{"URL", Redis{URL: "redis://a"}, "a:6379", nil, nil},
		{"cluster", Redis{Cluster: true, Address: []string{"b:2", "{env.DRL_HOST}"}}, "", []string{"b:2", "d:4"}, nil},
		{"URL of a cluster", Redis{Cluster: true, URL: "redis://a/0", Address: []string{"b:2"}}, "", []string{"a:6379", "b:2"}, nil},
		{"Sentinels", Redis{Sentinel: true, MasterName: "m", Address: []string{"b:2"}}, "", nil, []string{"b:2"}},
		{"URL of a Sentinel", Redis{Sentinel: true, MasterName: "m", URL: "redis://:x@a:1/5"}, "", nil, []string{"a:1"}},
	} {
		o := opened(t, &c.store)
		if o.Address != c.address || !slices.Equal(o.Cluster, c.cluster) || !slices.Equal(o.Sentinels, c.sentinels) || o.MasterName != c.store.MasterName {
			t.Errorf("%s: got address %q, cluster %q, Sentinels %q of %q, want %q, %q, %q", c.name,
				o.Address, o.Cluster, o.Sentinels, o.MasterName, c.address, c.cluster, c.sentinels)
		}
		if o.Instances != 1 {
			t.Errorf("%s: got %d instances, want 1", c.name, o.Instances)
		}
	}
	o := opened(t, &Redis{AssumedInstances: 7, Sentinel: true, MasterName: "m", URL: "rediss://me:x@a:1/5", SentinelUsername: "u", SentinelPassword: "p"})
	if o.Instances != 7 || o.DB != 5 || o.Username != "me" || o.Password != "x" || o.TLS == nil || o.SentinelUsername != "u" || o.SentinelPassword != "p" {
		t.Errorf("options: got %+v", o)
	}
}

// Secrets are read again each time they are asked for; while that fails, no
// half of them is returned.
func TestRedisSecretsAreRenewed(t *testing.T) {
	dir := t.TempDir()
	password := write(t, filepath.Join(dir, "password"), []byte("first\n"))
	t.Setenv("DRL_USER", "alice")
	t.Setenv("DRL_SENTINEL", "one")
	ca := write(t, filepath.Join(dir, "ca.pem"), authority(t))
	o := opened(t, &Redis{
		Address: []string{"a:1"}, Sentinel: true, MasterName: "m",
		Username: "{env.DRL_USER}", Password: "{file." + password + "}",
		SentinelUsername: "watcher", SentinelPassword: "{env.DRL_SENTINEL}",
		TLS: &TLS{CA: ca, ServerName: "redis.test"},
	})
	if o.Password != "first" || o.Renew == nil {
		t.Fatalf("options: got password %q, Renew there: %v", o.Password, o.Renew != nil)
	}
	expect := func(user, password, sentinel string) redisstore.Secrets {
		t.Helper()
		got, err := o.Renew()
		if err != nil {
			t.Fatalf("renewing: %v", err)
		}
		if got.Username != user || got.Password != password || got.SentinelUsername != "watcher" || got.SentinelPassword != sentinel {
			t.Errorf("renewing: got %+v, want %s, %s, watcher, %s", got, user, password, sentinel)
		}
		return got
	}
	before := expect("alice", "first", "one")
	write(t, password, []byte("second"))
	t.Setenv("DRL_USER", "bob")
	t.Setenv("DRL_SENTINEL", "two")
	write(t, ca, authority(t))
	after := expect("bob", "second", "two")
	if after.TLS.ServerName != "redis.test" || after.TLS.RootCAs.Equal(before.TLS.RootCAs) {
		t.Errorf("renewing: got TLS for %q with the authorities of before: %v", after.TLS.ServerName, after.TLS.RootCAs.Equal(before.TLS.RootCAs))
	}

	for _, broken := range []struct{ path, text, want string }{
		{password, "", "password of the redis store"},
		{ca, "no certificate", "holds no certificate"},
	} {
		whole, err := os.ReadFile(broken.path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, broken.path, []byte(broken.text))
		got, err := o.Renew()
		if err == nil || !strings.Contains(err.Error(), broken.want) || strings.Contains(err.Error(), "second") {
			t.Errorf("renewing with %q in a file: got error %v, want %q in it", broken.text, err, broken.want)
		}
		if got != (redisstore.Secrets{}) {
			t.Errorf("renewing with %q in a file: got %+v with the error, want nothing", broken.text, got)
		}
		write(t, broken.path, whole)
	}
	expect("bob", "second", "two")
}

// The URL's secrets are renewed too; where it leads stays.
func TestRedisURLIsRenewed(t *testing.T) {
	t.Setenv("DRL_URL", "redis://:first@a:1")
	o := opened(t, &Redis{URL: "{env.DRL_URL}"})
	t.Setenv("DRL_URL", "rediss://me:second@b:2")
	got, err := o.Renew()
	if err != nil || got.Username != "me" || got.Password != "second" || got.TLS == nil {
		t.Errorf("renewing: got %+v, error %v, want me, second, TLS", got, err)
	}
	if o.Address != "a:1" {
		t.Errorf("address: got %s, want a:1", o.Address)
	}

	if o := opened(t, &Redis{URL: "redis://:x@a:1", KeySecret: "{env.DRL_URL}", TLS: new(TLS)}); o.Renew != nil {
		t.Error("nothing can change: got Renew, want none")
	}
}

// Every field of redis.Options that a configuration has is named in errors as
// the configuration names it.
func TestRedisOptionsHaveWords(t *testing.T) {
	fields := reflect.TypeFor[redisstore.Options]()
	for i := range fields.NumField() {
		if name := fields.Field(i).Name; redisWords[name] == "" && name != "Renew" {
			t.Errorf("redis.Options.%s has no word of the configuration", name)
		}
	}
	for name := range redisWords {
		if _, ok := fields.FieldByName(name); !ok {
			t.Errorf("redis.Options has no field %s", name)
		}
	}
}

// What has a placeholder is not judged before it is expanded, and what stands
// beside it is.
func TestRedisIsJudgedBesidePlaceholders(t *testing.T) {
	const later = "{env.DRL_NOT_SET}"
	for _, c := range []struct {
		store Redis
		want  string // the word of the mistake, if there is one
	}{
		{Redis{URL: later, Username: "me"}, ""},
		{Redis{URL: later, Password: "x", DB: new(int)}, ""},
		{Redis{URL: later, Cluster: true, TLS: new(TLS)}, ""},
		{Redis{Username: later, Password: later, KeyPrefix: later, KeySecret: later, Address: []string{later}}, ""},
		{Redis{Sentinel: true, MasterName: later, SentinelUsername: later, SentinelPassword: later, Address: []string{later}}, ""},
		{Redis{TLS: &TLS{CA: "/nowhere", Cert: "/nowhere", Key: later}}, ""},
		{Redis{URL: later, PoolSize: -1}, "pool_size"},
		{Redis{Address: []string{later}, KeyPrefix: "a b"}, "key_prefix"},
		{Redis{URL: "redis://:x@a", Password: later}, "password"},
		{Redis{Cluster: true, Address: []string{later, "a"}}, "address"},
	} {
		got := ""
		if mistake := c.store.check(); mistake != nil {
			got = mistake.Field
		}
		if got != c.want {
			t.Errorf("%+v: got a mistake in %q (%v), want one in %q", c.store, got, c.store.check(), c.want)
		}
	}
}

// authority is a new certificate in PEM.
func authority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
