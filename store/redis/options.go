package redis

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
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
	// current secrets: passwords are rotated, and certificates expire.
	// If it fails, the previous secrets are used.
	Renew func() (Secrets, error)
	// Instances is how many processes use the store, before it is known, 1 to
	// 10,000. The default is 1.
	Instances int
	// KeyPrefix begins every key; the default is "drl". It holds no
	// braces, spaces or control characters, and at most 64 bytes.
	KeyPrefix string
	// KeySecret, if set, keeps a reader of the keys from finding out, by
	// trying, which clients they stand for. Stores that share counts share it.
	KeySecret []byte
	// PoolSize is the most connections there are at a time, and so the
	// number of batches under way, 1 to 1000.
	PoolSize int
	// QueueSize is the most calls that wait for a connection to be free.
	// Calls beyond it fail at once. 1 to 1,000,000.
	QueueSize int
	// Timeout is how long the server has at least to reply once a call was
	// sent, even if the call waits less. A connection that misses it is
	// closed, so it should be well above what a server takes in a bad moment.
	// Calls that wait for more than a third of it get three times their wait.
	// 100 ms to 30 s.
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

// An OptionError is a mistake in one field of [Options].
type OptionError struct {
	// Field is its name.
	Field string
	// Element is the place in the list, from 1, if the mistake is in one
	// element of Cluster or Sentinels; else 0.
	Element int

	format string // continues the name of the field
	args   []any
}

// fieldName is the name of a field of Options in the text of an error.
type fieldName string

// Error repeats nothing that may be a secret.
func (e *OptionError) Error() string {
	return "redis: " + e.Text(func(field string) string {
		if field == e.Field && e.Element > 0 {
			return fmt.Sprintf("%s[%d]", field, e.Element-1)
		}
		return field
	})
}

// Text is the error in the words of a program that has its own names for the
// fields of Options.
func (e *OptionError) Text(name func(field string) string) string {
	args := slices.Clone(e.args)
	for i, arg := range args {
		if field, ok := arg.(fieldName); ok {
			args[i] = name(string(field))
		}
	}
	return name(e.Field) + " " + fmt.Sprintf(e.format, args...)
}

func wrongOption(field, format string, args ...any) *OptionError {
	return &OptionError{Field: field, format: format, args: args}
}

// Validate reports the first mistake in the options as an [*OptionError].
func (o Options) Validate() error {
	for _, validate := range []func() *OptionError{o.validateServers, o.validateAccess, o.validateSizes} {
		if mistake := validate(); mistake != nil {
			return mistake
		}
	}
	return nil
}

// Bounds of [Options].
const (
	MaxInstances = 10_000

	maxPoolSize  = 1000
	maxQueueSize = 1_000_000
	maxKeyPrefix = 64 // bytes
)

// validateSizes checks what has bounds.
func (o Options) validateSizes() *OptionError {
	for _, size := range []struct {
		field     string
		value, to int
	}{{"PoolSize", o.PoolSize, maxPoolSize}, {"QueueSize", o.QueueSize, maxQueueSize}, {"Instances", o.Instances, MaxInstances}} {
		if size.value < 0 || size.value > size.to {
			return wrongOption(size.field, "%d is not between 1 and %d", size.value, size.to)
		}
	}
	for _, timeout := range []struct {
		field string
		value time.Duration
	}{{"Timeout", o.Timeout}, {"DialTimeout", o.DialTimeout}} {
		if timeout.value != 0 && (timeout.value < MinTimeout || timeout.value > MaxTimeout) {
			return wrongOption(timeout.field, "%v is not between %v and %v", timeout.value, MinTimeout, MaxTimeout)
		}
	}
	return nil
}

