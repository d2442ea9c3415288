package distributedratelimit

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"
)

func init() {
	caddy.RegisterModule(new(MemoryStore))
	caddy.RegisterModule(new(RedisStore))
}

// storePool holds the open stores by the identity of their data and their
// settings, so that a reload keeps counts and connections.
var storePool = caddy.NewUsagePool()

// MemoryStore counts in the memory of this process. It needs no server, and
// every instance counts for itself: N instances grant up to N times a limit,
// and a restart forgets everything.
type MemoryStore struct {
	// How many keys are remembered at most, 1 to 100,000,000. At the bound a
	// new key takes the place of one that has expired, or of the one in a
	// sample that had used the least of its limit; a client that is being
	// refused is never forgotten. If there is no such place, new clients
	// share what is left among them. Default: 100000.
	MaxKeys int `json:"max_keys,omitempty"`

	pooled *pooledMemory
}

type pooledMemory struct{ *store.Memory }

// Destruct implements caddy.Destructor. There is nothing to close.
func (pooledMemory) Destruct() error { return nil }

const (
	memoryPoolKey = "memory"
	maxMaxKeys    = 100_000_000
)

// CaddyModule returns the Caddy module information.
func (*MemoryStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "distributed_ratelimit.stores.memory",
		New: func() caddy.Module { return new(MemoryStore) },
	}
}

// Provision takes the process's one memory. It keeps its bound until the
// configuration starts: this one may never run.
func (m *MemoryStore) Provision(ctx caddy.Context) error {
	if problem := m.check(); problem != nil {
		return problem
	}
	pooled, _, err := storePool.LoadOrNew(memoryPoolKey, func() (caddy.Destructor, error) {
		return &pooledMemory{store.NewMemory(firstNonZero(m.MaxKeys, store.DefaultMaxKeys))}, nil
	})
	if err != nil {
		return err
	}
	m.pooled = pooled.(*pooledMemory)
	ctx.Logger().Warn("the store is this process's memory: every instance counts for itself, and a restart forgets; " +
		"to share the limits, configure: distributed_ratelimit { store redis <url> }")
	return nil
}

func (m *MemoryStore) check() *configError {
	if m.MaxKeys < 0 || m.MaxKeys > maxMaxKeys {
		return wrong("max_keys", "max_keys %d is not between 1 and %d", m.MaxKeys, maxMaxKeys)
	}
	return nil
}

func (m *MemoryStore) start() { m.pooled.SetMaxKeys(firstNonZero(m.MaxKeys, store.DefaultMaxKeys)) }

// Cleanup releases the memory; requests still in flight may go on using it.
func (m *MemoryStore) Cleanup() error {
	if m.pooled == nil {
		return nil
	}
	_, err := storePool.Delete(memoryPoolKey)
	return err
}

// Take implements store.Store.
func (m *MemoryStore) Take(wait time.Duration, asks []store.Ask, answers []store.Answer) error {
	return m.pooled.Take(wait, asks, answers)
}

// Return implements store.Store.
func (m *MemoryStore) Return(wait time.Duration, grants []store.Grant) error {
	return m.pooled.Return(wait, grants)
}

// String implements store.Store.
func (m *MemoryStore) String() string { return m.pooled.String() }

