package redis

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Defaults of [Options].
const (
	DefaultKeyPrefix   = "drl"
	DefaultPoolSize    = 8
	DefaultQueueSize   = 4096
	DefaultTimeout     = 300 * time.Millisecond
	DefaultDialTimeout = 500 * time.Millisecond
)

// Options says which data a store keeps and how it gets there. The zero value
// of every field is its default, but for one of Address, Cluster and
// Sentinels.
type Options struct {
	// Address is one server: host:port, or the path of a Unix socket, plain
	// or in Caddy's form: unix//run/redis.sock.
	Address string
	// Cluster is some servers of a Redis Cluster, as host:port. They tell
	// which others there are.
	Cluster []string
	// Sentinels are the Sentinels, as host:port, that know the server which
	// is the master of the name MasterName.
	Sentinels  []string
	MasterName string
	// SentinelUsername and SentinelPassword are for the Sentinels what
	// Username and Password are for the servers.
	SentinelUsername, SentinelPassword string
	// Username and Password authenticate every connection. A password
	// without a user name is the default user's.
	Username, Password string
	// DB is the number of the database.
	DB int
	// TLS encrypts the connections unless it is nil. The name the server's
	// certificate must have is the host's, if it is not set here.
	TLS *tls.Config
	// Renew, if it is set, is called before each connection is made, for the
	// secrets that hold then: passwords are rotated, and certificates expire.
	// If it fails, the secrets of before are used.
	Renew func() (Secrets, error)
	// Instances is how many processes use the store, before it is known.
	// The default is 1.
	Instances int
	// KeyPrefix begins every key; the default is "drl". It holds no
	// braces, spaces or control characters.
	KeyPrefix string
	// KeySecret, if set, keeps whoever can read the keys from finding out,
	// by trying, which clients they stand for. Stores that share counts
	// share it.
	KeySecret []byte
	// PoolSize is the most connections there are at a time, and so the
	// number of batches under way.
	PoolSize int
	// QueueSize is the most calls that wait for a connection to be free.
	// Calls beyond it fail at once.
	QueueSize int
	// Timeout is how long the server has at least to answer once a call was
	// sent, even if its request waits less: a connection that misses it is
	// closed, so that it should be well above what a server takes in a bad
	// moment. Calls that wait for more than a third of it get three times
	// their wait. 100 ms to 30 s.
	Timeout time.Duration
	// DialTimeout is how long opening a connection may take, TLS included.
	// 100 ms to 30 s.
	DialTimeout time.Duration
}

// Secrets are the fields of [Options] of the same names.
type Secrets struct {
	Username, Password                 string
	SentinelUsername, SentinelPassword string
	TLS                                *tls.Config
}

// Validate reports the first thing that is wrong with the options, without
// repeating what may be a secret.
func (o Options) Validate() error {
	if err := o.validateServers(); err != nil {
		return err
	}
	switch {
	case o.DB < 0:
		return fmt.Errorf("redis: database %d is negative", o.DB)
	case o.Username != "" && o.Password == "":
		return errors.New("redis: there is a user name but no password; set the password, or remove the user name")
	case strings.ContainsFunc(o.KeyPrefix, notInPrefix):
		return fmt.Errorf("redis: key prefix %q has a brace, a space or a control character; use letters, digits and punctuation", o.KeyPrefix)
	case len(o.KeyPrefix) > 64:
		return fmt.Errorf("redis: key prefix of %d bytes; 64 is the most", len(o.KeyPrefix))
	case o.PoolSize < 0 || o.PoolSize > 1024:
		return fmt.Errorf("redis: pool size %d is not between 1 and 1024", o.PoolSize)
	case o.QueueSize < 0 || o.QueueSize > 1<<20:
		return fmt.Errorf("redis: queue size %d is not between 1 and %d", o.QueueSize, 1<<20)
	case o.Timeout != 0 && (o.Timeout < MinTimeout || o.Timeout > MaxTimeout):
		return fmt.Errorf("redis: timeout %v is not between %v and %v", o.Timeout, MinTimeout, MaxTimeout)
	case o.Instances < 0 || o.Instances > maxInstances:
		return fmt.Errorf("redis: %d instances are not between 1 and %d", o.Instances, maxInstances)
	case o.DialTimeout != 0 && (o.DialTimeout < MinTimeout || o.DialTimeout > MaxTimeout):
		return fmt.Errorf("redis: dial timeout %v is not between %v and %v", o.DialTimeout, MinTimeout, MaxTimeout)
	}
	return nil
}

// maxInstances bounds Options.Instances.
const maxInstances = 10_000

