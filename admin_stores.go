package distributedratelimit

// adminStores answers GET stores.
func adminStores(c *adminCall) (any, error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	answer := []storeAnswer{}
	for _, b := range app.usedBackends() {
		answer = append(answer, storeAnswer{Name: b.name})
	}
	return answer, nil
}

// usedBackends lists the backends of the configuration, one for each store.
func (a *App) usedBackends() []*backend {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []*backend
	seen := make(map[string]bool)
	for _, b := range a.backends {
		if !seen[b.name] {
			seen[b.name] = true
			list = append(list, b)
		}
	}
	return list
}
