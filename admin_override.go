package distributedratelimit

import (
	"time"
)

// overrideChange is one override, in the answers to what changes it.
type overrideChange struct {
	limitAnswer
	Plan   string `json:"plan,omitempty"`
	Events *int64 `json:"events,omitempty"`
	Note   string `json:"note,omitempty"`
	// Until is when the configured limit holds again.
	Until *time.Time `json:"until,omitempty"`
	// Found is whether there was an override, to DELETE.
	Found *bool `json:"found,omitempty"`
	// HoldsElsewhereWithin is how soon all other instances follow.
	HoldsElsewhereWithin string `json:"holds_elsewhere_within,omitempty"`
}

// adminOverride is PUT zones/<zone>/override.
func adminOverride(c *adminCall) (any, error) {
	p, err := c.params("events", "for", "plan", "note")
	if err != nil {
		return nil, err
	}
	z, err := c.limit(p)
	if err != nil {
		return nil, err
	}
	events, err := p.number("events", "1000")
	if err != nil {
		return nil, err
	}
	lasts, err := p.lasting()
	if err != nil {
		return nil, err
	}
	if err := z.override(p["plan"], events, lasts, p["note"]); err != nil {
		return nil, steeringError(err)
	}
	return &overrideChange{
		limitAnswer: z.where(), Plan: p["plan"], Events: &events, Note: p["note"], Until: momentOf(time.Now().Add(lasts)),
		HoldsElsewhereWithin: z.elsewhere(),
	}, nil
}

// adminEndOverride is DELETE zones/<zone>/override.
func adminEndOverride(c *adminCall) (any, error) {
	p, err := c.params("plan")
	if err != nil {
		return nil, err
	}
	z, err := c.limit(p)
	if isNotFound(err) {
		return c.endOverrideListed(p, err)
	}
	if err != nil {
		return nil, err
	}
	found, err := z.endOverride(p["plan"])
	if err != nil {
		return nil, steeringError(err)
	}
	return &overrideChange{limitAnswer: z.where(), Plan: p["plan"], Found: &found, HoldsElsewhereWithin: z.elsewhere()}, nil
}