// validateServers checks what says where the servers are.
func (o Options) validateServers() error {
	several := 0
	for _, given := range []bool{o.Address != "", len(o.Cluster) > 0, len(o.Sentinels) > 0} {
		if given {
			several++
		}
	}
	switch {
	case several > 1:
		return errors.New("redis: a single server, a cluster and sentinels exclude each other; name one of them")
	case len(o.Sentinels) == 0 && (o.MasterName != "" || o.SentinelUsername != "" || o.SentinelPassword != ""):
		return errors.New("redis: there is a master name, or a user name or password for sentinels, but no sentinels; name them, or remove it")
	case o.SentinelUsername != "" && o.SentinelPassword == "":
		return errors.New("redis: there is a user name for the sentinels but no password; set the password, or remove the user name")
	case len(o.Cluster) > 0:
		if o.DB != 0 {
			return fmt.Errorf("redis: a cluster has no database %d, only 0; use a key prefix to keep data apart", o.DB)
		}
		return validateTCP("cluster", o.Cluster)
	case len(o.Sentinels) > 0:
		if o.MasterName == "" {
			return errors.New("redis: there are sentinels but no name of a master; set it as in sentinel.conf, such as mymaster")
		}
		return validateTCP("sentinel", o.Sentinels)
	}
	_, _, err := o.endpoint()
	return err
}

func validateTCP(what string, addresses []string) error {
	for i, address := range addresses {
		if network, _, err := (Options{Address: address}).endpoint(); err != nil || network != "tcp" {
			return fmt.Errorf("redis: %s address %d of %d is not of the form host:port", what, i+1, len(addresses))
		}
	}
	return nil
}

func notInPrefix(r rune) bool {
	return r == '{' || r == '}' || r == unicode.ReplacementChar || unicode.IsSpace(r) || !unicode.IsPrint(r)
}

// endpoint returns the network and the address to dial.
func (o Options) endpoint() (network, address string, err error) {
	const remedy = "write host:port, such as localhost:6379, or unix//path/to.sock"
	if o.Address == "" {
		return "", "", errors.New("redis: there is no address; " + remedy)
	}
	path, unix := strings.CutPrefix(o.Address, "unix/")
	if unix || strings.HasPrefix(path, "/") {
		if o.TLS != nil {
			return "", "", errors.New("redis: TLS over a Unix socket is not supported; remove one of them")
		}
		if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
			return "", "", errors.New("redis: the path of a Unix socket is not absolute; " + remedy)
		}
		return "unix", path, nil
	}
	// What is no address may be a URL with a password: it is not repeated.
	host, port, err := net.SplitHostPort(o.Address)
	if err != nil || host == "" || strings.ContainsAny(host, "@/ ") {
		return "", "", errors.New("redis: the address is not of the form host:port; " + remedy)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", errors.New("redis: the port of the address is not a number from 1 to 65535; " + remedy)
	}
	return "tcp", o.Address, nil
}

// withDefaults fills in what is not set.
func (o Options) withDefaults() Options {
	if o.KeyPrefix == "" {
		o.KeyPrefix = DefaultKeyPrefix
	}
	if o.PoolSize == 0 {
		o.PoolSize = DefaultPoolSize
	}
	if o.QueueSize == 0 {
		o.QueueSize = DefaultQueueSize
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = DefaultDialTimeout
	}
	return o
}

// where says where the data are, in one way whatever the order in which the
// servers are named.
func (o Options) where() (network, address string) {
	switch {
	case len(o.Cluster) > 0:
		return "cluster", "cluster " + inOrder(o.Cluster)
	case len(o.Sentinels) > 0:
		return "sentinel", "sentinel " + o.MasterName + " " + inOrder(o.Sentinels)
	}
	network, address, err := o.endpoint()
	if err != nil {
		address = o.Address
	}
	return network, address
}

// inOrder is a list of addresses, each once.
func inOrder(addresses []string) string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(addresses))), " ")
}

// name describes the data for people: where it is, without secrets.
func (o Options) name() string {
	name := "redis " + o.Address
	if o.Address == "" {
		_, where := o.where()
		name += where
	}
	if len(o.Cluster) == 0 {
		name += " db " + strconv.Itoa(o.DB)
	}
	if o.KeyPrefix != "" && o.KeyPrefix != DefaultKeyPrefix {
		name += " prefix " + o.KeyPrefix
	}
	return name
}

// Identity names the data that the options lead to, and whoever reads and
// writes it: stores of one identity share their counts. Options that only say
// how to get there, such as TLS, timeouts and sizes, are no part of it. The
// secrets are in it as a hash, so that it is fit for comparing but, since a
// weak password can be guessed from its hash, not for logs: see
// [Store.String].
func (o Options) Identity() string {
	hash := sha256.New()
	for _, secret := range [][]byte{[]byte(o.Username), []byte(o.Password), o.KeySecret} {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(secret)))
		hash.Write(size[:])
		hash.Write(secret)
	}
	o = o.withDefaults()
	network, address := o.where()
	return fmt.Sprintf("redis %s %q db %d prefix %q credentials %s", network, address, o.DB, o.KeyPrefix,
		base64.RawURLEncoding.EncodeToString(hash.Sum(nil)))
}