// RedisStore counts in one Redis server, shared by all instances that point
// at it. Redis need not be up for the configuration to start.
//
// Every text may hold placeholders, such as {env.REDIS_URL} or
// {file./run/secrets/redis}; they are expanded when the configuration is
// loaded, and one that is unset or empty is an error.
type RedisStore struct {
	// Where the server is, as redis://[user:password@]host[:port][/db],
	// rediss:// (TLS) or unix://[user:password@]/path[?db=n]. The fields below
	// add to it; give each thing once.
	URL string `json:"url,omitempty"`

	// The server as host:port, or unix//path of a socket. Default:
	// localhost:6379.
	Address string `json:"address,omitempty"`

	// The ACL user. Default: Redis's default user.
	Username string `json:"username,omitempty"`

	// The password. Use a placeholder: what stands here is part of the
	// configuration that Caddy shows.
	Password string `json:"password,omitempty"`

	// The number of the database. Default: 0.
	DB *int `json:"db,omitempty"`

	// What the names of all keys in Redis begin with. Default: drl.
	KeyPrefix string `json:"key_prefix,omitempty"`

	// A secret with which clients' keys are hashed, so that who can read
	// Redis cannot test guesses of them. All instances need the same one;
	// changing it starts empty logs. Use a placeholder.
	KeySecret string `json:"key_secret,omitempty"`

	// Encrypts the connection.
	TLS *RedisTLS `json:"tls,omitempty"`

	// The least time that an operation may take once it is sent, even if no
	// request waits for it any more; breaking it off costs the connection.
	// Default: 300ms, or three budgets if that is longer.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The longest time that making a connection may take. Default: 500ms.
	DialTimeout caddy.Duration `json:"dial_timeout,omitempty"`

	// The largest number of connections. Default: a few; decisions share
	// them.
	PoolSize int `json:"pool_size,omitempty"`

	// The largest number of decisions that wait to be sent; above it the
	// store counts as away. Default: 4096.
	QueueSize int `json:"queue_size,omitempty"`

	// Whether a key that is used much may be granted several units at once,
	// which this instance then spends without asking Redis, and whether
	// refusals are remembered, for at most a second. The limits hold all the
	// same. false asks Redis for each request. Default: true.
	Lease *bool `json:"lease,omitempty"`

	pooled  *pooledRedis
	poolKey string
}

