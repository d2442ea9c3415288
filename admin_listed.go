package distributedratelimit

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// This file ends what is listed and cannot be named by a zone of the configuration, which
// knows what its keys mean: bans and overrides of zones that it does not have any more, and
// bans by their ids.

func (b *banByHand) where() limitAnswer {
	return limitAnswer{Zone: b.zone, Store: b.store, DryRun: b.dryRun}
}
func (o *override) where() limitAnswer {
	return limitAnswer{Zone: o.zone, Store: o.store, DryRun: o.dryRun}
}

// listedOverride is one override in the answer to GET overrides.
type listedOverride struct {
	limitAnswer
	overrideAnswer
}

// adminOverrides is GET overrides: those set by hand, on whatever instance.
func adminOverrides(c *adminCall) (any, error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	list := []listedOverride{}
	overrides, idle := app.overridesByHand()
	for i := range overrides {
		list = append(list, listedOverride{overrides[i].where(), overrides[i].answer(idle[i])})
	}
	return list, nil
}

func isNotFound(err error) bool {
	var e caddy.APIError
	return errors.As(err, &e) && e.HTTPStatus == http.StatusNotFound
}

// means reports whether a limit is the one that the call is about, whether the configuration
// has it or not.
func (c *adminCall) means(p params, of limitAnswer) bool {
	dryRun, err := p.flag("dry_run")
	_, asked := p["dry_run"]
	return err == nil && of.Zone == c.zone && (p["store"] == "" || p["store"] == of.Store) && (!asked || dryRun == of.DryRun)
}

// onlyOf returns the index of the only one of the limits that the call is about.
func onlyOf(what string, found []limitAnswer) (int, error) {
	if len(found) == 1 {
		return 0, nil
	}
	var names []string
	for _, of := range found {
		names = append(names, fmt.Sprintf("store=%s dry_run=%t", of.Store, of.DryRun))
	}
	return 0, adminError(http.StatusBadRequest, "%s is there several times; say which one, with the parameters store and dry_run: %s", what, strings.Join(names, ", "))
}

// unbanListed ends a ban that GET bans lists, by its key as that shows it, or by its id. What
// the key has used of its limit stays. missing is why there is no zone to ask, or nil.
func (c *adminCall) unbanListed(p params, missing error) (any, error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	id, byID := p["id"]
	key, byKey := p["key"]
	address, byAddress := p["client_ip"]
	if !byID && byKey == byAddress || byID && (byKey || byAddress) {
		return nil, adminError(http.StatusBadRequest, "write either key, client_ip or id, as GET bans shows them")
	}
	known := false
	var bans []banByHand
	var found []limitAnswer
	for _, b := range app.bansByHand() {
		if !c.means(p, b.where()) {
			continue
		}
		known = true
		if byID && b.id == id || b.key != "" && (byKey && b.key == key || byAddress && (b.key == address || b.key == keys.StandIn(address))) {
			bans, found = append(bans, b), append(found, b.where())
		}
	}
	switch {
	case len(bans) == 0 && !known && missing != nil:
		return nil, missing
	case len(bans) == 0:
		return nil, adminError(http.StatusNotFound, "no ban of zone %q is listed with this key or id; GET bans lists them, each with its id", c.zone)
	}
	i, err := onlyOf("the ban", found)
	if err != nil {
		return nil, err
	}
	gone, elsewhere, err := app.withdraw(bans[i].store, classBan, bans[i].name)
	if err != nil {
		return nil, err
	}
	kept := true
	return &changeAnswer{limitAnswer: found[i], Key: bans[i].key, Found: &gone, Kept: &kept, HoldsElsewhereWithin: elsewhere}, nil
}

// endOverrideListed ends an override that GET overrides lists. missing is why there is no zone
// to ask.
func (c *adminCall) endOverrideListed(p params, missing error) (any, error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	var plans []string
	var overrides []override
	var found []limitAnswer
	all, _ := app.overridesByHand()
	for _, o := range all {
		if !c.means(p, o.where()) {
			continue
		}
		if plans = append(plans, o.plan); o.plan == p["plan"] {
			overrides, found = append(overrides, o), append(found, o.where())
		}
	}
	switch {
	case len(plans) == 0:
		return nil, missing
	case len(overrides) == 0:
		slices.Sort(plans)
		return nil, adminError(http.StatusNotFound, "there is no such override of zone %q, which the configuration does not have; there are some of the plans: %s", c.zone, bounded(strings.Join(plans, ", ")))
	}
	i, err := onlyOf("the override", found)
	if err != nil {
		return nil, err
	}
	gone, elsewhere, err := app.withdraw(found[i].Store, classOverride, overrides[i].storeName+"\x00"+overrides[i].plan)
	if err != nil {
		return nil, err
	}
	return &overrideChange{limitAnswer: found[i], Plan: p["plan"], Found: &gone, HoldsElsewhereWithin: elsewhere}, nil
}

// withdraw takes a notice off the board of a store of the configuration.
func (a *App) withdraw(name string, class byte, notice string) (found bool, elsewhere string, err error) {
	for _, b := range a.stores() {
		s, ok := b.store.(store.Steered)
		if !ok || b.name != name {
			continue
		}
		if found, err = s.Withdraw(steerTime, class, notice); err != nil {
			return false, "", steeringError(fmt.Errorf("withdrawing it: %w", err))
		}
		return found, b.elsewhere(), nil
	}
	return false, "", adminError(http.StatusNotFound, "the configuration has no store called %q", name)
}
