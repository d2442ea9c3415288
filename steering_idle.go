package distributedratelimit

import (
	"maps"
	"slices"
	"time"
)

// This file is what operators have set for zones that are not, or not as they were then, in
// the configuration. It stays on the board until it ends: the zone may come back.

// of is what is in force of a zone: all but the overrides that were made for a limit of
// another kind.
func (f *inForce) of(z *Zone) *inForce {
	if f == nil || !slices.ContainsFunc(slices.Collect(maps.Values(f.limits)), func(o override) bool { return o.window != z.window }) {
		return f
	}
	limits := maps.Clone(f.limits)
	maps.DeleteFunc(limits, func(_ string, o override) bool { return o.window != z.window })
	return &inForce{bans: f.bans, limits: limits}
}

// idle is why an override does not hold for the zone, "" if it does.
func (z *Zone) idle(o *override) string {
	switch {
	case o.window != z.window:
		return "it was set for " + kindText(o.window) + ", and the zone now has " + kindText(z.window)
	case z.tier == nil && o.plan != "":
		return "it was set for a plan, and the zone has none any more"
	case z.tier != nil && z.checkPlan(o.plan) != nil:
		return "it was set for a plan that the zone does not have"
	}
	return ""
}

// kindText is what a limit is about, by its window, or none.
func kindText(window time.Duration) string {
	if window == 0 {
		return "concurrent"
	}
	return "window " + windowText(window)
}

// notConfigured is why an override of a zone that the configuration does not have does not
// hold.
const notConfigured = "the configuration has no such zone"

// overridesByHand lists the overrides in the stores of the configuration, by store, zone and
// plan, those of zones that it does not have included, and why each is idle.
func (a *App) overridesByHand() (list []override, idle []string) {
	zones := a.usedZones()
	for _, b := range a.stores() {
		for _, o := range b.lasting.steering.allOverrides() {
			why := notConfigured
			if i := slices.IndexFunc(zones, func(z *usedZone) bool { return z.store == o.store && z.storeName == o.storeName }); i >= 0 {
				why = zones[i].idle(&o)
			}
			list, idle = append(list, o), append(idle, why)
		}
	}
	return list, idle
}
