package distributedratelimit

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// holdsElsewhere is how long it takes until the other instances follow what was changed by
// hand: they ask the store once a second, and it has a quarter of one to answer.
const holdsElsewhere = 1250 * time.Millisecond

// maxAdminBody bounds the bodies of calls, in bytes.
const maxAdminBody = 1 << 20

// params are the parameters of a call: those of its URL, and of a JSON object in its
// body. Caddy logs the URL of each call to the admin endpoint: a key that is a secret
// belongs into the body.
type params map[string]string

// params reads the parameters, of which only those that are named may be there: one
// that is misspelt would be left out silently.
func (c *adminCall) params(names ...string) (params, error) {
	p := make(params)
	add := func(name, value string) error {
		known := name == "store" || name == "dry_run"
		for _, n := range names {
			known = known || n == name
		}
		if _, twice := p[name]; twice {
			return adminError(http.StatusBadRequest, "the parameter %q is there twice; write it once", name)
		}
		if !known {
			return adminError(http.StatusBadRequest, "there is no parameter %q here; there are: %s", name, strings.Join(append(names, "store", "dry_run"), ", "))
		}
		p[name] = value
		return nil
	}
	query, err := url.ParseQuery(c.URL.RawQuery)
	if err != nil { // it might hold a part of a key
		return nil, adminError(http.StatusBadRequest, "the parameters in the URL cannot be read; write %%25 for a percent sign and %%3B for a semicolon, or all of them into a JSON object in the body")
	}
	for name, values := range query {
		for _, value := range values {
			if err := add(name, value); err != nil {
				return nil, err
			}
		}
	}
	body, err := c.object()
	if err != nil {
		return nil, err
	}
	for name, value := range body {
		if err := add(name, value); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// object is the JSON object in the body, of texts. Without a body it is empty.
func (c *adminCall) object() (map[string]string, error) {
	body, err := io.ReadAll(io.LimitReader(c.Body, maxAdminBody+1))
	switch {
	case err != nil:
		return nil, adminError(http.StatusBadRequest, "reading the body: %v", err)
	case len(body) > maxAdminBody:
		return nil, adminError(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", maxAdminBody)
	case len(body) == 0:
		return nil, nil
	}
	object := make(map[string]string)
	if json.Unmarshal(body, &object) != nil { // the error might hold a key
		return nil, adminError(http.StatusBadRequest, `the body is no JSON object of texts; write the parameters into the URL, or for example {"key": "192.0.2.7"}`)
	}
	return object, nil
}

// limit is the one limit that the call is about.
func (c *adminCall) limit(p params) (*usedZone, error) {
	dryRun, err := p.flag("dry_run")
	if err != nil {
		return nil, err
	}
	zones, err := c.zonesIn(p["store"])
	if err != nil {
		return nil, err
	}
	if _, asked := p["dry_run"]; !asked {
		return zones[0], nil
	}
	for _, z := range zones {
		if z.DryRun == dryRun {
			return z, nil
		}
	}
	return nil, adminError(http.StatusNotFound, "zone %q is only there with dry_run=%t; leave the parameter out", c.zone, !dryRun)
}

func (p params) flag(name string) (bool, error) {
	text, ok := p[name]
	if !ok {
		return false, nil
	}
	value, err := strconv.ParseBool(text)
	if err != nil {
		return false, adminError(http.StatusBadRequest, "%s is %q; write true or false", name, text)
	}
	return value, nil
}

// lasting is how long something that is set by hand is to hold.
func (p params) lasting() (time.Duration, error) {
	text := p["for"]
	if text == "" {
		return 0, adminError(http.StatusBadRequest, "for is missing; write how long it is to hold, for example for=10m")
	}
	d, err := caddy.ParseDuration(text)
	switch {
	case err != nil:
		return 0, adminError(http.StatusBadRequest, "for=%s is no length of time; write for example 90s, 10m, 1h30m or 30d", bounded(text))
	case d < time.Second || d > store.MaxWindow:
		return 0, adminError(http.StatusBadRequest, "for=%s is not between 1s and 30d", bounded(text))
	}
	return d.Truncate(time.Microsecond), nil
}

// key is the key that the parameters name, and its readable form.
func (p params) key(z *usedZone) (key, readable string, err error) {
	text, byKey := p["key"]
	address, byAddress := p["client_ip"]
	switch {
	case byKey == byAddress:
		return "", "", adminError(http.StatusBadRequest, "write either key, the key as explain and the log show it, or client_ip, a client's address")
	case byAddress:
		key, err = z.key.FindAddress(address)
	default:
		key, err = z.key.Find(text)
	}
	if err != nil {
		return "", "", adminError(http.StatusBadRequest, "zone %s: %v", z.Name, err)
	}
	return key, z.key.ReadableOf(key, text), nil
}

// steeringError is an error of what operators change by hand, as the admin API tells it.
func steeringError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*steerError)):
		return adminError(http.StatusBadRequest, "%v", err)
	case errors.Is(err, store.ErrBoardFull):
		return adminError(http.StatusConflict, "%v", err)
	case errors.As(err, new(*store.Error)):
		return adminError(http.StatusServiceUnavailable, "%v", err)
	}
	return adminError(http.StatusInternalServerError, "%v", err)
}
