package settings

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// ProvisionAlone sets up a module outside of any configuration, to see whether
// it can be, and lets go of it. Errors do not name the module.
func ProvisionAlone(id string, raw json.RawMessage) (any, error) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	module, err := ctx.LoadModuleByID(id, raw)
	if err != nil {
		text := strings.TrimPrefix(err.Error(), "provision ")
		return nil, errors.New(strings.TrimPrefix(text, id+": "))
	}
	return module, nil
}

// WriteRanges is the remedy for ranges of addresses that do not parse.
const WriteRanges = "write addresses, ranges such as 10.0.0.0/8, or private_ranges"

// LooksLikeRange reports whether a word is an address or a range of them, so that it
// may be an argument whose option is missing.
func LooksLikeRange(word string) bool {
	if word == "private_ranges" {
		return true
	}
	if _, err := netip.ParsePrefix(word); err == nil {
		return true
	}
	_, err := netip.ParseAddr(word)
	return err == nil
}
