package distributedratelimit

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
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

// FallbackSettings implements fallback.Configured.
func (m *MemoryStore) FallbackSettings() fallback.Settings {
	return fallback.Settings{Infallible: true}
}

// Start implements Starter.
func (m *MemoryStore) Start() { m.pooled.SetMaxKeys(firstNonZero(m.MaxKeys, store.DefaultMaxKeys)) }

// Cleanup releases the memory; requests still in flight may go on using it.
func (m *MemoryStore) Cleanup() error {
	if m.pooled == nil {
		return nil
	}
	_, err := storePool.Delete(memoryPoolKey)
	return err
}

// Take implements store.Store.
func (m *MemoryStore) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	return m.pooled.Take(now, wait, requests, decisions)
}

// Return implements store.Store.
func (m *MemoryStore) Refund(wait time.Duration, refunds []store.Refund) error {
	return m.pooled.Refund(wait, refunds)
}

// String implements store.Store.
func (m *MemoryStore) String() string { return m.pooled.String() }

// RedisStore counts in Redis, shared by all instances that point at it: in one
// server, in a cluster, or in the master that Sentinels name. Redis need not
// be up for the configuration to start.
//
// Every text may hold placeholders, such as {env.REDIS_URL} or
// {file./run/secrets/redis}; they are expanded when the configuration is
// loaded, and one that is unset or empty is an error. Those of user names,
// passwords and the URL are expanded again for each new connection, and the
// files of TLS are read again, so that secrets may be replaced without a
// reload; if that fails, the ones of before are used.
type RedisStore struct {
	// Where the server is, as redis://[user:password@]host[:port][/db],
	// rediss:// (TLS) or unix://[user:password@]/path[?db=n]. The fields below
	// add to it; give each thing once. With a cluster or Sentinels it has the
	// first of the addresses.
	URL string `json:"url,omitempty"`

	// The server as host:port, or unix//path of a socket; several only with a
	// cluster or Sentinels. Default: localhost:6379, but none with a cluster
	// or Sentinels.
	Address []string `json:"address,omitempty"`

	// The servers are a Redis Cluster. The addresses are those of some of its
	// servers, which name the others.
	Cluster bool `json:"cluster,omitempty"`

	// The addresses are those of Sentinels, which know the server.
	Sentinel bool `json:"sentinel,omitempty"`

	// The name under which the Sentinels know the server. They need it.
	MasterName string `json:"master_name,omitempty"`

	// The ACL user. Default: Redis's default user.
	Username string `json:"username,omitempty"`

	// The password. Use a placeholder: what stands here is part of the
	// configuration that Caddy shows.
	Password string `json:"password,omitempty"`

	// The user and the password for the Sentinels, if they ask for one.
	SentinelUsername string `json:"sentinel_username,omitempty"`
	SentinelPassword string `json:"sentinel_password,omitempty"`

	// The number of the database; a cluster has only 0. Default: 0.
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

	// How many instances share the limits, 1 to 10000, until that is known
	// from the store: while it is away, an instance that limits by itself
	// grants its share. If Caddy's storage remembers a larger number from
	// before the start, that one counts. Default: 1.
	AssumedInstances int `json:"instances,omitempty"`

	// What follows when the store has lost counts, as by a restart:
	// `continue` goes on with what is left, so that up to one limit more is
	// granted; with `cautious`, until a window has passed, each instance also
	// holds its clients to its own share of the limit, by its own counts.
	// Default: `continue`.
	OnDataLoss string `json:"on_data_loss,omitempty"`

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
func (s *RedisStore) Provision(ctx caddy.Context) error {
	if problem := s.check(); problem != nil {
		return problem
	}
	if option := s.literalSecret(); option != "" {
		ctx.Logger().Warn("a secret stands in the configuration itself, which caddy adapt and the admin API show; write a placeholder such as {env.REDIS_URL} or {file./run/secrets/redis} ({$REDIS_URL} is replaced before, and shown)",
			zap.String("option", option))
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
		leases := lease.New(opened, lease.Options{})
		return &pooledRedis{Store: leases, leases: leases, redis: opened}, nil
	})
	if err != nil {
		return err
	}
	s.pooled = pooled.(*pooledRedis)
	return nil
}

