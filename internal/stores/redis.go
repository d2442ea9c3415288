package stores

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"
)

func init() {
	caddy.RegisterModule(new(Redis))
}

// Redis counts in Redis, shared by all instances that point at it: in one
// server, in a cluster, or in the master that Sentinels name. Redis need not
// be up for the configuration to start.
//
// Every text may hold placeholders, such as {env.REDIS_URL} or
// {file./run/secrets/redis}; they are expanded when the configuration is
// loaded, and one that is unset or empty is an error. User names, passwords and
// the URL are expanded again for each new connection, and the files of TLS are
// read again, so that secrets may be replaced without a reload. If that fails,
// the previous secrets are used.
type Redis struct {
	// Where the server is, as redis://[user:password@]host[:port][/db],
	// rediss:// (TLS) or unix://[user:password@]/path[?db=n]. The fields below
	// add to it; give each thing once. With a cluster or Sentinels it has the
	// first of the addresses.
	URL string `json:"url,omitempty"`

	// The server as host:port, or unix//path of a socket; several only with a
	// cluster or Sentinels. Default: localhost:6379, but none with a cluster
	// or Sentinels.
	Address []string `json:"address,omitempty"`

	// The servers are a Redis Cluster. The addresses name some of its servers,
	// which know the others.
	Cluster bool `json:"cluster,omitempty"`

	// The addresses name Sentinels, which know the server.
	Sentinel bool `json:"sentinel,omitempty"`

	// The name under which the Sentinels know the server. They need it.
	MasterName string `json:"master_name,omitempty"`

	// The ACL user. Default: Redis's default user.
	Username string `json:"username,omitempty"`

	// The password. Use a placeholder: what stands here is part of the
	// configuration that Caddy shows.
	Password string `json:"password,omitempty"`

	// The user and the password for the Sentinels, if they require one.
	SentinelUsername string `json:"sentinel_username,omitempty"`
	SentinelPassword string `json:"sentinel_password,omitempty"`

	// The number of the database; a cluster has only 0. Default: 0.
	DB *int `json:"db,omitempty"`

	// What the names of all keys in Redis begin with. Default: drl.
	KeyPrefix string `json:"key_prefix,omitempty"`

	// A secret with which clients' keys are hashed, so that a reader of Redis
	// cannot test guesses of them. All instances need the same one;
	// changing it starts empty logs. Use a placeholder.
	KeySecret string `json:"key_secret,omitempty"`

	// Encrypts the connection.
	TLS *TLS `json:"tls,omitempty"`

	// The least time that an operation may take once it is sent, even if no
	// request is waiting; breaking it off costs the connection.
	// Default: 300ms, or three budgets if that is longer.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The longest time that making a connection may take. Default: 500ms.
	DialTimeout caddy.Duration `json:"dial_timeout,omitempty"`

	// The largest number of connections for decisions, to each server, 1 to
	// 1000. Default: 8; decisions share them.
	PoolSize int `json:"pool_size,omitempty"`

	// The largest number of decisions that wait to be sent to each server, 1
	// to 1,000,000. What comes on top is not sent: on_store_error decides it.
	// Default: 4096.
	QueueSize int `json:"queue_size,omitempty"`

	// Whether a busy key may be granted several units at once, a lease, which
	// this instance then spends without a call to Redis, and whether refusals
	// are remembered, for at most a second. The limits hold all the same.
	// false calls Redis for each request. Default: true.
	Lease *bool `json:"lease,omitempty"`

	// How many instances share the limits, 1 to 10,000, until that is known
	// from the store: while it is away, an instance that limits by itself
	// grants its share. A larger number that Caddy's storage remembers from
	// before the start counts instead. Default: 1.
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

// TLS configures TLS to Redis. All fields are optional.
type TLS struct {
	// A file with the certificates of the authorities to trust, in PEM.
	// Default: the system's.
	CA string `json:"ca,omitempty"`
	// Files with the client's certificate and its key, in PEM.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	// The name that the server's certificate must have. Default: the host.
	ServerName string `json:"server_name,omitempty"`
	// Believes any certificate. An attacker who intercepts the connection
	// then reads the password.
	InsecureSkipVerify bool `json:"insecure_skip_verify,omitempty"`
}

// The words of on_data_loss, see [Redis.OnDataLoss].
const (
	DataLossContinue = "continue"
	DataLossCautious = "cautious"
)

// CaddyModule returns the Caddy module information.
func (*Redis) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "distributed_ratelimit.stores.redis",
		New: func() caddy.Module { return new(Redis) },
	}
}

// Provision opens the store, without waiting for the server.
func (s *Redis) Provision(ctx caddy.Context) error {
	if mistake := s.check(); mistake != nil {
		return mistake
	}
	if option := s.literalSecret(); option != "" {
		ctx.Logger().Warn("a secret stands in the configuration itself, which caddy adapt and the admin API show; write a placeholder such as {env.REDIS_URL} or {file./run/secrets/redis} ({$REDIS_URL} is replaced before, and shown)",
			zap.String("option", option))
	}
	options, mistake := s.options(expansion{caddy.NewReplacer()})
	if mistake != nil {
		return mistake
	}
	s.poolKey = s.fingerprint(options)
	pooled, _, err := storePool.LoadOrNew(s.poolKey, func() (caddy.Destructor, error) {
		opened, err := redis.Open(options)
		if err != nil {
			return nil, err
		}
		if s.Lease != nil && !*s.Lease {
			return &pooledRedis{Steered: opened, redis: opened}, nil
		}
		leases := lease.New(opened, lease.Options{})
		return &pooledRedis{Steered: leases, leases: leases, redis: opened}, nil
	})
	if err != nil {
		return err
	}
	s.pooled = pooled.(*pooledRedis)
	return nil
}