// RedisTLS configures TLS to Redis. All fields are optional.
type RedisTLS struct {
	// A file with the certificates of the authorities to trust, in PEM.
	// Default: the system's.
	CA string `json:"ca,omitempty"`
	// Files with the client's certificate and its key, in PEM.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	// The name that the server's certificate must have. Default: the host.
	ServerName string `json:"server_name,omitempty"`
	// Believes any certificate. Who can intercept the connection then reads
	// the password.
	InsecureSkipVerify bool `json:"insecure_skip_verify,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*RedisStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "distributed_ratelimit.stores.redis",
		New: func() caddy.Module { return new(RedisStore) },
	}
}

// Provision opens the store, without waiting for the server.
func (s *RedisStore) Provision(caddy.Context) error {
	if problem := s.check(); problem != nil {
		return problem
	}
	options, err := s.options()
	if err != nil {
		return err
	}
	s.poolKey = s.fingerprint(options)
	pooled, _, err := storePool.LoadOrNew(s.poolKey, func() (caddy.Destructor, error) {
		opened, err := redis.Open(options)
		if err != nil {
			return nil, err
		}
		if s.Lease != nil && !*s.Lease {
			return &pooledRedis{Store: opened, redis: opened}, nil
		}
		leases := store.NewLeases(opened, store.LeasesOptions{})
		return &pooledRedis{Store: leases, leases: leases, redis: opened}, nil
	})
	if err != nil {
		return err
	}
	s.pooled = pooled.(*pooledRedis)
	return nil
}

// pooledRedis is a store that is shared by configurations.
type pooledRedis struct {
	store.Store
	leases *store.Leases // nil if there are none
	redis  *redis.Store
}

// leaseCloseTime is how long a reload or the shutdown may be held up by giving
// leases back. What is not given back counts until its window has passed.
const leaseCloseTime = 500 * time.Millisecond

// Destruct implements caddy.Destructor.
func (p *pooledRedis) Destruct() error {
	if p.leases != nil {
		// A failure is no reason to complain: Redis may be away for good.
		_ = p.leases.Close(leaseCloseTime)
	}
	p.redis.Close()
	return nil
}

// fingerprint names the data and the settings of the store, and shows none of
// its secrets.
func (s *RedisStore) fingerprint(o redis.Options) string {
	settings, err := json.Marshal(s)
	if err != nil {
		panic(err) // the configuration came from JSON
	}
	sum := sha256.Sum256(settings)
	return "redis " + o.Identity() + " " + hex.EncodeToString(sum[:])
}

// check finds mistakes that show before placeholders are expanded.
func (s *RedisStore) check() *configError {
	if s.URL != "" && s.Address != "" {
		return wrong("address", "both a URL and an address are given; write one of them")
	}
	if s.URL != "" && !hasPlaceholder(s.URL) {
		o, err := redis.ParseURL(s.URL)
		if err != nil {
			return wrong("store", "%v", err)
		}
		if problem := s.doubles(o); problem != nil {
			return problem
		}
	}
	if problem := s.checkTexts(); problem != nil {
		return problem
	}
	if s.DB != nil && *s.DB < 0 {
		return wrong("db", "db %d is negative; write 0 or above", *s.DB)
	}
	for _, d := range []struct {
		field string
		value caddy.Duration
	}{{"timeout", s.Timeout}, {"dial_timeout", s.DialTimeout}} {
		if d.value != 0 && (time.Duration(d.value) < redis.MinTimeout || time.Duration(d.value) > redis.MaxTimeout) {
			return wrong(d.field, "%s %v is not between %v and %v", d.field, time.Duration(d.value), redis.MinTimeout, redis.MaxTimeout)
		}
	}
	if s.PoolSize < 0 || s.PoolSize > 1000 {
		return wrong("pool_size", "pool_size %d is not between 1 and 1000", s.PoolSize)
	}
	if s.QueueSize < 0 || s.QueueSize > 1_000_000 {
		return wrong("queue_size", "queue_size %d is not between 1 and 1000000", s.QueueSize)
	}
	if s.TLS != nil && (s.TLS.Cert == "") != (s.TLS.Key == "") {
		return wrong("tls", "tls has only one of cert and key; a client certificate needs both")
	}
	return nil
}

// checkTexts finds mistakes in texts without placeholders.
func (s *RedisStore) checkTexts() *configError {
	const some = "localhost:6379" // in place of what is not being checked
	for _, text := range []struct {
		field, value string
		options      redis.Options
	}{
		{"address", s.Address, redis.Options{Address: s.Address}},
		{"key_prefix", s.KeyPrefix, redis.Options{Address: some, KeyPrefix: s.KeyPrefix}},
	} {
		if text.value == "" || hasPlaceholder(text.value) {
			continue
		}
		if err := text.options.Validate(); err != nil {
			return wrong(text.field, "%v", err)
		}
	}
	if s.Username != "" && s.Password == "" && !hasPlaceholder(s.URL) {
		if o, _ := redis.ParseURL(s.URL); o.Password == "" {
			return wrong("username", "there is a user name but no password; write password, or remove username")
		}
	}
	if s.TLS != nil && (strings.HasPrefix(s.Address, "unix/") || strings.HasPrefix(s.URL, "unix:")) {
		return wrong("tls", "TLS over a Unix socket is not supported; remove tls, or write host:port")
	}
	return nil
}

// hasPlaceholder reports whether text can be judged only once its
// placeholders are expanded.
func hasPlaceholder(text string) bool { return strings.Contains(text, "{") }

// doubles finds what both the URL and a field give: which of them counts
// would have to be guessed.
func (s *RedisStore) doubles(url redis.Options) *configError {
	switch {
	case url.DB != 0 && s.DB != nil:
		return wrong("db", "the database is given twice, in the URL and as db; remove one")
	case url.Username != "" && s.Username != "":
		return wrong("username", "the user name is given twice, in the URL and as username; remove one")
	case url.Password != "" && s.Password != "":
		return wrong("password", "the password is given twice, in the URL and as password; remove one")
	}
	return nil
}

// options expands the placeholders and puts the settings together.
func (s *RedisStore) options() (redis.Options, error) {
	var o redis.Options
	repl := caddy.NewReplacer()
	expand := func(field, value string) (string, error) {
		expanded, err := repl.ReplaceOrErr(value, true, true)
		if err != nil {
			// The error names the placeholder, never a value.
			return "", fmt.Errorf("%s of the redis store: %v; set it, or remove the line", field, err)
		}
		return strings.TrimRight(expanded, "\r\n"), nil // a file's last line ends
	}

	if s.URL != "" {
		url, err := expand("url", s.URL)
		if err != nil {
			return o, err
		}
		if o, err = redis.ParseURL(url); err != nil {
			return o, err
		}
		if problem := s.doubles(o); problem != nil {
			return o, problem
		}
	}
	for _, text := range []struct {
		field, value string
		set          *string
	}{
		{"address", s.Address, &o.Address},
		{"username", s.Username, &o.Username},
		{"password", s.Password, &o.Password},
		{"key_prefix", s.KeyPrefix, &o.KeyPrefix},
	} {
		if text.value == "" {
			continue
		}
		value, err := expand(text.field, text.value)
		if err != nil {
			return o, err
		}
		*text.set = value
	}
	if s.KeySecret != "" {
		secret, err := expand("key_secret", s.KeySecret)
		if err != nil {
			return o, err
		}
		o.KeySecret = []byte(secret)
	}
	if s.DB != nil {
		o.DB = *s.DB
	}
	if o.Address == "" {
		o.Address = "localhost:6379"
	}
	if s.TLS != nil {
		config, err := s.TLS.config(o.TLS, expand)
		if err != nil {
			return o, err
		}
		o.TLS = config
	}
	o.Timeout, o.DialTimeout = time.Duration(s.Timeout), time.Duration(s.DialTimeout)
	o.PoolSize, o.QueueSize = s.PoolSize, s.QueueSize
	return o, o.Validate()
}

func (t *RedisTLS) config(base *tls.Config, expand func(field, value string) (string, error)) (*tls.Config, error) {
	config := base
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	config.InsecureSkipVerify = t.InsecureSkipVerify
	if t.ServerName != "" {
		name, err := expand("tls server_name", t.ServerName)
		if err != nil {
			return nil, err
		}
		config.ServerName = name
	}
	if t.CA != "" {
		path, err := expand("tls ca", t.CA)
		if err != nil {
			return nil, err
		}
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("tls ca of the redis store: %v", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls ca of the redis store: %s holds no certificate in PEM", path)
		}
	}
	if t.Cert != "" {
		cert, err := expand("tls cert", t.Cert)
		if err != nil {
			return nil, err
		}
		key, err := expand("tls key", t.Key)
		if err != nil {
			return nil, err
		}
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("tls cert of the redis store: %v", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// Cleanup releases the store. It is closed when no configuration and no
// request uses it any more.
func (s *RedisStore) Cleanup() error {
	if s.pooled == nil {
		return nil
	}
	_, err := storePool.Delete(s.poolKey)
	return err
}

// Take implements store.Store.
func (s *RedisStore) Take(wait time.Duration, asks []store.Ask, answers []store.Answer) error {
	return s.pooled.Take(wait, asks, answers)
}

// TakeAt is Take for a caller that has just read the clock.
func (s *RedisStore) TakeAt(now time.Time, wait time.Duration, asks []store.Ask, answers []store.Answer) error {
	if s.pooled.leases == nil {
		return s.pooled.Take(wait, asks, answers)
	}
	return s.pooled.leases.TakeAt(now, wait, asks, answers)
}

// Return implements store.Store.
func (s *RedisStore) Return(wait time.Duration, grants []store.Grant) error {
	return s.pooled.Return(wait, grants)
}

// String implements store.Store.
func (s *RedisStore) String() string { return s.pooled.String() }
