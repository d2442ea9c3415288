package distributedratelimit

import (
	"time"
)

// banAnswer is one ban in the answer to GET bans.
type banAnswer struct {
	limitAnswer
	// Key is missing unless all handlers with the zone have log_key.
	Key   string     `json:"key,omitempty"`
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
	for _, b := range app.bansByHand() {
		list = append(list, banAnswer{
			limitAnswer: limitAnswer{Zone: b.zone, Store: b.store, DryRun: b.dryRun},
			Key:         b.key, Set: momentOf(b.set), Until: momentOf(b.until),
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
	z, p, key, answer, err := c.change("keep")
	if err != nil {
		return nil, err
	}
	keep, err := p.flag("keep")
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