// literalSecret names the first option that holds a secret as it is, "" if none
// does.
func (s *Redis) literalSecret() string {
	for _, secret := range []struct{ option, value string }{
		{"password", s.Password}, {"sentinel_password", s.SentinelPassword}, {"key_secret", s.KeySecret},
	} {
		if secret.value != "" && !settings.HasPlaceholder(secret.value) {
			return secret.option
		}
	}
	if s.URL != "" && !settings.HasPlaceholder(s.URL) {
		if o, err := redis.ParseURL(s.URL); err == nil && o.Password != "" {
			return "url"
		}
	}
	return ""
}

// pooledRedis is a store that is shared by configurations.
type pooledRedis struct {
	store.Steered
	leases *lease.Store // nil if there are none
	redis  *redis.Store
}

// leaseCloseTime is how long a reload or the shutdown may wait until what is
// left of leases is refunded. What is not counts until its window has passed.
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

// fingerprint names the data and the settings of the store, without its secrets.
func (s *Redis) fingerprint(o redis.Options) string {
	settings, err := json.Marshal(s)
	if err != nil {
		panic(err) // the configuration came from JSON
	}
	sum := sha256.Sum256(settings)
	return "redis " + o.Identity() + " " + hex.EncodeToString(sum[:])
}

// Cleanup releases the store. It is closed when the last configuration has
// released it.
func (s *Redis) Cleanup() error {
	if s.pooled == nil {
		return nil
	}
	_, err := storePool.Delete(s.poolKey)
	return err
}

// Take implements store.Store.
func (s *Redis) Take(now time.Time, wait time.Duration, requests []store.Request, decisions []store.Decision) error {
	return s.pooled.Take(now, wait, requests, decisions)
}

// Refund implements store.Store.
func (s *Redis) Refund(wait time.Duration, refunds []store.Refund) error {
	return s.pooled.Refund(wait, refunds)
}

// String implements store.Store.
func (s *Redis) String() string { return s.pooled.String() }

// FallbackSettings implements fallback.Configured.
func (s *Redis) FallbackSettings() fallback.Settings {
	return fallback.Settings{Cautious: s.OnDataLoss == DataLossCautious, Instances: s.AssumedInstances}
}

// AssumeCautious makes the store cautious after a loss, unless on_data_loss is given. It
// reports whether it did. It must be called before requests come.
func (s *Redis) AssumeCautious() bool {
	if s.OnDataLoss != "" {
		return false
	}
	s.OnDataLoss = DataLossCautious
	return true
}

// Same reports whether both use one open store, as they do with equal settings. What it
// tells of itself is then told by both.
func (s *Redis) Same(other *Redis) bool { return s.pooled == other.pooled }

// LeaseStats tells what leases hold. It reports false if the store takes none.
func (s *Redis) LeaseStats() (lease.Stats, bool) {
	if s.pooled.leases == nil {
		return lease.Stats{}, false
	}
	return s.pooled.leases.Stats(), true
}

// InHand is how many units of a lease the process may still spend of a key, while the
// server counts them as spent.
func (s *Redis) InHand(key store.Key, limit int64) int64 {
	if s.pooled.leases == nil {
		return 0
	}
	return s.pooled.leases.InHand(key, limit)
}

// TrafficStats tells of calls that wait and of round trips under way.
func (s *Redis) TrafficStats() redis.Stats { return s.pooled.redis.Stats() }

// RoundTrip is how long a round trip took lately, 0 if there was none.
func (s *Redis) RoundTrip() time.Duration { return s.pooled.redis.RoundTrip() }

// Inflight returns what limits requests in flight for all instances.
func (s *Redis) Inflight() inflight.Shared { return s.pooled.redis }

// HashKey hashes the key of a client, with the key_secret if there is one.
func (s *Redis) HashKey(client string) [16]byte { return s.pooled.redis.HashKey(client) }

// Instances implements store.Shared.
func (s *Redis) Instances() int { return s.pooled.redis.Instances() }

// Watch implements store.Shared.
func (s *Redis) Watch(do func(store.Report)) (stop func()) { return s.pooled.redis.Watch(do) }

// Amend implements store.Steered.
func (s *Redis) Amend(wait time.Duration, key store.Key, amendment store.Amendment) error {
	return s.pooled.Amend(wait, key, amendment)
}

// Post implements store.Steered.
func (s *Redis) Post(wait time.Duration, notice store.Notice, most int) error {
	return s.pooled.Post(wait, notice, most)
}

// Withdraw implements store.Steered.
func (s *Redis) Withdraw(wait time.Duration, class byte, name string) (found bool, err error) {
	return s.pooled.Withdraw(wait, class, name)
}

// WatchBoard implements store.Steered.
func (s *Redis) WatchBoard(do func([]store.Notice)) (stop func()) {
	return s.pooled.WatchBoard(do)
}

// Interface guards
var (
	_ store.Shared        = (*Redis)(nil)
	_ store.Steered       = (*Redis)(nil)
	_ fallback.Configured = (*Redis)(nil)
)