// validateAccess checks who we are for the servers, and which data we use.
func (o Options) validateAccess() *OptionError {
	const lacks = "has no password; write %s as well, or remove it"
	switch {
	case o.Username != "" && o.Password == "":
		return wrongOption("Username", lacks, fieldName("Password"))
	case o.SentinelUsername != "" && o.SentinelPassword == "":
		return wrongOption("SentinelUsername", lacks, fieldName("SentinelPassword"))
	case o.DB < 0:
		return wrongOption("DB", "%d is negative; write 0 or above", o.DB)
	case o.DB > 0 && len(o.Cluster) > 0:
		return wrongOption("DB", "%d is not in a cluster, which has database 0 only; remove it, and keep data apart by %s", o.DB, fieldName("KeyPrefix"))
	case strings.ContainsFunc(o.KeyPrefix, notInPrefix):
		return wrongOption("KeyPrefix", "%q has a brace, a space or a control character; use letters, digits and punctuation", o.KeyPrefix)
	case len(o.KeyPrefix) > maxKeyPrefix:
		return wrongOption("KeyPrefix", "has %d bytes; %d is the most", len(o.KeyPrefix), maxKeyPrefix)
	}
	return nil
}

// validateServers checks what says where the servers are.
func (o Options) validateServers() *OptionError {
	const exclude = "and %s exclude each other; remove one"
	if len(o.Sentinels) == 0 {
		for _, text := range []struct{ field, value string }{
			{"MasterName", o.MasterName}, {"SentinelUsername", o.SentinelUsername}, {"SentinelPassword", o.SentinelPassword},
		} {
			if text.value != "" {
				return wrongOption(text.field, "is for Sentinels; write %s as well, or remove it", fieldName("Sentinels"))
			}
		}
	}
	switch {
	case len(o.Sentinels) > 0 && len(o.Cluster) > 0:
		return wrongOption("Sentinels", exclude, fieldName("Cluster"))
	case len(o.Sentinels) > 0 && o.Address != "":
		return wrongOption("Sentinels", exclude, fieldName("Address"))
	case len(o.Cluster) > 0 && o.Address != "":
		return wrongOption("Cluster", exclude, fieldName("Address"))
	case len(o.Cluster) > 0:
		return validateTCP("Cluster", o.Cluster)
	case len(o.Sentinels) > 0 && o.MasterName == "":
		return wrongOption("MasterName", "is missing; write the name under which the Sentinels know the master, for example mymaster")
	case len(o.Sentinels) > 0:
		return validateTCP("Sentinels", o.Sentinels)
	}
	_, _, mistake := o.endpoint()
	return mistake
}

func validateTCP(field string, addresses []string) *OptionError {
	for i, address := range addresses {
		network, _, mistake := Options{Address: address}.endpoint()
		switch {
		case mistake != nil:
			mistake = wrongOption(field, "is not of the form host:port, with a port from 1 to 65535")
		case network != "tcp":
			mistake = wrongOption(field, "is a Unix socket, which cannot be one of several servers; write host:port")
		default:
			continue
		}
		mistake.Element = i + 1
		return mistake
	}
	return nil
}

func notInPrefix(r rune) bool {
	return r == '{' || r == '}' || r == unicode.ReplacementChar || unicode.IsSpace(r) || !unicode.IsPrint(r)
}

// endpoint returns the network and the address to dial.
func (o Options) endpoint() (network, address string, mistake *OptionError) {
	const remedy = "; write host:port, such as localhost:6379, or unix//path/to.sock"
	if o.Address == "" {
		return "", "", wrongOption("Address", "is missing"+remedy)
	}
	path, unix := strings.CutPrefix(o.Address, "unix/")
	if unix || strings.HasPrefix(path, "/") {
		if o.TLS != nil {
			return "", "", wrongOption("TLS", "cannot be used on a Unix socket; remove it, or write host:port")
		}
		if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
			return "", "", wrongOption("Address", "is a Unix socket whose path is not absolute"+remedy)
		}
		return "unix", path, nil
	}
	// What is no address may be a URL with a password: it is not repeated.
	host, port, err := net.SplitHostPort(o.Address)
	if err != nil || host == "" || strings.ContainsAny(host, "@/ ") {
		return "", "", wrongOption("Address", "is not of the form host:port"+remedy)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", wrongOption("Address", "has a port that is not a number from 1 to 65535"+remedy)
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
	network, address, mistake := o.endpoint()
	if mistake != nil {
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

// Identity names the data that the options lead to, and the user that reads and
// writes it: stores of one identity share their counts. Options that only say
// how to get there, such as TLS, timeouts and sizes, are no part of it. The
// secrets are in it as a hash. So it is fit for comparing, but not for logs, as
// a weak password can be guessed from its hash: see [Store.String].
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
