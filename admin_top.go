package distributedratelimit

import (
	"cmp"
	"net/http"
	"strings"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/busiest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
)

// provisionTop has the keys of the handler's zones counted, for the admin API. That
// needs log_key, since answers hold the keys. Handlers with one zone count together.
func (h *Handler) provisionTop() {
	if !h.LogKey {
		return
	}
	for _, zone := range h.Zones {
		if zone.same.top == nil {
			zone.same.top = busiest.New(time.Now())
		}
	}
}

// countKey counts the key of a decision.
func (e *evaluation) countKey(v *verdict, refused bool) {
	if !e.h.LogKey || v.client == "" {
		return
	}
	top := v.zone.same.top
	if top.Count(time.Now(), v.client, refused) && !v.zone.key.Decodable(v.client) {
		top.Name(v.client, v.zone.readable(&e.keys, e.charges.client, v.client))
	}
}

// topAnswer is the answer to GET top.
type topAnswer struct {
	limitAnswer
	// Over is how far back the counts reach, in seconds.
	Over float64  `json:"over"`
	Keys []topKey `json:"keys"`
}

// topKey is one of the busiest keys of this instance.
type topKey struct {
	Key     string `json:"key"`
	Granted int64  `json:"granted"`
	// Refused is how often it was refused, or would have been in the dry run.
	Refused int64 `json:"refused"`
	// Missed is how many requests may have come besides, at most.
	Missed int64 `json:"missed,omitempty"`
}

const (
	topKeys    = 20
	maxTopKeys = 500
)

// adminTop is GET top.
func adminTop(c *adminCall) (any, error) {
	p, err := c.params("zone", "n")
	if err != nil {
		return nil, err
	}
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	if c.zone = p["zone"]; c.zone == "" {
		return nil, adminError(http.StatusBadRequest, "zone is missing; write zone= and one of: %s", strings.Join(app.zoneNames(), ", "))
	}
	z, err := c.limit(p)
	if err != nil {
		return nil, err
	}
	n := int64(topKeys)
	if _, ok := p["n"]; ok {
		if n, err = p.number("n", "20"); err != nil {
			return nil, err
		}
		if n < 1 || n > maxTopKeys {
			return nil, adminError(http.StatusBadRequest, "n=%d is not between 1 and %d", n, maxTopKeys)
		}
	}
	if !z.logKey() {
		return nil, adminError(http.StatusConflict, "the keys of zone %s are not listed, as they may be secrets: write log_key into the block of each distributed_ratelimit that has the zone, and reload; from then on they are counted", z.Name)
	}
	busy, over := z.top.Top(time.Now(), int(n))
	answer := &topAnswer{limitAnswer: z.where(), Over: seconds(over), Keys: []topKey{}}
	for _, k := range busy {
		name, ok := z.key.Decode(k.Key)
		if !ok {
			name = cmp.Or(k.Name, keys.Hex(k.Key))
		}
		answer.Keys = append(answer.Keys, topKey{Key: name, Granted: k.Granted, Refused: k.Refused, Missed: k.Missed})
	}
	return answer, nil
}

// zoneNames lists the names of the zones.
func (a *App) zoneNames() (names []string) {
	for _, z := range a.usedZones() {
		if len(names) == 0 || names[len(names)-1] != z.Name {
			names = append(names, z.Name)
		}
	}
	return names
}
