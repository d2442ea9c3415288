package distributedratelimit

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
)

// usedZone is a limit of the running configuration: the zone that stands for all zones
// of this name, and who uses it.
type usedZone struct {
	*Zone
	store    string     // name of the data behind its store
	backend  *backend   // of the first handler
	handlers []*Handler // that have it
}

// logKey reports whether every handler that has the zone logs keys, so that answers may
// list them.
func (z *usedZone) logKey() bool {
	return !slices.ContainsFunc(z.handlers, func(h *Handler) bool { return !h.LogKey })
}

// registerHandler makes a handler known to the admin API.
func (a *App) registerHandler(h *Handler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handlers = append(a.handlers, h)
}

// usedZones lists the limits of the configuration, by name, then store, the one in force
// before the dry run.
func (a *App) usedZones() []*usedZone {
	a.mu.Lock()
	defer a.mu.Unlock()
	byZone := make(map[*Zone]*usedZone)
	var list []*usedZone
	for _, h := range a.handlers {
		for _, z := range h.Zones {
			used := byZone[z.same]
			if used == nil {
				used = &usedZone{Zone: z.same, store: h.backend.name, backend: h.backend}
				byZone[z.same] = used
				list = append(list, used)
			}
			used.handlers = append(used.handlers, h)
		}
	}
	slices.SortFunc(list, func(a, b *usedZone) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.store, b.store), strings.Compare(a.storeName, b.storeName))
	})
	return list
}

// running returns the running app, or the error that there is none.
func (c *adminCall) running() (*App, error) {
	if c.app == nil {
		return nil, adminError(http.StatusServiceUnavailable, "%v", errNotRunning)
	}
	return c.app, nil
}

// zones returns the limits that the call is about, by the zone in its path and perhaps
// the parameter store: one, or two if one is in force and the other one a dry run. The
// first one is in force then.
func (c *adminCall) zones() ([]*usedZone, error) { return c.zonesIn(c.URL.Query().Get("store")) }

// zonesIn is zones for the name of a store, "" for whichever.
func (c *adminCall) zonesIn(wanted string) ([]*usedZone, error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	var found []*usedZone
	var names, stores []string
	for _, z := range app.usedZones() {
		if !slices.Contains(names, z.Name) {
			names = append(names, z.Name)
		}
		if z.Name != c.zone {
			continue
		}
		if !slices.Contains(stores, z.store) {
			stores = append(stores, z.store)
		}
		if wanted == "" || wanted == z.store {
			found = append(found, z)
		}
	}
	switch {
	case len(stores) == 0:
		return nil, adminError(http.StatusNotFound, "no zone is called %q; there are: %s", c.zone, strings.Join(names, ", "))
	case len(found) == 0:
		return nil, adminError(http.StatusNotFound, "zone %q is not in a store called %q, but in: %s", c.zone, wanted, strings.Join(stores, ", "))
	case wanted == "" && len(stores) > 1:
		return nil, adminError(http.StatusBadRequest, "zone %q is in several stores; say which one, with the parameter store: %s", c.zone, strings.Join(stores, ", "))
	}
	return found, nil
}