// literalSecret names the first option that holds a secret as it is, "" if none
// does.
func (s *RedisStore) literalSecret() string {
	for _, secret := range []struct{ option, value string }{
		{"password", s.Password}, {"sentinel_password", s.SentinelPassword}, {"key_secret", s.KeySecret},
	} {
		if secret.value != "" && !hasPlaceholder(secret.value) {
			return secret.option
		}
	}
	if s.URL != "" && !hasPlaceholder(s.URL) {
		if o, err := redis.ParseURL(s.URL); err == nil && o.Password != "" {
			return "url"
		}
	}
	return ""
}

// pooledRedis is a store that is shared by configurations.
type pooledRedis struct {
	store.Store
	leases *lease.Store // nil if there are none
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

const (
	dataLossContinue = "continue"
	dataLossCautious = "cautious"

	maxInstances = 10_000
)

// check finds mistakes that show before placeholders are expanded.
func (s *RedisStore) check() *configError {
	if problem := s.checkServers(); problem != nil {
		return problem
	}
	if s.URL != "" && !hasPlaceholder(s.URL) {
		o, err := redis.ParseURL(s.URL)
		if err != nil {
			return wrong("store", "%v", err)
		}
		if problem := s.checkURL(s.URL, o); problem != nil {
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
	if s.AssumedInstances < 0 || s.AssumedInstances > maxInstances {
		return wrong("instances", "instances %d is not between 1 and %d", s.AssumedInstances, maxInstances)
	}
	switch s.OnDataLoss {
	case "", dataLossContinue, dataLossCautious:
	default:
		return wrong("on_data_loss", "unknown on_data_loss %q; write continue or cautious", s.OnDataLoss)
	}
	if s.TLS != nil && (s.TLS.Cert == "") != (s.TLS.Key == "") {
		return wrong("tls", "tls has only one of cert and key; a client certificate needs both")
	}
	return nil
}

// checkServers finds mistakes in which servers there are, and of what kind.
func (s *RedisStore) checkServers() *configError {
	given := s.URL != "" || len(s.Address) > 0
	switch {
	case s.Cluster && s.Sentinel:
		return wrong("sentinel", "both cluster and sentinel are given; a cluster needs no Sentinels: remove one")
	case s.Cluster && !given:
		return wrong("cluster", "a cluster has no default address; write for example: address host:6379, with one or more of its servers")
	case s.Sentinel && !given:
		return wrong("sentinel", "there is no default address for Sentinels; write for example: address host:26379, with one or more of them")
	case s.Sentinel && s.MasterName == "":
		return wrong("sentinel", "Sentinels know servers by the name of their master; write for example: master_name mymaster")
	case !s.several() && s.URL != "" && len(s.Address) > 0:
		return wrong("address", "both a URL and an address are given; write one of them, or cluster or sentinel as well")
	case !s.several() && len(s.Address) > 1:
		return wrong("address", "address has %d servers; write one of them, or cluster or sentinel as well", len(s.Address))
	case s.Cluster && s.DB != nil && *s.DB != 0:
		return wrong("db", "db %d: a cluster has database 0 only; remove db, and keep data apart by key_prefix", *s.DB)
	}
	for _, text := range []struct{ field, value string }{
		{"master_name", s.MasterName},
		{"sentinel_username", s.SentinelUsername},
		{"sentinel_password", s.SentinelPassword},
	} {
		if text.value != "" && !s.Sentinel {
			return wrong(text.field, "%s is for Sentinels; write sentinel as well, or remove %[1]s", text.field)
		}
	}
	if s.SentinelUsername != "" && s.SentinelPassword == "" {
		return wrong("sentinel_username", "there is a sentinel_username but no password; write sentinel_password, or remove sentinel_username")
	}
	return nil
}

// several reports whether there may be several addresses.
func (s *RedisStore) several() bool { return s.Cluster || s.Sentinel }

// checkTexts finds mistakes in texts without placeholders.
func (s *RedisStore) checkTexts() *configError {
	if problem := s.checkPlaceholders(); problem != nil {
		return problem
	}
	for _, address := range s.Address {
		if hasPlaceholder(address) {
			continue
		}
		if err := s.checkAddress(address); err != nil {
			return wrong("address", "%v", err)
		}
	}
	if s.KeyPrefix != "" && !hasPlaceholder(s.KeyPrefix) {
		const some = "localhost:6379" // in place of what is not being checked
		if err := (redis.Options{Address: some, KeyPrefix: s.KeyPrefix}).Validate(); err != nil {
			return wrong("key_prefix", "%v", err)
		}
	}
	if s.Username != "" && s.Password == "" && !hasPlaceholder(s.URL) {
		if o, _ := redis.ParseURL(s.URL); o.Password == "" {
			return wrong("username", "there is a user name but no password; write password, or remove username")
		}
	}
	if s.TLS != nil && (slices.ContainsFunc(s.Address, isSocket) || strings.HasPrefix(s.URL, "unix:")) {
		return wrong("tls", "TLS over a Unix socket is not supported; remove tls, or write host:port")
	}
	return nil
}

// checkAddress does not repeat the address: it may be a URL with a password.
func (s *RedisStore) checkAddress(address string) error {
	if s.several() && isSocket(address) {
		return errors.New("a Unix socket cannot be one of several servers; write host:port")
	}
	return redis.Options{Address: address}.Validate()
}

func isSocket(address string) bool {
	return strings.HasPrefix(address, "unix/") || strings.HasPrefix(address, "/")
}

// hasPlaceholder reports whether text can be judged only once its
// placeholders are expanded.
func hasPlaceholder(text string) bool { return strings.Contains(text, "{") }

// checkURL finds what does not go together with the fields: things that both
// give, where which of them counts would have to be guessed, and what is not
// for several servers. o is what raw, the URL, says.
func (s *RedisStore) checkURL(raw string, o redis.Options) *configError {
	switch {
	case o.DB != 0 && s.DB != nil:
		return wrong("db", "the database is given twice, in the URL and as db; remove one")
	case o.Username != "" && s.Username != "":
		return wrong("username", "the user name is given twice, in the URL and as username; remove one")
	case o.Password != "" && s.Password != "":
		return wrong("password", "the password is given twice, in the URL and as password; remove one")
	case s.several() && isSocket(o.Address):
		return wrong("store", "the URL is that of a Unix socket, which cannot be one of several servers; write redis://host:port")
	case s.Cluster && o.DB != 0:
		return wrong("store", "the URL has database %d: a cluster has database 0 only; remove it, and keep data apart by key_prefix", o.DB)
	case s.Sentinel:
		if u, err := url.Parse(strings.TrimSpace(raw)); err == nil && u.Port() == "" {
			// The default would be the port of a server.
			return wrong("store", "the URL has no port; write that of the Sentinel, usually 26379")
		}
	}
	return nil
}

// expansion puts the values of placeholders into texts.
type expansion struct{ repl *caddy.Replacer }

func (e expansion) expand(field, value string) (string, error) {
	expanded, err := e.repl.ReplaceOrErr(value, true, true)
	if err != nil {
		// The error names the placeholder, never a value.
		return "", fmt.Errorf("%s of the redis store: %v; set it, or remove the line", field, err)
	}
	return strings.TrimRight(expanded, "\r\n"), nil // a file's last line ends
}

// textOf is a field, and where its value belongs.
type textOf struct {
	field, value string
	set          *string
}

func (e expansion) expandAll(texts ...textOf) error {
	for _, text := range texts {
		if text.value == "" {
			continue
		}
		value, err := e.expand(text.field, text.value)
		if err != nil {
			return err
		}
		*text.set = value
	}
	return nil
}

// options expands the placeholders and puts the settings together.
func (s *RedisStore) options() (redis.Options, error) {
	e := expansion{caddy.NewReplacer()}
	o, err := s.access(e)
	if err != nil {
		return o, err
	}
	secret := ""
	if err := e.expandAll(
		textOf{"master_name", s.MasterName, &o.MasterName},
		textOf{"key_prefix", s.KeyPrefix, &o.KeyPrefix},
		textOf{"key_secret", s.KeySecret, &secret},
	); err != nil {
		return o, err
	}
	if secret != "" {
		o.KeySecret = []byte(secret)
	}
	if s.DB != nil {
		o.DB = *s.DB
	}
	if err := s.addServers(&o, e); err != nil {
		return o, err
	}
	o.Timeout, o.DialTimeout = time.Duration(s.Timeout), time.Duration(s.DialTimeout)
	o.PoolSize, o.QueueSize = s.PoolSize, s.QueueSize
	o.Instances = firstNonZero(s.AssumedInstances, 1)
	if s.changeable() {
		settings := *s
		settings.pooled = nil
		o.Renew = settings.renew
	}
	return o, o.Validate()
}

// addServers adds the addresses to what the URL says.
func (s *RedisStore) addServers(o *redis.Options, e expansion) error {
	var servers []string
	if o.Address != "" {
		servers = append(servers, o.Address)
	}
	for _, address := range s.Address {
		expanded, err := e.expand("address", address)
		if err != nil {
			return err
		}
		if err := s.checkAddress(expanded); err != nil {
			return fmt.Errorf("address of the redis store: %v", err)
		}
		servers = append(servers, expanded)
	}
	o.Address = ""
	switch {
	case s.Cluster:
		o.Cluster = servers
	case s.Sentinel:
		o.Sentinels = servers
	case len(servers) > 0:
		o.Address = servers[0]
	default:
		o.Address = "localhost:6379"
	}
	return nil
}

// access is the part of the options that may change while the store is open:
// who we are, and whom we trust. It has the rest of what the URL says, too.
func (s *RedisStore) access(e expansion) (redis.Options, error) {
	var o redis.Options
	if s.URL != "" {
		raw, err := e.expand("url", s.URL)
		if err != nil {
			return o, err
		}
		if o, err = redis.ParseURL(raw); err != nil {
			return o, err
		}
		if problem := s.checkURL(raw, o); problem != nil {
			return o, problem
		}
	}
	if err := e.expandAll(
		textOf{"username", s.Username, &o.Username},
		textOf{"password", s.Password, &o.Password},
		textOf{"sentinel_username", s.SentinelUsername, &o.SentinelUsername},
		textOf{"sentinel_password", s.SentinelPassword, &o.SentinelPassword},
	); err != nil {
		return o, err
	}
	if s.TLS != nil {
		config, err := s.TLS.config(o.TLS, e)
		if err != nil {
			return o, err
		}
		o.TLS = config
	}
	return o, nil
}

// renew reads the secrets again.
func (s *RedisStore) renew() (redis.Secrets, error) {
	o, err := s.access(expansion{caddy.NewReplacer()})
	if err != nil {
		return redis.Secrets{}, err
	}
	return redis.Secrets{
		Username: o.Username, Password: o.Password,
		SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
		TLS: o.TLS,
	}, nil
}

// changeable reports whether renew can find anything new.
func (s *RedisStore) changeable() bool {
	if s.TLS != nil && (s.TLS.CA != "" || s.TLS.Cert != "") {
		return true
	}
	return slices.ContainsFunc([]string{s.URL, s.Username, s.Password, s.SentinelUsername, s.SentinelPassword}, hasPlaceholder)
}

// config reads the files, and adds to base, which may be nil.
func (t *RedisTLS) config(base *tls.Config, e expansion) (*tls.Config, error) {
	config := base
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	config.InsecureSkipVerify = t.InsecureSkipVerify
	if t.ServerName != "" {
		name, err := e.expand("tls server_name", t.ServerName)
		if err != nil {
			return nil, err
		}
		config.ServerName = name
	}
	if t.CA != "" {
		path, err := e.expand("tls ca", t.CA)
		if err != nil {
			return nil, err
		}
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("tls ca of the redis store: %v", err)
		}
		if config.RootCAs, err = authorities(path, pem); err != nil {
			return nil, err
		}
	}
	if t.Cert != "" {
		cert, err := e.expand("tls cert", t.Cert)
		if err != nil {
			return nil, err
		}
		key, err := e.expand("tls key", t.Key)
		if err != nil {
			return nil, err
		}
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, pairError(err)
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
func (s *RedisStore) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	return s.pooled.Take(now, wait, requests, decisions)
}

// Return implements store.Store.
func (s *RedisStore) Refund(wait time.Duration, refunds []store.Refund) error {
	return s.pooled.Refund(wait, refunds)
}

// String implements store.Store.
func (s *RedisStore) String() string { return s.pooled.String() }

// FallbackSettings implements fallback.Configured.
func (s *RedisStore) FallbackSettings() fallback.Settings {
	return fallback.Settings{Cautious: s.OnDataLoss == dataLossCautious, Instances: s.AssumedInstances}
}

// Instances implements store.Shared.
func (s *RedisStore) Instances() int { return s.pooled.redis.Instances() }

// Watch implements store.Shared.
func (s *RedisStore) Watch(do func(store.Report)) (stop func()) { return s.pooled.redis.Watch(do) }

// Interface guards
var (
	_ store.Store         = (*MemoryStore)(nil)
	_ Starter             = (*MemoryStore)(nil)
	_ fallback.Configured = (*MemoryStore)(nil)
	_ store.Shared        = (*RedisStore)(nil)
	_ fallback.Configured = (*RedisStore)(nil)
)
