package stores

import (
	"slices"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
)

// UnmarshalCaddyfile parses:
//
//	memory {
//	    max_keys <n>
//	}
func (m *Memory) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name
	if d.NextArg() {
		return d.Errf("store memory takes no argument; remove %q", d.Val())
	}
	at := make(settings.Places)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := at.Once(d, ""); err != nil {
			return err
		}
		switch d.Val() {
		case "max_keys":
			if err := settings.ParseInteger(d, &m.MaxKeys); err != nil {
				return err
			}
			if m.MaxKeys == 0 {
				return d.Errf("max_keys 0 is not between 1 and %d", maxMaxKeys)
			}
		default:
			return d.Errf("unknown option %q of store memory; write max_keys", d.Val())
		}
	}
	if mistake := m.check(); mistake != nil {
		return at.Locate(d, mistake)
	}
	return nil
}

// UnmarshalCaddyfile parses:
//
//	redis [<url>] {
//	    address <host:port>...|unix/<path>
//	    cluster|sentinel
//	    master_name <s>
//	    username <s>
//	    password <s>
//	    sentinel_username <s>
//	    sentinel_password <s>
//	    db <n>
//	    key_prefix <s>
//	    key_secret <s>
//	    tls { ... }
//	    timeout <duration>
//	    dial_timeout <duration>
//	    pool_size <n>
//	    queue_size <n>
//	    lease on|off
//	    instances <n>
//	    on_data_loss continue|cautious
//	}
//
// Each address line adds servers.
func (s *Redis) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name
	start := *d
	switch args := d.RemainingArgs(); len(args) {
	case 0:
	case 1:
		s.URL = args[0]
	default:
		return d.Errf("store redis takes one URL, not %d arguments; other settings stand in its block", len(args))
	}
	at := make(settings.Places)
	at.Mark(&start, "", "store")
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() == "address" {
			at.Mark(d, "", "address")
		} else if err := at.Once(d, ""); err != nil {
			return err
		}
		if err := s.parseOption(d); err != nil {
			return err
		}
	}
	if mistake := s.check(); mistake != nil {
		return at.Locate(d, mistake)
	}
	return nil
}

// parseOption parses one option of the block.
func (s *Redis) parseOption(d *caddyfile.Dispenser) (err error) {
	switch d.Val() {
	case "address":
		return parseAddresses(d, &s.Address)
	case "cluster":
		return settings.ParseFlag(d, &s.Cluster)
	case "sentinel":
		return settings.ParseFlag(d, &s.Sentinel)
	case "master_name":
		return settings.ParseWord(d, &s.MasterName)
	case "sentinel_username":
		return settings.ParseWord(d, &s.SentinelUsername)
	case "sentinel_password":
		return settings.ParseWord(d, &s.SentinelPassword)
	case "username":
		return settings.ParseWord(d, &s.Username)
	case "password":
		return settings.ParseWord(d, &s.Password)
	case "db":
		s.DB = new(int)
		return settings.ParseInteger(d, s.DB)
	case "key_prefix":
		return settings.ParseWord(d, &s.KeyPrefix)
	case "key_secret":
		return settings.ParseWord(d, &s.KeySecret)
	case "tls":
		s.TLS, err = parseTLS(d)
		return err
	case "timeout":
		return settings.ParseDuration(d, &s.Timeout)
	case "dial_timeout":
		return settings.ParseDuration(d, &s.DialTimeout)
	case "pool_size":
		return parsePositive(d, &s.PoolSize)
	case "queue_size":
		return parsePositive(d, &s.QueueSize)
	case "lease":
		s.Lease, err = parseOnOff(d)
		return err
	case "instances":
		return parsePositive(d, &s.AssumedInstances)
	case "on_data_loss":
		return settings.ParseWord(d, &s.OnDataLoss)
	}
	return unknownRedisOption(d)
}

// unknownRedisOption is the error for a word that is no option. For options of
// Caddy's storage in Redis it says what to write here.
func unknownRedisOption(d *caddyfile.Dispenser) error {
	const known = "address, cluster, sentinel, master_name, username, password, sentinel_username, sentinel_password, " +
		"db, key_prefix, key_secret, tls, timeout, dial_timeout, pool_size, queue_size, lease, instances or on_data_loss"
	write := known
	switch d.Val() {
	case "host", "port":
		write = "address <host:port>"
	case "client_type":
		write = "cluster or sentinel, or nothing for one server"
	case "tls_enabled":
		write = "tls"
	case "tls_insecure":
		write = "tls { insecure_skip_verify }"
	case "tls_server_certs_pem", "tls_server_certs_path":
		write = "tls { ca <file> }"
	}
	return d.Errf("unknown option %q of store redis; write %s", d.Val(), write)
}

func parseAddresses(d *caddyfile.Dispenser, into *[]string) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Err("address needs a server; write for example: address localhost:6379")
	}
	if slices.Contains(args, "") {
		return d.Err("address is empty; write host:port, or remove it for the default")
	}
	*into = append(*into, args...)
	return nil
}

func parseOnOff(d *caddyfile.Dispenser) (*bool, error) {
	word, text := d.Val(), ""
	if err := settings.ParseWord(d, &text); err != nil {
		return nil, err
	}
	if text != "on" && text != "off" {
		return nil, d.Errf("%s %q is neither on nor off", word, text)
	}
	on := text == "on"
	return &on, nil
}

func parsePositive(d *caddyfile.Dispenser, into *int) error {
	word := d.Val()
	if err := settings.ParseInteger(d, into); err != nil {
		return err
	}
	if *into == 0 {
		return d.Errf("%s 0 makes no sense; write 1 or above, or remove it", word)
	}
	return nil
}

// parseTLS parses:
//
//	tls {
//	    ca <file>
//	    cert <file>
//	    key <file>
//	    server_name <s>
//	    insecure_skip_verify
//	}
func parseTLS(d *caddyfile.Dispenser) (*TLS, error) {
	if d.NextArg() {
		return nil, d.Errf("tls takes a block or nothing, not %q", d.Val())
	}
	t, at := new(TLS), make(settings.Places)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := at.Once(d, ""); err != nil {
			return nil, err
		}
		var err error
		switch d.Val() {
		case "ca":
			err = settings.ParseWord(d, &t.CA)
		case "cert":
			err = settings.ParseWord(d, &t.Cert)
		case "key":
			err = settings.ParseWord(d, &t.Key)
		case "server_name":
			err = settings.ParseWord(d, &t.ServerName)
		case "insecure_skip_verify":
			err = settings.ParseFlag(d, &t.InsecureSkipVerify)
		default:
			err = d.Errf("unknown option %q of tls; write ca, cert, key, server_name or insecure_skip_verify", d.Val())
		}
		if err != nil {
			return nil, err
		}
	}
	if mistake := t.checkFiles(); mistake != nil {
		return nil, at.Locate(d, mistake)
	}
	return t, nil
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*Memory)(nil)
	_ caddyfile.Unmarshaler = (*Redis)(nil)
)
