package distributedratelimit

import (
	"slices"
	"time"
)

// banAnswer is one ban in the answer to GET bans.
type banAnswer struct {
	limitAnswer
	// NotConfigured: the configuration has no such zone, and the ban holds when it is back.
	NotConfigured bool `json:"not_configured,omitempty"`
	// Key is missing unless all handlers with the zone have log_key. The ID names the ban
	// in any case.
	Key   string     `json:"key,omitempty"`
	ID    string     `json:"id"`
	Set   *time.Time `json:"set"`
	Until *time.Time `json:"until"`
}

// adminBans is GET bans: those set by hand, on whatever instance.
func adminBans(c *adminCall) (any, error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	list := []banAnswer{}
	zones := app.usedZones()
	for _, b := range app.bansByHand() {
		list = append(list, banAnswer{
			limitAnswer:   b.where(),
			NotConfigured: !slices.ContainsFunc(zones, func(z *usedZone) bool { return z.where() == b.where() }),
			Key:           b.key, ID: b.id, Set: momentOf(b.set), Until: momentOf(b.until),
		})
	}
	return list, nil
}

// adminBan is PUT zones/<zone>/bans.
func adminBan(c *adminCall) (any, error) {
	z, p, key, answer, err := c.change("for")
	if err != nil {
		return nil, err
	}
	lasts, err := p.lasting()
	if err != nil {
		return nil, err
	}
	// All instances can list the ban: only where keys are logged anyway does the
	// store get to know which one it is.
	readable := ""
	if z.logKey() {
		readable = answer.Key
	}
	if err := z.ban(key, readable, lasts); err != nil {
		return nil, steeringError(err)
	}
	answer.Until = momentOf(time.Now().Add(lasts))
	return answer, nil
}

// adminUnban is DELETE zones/<zone>/bans.
func adminUnban(c *adminCall) (any, error) {
	p, err := c.params("key", "client_ip", "id", "keep")
	if err != nil {
		return nil, err
	}
	keep, err := p.flag("keep")
	if err != nil {
		return nil, err
	}
	z, err := c.limit(p)
	if _, byID := p["id"]; byID || isNotFound(err) {
		return c.unbanListed(p, err)
	}
	if err != nil {
		return nil, err
	}
	key, answer, err := z.changes(p)
	if err != nil {
		return nil, err
	}
	found, err := z.unban(key, keep)
	if err != nil {
		return nil, steeringError(err)
	}
	answer.Found, answer.Kept = &found, &keep
	return answer, nil
}
