package distributedratelimit

// adminZones answers GET zones.
func adminZones(c *adminCall) (any, error) {
	answer := []zoneAnswer{}
	if c.app == nil {
		return answer, nil
	}
	for _, z := range c.app.usedZones() {
		answer = append(answer, z.answer())
	}
	return answer, nil
}

// adminZone answers GET zones/<zone>: a list as well, since a zone may be in force and
// a dry run.
func adminZone(c *adminCall) (any, error) {
	zones, err := c.zones()
	if err != nil {
		return nil, err
	}
	answer := []zoneAnswer{}
	for _, z := range zones {
		answer = append(answer, z.answer())
	}
	return answer, nil
}

func (z *usedZone) answer() zoneAnswer {
	return zoneAnswer{Name: z.Name, Store: z.store, DryRun: z.DryRun}
}
