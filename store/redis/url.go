package redis

import (
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
)

const escape = "; characters of a password other than letters, digits and -._~ are written in percent encoding, such as %40 for @, or the password is given by itself"

// ParseURL reads options from a URL:
//
//	redis://[[user]:password@]host[:port][/db]
//	rediss://...                               the same over TLS
//	unix://[[user]:password@]/path/to.sock[?db=n]
//
// A mistake in what the URL says is an [*OptionError]. Errors repeat nothing
// of the URL: the part that was misread may be a password, which is often the
// reason why it was misread.
func ParseURL(raw string) (Options, error) {
	if !strings.Contains(raw, "://") {
		return Options{}, errors.New("redis: what should be a URL has no scheme; write redis://host:port, or rediss:// for TLS")
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return Options{}, errors.New("redis: the URL cannot be read" + escape)
	}
	if u.Fragment != "" || strings.HasSuffix(raw, "#") {
		return Options{}, errors.New("redis: the URL has a # in it" + escape)
	}
	if u.Opaque != "" {
		return Options{}, errors.New("redis: the URL has no // after its scheme; write redis://host:port")
	}

	o := Options{Username: u.User.Username()}
	o.Password, _ = u.User.Password()
	if o.Username != "" && o.Password == "" {
		return Options{}, errors.New("redis: the URL has a user name but no password; a password alone is written as :password@host")
	}
	db, err := o.serverOf(u)
	if err != nil {
		return Options{}, err
	}
	if path := strings.Trim(u.Path, "/"); path != "" && u.Scheme != "unix" {
		if db != "" {
			return Options{}, errors.New("redis: the URL names its database twice, in its path and as db")
		}
		db = path
	}
	if db != "" {
		if o.DB, err = strconv.Atoi(db); err != nil {
			return Options{}, errors.New("redis: the database of the URL is not a number" + escape)
		}
	}
	return o, o.Validate()
}

// serverOf takes over the server of a URL, and returns the parameter db.
func (o *Options) serverOf(u *url.URL) (db string, err error) {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "", errors.New("redis: the part of the URL after the ? cannot be read" + escape)
	}
	db = query.Get("db")
	query.Del("db")
	if len(query) > 0 {
		return "", errors.New("redis: the URL has parameters other than db; other options have a name of their own" + escape)
	}
	switch u.Scheme {
	case "redis", "rediss":
		if u.Hostname() == "" {
			return "", errors.New("redis: the URL has no host; write redis://host:port")
		}
		o.Address = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "6379"))
		if u.Scheme == "rediss" {
			o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	case "unix":
		if u.Host != "" || u.Path == "" {
			return "", errors.New("redis: the path of a unix URL is not absolute; write unix:///path/to.sock")
		}
		o.Address = "unix/" + u.Path
	default:
		return "", errors.New("redis: the URL begins with none of redis://, rediss:// and unix://; write redis://host:port, or rediss:// for TLS")
	}
	return db, nil
}
